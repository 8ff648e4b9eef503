// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/registry.h"
#include "data/reward_types.h"
#include "data/types.h"

namespace gradus {
class Metrics;
}

// A reward looks at the responses to a prompt and gives each a score. All samples of a prompt come
// together, so that a reward may compare siblings; those here judge each response by itself.
//
// To add one: a class in its own file, a line in register_builtin_rewards(), options read with
// OptionReader (rewards/options.h); the contract test then runs on it.
namespace gradus::rewards {

using data::RewardStatus;

// A prompt with the responses to judge: `text` and `finish_reason` of each trajectory. Views: the
// owner keeps them alive during the call.
struct Group {
  const data::Prompt* prompt = nullptr;
  std::span<const data::Trajectory> trajectories;
};

struct RewardPart {
  double score = 0;  // within the reward's bounds; only with kOk
  RewardStatus status = RewardStatus::kOk;
  std::string detail{};  // for people: why not full marks, or why no score
  std::string
      answer{};  // what was taken for the answer, normalised; equal answers have equal texts
};

// Which rewards one call may serve together, see Reward::score_pack().
struct PackRule {
  std::string key;  // of one kind of reward; equal keys may be packed; empty: never
  size_t most = 1;  // rewards of a call
};

// A response without an answer, or with a wrong one, is a score (of 0); what could not be judged is
// a status.
class Reward {
 public:
  virtual ~Reward() = default;

  // Reads what scoring needs beyond the options, such as the weights of a model: once, before the
  // first score_batch. What the options say is checked where the reward is made.
  virtual Status load() { return {}; }
  // Bytes that load() and scoring take, from the options alone: for plans.
  virtual int64_t planned_bytes() const { return 0; }

  // One part per trajectory, group by group. Must stand empty responses and ones of 10 MB (time
  // linear in the text). Thread-safe. Unless compares_siblings(), a group may come in pieces, as
  // its responses are finished, and no part may depend on what else is in the call.
  virtual std::vector<RewardPart> score_batch(std::span<const Group> groups) const = 0;

  virtual PackRule pack_rule() const { return {}; }
  // What each of `pack` says, by reward and trajectory as score_batch gives it. This reward is the
  // first of them, and all have its key. Only called where that is not empty. Thread-safe.
  virtual std::vector<std::vector<RewardPart>> score_pack(std::span<const Reward* const> pack,
                                                          std::span<const Group> groups) const;

  // Adds what the reward has used of others' services since the last call, by rewards that share
  // it once. Thread-safe.
  virtual void add_usage(Metrics&) const {}

  // Whether the ground truth of a prompt can be judged against: called on data before training
  // starts.
  virtual Status check_ground_truth(const data::Prompt&) const { return {}; }

  // More than a part's detail, for `gradus reward explain`: one line, or nothing.
  virtual std::string explain(const data::Prompt&, const data::Trajectory&) const { return ""; }

  // Whether a score depends on the other responses of the group: then groups come whole.
  virtual bool compares_siblings() const { return false; }
  // Whether the same response always gets the same part, so that a run repeats bit for bit.
  virtual bool is_deterministic() const { return true; }
  virtual double lower_bound() const { return 0; }
  virtual double upper_bound() const { return 1; }
};

// Options by name, as they stand in YAML or on the command line.
using RewardOptions = std::map<std::string, std::string>;
using RewardRegistry = Registry<Reward, const RewardOptions&>;

// All that are built in (docs/rewards.md).
void register_builtin_rewards(RewardRegistry& registry);

// Soft punishment of over-long responses (Yu et al. 2025, DAPO, arXiv:2503.14476, Eq. 13), to be
// added to the reward: 0 up to max_length - buffer tokens, then linear, -factor at max_length.
// Beyond that it goes on falling, as verl's does, unless `is_capped`. buffer >= 1.
double overlong_penalty(int64_t length_tokens, int64_t max_length_tokens, int64_t buffer_tokens,
                        double factor, bool is_capped);

}  // namespace gradus::rewards
