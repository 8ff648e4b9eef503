#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes what the PyPI package sentence-transformers makes of hard texts:

    tests/golden/retrieval/tiny_bert/       a random BERT of two layers with a small tokenizer, and its vectors
    tests/golden/retrieval/minilm.json      vectors of all-MiniLM-L6-v2 (.deps/models, tools/fetch_encoder)

    make_encoder_golden.py                          write both
    make_encoder_golden.py --compare GRADUS         ids of 10,000 random texts, all-MiniLM-L6-v2
    make_encoder_golden.py --speed GRADUS           passages/s of both, in turns

Vectors are fp32, little-endian, in base64. Run from the repository root.
"""
import argparse
import base64
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import time

import make_tokenizer_golden as texts_of
import tokenizers
import torch
import transformers
from sentence_transformers import SentenceTransformer, models

SEED = 31
OUT = pathlib.Path("tests/golden/retrieval")
MINILM = ".deps/models/all-minilm-l6-v2"
HARD = [
    "", " ", "The weather is lovely today.", "na\u00efve caf\u00e9 \u00c5ngstr\u00f6m \u0130stanbul \u1e9e",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u4eca\u5929\u5929\u6c14\u5f88\u597d", "\ud55c\uad6d\uc5b4 \ubb38\uc7a5\uc785\ub2c8\ub2e4",
    "\u3053\u3093\u306b\u3061\u306f \u30ab\u30bf\u30ab\u30ca", "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f",
    "[CLS] in a text [SEP] and [MASK] [UNK]", "word " * 400, "x" * 101, "x" * 100, "a\tb\r\nc\x00d\ufffde\u00ad",
    "(1+2)*3 = 9 ^ ~ ` | $5", "\u03a3\u0399\u03a3\u03a5\u03a6\u039f\u03a3 \u041f\u0440\u0438\u0432\u0435\u0442",
]


def hard_texts(count):
    rng = random.Random(SEED)
    words = texts_of.CORPUS.split()
    result = list(HARD)
    while len(result) < count:
        if len(result) % 2:
            result.append(" ".join(rng.choice(words) for _ in range(rng.randrange(1, 90))))
        else:
            result.append(texts_of.random_text(rng, rng.randrange(1, 60)))
    return result


def encoded(model, texts):
    vectors = model.encode(texts, batch_size=1, convert_to_numpy=True, normalize_embeddings=True)
    return [base64.b64encode(v.astype("<f4").tobytes()).decode() for v in vectors]


def made_by():
    return (f"tools/golden/make_encoder_golden.py, sentence-transformers {version('sentence-transformers')}, "
            f"transformers {transformers.__version__}, torch {torch.__version__}, seed {SEED}")


def version(package):
    from importlib.metadata import version as of
    return of(package)


def rows(model, texts):
    tokenizer = model.tokenizer
    ids = [tokenizer(t, truncation=True, max_length=model.max_seq_length)["input_ids"] for t in texts]
    return [{"text": t, "ids": i, "vector": v} for t, i, v in zip(texts, ids, encoded(model, texts))]


def gradients(model, texts):
    """Of sum_n r_n . v_n by every tensor, in float64: its length and its products with two patterns."""
    model = model.to(torch.float64).train(False)
    features = [model.tokenizer(t, truncation=True, max_length=model.max_seq_length, return_tensors="pt") for t in texts]
    loss = 0
    for n, one in enumerate(features):
        vector = model(dict(one))["sentence_embedding"][0]
        loss = loss + (torch.tensor([((n * 7 + c * 13) % 11 - 5) / 5 for c in range(len(vector))],
                                    dtype=torch.float64) * vector).sum()
    bert = model[0].auto_model if hasattr(model[0], "auto_model") else model[0].model
    bert.zero_grad()
    loss.backward()
    tensors = {}
    for name, value in bert.named_parameters():
        if "token_type" in name or "pooler" in name:
            continue
        g = value.grad.reshape(-1)
        k = torch.arange(len(g), dtype=torch.float64)
        tensors[name] = [g.norm().item(), (g * ((k * 31 % 17) - 8) / 8).sum().item(),
                         (g * ((k * 29 % 23) - 11) / 11).sum().item()]
    model.to(torch.float32)
    return {"texts": texts, "tensors": tensors}


def make_tiny():
    torch.manual_seed(SEED)
    folder = OUT / "tiny_bert"
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = texts_of.bert()
    vocab = tokenizer.get_vocab()
    config = transformers.BertConfig(vocab_size=len(vocab), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                                     intermediate_size=48, max_position_embeddings=150, layer_norm_eps=1e-12)
    bert = transformers.BertModel(config, add_pooling_layer=False)
    with torch.no_grad():  # sharp attention and biases that matter
        for name, value in bert.named_parameters():
            if "LayerNorm" in name:
                value.add_(0.2 * torch.randn_like(value))
            else:
                value.copy_(0.25 * torch.randn_like(value))
    with tempfile.TemporaryDirectory() as scratch:
        fast = transformers.BertTokenizerFast(tokenizer_object=tokenizer)
        bert.save_pretrained(scratch)
        fast.save_pretrained(scratch)
        transformer = models.Transformer(scratch, max_seq_length=140)
        mean = SentenceTransformer(modules=[transformer, models.Pooling(32, "mean"), models.Normalize()], device="cpu")
        first = SentenceTransformer(modules=[transformer, models.Pooling(32, "cls"), models.Normalize()], device="cpu")
        for name in ("config.json", "model.safetensors"):
            (folder / name).write_bytes((pathlib.Path(scratch) / name).read_bytes())
        (folder / "tokenizer.json").write_text(tokenizer.to_str() + "\n")
        (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 140}\n')
        texts = hard_texts(60)
        gradient = gradients(mean, texts[2:12:2] + texts[16:18])
        expected = {"made_by": made_by(), "gradient": gradient, "mean": rows(mean, texts), "first": encoded(first, texts)}
    (folder / "expected.json").write_text(json.dumps(expected, separators=(",", ":")) + "\n")


def make_minilm():
    model = SentenceTransformer(MINILM, device="cpu")
    model.max_seq_length = 256
    fixture = {"made_by": made_by(), "rows": rows(model, hard_texts(50))}
    (OUT / "minilm.json").write_text(json.dumps(fixture, separators=(",", ":")) + "\n")


def compare(binary):
    rng = random.Random(SEED + 1)
    texts = texts_of.FIXED + [texts_of.random_text(rng, rng.choice((3, 20, 100))) for _ in range(10000)]
    tokenizer = tokenizers.Tokenizer.from_file(MINILM + "/tokenizer.json")
    tokenizer.no_padding()
    tokenizer.no_truncation()
    expected = [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]
    ids = [row["ids"] for row in texts_of.gradus(binary, MINILM, [{"text": t} for t in texts])]
    different = [t for t, a, b in zip(texts, ids, expected) if a != b]
    print(f"{len(texts)} texts, {sum(map(len, expected))} ids, {len(different)} texts differ", *map(ascii, different[:3]))
    sys.exit(1 if different else 0)


def speed(binary):
    rng = random.Random(SEED)
    words = [w for w in texts_of.CORPUS.split() if w.isascii() and w.isalpha()]
    texts = [" ".join(rng.choice(words) for _ in range(70)) for _ in range(96)]
    model = SentenceTransformer(MINILM, device="cpu")
    model.max_seq_length = 256
    tokens = sum(len(model.tokenizer(t)["input_ids"]) for t in texts) / len(texts)
    torch.set_num_threads(2)
    model.encode(texts[:32])
    theirs, ours = [], []
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.write("".join(json.dumps({"text": t}) + "\n" for t in texts))
        file.flush()
        for _ in range(5):
            start = time.perf_counter()
            model.encode(texts, batch_size=32)
            theirs.append(time.perf_counter() - start)
            output = subprocess.run([binary, "index", "embed", "--model", MINILM, "--input", file.name, "--time"],
                                    capture_output=True, check=True).stdout
            ours.append(json.loads(output)["seconds"])
    mine, other = sorted(ours)[2], sorted(theirs)[2]
    print(f"{tokens:.0f} tokens a passage; ours {len(texts) / mine:.1f}/s, sentence-transformers "
          f"{len(texts) / other:.1f}/s, ratio {other / mine:.2f} (medians of 5 in turns)")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--compare", type=pathlib.Path, metavar="GRADUS")
    parser.add_argument("--speed", type=pathlib.Path, metavar="GRADUS")
    arguments = parser.parse_args()
    if arguments.compare:
        compare(arguments.compare.resolve())
    if arguments.speed:
        return speed(arguments.speed.resolve())
    make_tiny()
    make_minilm()


if __name__ == "__main__":
    main()
