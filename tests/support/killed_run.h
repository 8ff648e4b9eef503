// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/tiny_run.h"

namespace gradus::test {

// Runs that are killed again and again.
class KilledRun : public TinyRun {
 protected:
  using Clock = std::chrono::steady_clock;

  // Starts `command` (shell text whose last program becomes the process) and waits until
  // `is_moment` says so, then sends SIGKILL. False if the process had ended by itself.
  template <class Moment>
  bool kill_at(const std::string& command, const Moment& is_moment) const {
    const std::string text = "exec " + command + " >/dev/null 2>>" + path("messages");
    const pid_t pid = ::fork();
    if (pid == 0) {
      ::execl("/bin/sh", "sh", "-c", text.c_str(), nullptr);
      ::_exit(127);
    }
    int status = 0;
    while (!is_moment()) {
      if (::waitpid(pid, &status, WNOHANG) == pid) return false;
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
    ::kill(pid, SIGKILL);
    ::waitpid(pid, &status, 0);
    return WIFSIGNALED(status) != 0;
  }

  int64_t num_rows(const std::string& name) const {
    std::ifstream file(path("runs/" + name + "/metrics.jsonl"));
    int64_t rows = 0;
    for (std::string line; std::getline(file, line);) ++rows;
    return rows;
  }
  bool is_writing_checkpoint(const std::string& name) const {
    std::error_code error;
    for (const auto& entry :
         std::filesystem::directory_iterator(path("runs/" + name + "/checkpoints"), error)) {
      if (entry.path().filename().string().starts_with(".tmp_step_")) return true;
    }
    return false;
  }

  // What an earlier kill has left of a checkpoint, which the run would remove at its next one.
  void remove_leftovers(const std::string& name) const {
    std::vector<std::filesystem::path> leftovers;
    std::error_code error;
    for (const auto& entry :
         std::filesystem::directory_iterator(path("runs/" + name + "/checkpoints"), error)) {
      if (entry.path().filename().string().starts_with(".tmp_")) leftovers.push_back(entry.path());
    }
    for (const auto& leftover : leftovers) std::filesystem::remove_all(leftover);
  }

  // Kills the run `name` `num_kills` times, every third time while it writes a checkpoint, else at
  // a random moment of a random step, and resumes it each time; then lets it end. Expects the state
  // and the metrics of the run `whole`, which was left alone.
  void expect_survival(const std::string& whole, const std::string& name,
                       const std::string& options, int num_kills, unsigned seed) const {
    std::mt19937 random(seed);
    const auto started = Clock::now();
    train("train", whole, options);
    const double step_seconds = std::chrono::duration<double>(Clock::now() - started).count() /
                                static_cast<double>(num_rows(whole));
    int num_in_checkpoint = 0;
    for (int kill = 0; kill < num_kills; ++kill) {
      const bool aims_at_checkpoint = kill % 3 == 2;
      if (aims_at_checkpoint) remove_leftovers(name);
      const int64_t rows =
          num_rows(name) + (aims_at_checkpoint ? 0 : static_cast<int64_t>(random() % 3));
      const double delay = step_seconds * static_cast<double>(random() % 1000) / 1000;
      bool has_rows = false;
      Clock::time_point since;
      const bool was_killed = kill_at(
          std::string(GRADUS_BINARY) + " " +
              arguments("train", name, options + (kill == 0 ? "" : "--resume")),
          [&] {
            if (aims_at_checkpoint) return is_writing_checkpoint(name);
            if (!has_rows && num_rows(name) > rows) {
              has_rows = true;
              since = Clock::now();
            }
            return has_rows && std::chrono::duration<double>(Clock::now() - since).count() >= delay;
          });
      ASSERT_TRUE(was_killed) << "kill " << kill << " of seed " << seed << " came too late\n"
                              << read_file(path("messages"));
      num_in_checkpoint += is_writing_checkpoint(name) ? 1 : 0;
    }
    EXPECT_GE(num_in_checkpoint, num_kills / 3) << "checkpoints that a kill cut off";
    train("train", name, options + "--resume");
    EXPECT_EQ(state(name), state(whole)) << "seed " << seed;
    EXPECT_EQ(metrics(name), metrics(whole)) << "each step stands there once; seed " << seed;
  }
};

}  // namespace gradus::test
