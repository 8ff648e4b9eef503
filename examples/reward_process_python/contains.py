# SPDX-License-Identifier: Apache-2.0
"""A reward as a process: 1 if the response has the ground truth among its words."""
import json
import sys

print(json.dumps({"gradus_reward": 1, "name": "digits"}), flush=True)
for line in sys.stdin:
    batch = json.loads(line)
    results = [{"score": float(s["ground_truth"] in s["response"].split())} for s in batch["samples"]]
    print(json.dumps({"id": batch["id"], "results": results}), flush=True)
