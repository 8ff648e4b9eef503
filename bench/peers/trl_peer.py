# SPDX-License-Identifier: Apache-2.0
"""TRL's GRPOTrainer: one step to warm up, then steps that are timed; one JSON line at the end.

    trl_peer.py MODEL_DIR JOB.json     job: prompts, num_samples, new_tokens, patterns, num_steps, scratch

Settings are TRL's defaults but for what makes the work that of gradus (fp32, no filters, no end token) and for
gradient checkpointing, which is off because it only costs time here.
"""
import json
import os
import re
import sys
import time

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

import torch  # noqa: E402  what it prints goes to standard error
from datasets import Dataset  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

from worker import peak_gib  # noqa: E402


class StepTimes(TrainerCallback):
    def __init__(self):
        self.ends = []

    def on_step_end(self, *_, **__):
        self.ends.append(time.perf_counter())


def main():
    folder = sys.argv[1]
    with open(sys.argv[2], encoding="utf-8") as file:
        job = json.load(file)

    def reward(completions, **_):
        return [sum(weight for pattern, weight in job["patterns"] if re.search(pattern, text)) for text in completions]

    num_samples, num_prompts = job["num_samples"], len(job["prompts"])
    config = GRPOConfig(
        output_dir=job["scratch"], max_steps=1 + job["num_steps"], learning_rate=1e-6, use_cpu=True, bf16=False,
        per_device_train_batch_size=8, gradient_accumulation_steps=num_samples * num_prompts // 8,
        num_generations=num_samples, max_completion_length=job["new_tokens"], temperature=1.0, top_k=0, top_p=1.0,
        generation_kwargs={"min_new_tokens": job["new_tokens"]}, gradient_checkpointing=False, shuffle_dataset=False,
        logging_steps=1, report_to="none", save_strategy="no", disable_tqdm=True)
    times = StepTimes()
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), reward_funcs=reward, args=config,
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in job["prompts"]]),
        processing_class=AutoTokenizer.from_pretrained(folder), callbacks=[times])
    generation = []
    generate = trainer._generate

    def timed_generate(*arguments, **keywords):
        start = time.perf_counter()
        result = generate(*arguments, **keywords)
        generation.append(time.perf_counter() - start)
        return result

    trainer._generate = timed_generate
    trainer.train()
    lengths = [row["completions/mean_length"] for row in trainer.state.log_history if "completions/mean_length" in row]
    answers.write(json.dumps({
        "seconds": [later - earlier for earlier, later in zip(times.ends, times.ends[1:])],
        "generation_seconds": generation[1:], "completion_lengths": lengths[1:],
        "peak_gib": peak_gib()}) + "\n")


if __name__ == "__main__":
    main()
