#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the Markdown tables of docs/kernels/ and docs/gpu.md from the rows of `gradus bench`.

    gradus bench kernels --output rows.jsonl     # or: gradus bench engine
    tools/kernel_table.py rows.jsonl
"""
import json
import sys

FILTERS = ("top_k 50", "top_k 50 top_p 0.95 top 20")


def samplers(rows):
    cases = {}
    for row in rows:
        if row["case"] == "sample":
            cases.setdefault((row["v"] * row["d"], row["v"], row["d"], row["b"]), {})[row["kind"]] = row
    print("| V x D | B | cuBLAS | noise | % of read | % of GEMM | greedy | top-k 50 | + top-p 0.95, top 20 |")
    print("|---" * 9 + "|")
    for (_, v, d, b), kinds in sorted(cases.items()):
        noise = kinds["noise"]
        cells = [f"{v:,} x {d:,}", str(b), f"{noise['cublas_us']:.0f}", f"{noise['median_us']:.0f}",
                 f"{noise['percent_of_read']:.0f}", f"{noise['percent_of_gemm']:.0f}",
                 f"{kinds['greedy']['median_us']:.0f}"] + [f"{kinds[k]['median_us']:.0f}" for k in FILTERS]
        print("| " + " | ".join(cells) + " |")


def scorers(rows):
    print("| rows x V x D | ms | TFLOP/s | cuBLAS, ms | cuBLAS / ours | workspace, MiB |")
    print("|---" * 6 + "|")
    for row in rows:
        if row["case"] == "score":
            cells = [f"{row['b']:,} x {row['v']:,} x {row['d']:,}", f"{row['median_us'] / 1000:.2f}",
                     f"{row['tflop_per_s']:.0f}", f"{row['cublas_us'] / 1000:.2f}",
                     f"{row['cublas_over_ours']:.2f}", f"{row['workspace_mib']:.0f}"]
            print("| " + " | ".join(cells) + " |")


def linears(rows):
    print("| N x K | T | us | cuBLAS, us | cuBLAS / ours | % of read | % of GEMM |")
    print("|---" * 7 + "|")
    for row in rows:
        if row["case"] == "linear":
            cells = [f"{row['n']:,} x {row['k']:,}", f"{row['t']:,}", f"{row['median_us']:.1f}",
                     f"{row['cublas_us']:.1f}", f"{row['cublas_over_ours']:.2f}", f"{row['percent_of_read']:.0f}",
                     f"{row['percent_of_gemm']:.0f}"]
            print("| " + " | ".join(cells) + " |")


def head_training(rows):
    print("| rows x V x D | what | ms | TFLOP/s | cuBLAS' products, ms | cuBLAS / ours | workspace, MB |")
    print("|---" * 7 + "|")
    for row in rows:
        if row["case"] == "head_training":
            cells = [f"{row['b']:,} x {row['v']:,} x {row['d']:,}", row["kind"], f"{row['median_us'] / 1000:.2f}",
                     f"{row['tflop_per_s']:.0f}"]
            cells += ([f"{row['cublas_us'] / 1000:.2f}", f"{row['cublas_over_ours']:.2f}"]
                      if "cublas_us" in row else ["", ""])
            cells.append(f"{row['workspace_mb']:.0f}" if "workspace_mb" in row else "")
            print("| " + " | ".join(cells) + " |")


def engines(rows):
    print("| shape | B | tokens/s | roof | % of roof | ms a step | first token, ms |")
    print("|---" * 7 + "|")
    for row in rows:
        if row["case"] == "engine":
            cells = [row["shape"], str(row["b"]), f"{row['tokens_per_s']:,.0f}", f"{row['roof_tokens_per_s']:,.0f}",
                     f"{row['percent_of_roof']:.0f}", f"{row['step_ms']:.2f}", f"{row['first_token_ms']:.1f}"]
            print("| " + " | ".join(cells) + " |")


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: kernel_table.py ROWS.jsonl")
    with open(sys.argv[1], encoding="utf-8") as file:
        rows = [json.loads(line) for line in file if line.startswith("{")]
    for row in rows:
        if row["case"] in ("read", "gemm"):
            print(f"{row['case']}: {row['gb_per_s']:.0f} GB/s, {row.get('tflop_per_s', 0):.0f} TFLOP/s")
    for table, cases in ((samplers, "sample"), (scorers, "score"), (head_training, "head_training"), (linears, "linear"), (engines, "engine")):
        if any(row["case"] == cases for row in rows):
            print()
            table(rows)


if __name__ == "__main__":
    main()
