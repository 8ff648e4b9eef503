#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times PyPI `tokenizers` and `gradus` on one text in the same run, and checks that their ids agree.

    tokenizer_peer.py --build BUILD_DIR --model MODEL_DIR --text FILE

Prints one JSON line. Both run on one core; the text is encoded in one call by either.
"""
import argparse
import json
import os
import pathlib
import subprocess
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
import tokenizers  # noqa: E402  reads the variable above


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, required=True)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--text", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    text = arguments.text.read_bytes().decode("utf-8")
    tokenizer = tokenizers.Tokenizer.from_file(str(arguments.model / "tokenizer.json"))
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        expected = tokenizer.encode(text, add_special_tokens=False).ids
        seconds.append(time.perf_counter() - start)
    row = json.dumps({"text": text}) + "\n"
    result = subprocess.run([arguments.build / "gradus", "tokenize", "--model", arguments.model], input=row.encode(),
                            capture_output=True, check=True)
    assert json.loads(result.stdout)["ids"] == expected, "ids differ"
    bench = subprocess.run([arguments.build / "bench_data_tokenizer", arguments.model, arguments.text,
                            "--benchmark_format=json"], capture_output=True, check=True)
    rate = {b["name"]: b.get("bytes_per_second", 0) / 1e6 for b in json.loads(bench.stdout)["benchmarks"]}
    load_ms = next(b["real_time"] for b in json.loads(bench.stdout)["benchmarks"] if b["name"] == "load")
    peer = len(text.encode()) / min(seconds) / 1e6
    print(json.dumps({
        "model": arguments.model.name, "text_mb": round(len(text.encode()) / 1e6, 2), "tokens": len(expected),
        "gradus_cold_mb_s": round(rate["encode_cold"], 1), "gradus_warm_mb_s": round(rate["encode_warm"], 1),
        "gradus_decode_mb_s": round(rate["decode"], 1), "gradus_load_ms": round(load_ms, 1),
        "tokenizers_mb_s": round(peer, 2), "ratio": round(rate["encode_cold"] / peer, 1),
        "tokenizers": tokenizers.__version__}))


if __name__ == "__main__":
    main()
