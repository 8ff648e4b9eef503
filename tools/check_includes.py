#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Holds the sources to the dependency law.

A module may include the public headers of itself and of the modules that the DEPS of its gradus_module()
call name, and of what those name in turn; never another module's internal/. The DEPS must have no
cycle. Public headers stay within 200 lines, and every source file starts with its licence line.
"""
import argparse
import pathlib
import re
import sys

SOURCES = {".h", ".cpp", ".cu", ".cuh"}
SCRIPTS = {".py", ".cmake", ".sh", ".proto"}
SKIPPED_FOLDERS = re.compile(r"^(\..*|build|build-.*|runs|__pycache__)$")
MAX_HEADER_LINES = 200
LICENCE = "SPDX-License-Identifier: Apache-2.0"
# Folders that may use every module; tests and benchmarks also see the internals of the module they mirror.
FREE_FOLDERS = {"tests", "bench", "examples", "tools"}
MIRRORS = {"tests", "bench"}


def files_below(root):
    for path in sorted(root.iterdir()):
        if path.is_dir():
            if not SKIPPED_FOLDERS.match(path.name) or path.name == ".ci":
                yield from files_below(path)
        else:
            yield path


def read_dependencies(root):
    """Direct DEPS by module, in which the module itself is not listed."""
    keywords = {"NAME", "DEPS", "SRCS", "HDRS", "LIBS", "ISA_SRCS", "CUDA"}
    dependencies = {}
    for path in sorted(root.glob("*/CMakeLists.txt")):
        text = re.sub(r"#.*", "", path.read_text())
        for call in re.findall(r"gradus_module\(([^)]*)\)", text):
            words, keyword = {}, None
            for word in call.split():
                if word in keywords:
                    keyword = word
                else:
                    words.setdefault(keyword, []).append(word)
            dependencies[words["NAME"][0]] = words.get("DEPS", [])
    return dependencies


def reachable(module, dependencies, trail, problems):
    """The modules that `module` sees; a cycle becomes a problem."""
    seen = {module}
    for dependency in dependencies.get(module, []):
        if dependency in trail:
            problems.append(f"{module}/CMakeLists.txt: DEPS form a cycle: "
                            f"{' -> '.join([*trail, dependency])}; turn one of them around")
        elif dependency not in dependencies:
            problems.append(f"{module}/CMakeLists.txt: DEPS name '{dependency}', which is no module")
        else:
            seen |= reachable(dependency, dependencies, [*trail, dependency], problems)
    return seen


def check_includes(name, lines, modules, visible, problems):
    folder = name.split("/")[0]
    mirrored = name.split("/")[1] if folder in MIRRORS and "/" in name else folder
    for number, line in enumerate(lines, 1):
        match = re.match(r'\s*#\s*include\s*"([^"]+)"', line)
        if not match:
            continue
        target = match.group(1).split("/")
        if target[0] not in modules:
            continue
        where = f"{name}:{number}"
        if folder in modules and target[0] not in visible[folder]:
            problems.append(f"{where}: module '{folder}' may not include '{match.group(1)}'; its DEPS in "
                            f"{folder}/CMakeLists.txt do not lead to '{target[0]}'")
        if "internal" in target[1:-1] and mirrored != target[0]:
            problems.append(f"{where}: '{match.group(1)}' is internal to module '{target[0]}'; "
                            "use its public headers")


def check_licence(name, lines, problems):
    first = lines[0] if lines else ""
    if first.startswith("#!") and len(lines) > 1:
        first = lines[1]
    if LICENCE not in first:
        problems.append(f"{name}:1: the first line must be '{LICENCE}' in a comment (after #! in a script)")


def is_script(path):
    if path.suffix in SCRIPTS or path.name == "CMakeLists.txt":
        return True
    if path.suffix:
        return False
    with path.open("rb") as file:
        return file.read(2) == b"#!"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path(__file__).parent.parent)
    root = parser.parse_args().root.resolve()

    problems = []
    dependencies = read_dependencies(root)
    visible = {module: reachable(module, dependencies, [module], problems) for module in dependencies}
    num_files = 0
    for path in files_below(root):
        is_source = path.suffix in SOURCES
        if not is_source and not is_script(path):
            continue
        num_files += 1
        name = path.relative_to(root).as_posix()
        lines = path.read_text(encoding="utf-8").splitlines()
        check_licence(name, lines, problems)
        if not is_source:
            continue
        folder = name.split("/")[0]
        if folder not in dependencies and folder not in FREE_FOLDERS:
            problems.append(f"{name}: folder '{folder}' is no module; give it a gradus_module() call")
        check_includes(name, lines, dependencies, visible, problems)
        is_public = folder in dependencies and "internal" not in name.split("/")
        if path.suffix == ".h" and is_public and len(lines) > MAX_HEADER_LINES:
            problems.append(f"{name}: {len(lines)} lines; a public header has at most "
                            f"{MAX_HEADER_LINES}, move details to internal/ or split it")
    for problem in dict.fromkeys(problems):
        print(problem)
    print(f"includes: {num_files} files, {len(dependencies)} modules, {len(set(problems))} problems")
    return 1 if problems or not dependencies else 0


if __name__ == "__main__":
    sys.exit(main())
