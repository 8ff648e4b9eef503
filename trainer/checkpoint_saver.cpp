// SPDX-License-Identifier: Apache-2.0
#include "trainer/checkpoint_saver.h"

#include <filesystem>

#include "common/parallel.h"
#include "model/peft_adapter.h"
#include "trainer/critic.h"

namespace gradus::trainer {
namespace {

constexpr char kStem[] = "optimizer";
// Folder of the running average of the weights.
constexpr char kAverage[] = "ema";

model::WriteCheckpointOptions write_options(const std::string& tokenizer_dir, int share,
                                            int num_shares) {
  return {.tokenizer_dir = tokenizer_dir, .num_writers = num_shares, .writer = share};
}

}  // namespace

CheckpointShare::CheckpointShare(const Policy& policy, Learner& learner, int share, int num_shares)
    : share_(share),
      num_shares_(num_shares),
      config_(policy.transformer->config()),
      tokenizer_dir_(policy.tokenizer_dir),
      tokenizer_json_(policy.tokenizer_json) {
  model::Transformer& transformer = *policy.transformer;
  adapter_ = transformer.adapter();
  base_path_ = policy.path;
  if (adapter_ == nullptr) {
    const model::ParameterLayout& layout = transformer.layout();
    status_ = learner.visit_weights([&](int64_t begin, int64_t end) {
      copy(layout, transformer.parameters(), begin, end, weights_);
    });
    if (status_.ok() && learner.average() != nullptr) {
      status_ = learner.visit_average([&](int64_t begin, int64_t end) {
        copy(layout, learner.average(), begin, end, average_);
      });
    }
  } else if (share == 0) {
    const model::TrainableWeights trained = transformer.trainable();
    adapter_values_.assign(trained.values, trained.values + trained.layout.size);
    if (learner.average() != nullptr) {
      adapter_average_.assign(learner.average(), learner.average() + trained.layout.size);
    }
  }
  if (status_.ok()) status_ = learner.save(state_);
}

CheckpointShare::CheckpointShare(const Policy& policy, Learner& learner,
                                 const RunPosition& position, int share, int num_shares,
                                 Critic* critic)
    : CheckpointShare(policy, learner, share, num_shares) {
  if (critic != nullptr) {
    critic_.reset(new CheckpointShare(critic->model(), critic->learner(), share, num_shares));
  }
  if (share != 0) return;
  if (critic != nullptr) {
    state_.add("run/critic_nonfinite_in_a_row", position.critic_nonfinite_in_a_row);
  }
  state_.add("run/step", position.step);
  state_.add("run/data_position", position.data_position);
  state_.add("run/policy_version", position.policy_version);
  state_.add("run/nonfinite_in_a_row", position.nonfinite_in_a_row);
  state_.add("run/mini_batches_done", position.mini_batches_done);
  state_.add_text("run/ahead", position.ahead);
  if (!position.rubric.empty()) state_.add_text("run/rubric", position.rubric);
  state_.add("run/kl_coef", position.kl_coef);
  std::string hashes;
  for (const auto& [version, hash] : position.version_hashes) {
    hashes += fmt::format("{} {:016x}\n", version, hash);
  }
  state_.add_text("run/version_hashes", hashes);
}

void CheckpointShare::copy(const model::ParameterLayout& layout, const float* parameters,
                           int64_t begin, int64_t end, Weights& weights) const {
  for (const model::WeightFile& file :
       model::weight_files(config_, write_options(tokenizer_dir_, share_, num_shares_))) {
    if (file.writer != share_) continue;
    for (const model::WeightSpec& spec : file.weights) {
      const model::ParameterPlace& place = model::find_place(layout, spec.hf_name);
      if (place.offset < begin || place.offset >= end) continue;
      const float* values = parameters + place.offset;
      weights.emplace(spec.hf_name,
                      std::pair(place, std::vector<float>(values, values + place.size)));
    }
  }
}

std::vector<std::string> CheckpointShare::files() const {
  std::vector<std::string> names;
  for (const model::WeightFile& file :
       model::weight_files(config_, write_options(tokenizer_dir_, share_, num_shares_))) {
    if (file.writer != share_ || adapter_ != nullptr) continue;
    names.push_back(file.name);
    if (!average_.empty()) names.push_back(kAverage + ("/" + file.name));
  }
  names.push_back(std::filesystem::path(records::state_shard_path("", kStem, share_, num_shares_))
                      .filename()
                      .string());
  if (critic_ == nullptr) return names;
  for (const std::string& name : critic_->files()) {
    names.push_back(kCriticFolder + ("/" + name));
  }
  return names;
}

Status CheckpointShare::write_model(const Weights& weights, const std::string& folder) const {
  return write_policy_files(config_, tokenizer_json_, folder,
                            write_options(tokenizer_dir_, share_, num_shares_),
                            [&](const model::WeightSpec& spec, float* out) -> Status {
                              const auto& [place, values] = weights.at(spec.hf_name);
                              model::read_parameter(place, values.data(), out);
                              return {};
                            });
}

Status CheckpointShare::write(const std::string& folder) const {
  GRADUS_RETURN_IF_ERROR(status_);
  const std::string average = folder + "/" + kAverage;
  if (adapter_ == nullptr) {
    GRADUS_RETURN_IF_ERROR(write_model(weights_, folder));
    if (!average_.empty()) GRADUS_RETURN_IF_ERROR(write_model(average_, average));
  } else if (share_ == 0) {
    GRADUS_RETURN_IF_ERROR(
        model::write_adapter(folder, base_path_, *adapter_, adapter_values_.data()));
    if (!adapter_average_.empty()) {
      GRADUS_RETURN_IF_ERROR(
          model::write_adapter(average, base_path_, *adapter_, adapter_average_.data()));
    }
  }
  GRADUS_RETURN_IF_ERROR(
      state_.write(records::state_shard_path(folder, kStem, share_, num_shares_)));
  if (critic_ == nullptr) return {};
  const std::string of_critic = folder + "/" + kCriticFolder;
  std::error_code error;  // the files in it name what cannot be made
  std::filesystem::create_directories(of_critic, error);
  return critic_->write(of_critic);
}

CheckpointSaver::CheckpointSaver(records::CheckpointStore* store, comm::Communicator& communicator)
    : store_(store), communicator_(communicator) {}

CheckpointSaver::~CheckpointSaver() {
  gives_up_ = true;
  join();
}

void CheckpointSaver::join() {
  if (writer_.joinable()) writer_.join();
}

// The folder of the draft, which rank 0 makes, on every rank.
Result<std::string> CheckpointSaver::begin(int64_t step, int64_t num_bytes) {
  Status status;
  if (store_ != nullptr) {
    Result<records::CheckpointDraft> draft = store_->begin(step, num_bytes);
    status = draft.status();
    if (draft.ok()) draft_.emplace(std::move(*draft));
  }
  GRADUS_RETURN_IF_ERROR(comm::agree(communicator_, status));
  const std::string folder = communicator_.all_gather(draft_ ? draft_->folder() : "")[0];
  std::error_code error;
  if (!std::filesystem::is_directory(folder, error)) {
    status = unavailable(
        "{}: not to be seen on this host; run.dir must be on a file system that "
        "all ranks share",
        folder);
  }
  GRADUS_RETURN_IF_ERROR(comm::agree(communicator_, status));
  return folder;
}

Status CheckpointSaver::save(const Policy& policy, Learner& learner, const RunPosition& position,
                             std::optional<double> metric, Critic* critic,
                             const std::function<Status(const std::string& folder)>& also) {
  GRADUS_RETURN_IF_ERROR(finish());
  // Weights and two moments, and the average.
  const int64_t num_models = learner.average() == nullptr ? 3 : 4;
  int64_t num_floats = num_models * policy.transformer->trainable().layout.size;
  if (critic != nullptr) num_floats += 3 * critic->model().transformer->trainable().layout.size;
  const Result<std::string> folder = begin(position.step, num_floats * int64_t{sizeof(float)});
  Status status = folder.status();
  if (status.ok()) {
    status =
        comm::agree(communicator_, also && communicator_.rank() == 0 ? also(*folder) : Status());
  }
  if (!status.ok()) {
    draft_.reset();
    return status;
  }
  auto share = std::make_unique<CheckpointShare>(policy, learner, position, communicator_.rank(),
                                                 communicator_.size(), critic);
  is_done_ = false;
  writer_ = std::thread([this, share = std::move(share), folder = *folder, metric]() mutable {
    try {
      write(*share, folder, metric);
    } catch (const std::exception& error) {
      status_ = Status(StatusCode::kInternal, error.what());
    }
    share.reset();
    is_done_ = true;
  });
  return {};
}

// In the writer's thread.
void CheckpointSaver::write(const CheckpointShare& share, const std::string& folder,
                            std::optional<double> metric) {
  const SerialSection serial;
  const int rank = communicator_.rank();
  status_ = share.write(folder);
  if (status_.ok() && rank != 0) {
    status_ = records::CheckpointStore::finish_share(folder, rank, share.files());
  }
  if (rank != 0) return;
  if (status_.ok()) {
    status_ = records::CheckpointStore::await_shares(*draft_, communicator_.size(), gives_up_);
  }
  if (status_.ok()) status_ = store_->commit(std::move(*draft_), metric);
}

Status CheckpointSaver::check() {
  return comm::agree(communicator_, is_done_ ? status_ : Status());
}

Status CheckpointSaver::finish() {
  // Rank 0 waits for the shares of the others in its thread, so theirs are asked for first: where
  // one failed, rank 0 must not wait for it.
  const bool is_first = communicator_.rank() == 0;
  if (!is_first) join();
  const Status of_others = comm::agree(communicator_, is_first ? Status() : status_);
  if (!of_others.ok()) gives_up_ = true;
  join();
  draft_.reset();  // not before the others have ceased to write into its folder
  const Status of_first = comm::agree(communicator_, is_first ? status_ : Status());
  gives_up_ = false;
  status_ = {};
  return of_others.ok() ? of_first : of_others;
}

}  // namespace gradus::trainer
