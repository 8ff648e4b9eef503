// SPDX-License-Identifier: Apache-2.0
#include "comm/in_process.h"

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <exception>
#include <map>
#include <stdexcept>
#include <thread>
#include <tuple>
#include <utility>

namespace gradus::comm {
namespace {

// How often waiting ranks look whether they can still go on.
constexpr auto kLookEvery = std::chrono::milliseconds(100);

// Ranks [first, first + count) of the world.
struct Range {
  int first = 0, count = 0;
  auto operator<=>(const Range&) const = default;
};

// What the ranks of one communicator share in a collective.
struct Meeting {
  int num_waiting = 0;
  int64_t round = 0;  // meetings held
  std::vector<std::string> texts;
  std::span<float> root_values;
};

// A box of messages from one rank to another; sized messages (send) and posted ones do not mix.
struct Box {
  Range range;
  int from, to;
  Tag tag;
  bool is_posted;
  auto operator<=>(const Box&) const = default;
};

struct World {
  std::mutex mutex;
  std::condition_variable changed;
  InProcessOptions options;
  std::map<Range, Meeting> meetings;
  std::map<Box, std::deque<std::string>> mail;
  std::vector<std::shared_ptr<Watch>> watches;
  std::exception_ptr failure;
};

class InProcessCommunicator : public Communicator {
 public:
  InProcessCommunicator(World& world, Range range, int world_rank)
      : Communicator(world.watches[static_cast<size_t>(world_rank)]),
        world_(world),
        range_(range),
        world_rank_(world_rank) {
    const std::lock_guard lock(world_.mutex);
    meeting_ = &world_.meetings[range_];
    meeting_->texts.resize(static_cast<size_t>(range_.count));
  }
  int rank() const override { return world_rank_ - range_.first; }
  int size() const override { return range_.count; }
  int local_size() const override { return static_cast<int>(world_.watches.size()); }
  int first_world_rank() const override { return range_.first; }

 private:
  void do_barrier() override {
    std::unique_lock lock(world_.mutex);
    const int64_t round = meeting_->round;
    if (++meeting_->num_waiting == range_.count) {
      meeting_->num_waiting = 0;
      ++meeting_->round;
      world_.changed.notify_all();
    }
    wait_until(lock, [&] { return meeting_->round != round; });
  }
  std::vector<std::string> do_all_gather(const std::string& text) override {
    {
      const std::lock_guard lock(world_.mutex);
      meeting_->texts[static_cast<size_t>(rank())] = text;
    }
    do_barrier();
    std::vector<std::string> all = meeting_->texts;  // nobody writes between the barriers
    do_barrier();
    return all;
  }
  void do_broadcast(std::span<float> values, int root) override {
    if (rank() == root) meeting_->root_values = values;
    do_barrier();
    if (rank() != root) {
      GRADUS_CHECK(values.size() == meeting_->root_values.size(), "broadcast of unequal sizes");
      std::copy(meeting_->root_values.begin(), meeting_->root_values.end(), values.begin());
    }
    do_barrier();
  }
  void do_send(std::span<const float> values, int to, Tag tag) override {
    deliver({range_, rank(), to, tag, false},
            std::string(reinterpret_cast<const char*>(values.data()), values.size_bytes()));
  }
  void do_receive(std::span<float> values, int from, Tag tag) override {
    std::unique_lock lock(world_.mutex);
    std::deque<std::string>& letters = world_.mail[{range_, from, rank(), tag, false}];
    wait_until(lock, [&] { return !letters.empty(); });
    GRADUS_CHECK(letters.front().size() == values.size_bytes(), "a message of another size came");
    std::memcpy(values.data(), letters.front().data(), values.size_bytes());
    letters.pop_front();
  }
  void do_swap(std::span<const float> mine, std::span<float> theirs, int peer, Tag tag) override {
    do_send(mine, peer, tag);
    do_receive(theirs, peer, tag);
  }
  void do_post(std::string bytes, int to, Tag tag) override {
    deliver({range_, rank(), to, tag, true}, std::move(bytes));
  }
  std::optional<Message> do_poll(Tag tag, int from) override {
    const std::lock_guard lock(world_.mutex);
    stop_if_failed();
    for (int sender = 0; sender < range_.count; ++sender) {
      if (from != kAnyRank && from != sender) continue;
      const auto found = world_.mail.find({range_, sender, rank(), tag, true});
      if (found == world_.mail.end() || found->second.empty()) continue;
      Message message{sender, std::move(found->second.front())};
      found->second.pop_front();
      return message;
    }
    stop_if_stuck();
    return std::nullopt;
  }
  bool do_is_flushed() override { return true; }
  std::unique_ptr<Communicator> do_subset(int first, int count) const override {
    return std::make_unique<InProcessCommunicator>(world_, Range{range_.first + first, count},
                                                   world_rank_);
  }

  void deliver(const Box& box, std::string bytes) {
    const std::lock_guard lock(world_.mutex);
    world_.mail[box].push_back(std::move(bytes));
    world_.changed.notify_all();
  }
  template <class Condition>
  void wait_until(std::unique_lock<std::mutex>& lock, const Condition& is_done) {
    for (;;) {
      if (is_done()) return;
      stop_if_failed();
      if (world_.changed.wait_for(lock, kLookEvery) == std::cv_status::timeout && !is_done()) {
        stop_if_stuck();
      }
    }
  }
  void stop_if_failed() const {
    if (world_.failure != nullptr) throw std::runtime_error("another rank failed");
  }
  void stop_if_stuck() const {
    const double limit = world_.options.stuck_after_s;
    if (watch().report().waiting_s <= limit) return;
    std::vector<Sighting> ranks;
    std::set<int> lost;
    for (size_t rank = 0; rank < world_.watches.size(); ++rank) {
      ranks.push_back({.report = world_.watches[rank]->report(), .host = "this process"});
      if (watch().is_lost(static_cast<int>(rank))) lost.insert(static_cast<int>(rank));
    }
    const std::optional<Diagnosis> diagnosis = diagnose(ranks, limit, lost);
    if (!diagnosis) return;
    throw std::runtime_error(fmt::format("the ranks are stuck: {}; {}", diagnosis->headline,
                                         describe(ranks, world_rank_, limit)));
  }

  World& world_;
  const Range range_;
  const int world_rank_;
  Meeting* meeting_ = nullptr;
};

}  // namespace

void run_ranks(int size, const std::function<void(Communicator&)>& body,
               const InProcessOptions& options) {
  World world;
  world.options = options;
  for (int rank = 0; rank < size; ++rank) world.watches.push_back(std::make_shared<Watch>(rank));
  const auto fail = [&](const std::exception_ptr& failure) {
    const std::lock_guard lock(world.mutex);
    if (world.failure == nullptr) world.failure = failure;
    world.changed.notify_all();
  };
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      try {
        InProcessCommunicator communicator(world, {0, size}, rank);
        body(communicator);
        world.watches[static_cast<size_t>(rank)]->leave();
      } catch (const RankDied&) {
        if (options.may_lose && options.may_lose(rank)) {
          for (const std::shared_ptr<Watch>& watch : world.watches) watch->set_lost(rank);
        } else {
          fail(std::make_exception_ptr(std::runtime_error(fmt::format("rank {} died", rank))));
        }
      } catch (...) {
        fail(std::current_exception());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  if (world.failure != nullptr) std::rethrow_exception(world.failure);
}

}  // namespace gradus::comm
