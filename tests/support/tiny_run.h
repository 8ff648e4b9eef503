// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/support/checkpoint_state.h"
#include "tests/support/files.h"
#include "tests/support/json_rows.h"
#include "tests/support/run_gradus.h"

// Runs of a transformer of 0.03M weights, some milliseconds a step, in a folder of the test's own.
namespace gradus::test {

// Reinforcement learning whose reward a random model earns about every second time, and supervised
// fine-tuning and training on preferences on the same rows.
inline const char* const kTinyRun = R"(
run: {name: run, seed: 3, checkpoint_every: 2, keep_checkpoints: 3}
model:
  init:
    architecture: {hidden_size: 32, intermediate_size: 64, num_layers: 2, num_heads: 2,
                   num_kv_heads: 1, max_position_embeddings: 96}
    tokenizer: char
data:
  prompt_format: text
  max_prompt_tokens: 40
  train: {task: chain_sum, task_options: {style: compact}, num_rows: 40}
  eval: {task: chain_sum, task_options: {style: compact}, num_rows: 12}
rollout: {num_samples: 4, max_new_tokens: 12, max_batch: 16, kv_cache_mib: 4}
reward:
  parts: [{name: format, options: {pattern: '(?s).*[A-Z].*'}}]
trainer: {num_steps: 6, prompts_per_step: 8, mini_batches: 2, learning_rate: 1e-3,
          micro_batch_tokens: 256}
sft: {num_steps: 6, batch_rows: 16, learning_rate: 1e-3}
dpo: {num_steps: 6, batch_pairs: 16, learning_rate: 1e-3, micro_batch_tokens: 256}
reward_model: {num_steps: 6, batch_pairs: 16, learning_rate: 1e-3, micro_batch_tokens: 256}
eval: {every_steps: 3, before_training: true, num_samples: 2}
)";

// What CTest sets (cmake/gradus_module.cmake), for tests started by hand; and ranks that wait give
// way, since more of them than processors take part.
inline std::string mpirun(int ranks) {
  return "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 mpirun --oversubscribe "
         "--bind-to none --mca mpi_yield_when_idle 1 -np " +
         std::to_string(ranks) + " ";
}

struct RunOutcome {
  int exit_code = -1;
  std::string messages;  // standard error
};

class TinyRun : public ::testing::Test {
 protected:
  void SetUp() override { write_file(path("run.yaml"), kTinyRun); }

  std::string path(const std::string& name) const { return folder_.path() + "/" + name; }
  // The arguments of a run called `name`, with further ones.
  std::string arguments(const std::string& command, const std::string& name,
                        const std::string& more = "") const {
    return command + " " + path("run.yaml") + " --set run.dir=" + path("runs") +
           " --set run.name=" + name + " " + more;
  }
  // `prefix` stands before the binary: mpirun, or shell commands.
  RunOutcome call(const std::string& arguments, const std::string& prefix = "") const {
    return shell(prefix + std::string(GRADUS_BINARY) + " " + arguments);
  }
  // `commands` with standard error caught.
  RunOutcome shell(const std::string& commands) const {
    const Outcome outcome =
        run_command("{ " + commands + "\n} 2>" + path("messages") + " >" + path("output"));
    return {outcome.exit_code, read_file(path("messages"))};
  }
  // A run that must end well; its messages.
  std::string train(const std::string& command, const std::string& name,
                    const std::string& more = "", const std::string& prefix = "") const {
    const RunOutcome outcome = call(arguments(command, name, more), prefix);
    EXPECT_EQ(outcome.exit_code, 0) << name << ": " << outcome.messages;
    return outcome.messages;
  }
  // Starts a run and sends `signal` to it once its metrics have `num_rows` rows.
  RunOutcome interrupt(const std::string& arguments, const std::string& name,
                       const std::string& signal, int num_rows,
                       const std::string& prefix = "") const {
    return shell(prefix + std::string(GRADUS_BINARY) + " " + arguments +
                 " & pid=$!\nwhile kill -0 $pid 2>/dev/null && [ $(cat " +
                 path("runs/" + name + "/metrics.jsonl") + " 2>/dev/null | wc -l) -lt " +
                 std::to_string(num_rows) + " ]; do sleep 0.01; done\nkill -" + signal +
                 " $pid; wait $pid");
  }

  // Names and bits of everything that a checkpoint holds, however many ranks wrote it.
  std::string state(const std::string& name, const std::string& checkpoint = "latest") const {
    return checkpoint_state(path("runs/" + name + "/checkpoints/" + checkpoint));
  }
  // The rows of metrics.jsonl without what the clock and the machine say.
  std::vector<nlohmann::json> metrics(const std::string& name) const {
    std::vector<nlohmann::json> rows;
    for (const nlohmann::json& row :
         json_rows(read_file(path("runs/" + name + "/metrics.jsonl")))) {
      nlohmann::json kept = nlohmann::json::object();
      for (const auto& [key, value] : row.items()) {
        const bool is_measured = key == "time" || key.starts_with("timing_") ||
                                 key.starts_with("perf/") || key.ends_with("tokens_per_s");
        if (!is_measured) kept[key] = value;
      }
      rows.push_back(std::move(kept));
    }
    return rows;
  }

  TemporaryFolder folder_;
};

}  // namespace gradus::test
