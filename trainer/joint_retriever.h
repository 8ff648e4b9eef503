// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/metrics.h"
#include "retriever/index_folder.h"
#include "retriever/retrieval_rollout.h"
#include "rollout/tool.h"
#include "trainer/response_group.h"
#include "trainer/trainer_config.h"

namespace gradus::trainer {

enum class JointTrain { kBoth, kPolicy, kRetriever };

// The `joint` section of a run's YAML: the search tool's query encoder as a second policy in the
// rollouts of the language model. What stands in rollout.tools says which index and how many
// passages (top: k).
struct JointConfig {
  JointTrain train = JointTrain::kBoth;
  bool history = true;
  int64_t pool_size = 30;     // K
  double temperature = 0.05;  // a
  double clip_eps = 0.2;
  OptimizerConfig optimizer{.learning_rate = 1e-5};

  void visit(FieldVisitor& v);
};

// InvalidArgument lists every broken rule between fields, one a line, each naming its keys.
Status validate(const JointConfig& config, const TrainerConfig& trainer,
                const rollout::RolloutConfig& rollout, int64_t world_size);

// HARR's retrieval policy (arXiv:2602.03645) inside the responses of a language model: the search
// tool draws its list instead of taking the nearest, what it drew from is recorded, and the
// advantage of a response trains the searches in it (retriever/query_trainer.h). While nothing is
// sampled for training (evaluation), a search is greedy and leaves no record. The tool is
// thread-safe against itself; all else is called while no call is out.
class JointRetriever {
 public:
  // Opens the index of `tool` and its encoder.
  static Result<std::unique_ptr<JointRetriever>> create(const JointConfig& config,
                                                        const rollout::ToolConfig& tool);

  // The search tool, which this must outlive.
  std::unique_ptr<const rollout::Tool> tool();

  // From here to end_sampling() lists are drawn and recorded; earlier records are forgotten.
  void begin_sampling();
  void end_sampling();

  // A response of this rank: its request's key, its advantage, and the block of the sum.
  struct Earned {
    uint64_t key = 0;
    double advantage = 0;
    int64_t block = 0;  // in [0, retriever::kReductionBlocks), ascending
  };
  // One update from what the recorded searches of `responses` earned; num_responses is that of the
  // step over all ranks. Collective over `ranks` (1, 2, 4 or 8). Sets metrics harr/*. A gradient
  // that is not finite changes nothing and counts in training/skipped_updates.
  Status update(std::span<const Earned> responses, int64_t num_responses, int64_t num_steps,
                comm::Communicator& ranks, Metrics& metrics);

  // Encoder, moments and counters in a folder `retriever` of a checkpoint; the encoder is a
  // directory that `gradus index search --model` takes.
  Status save(const std::string& checkpoint_folder);
  Status load(const std::string& checkpoint_folder);

  bool trains_policy() const { return config_.train != JointTrain::kRetriever; }
  bool trains_retriever() const { return config_.train != JointTrain::kPolicy; }
  retriever::Embedder& embedder() { return *embedder_; }
  const retriever::IndexFolder& index() const { return index_; }

 private:
  class SearchTool;
  JointRetriever(const JointConfig& config, retriever::IndexFolder index,
                 std::unique_ptr<retriever::Embedder> embedder, int64_t list_length);
  Result<std::string> search(const rollout::CallContext& context, const std::string& query);

  JointConfig config_;
  retriever::IndexFolder index_;
  std::unique_ptr<retriever::Embedder> embedder_;
  int64_t list_length_;  // k
  retriever::QueryTrainer trainer_;
  std::mutex mutex_;  // of what follows, and of the embedder while tools are called
  bool is_sampling_ = false;
  std::map<uint64_t, std::map<int64_t, retriever::RetrievalStep>> steps_;  // by key and call
};

}  // namespace gradus::trainer
