#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the seeds of the fuzz targets, tests/fuzz/corpus/TARGET/NAME: small inputs, right and wrong
ones, that reach the branches of each parser. Standard library alone; run in the source root."""
import json
import os
import struct

ROOT = "tests/fuzz/corpus"


def write(target, name, content):
    os.makedirs(f"{ROOT}/{target}", exist_ok=True)
    with open(f"{ROOT}/{target}/{name}", "wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode())


def configs():
    write("config", "whole.yaml", """run: {name: a, seed: 3, save_best_metric: critic/rewards/mean}
model:
  init:
    architecture: {hidden_size: 32, num_layers: 2, num_heads: 2, num_kv_heads: 1}
    tokenizer: char
data:
  prompt_format: text
  train: {task: chain_sum, task_options: {style: compact}, num_rows: 40}
rollout: {num_samples: 4, max_new_tokens: 12, stop_texts: ["\\n"]}
reward:
  parts: [{name: format, weight: 0.5, options: {pattern: '(?s).*[A-Z].*'}}, {name: exact}]
trainer: {num_steps: 6, prompts_per_step: 8, mini_batches: 2, learning_rate: 1e-3}
""")
    write("config", "block.yaml", """# comment
trainer:
    num_steps: 010
    learning_rate: .nan
    learning_rate: 1
    clip_high: ~
    unknown: [1, {a: b}]
reward:
    parts:
      - name: exact
      - weight: true
