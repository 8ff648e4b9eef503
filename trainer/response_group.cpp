// SPDX-License-Identifier: Apache-2.0
#include "trainer/response_group.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "common/rng.h"

namespace gradus::trainer {
namespace {

bool is_scored(const records::RolloutRecord& record) { return !std::isnan(record.reward); }

// Parts for gdpo: as they came, without weights, and the over-long penalty as one more.
void add_parts(const records::RolloutRecord& record, const TrainerConfig& config,
               ScoredSequence& sequence) {
  double sum = 0;
  for (const records::RewardPartRecord& part : record.parts) {
    const bool applies = part.status == "ok";
    sequence.reward_parts.push_back(applies ? part.raw : std::nan(""));
    sequence.part_weights.push_back(part.weight);
    if (applies) sum += part.weighted;
  }
  if (config.overlong_buffer_tokens > 0 && config.overlong_penalty > 0) {
    sequence.reward_parts.push_back((record.reward - sum) / config.overlong_penalty);
    sequence.part_weights.push_back(config.overlong_penalty);
  }
}

}  // namespace

bool takes_part(const records::RolloutRecord& record, const AlgorithmConfig& config) {
  const data::Trajectory& trajectory = record.trajectory;
  const bool is_truncated = trajectory.finish_reason == data::FinishReason::kLength;
  return is_scored(record) && !trajectory.behavior_logprobs.empty() &&
         !(config.mask_truncated && is_truncated);
}

bool is_correct(const records::RolloutRecord& record) {
  const auto part =
      std::find_if(record.parts.begin(), record.parts.end(),
                   [](const auto& candidate) { return candidate.status != "not_applicable"; });
  return part != record.parts.end() && part->status == "ok" && part->raw >= 1.0;
}

bool is_flat(const ResponseGroup& group) {
  std::vector<double> rewards;
  for (const records::RolloutRecord& record : group.records) {
    if (is_scored(record)) rewards.push_back(record.reward);
  }
  if (rewards.size() == 1) return rewards[0] == 0;
  return std::all_of(rewards.begin(), rewards.end(), [&](double r) { return r == rewards[0]; });
}

data::PackGroup pack_of(const ResponseGroup& group, const AlgorithmConfig& config) {
  data::PackGroup pack;
  for (const records::RolloutRecord& record : group.records) {
    if (!takes_part(record, config)) continue;
    const data::Trajectory& trajectory = record.trajectory;
    const auto split = trajectory.token_ids.begin() + trajectory.prompt_length;
    if (pack.prompt.empty()) pack.prompt.assign(trajectory.token_ids.begin(), split);
    pack.responses.emplace_back(split, trajectory.token_ids.end());
    pack.observations.push_back(trajectory.observations);
  }
  return pack;
}

std::vector<std::vector<float>> split_tokens(const ResponseGroup& group,
                                             const AlgorithmConfig& config,
                                             std::span<const float> numbers, size_t& at) {
  std::vector<std::vector<float>> by_record;
  for (const records::RolloutRecord& record : group.records) {
    const size_t length =
        takes_part(record, config) ? record.trajectory.behavior_logprobs.size() : 0;
    const std::span<const float> own = numbers.subspan(at, length);
    by_record.emplace_back(own.begin(), own.end());
    at += length;
  }
  return by_record;
}

PackedGroups packed_groups(std::span<const ResponseGroup> groups, const AlgorithmConfig& config) {
  PackedGroups packed;
  for (const ResponseGroup& group : groups) {
    data::PackGroup pack = pack_of(group, config);
    if (pack.responses.empty()) continue;
    packed.packs.push_back(std::move(pack));
    packed.groups.push_back(&group);
    for (const records::RolloutRecord& record : group.records) {
      if (takes_part(record, config)) packed.sequences.push_back(&record);
    }
    packed.first_sequence.push_back(static_cast<int64_t>(packed.sequences.size()));
  }
  return packed;
}

std::string place_of(const records::RolloutRecord& record) {
  const data::RequestId& id = record.trajectory.id;
  return fmt::format("prompt {}, sample {}", id.prompt_id, id.sample_index);
}

std::string place_of(const PackedGroups& packed, int64_t pack, int64_t response) {
  if (pack < 0) return "the sum over the batch";
  const int64_t first = packed.first_sequence[static_cast<size_t>(pack)];
  return place_of(*packed.sequences[static_cast<size_t>(first + response)]);
}

void set_advantages(const Algorithm& algorithm, const TrainerConfig& config,
                    std::span<ResponseGroup> groups) {
  struct Place {
    ResponseGroup* group;
    size_t record;
  };
  std::vector<ScoredSequence> sequences;
  std::vector<Place> places;
  for (size_t g = 0; g < groups.size(); ++g) {
    ResponseGroup& group = groups[g];
    group.advantages.assign(group.records.size(), {});
    group.returns.assign(group.records.size(), {});
    for (size_t i = 0; i < group.records.size(); ++i) {
      const records::RolloutRecord& record = group.records[i];
      if (!is_scored(record)) continue;
      ScoredSequence sequence;
      sequence.group = static_cast<int64_t>(g);
      sequence.reward = record.reward;
      sequence.greedy_reward = group.greedy_reward;
      add_parts(record, config, sequence);
      if (takes_part(record, algorithm.config)) {
        sequence.num_tokens = static_cast<int64_t>(record.trajectory.behavior_logprobs.size());
        if (!group.penalties.empty()) sequence.penalties = group.penalties[i];
        if (!group.values.empty()) sequence.values = group.values[i];
      }
      sequences.push_back(std::move(sequence));
      places.push_back({&group, i});
    }
  }
  const Advantages advantages = algorithm.advantage->estimate(sequences);
  const auto of_sequence = [&](const std::vector<double>& values, size_t s) {
    return std::vector<double>(values.begin() + advantages.sequence_begin[s],
                               values.begin() + advantages.sequence_begin[s + 1]);
  };
  for (size_t s = 0; s < places.size(); ++s) {
    const std::vector<double> of_tokens = of_sequence(advantages.tokens, s);
    if (of_tokens.empty()) continue;
    const bool is_one_number = std::all_of(of_tokens.begin(), of_tokens.end(),
                                           [&](double a) { return a == of_tokens[0]; });
    const double sum = std::accumulate(of_tokens.begin(), of_tokens.end(), 0.0);
    ResponseGroup& group = *places[s].group;
    group.records[places[s].record].advantage =
        is_one_number ? of_tokens[0] : sum / static_cast<double>(of_tokens.size());
    group.advantages[places[s].record] = of_tokens;
    if (!advantages.returns.empty()) {
      group.returns[places[s].record] = of_sequence(advantages.returns, s);
    }
  }
}

void scale_advantages(ResponseGroup& group, double factor) {
  if (factor == 1) return;
  for (std::vector<double>& tokens : group.advantages) {
    for (double& advantage : tokens) advantage *= factor;
  }
  for (records::RolloutRecord& record : group.records) record.advantage *= factor;
}

MiniBatch mini_batch_of(std::span<const ResponseGroup> groups, const AlgorithmConfig& config,
                        uint64_t seed) {
  MiniBatch batch;
  for (const ResponseGroup& group : groups) {
    for (size_t i = 0; i < group.records.size(); ++i) {
      const records::RolloutRecord& record = group.records[i];
      if (!takes_part(record, config)) continue;
      const data::Trajectory& trajectory = record.trajectory;
      const std::vector<float>& behavior = trajectory.behavior_logprobs;
      const std::vector<float>& old = group.old_logprobs.empty() ? behavior : group.old_logprobs[i];
      batch.sequence_keys.push_back(hash64(
          {seed, trajectory.id.prompt_id, static_cast<uint64_t>(trajectory.id.sample_index)}));
      batch.advantages.insert(batch.advantages.end(), group.advantages[i].begin(),
                              group.advantages[i].end());
      batch.behavior_logprobs.insert(batch.behavior_logprobs.end(), behavior.begin(),
                                     behavior.end());
      batch.old_logprobs.insert(batch.old_logprobs.end(), old.begin(), old.end());
      batch.sequence_begin.push_back(static_cast<int64_t>(batch.advantages.size()));
    }
  }
  return batch;
}

}  // namespace gradus::trainer
