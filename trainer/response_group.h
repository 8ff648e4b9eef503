// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "data/packing.h"
#include "records/rollout_dump.h"
#include "trainer/algorithm.h"
#include "trainer/trainer_config.h"

// The responses of a step on their way from rewards to a loss.
namespace gradus::trainer {

// A prompt's responses; the records carry reward and advantage. The vectors by record have one
// value per response token, or none for a response that does not take part.
struct ResponseGroup {
  std::vector<records::RolloutRecord> records;
  std::optional<double> greedy_reward;           // of the greedy response, for remax
  std::vector<std::vector<float>> old_logprobs;  // lo; as a whole empty: what was recorded
  std::vector<std::vector<double>> penalties;    // taken from the reward; as a whole empty: none
  std::vector<std::vector<double>> values;       // of a critic, for gae; as a whole empty: none
  std::vector<std::vector<double>> advantages;   // A
  std::vector<std::vector<double>> returns;      // what a critic learns; of gae alone
};

// Whether a response is in the loss: scored, not empty, and not one that mask_truncated leaves out.
bool takes_part(const records::RolloutRecord& record, const AlgorithmConfig& config);

// Whether the first part of the reward that applies gave full marks.
bool is_correct(const records::RolloutRecord& record);

// Whether the rewards of a group's scored responses are all equal; of one alone, whether it is 0.
bool is_flat(const ResponseGroup& group);

// The responses that take part, with their prompt; no responses if none does.
data::PackGroup pack_of(const ResponseGroup& group, const AlgorithmConfig& config);

// The numbers of a group's responses from `at` on, which moves past them; none for those that do
// not take part.
std::vector<std::vector<float>> split_tokens(const ResponseGroup& group,
                                             const AlgorithmConfig& config,
                                             std::span<const float> numbers, size_t& at);

// The packs of a mini-batch, and what is in them. Views of the groups.
struct PackedGroups {
  std::vector<data::PackGroup> packs;
  std::vector<const ResponseGroup*> groups;              // of each pack
  std::vector<const records::RolloutRecord*> sequences;  // the responses, in the order of packs
  std::vector<int64_t> first_sequence = {0};             // of each pack, and their number
};
PackedGroups packed_groups(std::span<const ResponseGroup> groups, const AlgorithmConfig& config);

// "prompt 5, sample 1"; of no group (-1) "the sum over the batch".
std::string place_of(const records::RolloutRecord& record);
std::string place_of(const PackedGroups& packed, int64_t pack, int64_t response);

// Sets the advantages of all responses of a step, and those of the records to their means. Rewards
// are finite or, of responses without a score, NaN.
void set_advantages(const Algorithm& algorithm, const TrainerConfig& config,
                    std::span<ResponseGroup> groups);

// Multiplies the advantages of a group's tokens and responses. A factor above 0 of the whole group
// keeps what it is compared with, and commutes with clipping: min(w a, w b) = w min(a, b).
void scale_advantages(ResponseGroup& group, double factor);

// The responses that take part. `seed` and the ids of a response are the key of its random choices.
MiniBatch mini_batch_of(std::span<const ResponseGroup> groups, const AlgorithmConfig& config,
                        uint64_t seed);

}  // namespace gradus::trainer
