#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The peer of `gradus bench train` and `gradus bench engine` on the same card: transformers, with random weights.

Prints JSON rows: the head's cross entropy, a training step (bf16 weights, fused AdamW, eager and compiled) and `generate`. Needs torch and
transformers, which Gradus itself never does.
"""
import argparse
import json
import statistics
import time

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM


def qwen2_5_0_5b():
    return Qwen2Config(
        vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
        num_key_value_heads=2, max_position_embeddings=32768, rope_theta=1e6, tie_word_embeddings=True,
        attn_implementation="sdpa", dtype=torch.bfloat16)


def product_rate():
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(20):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        a @ b.t()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return 2 * 8192**3 / statistics.median(times) * 1e3


def train(model, compiled, sequences, length, rate):
    config = model.config
    # As cli/training_bench.h counts: 6 a weight that multiplies and token, and attention over seen keys.
    weights = sum(p.numel() for p in model.parameters())
    attention = config.num_hidden_layers * config.hidden_size * length
    flops = 6 * sequences * length * (weights + attention)
    torch.cuda.reset_peak_memory_stats()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    tokens = torch.randint(config.vocab_size, (sequences, length + 1), device="cuda")

    def loss_of(inputs, targets):
        logits = model(input_ids=inputs, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.float().view(-1, config.vocab_size), targets.reshape(-1))

    step_loss = torch.compile(loss_of) if compiled else loss_of
    times = []
    for i in range(13):
        torch.cuda.synchronize()
        start = time.perf_counter()
        step_loss(tokens[:, :-1], tokens[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        if i >= 3:
            times.append(time.perf_counter() - start)
    seconds = statistics.median(times)
    # The layers' forward alone, as an update runs it: cuBLAS and torch's attention, activations kept.
    body = torch.compile(model.model) if compiled else model.model
    forwards = []
    for i in range(13):
        torch.cuda.synchronize()
        start = time.perf_counter()
        hidden = body(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state
        torch.cuda.synchronize()
        if i >= 3:
            forwards.append(time.perf_counter() - start)
        del hidden
    print(json.dumps({
        "case": "transformers train", "compiled": compiled, "sequences": sequences, "length": length,
        "step_ms": round(seconds * 1e3, 3), "layers_forward_ms": round(statistics.median(forwards) * 1e3, 3),
        "tokens_per_s": round(sequences * length / seconds),
        "model_tflops": round(flops / seconds / 1e12, 1),
        "percent_of_product": round(100 * flops / seconds / rate, 1),
        "memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2)}), flush=True)


def head(compiled, rows, vocab, width):
    """Forward and backward of the head's cross entropy, as `gradus bench kernels --only head_training` times it."""
    hidden = torch.randn(rows, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = (0.02 * torch.randn(vocab, width, device="cuda")).to(torch.bfloat16).requires_grad_()
    targets = torch.randint(vocab, (rows,), device="cuda")

    def loss_of(h, w):
        return torch.nn.functional.cross_entropy((h @ w.t()).float(), targets)

    loss = torch.compile(loss_of) if compiled else loss_of
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    times = []
    for i in range(13):
        hidden.grad = weight.grad = None
        torch.cuda.synchronize()
        start = time.perf_counter()
        loss(hidden, weight).backward()
        torch.cuda.synchronize()
        if i >= 3:
            times.append(time.perf_counter() - start)
    print(json.dumps({"case": "torch cross entropy", "compiled": compiled, "rows": rows, "v": vocab, "d": width,
                      "ms": round(statistics.median(times) * 1e3, 3),
                      "extra_mib": round((torch.cuda.max_memory_allocated() - before) / 2**20)}), flush=True)


def generate(model, batch, prompt, new):
    tokens = torch.randint(model.config.vocab_size, (batch, prompt), device="cuda")
    times = []
    for _ in range(3):
        torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.inference_mode():
            model.generate(tokens, do_sample=True, top_k=50, min_new_tokens=new, max_new_tokens=new, pad_token_id=0)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    print(json.dumps({"case": "transformers generate", "b": batch, "prompt": prompt, "new": new,
                      "tokens_per_s": round(batch * new / min(times))}), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--batch", type=int, nargs="*", default=[64, 256])
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--only-head", action="store_true", help="the head's cross entropy alone")
    options = parser.parse_args()
    torch.manual_seed(0)
    rate = product_rate()
    print(json.dumps({"case": "torch product", "tflops": round(rate / 1e12, 1), "device": torch.cuda.get_device_name()}))
    for compiled in [False] if options.no_compile else [False, True]:
        head(compiled, 4096, 128256, 4096)
    if options.only_head:
        return
    model = Qwen2ForCausalLM(qwen2_5_0_5b()).to("cuda", torch.bfloat16)
    for batch in options.batch:
        generate(model.eval(), batch, 128, 256)
    model.train()
    train(model, False, options.sequences, options.length, rate)
    if not options.no_compile:
        train(model, True, options.sequences, options.length, rate)


if __name__ == "__main__":
    main()
