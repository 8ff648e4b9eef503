// SPDX-License-Identifier: Apache-2.0
#include "trainer/federated_payload.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "common/rng.h"
#include "federated/round.h"
#include "tests/support/lora_weights.h"
#include "tests/support/training_batch.h"

namespace gradus::trainer {
namespace {

using Kind = FederatedPayloadKind;
using testing::attach_adapter;
using testing::tiny_model;

const model::LoraConfig kLora = {
    .rank = 3, .alpha = 6, .targets = {"q_proj", "v_proj", "down_proj"}};
const std::vector<double> kWeights = {0.5, 0.3, 0.2};

// A run of rounds in which three clients draw factors instead of training them.
class Rounds {
 public:
  explicit Rounds(Kind kind) : model_(tiny_model("qwen2")) {
    attach_adapter(*model_, kLora, 5, 0.1);
    payload_ = std::make_unique<FederatedPayload>(kind, *model_, 17);
    federated::AggregatorConfig strategy;
    auto made = federated::make_aggregator(strategy,
                                           {.num_parameters = payload_->size(), .num_clients = 3});
    EXPECT_TRUE(made.ok());
    aggregator_ = std::move(*made);
  }

  // Dense W + s B A of every matrix, as the model holds them.
  std::vector<float> merged() const {
    return {model_->parameters(), model_->parameters() + model_->layout().size};
  }

  // One round; what the model's matrices should become if products are averaged exactly: the merged
  // models' mean.
  std::vector<double> round(bool reverse = false) {
    std::vector<std::vector<float>> deltas(3);
    std::vector<double> mean(merged().size(), 0.0);
    for (size_t i = 0; i < 3; ++i) {
      const size_t k = reverse ? 2 - i : i;
      payload_->restore();
      train(k);
      const std::vector<float> local = merged();
      for (size_t j = 0; j < mean.size(); ++j) mean[j] += kWeights[k] * double{local[j]};
      deltas[k] = payload_->difference();
    }
    payload_->restore();
    federated::Round round(*aggregator_, round_);
    for (size_t i = 0; i < 3; ++i) {
      const size_t k = reverse ? 2 - i : i;
      EXPECT_TRUE(round
                      .add({{.client_id = static_cast<int64_t>(k),
                             .base_version = round_,
                             .num_samples = static_cast<int64_t>(10 * kWeights[k] + 0.5)},
                            deltas[k]})
                      .ok());
    }
    const auto result = round.finish();
    EXPECT_TRUE(result.ok());
    payload_->apply(result->delta_P, round_);
    ++round_;
    return mean;
  }

  FederatedPayload& payload() { return *payload_; }
  model::Transformer& model() { return *model_; }
  int64_t number() const { return round_; }
  void go_on_from(int64_t round) { round_ = round; }

 private:
  // Both factors move, A unless it is frozen, by steps of their own size.
  void train(size_t client) {
    const model::TrainableWeights trained = model_->trainable();
    for (const model::ParameterPlace& place : trained.layout.places) {
      const bool is_a = place.hf_name.find(".lora_A.") != std::string::npos;
      if (is_a && payload_->kind() == Kind::kFfa) continue;
      RngSequence random(hash64({hash64(place.hf_name), client, static_cast<uint64_t>(round_)}),
                         RngStream::kInit);
      // Dense, so that padding stays 0.
      std::vector<float> values(static_cast<size_t>(place.rows * place.columns));
      model::read_parameter(place, trained.values + place.offset, values.data());
      for (float& value : values) value += static_cast<float>(0.3 * random.normal());
      kernels::pack_weight(values.data(), place.columns, place.rows, place.columns,
                           trained.values + place.offset);
    }
    model_->trainable_changed();
  }

