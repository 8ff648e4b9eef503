#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/golden/optimizer/muon.json: four steps of Muon on small matrices in double precision, by torch, and
how far torch.optim.Muon, whose products are in bf16, is from them.

Needs torch with torch.optim.Muon (its version and the seed are in the file). Run from the repository root:
python3 tools/golden/make_muon_golden.py
"""

import json
from pathlib import Path

import torch

PATH = Path("tests/golden/optimizer/muon.json")
SEED = 11
SHAPES = [(1, 1), (1, 20), (20, 1), (16, 16), (5, 33), (24, 20), (36, 17)]
RATE, MOMENTUM, DECAY = 0.02, 0.95, 0.1
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NUM_STEPS = 4


def short(shape):
    """Normal numbers that a few digits write exactly."""
    return (torch.randn(shape) * 64).round() / 64


def orthogonal(update):
    x = update.mT if update.shape[0] > update.shape[1] else update
    x = x / x.norm().clamp(min=1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(5):
        s = x @ x.mT
        x = a * x + (b * s + c * s @ s) @ x
    return x.mT if update.shape[0] > update.shape[1] else x


def floats(tensor):
    return tensor.flatten().tolist()


def case(shape):
    start = short(shape)
    gradients = [short(shape) * 8.0 ** (step - 2) for step in range(NUM_STEPS)]
    scale = max(1, shape[0] / shape[1]) ** 0.5
    weights, momentum = start.double(), torch.zeros(shape, dtype=torch.float64)
    for gradient in gradients:
        momentum = MOMENTUM * momentum + (1 - MOMENTUM) * gradient.double()
        update = MOMENTUM * momentum + (1 - MOMENTUM) * gradient.double()
        weights = weights * (1 - RATE * DECAY) - RATE * scale * orthogonal(update)
    theirs = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.Muon([theirs], lr=RATE, momentum=MOMENTUM, weight_decay=DECAY, adjust_lr_fn="original")
    for gradient in gradients:
        theirs.grad = gradient.clone()
        optimizer.step()
    return {
        "rows": shape[0], "columns": shape[1], "weights": floats(start), "gradients": [floats(g) for g in gradients],
        "expected": floats(weights),
        "torch_optim_difference": (theirs.detach().double() - weights).abs().max().item(),
    }


def main():
    torch.manual_seed(SEED)
    content = {
        "made_by": "tools/golden/make_muon_golden.py", "torch": torch.__version__, "seed": SEED,
        "learning_rate": RATE, "momentum": MOMENTUM, "weight_decay": DECAY, "cases": [case(shape) for shape in SHAPES],
    }
    PATH.parent.mkdir(parents=True, exist_ok=True)
    PATH.write_text(json.dumps(content) + "\n")
    for entry in content["cases"]:
        print(entry["rows"], entry["columns"], "torch.optim.Muon differs by", entry["torch_optim_difference"])


if __name__ == "__main__":
    main()
