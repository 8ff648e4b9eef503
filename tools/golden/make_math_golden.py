#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Fills in what Math-Verify says to the pairs of tests/golden/math/pairs.jsonl.

  python -m venv venv && venv/bin/pip install math-verify[antlr4_13_2]==0.9.0
  venv/bin/python tools/golden/make_math_golden.py

A pair: {"kind", "gold", "answer", "strict", "compat"}. Kind, texts and `strict` (whether strict mode must accept)
are written by hand; `compat` is the verdict of math-verify 0.9.0 with boxes first and LaTeX before plain notation,
which this script puts there. A verdict that ran into Math-Verify's own time limit is 0, as it says.
"""
import importlib.metadata
import json
import pathlib

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

VERSION = "0.9.0"
PAIRS = pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden" / "math" / "pairs.jsonl"
TARGETS = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]


def main():
    installed = importlib.metadata.version("math-verify")
    if installed != VERSION:
        raise SystemExit(f"math-verify is {installed}; the fixture is made with {VERSION}")
    rows = [json.loads(line) for line in PAIRS.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row["compat"] = int(verify(parse(row["gold"], TARGETS), parse(row["answer"], TARGETS)))
    PAIRS.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