  std::unique_ptr<model::Transformer> model_;
  std::unique_ptr<FederatedPayload> payload_;
  std::unique_ptr<federated::Aggregator> aggregator_;
  int64_t round_ = 0;
};

// ||model - mean|| over ||mean - before||: the share of the exact step that is missing.
double error_of(Rounds& rounds) {
  const std::vector<float> before = rounds.merged();
  const std::vector<double> mean = rounds.round();
  const std::vector<float> after = rounds.merged();
  double missing = 0, step = 0;
  for (size_t j = 0; j < mean.size(); ++j) {
    missing += std::pow(double{after[j]} - mean[j], 2);
    step += std::pow(mean[j] - double{before[j]}, 2);
  }
  return std::sqrt(missing / step);
}

TEST(FederatedPayload, StackingFedExAndFfaReachTheMeanOfTheProductsAndFedItDoesNot) {
  for (const Kind kind : {Kind::kStacking, Kind::kFedEx, Kind::kFfa}) {
    Rounds rounds(kind);
    for (int r = 0; r < 3; ++r) {
      EXPECT_LE(error_of(rounds), 1e-5) << name_of(kind) << " in round " << r;
    }
  }
  Rounds fedit(Kind::kFedIt);
  const double error = error_of(fedit);
  RecordProperty("fedit_relative_error", std::to_string(error));
  EXPECT_GT(error, 0.1) << "the product of the means is another matrix";
}

// The factors of a client are those of the global model: FedEx averages them, stacking draws an A
// anew under a B of zeros.
TEST(FederatedPayload, LeavesTheFactorsThatTheNextRoundBeginsFrom) {
  for (const Kind kind : {Kind::kStacking, Kind::kFedEx}) {
    Rounds rounds(kind);
    rounds.round();
    const model::TrainableWeights trained = rounds.model().trainable();
    double a = 0, b = 0;
    for (const model::ParameterPlace& place : trained.layout.places) {
      for (int64_t j = 0; j < place.size; ++j) {
        const double size = std::fabs(trained.values[place.offset + j]);
        (place.hf_name.find(".lora_A.") != std::string::npos ? a : b) += size;
      }
    }
    EXPECT_GT(a, 0);
    EXPECT_EQ(b == 0, kind == Kind::kStacking);
    const std::vector<float> first(trained.values, trained.values + trained.layout.size);
    rounds.round();
    const std::vector<float> second(trained.values, trained.values + trained.layout.size);
    EXPECT_NE(first, second) << name_of(kind) << ": the next A is another";
  }
}

TEST(FederatedPayload, HasTheSameBitsForAnyOrderOfClientsAndAfterItsStateWasRead) {
  for (const Kind kind : {Kind::kFedIt, Kind::kFfa, Kind::kStacking, Kind::kFedEx}) {
    Rounds one(kind), other(kind);
    one.round();
    other.round(true);
    EXPECT_EQ(one.merged(), other.merged()) << name_of(kind);
    if (!one.payload().moves_base()) continue;
    const std::string path =
        ::testing::TempDir() + "/federated_payload_" + std::string(name_of(kind)) + ".bin";
    auto writer = records::StateWriter::create(path);
    ASSERT_TRUE(writer.ok());
    ASSERT_TRUE(one.payload().save(*writer).ok());
    ASSERT_TRUE(writer->finish().ok());
    Rounds resumed(kind);
    const auto reader = records::StateReader::open(path);
    ASSERT_TRUE(reader.ok());
    ASSERT_TRUE(resumed.payload().load(*reader).ok());
    resumed.go_on_from(one.number());
    EXPECT_EQ(resumed.merged(), one.merged()) << name_of(kind);
    one.round();
    resumed.round();
    EXPECT_EQ(resumed.merged(), one.merged()) << name_of(kind);
  }
}

TEST(FederatedPayload, CountsTheBytesOfWhatClientsSend) {
  // A [3, K] and B [N, 3] of the three targets of each layer; qwen2: see tiny_model.
  Rounds fedit(Kind::kFedIt), ffa(Kind::kFfa), fedex(Kind::kFedEx);
  int64_t a = 0, b = 0;
  for (const model::LoraGroup& group : fedit.model().adapter()->layout().groups) {
    for (const model::LoraPart& part : group.parts) {
      a += 3 * part.k;
      b += 3 * part.n;
    }
  }
  EXPECT_EQ(fedit.payload().num_upload_bytes(), 4 * (a + b));
  EXPECT_EQ(fedex.payload().num_upload_bytes(), 4 * (a + b));
  EXPECT_EQ(ffa.payload().num_upload_bytes(), 4 * b);
}

TEST(FederatedPayload, SaysWhatDoesNotFitTheModel) {
  EXPECT_EQ(*resolved_payload(Kind::kAuto, true), Kind::kFedEx);
  EXPECT_EQ(*resolved_payload(Kind::kAuto, false), Kind::kFull);
  EXPECT_EQ(resolved_payload(Kind::kFull, true).status().message(),
            "trainer.federated.payload is full, but the run trains an adapter (lora.rank, "
            "model.adapter); take fedit, ffa, stacking or fedex");
  EXPECT_EQ(resolved_payload(Kind::kFfa, false).status().message(),
            "trainer.federated.payload is ffa, but the run trains all weights; set lora.rank, or "
            "take full");
}

}  // namespace
}  // namespace gradus::trainer
