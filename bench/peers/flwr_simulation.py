# SPDX-License-Identifier: Apache-2.0
"""Federated averaging of a small classifier of digits under Flower's simulation, for tools/bench_flwr.

Flower runs as it is meant to be tuned for small clients: one CPU a client, numpy instead of a framework of
tensors, no evaluation on clients or server. Prints one JSON object: seconds of each round.
"""
import argparse
import json
import os
import sys
import time

os.environ.setdefault("RAY_DEDUP_LOGS", "0")
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

import numpy as np
from flwr.client import ClientApp, NumPyClient
from flwr.common import Context, ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.simulation import run_simulation
from sklearn.datasets import load_digits

ROWS, EPOCHS, BATCH, HIDDEN, RATE = 76, 5, 50, 64, 0.05


def initial():
    random = np.random.default_rng(1)
    return [random.normal(0, 0.1, (64, HIDDEN)).astype(np.float32), np.zeros(HIDDEN, np.float32),
            random.normal(0, 0.1, (HIDDEN, 10)).astype(np.float32), np.zeros(10, np.float32)]


def train(weights, rows, labels):
    w1, b1, w2, b2 = [w.copy() for w in weights]
    for _ in range(EPOCHS):
        for begin in range(0, len(rows), BATCH):
            x, y = rows[begin:begin + BATCH], labels[begin:begin + BATCH]
            hidden = np.maximum(x @ w1 + b1, 0)
            scores = hidden @ w2 + b2
            scores = np.exp(scores - scores.max(1, keepdims=True))
            error = scores / scores.sum(1, keepdims=True)
            error[np.arange(len(y)), y] -= 1
            error /= len(y)
            back = (error @ w2.T) * (hidden > 0)
            w2 -= RATE * hidden.T @ error
            b2 -= RATE * error.sum(0)
            w1 -= RATE * x.T @ back
            b1 -= RATE * back.sum(0)
    return [w1, b1, w2, b2]


class Client(NumPyClient):
    digits = None

    def __init__(self, partition, does_nothing):
        self.partition, self.does_nothing = partition, does_nothing

    def fit(self, parameters, config):
        if self.does_nothing:
            return parameters, ROWS, {}
        if Client.digits is None:  # once in each worker
            rows, labels = load_digits(return_X_y=True)
            Client.digits = (rows / 16).astype(np.float32), labels
        random = np.random.default_rng(self.partition)
        mine = random.choice(len(Client.digits[0]), ROWS, replace=False)
        return train(parameters, Client.digits[0][mine], Client.digits[1][mine]), ROWS, {}


class Timed(FedAvg):
    """FedAvg that notes when each round begins."""

    def __init__(self, **options):
        super().__init__(**options)
        self.begins = []

    def configure_fit(self, server_round, parameters, client_manager):
        self.begins.append(time.perf_counter())
        return super().configure_fit(server_round, parameters, client_manager)

    def aggregate_fit(self, server_round, results, failures):
        assert not failures, failures
        assert len(results) == self.min_fit_clients, len(results)
        self.end = time.perf_counter()
        return super().aggregate_fit(server_round, results, failures)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--per-round", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--nothing", action="store_true")
    arguments = parser.parse_args()
    begin = time.perf_counter()
    strategy = Timed(fraction_fit=arguments.per_round / arguments.clients, fraction_evaluate=0.0,
                     min_fit_clients=arguments.per_round, min_available_clients=arguments.clients,
                     initial_parameters=ndarrays_to_parameters(initial()))
    nothing = arguments.nothing

    def client(context: Context):
        return Client(int(context.node_config["partition-id"]), nothing).to_client()

    def server(context: Context):
        return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=arguments.rounds))

    stdout = os.dup(1)
    os.dup2(2, 1)  # Flower's log goes with the messages
    run_simulation(server_app=ServerApp(server_fn=server), client_app=ClientApp(client_fn=client),
                   num_supernodes=arguments.clients,
                   backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0},
                                   "init_args": {"num_cpus": os.cpu_count(), "logging_level": "ERROR"}})
    times = strategy.begins + [strategy.end]
    rounds = [b - a for a, b in zip(times, times[1:])]
    os.write(stdout, (json.dumps({"start_s": strategy.begins[0] - begin, "rounds_s": rounds}) + "\n").encode())


if __name__ == "__main__":
    sys.exit(main())
