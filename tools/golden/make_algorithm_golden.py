#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/golden/algorithms.json: advantages, losses and gradients of every algorithm, advantage, loss,
KL kind and correction, computed in float64 from their formulas (docs/algorithms.md) with torch's autograd.

A batch is the input of `gradus inspect loss`; a case names a preset, the keys set on top of it and the batch.
Arrays are by sequence and token, 0 where masked. Nothing here is taken from the program under test.

Needs torch (version and seed are in the file). Run from the repository root:
python3 tools/golden/make_algorithm_golden.py
"""

import json
import math
from importlib.metadata import version
from pathlib import Path

import torch

OUT = Path("tests/golden/algorithms.json")
SEED = 11
F = torch.float64

# What the presets set, written down from their papers and docs/algorithms.md.
DEFAULTS = {
    "loss": "ppo", "advantage": "grpo", "aggregation": "token_mean", "clip_low": 0.2, "clip_high": 0.28,
    "clip_dual": 3.0, "delta": 0.0, "opsm_threshold": None, "top_entropy_quantile": 1.0, "scaling": None,
    "deviation": "sample", "std_epsilon": 1e-6, "gamma": 1.0, "gae_lambda": 1.0, "m2_threshold": 0.04,
    "behavior_bound": 5.0, "kl.kind": "k3", "kl.coef": 0.0, "kl.place": "loss", "kl.weighted": False,
    "correction.kind": "none", "correction.level": "token", "correction.low": None, "correction.high": None,
    "correction.veto": 0.0, "correction.normalize": False, "correction.weigh_kept": False,
    "sapo.tau_positive": 1.0, "sapo.tau_negative": 1.05, "vespo.k_positive": 2.0, "vespo.lambda_positive": 3.0,
    "vespo.k_negative": 3.0, "vespo.lambda_negative": 2.0, "covariance.fraction": 2e-4, "covariance.low": 1.0,
    "covariance.high": 5.0, "covariance.kl_coef": 0.1, "aggregation_length": None, "critic.value_clip": 0.5,
}
EVEN = {"clip_low": 0.2, "clip_high": 0.2}
SEQUENCE_CLIP = {"clip_low": 3e-4, "clip_high": 4e-4, "clip_dual": 0.0, "aggregation": "seq_mean_token_mean"}
PRESETS = {
    "grpo": {}, "dapo": {},
    "dr_grpo": {"advantage": "dr_grpo", "aggregation": "seq_mean_token_sum_norm", **EVEN},
    "gspo": {"loss": "gspo", **SEQUENCE_CLIP}, "luspo": {"loss": "luspo", **SEQUENCE_CLIP},
    "cispo": {"loss": "cispo", **EVEN}, "dppo_tv": {"loss": "dppo_tv", **EVEN},
    "sapo": {"loss": "sapo", "aggregation": "seq_mean_token_mean"},
    "gmpo": {"loss": "gmpo", "aggregation": "seq_mean_token_mean", "clip_low": 0.4, "clip_high": 0.4,
             "clip_dual": 0.0},
    "gpg": {"loss": "gpg", "advantage": "dr_grpo"},
    "reinforce": {"loss": "reinforce", "advantage": "dr_grpo"},
    "vespo": {"loss": "vespo"}, "m2po": {"loss": "m2po"},
    "rloo": {"advantage": "rloo", "kl.kind": "k1", "kl.place": "reward", **EVEN},
    "reinforce_pp": {"advantage": "reinforce_pp", "kl.kind": "k1", "kl.place": "reward", **EVEN},
    "reinforce_pp_baseline": {"advantage": "reinforce_pp_baseline", "kl.kind": "k2", **EVEN},
    "remax": {"advantage": "remax", **EVEN}, "opo": {"advantage": "opo", **EVEN},
    "maxrl": {"advantage": "maxrl", **EVEN}, "ppo": {"advantage": "gae", **EVEN},
}
LOSSES = ["ppo", "gspo", "cispo", "sapo", "gmpo", "gpg", "clip_cov", "kl_cov", "dppo_tv", "vespo", "luspo",
          "decoupled_ppo", "m2po", "reinforce"]
KL_KINDS = ["k1", "abs", "k2", "k3", "k3_corrected", "k1+", "k3+"]
CORRECTIONS = ["tis_token", "tis_sequence", "icepop", "geometric", "reject", "bypass"]
AGGREGATIONS = ["token_mean", "token_sum", "seq_mean_token_sum", "seq_mean_token_sum_norm",
                "seq_mean_token_mean"]


def make_batch(rng, sizes, rewards, spread):
    """Groups of responses with random log-probs, some tokens masked, the last response wholly so."""
    def draw(n, scale, shift=0.0):
        return [shift + scale * (2 * torch.rand((), generator=rng, dtype=F).item() - 1) for _ in range(n)]

    sequences = []
    for i, (length, reward) in enumerate(zip(sizes, rewards)):
        old = draw(length, 1.2, -1.6)
        sequences.append({
            "group": i // 4, "reward": reward,
            "logprobs": [a + b for a, b in zip(old, draw(length, spread))], "old_logprobs": old,
            "behavior_logprobs": [a + b for a, b in zip(old, draw(length, 0.5))],
            "reference_logprobs": [a + b for a, b in zip(old, draw(length, 0.8))],
            "mask": [0 if (i + t) % 5 == 3 else 1 for t in range(length)],
            "entropy": draw(length, 1.0, 1.2), "values": draw(length, 0.5),
            "reward_parts": [reward * 0.5, draw(1, 1.0)[0]], "greedy_reward": [0.4, 0.7][i // 4]})
    sequences[-1]["mask"] = [0] * sizes[-1]
    return {"sequences": sequences}


class Padded:
    """A batch as [sequences, tokens] tensors; what is masked is 0."""

    def __init__(self, batch):
        rows = batch["sequences"]
        width = max(len(row["mask"]) for row in rows)

        def pad(key):
            return torch.tensor([row[key] + [0.0] * (width - len(row["mask"])) for row in rows], dtype=F)

        self.m = pad("mask")
        self.lp = (pad("logprobs") * self.m).requires_grad_()
        self.lo, self.lb = pad("old_logprobs") * self.m, pad("behavior_logprobs") * self.m
        self.lf, self.h, self.v = pad("reference_logprobs") * self.m, pad("entropy"), pad("values") * self.m
        self.new_v = pad("new_values") * self.m
        self.reward = torch.tensor([row["reward"] for row in rows], dtype=F)
        self.parts = torch.tensor([row["reward_parts"] for row in rows], dtype=F)
        self.greedy = torch.tensor([row["greedy_reward"] for row in rows], dtype=F)
        self.groups = [torch.tensor([i for i, row in enumerate(rows) if row["group"] == g])
                       for g in sorted({row["group"] for row in rows})]
        self.lengths = [len(row["mask"]) for row in rows]
        self.n = self.m.sum(1)
        self.N, self.B = self.m.sum(), (self.n > 0).sum()


def hold(x, bound=20.0):
    return x.clamp(-bound, bound)


def spread_of(x, c):
    return x.std(unbiased=c["deviation"] == "sample") + c["std_epsilon"]


def whiten(x, b):
    chosen = x[b.m > 0]
    return (x - chosen.mean()) * torch.rsqrt(chosen.var() + 1e-8) * b.m


def kl_values(kind, lp, lo, lf):
    d = lf - lp
    k2 = d * d / 2
    if kind == "k1":
        return -d
    if kind == "abs":
        return d.abs()
    if kind == "k2":
        return k2
    k3 = (torch.exp(hold(d)) - hold(d) - 1).clamp(-10, 10)
    if kind == "k3":
        return k3
    if kind == "k3_corrected":
        return torch.exp(hold(lp - lo)) * k3
    value = {"k1+": -d, "k3+": k3}[kind]
    return value.detach() + k2 - k2.detach()


def advantages(c, b):
    penalty = torch.zeros_like(b.m)
    if c["kl.coef"] and c["kl.place"] == "reward":
        penalty = c["kl.coef"] * kl_values(c["kl.kind"], b.lo, b.lo, b.lf) * b.m
    total = b.reward - penalty.sum(1)
    name = c["advantage"]
    scaling = c["scaling"]
    flat = torch.zeros_like(total)
    if name in ("reinforce_pp", "remax", "gae"):
        token_rewards = -penalty
        for i in range(len(total)):
            where = b.m[i].nonzero()
            if len(where):
                token_rewards[i, where[-1]] += b.reward[i]
        out, b.returns = torch.zeros_like(b.m), torch.zeros_like(b.m)
        for i in range(len(total)):
            later, later_error, next_value = 0.0, 0.0, 0.0
            for t in reversed(range(b.m.shape[1])):
                if b.m[i, t] == 0:
                    continue
                if name == "gae":
                    error = token_rewards[i, t] + c["gamma"] * next_value - b.v[i, t]
                    later_error = error + c["gamma"] * c["gae_lambda"] * later_error
                    next_value = b.v[i, t]
                    out[i, t] = later_error
                    b.returns[i, t] = later_error + b.v[i, t]
                else:
                    later = token_rewards[i, t] + (c["gamma"] if name == "reinforce_pp" else 1.0) * later
                    out[i, t] = later - (b.greedy[i] if name == "remax" else 0.0)
        return whiten(out, b) if name != "remax" and scaling != "none" else out
    if name == "gdpo":
        for k in range(b.parts.shape[1]):
            for g in b.groups:
                x = b.parts[g, k]
                flat[g] += (x - x.mean()) / spread_of(x, c)
    for g in b.groups:
        x = total[g]
        if name == "grpo":
            divisor = {"group": spread_of(x, c), None: spread_of(x, c), "batch": spread_of(total, c),
                       "none": 1.0}[scaling]
            flat[g] = (x - x.mean()) / divisor
        elif name in ("dr_grpo", "reinforce_pp_baseline"):
            flat[g] = x - x.mean()
        elif name == "maxrl":
            flat[g] = (x - x.mean()) / x.mean() if x.mean() > 0 else 0.0
        elif name == "rloo":
            flat[g] = (len(x) * x - x.sum()) / (len(x) - 1)
        elif name == "opo":
            flat[g] = x - (b.n[g] * x).sum() / b.n[g].sum()
        elif name == "pass_at_k":
            best, second = x.topk(2).values
            divisor = 1.0 if scaling == "none" else spread_of(x, c)
            flat[g[x.argmax()]] = (best - second) / divisor
    out = flat[:, None] * b.m
    whitens = name in ("gdpo", "reinforce_pp_baseline") and scaling != "none"
    return whiten(out, b) if whitens or (name == "rloo" and scaling == "batch") else out


BOUNDS = {"tis_token": (0, 2), "tis_sequence": (0, 2), "bypass": (0, 2), "icepop": (0.5, 5),
          "geometric": (0.999, 1.001), "reject": (0.5, 2)}


def weights(c, b, lo):
    kind = c["correction.kind"]
    log = (lo - b.lb) * b.m
    rho = torch.exp(hold(log))
    whole = torch.exp(hold(log.sum(1, keepdim=True))).expand_as(rho)
    mean = torch.exp(log.sum(1, keepdim=True) / b.n.clamp(min=1)[:, None]).expand_as(rho)
    low, high = BOUNDS.get(kind, (0, 0))
    low = low if c["correction.low"] is None else c["correction.low"]
    high = high if c["correction.high"] is None else c["correction.high"]
    by_sequence = c["correction.level"] == "sequence"
    seen = whole if by_sequence else rho

    def inside(x):
        return ((x >= low) & (x <= high)).to(F)

    kept = rho if c["correction.weigh_kept"] else torch.ones_like(rho)
    w = {"none": lambda: torch.ones_like(rho), "bypass": lambda: torch.ones_like(rho),
         "tis_token": lambda: rho.clamp(low, high), "tis_sequence": lambda: whole.clamp(low, high),
         "icepop": lambda: seen * inside(seen), "geometric": lambda: inside(mean) * kept,
         "reject": lambda: inside(seen) * kept}[kind]()
    if c["loss"] == "decoupled_ppo":
        w = rho * (rho <= c["behavior_bound"]).to(F)
    if kind == "bypass" and c["loss"] == "reinforce":
        w = torch.exp(hold(b.lp.detach() - b.lb)).clamp(low, high)
    if c["correction.veto"]:
        w = w * (torch.where(b.m > 0, rho, torch.ones_like(rho)).min(1, keepdim=True).values
                 >= c["correction.veto"])
    if c["correction.normalize"]:
        rows = kind == "tis_sequence" or (kind == "icepop" and by_sequence)
        first = torch.stack([w[i, b.m[i].argmax()] for i in range(len(w))])
        w = w / (first[b.n > 0].mean() if rows else (w * b.m).sum() / b.N)
    if c["loss"] == "m2po":
        squares = ((b.lb - lo) ** 2)[b.m > 0].sort().values
        means = squares.cumsum(0) / torch.arange(1, len(squares) + 1, dtype=F)
        kept_count = int((means < c["m2_threshold"]).sum())
        limit = squares[kept_count - 1] if kept_count else -1.0
        w = w * ((b.lb - lo) ** 2 <= limit)
    if c["opsm_threshold"] is not None:
        drift = ((b.lb - b.lp.detach()) * b.m).sum(1) / b.n.clamp(min=1)
        w = w * (~((b.A * b.m).sum(1) < 0) | ~(drift > c["opsm_threshold"]))[:, None]
    if c["top_entropy_quantile"] < 1:
        limit = torch.quantile(b.h[b.m > 0], 1 - c["top_entropy_quantile"])
        w = w * (b.h >= limit)
    if c["loss"] == "gmpo":
        positive = (w * b.m > 0).to(F)
        logs = torch.where(positive > 0, torch.log(w.clamp(min=1e-300)), torch.zeros_like(w)).sum(1, keepdim=True)
        w = torch.exp(logs / positive.sum(1, keepdim=True).clamp(min=1)) * positive
    return w * b.m


def clipped(c, A, r):
    plain = -A * (r.clamp(max=c["delta"]) if c["delta"] else r)
    worst = torch.maximum(plain, -A * r.clamp(1 - c["clip_low"], 1 + c["clip_high"]))
    if not c["clip_dual"]:
        return worst
    return torch.where(A < 0, torch.minimum(worst, -A * c["clip_dual"]), worst)


def token_losses(c, b, lo, w):
    A, lp = b.A, b.lp
    step = lp - lo
    r = torch.exp(hold(step))
    fixed = r.detach()
    name = c["loss"]
    n = b.n.clamp(min=1)[:, None]
    if name in ("ppo", "decoupled_ppo", "m2po"):
        return w * clipped(c, A, r)
    if name in ("gspo", "luspo"):
        mean = (step.detach() * b.m).sum(1, keepdim=True) / n
        s = torch.exp((lp - lp.detach() + mean).clamp(max=10))
        return w * clipped(c, A, s) * (n if name == "luspo" else 1.0)
    if name == "cispo":
        return -w * fixed.clamp(1 - c["clip_low"], 1 + c["clip_high"]) * A * lp
    if name == "sapo":
        tau = torch.where(A > 0, c["sapo.tau_positive"], c["sapo.tau_negative"])
        return -w * A * torch.sigmoid(tau * (r - 1)) * 4 / tau
    if name == "gmpo":
        sign = torch.sign(A)
        held = sign * torch.minimum(sign * step, sign * step.clamp(-c["clip_low"], c["clip_high"]))
        rho = torch.exp((held * b.m).sum(1, keepdim=True) / n)
        return -w * ((A * b.m).sum(1, keepdim=True) / n) * rho
    if name == "gpg":
        signals = ((A * b.m).abs().sum(1) > 0).sum().clamp(min=1)
        return -w * b.B / signals * A * lp
    if name == "reinforce":
        return -w * A * lp
    if name == "dppo_tv":
        move = (torch.exp(lp) - torch.exp(lo)).detach()
        keep = torch.where(A > 0, move <= c["clip_high"], move >= -c["clip_low"])
        return -w * A * fixed.clamp(max=20) * lp * keep
    if name == "vespo":
        log = (hold(step.detach()) * b.m).sum(1, keepdim=True).clamp(math.log(1e-8), 20)
        k = torch.where(A < 0, c["vespo.k_negative"], c["vespo.k_positive"])
        decay = torch.where(A < 0, c["vespo.lambda_negative"], c["vespo.lambda_positive"])
        return -w * torch.exp(decay + k * log - decay * torch.exp(log)) * A * lp
    inside = b.m > 0
    cov = ((A - A[inside].mean()) * (lp - lp[inside].mean())).detach()
    if name == "clip_cov":
        held = -A * r.clamp(1 - c["clip_low"], 1 + c["clip_high"]) > -A * r
        taken = (cov > c["covariance.low"]) & (cov < c["covariance.high"]) & ~held & inside
        assert c["covariance.fraction"] == 1, "a random choice of some cannot be repeated here"
        return w * clipped(c, A, r) * (~taken)
    assert name == "kl_cov"
    count = max(1, int(c["covariance.fraction"] * int(b.N)))
    order = torch.where(inside, cov, -torch.inf).flatten().topk(count)
    taken = torch.zeros(cov.numel(), dtype=F)
    taken[order.indices[order.values > 0]] = 1
    return w * (-A * r + c["covariance.kl_coef"] * step.abs() * taken.view_as(cov))


def aggregate(c, b, x):
    x = x * b.m
    length = c["aggregation_length"] or max(b.lengths)
    return {"token_mean": lambda: x.sum() / b.N, "token_sum": lambda: x.sum(),
            "seq_mean_token_sum": lambda: x.sum() / b.B,
            "seq_mean_token_sum_norm": lambda: x.sum() / (b.B * length),
            "seq_mean_token_mean": lambda: (x.sum(1) / b.n.clamp(min=1)).sum() / b.B}[c["aggregation"]]()


def rounded(b, x):
    return [[float(f"{value:.9g}") for value in row[:length].tolist()]
            for row, length in zip((x * b.m).detach(), b.lengths)]


def case(batches, index, algorithm, **settings):
    options = {key.replace("__", "."): value for key, value in settings.items()}
    c = {**DEFAULTS, **PRESETS[algorithm], **options}
    b = Padded(batches[index])
    b.A = advantages(c, b)
    lo = b.lb if c["correction.kind"] == "bypass" else b.lo
    w = weights(c, b, lo)
    tokens = token_losses(c, b, lo, w)
    if c["kl.coef"] and c["kl.place"] == "loss":
        kl = kl_values(c["kl.kind"], b.lp, lo, b.lf)
        tokens = tokens + c["kl.coef"] * kl * (w if c["kl.weighted"] else 1.0)
    loss = aggregate(c, b, tokens)
    (grad,) = torch.autograd.grad(loss, b.lp)
    options = {"trainer." + key if key.startswith("critic.") else key: value for key, value in options.items()}
    texts = [f"{key}={json.dumps(value) if isinstance(value, bool) else value}" for key, value in options.items()]
    result = {"algorithm": algorithm, "set": texts, "batch": index, "loss": float(f"{loss.item():.9g}"),
            "advantages": rounded(b, b.A), "token_loss": rounded(b, tokens), "grad": rounded(b, grad)}
    return {**result, **value_case(c, b)} if c["advantage"] == "gae" else result


def value_case(c, b):
    """What a critic learns of the returns: half the larger squared error of v and of v held near V."""
    v, clip = b.new_v.clone().requires_grad_(), c["critic.value_clip"]
    held = torch.clamp(v, b.v - clip, b.v + clip) if clip > 0 else v
    loss = aggregate(c, b, 0.5 * torch.maximum((v - b.returns) ** 2, (held - b.returns) ** 2))
    (grad,) = torch.autograd.grad(loss, v)
    return {"returns": rounded(b, b.returns), "value_loss": float(f"{loss.item():.9g}"), "value_grad": rounded(b, grad)}


def all_cases(batches):
    for name in PRESETS:
        yield case(batches, 0, name)
        yield case(batches, 1, name, kl__coef=0.1)
    every = {"covariance__fraction": 1, "covariance__low": 0.3}
    for loss in LOSSES:
        options = {"loss": loss, **(every if loss == "clip_cov" else {"covariance__fraction": 0.2})}
        for aggregation in AGGREGATIONS:
            yield case(batches, 0, "grpo", aggregation=aggregation, **options)
        for kind in CORRECTIONS if loss != "decoupled_ppo" else []:
            yield case(batches, 0, "grpo", correction__kind=kind, **options)
        yield case(batches, 0, "grpo", kl__coef=0.2, kl__kind="k3_corrected", **options)
        yield case(batches, 0, "grpo", top_entropy_quantile=0.4, opsm_threshold=0.05, **options)
        yield case(batches, 1, "ppo", **options)  # advantages that differ by token
    for kind in KL_KINDS:
        yield case(batches, 0, "dapo", kl__coef=0.3, kl__kind=kind, aggregation="seq_mean_token_mean")
    for kind in ("k1", "abs", "k2", "k3"):
        for advantage in ("grpo", "reinforce_pp", "gae", "opo"):
            yield case(batches, 0, "grpo", advantage=advantage, kl__coef=0.3, kl__kind=kind, kl__place="reward")
    for advantage, scalings in {"grpo": ["group", "batch", "none"], "gae": ["none"], "gdpo": ["batch", "none"],
                                "pass_at_k": ["group", "none"], "reinforce_pp": ["none"], "rloo": ["batch"],
                                "reinforce_pp_baseline": ["none"]}.items():
        for scaling in scalings:
            yield case(batches, 0, "grpo", advantage=advantage, scaling=scaling)
    yield case(batches, 0, "grpo", deviation="population", std_epsilon=1e-4)
    yield case(batches, 0, "ppo", gamma=0.9, gae_lambda=0.8)
    for aggregation in AGGREGATIONS:
        yield case(batches, 0, "ppo", aggregation=aggregation, critic__value_clip=0.3)
    yield case(batches, 0, "ppo", gae_lambda=0.95, critic__value_clip=0)
    yield case(batches, 0, "reinforce_pp", gamma=0.9)
    yield case(batches, 0, "grpo", delta=1.5, clip_dual=0.0)
    yield case(batches, 0, "grpo", clip_dual=1.5)
    tis = {"correction__kind": "tis_token"}
    yield case(batches, 0, "grpo", correction__normalize=True, **tis)
    yield case(batches, 0, "grpo", correction__veto=0.65, **tis)
    yield case(batches, 0, "grpo", correction__low=0.8, correction__high=1.1, **tis)
    yield case(batches, 0, "grpo", kl__coef=0.1, kl__weighted=True, **tis)
    yield case(batches, 0, "grpo", correction__kind="tis_sequence", correction__normalize=True)
    for kind in ("icepop", "reject"):
        yield case(batches, 0, "grpo", correction__kind=kind, correction__level="sequence")
    yield case(batches, 0, "grpo", correction__kind="icepop", correction__level="sequence",
               correction__normalize=True)
    yield case(batches, 0, "grpo", correction__kind="geometric", correction__low=0.9, correction__high=1.1,
               correction__weigh_kept=True)
    yield case(batches, 0, "reinforce", correction__kind="bypass", correction__normalize=True)
    yield case(batches, 0, "sapo", sapo__tau_positive=2.0, sapo__tau_negative=3.0)
    yield case(batches, 0, "vespo", vespo__k_positive=1.0, vespo__lambda_negative=0.5)
    yield case(batches, 0, "dr_grpo", aggregation_length=20)


def main():
    torch.set_default_dtype(F)  # of Python numbers in torch.where
    rng = torch.Generator().manual_seed(SEED)
    batches = [make_batch(rng, [5, 7, 3, 4, 6, 1, 8, 5], [1, 0, 0.5, 0, 0.25, 1, 0, 1], 0.7),
               make_batch(rng, [4, 2, 6, 3], [1, 0, 0, 0.2], 0.3)]
    # Of a generator of their own, so that they change no other number.
    rng = torch.Generator().manual_seed(SEED + 1)
    for row in (row for batch in batches for row in batch["sequences"]):
        row["new_values"] = [v + 2 * torch.rand((), generator=rng, dtype=F).item() - 1 for v in row["values"]]
    cases = list(all_cases(batches))
    text = json.dumps({"made_by": "tools/golden/make_algorithm_golden.py", "torch": version("torch"), "seed": SEED,
                       "batches": batches, "cases": cases})
    OUT.write_text(text.replace('}, {"algorithm"', '},\n {"algorithm"') + "\n")
    print(f"{OUT}: {len(cases)} cases, {len(text)} bytes")


if __name__ == "__main__":
    main()
