#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/golden/tiny_models: randomly initialised checkpoints of every family, as transformers saves
them, each with expected.json: what transformers computes from the saved files in float32 on the CPU.

Needs torch, transformers and tokenizers (the versions used are in expected.json). Run from the repository
root: python3 tools/golden/make_tiny_models.py
"""

import json
import shutil
from pathlib import Path

import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

ROOT = Path("tests/golden/tiny_models")
SEED = 20240917
VOCAB = 301  # odd on purpose; 262 of them have a text

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)

MODELS = {
    # Rotary wave lengths lie below, inside and above the band that llama3 scaling blends (16 to 64 tokens).
    "llama3_rope": (
        LlamaConfig(
            vocab_size=VOCAB, hidden_size=64, intermediate_size=112, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
            rms_norm_eps=1e-5, tie_word_embeddings=False,
            rope_parameters={
                "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
            },
        ),
        torch.bfloat16, None, [1, 2],
    ),
    # Odd sizes, all biases.
    "llama_linear_rope": (
        LlamaConfig(
            vocab_size=VOCAB, hidden_size=40, intermediate_size=72, num_hidden_layers=2,
            num_attention_heads=5, num_key_value_heads=1, max_position_embeddings=512,
            rms_norm_eps=1e-6, tie_word_embeddings=True, attention_bias=True, mlp_bias=True,
            rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        ),
        torch.float16, None, 2,
    ),
    "qwen2": (
        Qwen2Config(
            vocab_size=VOCAB, hidden_size=48, intermediate_size=96, num_hidden_layers=2,
            num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=512,
            rms_norm_eps=1e-6, tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        ),
        torch.float32, "60KB", 2,
    ),
    "qwen3": (
        Qwen3Config(
            vocab_size=VOCAB, hidden_size=32, intermediate_size=80, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=24, max_position_embeddings=512,
            rms_norm_eps=1e-6, tie_word_embeddings=False,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        ),
        torch.bfloat16, None, 2,
    ),
}


def make_tokenizer():
    """Byte-level BPE without merges but three, with ChatML's special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    pieces = specials + alphabet + ["th", "the", "\u0120the"]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    merges = [("t", "h"), ("th", "e"), ("\u0120", "the")]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def randomise(model, generator, dtype):
    """Weights that give logits of a few units and norms, biases and gains that differ from 1 and 0."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if "norm" in name:
                value = 1 + 0.3 * noise
            elif name.endswith("bias"):
                value = 0.3 * noise
            elif "embed" in name or "lm_head" in name:
                value = 0.4 * noise
            else:
                value = noise * 1.5 / weight.shape[1] ** 0.5
            weight.copy_(value.to(dtype).float())


def floats(tensor):
    """The shortest decimals that read back to the same float32."""
    return [float(str(value)) for value in tensor.detach().float().numpy().reshape(-1)]


def expected_of(model, generator):
    """Logits, log-probs and gradients for prompts of 1, 9 and 150 tokens."""
    cases = []
    for length in (1, 9, 150):
        ids = torch.randint(0, VOCAB, (length,), generator=generator)
        logits = model(ids[None]).logits[0]
        logprobs = torch.log_softmax(logits, -1)[:-1].gather(1, ids[1:, None])[:, 0]
        cases.append({
            "ids": ids.tolist(),
            "last_logits": floats(logits[-1]),
            "logprobs": floats(logprobs),
        })
    ids = torch.tensor(cases[1]["ids"])
    loss = model(ids[None], labels=ids[None]).loss  # mean over the tokens after the first
    loss.backward()
    gradients = {
        name: {"norm": weight.grad.double().norm().item(), "first": floats(weight.grad.reshape(-1)[:3])}
        for name, weight in model.named_parameters()
    }
    weights = {
        name: {
            "shape": list(weight.shape),
            "sum_of_squares": weight.detach().double().square().sum().item(),
            "first": floats(weight.reshape(-1)[:3]),
        }
        for name, weight in model.named_parameters()
    }
    prompt = torch.tensor(cases[1]["ids"])
    config = GenerationConfig(max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0)
    greedy = model.generate(prompt[None], attention_mask=torch.ones_like(prompt[None]),
                            generation_config=config)[0, len(prompt):]
    return {
        "cases": cases,
        "loss_of_case_1": loss.item(),
        "weights": weights,
        "gradients_of_case_1": gradients,
        "greedy_after_case_1": greedy.tolist(),
    }


def main():
    torch.set_num_threads(1)
    shutil.rmtree(ROOT, ignore_errors=True)
    tokenizer = make_tokenizer()
    for index, (name, (config, dtype, shard_size, eos)) in enumerate(MODELS.items()):
        generator = torch.Generator().manual_seed(SEED + index)
        folder = ROOT / name
        config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, 2, 0
        config._attn_implementation = "eager"
        model = transformers.AutoModelForCausalLM.from_config(config).float()
        randomise(model, generator, dtype)
        model.to(dtype)
        model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=eos, pad_token_id=0)
        model.save_pretrained(folder, **({"max_shard_size": shard_size} if shard_size else {}))
        tokenizer.save_pretrained(folder)

        saved = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager")
        expected = {
            "made_by": "tools/golden/make_tiny_models.py",
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "seed": SEED + index,
            **expected_of(saved, generator),
        }
        (folder / "expected.json").write_text(json.dumps(expected) + "\n")
        sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        print(name, sum(sizes.values()), sizes)


if __name__ == "__main__":
    main()
