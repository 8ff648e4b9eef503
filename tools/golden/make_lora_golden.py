#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/golden/lora: LoRA adapters of tiny models as peft saves them, each with expected.json: what
transformers and peft compute with it in float64, log-probs and gradients of the factors.

Per factor the gradient of the weighted sum of the responses' log-probs is given as sum(g), sum(g_i cos(i)) over
the row-major index i, and the norm.

usage: python tools/golden/make_lora_golden.py                            (from the root of the repository)
       python tools/golden/make_lora_golden.py --check GRADUS MODEL ADAPTER   compares `gradus logprobs` on an
           adapter that Gradus wrote with transformers and peft, in float32; fails above 1e-4
Needs torch, transformers and peft (the versions used are in expected.json).
"""
import argparse
import json
import pathlib
import shutil
import subprocess
import sys

import peft
import torch
import transformers

ROOT = pathlib.Path("tests/golden/lora")
MODELS = pathlib.Path("tests/golden/tiny_models")
SEED = 20251125
PROMPT_LENGTH, RESPONSE_LENGTHS = 70, (5, 9)
TOLERANCE = 1e-4

ADAPTERS = {
    "qwen2_all": ("qwen2", peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=6, target_modules="all-linear")),
    "qwen3_rslora": ("qwen3", peft.LoraConfig(
        task_type="CAUSAL_LM", r=5, lora_alpha=3, use_rslora=True, lora_dropout=0.05,
        target_modules=["q_proj", "v_proj", "down_proj"])),
}


def tokens(count, salt, vocab):
    return [(salt * 7919 + i * i * 31 + i * 17) % vocab for i in range(count)]


def load_base(path, dtype):
    return transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=dtype, attn_implementation="eager")


def expected_of(model):
    vocab = model.config.vocab_size
    prompt = tokens(PROMPT_LENGTH, 1, vocab)
    responses = [tokens(n, 2 + i, vocab) for i, n in enumerate(RESPONSE_LENGTHS)]
    total, logprobs = 0.0, []
    for response in responses:
        logits = model(torch.tensor([prompt + response])).logits[0, PROMPT_LENGTH - 1 : -1]
        table = torch.log_softmax(logits, -1)
        for i, token in enumerate(response):
            total = total + (0.5 + 0.1 * len(logprobs)) * table[i, token]
            logprobs.append(table[i, token].item())
    total.backward()
    gradients = {}
    for name, weight in model.named_parameters():
        if weight.grad is None:
            continue
        grad = weight.grad.reshape(-1)
        wave = torch.cos(torch.arange(grad.numel(), dtype=torch.float64))
        gradients[name.replace(".default.", ".")] = [
            grad.sum().item(), (grad * wave).sum().item(), grad.norm().item()]
    return {"prompt": prompt, "responses": responses, "logprobs": logprobs, "gradients": gradients}


def make():
    torch.set_num_threads(1)
    shutil.rmtree(ROOT, ignore_errors=True)
    for index, (name, (base, config)) in enumerate(ADAPTERS.items()):
        folder = ROOT / name
        generator = torch.Generator().manual_seed(SEED + index)
        model = peft.get_peft_model(load_base(MODELS / base, torch.float32), config)
        with torch.no_grad():
            for key, weight in model.named_parameters():
                if "lora_" in key:
                    weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
        model.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
        saved = peft.PeftModel.from_pretrained(
            load_base(MODELS / base, torch.float64), folder, is_trainable=True,
            autocast_adapter_dtype=False).double().eval()
        expected = {
            "made_by": "tools/golden/make_lora_golden.py",
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__,
                         "peft": peft.__version__},
            "seed": SEED + index,
            "base": str(MODELS / base),
            **expected_of(saved),
        }
        (folder / "expected.json").write_text(json.dumps(expected) + "\n")
        print(name, {path.name: path.stat().st_size for path in sorted(folder.iterdir())})


def check(gradus, base, adapter):
    model = peft.PeftModel.from_pretrained(load_base(base, torch.float32), adapter).eval()
    ids = [tokens(n, n, model.config.vocab_size) for n in (2, 30, 200)]
    rows = "".join(json.dumps({"ids": row}) + "\n" for row in ids)
    output = subprocess.run([gradus, "logprobs", "--model", base, "--adapter", adapter], input=rows,
                            capture_output=True, text=True, check=True).stdout
    worst = 0.0
    for row, line in zip(ids, output.splitlines(), strict=True):
        with torch.no_grad():
            table = torch.log_softmax(model(torch.tensor([row])).logits[0, :-1].double(), -1)
            plain = table.gather(1, torch.tensor(row[1:])[:, None])[:, 0]
            with model.disable_adapter():
                without = torch.log_softmax(model(torch.tensor([row])).logits[0, :-1].double(), -1)
        worst = max(worst, (plain - torch.tensor(json.loads(line)["logprobs"]).double()).abs().max().item())
        moved = (table - without).abs().max().item()
    print(f"peft {peft.__version__}: largest difference of {sum(len(row) - 1 for row in ids)} log-probs "
          f"{worst:.2e} (at most {TOLERANCE:.0e}); the adapter moves them by up to {moved:.2e}")
    return 0 if worst <= TOLERANCE else 1


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", nargs=3, metavar=("GRADUS", "MODEL", "ADAPTER"))
    arguments = parser.parse_args()
    if arguments.check:
        return check(*arguments.check)
    make()
    return 0


if __name__ == "__main__":
    sys.exit(main())
