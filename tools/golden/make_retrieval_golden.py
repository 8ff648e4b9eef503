#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/golden/retrieval/policy.json: log-probabilities of ranked lists under the Plackett-Luce law and
their gradients by the scores, in 60-digit decimals from the law's product form. The gradients are central
differences with a step of 1e-20, so that no derivative formula is shared with the program under test.

Run from the repository root: python3 tools/golden/make_retrieval_golden.py
"""

import json
import random
from decimal import Decimal, getcontext
from pathlib import Path

OUT = Path("tests/golden/retrieval/policy.json")
SEED = 5
getcontext().prec = 60


def logprob(scores, temperature, selected):
    left = dict(enumerate(scores))
    total = Decimal(0)
    for place in selected:
        total += left[place] / temperature - sum((s / temperature).exp() for s in left.values()).ln()
        del left[place]
    return total


def gradient(scores, temperature, selected):
    step = Decimal("1e-20")
    slopes = []
    for j in range(len(scores)):
        ends = [logprob([s + sign * step * (i == j) for i, s in enumerate(scores)], temperature, selected)
                for sign in (1, -1)]
        slopes.append((ends[0] - ends[1]) / (2 * step))
    return slopes


def main():
    rng = random.Random(SEED)
    cases = []
    # Deviations of the logits: cosines at a = 0.05, and up to one document with nearly all mass.
    for size, k, temperature, deviation in [(1, 1, .05, .1), (3, 3, .05, .1), (6, 3, 1.0, .7), (30, 3, .05, .08),
                                            (30, 3, .01, .08), (30, 5, .02, .1), (12, 1, .5, 5.0), (10, 4, 1.0, 60.0),
                                            (30, 30, .05, .05)]:
        scores = [round(rng.gauss(0, deviation), 6) for _ in range(size)]
        selected = rng.sample(range(size), k)
        if deviation > 1:
            selected = sorted(range(size), key=lambda j: -scores[j])[:k]
        exact = [Decimal(str(s)) for s in scores]
        a = Decimal(str(temperature))
        cases.append({"input": {"scores": scores, "k": k, "temperature": temperature, "selected": selected},
                      "logprob": float(logprob(exact, a, selected)),
                      "grad": [float(g) for g in gradient(exact, a, selected)]})
    OUT.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(case) for case in cases)
    OUT.write_text(f'{{"made_by": "tools/golden/make_retrieval_golden.py", "seed": {SEED}, "cases": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
