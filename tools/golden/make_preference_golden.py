#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/golden/preferences.json: what transformers and torch say of score heads and pair losses.

heads: each tiny model under AutoModelForSequenceClassification with one label and score.weight_i =
0.3 cos(i), in float64: the score of a sequence's last token, the values of all positions before a response's
tokens, and the gradient of a weighted sum of these values: per weight sum(g), sum(g_i cos(i)) over the row-major
index i, and the norm.
losses: losses of pairs and their slopes by autograd, in float64.

Usage: python make_preference_golden.py   (from the root of the repository; needs torch and transformers)
"""
import json
import pathlib

import torch
import torch.nn.functional as F
import transformers

ROOT = pathlib.Path("tests/golden")
PROMPT_LENGTH, RESPONSE_LENGTHS = 70, (5, 9)


def tokens(count, salt, vocab):
    return [(salt * 7919 + i * i * 31 + i * 17) % vocab for i in range(count)]


def head_of(directory):
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        directory, num_labels=1, dtype=torch.float64, attn_implementation="eager")
    width = model.config.hidden_size
    with torch.no_grad():
        model.score.weight.copy_(0.3 * torch.cos(torch.arange(width, dtype=torch.float64))[None])
    vocab = model.config.vocab_size
    prompt = tokens(PROMPT_LENGTH, 1, vocab)
    responses = [tokens(n, 2 + i, vocab) for i, n in enumerate(RESPONSE_LENGTHS)]
    total, values, scores, index = 0.0, [], [], 0
    for response in responses:
        ids = torch.tensor([prompt + response])
        rows = model.score(model.model(ids).last_hidden_state)[0, :, 0]
        assert model.config.pad_token_id not in response[-1:]
        scores.append(model(ids).logits[0, 0].item())
        for i in range(len(response)):
            value = rows[PROMPT_LENGTH - 1 + i]
            total = total + (0.5 + 0.1 * index) * value
            values.append(value.item())
            index += 1
    total.backward()
    gradients = {}
    for name, weight in model.named_parameters():
        grad = weight.grad.reshape(-1)
        wave = torch.cos(torch.arange(grad.numel(), dtype=torch.float64))
        gradients[name] = [grad.sum().item(), (grad * wave).sum().item(), grad.norm().item()]
    return {"prompt": prompt, "responses": responses, "values": values, "scores": scores,
            "gradients": gradients}


def with_slopes(loss, chosen, rejected):
    slopes = torch.autograd.grad(loss, (chosen, rejected))
    return {"loss": loss.item(), "slopes": [slope.item() for slope in slopes]}


def losses():
    rows, tokens = [], (4.0, 7.0)
    values = [(-4.0, -6.0), (-40.5, -12.25), (-3.0, -3.5), (900.0, -900.0), (-700.0, 800.0)]
    references = [(-5.0, -5.5), (-41.0, -11.0), (-3.25, -3.25), (0.0, 0.0), (1.0, -1.0)]
    for policy, reference in zip(values, references):
        for kind, beta, smoothing in (("sigmoid", 0.1, 0.0), ("sigmoid", 0.5, 0.2), ("hinge", 0.1, 0.0),
                                      ("ipo", 0.25, 0.0)):
            chosen, rejected = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in policy)
            delta = (chosen - reference[0]) - (rejected - reference[1])
            if kind == "sigmoid":
                loss = (-F.logsigmoid(beta * delta) * (1 - smoothing)
                        - F.logsigmoid(-beta * delta) * smoothing)
            elif kind == "hinge":
                loss = torch.relu(1 - beta * delta)
            else:
                delta = (chosen - reference[0]) / tokens[0] - (rejected - reference[1]) / tokens[1]
                loss = (delta - 1 / (2 * beta)) ** 2
            rows.append({"kind": kind, "beta": beta, "smoothing": smoothing, "policy": policy,
                         "reference": reference, "tokens": tokens, **with_slopes(loss, chosen, rejected)})
        for margin, center in ((0.0, 0.0), (0.75, 0.01)):
            chosen, rejected = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in policy)
            loss = -F.logsigmoid(chosen - rejected - margin) + center * (chosen + rejected) ** 2
            rows.append({"kind": "bradley_terry", "margin": margin, "center": center, "policy": policy,
                         **with_slopes(loss, chosen, rejected)})
    return rows


def main():
    directories = sorted(p for p in (ROOT / "tiny_models").iterdir() if p.is_dir())
    out = {"made_by": "tools/golden/make_preference_golden.py",
           "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
           "heads": {directory.name: head_of(directory) for directory in directories},
           "losses": losses()}
    (ROOT / "preferences.json").write_text(json.dumps(out) + "\n")


if __name__ == "__main__":
    main()
