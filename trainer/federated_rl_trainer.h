// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <deque>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "federated/aggregator.h"
#include "trainer/federated_payload.h"
#include "trainer/rl_trainer.h"

// Federated reinforcement learning: `trainer.federated` (docs/federated.md).
namespace gradus::trainer {

// Row numbers of the prompts by client, increasing. A function of the arguments alone.
// InvalidArgument if there are fewer prompts than clients, a client would have fewer than
// `prompts_per_step`, or a row lacks the key `by`.
Result<std::vector<std::vector<int32_t>>> partition_prompts(const FederatedRlConfig& config,
                                                            int64_t prompts_per_step,
                                                            std::span<const data::Prompt> prompts,
                                                            uint64_t seed);

// FLood's score of a prompt's group: the mean over its responses of the mean log-prob of their
// tokens, as they were recorded when they were sampled; higher for what the policy knows. NaN
// without a token.
double group_score(const ResponseGroup& group);

// Factors of the advantages of a step's groups, by FLood. Groups whose rewards are all equal
// (`is_flat`) keep 1 and count for nothing else: they have no gradient. Of the others those are
// flagged whose score is strictly below the lower-interpolated quantile of `window`, the scores of
// the client's newest groups, these included (flag high: of the negated scores; random: as many as
// low would, by `seed`). In normalized mode the factors have a mean of 1.
struct GroupWeights {
  std::vector<double> weights_G;
  int64_t num_groups = 0, num_flagged = 0;  // with signal
};
GroupWeights group_weights(const federated::FloodTerms& terms, std::span<const double> scores_G,
                           const std::vector<bool>& is_flat_G, std::span<const double> window,
                           uint64_t seed);

// The loop of a federated run. A round: every client of it starts from the global weights, makes
// `local_steps` steps of RlTrainer on its own prompts with an optimizer that begins anew, and gives
// the difference; the strategy makes one step of the server of the differences. Client k is rank k
// mod ranks' work and trains there alone, so no bit of the result depends on the number of ranks;
// it depends on weights, round and seeds alone, so resumed runs repeat it. A rank has one model,
// the memory of one trainer, and an update (FederatedPayload) for each of its clients. Not
// thread-safe. References outlive it.
class FederatedRlTrainer {
 public:
  // `setup.trainer.federated` is set. InvalidArgument as partition_prompts and resolved_payload.
  static Result<std::unique_ptr<FederatedRlTrainer>> make(
      RlSetup setup, Policy& policy, const rewards::RewardSum& rewards, const Algorithm& algorithm,
      comm::Communicator& communicator, RunRecords records, records::RunDisplay& display);

  // Continues from a checkpoint of the run, on every rank.
  Status resume(const std::string& checkpoint_folder);
  // Trains to the last round, or until a stop is asked for. Errors of any rank come on all.
  Status run();

  FederatedPayloadKind payload() const { return payload_.kind(); }  // not auto
  const RunPosition& position() const { return position_; }
  const std::vector<Evaluation>& evaluations() const { return evaluations_; }

 private:
  struct Visit;  // what a client did in a round

  FederatedRlTrainer(RlSetup setup, Policy& policy, const rewards::RewardSum& rewards,
                     const Algorithm& algorithm, comm::Communicator& communicator,
                     RunRecords records, records::RunDisplay& display,
                     FederatedPayloadKind payload);
  std::vector<int64_t> clients_of_round() const;
  double learning_rate_factor() const;
  Status train_client(int64_t client, const federated::FloodTerms& flood, Visit& visit);
  Status round();
  Status evaluate_now(Metrics& metrics);
  std::string strategy_text() const;
  Status save();

  RlSetup setup_;
  FederatedRlConfig config_;
  Policy& policy_;
  const rewards::RewardSum& rewards_;
  const Algorithm& algorithm_;
  comm::Communicator& communicator_;
  RunRecords records_;
  records::RunDisplay& display_;
  std::unique_ptr<comm::Communicator> alone_;  // of this rank
  std::unique_ptr<federated::Aggregator> aggregator_;
  std::vector<std::vector<int32_t>> rows_;   // by client
  std::vector<std::deque<double>> windows_;  // newest scores by client, on every rank
  FederatedPayload payload_;                 // with the global model
  RunPosition position_;
  StepClock clock_;
  std::vector<Evaluation> evaluations_;
  std::map<std::string, double> last_metrics_;
};

}  // namespace gradus::trainer
