// SPDX-License-Identifier: Apache-2.0
#include "trainer/device_learner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <mutex>

#include "kernels/optimizer.h"
#include "model/training_pass.h"
#include "tests/support/files.h"
#include "tests/support/in_process_communicator.h"
#include "tests/support/model_rows.h"
#include "trainer/cpu_learner.h"

namespace gradus::trainer {
namespace {

using ::testing::HasSubstr;
using testing::random_tokens;
using testing::run_ranks;

constexpr double kRate = 1e-3;

uint64_t hash(const model::Transformer& transformer) {
  return model::hash_parameters(transformer.parameters(), transformer.layout().size);
}

// A device that is the CPU, with weights of its own: what DeviceLearner does with it can be
// compared with CpuLearner to the last bit. Calls named in `fails` say so.
class FakeDevice : public TrainingDevice {
 public:
  FakeDevice(const model::Transformer& host, comm::Communicator& communicator)
      : communicator_(communicator),
        transformer_(host.config()),
        pass_(transformer_, false),
        gradients_(transformer_.layout()),
        m_(transformer_.layout().size),
        v_(transformer_.layout().size),
        scratch_(transformer_.layout().size) {
    std::copy_n(host.parameters(), host.layout().size, transformer_.parameters());
  }

  Status upload(const float* parameters) override {
    std::copy_n(parameters, size(), transformer_.parameters());
    return {};
  }
  Status download(float* parameters) const override {
    ++num_downloads;
    std::copy_n(transformer_.parameters(), size(), parameters);
    return {};
  }
  Result<uint64_t> weights_hash() override { return hash(transformer_); }
  Status clear_gradients() override {
    gradients_.clear();
    is_finished_ = false;
    return {};
  }
  Status sum_gradients_over_ranks() override {
    finish();
    if (communicator_.size() > 1) {
      comm::all_reduce_ring(communicator_, {gradients_.buffer.data(), static_cast<size_t>(size())},
                            {scratch_.data(), static_cast<size_t>(size())}, "sum of gradients");
    }
    return {};
  }
  Result<double> gradient_norm() override {
    double sum = 0;
    for (const model::ParameterPlace& place : transformer_.layout().places) {
      sum += kernels::sum_of_squares(gradients_.buffer.data() + place.offset, place.size);
    }
    return std::sqrt(sum);
  }
  Status gradients_to_host(float* gradients) const override {
    const_cast<FakeDevice*>(this)->finish();
    std::copy_n(gradients_.buffer.data(), size(), gradients);
    return {};
  }
  Status apply(const model::AdamwStep& step) override {
    if (fails == "apply") return unavailable("the device is lost");
    for (const model::ParameterPlace& place : transformer_.layout().places) {
      const double power = static_cast<double>(step.step);
      kernels::adamw(
          {.weights = transformer_.parameters() + place.offset,
           .gradients = gradients_.buffer.data() + place.offset,
           .m = m_.data() + place.offset,
           .v = v_.data() + place.offset,
           .count = place.size,
           .gradient_scale = static_cast<float>(step.scale),
           .learning_rate = static_cast<float>(step.learning_rate),
           .beta1 = static_cast<float>(step.beta1),
           .beta2 = static_cast<float>(step.beta2),
           .eps = static_cast<float>(step.eps),
           .weight_decay = place.columns > 0 ? static_cast<float>(step.weight_decay) : 0.0f,
           .correction1 = static_cast<float>(1.0 - std::pow(step.beta1, power)),
           .correction2 = static_cast<float>(1.0 - std::pow(step.beta2, power))});
    }
    return {};
  }
  Status moments_to_host(float* m, float* v) const override {
    std::copy_n(m_.data(), size(), m);
    std::copy_n(v_.data(), size(), v);
    return {};
  }
  Status moments_from_host(const float* m, const float* v) override {
    std::copy_n(m, size(), m_.data());
    std::copy_n(v, size(), v_.data());
    return {};
  }
  Status forward(const data::Pack& pack, float temperature, bool keep_for_backward) override {
    if (fails == "forward") return unavailable("the device is lost");
    calls += 'F';
    pass_.forward(pack, temperature, keep_for_backward);
    has_activations = true;
    return {};
  }
  std::span<const float> logprobs() const override { return pass_.logprobs(); }
  std::span<const float> entropies() const override { return pass_.entropies(); }
  Status backward(std::span<const float> dlogprobs, std::span<const float> dentropies) override {
    calls += 'B';
    pass_.backward(dlogprobs, dentropies, gradients_);
    return {};
  }
  void release_activations() override { has_activations = false; }
  Status ready_for_update() override { return {}; }
  Status ready_for_engine() override { return {}; }
  bool is_lockstep() const override { return lockstep && !is_alone; }
  // What all ranks of a lockstep must do alike.
  Status idle_forward() override {
    calls += 'f';
    return {};
  }
  Status idle_backward() override {
    calls += 'b';
    return {};
  }
  Status alone(const std::function<Status()>& body) override {
    if (fails == "alone") return unavailable("no memory for that");
    is_alone = true;
    const Status status = body();
    is_alone = false;
    return status;
  }

