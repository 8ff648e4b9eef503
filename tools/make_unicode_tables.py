#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes data/internal/unicode_tables.cpp from the behaviour of the PyPI `tokenizers` package.

Token ids must equal those of `tokenizers`, whose regular expression engine, standard library and
normaliser each carry a Unicode version of their own. So the tables are probed from the package
itself, code point by code point, and not taken from a copy of the Unicode database.

    make_unicode_tables.py [--check] [--output PATH]

--check exits with 1 when the file differs from what would be written. Takes about a minute.
"""
import argparse
import pathlib
import sys
import unicodedata

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

OUTPUT = pathlib.Path(__file__).resolve().parent.parent / "data/internal/unicode_tables.cpp"
CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
# The Unicode version (Debian 12's PCRE2 10.42) whose newer code points get a stand-in.
PCRE2_UNICODE = "14.0.0"
CATEGORIES = ["Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Pc", "Pd", "Ps", "Pe", "Pi",
              "Pf", "Po", "Sm", "Sc", "Sk", "So", "Zs", "Zl", "Zp", "Cf"]


def regex_class(pattern):
    split = pre_tokenizers.Split(Regex(pattern), "removed")
    return [c for c in CODE_POINTS if not split.pre_tokenize_str(chr(c))]


def numeric_of_digits():
    digits = pre_tokenizers.Digits(individual_digits=True)
    return [c for c in CODE_POINTS if len(digits.pre_tokenize_str("_" + chr(c))) == 2]


def probe_added_token(text_of, found, **flags):
    """Code points for which the encoding of text_of(c) satisfies `found`."""
    tokenizer = Tokenizer(models.BPE(vocab={"?": 0}, merges=[], unk_token="?"))
    tokenizer.add_tokens([AddedToken("<x>", normalized=False, **flags)])
    result = []
    for start in range(0, len(CODE_POINTS), 50000):
        chunk = CODE_POINTS[start:start + 50000]
        for c, encoding in zip(chunk, tokenizer.encode_batch([text_of(c) for c in chunk])):
            if found(encoding.ids):
                result.append(c)
    return result


def bert(**flags):
    options = dict(clean_text=False, handle_chinese_chars=False, strip_accents=False, lowercase=False)
    return normalizers.BertNormalizer(**{**options, **flags}).normalize_str


def bert_tables(spaces):
    """What BertNormalizer and BertPreTokenizer do with each code point."""
    clean, strip, lower = bert(clean_text=True), bert(strip_accents=True), bert(lowercase=True)
    cleaned = [c for c in CODE_POINTS if clean(chr(c)) == ""]
    clean_spaces = [c for c in CODE_POINTS if clean(chr(c)) == " "]
    nonspacing = [c for c in CODE_POINTS if strip(chr(c)) == ""]
    pieces = pre_tokenizers.BertPreTokenizer()
    counts = {c: len(pieces.pre_tokenize_str(f"a{chr(c)}a")) for c in CODE_POINTS}
    assert [c for c in CODE_POINTS if counts[c] == 2] == spaces, "white space differs between the engines"
    lowered = [(c, lower(chr(c))) for c in CODE_POINTS if lower(chr(c)) != chr(c)]
    assert [c for c, text in lowered if len(text) > 1] == [0x130]
    runs = []  # first, last, step, offset
    for c, offset in [(c, ord(text) - c) for c, text in lowered if len(text) == 1]:
        for run in runs[-2:]:
            step = c - run[1]
            if run[3] == offset and (step == run[2] or (run[0] == run[1] and step in (1, 2))):
                run[1], run[2] = c, step
                break
        else:
            runs.append([c, c, 1, offset])
    # Found by the last run that starts at or before a code point, or the one before it.
    table = {first + i * step: first + i * step + offset for first, last, step, offset in runs
             for i in range((last - first) // step + 1)}
    assert table == {c: ord(text) for c, text in lowered if len(text) == 1}
    return cleaned, clean_spaces, nonspacing, [c for c in CODE_POINTS if counts[c] == 3], runs


def ranges(code_points):
    result = []
    for c in code_points:
        if result and result[-1][1] == c - 1:
            result[-1][1] = c
        else:
            result.append([c, c])
    return result


def wrap(items, width=100):
    lines, line = [], "   "
    for item in items:
        if len(line) + len(item) + 2 > width:
            lines.append(line)
            line = "   "
        line += " " + item + ","
    return "\n".join(lines + [line])


def array(kind, name, items):
    return f"const {kind} {name}[] = {{\n{wrap(items)}\n}};\nconst size_t {name}Size = {len(items)};\n"


def range_array(name, code_points):
    return array("CodePointRange", name, [f"{{0x{a:x}, 0x{b:x}}}" for a, b in ranges(code_points)])


def combining_classes(nfd):
    """Classes by the order in which the package sorts marks; 0 where it does not move them."""
    result = {}
    # U+0301 has class 230 and U+0334 class 1: a mark that moves before the first or behind the second
    # has a class. Which one is Python's answer, checked against the package below.
    for c in CODE_POINTS:
        mark = chr(c)
        if nfd(mark) != mark:
            continue
        low = nfd("a\u0301" + mark) != "a\u0301" + mark      # 0 < class < 230
        high = nfd("a" + mark + "\u0334") != "a" + mark + "\u0334"  # class > 1
        if low or high:
            result[c] = unicodedata.combining(mark)
        elif unicodedata.combining(mark) == 1:
            result[c] = 1
    # Newer than Python's table: find the class whose representative it does not move around.
    by_class = {}
    for c, k in result.items():
        if k:
            by_class.setdefault(k, c)
    for c, k in result.items():
        equal = {j for j, other in by_class.items()
                 if all(nfd(text) == text for text in ("a" + chr(other) + chr(c), "a" + chr(c) + chr(other)))}
        assert len(equal) == 1, (hex(c), k, equal)
        assert k in (0, min(equal)), (hex(c), k, equal)
        result[c] = min(equal)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--output", type=pathlib.Path, default=OUTPUT)
    arguments = parser.parse_args()

    letters, numbers, marks, spaces = (regex_class(p) for p in (r"\p{L}", r"\p{N}", r"\p{M}", r"\s"))
    digits = numeric_of_digits()
    # "c<x>" stays whole where c is a word character, since <x> must stand alone.
    words = probe_added_token(lambda c: chr(c) + "<x>", lambda ids: 1 not in ids, single_word=True)
    # "<x>c" is the one token <x> where c is white space to strip.
    strip_spaces = probe_added_token(lambda c: "<x>" + chr(c), lambda ids: ids == [1], rstrip=True)
    assert strip_spaces == spaces, "white space differs between the engines"
    upper_fold = [c for c in CODE_POINTS if c > 127 and not pre_tokenizers.Split(
        Regex("(?i:[strevmld])"), "removed").pre_tokenize_str(chr(c))]
    assert upper_fold == [0x17F], upper_fold  # the scanners know U+017F as an s

    nfd, nfc = normalizers.NFD().normalize_str, normalizers.NFC().normalize_str
    hangul = range(0xAC00, 0xD7A4)
    decompositions = [(c, nfd(chr(c))) for c in CODE_POINTS if c not in hangul and nfd(chr(c)) != chr(c)]
    compositions = []
    for c, parts in decompositions:
        if len(parts) > 1 and nfc(chr(c)) == chr(c):
            first = nfc(parts[:-1])
            assert len(first) == 1 and nfc(first + parts[-1]) == chr(c), hex(c)
            compositions.append((first, parts[-1], c))
    classes = combining_classes(nfd)
    class_ranges = []
    for c, k in sorted(classes.items()):
        if class_ranges and class_ranges[-1][1] == c - 1 and class_ranges[-1][2] == k:
            class_ranges[-1][1] = c
        else:
            class_ranges.append([c, c, k])

    cleaned, clean_spaces, nonspacing, punctuation, lower_runs = bert_tables(spaces)

    # Code points that the package's regular expressions know and PCRE2 does not (or otherwise): a
    # stand-in of the same category and UTF-8 length that both know.
    assert unicodedata.unidata_version == PCRE2_UNICODE, unicodedata.unidata_version
    stand_ins = []
    for category in CATEGORIES:
        members = regex_class(rf"\p{{{category}}}")
        newer = [c for c in members if unicodedata.category(chr(c)) == "Cn"]
        for a, b in ranges(newer):
            length = len(chr(a).encode())
            assert length == len(chr(b).encode())
            known = [c for c in members if unicodedata.category(chr(c)) == category
                     and len(chr(c).encode()) == length and nfd(chr(c)) == chr(c)]
            stand_ins.append((a, b, known[0]))
    stand_ins.append((0x180E, 0x180E, 0x200B))  # PCRE2 still counts it as white space
    stand_ins.sort()

    text = f"""// SPDX-License-Identifier: Apache-2.0
