#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/golden/tiny_models/gradients.json: gradients of the tiny models in double precision.

For each model, one group of a prompt and two responses. The scalar is the weighted sum of the responses'
log-probs and row entropies at temperature 0.7; its gradient comes from transformers and torch's autograd in
float64. Per weight: sum(g), sum(g_i cos(i)) over the row-major index i, and the norm.

Usage: python make_tiny_gradients.py   (from the root of the repository; needs torch and transformers)
"""
import json
import pathlib

import torch
import transformers

ROOT = pathlib.Path("tests/golden/tiny_models")
TEMPERATURE = 0.7
PROMPT_LENGTH, RESPONSE_LENGTHS = 70, (5, 9)


def tokens(count, salt, vocab):
    return [(salt * 7919 + i * i * 31 + i * 17) % vocab for i in range(count)]


def main():
    models = {}
    for directory in sorted(p for p in ROOT.iterdir() if p.is_dir()):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float64, attn_implementation="eager")
        vocab = model.config.vocab_size
        prompt = tokens(PROMPT_LENGTH, 1, vocab)
        responses = [tokens(n, 2 + i, vocab) for i, n in enumerate(RESPONSE_LENGTHS)]
        total, logprobs, index = 0.0, [], 0
        for response in responses:
            ids = torch.tensor([prompt + response])
            logits = model(ids).logits[0, PROMPT_LENGTH - 1 : -1] / TEMPERATURE
            table = torch.log_softmax(logits, -1)
            entropy = -(table.exp() * table).sum(-1)
            for i, token in enumerate(response):
                weight = 0.5 + 0.1 * index
                total = total + weight * table[i, token] - 0.05 * index * entropy[i]
                logprobs.append(table[i, token].item())
                index += 1
        total.backward()
        gradients = {}
        for name, weight in model.named_parameters():
            grad = weight.grad.reshape(-1)
            wave = torch.cos(torch.arange(grad.numel(), dtype=torch.float64))
            gradients[name] = [grad.sum().item(), (grad * wave).sum().item(), grad.norm().item()]
        models[directory.name] = {"prompt": prompt, "responses": responses, "logprobs": logprobs,
                                  "gradients": gradients}
    out = {"made_by": "tools/golden/make_tiny_gradients.py",
           "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
           "temperature": TEMPERATURE, "models": models}
    (ROOT / "gradients.json").write_text(json.dumps(out) + "\n")


if __name__ == "__main__":
    main()
