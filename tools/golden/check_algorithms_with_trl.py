#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compares `gradus inspect loss` with TRL's own code: GRPOTrainer._compute_loss runs on the log-probs of a batch of
tests/golden/algorithms.json, in float64, with the advantages that gradus found, for every loss type of TRL and its
switches. Prints the largest relative difference of loss and gradient per case; exit code 1 above 1e-6.

Needs torch, trl and build/gradus. Run from the repository root: python3 tools/golden/check_algorithms_with_trl.py
"""

import collections
import json
import subprocess
import sys
import types
from importlib.metadata import version

import torch
from trl.trainer.grpo_trainer import GRPOTrainer

F = torch.float64
SEQUENCE_CLIP = ["clip_low=3e-4", "clip_high=4e-4", "clip_dual=0"]
TOKEN_MEAN = ["clip_high=0.2", "clip_dual=0"]
MEAN_OF_MEANS = [*TOKEN_MEAN, "aggregation=seq_mean_token_mean"]
LENGTH = 12

# Name, preset, keys set, and what TRL calls it.
CASES = [
    ("grpo", "grpo", MEAN_OF_MEANS, {"loss_type": "grpo"}),
    ("dapo", "grpo", ["clip_dual=0"], {"loss_type": "dapo", "epsilon_high": 0.28}),
    ("dr_grpo", "dr_grpo", ["clip_dual=0", f"aggregation_length={LENGTH}"], {"loss_type": "dr_grpo"}),
    ("two-sided", "grpo", [*TOKEN_MEAN, "delta=1.5"], {"loss_type": "dapo", "delta": 1.5}),
    ("gspo", "gspo", [], {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 3e-4,
                          "epsilon_high": 4e-4}),
    ("cispo", "cispo", ["clip_low=1", "clip_high=0.5"], {"loss_type": "cispo", "epsilon_high": 1.5}),
    ("sapo", "sapo", [], {"loss_type": "sapo"}),
    ("vespo", "vespo", [], {"loss_type": "vespo"}),
    ("luspo", "luspo", SEQUENCE_CLIP, {"loss_type": "luspo", "importance_sampling_level": "sequence",
                                       "epsilon_low": 3e-4, "epsilon_high": 4e-4}),
    ("kl", "grpo", [*TOKEN_MEAN, "kl.coef=0.2"], {"loss_type": "dapo", "beta": 0.2}),
    ("unbiased kl", "grpo", [*TOKEN_MEAN, "kl.coef=0.2", "kl.kind=k3_corrected"],
     {"loss_type": "dapo", "beta": 0.2, "use_bias_correction_kl": True}),
    ("top entropy", "grpo", [*TOKEN_MEAN, "top_entropy_quantile=0.4"],
     {"loss_type": "dapo", "top_entropy_quantile": 0.4}),
    ("opsm", "grpo", [*TOKEN_MEAN, "opsm_threshold=0.05"],
     {"loss_type": "dapo", "off_policy_mask_threshold": 0.05}),
    ("token truncate", "grpo", [*TOKEN_MEAN, "correction.kind=tis_token", "correction.high=1.1"],
     {"loss_type": "dapo", "weights": "token_truncate", "high": 1.1}),
    ("token mask", "grpo", [*TOKEN_MEAN, "correction={kind: icepop, low: 0, high: 1.1}"],
     {"loss_type": "dapo", "weights": "token_mask", "high": 1.1}),
    ("sequence truncate", "grpo", [*TOKEN_MEAN, "correction.kind=tis_sequence", "correction.high=1.1"],
     {"loss_type": "dapo", "weights": "sequence_truncate", "high": 1.1}),
    ("sequence mask", "grpo", [*TOKEN_MEAN, "correction={kind: icepop, level: sequence, low: 0, high: 1.1}"],
     {"loss_type": "dapo", "weights": "sequence_mask", "high": 1.1}),
]


def inspect(preset, keys, batch):
    command = ["build/gradus", "inspect", "loss", "--algorithm", preset]
    for key in keys:
        command += ["--set", key]
    done = subprocess.run(command, input=json.dumps(batch), capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: {done.stderr}")
    return json.loads(done.stdout)


def importance(options, log_ratio, mask):
    """TRL's four modes, as its _generate_and_score_completions has them."""
    mode, high = options.pop("weights", None), options.pop("high", None)
    if mode is None:
        return None
    rho = torch.exp(log_ratio * mask)
    if mode.startswith("sequence"):
        rho = torch.exp((log_ratio * mask).sum(1, keepdim=True)).expand_as(mask)
    return rho.clamp(max=high) if mode.endswith("truncate") else rho.masked_fill(rho > high, 0.0)


