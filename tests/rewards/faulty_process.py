# SPDX-License-Identifier: Apache-2.0
"""A reward's process that does what the response asks for, right or wrong."""
import json
import os
import signal
import sys
import time

mode = sys.argv[1] if len(sys.argv) > 1 else ""
if mode == "dies":
    sys.exit(3)
if mode == "chatty":
    print("Loading model ...", flush=True)
print(json.dumps({"gradus_reward": 2 if mode == "new" else 1, "low": 0, "high": 10}), flush=True)
for line in sys.stdin:
    batch = json.loads(line)
    texts = [sample["response"] for sample in batch["samples"]]
    if "crash" in texts:
        os.kill(os.getpid(), signal.SIGSEGV)
    if "exit" in texts:
        sys.exit(5)
    if "hang" in texts:
        time.sleep(1000)
    if "garbage" in texts:
        print("Traceback: garbage", flush=True)
        continue
    results = []
    for sample in batch["samples"]:
        text = sample["response"]
        if text == "short":
            continue
        if text == "n/a":
            results.append({"status": "not_applicable", "detail": "not mine"})
        elif text == "odd status":
            results.append({"status": "fine"})
        else:
            results.append({"score": 99 if text == "far" else len(text)})
    print(json.dumps({"id": 0 if "wrong id" in texts else batch["id"], "results": results}), flush=True)
