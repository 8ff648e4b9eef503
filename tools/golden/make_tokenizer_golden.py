#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/golden/tokenizer/: small tokenizers of each family layout and what PyPI `tokenizers` does with
hard texts; or compares a built gradus with the package on random text.

    make_tokenizer_golden.py                    write the fixtures (tokenizers 0.23.3, seed 20)
    make_tokenizer_golden.py --compare GRADUS [--chars N] [--seed S]
                                                N random characters per family, and every code point

Each fixture file holds the tokenizer.json of a family under "tokenizer" and the cases: text -> ids, and ids ->
text with special tokens kept and skipped.
"""
import argparse
import json
import pathlib
import random
import subprocess
import sys
import tempfile

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

SEED = 20
OUTPUT = pathlib.Path(__file__).resolve().parent.parent.parent / "tests/golden/tokenizer"

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN35 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
# Not one of the known expressions: served by the regular expression engine.
OTHER = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")

CORPUS = """
The tokenizer reads a text, cuts it into pieces and names each piece by a number. It's what they've done, and we'll
see that I'd do the same; she said "don't", you're right, I'm here. 12345 apples cost 3.50 euros, 2+3=5, 10 000 000.
for (int i = 0; i < n; ++i) { sum += values[i] * 2; }   // a comment
def main():\n    return [x ** 2 for x in range(10)]\n\n\nclass A(object):\n\tpass\n
Der schnelle braune Fuchs springt ueber den faulen Hund; gr\u00fc\u00dfe aus M\u00fcnchen, \u00e9t\u00e9, na\u00efve, \u0130stanbul.
\u041f\u0440\u0438\u0432\u0435\u0442, \u043a\u0430\u043a \u0434\u0435\u043b\u0430? \u03b1\u03b2\u03b3\u03b4 \u0391\u03b8\u03ae\u03bd\u03b1 \u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 \u0628\u0643\u0645 \u0661\u0662\u0663
\u4f60\u597d\uff0c\u4e16\u754c\u3002\u4eca\u5929\u5929\u6c14\u5f88\u597d \u3053\u3093\u306b\u3061\u306f \u30ab\u30bf\u30ab\u30ca \ud55c\uad6d\uc5b4 \ubb38\uc7a5
\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 \u1ea5\u1ea7\u1ea9 e\u0301 a\u0308 \U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea
"""


def corpus_lines():
    return [line + "\n" for line in CORPUS.split("\n")] * 4


def special(content, **flags):
    return AddedToken(content, special=True, normalized=False, **flags)


def train(tokenizer, vocab_size, **options):
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False, **options)
    tokenizer.train_from_iterator(corpus_lines(), trainer)
    return tokenizer


def byte_level_family(pre_tokenizer, normalizer=None, vocab_size=700, ignore_merges=False):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    return train(tokenizer, vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())


def split_family(pattern, **options):
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return byte_level_family(pre_tokenizers.Sequence([split, byte_level]), **options)


def gpt2():
    tokenizer = byte_level_family(pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.add_special_tokens([special("<|endoftext|>")])
    return tokenizer


def gpt2_prefix():
    tokenizer = byte_level_family(pre_tokenizers.ByteLevel(add_prefix_space=True), vocab_size=500)
    tokenizer.add_special_tokens([special("<mask>", lstrip=True), special("<pad>", rstrip=True)])
    tokenizer.add_tokens([AddedToken("word", single_word=True, normalized=False), AddedToken("wordy")])
    return tokenizer


def smollm():
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer = byte_level_family(pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]))
    tokenizer.add_special_tokens([special("<|endoftext|>"), special("<|im_start|>"), special("<|im_end|>")])
    return tokenizer


def llama3():
    tokenizer = split_family(LLAMA3, ignore_merges=True)
    # A token that no merge makes: only ignore_merges finds it.
    state = json.loads(tokenizer.to_str())
    state["model"]["vocab"]["\u0120whole"] = len(state["model"]["vocab"])
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.add_special_tokens([special("<|begin_of_text|>"), special("<|eot_id|>"), special("<|eot")])
    return tokenizer


def qwen2():
    tokenizer = split_family(QWEN2, normalizer=normalizers.NFC())
    tokenizer.add_special_tokens([special("<|endoftext|>"), special("<|im_start|>"), special("<|im_end|>")])
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False),
                          AddedToken("caf\u00e9", normalized=True)])
    return tokenizer


def qwen35():
    tokenizer = split_family(QWEN35, normalizer=normalizers.NFC())
    tokenizer.add_special_tokens([special("<|endoftext|>")])
    return tokenizer


def other_pattern():
    return split_family(OTHER)


def byte_fallback_family(normalizer, pre_tokenizer, decoder, bytes_in_vocab=range(256), vocab_size=420):
    """Trained on words, then given byte tokens in front, as Llama-2 and Gemma have them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    train(tokenizer, vocab_size, limit_alphabet=150)
    state = json.loads(tokenizer.to_str())
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in bytes_in_vocab]
    tokens += [t for t in state["model"]["vocab"] if t not in tokens]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in state["model"]["merges"]]
    # Runs of spaces are tokens too.
    for run in ("\u2581\u2581", "\u2581\u2581\u2581\u2581"):
        if run not in tokens:
            tokens.append(run)
            merges.append((run[:len(run) // 2],) * 2)
    vocab = {t: i for i, t in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer, tokenizer.decoder = normalizer, decoder
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.add_special_tokens([special("<unk>"), special("<s>"), special("</s>")])
    return tokenizer


def llama2(**options):
    return byte_fallback_family(
        normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]), None,
        decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
                           decoders.Strip(" ", 1, 0)]), **options)