  std::string fails, calls;
  bool lockstep = false, is_alone = false;
  bool has_activations = false;
  mutable int num_downloads = 0;

 private:
  int64_t size() const { return transformer_.layout().size; }
  // A tied embedding's rows are added once.
  void finish() {
    if (!is_finished_) {
      gradients_.finish(transformer_.layout(), transformer_.config().hidden_size);
    }
    is_finished_ = true;
  }

  comm::Communicator& communicator_;
  model::Transformer transformer_;
  model::TrainingPass pass_;
  model::Gradients gradients_;
  bool is_finished_ = false;
  AlignedBuffer m_, v_, scratch_;
};

std::vector<data::PackGroup> make_groups(int64_t vocab_size) {
  std::vector<data::PackGroup> groups;
  for (uint64_t g = 0; g < 6; ++g) {
    groups.push_back({random_tokens(static_cast<int64_t>(2 + 9 * g), vocab_size, g),
                      {random_tokens(static_cast<int64_t>(1 + g), vocab_size, 50 + g),
                       random_tokens(static_cast<int64_t>(1 + 5 * (g % 3)), vocab_size, 90 + g)}});
  }
  return groups;
}

// A loss whose gradient depends on group, place and present log-prob.
struct Loss {
  const std::vector<data::PackGroup>& groups;
  float poison = 0;  // added to the first token of group 3

