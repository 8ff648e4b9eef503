#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A bundle finds its libraries in itself, wherever it is moved and whatever the library path says."""
import os
import pathlib
import re
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BINARY = os.environ.get("GRADUS_BINARY", str(ROOT / "build/gradus"))
# What the target machine provides (tools/bundle says why), without MPI.
OF_THE_SYSTEM = re.compile(r"^(linux-vdso|/lib64/ld-linux|lib(c|m|dl|rt|pthread|stdc\+\+|gcc_s)\.so)")
OF_MPI = re.compile(r"libmpi\.so")


class Bundle(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def bundle(self, *arguments):
        return subprocess.run([ROOT / "tools/bundle", *arguments], capture_output=True, text=True)

    def test_runs_after_a_move_and_ignores_the_library_path(self):
        made = self.folder / "made"
        run = self.bundle(made, BINARY)
        self.assertEqual(run.returncode, 0, run.stderr)
        moved = self.folder / "moved"
        made.rename(moved)
        # A library that a broken one in the library path could stand for.
        decoys = self.folder / "decoys"
        decoys.mkdir()
        libraries = [path.name for path in (moved / "lib").iterdir()]
        for name in libraries:
            (decoys / name).write_text("not a library")
        environment = {"LD_LIBRARY_PATH": str(decoys), "PATH": os.environ["PATH"]}
        run = subprocess.run([moved / "gradus", "--help"], env=environment, capture_output=True, text=True)
        self.assertEqual(run.returncode, 0, run.stderr)

        loaded = subprocess.run(["ldd", moved / "gradus"], env=environment, capture_output=True, text=True)
        lines = [line.split() for line in loaded.stdout.splitlines()]
        self.assertGreater(len(lines), 3)
        has_mpi = any(OF_MPI.match(words[0]) for words in lines)
        for words in lines:
            if words[0] in libraries:
                self.assertEqual(words[2], str(moved / "lib" / words[0]))
            elif not has_mpi:
                self.assertTrue(OF_THE_SYSTEM.match(words[0]), f"{words[0]} is not in the bundle")
            self.assertFalse(re.match(r"lib(torch|c10|cu)", words[0]), f"{words[0]} is linked")

    def test_takes_the_part_for_the_gpu_along_where_it_is_built(self):
        made = self.folder / "made"
        run = self.bundle(made, BINARY)
        self.assertEqual(run.returncode, 0, run.stderr)
        built = pathlib.Path(BINARY).parent / "libgradus_cuda.so"
        self.assertEqual((made / built.name).exists(), built.exists())
        if (made / "gpu_check").exists():
            run = subprocess.run([made / "gpu_check", "--benchmark"], capture_output=True, text=True)
            self.assertEqual(run.returncode, 2)
            self.assertIn("gpu_check: unknown argument '--benchmark'", run.stderr)

    def test_refuses_a_folder_with_something_in_it(self):
        (self.folder / "file").write_text("")
        run = self.bundle(self.folder, BINARY)
        self.assertEqual(run.returncode, 1)
        self.assertIn("exists and is not empty; choose another folder", run.stderr)

    def test_asks_for_a_build(self):
        run = self.bundle(self.folder / "made", self.folder / "gone")
        self.assertEqual(run.returncode, 1)
        self.assertIn("is not there; run tools/build first", run.stderr)


if __name__ == "__main__":
    unittest.main()
