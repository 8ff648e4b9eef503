#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Prints Math-Verify's own test verdicts as JSON lines, for the compat mode of the math reward.

  tools/math_verify_rows.py > rows.jsonl

The source package comes from PyPI into .deps/math_verify (pip download, once); nothing of it is
committed. Its tests are read, not run: the rows are the literal lists of pytest.mark.parametrize
whose parameters begin with gold and pred. A row: {"gold", "answer", "expected", "targets",
"decimals", "names_matter", "compares_relations_with_sets", "test"}.
"""
import ast
import json
import math
import pathlib
import subprocess
import sys
import tarfile

VERSION = "0.9.0"
FOLDER = pathlib.Path(__file__).resolve().parent.parent / ".deps" / "math_verify"
# What differs from two targets, six decimals; by name of the test function.
LATEX_ONLY = {"test_latex_notation", "test_latex_notation_math", "test_relations_math",
              "test_matrix_extraction", "test_set_rel_assymetry"}
EXPRESSION_ONLY = {"test_number_extraction"}
FIVE_DECIMALS = {"test_float_precision", "test_sqrt_precision", "test_symbols"}


def source_package():
    path = FOLDER / f"math_verify-{VERSION}.tar.gz"
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
                        "--disable-pip-version-check", "--no-binary", ":all:", "--dest", str(FOLDER),
                        f"math-verify=={VERSION}"], check=True, stdin=subprocess.DEVNULL)
    return path


def parametrizations(function):
    for decorator in function.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).endswith("parametrize"):
            yield decorator


def rows_of(function):
    for decorator in parametrizations(function):
        names = [name.strip() for name in ast.literal_eval(decorator.args[0]).split(",")]
        if names[:2] != ["gold", "pred"]:
            continue
        for element in decorator.args[1].elts:
            # One row formats math.sqrt; all others are literals.
            values = eval(compile(ast.Expression(element), "row", "eval"), {"math": math})
            yield dict(zip(names, values))


def main():
    with tarfile.open(source_package()) as archive:
        tests = {member.name: archive.extractfile(member).read().decode()
                 for member in archive.getmembers()
                 if "/tests/test_" in member.name and member.name.endswith(".py")}
    for path in sorted(tests):
        for function in ast.walk(ast.parse(tests[path])):
            if not isinstance(function, ast.FunctionDef):
                continue
            for row in rows_of(function):
                name = function.name
                expected = row.get("expected", row.get("result"))
                targets = ("latex" if name in LATEX_ONLY
                           else "expression" if name in EXPRESSION_ONLY else "both")
                decimals = row.get("precision", 5 if name in FIVE_DECIMALS else 6)
                print(json.dumps({
                    "gold": row["gold"], "answer": row["pred"], "expected": int(expected),
                    "targets": targets, "decimals": decimals,
                    "names_matter": row.get("strict", True),
                    "compares_relations_with_sets": row.get("allow_set_relation_comp", False),
                    "test": f"{pathlib.Path(path).stem}.{name}"}))


if __name__ == "__main__":
    main()
