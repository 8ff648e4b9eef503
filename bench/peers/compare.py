#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times gradus and its peers on the same shapes, gradus and peer in turn; called by tools/bench_peers.

Ratios are medians over the pairs of one run, so what slows the whole machine down for a while slows both.
"""
import argparse
import datetime
import json
import os
import pathlib
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from worker import FOLDER, Worker

ROOT = FOLDER.parent.parent
GRADUS = ROOT / "build/gradus"
MODEL = ROOT / ".deps/models/smollm2-135m-instruct"
SECTIONS = ["decode64", "decode32", "batch1", "start", "train", "grpo"]
# Sums of these make rewards that differ within nearly every group, so that no group is left out of the update.
PATTERNS = [["the", 1], ["and", 2], ["is", 4], ["[.]", 8], [",", 16], ["[0-9]", 32], ["er", 64]]


def median(values):
    return statistics.median(values)


class Words:
    """Text of an exact number of tokens: words that are one token each."""

    def __init__(self):
        import tokenizers
        self.tokenizer = tokenizers.Tokenizer.from_file(str(MODEL / "tokenizer.json"))
        vocabulary = sorted(self.tokenizer.get_vocab().items(), key=lambda entry: entry[1])
        # The first Ġ is the space before a word.
        self.words = [name[1:] for name, _ in vocabulary if re.fullmatch("Ġ[a-z]{4,}", name)][:4000]
        self.random = random.Random(1)

    def text(self, num_tokens, first=""):
        """`first` is one token; without it the text starts with a space."""
        text = first + "".join(" " + self.random.choice(self.words) for _ in range(num_tokens - bool(first)))
        ids = self.ids(text)
        assert len(ids) == num_tokens, f"{len(ids)} tokens, wanted {num_tokens}: {text}"
        return text

    def ids(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids


class Gradus:
    def __init__(self, scratch, log):
        self.scratch = scratch
        self.log = log
        self.num_runs = 0
        # The model without an end token: every response gets all its tokens, as the peers' do.
        self.endless = scratch / "endless"
        self.endless.mkdir()
        for path in MODEL.iterdir():
            if path.name != "generation_config.json" and path.name != "config.json":
                (self.endless / path.name).symlink_to(path.resolve())
        config = json.loads((MODEL / "config.json").read_text())
        config.pop("eos_token_id")
        (self.endless / "config.json").write_text(json.dumps(config))

    def start(self, *arguments):
        """(what it said on standard error, seconds, peak GiB)."""
        start = time.perf_counter()
        # wait4 gives the peak of this one process.
        process = subprocess.Popen([GRADUS, *map(str, arguments)], text=True, stdin=subprocess.DEVNULL,
                                   stdout=self.log, stderr=subprocess.PIPE)
        said = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        self.log.write(said)
        if process.returncode != 0:
            raise RuntimeError(f"gradus {' '.join(map(str, arguments))}: {said[-1000:]}")
        return said, seconds, usage.ru_maxrss / 2**20

    def generate(self, ids, new_tokens):
        """Seconds of the engine, without loading the model."""
        prompts, out = self.scratch / "prompts.jsonl", self.scratch / "out.jsonl"
        prompts.write_text("".join(json.dumps({"ids": row}) + "\n" for row in ids))
        said, wall, peak = self.start("generate", "--model", self.endless, "--prompts", prompts, "--out", out,
                                      "--max-new-tokens", new_tokens, "--max-batch", len(ids))
        match = re.search(r"(\d+) tokens in ([\d.]+) s \(([\d.]+) tokens/s\)", said)
        tokens, seconds, rate = int(match[1]), float(match[2]), float(match[3])
        assert tokens == len(ids) * new_tokens, said
        # Of the two rounded numbers the one with more digits.
        return {"seconds": seconds if seconds > rate / 10 else tokens / rate, "wall": wall, "peak_gib": peak}

    def train(self, command, config):
        """Runs a configuration; (metrics of the steps, printed plan in GiB, peak in GiB)."""
        self.num_runs += 1
        config["run"] = {"name": f"run{self.num_runs}", "dir": str(self.scratch / "runs")}
        path = self.scratch / f"run{self.num_runs}.yaml"
        path.write_text(json.dumps(config))  # JSON is YAML
        plan = subprocess.run([GRADUS, command, path, "--dry-run"], text=True, capture_output=True)
        self.log.write(plan.stdout + plan.stderr)
        if plan.returncode != 0:
            raise RuntimeError(f"gradus {command} --dry-run: {plan.stdout}{plan.stderr}")
        peak = self.start(command, path)[2]
        folder = self.scratch / "runs" / f"run{self.num_runs}"
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        shutil.rmtree(folder)  # its checkpoint has 1.6 GB
        return [json.loads(line) for line in lines], planned_gib(plan.stdout), peak


def planned_gib(text):
    """The sum that --dry-run prints under `memory`."""
    match = re.search(r"^ +all +(\d+) MiB at the peak", text, re.MULTILINE)
    assert match, f"no memory plan in: {text}"
    return int(match[1]) / 1024


class Comparison:
    def __init__(self, arguments, scratch, log):
        self.num_pairs, self.is_small = arguments.pairs, arguments.small
        self.scratch, self.log = scratch, log
        self.words = Words()
        self.gradus = Gradus(scratch, log)
        self.rows = []    # of the table: what, gradus, peer, unit, ratio, target
        self.memory = []  # run, plan, peak
        self.raw = {}
        self.llama_problem = None

    def size(self, usual, small):
        return small if self.is_small else usual

    def prompts(self, count, num_tokens):
        return [self.words.ids(self.words.text(num_tokens)) for _ in range(count)]

    def row(self, what, peer_name, unit, ours, peer, target, more_is_better=True):
        """Medians of the pairs' numbers, and of their ratios: how many times better gradus is."""
        ratios = [a / b if more_is_better else b / a for a, b in zip(ours, peer)]
        self.rows.append({"what": what, "peer": peer_name, "unit": unit, "gradus": median(ours), "value": median(peer),
                          "ratio": median(ratios), "ratios": ratios, "target": target})
        print(f"{what}: {median(ours):.1f} against {median(peer):.1f} {unit} of {peer_name}: {median(ratios):.2f} "
              f"(target {target}), pairs {', '.join(f'{r:.2f}' for r in ratios)}", file=sys.stderr, flush=True)

    def transformers(self):
        return Worker("transformers_peer.py", MODEL, log=self.log)

    def decode64(self):
        count, new = self.size(64, 4), self.size(64, 6)
        ids = self.prompts(count, 64)
        ours, peer = [], []
        with self.transformers() as transformers:
            transformers.call("generate", ids=ids[:2], new_tokens=4)  # warm up
            for _ in range(self.num_pairs):
                ours.append([self.gradus.generate(ids, n)["seconds"] for n in (new, 1)])
                peer.append([transformers.call("generate", ids=ids, new_tokens=n)["seconds"] for n in (new, 1)])
        self.raw["decode64"] = {"gradus": ours, "transformers": peer}
        # The first token comes out of the prefill, so the difference is new - 1 steps of decoding.
        decoding = [[count * (new - 1) / (whole - prefill) for whole, prefill in side] for side in (ours, peer)]
        whole = [[count * new / seconds for seconds, _ in side] for side in (ours, peer)]
        self.row(f"generation, {count} sequences, decoding alone", "transformers", "tokens/s", *decoding, 2.5)
        self.row(f"generation, {count} sequences, with prefill", "transformers", "tokens/s", *whole, 2.2)

    def f32_gguf(self):
        path = self.scratch / "model-f32.gguf"
        if not path.exists():
            subprocess.run([sys.executable, FOLDER / "llama_peer.py", "--convert", f"{MODEL}.gguf", path], check=True,
                           stdout=self.log, stderr=self.log)
        return path

    def decode32(self):
        try:
            import llama_cpp  # noqa: F401  only whether it is there
        except ImportError as error:
            self.llama_problem = str(error)
            print(f"llama.cpp left out: {error}", file=sys.stderr)
            return
        count, new = self.size(32, 4), self.size(64, 6)
        ids = self.prompts(count, 64)
        ours, peer = [], []
        with Worker("llama_peer.py", self.f32_gguf(), count, 64 + new, log=self.log) as llama:
            llama.call("generate", ids=ids[:2], new_tokens=4)
            for _ in range(self.num_pairs):
                ours.append([self.gradus.generate(ids, n)["seconds"] for n in (new, 1)])
                sampled = llama.call("generate", ids=ids, new_tokens=new)
                bare = llama.call("generate", ids=ids, new_tokens=new, has_sampler=False)
                peer.append([sampled["seconds"], sampled["prefill_seconds"], bare["seconds"], bare["prefill_seconds"]])
        self.raw["decode32"] = {"gradus": ours, "llama.cpp": peer}
        decoding = [count * (new - 1) / (whole - prefill) for whole, prefill in ours]
        sampled, bare = ([count * (new - 1) / (p[i] - p[i + 1]) for p in peer] for i in (0, 2))
        self.row(f"generation, {count} sequences, decoding alone", "llama.cpp F32", "tokens/s", decoding, sampled, 1.0)
        self.row(f"generation, {count} sequences, decoding alone", "llama.cpp F32 without sampler", "tokens/s",
                 decoding, bare, None)
        self.row(f"generation, {count} sequences, with prefill", "llama.cpp F32", "tokens/s",
                 [count * new / whole for whole, _ in ours], [count * new / p[0] for p in peer], None)

    def batch1(self):
        new = self.size(64, 6)
        ids = self.prompts(1, 64)
        header = json.loads((MODEL / "config.json").read_text())
        num_bytes = weight_bytes(header)
        ours, peer, rates = [], [], []
        with self.transformers() as transformers:
            transformers.call("generate", ids=ids, new_tokens=4)
            for _ in range(self.num_pairs + 2):
                rates.append(transformers.call("read_rate", num_bytes=num_bytes)["gb_per_s"])
                whole, prefill = (self.gradus.generate(ids, n)["seconds"] for n in (new, 1))
                ours.append((new - 1) / (whole - prefill))
                whole, prefill = (transformers.call("generate", ids=ids, new_tokens=n)["seconds"] for n in (new, 1))
                peer.append((new - 1) / (whole - prefill))
        self.raw["batch1"] = {"gradus": ours, "transformers": peer, "read_gb_per_s": rates, "weight_bytes": num_bytes}
        self.row("generation, 1 sequence, decoding alone", "transformers", "tokens/s", ours, peer, None)
        roof = [rate * 1e9 / num_bytes for rate in rates]
        self.row("generation, 1 sequence, against memory", f"reading the {num_bytes / 1e6:.0f} MB of weights "
                 f"({median(rates):.1f} GB/s)", "tokens/s", ours, roof, 0.92)

    def start(self):
        ids = self.prompts(1, 64)
        ours, peer = [], []
        for _ in range(self.num_pairs):
            ours.append(self.gradus.generate(ids, 1)["wall"])
            begin = time.perf_counter()
            subprocess.run([sys.executable, FOLDER / "transformers_peer.py", "--first-token", MODEL,
                            ",".join(map(str, ids[0]))], check=True, stdout=self.log, stderr=self.log)
            peer.append(time.perf_counter() - begin)
        self.raw["start"] = {"gradus": ours, "transformers": peer}
        self.row("process start to its end after one token", "transformers", "s", ours, peer, "<= 1 s", False)

    def train(self):
        """8 sequences of 129 tokens: 1,024 rows go through the model and each predicts a token."""
        count, length = 8, self.size(128, 16)
        rows = [{"data_source": "words", "prompt": "The", "response": self.words.text(length - 1)}
                for _ in range(count)]
        data = self.scratch / "sft.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        eos = json.loads((MODEL / "config.json").read_text())["eos_token_id"]
        ids = [self.words.ids(row["prompt"]) + self.words.ids(row["response"]) + [eos] for row in rows]
        config = {"model": {"path": str(MODEL)},
                  "data": {"prompt_format": "text", "train": {"files": [str(data)]}},
                  "sft": {"num_steps": 2, "batch_rows": count, "learning_rate": 1e-6,
                          "micro_batch_tokens": count * length, "reduction_blocks": 1}}
        ours, peer, losses, peer_peak = [], [], [], 0
        with self.transformers() as transformers:
            losses.append(transformers.call("train", ids=ids)["loss"])  # also warms up
            for _ in range(self.num_pairs):
                # Its first step warms up, too: memory comes from the system then.
                steps, plan, peak = self.gradus.train("sft", dict(config))
                assert steps[1]["perf/total_num_tokens"] == count * (length + 1), steps[1]
                ours.append(count * length / steps[1]["timing_s/step"])
                losses.append(steps[0]["train/loss"])
                answer = transformers.call("train", ids=ids)
                peer.append(count * length / answer["seconds"])
                peer_peak = answer["peak_gib"]
        # The same work: the first step's loss is the same function of the same weights and tokens.
        assert abs(losses[0] - losses[1]) < 1e-3 * abs(losses[0]), losses
        self.raw["train"] = {"gradus": ours, "transformers": peer, "losses": losses}
        self.memory.append({"run": f"gradus sft, {count * length} packed tokens", "plan_gib": plan, "peak_gib": peak,
                            "peer": "transformers", "peer_gib": peer_peak})
        self.row(f"training step, {count * length} packed tokens", "transformers (eager)", "tokens/s", ours, peer, 1.8)

    def grpo(self):
        num_prompts, num_samples, new = self.size(8, 2), self.size(8, 8), self.size(48, 4)
        prompts = [self.words.text(30, "Write") for _ in range(num_prompts)]
        data = self.scratch / "grpo.jsonl"
        data.write_text("".join(json.dumps({"data_source": "words", "prompt": prompt,
                                            "reward_model": {"style": "rule", "ground_truth": "none"}}) + "\n"
                                for prompt in prompts))
        parts = [{"name": "format", "label": f"part{i}", "weight": weight,
                  "options": {"pattern": pattern, "match": "partial"}} for i, (pattern, weight) in enumerate(PATTERNS)]
        config = {"model": {"path": str(self.gradus.endless)},
                  "data": {"prompt_format": "text", "shuffle": False, "train": {"files": [str(data)]}},
                  "rollout": {"num_samples": num_samples, "max_new_tokens": new, "max_batch": num_prompts * num_samples},
                  "reward": {"parts": parts},
                  "trainer": {"num_steps": 2, "prompts_per_step": num_prompts, "learning_rate": 1e-6,
                              "micro_batch_tokens": 1024, "reduction_blocks": 1}}
        job = self.scratch / "trl.json"
        job.write_text(json.dumps({"prompts": prompts, "num_samples": num_samples, "new_tokens": new,
                                   "patterns": PATTERNS, "num_steps": 1, "scratch": str(self.scratch / "trl")}))
        ours, phases = [], []

        def run_gradus():
            steps, plan, peak = self.gradus.train("train", dict(config))
            step = steps[1]
            assert step["perf/total_num_tokens"] == num_prompts * num_samples * (30 + new), step
            assert step["rollout/zero_variance_group_fraction"] == 0 or self.is_small, "a group was left out"
            ours.append(step["timing_s/step"])
            phases.append({"generation": step["timing_s/gen"], "training": step["timing_s/update_actor"],
                           "mismatch": step["mismatch/max_abs_logprob"]})
            return plan, peak

        run_gradus()
        done = subprocess.run([sys.executable, FOLDER / "trl_peer.py", MODEL, job], check=True, text=True,
                              stdout=subprocess.PIPE, stderr=self.log, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        trl = json.loads(done.stdout.splitlines()[-1])
        assert trl["completion_lengths"] == [new], trl
        plan, peak = run_gradus()
        self.raw["grpo"] = {"gradus": ours, "gradus_phases": phases, "trl": trl}
        self.memory.append({"run": f"gradus train, {num_prompts} x {num_samples} x {new} tokens", "plan_gib": plan,
                            "peak_gib": peak, "peer": "TRL", "peer_gib": trl["peak_gib"]})
        self.row(f"GRPO step, {num_prompts} prompts x {num_samples} samples x {new} tokens", "TRL GRPOTrainer", "s",
                 ours, trl["seconds"] * len(ours), 3.5, False)


def weight_bytes(config):
    """Bytes that one token reads: every matrix once; the tied embedding as the output head."""
    hidden, head = config["hidden_size"], config["head_dim"]
    attention = hidden * head * (2 * config["num_attention_heads"] + 2 * config["num_key_value_heads"])
    layer = attention + 3 * hidden * config["intermediate_size"] + 2 * hidden
    return 4 * (config["num_hidden_layers"] * layer + hidden + config["vocab_size"] * hidden)


def number(value):
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def verdict(row):
    target = row["target"]
    if target is None:
        return "-", ""
    if isinstance(target, str):  # "<= 1 s" is about our own number
        return target, "met" if row["gradus"] <= 1 else "missed"
    return f">= {target}", "met" if row["ratio"] >= target else "missed"


def table(rows, memory):
    lines = ["| what | gradus | peer | | unit | ratio | target | |", "|---|---|---|---|---|---|---|---|"]
    for row in rows:
        target, is_met = verdict(row)
        lines.append(f"| {row['what']} | {number(row['gradus'])} | {number(row['value'])} | {row['peer']} | {row['unit']} "
                     f"| {row['ratio']:.2f} | {target} | {is_met} |")
    if memory:
        lines += ["", "| run | planned GiB | peak GiB | peak / plan | target | | peer's peak GiB |",
                  "|---|---|---|---|---|---|---|"]
    for row in memory:
        share = row["peak_gib"] / row["plan_gib"]
        lines.append(f"| {row['run']} | {row['plan_gib']:.2f} | {row['peak_gib']:.2f} | {share:.2f} | 0.9 to 1.1 "
                     f"| {'met' if 0.9 <= share <= 1.1 else 'missed'} | {row['peer_gib']:.2f} ({row['peer']}) |")
    return "\n".join(lines)


def machine():
    cpu = next(line.split(":")[1].strip() for line in open("/proc/cpuinfo", encoding="utf-8")
               if line.startswith("model name"))
    flags = next(line for line in open("/proc/cpuinfo", encoding="utf-8") if line.startswith("flags"))
    widest = "AVX-512" if " avx512f " in flags else "AVX2"
    return f"{len(os.sched_getaffinity(0))} cores of an {cpu} with {widest}"


def versions():
    from importlib.metadata import PackageNotFoundError, version
    found = {}
    for name in ("torch", "transformers", "trl", "llama-cpp-python"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "runs/bench_peers.json")
    parser.add_argument("--only", action="append", choices=SECTIONS, default=[])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], text=True, capture_output=True)
    with tempfile.TemporaryDirectory(prefix="bench_peers") as scratch, \
            open(arguments.out.with_suffix(".log"), "w", encoding="utf-8") as log:
        comparison = Comparison(arguments, pathlib.Path(scratch), log)
        load_before = os.getloadavg()[0]
        started = datetime.datetime.now(datetime.timezone.utc)
        for section in arguments.only or SECTIONS:
            getattr(comparison, section)()
            # Written after each section, so that an interrupted run keeps what it measured.
            arguments.out.write_text(json.dumps({
                "date": started.strftime("%Y-%m-%d %H:%M UTC"), "machine": machine(), "commit": commit.stdout.strip(),
                "versions": versions(), "load_before": load_before, "load_after": os.getloadavg()[0],
                "pairs": arguments.pairs, "is_small": arguments.small, "llama_cpp_left_out": comparison.llama_problem,
                "rows": comparison.rows, "memory": comparison.memory, "raw": comparison.raw}, indent=1) + "\n")
    print(f"{machine()}; {started:%Y-%m-%d}; commit {commit.stdout.strip()}; "
          + ", ".join(f"{name} {version or 'left out'}" for name, version in versions().items()) + "\n")
    print(table(comparison.rows, comparison.memory))


if __name__ == "__main__":
    main()
