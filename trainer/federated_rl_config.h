// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "common/config/field_visitor.h"
#include "common/status.h"
#include "federated/aggregator_config.h"
#include "federated/federated_config.h"

// The section `trainer.federated` of a run: clients that each train the policy on prompts of their
// own, by the trainer as it is, and a server that makes one step of their updates
// (docs/federated.md). A step of the run is then a round.
namespace gradus::trainer {

// What clients send: trainer/federated_payload.h. Auto: fedex with an adapter, full without.
enum class FederatedPayloadKind { kAuto, kFull, kFedIt, kFfa, kStacking, kFedEx };

struct FederatedRlConfig {
  int64_t num_clients = 8;
  int64_t per_round = 0;  // 0: all
  int64_t local_steps = 4;
  // What partitions by label look at: a key of extra_info, "answer"; empty: data_source.
  std::string by;
  federated::PartitionConfig partition{.min_samples = 1};
  federated::AggregatorConfig strategy;
  FederatedPayloadKind payload = FederatedPayloadKind::kAuto;
  int64_t score_window = 512;

  void visit(FieldVisitor& v);
};

struct TrainerConfig;

// InvalidArgument lists every broken rule, one a line: of the section, and with the rest of the
// trainer's.
Status validate(const FederatedRlConfig& config, const TrainerConfig& trainer);

}  // namespace gradus::trainer