  Status operator()(int64_t first_group, int64_t num_groups, std::span<const float> logprobs,
                    std::span<const float>, std::span<float> dlogprobs,
                    std::span<float> dentropies) const {
    size_t i = 0;
    for (int64_t g = first_group; g < first_group + num_groups; ++g) {
      int64_t count = 0;
      for (const auto& response : groups[static_cast<size_t>(g)].responses) {
        count += static_cast<int64_t>(response.size());
      }
      for (int64_t t = 0; t < count; ++t, ++i) {
        const float weight = static_cast<float>((7 * g + 3 * t) % 11 - 5) / 50;
        dlogprobs[i] = weight * (1 + std::exp(logprobs[i]));
        dentropies[i] = weight / 100;
        if (g == 3 && t == 0 && poison != 0) dlogprobs[i] = poison;
      }
    }
    return {};
  }
};

// A learner over the fake device.
struct Training {
  explicit Training(comm::Communicator& ranks, double max_grad_norm = 1.0,
                    int64_t micro_batch_tokens = 64)
      : transformer(testing::tiny_model("qwen2")),
        groups(make_groups(transformer->config().vocab_size)),
        optimizer{.max_grad_norm = max_grad_norm} {
    auto made = std::make_unique<FakeDevice>(*transformer, ranks);
    device = made.get();
    learner = std::make_unique<DeviceLearner>(
        *transformer, std::move(made), optimizer,
        BackwardConfig{.micro_batch_tokens = micro_batch_tokens, .layout_invariant = false}, ranks);
  }
  Result<UpdateStats> update(const Learner::LossFunction& loss) {
    std::vector<bool> needs_gradient(groups.size(), true);
    needs_gradient[4] = false;
    return learner->update(groups, needs_gradient, 0.9f, kRate, loss);
  }
  Result<UpdateStats> update() { return update(Loss{groups}); }
  uint64_t weights_hash() {
    EXPECT_TRUE(learner->whole_weights().ok());
    return hash(*transformer);
  }
  std::unique_ptr<model::Transformer> transformer;
  std::vector<data::PackGroup> groups;
  OptimizerConfig optimizer;
  FakeDevice* device = nullptr;
  std::unique_ptr<DeviceLearner> learner;
};

struct Course {
  uint64_t hash = 0;
  double grad_norm = 0;
  bool operator==(const Course&) const = default;
};

Course three_updates(int num_ranks, double max_grad_norm, bool on_device) {
  std::mutex mutex;
  std::vector<Course> courses;
  run_ranks(num_ranks, [&](comm::Communicator& communicator) {
    Training run(communicator, max_grad_norm);
    Learner* learner = run.learner.get();
    std::unique_ptr<CpuLearner> on_cpu;
    if (!on_device) {
      on_cpu = std::make_unique<CpuLearner>(
          *run.transformer, run.optimizer,
          BackwardConfig{.micro_batch_tokens = 64, .layout_invariant = false}, communicator);
      learner = on_cpu.get();
    }
    std::vector<bool> needs_gradient(run.groups.size(), true);
    needs_gradient[4] = false;
    Course course;
    for (int step = 0; step < 3; ++step) {
      const auto stats = learner->update(run.groups, needs_gradient, 0.9f, kRate, Loss{run.groups});
      GRADUS_CHECK(stats.ok(), stats.status().message());
      course.grad_norm = stats->grad_norm;
    }
    GRADUS_CHECK(learner->whole_weights().ok(), "whole_weights");
    course.hash = hash(*run.transformer);
    const std::lock_guard lock(mutex);
    courses.push_back(course);
  });
  for (const Course& course : courses) EXPECT_EQ(course, courses[0]) << "ranks differ";
  return courses[0];
}

// Order of micro-batches, clipping, the step of the corrections, weight decay, sums over ranks: all
// as on the CPU, so that over the same arithmetic not a bit differs.
TEST(DeviceLearner, OverTheSameArithmeticGivesTheBitsOfTheCpuLearner) {
  for (const int num_ranks : {1, 2}) {
    for (const double max_grad_norm : {0.0, 0.01}) {
      const Course device = three_updates(num_ranks, max_grad_norm, true);
      EXPECT_EQ(device, three_updates(num_ranks, max_grad_norm, false))
          << num_ranks << " ranks, max_grad_norm " << max_grad_norm;
      EXPECT_GT(device.grad_norm, 0.01) << "clipping has something to do";
    }
  }
}

TEST(DeviceLearner, TheHostGetsWeightsWhenTheyAreAskedForAndOnlyOnce) {
  const auto alone = comm::make_communicator().value();
  Training run(*alone);
  const uint64_t before = hash(*run.transformer);
  ASSERT_TRUE(run.learner->whole_weights().ok());
  EXPECT_EQ(run.device->num_downloads, 0) << "nothing has changed yet";
  ASSERT_TRUE(run.update().ok());
  EXPECT_FALSE(run.device->has_activations) << "their memory is for the engine now";
  EXPECT_EQ(hash(*run.transformer), before);
  EXPECT_NE(run.learner->weights_hash().value(), before);
  EXPECT_EQ(run.device->num_downloads, 0) << "the device makes the hash";
  EXPECT_NE(run.weights_hash(), before);
  int64_t visited = 0;
  ASSERT_TRUE(
      run.learner->visit_weights([&](int64_t begin, int64_t end) { visited += end - begin; }).ok());
  EXPECT_EQ(visited, run.transformer->layout().size);
  EXPECT_EQ(run.device->num_downloads, 1);
}

TEST(DeviceLearner, AGradientThatIsNotFiniteIsNamedAndChangesNothing) {
  const auto alone = comm::make_communicator().value();
  Training clean(*alone), run(*alone);
  for (const float poison : {std::nanf(""), INFINITY, 1e30f}) {
    const uint64_t before = run.weights_hash();
    const auto stats = run.update(Loss{run.groups, poison});
    ASSERT_FALSE(stats.ok()) << poison;
    EXPECT_EQ(stats.status().code(), StatusCode::kDataLoss);
    EXPECT_THAT(stats.status().message(),
                HasSubstr(" is not finite (group 3, response 0 of the batch); the weights were not "
                          "changed; lower the learning rate"));
    ASSERT_TRUE(run.learner->non_finite().has_value());
    EXPECT_THAT(run.learner->non_finite()->what, std::isfinite(poison)
                                                     ? HasSubstr("the gradient of 'model.")
                                                     : HasSubstr("the loss of response token 0"));
    EXPECT_EQ(run.weights_hash(), before);
    EXPECT_EQ(run.learner->num_updates(), 0);
  }
  ASSERT_TRUE(clean.update().ok());
  ASSERT_TRUE(run.update().ok());
  EXPECT_FALSE(run.learner->non_finite().has_value());
  EXPECT_EQ(run.weights_hash(), clean.weights_hash());
}

// Of three ranks over six groups, cut into passes by their tokens: group 4 has no gradient, and
// rank 0, whose groups are short, has fewer passes than the others.
TEST(DeviceLearner, InLockstepAllRanksMakeAsManyPassesAndTheSameUpdate) {
  std::mutex mutex;
  std::vector<std::string> calls(3), forwards(3);
  std::vector<uint64_t> hashes;
  const auto update = [&](comm::Communicator& ranks, bool lockstep) {
    Training run(ranks, 1.0, 40);
    run.device->lockstep = lockstep;
    GRADUS_CHECK(run.update().ok(), "update");
    const std::lock_guard lock(mutex);
    hashes.push_back(run.weights_hash());
    return std::exchange(run.device->calls, "");
  };
  run_ranks(3, [&](comm::Communicator& ranks) { update(ranks, false); });
  run_ranks(3, [&](comm::Communicator& ranks) {
    calls[static_cast<size_t>(ranks.rank())] = update(ranks, true);
    Training run(ranks, 1.0, 40);
    run.device->lockstep = true;
    GRADUS_CHECK(
        run.learner
            ->forward(run.groups, 0.9f,
                      [](int64_t, int64_t, std::span<const float>, std::span<const float>) {})
            .ok(),
        "forward");
    forwards[static_cast<size_t>(ranks.rank())] = run.device->calls;
  });
  EXPECT_THAT(calls, ::testing::ElementsAre("FBfb", "FBFB", "FbFB"));
  EXPECT_THAT(forwards, ::testing::ElementsAre("Ff", "FF", "FF"));
  for (const uint64_t hash : hashes) EXPECT_EQ(hash, hashes[0]);
}

// The others must not wait on the device for a rank that has left.
TEST(DeviceLearner, InLockstepALossThatFailsOnOneRankEndsTheUpdateOnAll) {
  std::mutex mutex;
  std::vector<std::string> messages;
  run_ranks(2, [&](comm::Communicator& ranks) {
    Training run(ranks, 1.0, 40);
    run.device->lockstep = true;
    const auto stats = run.update([&](int64_t first_group, int64_t, std::span<const float>,
                                      std::span<const float>, std::span<float>, std::span<float>) {
      return first_group >= 3 ? invalid_argument("group 3 has no reward") : Status();
    });
    const std::lock_guard lock(mutex);
    messages.push_back(stats.status().message());
    EXPECT_EQ(run.device->calls, "F") << "rank " << ranks.rank();
  });
  for (const std::string& message : messages) {
    EXPECT_THAT(message, HasSubstr("group 3 has no reward"));
  }
}

TEST(DeviceLearner, ANonFiniteGradientThatCannotBeTracedIsStillNamed) {
  const auto alone = comm::make_communicator().value();
  Training run(*alone);
  run.device->fails = "alone";
  const auto stats = run.update(Loss{run.groups, INFINITY});
  ASSERT_FALSE(stats.ok());
  EXPECT_EQ(stats.status().code(), StatusCode::kDataLoss);
  EXPECT_THAT(stats.status().message(),
              HasSubstr("(where it began was not looked for: no memory for that)"));
  EXPECT_EQ(run.learner->non_finite()->group, -1);
}

// Its state is that of the CPU's optimizer: either reads what the other wrote.
TEST(DeviceLearner, SavedAndLoadedItGoesOnAsIfNeverStoppedAlsoOnTheCpu) {
  const auto alone = comm::make_communicator().value();
  Training whole(*alone);
  for (int step = 0; step < 6; ++step) ASSERT_TRUE(whole.update().ok());
  const test::TemporaryFolder folder;
  Training first(*alone), second(*alone), third(*alone);
  for (int step = 0; step < 3; ++step) ASSERT_TRUE(first.update().ok());
  records::StateSnapshot snapshot;
  ASSERT_TRUE(first.learner->save(snapshot).ok());
  ASSERT_TRUE(snapshot.write(folder.path() + "/optimizer.bin").ok());
  const auto shards = records::StateShards::open(folder.path(), "optimizer");
  ASSERT_TRUE(shards.ok()) << shards.status().message();
  ASSERT_TRUE(first.learner->whole_weights().ok());
  CpuLearner on_cpu(*third.transformer, third.optimizer,
                    {.micro_batch_tokens = 64, .layout_invariant = false}, *alone);
  for (Training* run : {&second, &third}) {
    std::copy_n(first.transformer->parameters(), first.transformer->layout().size,
                run->transformer->parameters());
  }
  ASSERT_TRUE(second.learner->load(*shards).ok());
  ASSERT_TRUE(on_cpu.load(*shards).ok());
  EXPECT_EQ(second.learner->num_updates(), 3);
  std::vector<bool> needs_gradient(third.groups.size(), true);
  needs_gradient[4] = false;
  for (int step = 0; step < 3; ++step) {
    ASSERT_TRUE(second.update().ok());
    ASSERT_TRUE(on_cpu.update(third.groups, needs_gradient, 0.9f, kRate, Loss{third.groups}).ok());
  }
  const uint64_t expected = whole.weights_hash();
  EXPECT_EQ(second.weights_hash(), expected);
  EXPECT_EQ(hash(*third.transformer), expected);
}

// What goes wrong on one device ends the update on all ranks, with its rank in front.
TEST(DeviceLearner, AnErrorOfTheDeviceOfOneRankEndsTheUpdateOnAll) {
  for (const char* call : {"forward", "apply"}) {
    run_ranks(2, [&](comm::Communicator& communicator) {
      Training run(communicator);
      if (communicator.rank() == 1) run.device->fails = call;
      const auto stats = run.update();
      ASSERT_FALSE(stats.ok());
      EXPECT_EQ(stats.status().message(), "rank 1: the device is lost") << call;
      EXPECT_EQ(run.learner->num_updates(), 0);
    });
  }
}

TEST(DeviceLearner, ForwardGivesTheLogprobsOfTheUpdateInOrder) {
  const auto alone = comm::make_communicator().value();
  Training run(*alone);
  std::vector<float> forward, seen;
  ASSERT_TRUE(
      run.learner
          ->forward(run.groups, 0.9f,
                    [&](int64_t, int64_t, std::span<const float> logprobs, std::span<const float>) {
                      forward.insert(forward.end(), logprobs.begin(), logprobs.end());
                    })
          .ok());
  EXPECT_FALSE(run.device->has_activations);
  ASSERT_TRUE(run.update([&](int64_t first, int64_t count, std::span<const float> logprobs,
                             std::span<const float> entropies, std::span<float> dlogprobs,
                             std::span<float> dentropies) {
                   seen.insert(seen.end(), logprobs.begin(), logprobs.end());
                   return Loss{run.groups}(first, count, logprobs, entropies, dlogprobs,
                                           dentropies);
                 })
                  .ok());
  ASSERT_EQ(seen.size(), forward.size());
  EXPECT_EQ(std::memcmp(seen.data(), forward.data(), seen.size() * sizeof(float)), 0);
}

}  // namespace
}  // namespace gradus::trainer
