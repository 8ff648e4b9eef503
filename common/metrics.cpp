// SPDX-License-Identifier: Apache-2.0
#include "common/metrics.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/check.h"
#include "common/strings.h"

namespace gradus {
namespace {

constexpr MetricReduction kMean = MetricReduction::kMean;
constexpr MetricReduction kSum = MetricReduction::kSum;
constexpr MetricReduction kMax = MetricReduction::kMax;
constexpr MetricReduction kMin = MetricReduction::kMin;
constexpr MetricReduction kLast = MetricReduction::kLast;

constexpr MetricInfo kMetrics[] = {
    {"training/global_step", "steps", kLast, "step that the line belongs to; the first is 1"},
    {"training/epoch", "1", kLast, "passes over the training rows so far"},
    {"training/num_updates", "updates", kSum, "optimizer updates of the step"},
    {"training/skipped_updates", "updates", kSum,
     "updates left out because the gradient was not finite or no token had a loss"},
    {"training/nonfinite_updates", "updates", kSum,
     "updates left out because the gradient was not finite, of policy or critic; three in a row "
     "end "
     "the run"},

    {"federated/accuracy", "1", kLast, "of the global model on the held-out rows"},
    {"federated/test_loss", "nats", kLast, "of the global model on the held-out rows"},
    {"federated/train_loss", "nats", kLast, "mean over the clients of their training loss"},
    {"federated/updates", "updates", kSum, "updates that the round's step was made of"},
    {"federated/refused", "updates", kSum, "updates that were not finite, too large or malformed"},
    {"federated/refused/<cause>", "updates", kSum,
     "of those: shape, norm, not_finite, replay, version, report or mismatch, where any was"},
    {"federated/dropped", "clients", kSum, "clients that were chosen and sent nothing"},
    {"federated/late", "clients", kSum, "clients that the round did not wait for"},
    {"federated/skipped_rounds", "rounds", kSum, "rounds with too few updates for a step"},
    {"federated/clock_s", "s", kLast, "simulated time since the start"},
    {"federated/epsilon", "1", kLast, "privacy spent at federated.privacy.delta"},
    {"federated/client_lr", "1", kLast, "learning rate of the clients"},
    {"federated/flood_weight", "1", kLast, "weight of samples that FLood flags, W(t)"},
    {"federated/update_norm", "1", kLast, "mean norm of the clients' updates"},
    {"federated/step_norm", "1", kLast, "norm of the server's step"},
    {"federated/staleness", "versions", kLast, "mean age of the models that updates began from"},
    {"federated/weights/min", "1", kLast, "smallest weight of an update"},
    {"federated/weights/max", "1", kLast, "largest weight of an update"},
    {"federated/weights/effective_clients", "clients", kLast,
     "(sum w)^2 / sum w^2 over the round's updates"},
    {"federated/score/min", "1", kLast, "smallest mean score of a client"},
    {"federated/score/p25", "1", kLast, "lower quartile of the clients' mean scores"},
    {"federated/score/median", "1", kLast, "median of the clients' mean scores"},
    {"federated/score/p75", "1", kLast, "upper quartile of the clients' mean scores"},
    {"federated/score/max", "1", kLast, "largest mean score of a client"},
    {"federated/upload_bytes", "bytes", kSum, "fp32 payloads of the clients whose updates count"},
    {"federated/without_signal", "clients", kSum,
     "clients whose groups all had equal rewards: nothing to send"},
    {"federated/flagged_fraction", "1", kMean, "groups with signal that FLood flags"},
    {"federated/group_weight_ess", "1", kMean,
     "(sum w)^2 / (n sum w^2) of the weights of a step's n groups with signal"},
    {"federated/client/<k>/weight", "1", kLast, "weight of the update of client k"},
    {"federated/client/<k>/score", "1", kLast, "mean score of the groups of client k"},
    {"federated/client/<k>/reward", "1", kLast, "mean reward of client k over the round"},
    {"federated/client_rounds_per_s", "clients/s", kLast,
     "clients trained and aggregated per second of real time"},

    {"critic/score/mean", "1", kMean, "total reward of a response before shaping and KL"},
    {"critic/score/max", "1", kMax, "largest critic/score"},
    {"critic/score/min", "1", kMin, "smallest critic/score"},
    {"critic/rewards/mean", "1", kMean, "reward that the advantage is computed from"},
    {"critic/rewards/max", "1", kMax, "largest critic/rewards"},
    {"critic/rewards/min", "1", kMin, "smallest critic/rewards"},
    {"critic/advantages/mean", "1", kMean, "advantage over the loss tokens"},
    {"critic/advantages/max", "1", kMax, "largest advantage"},
    {"critic/advantages/min", "1", kMin, "smallest advantage"},
    {"critic/values/mean", "1", kMean, "value of the critic before a loss token, at step start"},
    {"critic/values/max", "1", kMax, "largest critic/values"},
    {"critic/values/min", "1", kMin, "smallest critic/values"},
    {"critic/returns/mean", "1", kMean, "return of a loss token, what the critic learns"},
    {"critic/returns/max", "1", kMax, "largest critic/returns"},
    {"critic/returns/min", "1", kMin, "smallest critic/returns"},
    {"critic/vf_explained_var", "1", kLast,
     "share of the variance of the returns that the values at step start explain"},
    {"critic/vf_loss", "1", kMean, "value loss of an update of the critic"},
    {"critic/vf_clipfrac", "1", kMean, "loss tokens whose value the clip held"},
    {"critic/vpred_mean", "1", kMean, "value of a loss token in an update of the critic"},
    {"critic/grad_norm", "1", kMean, "norm of the critic's gradient before it is clipped"},
    {"critic/lr", "1", kLast, "learning rate of the critic"},

    {"reward/<part>/mean", "1", kMean, "unweighted value of one part over the responses it scored"},
    {"reward/<part>/failed_fraction", "1", kMean, "responses whose check by this part failed"},
    {"reward/<part>/not_applicable_fraction", "1", kMean,
     "responses to which this part does not apply"},
    {"reward/<part>/retries", "1", kSum,
     "further calls of this part for responses on which it timed out or broke"},
    {"perf/reward_busy_s", "s", kSum, "time in the rewards, over all threads that score"},
    {"perf/reward_hidden_fraction", "1", kMean,
     "share of perf/reward_busy_s that passed while responses were sampled: 1 - waiting / busy"},
    {"perf/eval_reward_busy_s", "s", kSum, "perf/reward_busy_s of an evaluation"},
    {"perf/eval_reward_hidden_fraction", "1", kMean,
     "perf/reward_hidden_fraction of an evaluation"},
    {"perf/judge_requests", "1", kSum, "requests to judges, with those that were made again"},
    {"perf/judge_retries", "1", kSum, "of these, the requests that were made again"},
    {"perf/judge_cache_hits", "1", kSum, "verdicts of judges that their cache had"},
    {"perf/judge_tokens", "tokens", kSum, "tokens that judges' servers reported"},
    {"rubric/easy_mean", "1", kLast, "mean of the easy stratum over the responses of the step"},
    {"rubric/hard_mean", "1", kLast, "the same of the hard stratum"},
    {"rubric/lambda", "1", kLast, "weight of the hard stratum in the step"},
    {"rubric/start_step", "1", kLast, "step at which the ramp was opened; -1 before"},
    {"rubric/fallback_groups", "1", kLast,
     "groups that a failed criterion made fall back to the answer alone"},
    {"reward/skipped_fraction", "1", kMean,
     "responses left out of the update because a check failed (reward.on_error)"},

    {"response_length/mean", "tokens", kMean,
     "sampled response tokens, stop token included, observations of tools not"},
    {"response_length/max", "tokens", kMax, "longest response"},
    {"response_length/min", "tokens", kMin, "shortest response"},
    {"response_length/correct", "tokens", kMean, "response tokens of correct responses"},
    {"response_length/incorrect", "tokens", kMean,
     "response tokens of the others that were scored"},
    {"response_length/clip_ratio", "1", kMean, "responses as long as rollout.max_new_tokens"},
    {"prompt_length/mean", "tokens", kMean, "prompt tokens, template included"},
    {"prompt_length/max", "tokens", kMax, "longest prompt"},
    {"prompt_length/min", "tokens", kMin, "shortest prompt"},
    {"global_seqlen/mean", "tokens", kMean, "prompt and response tokens of a rank"},
    {"global_seqlen/max", "tokens", kMax, "tokens of the rank that has most"},
    {"global_seqlen/min", "tokens", kMin, "tokens of the rank that has fewest"},

    {"rollout/num_responses", "responses", kSum, "responses sampled, replaced groups included"},
    {"rollout/truncated_fraction", "1", kMean, "responses that ended by length, not by a stop"},
    {"rollout/zero_variance_group_fraction", "1", kMean,
     "groups whose rewards are all equal, so that they teach nothing"},
    {"rollout/sampling_rounds", "rounds", kLast, "rollout rounds that dynamic sampling needed"},
    {"rollout/dropped_groups", "groups", kSum, "groups that dynamic sampling threw away"},
    {"rollout/tokens_per_s", "tokens/s", kSum, "response tokens sampled per second of rollout"},
    {"rollout/busy_s", "s", kMax, "seconds that a rollout rank sampled, at most (split and async)"},
    {"rollout/lost_ranks", "ranks", kLast, "rollout ranks that have died"},
    {"rollout/longest_tokens_per_s", "tokens/s", kLast,
     "speed of the longest response, which the rollout waits for"},
    {"rollout/preemptions", "sequences", kSum, "sequences put back because the cache was full"},
    {"rollout/prefix_cache_hit_fraction", "1", kMean,
     "prompt tokens served from another sample of the group"},
    {"rollout/policy_lag", "updates", kMax, "updates between sampling and training, at most"},

    {"tools/calls_per_response", "calls", kMean, "calls of tools that a response made"},
    {"tools/observation_tokens", "tokens", kMean, "tokens that tools wrote into a response"},
    {"tools/limit_fraction", "1", kMean,
     "responses that ended because they called when no call was left"},
    {"tools/wait_s", "s", kSum,
     "time in which a rank had nothing to decode, since all responses waited for tools"},
    {"tools/<tool>/calls", "calls", kSum, "calls of the tool"},
    {"tools/<tool>/invalid", "calls", kSum, "calls that the tool could not understand"},
    {"tools/<tool>/errors", "calls", kSum, "calls that the tool failed at"},
    {"tools/<tool>/timeouts", "calls", kSum, "calls that took longer than rollout.tool_seconds"},
    {"tools/<tool>/cut", "calls", kSum,
     "calls whose answer was longer than rollout.max_observation_tokens"},

    {"mismatch/max_abs_logprob", "nats", kMax,
     "largest difference of a token's log-prob between trainer and rollout at step start; not 0 "
     "is a bug"},
    {"mismatch/max_abs_value", "1", kMax,
     "largest difference of a token's value between the critic's first update of a step and step "
     "start; not 0 is a bug"},

    {"rollout_corr/kl", "nats", kMean,
     "mean of behaviour minus old log-prob; 0 for responses of the weights at hand"},
    {"rollout_corr/k3_kl", "nats", kMean, "the same by the estimator k3"},
    {"rollout_corr/training_ppl", "1", kMean, "perplexity of responses under the old policy"},
    {"rollout_corr/rollout_ppl", "1", kMean, "perplexity of responses when they were sampled"},
    {"rollout_corr/log_ppl_diff", "nats", kMean, "mean over responses of the log-ratio of the two"},
    {"rollout_corr/chi2_token", "1", kMean, "mean squared ratio of a token, minus 1"},
    {"rollout_corr/chi2_seq", "1", kMean, "mean squared ratio of a response, minus 1"},
    {"rollout_corr/rollout_is_mean", "1", kMean, "mean weight of a loss token"},
    {"rollout_corr/rollout_is_eff_sample_size", "1", kMean,
     "effective share of the loss tokens under their weights"},
    {"rollout_corr/rollout_rs_masked_fraction", "1", kMean, "loss tokens of weight 0"},

    {"actor/loss", "1", kMean, "whole loss of the update"},
    {"actor/pg_loss", "1", kMean, "policy gradient term of the loss"},
    {"actor/pg_clipfrac", "1", kMean, "loss tokens whose ratio was clipped"},
    {"actor/pg_clipfrac_lower", "1", kMean, "loss tokens held by the dual clip"},
    {"clip_ratio/low_mean", "1", kMean, "loss tokens whose ratio the lower clip held"},
    {"clip_ratio/high_mean", "1", kMean, "loss tokens whose ratio the upper clip held"},
    {"actor/ratio_min", "1", kMin, "smallest ratio of new to old probability of a loss token"},
    {"actor/ratio_max", "1", kMax, "largest ratio of new to old probability of a loss token"},
    {"actor/ppo_kl", "nats", kMean, "mean of old minus new log-prob over the loss tokens"},
    {"actor/kl_loss", "nats", kMean, "KL estimate against the initial model"},
    {"actor/kl_coef", "1", kLast, "weight of actor/kl_loss"},
    {"actor/reward_kl_penalty", "nats", kLast,
     "KL estimate against the initial model that is taken from the reward, mean over responses"},
    {"actor/reward_kl_penalty_coeff", "1", kLast, "weight of actor/reward_kl_penalty"},
    {"actor/entropy_correct", "nats", kMean, "actor/entropy over tokens of correct responses"},
    {"actor/entropy_incorrect", "nats", kMean, "actor/entropy over tokens of the others"},
    {"actor/entropy", "nats", kMean, "entropy of the token distribution over the loss tokens"},
    {"actor/grad_norm", "1", kMean, "norm of the gradient before it is clipped"},
    {"actor/lr", "1", kLast, "learning rate"},

    {"train/loss", "nats", kMean,
     "supervised: mean negative log-prob of the target tokens; on preferences: mean loss of a "
     "pair"},
    {"train/grad_norm", "1", kMean,
     "supervised and on preferences: norm of the gradient before it is clipped"},
    {"train/lr", "1", kLast, "supervised and on preferences: learning rate"},
    {"val/loss", "nats", kMean, "train/loss on held-out rows"},
    {"rewards/chosen", "1", kMean,
     "score of the preferred response; under DPO beta times its log-prob above the reference's"},
    {"rewards/rejected", "1", kMean, "the same of the other response"},
    {"rewards/margins", "1", kMean, "rewards/chosen minus rewards/rejected"},
    {"rewards/accuracies", "1", kMean, "pairs whose preferred response has the larger reward"},
    {"logps/chosen", "nats", kMean, "log-prob of the whole preferred response"},
    {"logps/rejected", "nats", kMean, "the same of the other response"},
    {"val/rewards/<name>", "1", kMean, "rewards/<name> on held-out pairs"},
    {"val/logps/<name>", "nats", kMean, "logps/<name> on held-out pairs"},

    {"harr/reward", "1", kMean, "retriever: reward of a trajectory of searches"},
    {"harr/em", "1", kMean, "retriever: sampled answers that match exactly"},
    {"harr/f1", "1", kMean, "retriever: F1 of the sampled answers"},
    {"harr/searches", "searches", kMean, "retriever: searches of a trajectory"},
    {"harr/recall", "1", kMean, "retriever: searches whose passage is in the sampled list"},
    {"harr/recall_elliptical", "1", kMean,
     "retriever: the same of searches that do not name what they ask about"},
    {"harr/mixed_groups", "1", kMean, "retriever: questions whose trajectories differ in reward"},
    {"harr/temperature", "1", kLast, "retriever: temperature that lists are drawn at"},
    {"harr/steps", "searches", kSum, "retriever: searches that the update was made from"},
    {"harr/objective", "1", kLast, "retriever: clipped objective before the update"},
    {"harr/max_abs_log_ratio", "nats", kMax,
     "retriever: largest distance of a list's log-probability from the recorded one before the "
     "update; 0"},
    {"harr/grad_norm", "1", kLast, "retriever, with joint: norm of its gradient"},
    {"harr/clip_fraction", "1", kMean, "retriever: searches whose ratio was clipped"},
    {"harr/effective_documents", "documents", kMean,
     "retriever: exp of the entropy of a list's first draw"},
    {"val/harr/<name>", "1", kLast,
     "retriever, greedy on data.eval: em, f1, recall, recall_elliptical as above, chain_recall: "
     "questions all of whose searches found their passage"},

    {"val-core/<source>/acc/mean@<n>", "1", kLast, "mean accuracy over n responses to a problem"},
    {"val-core/<source>/acc/best@<n>", "1", kLast,
     "problems solved by one of n responses (pass@n)"},
    {"val-core/<source>/acc/maj@<n>", "1", kLast, "problems solved by the vote of n responses"},
    {"val-core/<source>/acc/mean@<n>/low", "1", kLast, "lower end of the 95 % interval of mean@n"},
    {"val-core/<source>/acc/mean@<n>/high", "1", kLast, "upper end of the 95 % interval of mean@n"},
    {"val-aux/<source>/response_length/mean", "tokens", kLast, "response tokens in evaluation"},
    {"val-aux/<source>/truncated_fraction", "1", kLast, "evaluation responses ended by length"},
    {"val-aux/<source>/num_problems", "problems", kLast, "problems evaluated"},

    {"perf/total_num_tokens", "tokens", kSum, "prompt and response tokens trained on in the step"},
    {"perf/time_per_step", "s", kMax, "wall time of the step"},
    {"perf/throughput", "tokens/s", kMean, "perf/total_num_tokens per second and rank"},
    {"perf/cpu_memory_used_gb", "GiB", kMax, "resident memory of a rank"},
    {"perf/cpu_memory_peak_gb", "GiB", kMax, "peak resident memory of a rank so far"},
    {"perf/max_memory_allocated_gb", "GiB", kMax, "most memory taken on the GPU of a rank so far"},

    {"perf/imbalance/gen", "1", kLast, "sampling time of the slowest rank over the mean rank's"},
    {"perf/imbalance/update_actor", "1", kLast,
     "time for forward and backward of the slowest rank over the mean rank's"},
    {"perf/rank_idle_fraction", "1", kLast,
     "of the time from the start of sampling to the end of backward, what ranks wait for the "
     "slowest"},
    {"perf/tail_idle_fraction", "1", kLast,
     "places of the decoding batch, by time, that are empty since no response is left to start"},

    {"timing_s/step", "s", kMax,
     "whole step, from the end of the step before; the phases below are those of rank 0 and add up "
     "to it"},
    {"timing_s/gen", "s", kMax, "sampling of responses"},
    {"timing_s/clients", "s", kMax, "a federated round's clients of this rank, all they do"},
    {"timing_s/reward", "s", kMax, "scoring of responses"},
    {"timing_s/exchange", "s", kMax,
     "trajectories between ranks, with the wait for the slowest rank"},
    {"timing_s/load_rollouts", "s", kMax, "reading of rollouts instead of sampling"},
    {"timing_s/hash_weights", "s", kMax, "hash of the weights that the rollouts carry"},
    {"timing_s/ref", "s", kMax, "log-probs of the initial model"},
    {"timing_s/values", "s", kMax, "values of the critic at step start"},
    {"timing_s/update_critic", "s", kMax, "forward, backward and optimizer of the critic"},
    {"timing_s/adv", "s", kMax, "advantages, checks and metrics of the responses"},
    {"timing_s/update_actor", "s", kMax, "forward, backward and optimizer"},
    {"timing_s/update_weights", "s", kMax, "handing new weights to the rollout engine"},
    {"timing_s/testing", "s", kMax, "evaluation"},
    {"timing_s/save_checkpoint", "s", kMax,
     "of the step before: copying the state for a checkpoint, with the wait for the last one"},
    {"timing_s/write_metrics", "s", kMax,
     "of the step before: its line of metrics and the display"},
    {"timing_s/other", "s", kMax, "what the other phases leave of the step"},
    {"timing_s/dump_rollouts", "s", kMax, "writing of rollouts"},
    {"timing_per_token_ms/gen", "ms", kMean, "timing_s/gen per response token"},
    {"timing_per_token_ms/update_actor", "ms", kMean, "timing_s/update_actor per token"},
};

bool is_pattern(std::string_view name) { return name.find('<') != std::string_view::npos; }

// Whether `name` is `pattern` with each <placeholder> replaced by a text of at least one character.
bool matches(std::string_view pattern, std::string_view name) {
  const size_t open = pattern.find('<');
  if (open == std::string_view::npos) return pattern == name;
  if (name.substr(0, open) != pattern.substr(0, open)) return false;
  const std::string_view rest = pattern.substr(pattern.find('>') + 1);
  for (size_t end = open + 1; end <= name.size(); ++end) {
    if (matches(rest, name.substr(end))) return true;
  }
  return false;
}

// NaN if one is: std::max would drop it, and a mismatch that is NaN would look like none.
double largest(double a, double b) {
  return std::isnan(a) || std::isnan(b) ? std::numeric_limits<double>::quiet_NaN() : std::max(a, b);
}

const MetricInfo& declaration_of(std::string_view name) {
  const MetricInfo* metric = find_metric(name);
  GRADUS_CHECK(metric != nullptr, fmt::format("metric '{}' is not declared in common/metrics.cpp{}",
                                              name, did_you_mean(name, metric_names())));
  return *metric;
}

}  // namespace

std::span<const MetricInfo> declared_metrics() { return kMetrics; }

const MetricInfo* find_metric(std::string_view name) {
  static const auto* exact_names = [] {
    auto* by_name = new std::map<std::string_view, const MetricInfo*>;
    for (const MetricInfo& metric : kMetrics) {
      GRADUS_CHECK(by_name->emplace(metric.name, &metric).second,
                   fmt::format("metric '{}' is declared twice", metric.name));
    }
    return by_name;
  }();
  const auto found = exact_names->find(name);
  if (found != exact_names->end() && !is_pattern(name)) return found->second;
  const MetricInfo* best = nullptr;  // the longest pattern is the most specific
  for (const MetricInfo& metric : kMetrics) {
    if (!is_pattern(metric.name) || is_pattern(name) || !matches(metric.name, name)) continue;
    if (best == nullptr || metric.name.size() > best->name.size()) best = &metric;
  }
  return best;
}

std::vector<std::string> metric_names() {
  std::vector<std::string> names;
  for (const MetricInfo& metric : kMetrics) names.emplace_back(metric.name);
  return names;
}

const char* reduction_name(MetricReduction reduction) {
  switch (reduction) {
    case MetricReduction::kMean:
      return "mean";
    case MetricReduction::kSum:
      return "sum";
    case MetricReduction::kMax:
      return "max";
    case MetricReduction::kMin:
      return "min";
    case MetricReduction::kLast:
      return "last";
  }
  GRADUS_CHECK(false, "metric reduction out of range");
}

std::string metrics_markdown() {
  std::string text =
      "<!-- Printed by `gradus config metrics` from common/metrics.cpp; do not edit. -->\n"
      "# Metrics\n\n"
      "One JSON line per step holds these. Reduction says how the values of micro-batches and "
      "ranks\n"
      "become one; `<...>` stands for any text.\n\n"
      "| name | unit | reduction | meaning |\n|---|---|---|---|\n";
  for (const MetricInfo& metric : kMetrics) {
    text += fmt::format("| `{}` | {} | {} | {} |\n", metric.name, metric.unit,
                        reduction_name(metric.reduction), metric.meaning);
  }
  return text;
}

void Metrics::set(std::string_view name, double value) {
  const MetricInfo& metric = declaration_of(name);
  entries_.insert_or_assign(std::string(name), Entry{metric.reduction, value, 1.0});
}

void Metrics::add(std::string_view name, double value, double weight) {
  const MetricReduction reduction = declaration_of(name).reduction;
  GRADUS_CHECK(weight >= 0, fmt::format("metric '{}' has weight {}", name, weight));
  Metrics one;
  // 0 * NaN would poison a sum to which the value does not belong.
  const double first = reduction == kMean ? (weight == 0 ? 0 : value * weight) : value;
  one.entries_.emplace(std::string(name), Entry{reduction, first, weight});
  merge(one);
}

void Metrics::merge(const Metrics& other) {
  for (const auto& [name, added] : other.entries_) {
    const auto [found, is_new] = entries_.try_emplace(name, added);
    if (is_new) continue;
    Entry& entry = found->second;
    switch (entry.reduction) {
      case MetricReduction::kMean:
      case MetricReduction::kSum:
        entry.value += added.value;
        entry.weight += added.weight;
        break;
      case MetricReduction::kMax:
        entry.value = largest(entry.value, added.value);
        break;
      case MetricReduction::kMin:
        entry.value = -largest(-entry.value, -added.value);
        break;
      case MetricReduction::kLast:
        entry.value = added.value;
        break;
    }
  }
}

std::vector<MetricPart> Metrics::parts() const {
  std::vector<MetricPart> all;
  for (const auto& [name, entry] : entries_) all.push_back({name, entry.value, entry.weight});
  return all;
}

void Metrics::restore(const MetricPart& part) {
  const MetricReduction reduction = declaration_of(part.name).reduction;
  entries_.insert_or_assign(part.name, Entry{reduction, part.value, part.weight});
}

bool Metrics::contains(std::string_view name) const {
  return values().count(std::string(name)) > 0;
}

double Metrics::value(std::string_view name) const {
  const std::map<std::string, double> all = values();
  const auto found = all.find(std::string(name));
  GRADUS_CHECK(found != all.end(), fmt::format("metric '{}' has no value", name));
  return found->second;
}

std::map<std::string, double> Metrics::values() const {
  std::map<std::string, double> all;
  for (const auto& [name, entry] : entries_) {
    if (entry.reduction != MetricReduction::kMean) {
      all.emplace(name, entry.value);
    } else if (entry.weight > 0) {
      all.emplace(name, entry.value / entry.weight);
    }
  }
  return all;
}

}  // namespace gradus
