#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the Markdown table of a Google Benchmark JSON file: one row per benchmark, one column per counter.

    bench_kernels_gemm --benchmark_out=gemm.json --benchmark_out_format=json
    tools/bench_table.py gemm.json gflops of_peak of_torch

Counters named of_* are ratios and get two digits; the rest three significant ones.
"""
import json
import sys


def cell(name, value):
    if value is None:
        return ""
    return f"{value:.2f}" if name.startswith("of_") else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def main():
    if len(sys.argv) < 3:
        sys.exit("usage: bench_table.py FILE.json COUNTER...")
    with open(sys.argv[1], encoding="utf-8") as file:
        runs = json.load(file)["benchmarks"]
    columns = sys.argv[2:]
    print("| " + " | ".join(["case", "us"] + columns) + " |")
    print("|---" * (len(columns) + 2) + "|")
    for run in runs:
        name = run["name"].removesuffix("/manual_time").replace("/", " ").replace(":", " ")
        cells = [name, cell("us", run["real_time"])] + [cell(c, run.get(c)) for c in columns]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
