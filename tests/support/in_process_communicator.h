// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "comm/communicator.h"

namespace gradus::testing {

// Runs `body` on `size` ranks, each a thread of this process with its own communicator, and returns
// when all are done. What a rank throws is rethrown here; the others then stop waiting for it.
// Bodies share nothing that is not thread-safe: each needs its own Transformer.
inline void run_ranks(int size, const std::function<void(comm::Communicator&)>& body) {
  struct Shared {
    std::mutex mutex;
    std::condition_variable changed;
    int waiting = 0;
    int64_t round = 0;  // barriers passed
    std::vector<std::string> texts;
    std::span<float> root_values;
    std::map<std::pair<int, int>, std::deque<std::vector<float>>> mail;  // by (from, to)
    std::exception_ptr failure;
  };

  class Rank : public comm::Communicator {
   public:
    Rank(Shared& shared, int rank, int num_ranks)
        : shared_(shared), rank_(rank), size_(num_ranks) {}
    int rank() const override { return rank_; }
    int size() const override { return size_; }
    int local_size() const override { return size_; }

    void barrier() override {
      std::unique_lock lock(shared_.mutex);
      const int64_t round = shared_.round;
      if (++shared_.waiting == size_) {
        shared_.waiting = 0;
        ++shared_.round;
        shared_.changed.notify_all();
      }
      wait(lock, [&] { return shared_.round != round; });
    }
    std::vector<std::string> all_gather(const std::string& text) override {
      {
        const std::lock_guard lock(shared_.mutex);
        shared_.texts[static_cast<size_t>(rank_)] = text;
      }
      barrier();
      std::vector<std::string> all = shared_.texts;  // nobody writes between the barriers
      barrier();
      return all;
    }
    void broadcast(std::span<float> values, int root) override {
      if (rank_ == root) shared_.root_values = values;
      barrier();
      if (rank_ != root) {
        GRADUS_CHECK(values.size() == shared_.root_values.size(), "broadcast of unequal sizes");
        std::copy(shared_.root_values.begin(), shared_.root_values.end(), values.begin());
      }
      barrier();
    }
    void send(std::span<const float> values, int to) override {
      const std::lock_guard lock(shared_.mutex);
      shared_.mail[{rank_, to}].emplace_back(values.begin(), values.end());
      shared_.changed.notify_all();
    }
    void receive(std::span<float> values, int from) override {
      std::unique_lock lock(shared_.mutex);
      std::deque<std::vector<float>>& letters = shared_.mail[{from, rank_}];
      wait(lock, [&] { return !letters.empty(); });
      GRADUS_CHECK(letters.front().size() == values.size(), "a message of another size came");
      std::copy(letters.front().begin(), letters.front().end(), values.begin());
      letters.pop_front();
    }

   private:
    void wait(std::unique_lock<std::mutex>& lock, const std::function<bool()>& is_done) {
      shared_.changed.wait(lock, [&] { return is_done() || shared_.failure != nullptr; });
      if (!is_done()) throw std::runtime_error("another rank failed");
    }
    Shared& shared_;
    int rank_, size_;
  };

  Shared shared;
  shared.texts.resize(static_cast<size_t>(size));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      Rank communicator(shared, rank, size);
      try {
        body(communicator);
      } catch (...) {
        const std::lock_guard lock(shared.mutex);
        if (shared.failure == nullptr) shared.failure = std::current_exception();
        shared.changed.notify_all();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  if (shared.failure != nullptr) std::rethrow_exception(shared.failure);
}

}  // namespace gradus::testing
