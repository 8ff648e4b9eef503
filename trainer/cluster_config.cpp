// SPDX-License-Identifier: Apache-2.0
#include "trainer/cluster_config.h"

#include "common/config/rules.h"

namespace gradus::trainer {

void ClusterConfig::visit(FieldVisitor& v) {
  v.field("mode", mode,
          "Who does what in `gradus train`: colocated (every rank samples and trains), split (the "
          "last rollout_ranks sample, the others train on it), async (the same, the next batch "
          "being sampled while this one is trained on).",
          one_of({"colocated", "split", "async"}));
  v.field("rollout_ranks", rollout_ranks, "Ranks that only sample; in split and async mode.",
          at_least(1));
  v.field("staleness", staleness,
          "Steps by which the weights that sampled a token may lag behind those that are trained; "
          "in async mode. Above 1, responses are interrupted and gone on with under newer weights.",
          in_closed(1, 16));
  v.field("partial_tokens", partial_tokens,
          "Tokens after which a response is interrupted, if its batch is not due; in async mode "
          "with a staleness above 1. 0: rollout.max_new_tokens / staleness, rounded up.",
          at_least(0));
  v.field("weight_bucket_mib", weight_bucket_mib,
          "MiB in one message with weights, from trainers to ranks that only sample.",
          in_closed(1, 1024));
  v.field("send_only_changed", send_only_changed,
          "Whether tensors that an update left as they were are not sent again; takes memory for "
          "one more copy of the weights.");
  v.field("stuck_after_s", stuck_after_s,
          "Seconds without a sign of life, or of ranks waiting for each other, after which the run "
          "is stuck: every rank says who waits for whom and ends. Ranks that compute give signs of "
          "life, however long they take.",
          in_closed(2, 3600));
}

int64_t num_trainers(const ClusterConfig& config, int64_t world_size) {
  return config.mode == ClusterMode::kColocated ? world_size : world_size - config.rollout_ranks;
}

Status validate(const ClusterConfig& config, int64_t world_size, bool uses_dynamic_sampling) {
  ConfigRules rules;
  if (config.mode == ClusterMode::kColocated) return rules.status();
  rules.require(config.rollout_ranks < world_size,
                "cluster.rollout_ranks is {} of {} ranks, and nobody is left to train; start at "
                "least {} ranks (mpirun -np {}), or set cluster.mode to colocated",
                config.rollout_ranks, world_size, config.rollout_ranks + 1,
                config.rollout_ranks + 1);
  rules.require(config.mode != ClusterMode::kAsync || !uses_dynamic_sampling,
                "trainer.dynamic_sampling is on and cluster.mode is async: whether a group is "
                "replaced is not known when the next batch is begun; use cluster.mode split");
  return rules.status();
}

}  // namespace gradus::trainer
