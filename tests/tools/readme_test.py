#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Every command that the pages show works: those in ```sh blocks run, one after the other in the source root
with a folder of their own as `runs`; those in blocks without a language name a script that knows --help, and a
run that is started there dry-runs."""
import os
import pathlib
import re
import shlex
import subprocess
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BINARY = os.environ.get("GRADUS_BINARY", str(ROOT / "build/gradus"))
PAGES = ["README.md", "CONTRIBUTING.md"]


def blocks(page):
    """(language, lines) of the fenced blocks."""
    language, lines = None, []
    for line in (ROOT / page).read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            if language is not None:
                yield language, lines
                language, lines = None, []
            else:
                language = line[3:].strip()
        elif language is not None:
            lines.append(line)


def run(command):
    command = command.replace("build/gradus", shlex.quote(BINARY))
    return subprocess.run(["bash", "-c", f"set -eo pipefail; {command}"], cwd=ROOT, capture_output=True,
                          text=True, stdin=subprocess.DEVNULL)


class Pages(unittest.TestCase):
    def assert_works(self, page, command):
        result = run(command)
        self.assertEqual(result.returncode, 0, f"{page}: {command}\n{result.stdout[-500:]}{result.stderr}")

    def test_short_commands_run(self):
        num_run = 0
        for page in PAGES:
            for language, lines in blocks(page):
                if language == "sh":
                    script = "\n".join(lines)
                    num_run += len(lines)
                    self.assert_works(page, script)
        self.assertGreater(num_run, 0)

    def test_long_commands_exist(self):
        num_seen = 0
        for page in PAGES:
            for language, lines in blocks(page):
                for line in lines if language == "" else []:
                    if script := re.match(r"tools/\w+(?=\s|$)", line):
                        num_seen += 1
                        self.assert_works(page, f"{script.group()} --help")
                    if started := re.search(r"build/gradus train \S+\.yaml[^#]*", line):
                        num_seen += 1
                        self.assert_works(page, started.group() + " --dry-run")
        self.assertGreater(num_seen, 0)


if __name__ == "__main__":
    unittest.main()
