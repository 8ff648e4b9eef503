#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Each check of tools/check must be able to fail: here it meets a small tree with one fault in it."""
import json
import os
import pathlib
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
LICENCE = "// SPDX-License-Identifier: Apache-2.0\n"
SCRIPT_LICENCE = "# SPDX-License-Identifier: Apache-2.0\n"


class CheckTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)
        self.write("low/CMakeLists.txt", SCRIPT_LICENCE + "gradus_module(NAME low SRCS low.cpp HDRS low.h)\n")
        self.write("low/low.h", LICENCE + "#pragma once\n\nint low();\n")
        self.write("high/CMakeLists.txt",
                   SCRIPT_LICENCE + "gradus_module(NAME high\n  DEPS low # the law\n  HDRS high.h)\n")
        self.write("high/high.h", LICENCE + "#pragma once\n\n#include \"low/low.h\"\n")
        self.write(".clang-format", (ROOT / ".clang-format").read_text())

    def write(self, name, text, executable=False):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if executable:
            path.chmod(0o755)

    def check(self, name, *arguments):
        run = subprocess.run([ROOT / "tools/check", "--root", self.root, *arguments, name],
                             stdin=subprocess.DEVNULL, capture_output=True, text=True)
        return run.returncode, run.stdout + run.stderr

    def assert_passes(self, name, *arguments):
        code, output = self.check(name, *arguments)
        self.assertEqual(code, 0, output)

    def assert_fails(self, name, message, *arguments):
        code, output = self.check(name, *arguments)
        self.assertEqual(code, 1, output)
        self.assertIn(message, output)

    def git(self, *arguments):
        environment = dict(os.environ, GIT_CONFIG_GLOBAL="/dev/null", GIT_CONFIG_SYSTEM="/dev/null")
        subprocess.run(["git", "-C", self.root, "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
                       check=True, capture_output=True, env=environment)


class Format(CheckTest):
    def test_misplaced_spaces_are_found(self):
        self.assert_passes("format")
        self.write("low/low.cpp", LICENCE + "int  low( ) {return 1;}\n")
        self.assert_fails("format", "low/low.cpp")


class Includes(CheckTest):
    def test_include_against_the_direction_is_found(self):
        self.assert_passes("includes")
        self.write("low/low.cpp", LICENCE + "#include \"high/high.h\"\n")
        self.assert_fails("includes", "low/low.cpp:2: module 'low' may not include 'high/high.h'")

    def test_internal_header_of_another_module_is_found(self):
        self.write("low/internal/secret.h", LICENCE + "#pragma once\n")
        self.write("low/low.cpp", LICENCE + "#include \"low/internal/secret.h\"\n")
        self.write("tests/low/low_test.cpp", LICENCE + "#include \"low/internal/secret.h\"\n")
        self.assert_passes("includes")
        self.write("high/high.cpp", LICENCE + "#include \"low/internal/secret.h\"\n")
        self.assert_fails("includes", "high/high.cpp:2: 'low/internal/secret.h' is internal to module 'low'")

    def test_cycle_of_modules_is_found(self):
        self.write("low/CMakeLists.txt", SCRIPT_LICENCE + "gradus_module(NAME low DEPS high)\n")
        self.assert_fails("includes", "DEPS form a cycle: low -> high -> low")

    def test_unknown_dependency_is_found(self):
        self.write("low/CMakeLists.txt", SCRIPT_LICENCE + "gradus_module(NAME low DEPS lower)\n")
        self.assert_fails("includes", "DEPS name 'lower', which is no module")

    def test_long_public_header_is_found(self):
        self.write("low/internal/long.h", LICENCE + "//\n" * 300)
        self.write("low/low.h", LICENCE + "//\n" * 199)
        self.assert_passes("includes")
        self.write("low/low.h", LICENCE + "//\n" * 200)
        self.assert_fails("includes", "low/low.h: 201 lines; a public header has at most 200")

    def test_missing_licence_line_is_found(self):
        self.write("low/low.cpp", "int low() { return 1; }\n")
        self.assert_fails("includes", "low/low.cpp:1: the first line must be")

    def test_missing_licence_line_of_a_script_is_found(self):
        self.write("tools/run", "#!/bin/sh\necho\n")
        self.assert_fails("includes", "tools/run:1: the first line must be")

    def test_folder_without_a_module_is_found(self):
        self.write("stray/a.h", LICENCE)
        self.assert_fails("includes", "stray/a.h: folder 'stray' is no module")


class Tidy(CheckTest):
    def test_use_after_move_in_a_changed_file_is_found(self):
        good = LICENCE + "int low() { return 1; }\n"
        bad = (LICENCE + "#include <string>\n#include <utility>\n\nvoid take(std::string text);\n\n"
               "char low(std::string text) {\n  take(std::move(text));\n  return text[0];\n}\n")
        self.write("low/low.cpp", good)
        self.write("build/compile_commands.json", json.dumps([{
            "directory": str(self.root), "file": str(self.root / "low/low.cpp"),
            "command": "g++ -std=c++20 -c low/low.cpp"}]))
        self.write(".clang-tidy", (ROOT / ".clang-tidy").read_text())
        self.write(".gitignore", "/build\n")
        self.git("init", "-q")
        self.git("add", ".")
        self.git("commit", "-q", "-m", "first")
        self.assert_passes("tidy", "--base", "HEAD")
        self.write("low/low.cpp", bad)
        self.assert_fails("tidy", "bugprone-use-after-move", "--base", "HEAD")


class Docs(CheckTest):
    def test_stale_generated_page_is_found(self):
        self.write("build/gradus", "#!/bin/sh\necho \"page of $*\"\n", executable=True)
        self.write("docs/config.md", "page of config docs\n")
        self.write("docs/metrics.md", "page of config metrics\n")
        self.assert_passes("docs")
        self.write("docs/metrics.md", "page of old times\n")
        self.assert_fails("docs", "docs/metrics.md is out of date; run: build/gradus config metrics")


class Links(CheckTest):
    def test_broken_link_is_found(self):
        self.write("docs/a.md", "See [b](../b.md#the-end) and [site](https://example.org/x).\n")
        self.write("b.md", "# b\n## The end\n")
        self.assert_passes("links")
        self.write("b.md", "# b\n")
        self.assert_fails("links", "docs/a.md:1: link '../b.md#the-end': no such heading in b.md")
        (self.root / "b.md").unlink()
        self.assert_fails("links", "docs/a.md:1: link '../b.md#the-end': no such file")

    def test_broken_path_in_code_is_found(self):
        self.write("a.md", "Use `low/low.h`, made into `build/x` from `low/<name>.h` by `tools`.\n")
        self.assert_passes("links")
        self.write("a.md", "Use `low/gone.h`.\n")
        self.assert_fails("links", "a.md:1: path 'low/gone.h' does not exist")

    def test_metric_named_like_a_path_is_no_path(self):
        self.write("low/low.h", LICENCE)
        self.write("docs/metrics.md", "| name |\n|---|\n| `low/lag` | 1 |\n")
        self.assert_passes("links")
        self.write("a.md", "See `low/leg`.\n")
        self.assert_fails("links", "a.md:1: path 'low/leg' does not exist")

    def test_missing_script_in_a_block_is_found(self):
        self.write("tools/run", "#!/bin/sh\n" + SCRIPT_LICENCE)
        self.write("a.md", "```\ntools/run --fast\n```\n")
        self.assert_passes("links")
        self.write("a.md", "```\ntools/walk --fast\n```\n")
        self.assert_fails("links", "a.md:2: path 'tools/walk' does not exist")


    def test_page_named_in_a_comment_is_found(self):
        self.write("low/low.h", LICENCE + "// See docs/low.md.\n")
        self.write("docs/low.md", "# low\n")
        self.assert_passes("links")
        (self.root / "docs/low.md").unlink()
        self.assert_fails("links", "low/low.h:2: page 'docs/low.md' does not exist")

    def test_test_that_is_gone_is_found(self):
        self.write("tests/low/low_test.cpp", LICENCE + "TEST(Low, IsLow) {}\n")
        self.write("a.md", "Pinned by `Low.IsLow`.\n")
        self.assert_passes("links")
        self.write("a.md", "Pinned by `Low.IsHigh`.\n")
        self.assert_fails("links", "a.md:1: no test is named 'Low.IsHigh'")


class Configs(CheckTest):
    def test_config_that_does_not_dry_run_is_found(self):
        self.write("build/gradus", "#!/bin/sh\n! grep bad \"$2\"\n", executable=True)
        self.write("configs/good.yaml", "good: 1\n")
        self.assert_passes("configs")
        self.write("configs/other.yaml", "bad: 1\n")
        self.assert_fails("configs", "gradus train configs/other.yaml --dry-run")


class Examples(CheckTest):
    def test_example_that_fails_is_found(self):
        self.write("build/gradus", "#!/bin/sh\n", executable=True)
        self.write("examples/tour.cpp", LICENCE)
        self.write("build/example_tour", "#!/bin/sh\nexit 0\n", executable=True)
        self.assert_passes("examples")
        self.write("build/example_tour", "#!/bin/sh\nexit 3\n", executable=True)
        self.assert_fails("examples", "build/example_tour (from examples/tour.cpp) ended with code 3")

    def test_example_that_was_not_built_is_found(self):
        self.write("build/gradus", "#!/bin/sh\n", executable=True)
        self.write("examples/tour.cpp", LICENCE)
        self.assert_fails("examples", "build/example_tour")


if __name__ == "__main__":
    unittest.main()
