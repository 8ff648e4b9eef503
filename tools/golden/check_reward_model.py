#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compares the scores of a reward model as gradus and transformers see it.

transformers must load DIR by itself as AutoModelForSequenceClassification, without a missing or unexpected
weight, and give each of 200 sequences of 1 to 40 tokens the score that `gradus score` gives it, within 1e-4.

Usage: python check_reward_model.py DIR [GRADUS]   (needs torch and transformers)
"""
import json
import random
import subprocess
import sys

import torch
import transformers

TOLERANCE = 1e-4


def main():
    directory = sys.argv[1]
    gradus = sys.argv[2] if len(sys.argv) > 2 else "build/gradus"
    model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
        directory, dtype=torch.float32, output_loading_info=True)
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[key], (key, info[key])
    assert model.config.num_labels == 1, model.config.num_labels
    generator = random.Random(1)
    rows = [[generator.randrange(model.config.vocab_size) for _ in range(generator.randint(1, 40))]
            for _ in range(200)]
    text = "".join(json.dumps({"ids": ids}) + "\n" for ids in rows)
    answer = subprocess.run([gradus, "score", "--model", directory], input=text, text=True, check=True,
                            capture_output=True).stdout
    ours = [json.loads(line)["score"] for line in answer.splitlines()]
    with torch.no_grad():
        theirs = [model(torch.tensor([ids])).logits[0, 0].item() for ids in rows]
    largest = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    spread = max(theirs) - min(theirs)
    print(f"{type(model).__name__}: {len(rows)} scores over a range of {spread:.3f} differ by at most {largest:.2e}")
    if not largest <= TOLERANCE:
        sys.exit(f"more than {TOLERANCE}")


if __name__ == "__main__":
    main()
