#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What tools/setup says where it cannot do its work, on a machine played by stubs."""
import pathlib
import shutil
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SYSTEM = ["bash", "cat", "dirname", "env", "mkdir", "sed", "tail", "wc"]


class Setup(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name) / "tree"
        self.programs = pathlib.Path(folder.name) / "bin"
        self.programs.mkdir()
        for name in SYSTEM:
            (self.programs / name).symlink_to(shutil.which(name))
        (self.root / "tools").mkdir(parents=True)
        shutil.copy(ROOT / "tools/setup", self.root / "tools/setup")
        (self.root / "tools/packages.txt").write_text("# comment\nbuild one\nbuild two\ntest three\n")

    def stub(self, name, body):
        path = self.programs / name
        path.write_text("#!/usr/bin/env bash\n" + body + "\n")
        path.chmod(0o755)

    def setup_says(self, *arguments):
        run = subprocess.run([self.root / "tools/setup", *arguments], env={"PATH": str(self.programs)},
                             stdin=subprocess.DEVNULL, capture_output=True, text=True)
        return run.returncode, run.stdout + run.stderr

    def test_says_at_once_that_all_is_there(self):
        self.stub("dpkg-query", "echo installed")
        self.stub("apt-get", "exit 9")
        code, output = self.setup_says()
        self.assertEqual((code, output), (0, "setup: ready (build, 0 s)\n"))

    def test_names_what_is_missing_where_it_may_not_install(self):
        self.stub("dpkg-query", '[ "${@: -1}" = one ] && echo installed')
        self.stub("apt-get", "exit 9")
        self.stub("id", "echo 1000")
        code, output = self.setup_says()
        self.assertEqual(code, 1)
        self.assertIn("these packages are missing and neither root nor sudo is at hand; have them "
                      "installed: two", output)

    def test_installs_the_missing_packages_alone_and_through_sudo(self):
        self.stub("dpkg-query", '[ "${@: -1}" = one ] && echo installed')
        self.stub("apt-get", f'echo "$@" >> {self.root}/calls')
        self.stub("id", "echo 1000")
        self.stub("sudo", f'echo sudo >> {self.root}/calls; exec "$@"')
        code, output = self.setup_says()
        self.assertEqual(code, 0, output)
        self.assertEqual((self.root / "calls").read_text(),
                         "sudo\nupdate -q\nsudo\ninstall -q -y --no-install-recommends two\n")

    def test_shows_the_end_of_the_log_when_apt_fails(self):
        self.stub("dpkg-query", "exit 1")
        self.stub("id", "echo 0")
        self.stub("apt-get", "echo E: no space left; exit 100")
        code, output = self.setup_says()
        self.assertEqual(code, 1)
        self.assertIn("E: no space left", output)
        self.assertIn("apt-get could not install the packages above; the whole log is .deps/apt.log", output)

    def test_sends_other_systems_to_the_list(self):
        code, output = self.setup_says()
        self.assertEqual(code, 1)
        self.assertIn("this system has no apt-get; install the counterparts of tools/packages.txt", output)

    def test_cuda_that_cannot_be_fetched_is_said_with_what_was_asked_for(self):
        self.stub("dpkg-query", "echo installed")
        self.stub("apt-get", "exit 9")
        script = (self.root / "tools/setup").read_text()
        (self.root / "tools/setup").write_text(script.replace("/usr/bin/python3", str(self.programs / "python3")))
        self.stub("python3", "exit 1")
        self.stub("rm", "exit 0")
        code, output = self.setup_says("--cuda")
        self.assertEqual(code, 1)
        self.assertIn("setup: fetching the CUDA 13.0 compiler", output)
        self.assertIn("pip could not fetch nvidia-cuda-nvcc==13.0.88 ", output)

    def test_refuses_an_unknown_argument(self):
        code, output = self.setup_says("--test")
        self.assertEqual(code, 2)
        self.assertIn("unknown argument '--test'", output)


if __name__ == "__main__":
    unittest.main()
