// SPDX-License-Identifier: Apache-2.0
#include "comm/weight_channel.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <numeric>

#include "comm/in_process.h"

namespace gradus::comm {
namespace {

using ::testing::HasSubstr;

constexpr size_t kSize = 1000;
// Two tensors with a gap, in which nothing of a model lies.
const std::vector<TensorRange> kTensors = {{0, 300}, {300, 500}, {900, 100}};

uint64_t hash_of(std::span<const float> weights) {
  uint64_t hash = 1469598103934665603u;
  for (const float weight : weights) {
    uint32_t bits;
    std::memcpy(&bits, &weight, sizeof(bits));
    hash = (hash ^ bits) * 1099511628211u;
  }
  return hash;
}

std::vector<float> weights_of(uint64_t version) {
  std::vector<float> weights(kSize, 0.0f);
  for (const TensorRange& tensor : kTensors) {
    for (int64_t i = tensor.offset; i < tensor.offset + tensor.size; ++i) {
      weights[static_cast<size_t>(i)] = static_cast<float>(i) + 0.5f;
    }
  }
  // Versions differ in the second tensor alone.
  for (size_t i = 300; i < 800; ++i) weights[i] += static_cast<float>(version) / 3;
  return weights;
}

TEST(WeightChannel, EveryReceiverGetsEveryBit) {
  for (const int64_t bucket_bytes : {4, 40, 1 << 20}) {
    for (const bool only_changed : {false, true}) {
      run_ranks(3, [&](Communicator& ranks) {
        std::vector<float> weights(kSize, 0.0f);
        if (ranks.rank() == 0) {
          WeightSender sender(ranks, kTensors, {bucket_bytes, only_changed});
          const int receivers[] = {1, 2};
          std::vector<int64_t> bytes;
          for (uint64_t version = 0; version < 3; ++version) {
            weights = weights_of(version);
            sender.send(weights, {version, hash_of(weights)}, receivers);
            bytes.push_back(sender.num_bytes_sent());
          }
          if (bucket_bytes == 1 << 20) {
            EXPECT_EQ(bytes[0], 2 * (900 * 4 + 2 * 8)) << "two buckets, since there is a gap";
            EXPECT_EQ(bytes[1], only_changed ? 2 * (500 * 4 + 8) : bytes[0]);
          }
          return;
        }
        WeightReceiver receiver(ranks, 0, hash_of);
        for (uint64_t version = 0; version < 3; ++version) {
          const Result<WeightStamp> stamp = receiver.receive(weights);
          ASSERT_TRUE(stamp.ok()) << stamp.status().message();
          EXPECT_EQ(stamp->version, version);
          EXPECT_EQ(weights, weights_of(version));
        }
      });
    }
  }
}

// Silent synchronisation failures went unnoticed for months elsewhere.
TEST(WeightChannel, WeightsThatAreNotTheSendersAreAnError) {
  run_ranks(2, [](Communicator& ranks) {
    std::vector<float> weights = weights_of(4);
    if (ranks.rank() == 0) {
      WeightSender sender(ranks, kTensors, {});
      const int receivers[] = {1};
      sender.send(weights, {4, hash_of(weights) ^ 1}, receivers);
      return;
    }
    WeightReceiver receiver(ranks, 0, hash_of);
    const Status status = receiver.receive(weights).status();
    EXPECT_EQ(status.code(), StatusCode::kDataLoss);
    const uint64_t hash = hash_of(weights);
    EXPECT_EQ(status.message(),
              fmt::format("weights of version 4 arrived with hash {:016x}, rank 0 sent hash "
                          "{:016x}; they were changed on the way, or the ranks do not run the same "
                          "binary",
                          hash, hash ^ 1));
  });
}

// A float that its owner changed by accident shows, though the sender did not send it again.
TEST(WeightChannel, ChangesToOtherWeightsThanTheReceiversAreAnError) {
  run_ranks(2, [](Communicator& ranks) {
    std::vector<float> weights(kSize, 0.0f);
    if (ranks.rank() == 0) {
      WeightSender sender(ranks, kTensors, {.only_changed = true});
      const int receivers[] = {1};
      for (uint64_t version = 0; version < 2; ++version) {
        weights = weights_of(version);
        sender.send(weights, {version, hash_of(weights)}, receivers);
      }
      return;
    }
    WeightReceiver receiver(ranks, 0, hash_of);
    ASSERT_TRUE(receiver.receive(weights).ok());
    weights[7] += 1;
    EXPECT_THAT(receiver.receive(weights).status().message(), HasSubstr("arrived with hash"));
  });
  run_ranks(2, [](Communicator& ranks) {
    std::vector<float> weights(kSize, 0.0f);
    if (ranks.rank() == 0) {
      WeightSender sender(ranks, kTensors, {.only_changed = true});
      const int receivers[] = {1};
      for (uint64_t version = 0; version < 2; ++version) {
        weights = weights_of(version);
        sender.send(weights, {version, hash_of(weights)}, receivers);
      }
      return;
    }
    ASSERT_TRUE(WeightReceiver(ranks, 0, hash_of).receive(weights).ok());
    WeightReceiver late(ranks, 0, hash_of);  // has not seen version 0
    EXPECT_THAT(late.receive(weights).status().message(),
                HasSubstr("the changes to version 1 are against version 0 (hash "));
  });
}

TEST(WeightChannel, AnotherModelAndADeadSenderAreErrors) {
  run_ranks(2, [](Communicator& ranks) {
    std::vector<float> weights = weights_of(0);
    if (ranks.rank() == 0) {
      WeightSender sender(ranks, kTensors, {});
      const int receivers[] = {1};
      sender.send(weights, {0, hash_of(weights)}, receivers);
      return;
    }
    weights.resize(kSize - 1);
    EXPECT_EQ(WeightReceiver(ranks, 0, hash_of).receive(weights).status().message(),
              "weights of version 0 are 1000 floats, this rank's model has 999");
  });
  run_ranks(2,
            [](Communicator& ranks) {
              if (ranks.rank() == 0) throw RankDied();
              std::vector<float> weights(kSize);
              EXPECT_EQ(WeightReceiver(ranks, 0, hash_of).receive(weights).status().code(),
                        StatusCode::kUnavailable);
            },
            {.may_lose = [](int rank) { return rank == 0; }});
}

}  // namespace
}  // namespace gradus::comm
