// SPDX-License-Identifier: Apache-2.0
#include <condition_variable>
#include <mutex>
#include <nlohmann/json.hpp>

#include "common/log.h"
#include "common/strings.h"
#include "rewards/internal/builtin.h"
#include "rewards/internal/child_process.h"
#include "rewards/internal/options.h"

// `process`: a reward in any language, in a process of its own that speaks JSON lines
// (docs/rewards.md). What it does wrong costs a response its score and never the run.
namespace gradus::rewards {
namespace {

using Clock = std::chrono::steady_clock;
using nlohmann::json;

constexpr int kVersion = 1;
constexpr size_t kMaxSamples = 256;  // of a message
constexpr double kStartSeconds = 30;

Result<RewardStatus> status_named(const std::string& name) {
  for (const RewardStatus status :
       {RewardStatus::kOk, RewardStatus::kNotApplicable, RewardStatus::kUndecided,
        RewardStatus::kTimeout, RewardStatus::kError, RewardStatus::kInvalidGold}) {
    if (name == data::reward_status_name(status)) return status;
  }
  return invalid_argument("unknown status '{}'", name);
}

// What a program says of itself in its first line.
struct Description {
  bool is_deterministic = true, compares_siblings = false;
  double low = 0, high = 1;
};

class ProcessReward : public Reward {
 public:
  std::vector<std::string> command;
  double timeout_s = 10;
  int64_t num_workers = 1;
  Description description;

  bool compares_siblings() const override { return description.compares_siblings; }
  bool is_deterministic() const override { return description.is_deterministic; }
  double lower_bound() const override { return description.low; }
  double upper_bound() const override { return description.high; }

  // Starts the first worker, to learn what it says of itself.
  Status begin() {
    Result<std::unique_ptr<ChildProcess>> worker = start(description);
    if (!worker.ok()) return worker.status();
    idle_.push_back(std::move(*worker));
    num_open_ = 1;
    return {};
  }

  std::vector<RewardPart> score_batch(std::span<const Group> groups) const override {
    // Pieces that a message may be cut between: a response, or a group that is compared.
    std::vector<Group> pieces;
    size_t num_samples = 0;
    for (const Group& group : groups) {
      num_samples += group.trajectories.size();
      if (compares_siblings()) {
        pieces.push_back(group);
      } else {
        for (size_t i = 0; i < group.trajectories.size(); ++i) {
          pieces.push_back({group.prompt, group.trajectories.subspan(i, 1)});
        }
      }
    }
    std::vector<RewardPart> parts;
    parts.reserve(num_samples);
    if (pieces.empty()) return parts;
    Lease lease(*this);
    for (size_t first = 0; first < pieces.size();) {
      size_t end = first, size = 0;
      do {
        size += pieces[end++].trajectories.size();
      } while (end < pieces.size() && size + pieces[end].trajectories.size() <= kMaxSamples);
      judge(std::span(pieces).subspan(first, end - first), lease.worker, parts);
      first = end;
    }
    return parts;
  }

 private:
  // A worker for the time of a call; null: one to be started.
  struct Lease {
    const ProcessReward& owner;
    std::unique_ptr<ChildProcess> worker;
    explicit Lease(const ProcessReward& reward) : owner(reward) {
      std::unique_lock lock(owner.mutex_);
      owner.is_free_.wait(
          lock, [&] { return !owner.idle_.empty() || owner.num_open_ < owner.num_workers; });
      if (owner.idle_.empty()) {
        ++owner.num_open_;
      } else {
        worker = std::move(owner.idle_.back());
        owner.idle_.pop_back();
      }
    }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    ~Lease() {
      const std::lock_guard lock(owner.mutex_);
      owner.idle_.push_back(std::move(worker));
      owner.is_free_.notify_one();
    }
  };

  Result<std::unique_ptr<ChildProcess>> start(Description& said) const {
    auto worker = ChildProcess::start(command);
    if (!worker.ok()) return worker;
    const auto line = (*worker)->exchange("", after(kStartSeconds));
    if (!line.ok()) {
      return line.status().with_prefix(
          "before its first line, which is expected to be "
          "{\"gradus_reward\": 1}");
    }
    const json hello = json::parse(*line, nullptr, /*allow_exceptions=*/false);
    if (!hello.is_object() || !hello.contains("gradus_reward")) {
      return invalid_argument("its first line is '{}'; expected {{\"gradus_reward\": {}}}",
                              excerpt(*line), kVersion);
    }
    if (hello["gradus_reward"] != kVersion) {
      return invalid_argument("speaks version {} of the protocol; this Gradus speaks {}",
                              hello["gradus_reward"].dump(), kVersion);
    }
    try {
      said.is_deterministic = hello.value("deterministic", true);
      said.compares_siblings = hello.value("compares_siblings", false);
      said.low = hello.value("low", 0.0);
      said.high = hello.value("high", 1.0);
    } catch (const json::exception&) {
      return invalid_argument(
          "its first line is '{}'; deterministic and compares_siblings are true or false, low and "
          "high numbers",
          excerpt(*line));
    }
    return worker;
  }

  static ChildProcess::Deadline after(double seconds) {
    return Clock::now() +
           std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  }