""")
    write("config", "odd.yaml", "? [a]\n: &x {b: *x}\n!!str 3: |\n  text\n---\n...\n")
    write("config", "flow.yaml", "{{{{[[[[a: ]]]]}}}}")
    write("config", "list.yaml", "- 1\n- 2\n")


def json_lines():
    row = {"data_source": "sum", "prompt": [{"role": "user", "content": "1+1="}],
           "reward_model": {"style": "rule", "ground_truth": "2"}, "extra_info": {"index": 1}}
    write("json_lines", "rows.jsonl", json.dumps(row) + "\n\n" +
          json.dumps({"data_source": "s", "prompt": "a", "answer": 3, "response": "b"}) + "\n")
    write("json_lines", "metrics.jsonl",
          '{"step": 1, "time": 2.5, "actor/loss": "NaN"}\n{"step": 2, "time": 3, "x": "Infinity"}\n')
    part = {"name": "exact", "raw": 1, "weight": 1, "weighted": 1, "status": "ok", "detail": ""}
    rollout = {"step": 1, "data_position": 8, "prompt_id": 7, "sample_index": 0, "task": "t",
               "prompt": "p", "response": "r", "answer": "a", "reward": 1, "advantage": "NaN",
               "parts": [part], "finish_reason": "stop", "policy_version": 0,
               "weights_hash": "00ff", "prompt_ids": [1, 2], "ids": [3, 4],
               "logprobs": [-0.5, -1e-30], "sampling_logprobs": [-0.25, 0]}
    write("json_lines", "rollouts.jsonl", json.dumps(rollout) + "\n")
    write("json_lines", "broken.jsonl", '{"a": "\\ud800", "b": 1e999}\n[[[[[[[[\n{"step": -1}\n\xff\n')


def tokenizers():
    base = {"version": "1.0", "added_tokens": [
                {"id": 6, "content": "<|end|>", "special": True, "lstrip": False, "rstrip": True,
                 "single_word": False, "normalized": False}],
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": "\\p{N}{1,3}| ?\\p{L}+|\\s+(?!\\S)"},
                 "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]},
            "decoder": {"type": "ByteLevel"},
            "model": {"type": "BPE", "vocab": {"2": 0, "3": 1, "+": 2, "=": 3, "5": 4, "2+": 5},
                      "merges": ["2 +"]}}
    write("tokenizer", "bytes.json", json.dumps(base))
    other = dict(base, normalizer={"type": "Sequence", "normalizers": [
                     {"type": "Prepend", "prepend": "\u2581"},
                     {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
                 pre_tokenizer=None,
                 decoder={"type": "Sequence", "decoders": [
                     {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                     {"type": "ByteFallback"}, {"type": "Fuse"},
                     {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
                 model={"type": "BPE", "byte_fallback": True, "unk_token": "u", "ignore_merges": True,
                        "vocab": {"u": 0, "<0x0A>": 1, "\u2581": 2, "a": 3, "\u2581a": 4},
                        "merges": [["\u2581", "a"]]})
    write("tokenizer", "metaspace.json", json.dumps(other))
    write("tokenizer", "digits.json", json.dumps(dict(
        base, pre_tokenizer={"type": "Digits", "individual_digits": True}, normalizer=None)))
    write("tokenizer", "broken.json", '{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": [1]}}')


def safetensors(header, data, length=None):
    text = header if isinstance(header, str) else json.dumps(header)
    return struct.pack("<Q", len(text) if length is None else length) + text.encode() + data


def safetensors_files():
    header = {"__metadata__": {"format": "pt"},
              "a": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]},
              "b": {"dtype": "BF16", "shape": [3], "data_offsets": [8, 14]},
              "c": {"dtype": "F16", "shape": [], "data_offsets": [14, 16]},
              "d": {"dtype": "I64", "shape": [0], "data_offsets": [16, 16]}}
    write("safetensors", "types", safetensors(header, bytes(range(16))))
    write("safetensors", "empty", safetensors({}, b""))
    write("safetensors", "long_header", safetensors({}, b"", 1 << 60))
    header["a"]["shape"] = [1 << 62, 4]
    write("safetensors", "overflow", safetensors(header, bytes(16)))
    write("safetensors", "short", b"\x01")


def gguf_text(text):
    return struct.pack("<Q", len(text)) + text.encode()


def gguf(keys, tensors, data, version=3, counts=None):
    num_tensors, num_keys = counts or (len(tensors), len(keys))
    out = b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_keys)
    for name, kind, value in keys:
        out += gguf_text(name) + struct.pack("<I", kind) + value
    for name, shape, kind, offset in tensors:
        out += gguf_text(name) + struct.pack("<I", len(shape))
        out += b"".join(struct.pack("<Q", extent) for extent in shape)
        out += struct.pack("<IQ", kind, offset)
    return out.ljust((len(out) + 31) // 32 * 32, b"\0") + data


def gguf_files():
    keys = [("general.architecture", 8, gguf_text("llama")), ("a.u8", 0, b"\x07"),
            ("a.i64", 11, struct.pack("<q", -5)), ("a.f32", 6, struct.pack("<f", 1e-5)),
            ("a.bool", 7, b"\1"),
            ("a.texts", 9, struct.pack("<IQ", 8, 2) + gguf_text("x") + gguf_text("yz")),
            ("a.nested", 9, struct.pack("<IQ", 9, 1) + struct.pack("<IQ", 4, 2) + bytes(8))]
    tensors = [("t", (4, 2), 0, 0), ("h", (3,), 1, 32), ("q", (32,), 8, 64)]
    write("gguf", "keys.gguf", gguf(keys, tensors, bytes(range(98))))
    write("gguf", "many.gguf", gguf([], [], b"", counts=(1 << 40, 1 << 40)))
    write("gguf", "array.gguf",
          gguf([("a", 9, struct.pack("<IQ", 10, 1 << 61))], [], b""))
    write("gguf", "version.gguf", gguf([], [], b"", version=1))


def templates():
    write("chat_template", "loop.jinja", """{%- set ns = namespace(n=0) -%}
{% for m in messages if m.role != 'system' -%}
{{ loop.index0 }}{{ m['content'].split('</think>')[-1] | trim }}{% set ns.n = ns.n + 1 %}
{%- else %}none{% endfor %}{{ messages[::-1] | tojson(indent=2) }}{{ ns.n ~ 'x' * 3 }}
{% macro f(a, b=2) %}{{ a + b }}{% endmacro %}{{ f(1) }}{{ f(b=1, a=2.5) }}""")
    write("chat_template", "deep.jinja", "{{ " + "(" * 60 + "1" + ")" * 60 + " }}")
    write("chat_template", "endless.jinja",
          "{% for i in range(99999999) %}{% for j in range(99999999) %}x{% endfor %}{% endfor %}")
    write("chat_template", "grow.jinja", "{% set a = 'xxxxxxxx' %}" +
          "{% set a = a ~ a %}" * 40 + "{{ a }}{{ 'y' * 999999999999 }}{{ 9 ** 99 }}")
    write("chat_template", "recursive.jinja", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}")
    write("chat_template", "numbers.jinja",
          "{{ 7 // 0 }}{{ 7 % -2 }}{{ -9223372036854775807 - 2 }}{{ 'a'[5:-9:-2] }}{{ [1,2][9] }}")


MASK = (1 << 64) - 1


def mix64(x):
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


def hash64(data):
    """Of common/rng.h."""
    result, i = len(data), 0
    while i + 8 <= len(data):
        result = mix64(result ^ struct.unpack_from("<Q", data, i)[0])
        i += 8
    return mix64(result ^ mix64(int.from_bytes(data[i:], "little")))


def hash_entry(data):
    """Of records/internal/durable_file.h, for less than a chunk."""
    chunks = struct.pack("<Q", hash64(data)) if data else b""
    result = 2
    for word in (hash64(chunks), len(data)):
        result = mix64(result ^ mix64(word))
    return result


def state_file(entries):
    """records/state_file.cpp: header, entries at multiples of 64, index."""
    body, index = b"", b""
    for name, kind, count, data in entries:
        index += struct.pack("<IIQQQ", len(name), kind, count, 64 + len(body), hash_entry(data))
        index += name.encode()
        body += data.ljust((len(data) + 63) // 64 * 64, b"\0")
    header = b"GRADUSST" + struct.pack("<IIQQQQQ", 1, len(entries), 64 + len(body), len(index),
                                       hash64(index), 64 + len(body) + len(index), 0)
    return header + struct.pack("<Q", hash64(header)) + body + index


def state_files():
    write("state_file", "kinds", state_file([
        ("adam/m/a[0:2:3]", 0, 2, struct.pack("<2f", 1, 2)), ("x", 1, 1, struct.pack("<d", 0.5)),
        ("run/step", 2, 1, struct.pack("<q", 4)), ("n", 3, 1, struct.pack("<Q", 5)),
        ("note", 4, 3, b"abc")]))
    write("state_file", "empty", state_file([]))
    write("state_file", "unfinished", b"GRADUSST" + struct.pack("<II", 1, 0) + bytes(48))


def field(number, value):
    """A protobuf field: an int as a varint, a float as a double, bytes and text with their length."""
    def varint(n):
        out = b""
        while n > 127:
            out, n = out + bytes([n & 127 | 128]), n >> 7
        return out + bytes([n])
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 1) + struct.pack("<d", value)
    value = value if isinstance(value, bytes) else value.encode()
    return varint(number << 3 | 2) + varint(len(value)) + value


def wire_messages():
    """Of data/wire/flow.proto."""
    identity = field(1, 7) + field(2, 1)
    trajectory = (field(1, identity) + field(2, bytes([1, 2, 3, 4])) + field(3, 2) +
                  field(4, struct.pack("<2f", -0.5, -1)) + field(5, struct.pack("<2f", -0.5, -1)) +
                  field(6, 1) + field(7, 3) + field(9, "text") +
                  field(10, field(1, 0) + field(2, 2) + field(3, 3)))
    record = (field(1, 4) + field(2, trajectory) + field(3, "p") + field(4, "t") + field(5, "a") +
              field(6, 1.0) + field(7, field(1, "exact") + field(2, 1.0) + field(5, "ok")) +
              field(8, 0.5) + field(9, 16))
    write("wire", "rollouts", field(1, record) + field(1, record))
    request = (field(1, identity) + field(2, bytes([1, 2])) +
               field(3, field(1, 1.0) + field(4, 1.0) + field(6, 12)) + field(6, 5))
    write("wire", "work", field(1, 1) + field(2, 0) + field(3, 4) + field(4, field(1, 3)) +
          field(7, request))
    metrics = field(1, field(1, "timing_s/gen") + field(2, 0.5) + field(3, 1.0))
    write("wire", "answer", field(1, 1) + field(3, record) + field(4, metrics) + field(6, "no"))


if __name__ == "__main__":
    configs()
    json_lines()
    tokenizers()
    safetensors_files()
    gguf_files()
    templates()
    state_files()
    wire_messages()
