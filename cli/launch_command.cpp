// SPDX-License-Identifier: Apache-2.0
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cli/command.h"
#include "cli/run_setup.h"
#include "common/strings.h"

namespace gradus::cli {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kExitNotStarted = 127;  // there is no such program
constexpr int kPollMs = 200;
// Ranks that have found the run stuck end by themselves; what is left after so long is ended.
constexpr auto kStuckGrace = std::chrono::seconds(5);
// And after so much longer, without being asked.
constexpr auto kKillGrace = std::chrono::seconds(5);
// Ranks leave when the run is done; a dead one may hold mpirun up.
constexpr auto kEndGrace = std::chrono::seconds(10);

struct LaunchArguments {
  int64_t num_ranks = 0;
  std::string hosts;
  std::string mpirun = "mpirun";
  int64_t max_restarts = 3;
  int64_t checkpoint_every = 1;
  std::vector<std::string> command;
};

std::atomic<int> stop_signals{0};  // set by the handler

void count_signal(int) { ++stop_signals; }

std::vector<std::string> words_of(const std::string& text) {
  std::vector<std::string> words;
  std::string word;
  for (const char c : text + " ") {
    if (c != ' ') {
      word += c;
    } else if (!word.empty()) {
      words.push_back(std::move(word));
      word.clear();
    }
  }
  return words;
}

// How one mpirun ended. Its own exit code also tells of rollout ranks that the run went on without.
struct Ending {
  int exit_code = 0;
  bool is_complete = false;  // rank 0 said so
  bool is_mistake = false;   // ranks ended with an error of their own: it would come again
  bool is_stopped = false;   // by a signal to this process
};

// One run of mpirun, whose messages go on to standard error and are read on the way.
class Mpirun {
 public:
  // Starts it. Unavailable if it cannot be started.
  Status start(const std::vector<std::string>& words) {
    int ends[2];
    if (pipe(ends) != 0) return unavailable("no pipe to mpirun: {}", std::strerror(errno));
    process_ = fork();
    if (process_ < 0) return unavailable("no process for mpirun: {}", std::strerror(errno));
    if (process_ == 0) {
      setpgid(0, 0);  // Ctrl-C is this process's to pass on
      dup2(ends[1], STDERR_FILENO);
      close(ends[0]);
      close(ends[1]);
      std::vector<char*> argv;
      for (const std::string& word : words) argv.push_back(const_cast<char*>(word.c_str()));
      argv.push_back(nullptr);
      execvp(argv[0], argv.data());
      fmt::print(stderr, "{}: {}\n", words[0], std::strerror(errno));
      std::_Exit(kExitNotStarted);
    }
    close(ends[1]);
    messages_ = ends[0];
    return {};
  }

  Ending wait() {
    Ending ending;
    int num_passed_on = 0, status = 0;
    for (;;) {
      pass_messages_on();
      if (waitpid(process_, &status, WNOHANG) == process_) break;
      if (num_passed_on < stop_signals) {
        // The first asks all ranks to finish the step; further ones end them.
        kill(process_, num_passed_on++ == 0 ? SIGUSR1 : SIGTERM);
        ending.is_stopped = true;
      }
      end_what_is_left();
    }
    pass_messages_on();
    close(messages_);
    ending.is_complete = is_complete_;
    ending.is_mistake = has_error_ && !has_dead_;
    ending.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    return ending;
  }

 private:
  void pass_messages_on() {
    pollfd waiting{.fd = messages_, .events = POLLIN, .revents = 0};
    char buffer[4096];
    for (int timeout = kPollMs; poll(&waiting, 1, timeout) > 0; timeout = 0) {
      const ssize_t count = read(messages_, buffer, sizeof(buffer));
      if (count <= 0) {
        usleep(kPollMs * 1000);  // closed: mpirun is about to end
        return;
      }
      (void)!write(STDERR_FILENO, buffer, static_cast<size_t>(count));
      tail_.append(buffer, static_cast<size_t>(count));
      const auto has_said = [&](const char* text) { return tail_.find(text) != std::string::npos; };
      if (!ends_at_ && has_said(kStuckMessage)) ends_at_ = Clock::now() + kStuckGrace;
      has_error_ |= has_said("gradus: error");
      has_dead_ |= has_said(kStuckMessage) || has_said(comm::kTransportFailed);
      if (!is_complete_ && has_said(kEndMessage)) {
        is_complete_ = true;
        ends_at_ = Clock::now() + kEndGrace;
      }
      if (tail_.size() > 8192) tail_.erase(0, tail_.size() - 4096);
    }
  }
  // A stopped process does not end by itself, and mpirun waits for it.
  void end_what_is_left() {
    if (!ends_at_ || Clock::now() < *ends_at_) return;
    if (num_kills_ == 0) {
      ++num_kills_;
      kill(process_, SIGTERM);
    } else if (num_kills_ == 1 && Clock::now() > *ends_at_ + kKillGrace) {
      ++num_kills_;
      kill(-process_, SIGKILL);
    }
  }

