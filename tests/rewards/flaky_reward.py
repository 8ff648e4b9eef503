# SPDX-License-Identifier: Apache-2.0
# A reward that times out on sample 0 of each group the first time it sees it, and breaks on sample 1 each time.
import json
import sys

seen = set()
print(json.dumps({"gradus_reward": 1, "name": "flaky"}), flush=True)
for line in sys.stdin:
    batch = json.loads(line)
    results = []
    for sample in batch["samples"]:
        key = (sample["prompt_id"], sample["sample_index"])
        if sample["sample_index"] == 1:
            results.append({"status": "error", "detail": "always"})
        elif sample["sample_index"] == 0 and key not in seen:
            seen.add(key)
            results.append({"status": "timeout", "detail": "once"})
        else:
            results.append({"score": 0.5})
    print(json.dumps({"id": batch["id"], "results": results}), flush=True)
