# SPDX-License-Identifier: Apache-2.0
"""transformers: sampling with generate, and training steps. With --first-token: one token, then the process ends."""
import sys
import time

import numpy
import torch
from transformers import AutoModelForCausalLM

from worker import serve


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def sample(model, ids, new_tokens):
    """Plain sampling at temperature 1, no filters, no end token: what gradus does."""
    tensor = torch.tensor(ids)
    return model.generate(tensor, attention_mask=torch.ones_like(tensor), max_new_tokens=new_tokens, do_sample=True,
                          temperature=1.0, top_k=0, top_p=1.0, eos_token_id=None, pad_token_id=2)


class Peer:
    def __init__(self, folder):
        self.model = load(folder)
        self.optimizer = None

    def generate(self, ids, new_tokens):
        self.model.eval()
        start = time.perf_counter()
        with torch.inference_mode():
            out = sample(self.model, ids, new_tokens)
        seconds = time.perf_counter() - start
        assert out.shape == (len(ids), len(ids[0]) + new_tokens), out.shape
        return {"seconds": seconds}

    def train(self, ids):
        """Forward, backward, clipping and AdamW as transformers' Trainer does them by default (fused AdamW)."""
        self.model.train()
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6, weight_decay=0.01, fused=True)
        start = time.perf_counter()
        tensor = torch.tensor(ids)
        logits = self.model(tensor[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tensor[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {"seconds": time.perf_counter() - start, "loss": loss.item()}

    def read_rate(self, num_bytes):
        """GB/s of summing an array of the size of the weights; numpy puts it into huge pages, as gradus does."""
        array = torch.from_numpy(numpy.ones(num_bytes // 4, numpy.float32))
        seconds = []
        for _ in range(10):
            start = time.perf_counter()
            array.sum()
            seconds.append(time.perf_counter() - start)
        return {"gb_per_s": num_bytes / sorted(seconds)[len(seconds) // 2] * 1e-9,
                "best_gb_per_s": num_bytes / min(seconds) * 1e-9}


def main():
    if sys.argv[1] == "--first-token":
        with torch.inference_mode():
            sample(load(sys.argv[2]), [[int(i) for i in sys.argv[3].split(",")]], 1)
        return
    peer = Peer(sys.argv[1])
    serve({"generate": peer.generate, "train": peer.train, "read_rate": peer.read_rate})


if __name__ == "__main__":
    main()
