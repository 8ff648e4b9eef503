// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <numbers>

#include "rewards/internal/builtin.h"
#include "rewards/internal/options.h"
#include "rewards/internal/text.h"

// `length` and `repetition`: shaping, to be added to what says whether a response is right.
namespace gradus::rewards {
namespace {

enum class Shape { kOverlong, kCosine, kGroup };

// overlong: 0, then linear to -1 over the last `buffer` of `max` (DAPO, arXiv:2503.14476, Eq. 13).
// cosine: from `short` at length 0 to `long` at `max` and beyond, along half a cosine (Yeo et al.
// 2025, arXiv:2502.03373). group: 1/2 for the shortest of the group, -1/2 for the longest, 0 where
// all are equal (Kimi k1.5, arXiv:2501.12599, section 2.3.3, for right answers).
class LengthReward : public Reward {
 public:
  Shape shape = Shape::kOverlong;
  bool counts_tokens = true;
  double max = 0, buffer = 0, at_zero = 1, at_max = 0.5;

  bool compares_siblings() const override { return shape == Shape::kGroup; }
  double lower_bound() const override {
    return shape == Shape::kOverlong ? -1
           : shape == Shape::kGroup  ? -0.5
                                     : std::min(at_zero, at_max);
  }
  double upper_bound() const override {
    return shape == Shape::kOverlong ? 0 : shape == Shape::kGroup ? 0.5 : std::max(at_zero, at_max);
  }

  std::vector<RewardPart> score_batch(std::span<const Group> groups) const override {
    std::vector<RewardPart> parts;
    for (const Group& group : groups) {
      double shortest = INFINITY, longest = 0;
      for (const data::Trajectory& trajectory : group.trajectories) {
        shortest = std::min(shortest, length_of(trajectory));
        longest = std::max(longest, length_of(trajectory));
      }
      for (const data::Trajectory& trajectory : group.trajectories) {
        RewardPart& part = parts.emplace_back();
        if (counts_tokens && trajectory.behavior_logprobs.empty() && !trajectory.text.empty()) {
          part = {.status = RewardStatus::kError,
                  .detail = "the response has no tokens to count; use unit: characters"};
          continue;
        }
        const double length = length_of(trajectory);
        part.detail = fmt::format("{} {}", length, counts_tokens ? "tokens" : "characters");
        switch (shape) {
          case Shape::kOverlong:
            part.score = -std::clamp((length - (max - buffer)) / buffer, 0.0, 1.0);
            break;
          case Shape::kCosine:
            part.score =
                at_max + 0.5 * (at_zero - at_max) *
                             (1 + std::cos(std::numbers::pi * std::min(length / max, 1.0)));
            break;
          case Shape::kGroup:
            part.score = longest == shortest ? 0 : 0.5 - (length - shortest) / (longest - shortest);
            break;
        }
      }
    }
    return parts;
  }

 private:
  double length_of(const data::Trajectory& trajectory) const {
    if (counts_tokens) return static_cast<double>(trajectory.behavior_logprobs.size());
    return static_cast<double>(std::count_if(trajectory.text.begin(), trajectory.text.end(),
                                             [](char c) { return (c & 0xC0) != 0x80; }));
  }
};

uint64_t mixed(uint64_t hash) {
  hash ^= hash >> 31;
  hash *= 0x9E3779B97F4A7C15ull;
  return hash ^ (hash >> 29);
}

// -(1 - different n-grams / n-grams) of words or tokens; 0 for fewer than n (Yeo et al. 2025,
// arXiv:2502.03373).
class RepetitionReward : public Reward {
 public:
  size_t n = 3;
  bool counts_tokens = false;

  double lower_bound() const override { return -1; }
  double upper_bound() const override { return 0; }

