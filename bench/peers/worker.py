# SPDX-License-Identifier: Apache-2.0
"""A peer in a process of its own: the parent sends {"call", ...} lines, the worker answers with JSON lines.

The worker keeps its model loaded and sleeps while gradus is timed, so that pairs can alternate.
"""
import json
import os
import pathlib
import resource
import subprocess
import sys

FOLDER = pathlib.Path(__file__).resolve().parent


def peak_gib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def serve(calls):
    """Answers calls by name until the parent closes the pipe. What libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        answer = calls[request.pop("call")](**request)
        answers.write(json.dumps({**answer, "peak_gib": peak_gib()}) + "\n")
        answers.flush()


class Worker:
    """The parent's side."""

    def __init__(self, script, *arguments, log):
        environment = {**os.environ, "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),
                       "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen([sys.executable, FOLDER / script, *map(str, arguments)], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment)

    def call(self, name, **parameters):
        self.process.stdin.write(json.dumps({"call": name, **parameters}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args[1]} stopped in '{name}'; its messages are in the log")
        return json.loads(line)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()
