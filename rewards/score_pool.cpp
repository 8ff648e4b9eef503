// SPDX-License-Identifier: Apache-2.0
#include "rewards/score_pool.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "common/check.h"
#include "common/metrics.h"
#include "common/parallel.h"

namespace gradus::rewards {
namespace {

using Clock = std::chrono::steady_clock;

// Responses of one call: enough to pay for a message to another process, few enough that threads
// share the work out evenly.
constexpr size_t kMostPerCall = 64;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

ScorePool::ScorePool(const RewardSum& rewards, int64_t num_threads) : rewards_(rewards) {
  for (int64_t i = 0; i < num_threads; ++i) threads_.emplace_back([this] { run(); });
}

ScorePool::~ScorePool() {
  {
    const std::lock_guard lock(mutex_);
    queue_.clear();
    ends_ = true;
  }
  has_work_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ScorePool::run() {
  const SerialSection serial;  // the other threads of the process are sampling
  std::unique_lock lock(mutex_);
  for (;;) {
    has_work_.wait(lock, [&] { return ends_ || !queue_.empty(); });
    if (ends_) return;
    work(lock);
  }
}

void ScorePool::cancel() {
  std::unique_lock lock(mutex_);
  queue_.clear();
  is_idle_.wait(lock, [&] { return num_running_ == 0; });
}

void ScorePool::begin(std::span<const Group> groups) {
  cancel();
  const std::lock_guard lock(mutex_);
  exception_ = nullptr;
  seconds_ = {};
  groups_ = groups;
  parts_.assign(groups.size(), {});
  is_finished_.assign(groups.size(), {});
  num_left_.assign(groups.size(), 0);
  combined_.assign(groups.size(), std::nullopt);
  for (size_t g = 0; g < groups.size(); ++g) {
    const size_t size = groups[g].trajectories.size();
    parts_[g].assign(rewards_.rewards().size(), std::vector<JudgedPart>(size));
    is_finished_[g].assign(size, false);
    num_left_[g] = size * rewards_.rewards().size();
  }
}

void ScorePool::finished(size_t group, size_t sample) {
  const std::lock_guard lock(mutex_);
  std::vector<bool>& done = is_finished_.at(group);
  GRADUS_CHECK(!done.at(sample), "a response finishes once");
  done[sample] = true;
  const bool is_whole = std::find(done.begin(), done.end(), false) == done.end();
  const auto& packs = rewards_.packs();
  for (size_t p = 0; p < packs.size(); ++p) {
    if (!rewards_.rewards()[packs[p].front()].reward->compares_siblings()) {
      queue_.push_back({p, group, sample, 1});
    } else if (is_whole) {
      queue_.push_back({p, group, 0, done.size()});
    }
  }
  has_work_.notify_all();
}

void ScorePool::work(std::unique_lock<std::mutex>& lock) {
  std::vector<Work> mine;
  std::vector<Group> pieces;
  const size_t most = std::clamp<size_t>(queue_.size() / (threads_.size() + 1), 1, kMostPerCall);
  // One pack's, wherever they stand: those of several packs alternate in the queue.
  const size_t pack = queue_.front().pack;
  std::deque<Work> rest;
  for (const Work& one : queue_) {
    if (one.pack != pack || mine.size() == most) {
      rest.push_back(one);
      continue;
    }
    mine.push_back(one);
    const Group& group = groups_[one.group];
    pieces.push_back({group.prompt, group.trajectories.subspan(one.first, one.count)});
  }
  queue_ = std::move(rest);
  ++num_running_;
  lock.unlock();
  const Clock::time_point start = Clock::now();
  std::vector<std::vector<JudgedPart>> parts;
  std::exception_ptr thrown;
  try {
    parts = rewards_.judge(pack, pieces);
  } catch (...) {
    thrown = std::current_exception();
  }
  lock.lock();
  std::vector<size_t> whole;  // groups that now have all their parts, which no other thread touches
  if (thrown == nullptr) {
    size_t next = 0;
    for (const Work& one : mine) {
      for (size_t k = 0; k < parts.size(); ++k) {
        const size_t reward = rewards_.packs()[pack][k];
        for (size_t i = 0; i < one.count; ++i) {
          parts_[one.group][reward][one.first + i] = std::move(parts[k][next + i]);
        }
      }
      next += one.count;
      num_left_[one.group] -= one.count * parts.size();
      if (num_left_[one.group] == 0) whole.push_back(one.group);
    }
  }
  lock.unlock();
  try {
    for (const size_t g : whole) {
      combined_[g] = rewards_.combine(groups_[g], std::move(parts_[g]));
    }
  } catch (...) {
    thrown = std::current_exception();
  }
  const double seconds = seconds_since(start);
  lock.lock();
  if (thrown != nullptr && exception_ == nullptr) exception_ = thrown;
  seconds_.busy += seconds;
  if (--num_running_ == 0) is_idle_.notify_all();
}

Result<std::vector<data::RewardBreakdown>> ScorePool::finish() {
  const Clock::time_point start = Clock::now();
  std::unique_lock lock(mutex_);
  while (!queue_.empty()) work(lock);
  is_idle_.wait(lock, [&] { return num_running_ == 0; });
  if (exception_ != nullptr) std::rethrow_exception(std::exchange(exception_, nullptr));
  std::vector<data::RewardBreakdown> all;
  for (size_t g = 0; g < groups_.size(); ++g) {
    const std::vector<bool>& done = is_finished_[g];
    if (done.empty() || std::find(done.begin(), done.end(), false) != done.end()) {
      for (const data::Trajectory& trajectory : groups_[g].trajectories) {
        all.push_back({.id = trajectory.id, .reason = "the group is not finished"});
      }
      continue;
    }
    auto& breakdowns = *combined_[g];
    if (!breakdowns.ok()) return breakdowns.status();
    std::move(breakdowns->begin(), breakdowns->end(), std::back_inserter(all));
  }
  seconds_.exposed = seconds_since(start);
  return all;
}

void ScorePool::add_metrics(const std::string& prefix, Metrics& metrics) const {
  metrics.add(prefix + "busy_s", seconds_.busy);
  if (seconds_.busy > 0) {
    metrics.add(prefix + "hidden_fraction", std::max(0.0, 1 - seconds_.exposed / seconds_.busy),
                seconds_.busy);
  }
  for (const WeightedReward& part : rewards_.rewards()) part.reward->add_usage(metrics);
}

}  // namespace gradus::rewards
