// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/config/field_visitor.h"
#include "common/status.h"
#include "federated/aggregator_config.h"
#include "federated/compression.h"
#include "privacy/accounting.h"

// The section `federated` of a run: `gradus federate`. docs/federated.md explains it.
namespace gradus::federated {

enum class DataKind { kDigits, kMnist1d, kSynthetic, kCsv };
enum class PartitionKind {
  kIid,
  kDirichlet,
  kShards,
  kQuantity,
  kFeatureShift,
  kNatural,
  kResampled
};

struct PartitionConfig {
  PartitionKind kind = PartitionKind::kDirichlet;
  double beta = 0.3;
  bool is_balanced = true;
  int64_t min_samples = 5;
  int64_t shards_per_client = 2;
  double shift = 0.5;
  int64_t samples_per_client = 100;

  void visit(FieldVisitor& v);
};

struct FederatedDataConfig {
  DataKind kind = DataKind::kDigits;
  std::string path;
  double test_fraction = 0.2;
  int64_t num_samples = 5000;
  double alpha = 1, beta = 1;

  void visit(FieldVisitor& v);
};

enum class TaskKind { kMlp, kNone };

struct FederatedTaskConfig {
  TaskKind kind = TaskKind::kMlp;
  FederatedDataConfig data;
  PartitionConfig partition;
  std::vector<int64_t> hidden = {64};
  int64_t num_parameters = 1000;

  void visit(FieldVisitor& v);
};

enum class SamplerKind { kUniform, kWeighted, kPoisson, kCyclic };
enum class AttackKind { kNone, kNan, kSignFlip, kGaussian, kReplay };

struct ClientsConfig {
  int64_t num_clients = 50;
  int64_t per_round = 5;
  SamplerKind sampler = SamplerKind::kUniform;
  double dropout = 0;
  double straggler_fraction = 0, straggler_slowdown = 10;
  double speed_spread = 0.25;
  double deadline_s = 0;
  double max_norm = 0;
  AttackKind attack = AttackKind::kNone;
  double attack_fraction = 0.2;
  double attack_scale = 1;

  void visit(FieldVisitor& v);
};

struct LocalTrainingConfig {
  int64_t num_epochs = 5;
  int64_t batch_size = 50;
  double lr = 0.05;
  double lr_decay = 1;
  double momentum = 0.9;
  double weight_decay = 5e-4;

  void visit(FieldVisitor& v);
};

enum class CompressionKind { kNone, kInt8, kTopK };

// `federated.compression`: what clients do to updates before they send them.
struct UpdateCompression {
  CompressionKind kind = CompressionKind::kNone;
  double fraction = 0.01;
  bool has_error_feedback = true;

  bool is_on() const { return kind != CompressionKind::kNone; }
  CompressionConfig config() const {
    return {kind == CompressionKind::kInt8 ? Compression::kInt8 : Compression::kTopK, fraction};
  }
  void visit(FieldVisitor& v);
};

// `federated.privacy`: DP-FedAvg (docs/privacy.md).
struct UpdatePrivacy {
  double noise_multiplier = 0;
  double clip_norm = 1;
  int64_t sample_cap = 100;
  double delta = 1e-5;
  privacy::Accountant accountant = privacy::Accountant::kRdp;
  double max_epsilon = 0;

  bool is_on() const { return noise_multiplier > 0; }
  void visit(FieldVisitor& v);
};

// `federated.secure_aggregation` (docs/privacy.md).
struct SecureAggregationConfig {
  bool is_on = false;
  int64_t num_neighbours = 0;

  void visit(FieldVisitor& v);
};

// `federated.deploy`: of `gradus federate serve` and `join` alone.
struct DeployConfig {
  double round_timeout_s = 600;
  double io_timeout_s = 30;
  int64_t max_transfers = 16;
  double retry_s = 60;
  double linger_s = 5;

  void visit(FieldVisitor& v);
};

enum class FederatedMode { kSync, kAsync };

struct FederatedConfig {
  int64_t num_rounds = 100;
  FederatedMode mode = FederatedMode::kSync;
  int64_t concurrency = 10;
  int64_t eval_every = 1;
  AggregatorConfig strategy;
  ClientsConfig clients;
  LocalTrainingConfig local;
  FederatedTaskConfig task;
  UpdateCompression compression;
  UpdatePrivacy privacy;
  SecureAggregationConfig secure_aggregation;
  DeployConfig deploy;

  void visit(FieldVisitor& v);
};

// Epsilon of `num_rounds` rounds by the configured accountant (PRV: its upper bound).
Result<double> epsilon_after(const FederatedConfig& config, int64_t num_rounds);

// InvalidArgument with every broken rule between fields, one a line, keys in full.
Status validate(const FederatedConfig& config);

}  // namespace gradus::federated