  // Appends the parts of the pieces. A message that fails is sent again in halves, to a new
  // process, until what fails is alone.
  void judge(std::span<const Group> pieces, std::unique_ptr<ChildProcess>& worker,
             std::vector<RewardPart>& parts) const {
    const size_t begin = parts.size();
    const auto fail = [&](RewardStatus status, const std::string& detail) {
      parts.resize(begin);
      for (const Group& piece : pieces) {
        for (size_t i = 0; i < piece.trajectories.size(); ++i) {
          parts.push_back({.status = status, .detail = detail});
        }
      }
    };
    if (worker == nullptr) {
      Description again;
      auto started = start(again);
      if (!started.ok()) {
        return fail(RewardStatus::kError, "cannot start again: " + started.status().message());
      }
      worker = std::move(*started);
    }
    const uint64_t id = next_id_++;
    const auto answer = worker->exchange(message_of(pieces, id), after(timeout_s));
    const bool is_late = worker->is_late();
    Status status = answer.status();
    if (status.ok()) status = read(*answer, id, pieces, parts);
    if (status.ok()) return;
    worker.reset();
    log_warn("rewards", "a reward's process failed and is started again",
             {{"command", command[0]}, {"reason", status.message()}, {"responses", pieces.size()}});
    if (pieces.size() == 1) {
      return fail(is_late ? RewardStatus::kTimeout : RewardStatus::kError, status.message());
    }
    parts.resize(begin);
    judge(pieces.subspan(0, pieces.size() / 2), worker, parts);
    judge(pieces.subspan(pieces.size() / 2), worker, parts);
  }

  static std::string message_of(std::span<const Group> pieces, uint64_t id) {
    std::string text = fmt::format("{{\"id\":{},\"samples\":[", id);
    size_t num_bytes = 0;
    for (const Group& piece : pieces) {
      for (const data::Trajectory& one : piece.trajectories) {
        num_bytes += 200 + piece.prompt->text.size() + one.text.size() + one.text.size() / 16;
      }
    }
    text.reserve(num_bytes);
    for (const Group& piece : pieces) {
      for (const data::Trajectory& trajectory : piece.trajectories) {
        const data::Prompt& prompt = *piece.prompt;
        if (text.back() == '}') text += ',';
        fmt::format_to(std::back_inserter(text),
                       "{{\"prompt_id\":{},\"sample_index\":{},\"prompt\":", prompt.prompt_id,
                       trajectory.id.sample_index);
        append_json_text(prompt.text, text);
        text += ",\"response\":";
        append_json_text(trajectory.text, text);
        text += ",\"ground_truth\":";
        append_json_text(prompt.answer, text);
        text += ",\"data_source\":";
        append_json_text(prompt.task, text);
        text += ",\"extra_info\":{";
        for (const auto& [key, value] : prompt.metadata) {
          if (text.back() != '{') text += ',';
          append_json_text(key, text);
          text += ':';
          append_json_text(value, text);
        }
        text += "}}";
      }
    }
    return text + "]}";
  }

  Status read(const std::string& line, uint64_t id, std::span<const Group> pieces,
              std::vector<RewardPart>& parts) const {
    size_t expected = 0;
    for (const Group& piece : pieces) expected += piece.trajectories.size();
    const json answer = json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!answer.is_object() || !answer.contains("results") || !answer["results"].is_array()) {
      return data_loss("the process wrote '{}'; expected {{\"id\": ..., \"results\": [...]}}",
                       excerpt(line));
    }
    if (!answer.contains("id") || answer["id"] != id) {
      return data_loss("the process answered to id {}; expected {}",
                       answer.contains("id") ? answer["id"].dump() : "(none)", id);
    }
    if (answer["results"].size() != expected) {
      return data_loss("the process gave {} results for {} responses", answer["results"].size(),
                       expected);
    }
    for (const json& result : answer["results"]) {
      RewardPart part;
      if (!result.is_object()) {
        return data_loss("a result is {}; expected {{\"score\": number}}", excerpt(result.dump()));
      }
      if (const auto status = result.find("status"); status != result.end()) {
        const auto named =
            status_named(status->is_string() ? status->get<std::string>() : status->dump());
        if (!named.ok()) return named.status().with_prefix("a result");
        part.status = *named;
      }
      const auto detail = result.find("detail");
      if (detail != result.end() && detail->is_string()) part.detail = detail->get<std::string>();
      if (part.status == RewardStatus::kOk) {
        const auto score = result.find("score");
        if (score == result.end() || !score->is_number()) {
          return data_loss("a result has no score: {}", excerpt(result.dump()));
        }
        part.score = score->get<double>();
        if (!(part.score >= description.low && part.score <= description.high)) {
          part.detail = fmt::format("the score is {}; the process says that it is in [{}, {}]",
                                    part.score, description.low, description.high);
          part.status = RewardStatus::kError;
          part.score = 0;
        }
      }
      parts.push_back(std::move(part));
    }
    return {};
  }

  mutable std::mutex mutex_;
  mutable std::condition_variable is_free_;
  mutable std::vector<std::unique_ptr<ChildProcess>> idle_;  // null: to be started
  mutable int64_t num_open_ = 0;
  mutable std::atomic<uint64_t> next_id_ = 1;
};

}  // namespace

Result<std::unique_ptr<Reward>> make_process_reward(const RewardOptions& options) {
  auto reward = std::make_unique<ProcessReward>();
  std::string command;
  double workers = 1;
  OptionReader reader("process", options);
  reader.text("command", command);
  reader.number("timeout_s", 0.01, 86400, reward->timeout_s);
  reader.number("workers", 1, 256, workers);
  GRADUS_RETURN_IF_ERROR(reader.finish());
  const auto words = split_command(command);
  if (!words.ok()) return words.status().with_prefix("reward process: command");
  reward->command = *words;
  reward->num_workers = static_cast<int64_t>(workers);
  GRADUS_RETURN_IF_ERROR(reward->begin().with_prefix("reward process: '" + command + "'"));
  return std::unique_ptr<Reward>(std::move(reward));
}

}  // namespace gradus::rewards