  pid_t process_ = -1;
  int messages_ = -1;
  std::string tail_;
  bool is_complete_ = false, has_error_ = false, has_dead_ = false;
  std::optional<Clock::time_point> ends_at_;
  int num_kills_ = 0;
};

bool has_argument(const std::vector<std::string>& command, const std::string& start) {
  return std::any_of(command.begin(), command.end(), [&](const std::string& word) {
    return word == start || word.starts_with(start + "=");
  });
}

std::vector<std::string> mpirun_words(const LaunchArguments& arguments, bool is_restart) {
  std::vector<std::string> words = words_of(arguments.mpirun);
  for (const char* word : {"--enable-recovery", "-np"}) words.emplace_back(word);
  words.push_back(std::to_string(arguments.num_ranks));
  if (!arguments.hosts.empty()) {
    words.emplace_back("--host");
    words.push_back(arguments.hosts);
  }
  words.push_back(std::filesystem::read_symlink("/proc/self/exe"));
  words.insert(words.end(), arguments.command.begin(), arguments.command.end());
  if (arguments.checkpoint_every > 0) {
    words.emplace_back("--set");
    words.push_back(fmt::format("run.checkpoint_every={}", arguments.checkpoint_every));
  }
  if (is_restart && !has_argument(arguments.command, "--resume")) words.emplace_back("--resume");
  return words;
}

Status launch(const LaunchArguments& arguments) {
  if (arguments.command.empty() ||
      (arguments.command[0] != "train" && arguments.command[0] != "sft")) {
    return invalid_argument(
        "gradus launch starts 'train' or 'sft', got '{}'; write it after --, as in: gradus launch "
        "-np 4 -- train run.yaml",
        arguments.command.empty() ? "nothing" : arguments.command[0]);
  }
  signal(SIGINT, count_signal);
  signal(SIGTERM, count_signal);
  signal(SIGUSR1, count_signal);
  for (int64_t restarts = 0;; ++restarts) {
    Mpirun mpirun;
    GRADUS_RETURN_IF_ERROR(mpirun.start(mpirun_words(arguments, restarts > 0)));
    const Ending ending = mpirun.wait();
    if (ending.is_complete || ending.is_stopped) return {};
    if (ending.is_mistake || ending.exit_code == kExitNotStarted) {
      return invalid_argument("the run ended by a mistake and is not started again; see above");
    }
    if (restarts == arguments.max_restarts) {
      return unavailable(
          "the run did not reach its end after {} restarts (mpirun's exit code {}); see above, and "
          "raise --restarts if ranks die that often",
          restarts, ending.exit_code);
    }
    fmt::print(stderr,
               "gradus: ranks died; the run starts again from its newest checkpoint (restart {} of "
               "{})\n",
               restarts + 1, arguments.max_restarts);
  }
}

}  // namespace

void add_launch_command(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand(
      "launch", "Run train or sft under mpirun, and again from the newest checkpoint if ranks die");
  auto arguments = std::make_shared<LaunchArguments>();
  command->add_option("--np", arguments->num_ranks, "Ranks (also -np)")
      ->required()
      ->check(CLI::Range(1, 65536));
  command->add_option("--hosts", arguments->hosts, "Hosts with their slots, as mpirun's --host");
  command->add_option("--mpirun", arguments->mpirun,
                      "mpirun with further options of its own, e.g. \"mpirun --bind-to none\"");
  command->add_option("--restarts", arguments->max_restarts, "How often the run is started again")
      ->check(CLI::NonNegativeNumber);
  command
      ->add_option("--checkpoint-every", arguments->checkpoint_every,
                   "Steps between checkpoints, and so the most steps that a restart loses; 0: as "
                   "the configuration says")
      ->check(CLI::NonNegativeNumber);
  command->add_option("command", arguments->command,
                      "After --: train or sft with its configuration and options");
  command->callback([&action, arguments] { action = [=] { return launch(*arguments); }; });
}

}  // namespace gradus::cli
