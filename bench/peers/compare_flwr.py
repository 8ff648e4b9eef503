# SPDX-License-Identifier: Apache-2.0
"""The table of tools/bench_flwr: gradus federate and Flower's simulation in turn."""
import json
import os
import statistics
import subprocess
import sys
import tempfile

CLIENTS = 100


def of_flower(python, per_round, work):
    rounds = 12 if per_round == 10 else 6
    command = [python, "bench/peers/flwr_simulation.py", "--clients", str(CLIENTS), "--per-round", str(per_round),
               "--rounds", str(rounds)] + ([] if work else ["--nothing"])
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr[-2000:])
    seconds = json.loads(done.stdout)["rounds_s"]
    # The first round also waits for the workers to start.
    return per_round / statistics.median(seconds[1:]), seconds[0]


def of_gradus(per_round, work):
    rounds = 2000 if per_round == 10 else 200
    with tempfile.TemporaryDirectory() as folder:
        task = (["federated.task.data={kind: digits}", "federated.task.hidden=[64]",
                 "federated.task.partition={kind: resampled, samples_per_client: 76}"]
                if work else ["federated.task={kind: none, num_parameters: 4810}"])
        keys = [f"run.dir={folder}", "run.name=run", f"federated.num_rounds={rounds}",
                f"federated.eval_every={rounds}", f"federated.clients.num_clients={CLIENTS}",
                f"federated.clients.per_round={per_round}"] + task
        command = ["build/gradus", "federate", "configs/fed_digits.yaml"]
        for key in keys:
            command += ["--set", key]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            sys.exit(done.stderr[-2000:])
        with open(f"{folder}/run/metrics.jsonl", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
    # The clock of the wall from the first round's end to the last but one's: the last evaluates too.
    seconds = rows[-2]["time"] - rows[0]["time"]
    return per_round * (len(rows) - 2) / seconds, rows[0]["timing_s/step"]


def main():
    python, pairs = sys.argv[1], int(sys.argv[2])
    version = subprocess.run([python, "-c", "import flwr, ray; print(flwr.__version__, ray.__version__)"],
                             stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    print(f"flwr {version[0]} on Ray {version[1]}, {len(os.sched_getaffinity(0))} processors, load {os.getloadavg()[0]:.1f}; "
          f"client-rounds/s, medians of {pairs} pairs")
    print(f"{'clients do':<34}{'gradus':>10}{'flwr':>8}{'times':>8}   first round of flwr")
    for work in (True, False):
        for per_round in (10, 100):
            both = [(of_gradus(per_round, work), of_flower(python, per_round, work)) for _ in range(pairs)]
            mine = statistics.median(pair[0][0] for pair in both)
            theirs = statistics.median(pair[1][0] for pair in both)
            times = statistics.median(pair[0][0] / pair[1][0] for pair in both)
            start = statistics.median(pair[1][1] for pair in both)
            name = f"{'64-64-10, 76 rows, 5 epochs' if work else 'nothing'}, {per_round}/{CLIENTS}"
            print(f"{name:<34}{mine:>10.0f}{theirs:>8.1f}{times:>8.0f}{start:>8.1f} s", flush=True)


if __name__ == "__main__":
    main()
