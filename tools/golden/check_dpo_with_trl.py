#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compares losses, rewards and log-probs of `gradus dpo` with TRL's DPOTrainer.

Two small models from scratch are made by `gradus sft`, one stands as policy, one as reference. For each loss, the
evaluation before training that gradus writes is set beside what TRL computes for the same pairs.

Usage: python check_dpo_with_trl.py [GRADUS]   (from the root of the repository; needs torch, transformers, trl)
"""
import json
import pathlib
import subprocess
import sys
import tempfile

import datasets
import torch
import transformers
import trl

NUM_PAIRS = 24
SEED = 5
TOLERANCE = 1e-4  # relative to 1 + the size: log-probs of whole responses in fp32
TASK = "{task: chain_sum, task_options: {style: compact}, num_rows: %d, seed: %d}"
CONFIG = """
run: {name: run, checkpoint_every: 0}
model:
  init:
    architecture: {hidden_size: 32, intermediate_size: 64, num_layers: 2, num_heads: 2, num_kv_heads: 1,
                   max_position_embeddings: 96}
data:
  prompt_format: text
  max_prompt_tokens: 40
  train: %s
  eval: %s
rollout: {max_new_tokens: 16}
sft: {num_steps: 40, learning_rate: 1e-2}
dpo: {num_steps: 1, batch_pairs: 8}
eval: {before_training: true}
"""
LOSSES = {
    "sigmoid": ({"loss_type": ["sigmoid"], "beta": 0.3}, "--set dpo.beta=0.3"),
    "hinge": ({"loss_type": ["hinge"], "beta": 0.1}, "--set dpo.beta=0.1 --set dpo.loss_type=hinge"),
    "ipo": ({"loss_type": ["ipo"], "beta": 0.2}, "--set dpo.beta=0.2 --set dpo.loss_type=ipo"),
}
NAMES = ["rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen",
         "logps/rejected"]


def compare(label, ours, theirs):
    worst = 0.0
    for name, value in theirs.items():
        off = abs(ours[name] - value) / (1 + abs(value))
        worst = max(worst, off)
        if not off <= TOLERANCE:
            sys.exit(f"{label}: {name} is {ours[name]} in gradus, {value} in TRL")
    print(f"{label}: loss {theirs['loss']:.6f}; {len(theirs)} numbers differ by at most {worst:.1e}")


def main():
    gradus = str(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "build/gradus").resolve())
    with tempfile.TemporaryDirectory() as folder:
        config = pathlib.Path(folder, "run.yaml")
        config.write_text(CONFIG % (TASK % (400, 0), TASK % (NUM_PAIRS, SEED)))

        def run(command, name, options=""):
            done = subprocess.run(
                f"{gradus} {command} {config} --set run.dir={folder} --set run.name={name} {options}", shell=True,
                capture_output=True, text=True)
            if done.returncode != 0:
                sys.exit(done.stderr)
            return f"{folder}/{name}"

        policy, reference = (run("sft", f"sft{seed}", f"--set run.seed={seed}") + "/checkpoints/latest"
                             for seed in (1, 2))
        lines = subprocess.run(
            f"{gradus} data make chain_sum --pairs --num {NUM_PAIRS} --seed {SEED} --option style=compact", shell=True,
            check=True, capture_output=True, text=True).stdout
        rows = [json.loads(line) for line in lines.splitlines()]
        pairs = datasets.Dataset.from_list([{k: row[k] for k in ("prompt", "chosen", "rejected")} for row in rows])
        start = f"--set model.init=null --set model.path={policy} "
        common = {"output_dir": folder, "per_device_train_batch_size": NUM_PAIRS, "use_cpu": True,
                  "report_to": [], "bf16": False, "gradient_checkpointing": False}
        for name, (options, ours) in LOSSES.items():
            path = run("dpo", f"dpo_{name}", start + f"--set dpo.reference_path={reference} " + ours)
            row = json.loads(pathlib.Path(path, "metrics.jsonl").read_text().splitlines()[0])
            models = [transformers.AutoModelForCausalLM.from_pretrained(d, dtype=torch.float32)
                      for d in (policy, reference)]
            trainer = trl.DPOTrainer(models[0], models[1], trl.DPOConfig(**common, **options), train_dataset=pairs,
                                     processing_class=transformers.AutoTokenizer.from_pretrained(policy))
            batch = next(iter(trainer.get_train_dataloader()))
            trainer.model.eval()
            with torch.no_grad():
                loss = trainer.compute_loss(trainer.model, batch)
            theirs = {"loss": loss.item()} | {n: trainer._metrics["eval"][n][-1] for n in NAMES}
            compare(f"dpo {name}", {k: row["val/" + k] for k in theirs}, theirs)
    print(f"versions: trl {trl.__version__}, transformers {transformers.__version__}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
