#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times PyPI `math-verify` and `gradus` on the same pairs in the same run, one core each.

    math_peer.py --build BUILD_DIR [--seconds 3]      (in an environment with math-verify[antlr4_13_2]==0.9.0)

Two sets of pairs: `plain`, integers, fractions and decimals in a box at the end of a response of 8,000 characters,
and `symbolic`, the formulas of tests/golden/math/pairs.jsonl. Prints one JSON line a set and mode. Math-verify
parses gold and answer and compares, once a pair with a warm parser; pairs beyond its own time limits count with them.
"""
import argparse
import importlib.metadata
import json
import pathlib
import random
import subprocess
import tempfile
import time

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

ROOT = pathlib.Path(__file__).resolve().parents[2]
TARGETS = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]
SYMBOLIC = {"polynomial", "rational", "trig", "log", "radical", "truth: constant", "truth: formula", "truth: relation",
            "truth: interval", "truth: collection", "truth: matrix", "attack: formula"}
LINE = "Then we move terms with $x_{%d} = %d$ to the left side and find that the sum of the two parts is %d, as before. "


def plain_pairs():
    generator = random.Random(7)
    rows = []
    for i in range(60):
        prose = ""
        while len(prose) < 7950:
            prose += LINE % tuple(generator.randrange(1, 1000) for _ in range(3))
        n, d = generator.randrange(1, 500), generator.randrange(2, 50)
        gold, answer = [(str(n), str(n)), (f"\\frac{{{n}}}{{{d}}}", f"\\frac{{{2 * n}}}{{{2 * d}}}"),
                        (str(n / 8), str(n / 8))][i % 3]
        if i % 6 > 2:
            answer = str(n + 1)
        rows.append({"gold": f"${gold}$", "answer": prose + f"So the answer is $\\boxed{{{answer}}}$."})
    return rows


def symbolic_pairs():
    rows = [json.loads(line) for line in (ROOT / "tests/golden/math/pairs.jsonl").read_text().splitlines()]
    return [{"gold": r["gold"], "answer": r["answer"]} for r in rows if r["kind"] in SYMBOLIC]


def time_peer(rows):
    for row in rows[:5]:
        verify(parse(row["gold"], TARGETS), parse(row["answer"], TARGETS))
    seconds = []
    for row in rows:
        start = time.perf_counter()
        verify(parse(row["gold"], TARGETS), parse(row["answer"], TARGETS))
        seconds.append(time.perf_counter() - start)
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, required=True)
    parser.add_argument("--seconds", type=float, default=3)
    arguments = parser.parse_args()
    for name, rows in {"plain": plain_pairs(), "symbolic": symbolic_pairs()}.items():
        peer = time_peer(rows)
        peer_mean_us = sum(peer) / len(peer) * 1e6
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
            file.flush()
            for mode in ["strict", "compat"]:
                command = [arguments.build / "bench_rewards_math", file.name, mode, str(arguments.seconds)]
                own = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
                print(json.dumps({
                    "set": name, "mode": mode, "pairs": own["pairs"],
                    "gradus_checks_per_s": round(own["checks_per_s"]), "gradus_mean_us": round(own["mean_us"], 1),
                    "gradus_p99_us": round(own["p99_us"], 1), "gradus_max_us": round(own["max_us"], 1),
                    "math_verify_checks_per_s": round(1e6 / peer_mean_us, 1),
                    "math_verify_p99_us": round(sorted(peer)[int(0.99 * len(peer))] * 1e6),
                    "ratio": round(peer_mean_us / (1e6 / own["checks_per_s"]), 1),
                    "math_verify": importlib.metadata.version("math-verify")}))


if __name__ == "__main__":
    main()
