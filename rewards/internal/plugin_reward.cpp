// SPDX-License-Identifier: Apache-2.0
#include <dlfcn.h>

#include <cmath>
#include <deque>
#include <mutex>
#include <nlohmann/json.hpp>

#include "common/strings.h"
#include "rewards/internal/builtin.h"
#include "rewards/internal/options.h"
#include "rewards/reward_plugin.h"

// `plugin`: a reward in a shared object, over the C functions of rewards/reward_plugin.h.
namespace gradus::rewards {
namespace {

rwp_str view(std::string_view text) { return {text.data(), text.size()}; }

// What the plug-in may allocate while it scores.
struct Arena {
  std::deque<std::vector<char>> blocks;
};

void* allocate(void* context, uint64_t num_bytes) {
  constexpr uint64_t kMost = 64 << 20;
  if (num_bytes > kMost) return nullptr;
  try {
    return static_cast<Arena*>(context)->blocks.emplace_back(num_bytes + 1).data();
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

RewardStatus status_of(uint32_t status) {
  switch (status) {
    case RWP_OK:
      return RewardStatus::kOk;
    case RWP_NOT_APPLICABLE:
      return RewardStatus::kNotApplicable;
    case RWP_TIMEOUT:
      return RewardStatus::kTimeout;
    case RWP_INVALID_GOLD:
      return RewardStatus::kInvalidGold;
    case RWP_UNDECIDED:
      return RewardStatus::kUndecided;
    default:
      return RewardStatus::kError;
  }
}

class PluginReward : public Reward {
 public:
  PluginReward() = default;
  PluginReward(const PluginReward&) = delete;
  PluginReward& operator=(const PluginReward&) = delete;
  ~PluginReward() override {
    if (has_instance_) destroy_(self_);
    if (library_ != nullptr) dlclose(library_);
  }

  Status load(const std::string& path, const std::string& config) {
    if (path.empty()) {
      return invalid_argument("path: is missing; expected a shared object, e.g. ./libmine.so");
    }
    // A name without a slash would be looked for among the system's libraries.
    const std::string file = path.find('/') == std::string::npos ? "./" + path : path;
    library_ = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library_ == nullptr) return not_found("path: cannot load the plug-in: {}", dlerror());
    decltype(&rwp_abi_version) abi_version = nullptr;
    decltype(&rwp_create) create = nullptr;
    decltype(&rwp_describe) describe = nullptr;
    GRADUS_RETURN_IF_ERROR(find(path, "rwp_abi_version", abi_version));
    const uint32_t version = abi_version();
    if (version != RWP_ABI) {
      return invalid_argument(
          "path: {} is built for ABI {} of reward plug-ins; this Gradus has {}; build it against "
          "its "
          "rewards/reward_plugin.h",
          path, version, RWP_ABI);
    }
    GRADUS_RETURN_IF_ERROR(find(path, "rwp_create", create));
    GRADUS_RETURN_IF_ERROR(find(path, "rwp_describe", describe));
    GRADUS_RETURN_IF_ERROR(find(path, "rwp_score", score_));
    GRADUS_RETURN_IF_ERROR(find(path, "rwp_destroy", destroy_));
    char error[512] = {};
    if (create(view(config), &self_, error) != 0) {
      error[sizeof(error) - 1] = 0;
      return invalid_argument("config: {} refuses it: {}", path, error);
    }
    has_instance_ = true;
    rwp_str text{};
    if (describe(self_, &text) != 0) {
      return invalid_argument("path: {} does not describe itself (rwp_describe)", path);
    }
    return read_description(std::string(text.p == nullptr ? "" : text.p, text.n))
        .with_prefix("path: " + path + ": rwp_describe");
  }

  bool compares_siblings() const override { return compares_siblings_; }
  bool is_deterministic() const override { return is_deterministic_; }
  double lower_bound() const override { return low_; }
  double upper_bound() const override { return high_; }

  std::vector<RewardPart> score_batch(std::span<const Group> groups) const override {
    std::vector<rwp_sample> samples;
    std::deque<std::string> extras;
    for (const Group& group : groups) {
      extras.push_back(group.prompt->metadata.empty()
                           ? "{}"
                           : nlohmann::json(group.prompt->metadata).dump(-1, ' ', false, kReplace));
      for (const data::Trajectory& trajectory : group.trajectories) {
        rwp_sample& sample = samples.emplace_back();
        sample.struct_size = sizeof(sample);
        sample.index_in_group = static_cast<uint32_t>(trajectory.id.sample_index);
        sample.prompt_id = group.prompt->prompt_id;
        sample.prompt = view(group.prompt->text);
        sample.response = view(trajectory.text);
        sample.gold = view(group.prompt->answer);
        sample.data_source = view(group.prompt->task);
        sample.extra_json = view(extras.back());
        const size_t begin = static_cast<size_t>(trajectory.prompt_length);
        if (trajectory.token_ids.size() > begin) {
          sample.token_ids = trajectory.token_ids.data() + begin;
          sample.num_tokens = trajectory.token_ids.size() - begin;
        }
        sample.group_size = static_cast<uint32_t>(group.trajectories.size());
        sample.is_truncated = trajectory.finish_reason == data::FinishReason::kLength ? 1 : 0;
      }
    }
    std::vector<rwp_result> results(samples.size());
    for (rwp_result& result : results) result.struct_size = sizeof(result);
    Arena arena;
    rwp_host host{};
    host.struct_size = sizeof(host);
    host.context = &arena;
    host.alloc = allocate;
    int outcome = 0;
    if (!samples.empty()) {
      std::unique_lock lock(mutex_, std::defer_lock);
      if (!is_thread_safe_) lock.lock();
      outcome = score_(self_, &host, samples.data(), static_cast<uint32_t>(samples.size()),
                       results.data());
    }
    std::vector<RewardPart> parts;
    for (const rwp_result& result : results) {
      RewardPart& part = parts.emplace_back();
      if (outcome != 0) {
        part.status = RewardStatus::kError;
        part.detail = fmt::format("rwp_score returned {}", outcome);
        continue;
      }
      part.status = status_of(result.status);
      if (result.detail.p != nullptr) part.detail.assign(result.detail.p, result.detail.n);
      if (part.status == RewardStatus::kOk && !(result.score >= low_ && result.score <= high_)) {
        part.status = RewardStatus::kError;
        part.detail = fmt::format("the score is {}; the plug-in says that it is in [{}, {}]",
                                  result.score, low_, high_);
      }
      if (part.status == RewardStatus::kOk) part.score = result.score;
    }
    return parts;
  }

 private:
  static constexpr auto kReplace = nlohmann::json::error_handler_t::replace;

  template <class Function>
  Status find(const std::string& path, const char* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(library_, name));
    if (function != nullptr) return {};
    return invalid_argument(
        "path: {} has no function {}; it is no reward plug-in (docs/rewards.md)", path, name);
  }

  Status read_description(const std::string& text) {
    const nlohmann::json all = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (!all.is_object()) return invalid_argument("is '{}'; expected a JSON object", excerpt(text));
    const auto flag = [&](const char* name, bool& value) -> Status {
      if (!all.contains(name)) return {};
      if (!all[name].is_boolean()) return invalid_argument("{}: is no bool", name);
      value = all[name].get<bool>();
      return {};
    };
    GRADUS_RETURN_IF_ERROR(flag("deterministic", is_deterministic_));
    GRADUS_RETURN_IF_ERROR(flag("thread_safe", is_thread_safe_));
    GRADUS_RETURN_IF_ERROR(flag("compares_siblings", compares_siblings_));
    for (const auto& [name, value] : {std::pair("low", &low_), std::pair("high", &high_)}) {
      if (!all.contains(name)) continue;
      if (!all[name].is_number()) return invalid_argument("{}: is no number", name);
      *value = all[name].get<double>();
    }
    if (!(low_ <= high_)) return invalid_argument("low is {} and high {}", low_, high_);
    return {};
  }

  void* library_ = nullptr;
  void* self_ = nullptr;
  bool has_instance_ = false;
  decltype(&rwp_score) score_ = nullptr;
  decltype(&rwp_destroy) destroy_ = nullptr;
  bool is_deterministic_ = true, is_thread_safe_ = false, compares_siblings_ = false;
  double low_ = 0, high_ = 1;
  mutable std::mutex mutex_;  // of plug-ins that are not thread-safe
};

}  // namespace

Result<std::unique_ptr<Reward>> make_plugin_reward(const RewardOptions& options) {
  auto reward = std::make_unique<PluginReward>();
  std::string path, config = "{}";
  OptionReader reader("plugin", options);
  reader.text("path", path);
  reader.text("config", config);
  GRADUS_RETURN_IF_ERROR(reader.finish());
  GRADUS_RETURN_IF_ERROR(reward->load(path, config).with_prefix("reward plugin"));
  return std::unique_ptr<Reward>(std::move(reward));
}

}  // namespace gradus::rewards
