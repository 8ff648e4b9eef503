#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Every relative link and path in the Markdown files exists.

Checked are link targets, with their #heading where they have one, and inline code that looks like a
path of this tree because it starts with a top-level folder and is no metric. A path that a command makes
(build/..., runs/...) is not checked; neither is one with a placeholder such as <name>, * or {a,b}. Inline code of the form Suite.Test names a GoogleTest case that exists; comments of
sources that name a page of docs/ name one that exists.
"""
import argparse
import pathlib
import re
import sys

SKIPPED_FOLDERS = re.compile(r"^(\..*|build|build-.*|runs|__pycache__)$")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")
CODE = re.compile(r"`([^`\n]+)`")
DOCS_PAGE = re.compile(r"\bdocs/[a-z0-9_/-]+\.md\b")
SOURCES = {".h", ".cpp", ".cu", ".cmake", ".txt"}
TEST_NAME = re.compile(r"^([A-Z][A-Za-z0-9]*)\.([A-Z][A-Za-z0-9]*)$")
TEST_CASE = re.compile(r"^TEST(?:_F|_P)?\(\s*(\w+),\s*(\w+)\s*\)", re.MULTILINE)
PATH = re.compile(r"^[A-Za-z0-9_.][A-Za-z0-9_./-]*$")


def markdown_files(root):
    for path in sorted(root.iterdir()):
        if path.is_dir() and not SKIPPED_FOLDERS.match(path.name):
            yield from markdown_files(path)
        elif path.suffix == ".md":
            yield path


def source_files(root):
    for path in sorted(root.iterdir()):
        if path.is_dir() and not SKIPPED_FOLDERS.match(path.name):
            yield from source_files(path)
        elif path.suffix in SOURCES:
            yield path


def anchors(path):
    """The anchors of a Markdown file's headings, as code hosts derive them."""
    found = set()
    for line in path.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"#+\s+(.*)", line):
            text = re.sub(r"[^\w\- ]", "", match.group(1).strip().lower())
            found.add(text.replace(" ", "-"))
    return found


def link_problem(path, target, root):
    if re.match(r"[a-z]+:", target):
        return None
    file_part, _, anchor = target.partition("#")
    linked = (path.parent / file_part).resolve() if file_part else path
    if not linked.is_relative_to(root):
        return f"link '{target}' leaves the repository"
    if not linked.exists():
        return f"link '{target}': no such file"
    if anchor and linked.suffix == ".md" and anchor not in anchors(linked):
        return f"link '{target}': no such heading in {linked.relative_to(root)}"
    return None


def test_cases(root):
    found = set()
    for path in (root / "tests").rglob("*_test.cpp"):
        found.update(TEST_CASE.findall(path.read_text(encoding="utf-8")))
    return found


def test_problem(text, cases):
    match = TEST_NAME.match(text)
    if match and match.groups() not in cases:
        return f"no test is named '{text}'"
    return None


# Some metrics share their first word with a folder: rollout/policy_lag.
def metric_names(root):
    page = root / "docs/metrics.md"
    if not page.exists():
        return set()
    return set(re.findall(r"^\| `([^`]+)` \|", page.read_text(encoding="utf-8"), re.MULTILINE))


def code_problem(path, text, root, folders, metrics):
    word = text.split()[0] if text.split() else ""
    if not PATH.match(word) or "/" not in word or word in metrics:
        return None
    if word.split("/")[0] not in folders:
        return None
    if (root / word).exists() or (path.parent / word).exists():
        return None
    return f"path '{word}' does not exist"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path(__file__).parent.parent)
    root = parser.parse_args().root.resolve()
    folders = {path.name for path in root.iterdir()
               if path.is_dir() and not SKIPPED_FOLDERS.match(path.name)}
    cases = test_cases(root)
    metrics = metric_names(root)

    problems = []
    num_files = 0
    for path in markdown_files(root):
        num_files += 1
        name = path.relative_to(root)
        in_block = False
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if line.lstrip().startswith("```"):
                in_block = not in_block
                continue
            if in_block:
                # In a block only the scripts of this tree are looked at: `tools/x`, as first word.
                words = line.split()
                found = [code_problem(path, words[0], root, {"tools"}, set())] if words else []
            else:
                bare = CODE.sub("", line)
                found = [link_problem(path, target, root) for target in LINK.findall(bare)]
                found += [link_problem(path, target, root)
                          for target in re.findall(r"\[`[^`]*`\]\(([^)\s]+)\)", line)]
                found += [code_problem(path, text, root, folders, metrics)
                          for text in CODE.findall(line)]
                found += [test_problem(text, cases) for text in CODE.findall(line)]
            problems += [f"{name}:{number}: {problem}" for problem in found if problem]
    for path in source_files(root):
        name = path.relative_to(root)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            problems += [f"{name}:{number}: page '{page}' does not exist"
                         for page in DOCS_PAGE.findall(line) if not (root / page).exists()]
    for problem in problems:
        print(problem)
    print(f"links: {num_files} Markdown files, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