// Generated by tools/make_unicode_tables.py from PyPI tokenizers {tokenizers.__version__}; do not edit.
#include "data/internal/unicode_tables.h"

namespace gradus::data::internal {{

// clang-format off
{range_array("kLetterRanges", letters)}
{range_array("kNumberRanges", numbers)}
{range_array("kMarkRanges", marks)}
{range_array("kSpaceRanges", spaces)}
{range_array("kNumericRanges", digits)}
{range_array("kWordRanges", words)}
{range_array("kCleanedRanges", cleaned)}
{range_array("kCleanSpaceRanges", clean_spaces)}
{range_array("kNonspacingRanges", nonspacing)}
{range_array("kPunctuationRanges", punctuation)}
{array("LowerRun", "kLowerRuns", [f"{{0x{a:x}, 0x{b:x}, {step}, {offset}}}" for a, b, step, offset in lower_runs])}
{array("StandIn", "kStandIns", [f"{{0x{a:x}, 0x{b:x}, 0x{c:x}}}" for a, b, c in stand_ins])}
{array("CombiningClassRange", "kCombiningClasses", [f"{{0x{a:x}, 0x{b:x}, {k}}}" for a, b, k in class_ranges])}
{array("Decomposition", "kDecompositions", [f"{{0x{c:x}, {{{', '.join(f'0x{ord(x):x}' for x in parts)}}}}}" for c, parts in decompositions])}
{array("Composition", "kCompositions", [f"{{0x{ord(a):x}, 0x{ord(b):x}, 0x{c:x}}}" for a, b, c in sorted(compositions)])}
// clang-format on

}}  // namespace gradus::data::internal
"""
    if arguments.check:
        if arguments.output.read_text() != text:
            sys.exit(f"{arguments.output}: differs from what tokenizers {tokenizers.__version__} gives")
        return
    arguments.output.write_text(text)
    print(f"{arguments.output}: {len(text)} bytes; letters {len(letters)}, numbers {len(numbers)}, marks "
          f"{len(marks)}, spaces {len(spaces)}, numeric {len(digits)}, word {len(words)}, "
          f"decompositions {len(decompositions)}, compositions {len(compositions)}, classes {len(classes)}, "
          f"stand-ins {len(stand_ins)}, longest decomposition {max(len(p) for _, p in decompositions)}")


if __name__ == "__main__":
    main()