def trl_loss(options, tensors, advantages):
    """Loss and gradient of TRL. `self` has what _compute_loss reads, and a model that knows its log-probs."""
    options = {"loss_type": "dapo", "importance_sampling_level": "token", "epsilon_low": 0.2, "epsilon_high": 0.2,
               "beta": 0.0, "top_entropy_quantile": 1.0, "off_policy_mask_threshold": None, "delta": None,
               "use_bias_correction_kl": False, **options}
    mask, lp = tensors["mask"], tensors["logprobs"].clone().requires_grad_()
    weights = importance(options, tensors["old_logprobs"] - tensors["behavior_logprobs"], mask)
    delta, unbiased = options.pop("delta"), options.pop("use_bias_correction_kl")
    trainer = types.SimpleNamespace(
        **options, aux_loss_enabled=False, use_vllm=weights is not None, vllm_importance_sampling_correction=True,
        max_completion_length=LENGTH, current_gradient_accumulation_steps=1, _entropy_bonus_enabled=False,
        use_adaptive_entropy=False, _metrics=collections.defaultdict(lambda: collections.defaultdict(list)),
        model=types.SimpleNamespace(training=False),
        accelerator=types.SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x,
                                          pad_across_processes=lambda x, dim, pad_index: x),
        args=types.SimpleNamespace(delta=delta, use_bias_correction_kl=unbiased, sapo_temperature_pos=1.0,
                                   sapo_temperature_neg=1.05, vespo_k_pos=2.0, vespo_lambda_pos=3.0,
                                   vespo_k_neg=3.0, vespo_lambda_neg=2.0, steps_per_generation=1),
        get_gamma_weights=GRPOTrainer.get_gamma_weights, get_off_policy_mask=GRPOTrainer.get_off_policy_mask,
        _get_per_token_logps_and_entropies=lambda *a, **k: (lp, tensors["entropy"], None))
    trainer.get_high_entropy_mask = types.MethodType(GRPOTrainer.get_high_entropy_mask, trainer)
    ids = torch.zeros(mask.shape, dtype=torch.long)
    inputs = {"prompt_ids": ids[:, :1], "prompt_mask": ids[:, :1] + 1, "completion_ids": ids,
              "completion_mask": mask, "advantages": advantages, "num_items_in_batch": mask.sum(),
              "old_per_token_logps": tensors["old_logprobs"], "ref_per_token_logps": tensors["reference_logprobs"],
              "sampling_per_token_logps": tensors["behavior_logprobs"]}
    if weights is not None:
        inputs["importance_sampling_ratio"] = weights
    loss = GRPOTrainer._compute_loss(trainer, None, inputs)
    (gradient,) = torch.autograd.grad(loss, lp)
    return loss.item(), gradient


def main():
    torch.set_default_dtype(F)  # of Python numbers in TRL's torch.where
    batch = json.load(open("tests/golden/algorithms.json"))["batches"][0]
    for row in batch["sequences"]:  # TRL takes the mean over all rows, those without tokens too
        row["mask"] = row["mask"] if any(row["mask"]) else [1] * len(row["mask"])
    width = max(len(row["mask"]) for row in batch["sequences"])

    def padded(rows):
        return torch.tensor([list(row) + [0.0] * (width - len(row)) for row in rows], dtype=F)

    tensors = {key: padded(row[key] for row in batch["sequences"])
               for key in ("mask", "logprobs", "old_logprobs", "behavior_logprobs", "reference_logprobs", "entropy")}
    worst = 0.0
    print(f"trl {version('trl')}, torch {version('torch')}")
    for name, preset, keys, options in CASES:
        ours = inspect(preset, keys, batch)
        advantages = padded(ours["advantages"]).sum(1) / tensors["mask"].sum(1)
        loss, gradient = trl_loss(dict(options), tensors, advantages)
        of_loss = abs(ours["loss"] - loss) / abs(loss)
        of_gradient = ((padded(ours["grad"]) - gradient).abs().max() / gradient.abs().max()).item()
        print(f"{name:<18} loss {of_loss:.1e}  gradient {of_gradient:.1e}")
        worst = max(worst, of_loss, of_gradient)
    sys.exit(worst > 1e-6)


if __name__ == "__main__":
    main()