def llama2_few_bytes():
    return llama2(bytes_in_vocab=range(0xE0, 0x100), vocab_size=300)


def llama2_metaspace():
    return byte_fallback_family(
        None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False),
        decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
                           decoders.Strip(" ", 1, 0)]))


def metaspace_split():
    return byte_fallback_family(None, pre_tokenizers.Metaspace(prepend_scheme="always", split=True),
                                decoders.Metaspace(prepend_scheme="always"), vocab_size=300)


def gemma():
    tokenizer = byte_fallback_family(
        normalizers.Replace(" ", "\u2581"), pre_tokenizers.Split(" ", "merged_with_previous"),
        decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]))
    tokenizer.add_tokens([AddedToken("\n" * n, normalized=False) for n in (2, 3, 5)]
                         + [AddedToken("\t\t", normalized=False), AddedToken("<h1>", normalized=False)])
    tokenizer.add_special_tokens([special("<start_of_turn>"), special("<end_of_turn>")])
    return tokenizer


def word_piece_family(**flags):
    """Trained on normalised words; a few pieces of CJK and jamo, so that what cutting does there shows."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(**flags)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=700, show_progress=False, special_tokens=names, limit_alphabet=400)
    tokenizer.train_from_iterator(corpus_lines(), trainer)
    tokenizer.add_special_tokens([special(name) for name in names])
    return tokenizer


def bert():
    return word_piece_family()


def bert_cased():
    return word_piece_family(lowercase=False, strip_accents=False)


FAMILIES = {f.__name__: f for f in (bert, bert_cased, gpt2, gpt2_prefix, smollm, llama3, qwen2, qwen35, other_pattern, llama2,
                                    llama2_few_bytes, llama2_metaspace, metaspace_split, gemma)}

SPACES = [chr(c) for c in range(0x3001) if chr(c).isspace() or c in (0x180E, 0x200B, 0x2060)] + ["\ufeff"]
FIXED = [
    "", " ", "  ", "\n", " \n", "\n ", "\r\n", "\t\tx", "Hello, world!", " Hello", "  Hello  ", "Hello\n\n\nworld\n",
    "2+3=5", "12345678 1,000.5", "a1b22c333d4444", "I'm I'M it's IT'S we'll WE'LL they've don't you'd y'all ''s '\u017f",
    "it\u2019s", "x'\u212a", "caf\u00e9 cafe\u0301 CAFE\u0301", "\u1e69 s\u0323\u0307 s\u0307\u0323 q\u0307\u0323",
    "\u1100\u1161\u11a8\u1112 \uac00\u11a8 \u3131", "\u0344 \u0958 \u2126 \u212b \ufb1d \U0001d15e \U0002f800",
    "\u0915\u093c \u0928\u093c\u0940", "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f1e9\U0001f1ea \u2764\ufe0f",
    "\u0661\u0662\u0663 \u00bd \u2167 \u4e00\u4e8c \u3007 \u2460\u2461 \U0001d7d8", "\x00\x01\x1b[0m\x7f\x80\x9f\u00ad",
    "\ufffd\ufffe\uffff\U0010ffff\ue000\U000f0000", "\u0378 \u05ff \U0001fbff \U000323af \U00030000",
    "\u1c89 \ua7cb \U000105c0 \U00010d40 \u0897 \U00016d40", "a" * 300, "ab" * 200, " " * 70 + "x" + "\n" * 20,
    "\u2581\u2581a \u2581 <0x41>", "<unk> <s>x</s>", "<|im_start|>user\nHi<|im_end|>\n", "<|endoftext|><|endoftext|>",
    "<think>\nok\n</think>", "  <mask>  a <pad>  b", "word wordy words word's a word", "<|eot_id|><|eot_|><|eo", "<h1>\n\n\n\n\n\n\t\t\t",
    "whole wholes whole", "\u0120whole", "for i in range(10):\n        print(i)\n\n\n    return\t\t x",
    "".join(SPACES), "".join("a" + s + s for s in SPACES), " ".join(SPACES), "\u0646\u0645\u0633\u062a\u0647 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
]


def random_text(rng, length):
    """Pieces of many kinds: words, digits, white space, marks, scripts, controls, unassigned, added tokens."""
    def code_point():
        while True:
            c = rng.choice((rng.randrange(0x80), rng.randrange(0x800), rng.randrange(0x3000), rng.randrange(0x10000),
                            rng.randrange(0x10000, 0x20000), rng.randrange(0x110000)))
            if not 0xD800 <= c < 0xE000:
                return chr(c)

    words = CORPUS.split()
    pieces = []
    size = 0
    while size < length:
        kind = rng.randrange(13)
        if kind <= 2:
            piece = rng.choice((" ", "", "\n")) + rng.choice(words)
        elif kind == 3:
            piece = "".join(rng.choice("0123456789\u0661\u00bd\u2167") for _ in range(rng.randrange(1, 8)))
        elif kind == 4:
            piece = "".join(rng.choice(SPACES) for _ in range(rng.randrange(1, 5)))
        elif kind == 5:
            piece = rng.choice(" \n\r\t") * rng.randrange(1, 6)
        elif kind == 6:
            base = rng.choice("aeiousqAEIOU\u0915\u1100\uac00\u0627")
            marks = "\u0301\u0308\u0323\u0307\u0327\u093c\u1161\u11a8\u0653\u0345\u05b4\u0f71\u0f72"
            piece = base + "".join(rng.choice(marks) for _ in range(rng.randrange(1, 5)))
        elif kind == 7:
            piece = rng.choice("'\u2019") + rng.choice(("s", "S", "t", "ll", "LL", "lL", "ve", "Re", "m", "d", "\u017f", "l", "x"))
        elif kind == 8:
            piece = "".join(rng.choice("!?.,;:()[]{}<>|/\\-_=+*&^%$#@~`\"") for _ in range(rng.randrange(1, 5)))
        elif kind == 9:
            piece = rng.choice(("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "caf\u00e9", "cafe\u0301", "word",
                                "wordy", "<mask>", "<pad>", "<s>", "</s>", "<unk>", "\u2581", "<0x0A>", "<h1>", "<|eot"))
        elif kind == 10:
            start = rng.choice((0x400, 0x590, 0x620, 0x904, 0xE01, 0x1100, 0x3041, 0x4E00, 0xAC00, 0x1F600, 0x10400, 0x1E900))
            piece = "".join(chr(start + rng.randrange(60)) for _ in range(rng.randrange(1, 8)))
        else:
            piece = "".join(code_point() for _ in range(rng.randrange(1, 5)))
        pieces.append(piece)
        size += len(piece)
    return "".join(pieces)


def cases(name, tokenizer):
    rng = random.Random(f"{SEED} {name}")
    texts = FIXED + [random_text(rng, rng.randrange(1, 120)) for _ in range(120)]
    encode = [{"text": t, "ids": tokenizer.encode(t, add_special_tokens=False).ids} for t in texts]
    known = sorted(tokenizer.get_vocab().values())
    lists = [e["ids"] for e in encode[::6]] + [[rng.choice(known) for _ in range(rng.randrange(20))] for _ in range(60)]
    decode = [{"ids": ids, "text": tokenizer.decode(ids, skip_special_tokens=False),
               "text_skipped": tokenizer.decode(ids, skip_special_tokens=True)} for ids in lists]
    return encode, decode


def every_code_point():
    """Each code point between letters, digits and spaces, a thousand to a text."""
    for start in range(0, 0x110000, 1000):
        chunk = [chr(c) for c in range(start, min(start + 1000, 0x110000)) if not 0xD800 <= c < 0xE000]
        if chunk:
            yield "".join(f"a{c}b {c}1{c} {c}{c}e{c}\u0301\u0323\n" for c in chunk)


def gradus(binary, folder, rows, *options):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    result = subprocess.run([binary, "tokenize", "--model", folder, *options], input=text.encode(), capture_output=True)
    if result.returncode != 0:
        sys.exit(result.stderr.decode())
    return [json.loads(line) for line in result.stdout.decode().split("\n")[:-1]]


def compare(binary, num_chars, seed):
    num_different = 0
    for name, make in FAMILIES.items():
        tokenizer = make()
        rng = random.Random(f"{seed} {name}")
        texts = FIXED + list(every_code_point())
        size = 0
        while size < num_chars:
            texts.append(random_text(rng, rng.choice((3, 20, 100, 1000))))
            size += len(texts[-1])
        expected = [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]
        known = sorted(tokenizer.get_vocab().values())
        lists = expected + [[rng.choice(known) for _ in range(rng.randrange(30))] for _ in range(3000)]
        expected_texts = tokenizer.decode_batch(lists, skip_special_tokens=False)
        with tempfile.TemporaryDirectory() as folder:
            pathlib.Path(folder, "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
            ids = [row["ids"] for row in gradus(binary, folder, [{"text": t} for t in texts])]
            decoded = [row["text"] for row in gradus(binary, folder, [{"ids": i} for i in lists], "--decode")]
        different = [t for t, a, b in zip(texts, ids, expected) if a != b]
        different += [i for i, a, b in zip(lists, decoded, expected_texts) if a != b]
        num_different += len(different)
        print(f"{name}: {sum(map(len, texts))} characters, {len(lists)} id lists, {len(different)} differences",
              *map(ascii, different[:3]), flush=True)
    sys.exit(1 if num_different else 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--compare", type=pathlib.Path, metavar="GRADUS")
    parser.add_argument("--chars", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=SEED)
    arguments = parser.parse_args()
    if arguments.compare:
        compare(arguments.compare.resolve(), arguments.chars, arguments.seed)
    for name, make in FAMILIES.items():
        tokenizer = make()
        OUTPUT.mkdir(parents=True, exist_ok=True)
        encode, decode = cases(name, tokenizer)
        fixture = {"made_by": f"tools/golden/make_tokenizer_golden.py, tokenizers {tokenizers.__version__}, seed {SEED}",
                   "tokenizer": json.loads(tokenizer.to_str()), "encode": encode, "decode": decode}
        path = OUTPUT / f"{name}.json"
        # ASCII: control characters and unassigned code points survive every editor.
        path.write_text(json.dumps(fixture, separators=(",", ":")) + "\n")
        print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
