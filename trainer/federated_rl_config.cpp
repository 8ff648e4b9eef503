// SPDX-License-Identifier: Apache-2.0
#include "trainer/federated_rl_config.h"

#include "common/config/rules.h"
#include "federated/aggregator.h"
#include "trainer/trainer_config.h"

namespace gradus::trainer {

void FederatedRlConfig::visit(FieldVisitor& v) {
  v.field("num_clients", num_clients, "Clients that the prompts of data.train are shared out to.",
          at_least(1));
  v.field("per_round", per_round, "Clients of a round, drawn anew for each; 0: all.", at_least(0));
  v.field("local_steps", local_steps,
          "Steps of trainer.prompts_per_step prompts that a client makes in a round.", at_least(1));
  v.field("by", by,
          "What a partition by labels looks at: a key of the rows' extra_info, e.g. a difficulty; "
          "answer, the ground truth; empty: data_source, the task.");
  v.field("partition", partition,
          "Whose prompts they are: iid, dirichlet, shards or quantity (docs/federated.md).");
  v.field("strategy", strategy, "What updates become (docs/federated.md).", shorthand_for("name"));
  v.field("payload", payload,
          "What clients send. full: all weights; with LoRA fedit: A and B, averaged apart; ffa: B, "
          "while A stays as it was drawn; stacking: the products B A, into the weights; fedex: as "
          "fedit, and the weights take what the mean of the products has beyond; auto: fedex with "
          "an adapter, full without.",
          one_of({"auto", "full", "fedit", "ffa", "stacking", "fedex"}));
  v.field("score_window", score_window,
          "Groups, the newest of a client, whose scores FLood's quantile is of.", at_least(1));
}

Status validate(const FederatedRlConfig& config, const TrainerConfig& trainer) {
  ConfigRules rules;
  using federated::PartitionKind;
  rules.require(config.per_round <= config.num_clients,
                "trainer.federated.per_round ({}) exceeds trainer.federated.num_clients ({})",
                config.per_round, config.num_clients);
  const PartitionKind kind = config.partition.kind;
  rules.require(kind == PartitionKind::kIid || kind == PartitionKind::kDirichlet ||
                    kind == PartitionKind::kShards || kind == PartitionKind::kQuantity,
                "trainer.federated.partition.kind is of rows of numbers; prompts are shared out by "
                "iid, dirichlet, shards or quantity");
  const federated::AggregatorContext context = {.num_parameters = 1,
                                                .num_clients = config.num_clients};
  const auto strategy = federated::make_aggregator(config.strategy, context);
  if (!strategy.ok()) {
    rules.add(strategy.status().with_prefix("trainer.federated.strategy.name"));
  } else {
    const int64_t per_round = config.per_round > 0 ? config.per_round : config.num_clients;
    rules.require(
        (*strategy)->min_updates() <= per_round,
        "trainer.federated: {} clients a round, but strategy {} needs at least {} updates",
        per_round, config.strategy.name, (*strategy)->min_updates());
    const federated::ClientTerms terms = (*strategy)->client_terms(0);
    const bool counts_labels =
        config.strategy.name == "feddisco" || config.strategy.base == "feddisco";
    const char* lacks = terms.needs_state() ? "clients that keep a vector from round to round"
                        : terms.prox_mu > 0 ? "a term in the clients' gradient"
                        : terms.report_loss ? "the clients' loss before training"
                        : counts_labels     ? "counts of the clients' labels"
                                            : nullptr;
    rules.require(lacks == nullptr,
                  "trainer.federated.strategy.name: {} needs {}, which clients of reinforcement "
                  "learning do not give; take one that acts on the server, e.g. fedavg, fedadam, "
                  "fednova, median or flood",
                  config.strategy.name, lacks == nullptr ? "" : lacks);
  }
  rules.require(config.payload != FederatedPayloadKind::kFfa || trainer.optimizer.weight_decay == 0,
                "trainer.weight_decay is {} with trainer.federated.payload ffa, where A stays as "
                "it was drawn; set it to 0",
                trainer.optimizer.weight_decay);
  rules.require(!trainer.dynamic_sampling,
                "trainer.dynamic_sampling is on with trainer.federated, where a client's place in "
                "its prompts is a function of the round; leave one of the two out");
  rules.require(!trainer.critic,
                "trainer.critic is set with trainer.federated, whose clients have none; take an "
                "algorithm without one, e.g. grpo");
  rules.require(trainer.algorithm.kl.controller != KlController::kAdaptive,
                "trainer.algorithm.kl.controller is adaptive with trainer.federated, where no "
                "coefficient lasts beyond a round; set it to fixed");
  rules.require(
      trainer.optimizer.ema_decay == 0,
      "trainer.ema_decay is {} with trainer.federated, where the global model alone lasts "
      "beyond a round; leave one of the two out",
      trainer.optimizer.ema_decay);
  rules.require(trainer.backward.zero_stage == 0,
                "trainer.zero_stage is {} with trainer.federated, where a client trains on one "
                "rank; set it to 0",
                trainer.backward.zero_stage);
  return rules.status();
}

}  // namespace gradus::trainer