  std::vector<RewardPart> score_batch(std::span<const Group> groups) const override {
    std::vector<RewardPart> parts;
    for (const Group& group : groups) {
      for (const data::Trajectory& trajectory : group.trajectories) {
        const std::vector<uint64_t> items = items_of(trajectory);
        RewardPart& part = parts.emplace_back();
        if (items.size() < n) continue;
        const size_t num_grams = items.size() - n + 1;
        // Open addressing, at most half full: hashes stand for the n-grams.
        size_t capacity = 16;
        while (capacity < 2 * num_grams) capacity *= 2;
        std::vector<uint64_t> table(capacity, 0);
        size_t num_different = 0;
        for (size_t i = 0; i < num_grams; ++i) {
          uint64_t hash = 0;
          for (size_t j = 0; j < n; ++j) hash = mixed(hash + items[i + j] + 1);
          if (hash == 0) hash = 1;
          size_t at = mixed(hash) & (capacity - 1);
          while (table[at] != 0 && table[at] != hash) at = (at + 1) & (capacity - 1);
          num_different += table[at] == 0 ? 1 : 0;
          table[at] = hash;
        }
        part.score = -(1 - static_cast<double>(num_different) / static_cast<double>(num_grams));
        part.detail = fmt::format("{} of {} {}-grams are different", num_different, num_grams, n);
      }
    }
    return parts;
  }

 private:
  std::vector<uint64_t> items_of(const data::Trajectory& trajectory) const {
    std::vector<uint64_t> items;
    if (counts_tokens) {
      // What a tool wrote twice is no repetition of the model's.
      auto observation = trajectory.observations.begin();
      const auto response =
          std::span(trajectory.token_ids).subspan(static_cast<size_t>(trajectory.prompt_length));
      for (size_t i = 0; i < response.size(); ++i) {
        if (observation != trajectory.observations.end() &&
            i == static_cast<size_t>(observation->begin)) {
          i = static_cast<size_t>(observation++->end) - 1;
          continue;
        }
        items.push_back(static_cast<uint64_t>(response[i]));
      }
    } else {
      for (const std::string_view word : fields_of(trajectory.text)) {
        uint64_t hash = 14695981039346656037ull;  // FNV-1a
        for (const char c : word) hash = (hash ^ static_cast<uint8_t>(c)) * 1099511628211ull;
        items.push_back(hash);
      }
    }
    return items;
  }
};

}  // namespace

Result<std::unique_ptr<Reward>> make_length_reward(const RewardOptions& options) {
  auto reward = std::make_unique<LengthReward>();
  int shape = 0, unit = 0;
  OptionReader reader("length", options);
  reader.choice("shape", {"overlong", "cosine", "group"}, shape);
  reader.choice("unit", {"tokens", "characters"}, unit);
  reader.number("max", 1, 1e9, reward->max);
  reader.number("buffer", 1, 1e9, reward->buffer);
  reader.number("short", -1e6, 1e6, reward->at_zero);
  reader.number("long", -1e6, 1e6, reward->at_max);
  GRADUS_RETURN_IF_ERROR(reader.finish());
  reward->shape = static_cast<Shape>(shape);
  reward->counts_tokens = unit == 0;
  if (reward->shape != Shape::kGroup && reward->max == 0) {
    return invalid_argument("reward length: max: is missing; expected the length to stay below");
  }
  if (reward->buffer == 0) reward->buffer = reward->max / 4;
  if (reward->buffer > reward->max) {
    return invalid_argument("reward length: buffer: is {}; expected at most max, {}",
                            reward->buffer, reward->max);
  }
  return std::unique_ptr<Reward>(std::move(reward));
}

Result<std::unique_ptr<Reward>> make_repetition_reward(const RewardOptions& options) {
  auto reward = std::make_unique<RepetitionReward>();
  double n = 3;
  int unit = 0;
  OptionReader reader("repetition", options);
  reader.number("n", 1, 100, n);
  reader.choice("unit", {"words", "tokens"}, unit);
  GRADUS_RETURN_IF_ERROR(reader.finish());
  reward->n = static_cast<size_t>(n);
  reward->counts_tokens = unit == 1;
  return std::unique_ptr<Reward>(std::move(reward));
}

}  // namespace gradus::rewards
