// SPDX-License-Identifier: Apache-2.0
#include "rewards/internal/child_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <thread>

#include "rewards/internal/text.h"

extern char** environ;

namespace gradus::rewards {
namespace {

constexpr size_t kMaxLineBytes = 64 << 20;
constexpr auto kTimeToEnd = std::chrono::milliseconds(100);

}  // namespace

Result<std::unique_ptr<ChildProcess>> ChildProcess::start(
    const std::vector<std::string>& arguments) {
  int sockets[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) != 0) {
    return unavailable("cannot make a socket: {}", std::strerror(errno));
  }
  std::vector<char*> words;
  for (const std::string& argument : arguments)
    words.push_back(const_cast<char*>(argument.c_str()));
  words.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, sockets[1], STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, sockets[1], STDOUT_FILENO);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP);
  posix_spawnattr_setpgroup(&attributes, 0);
  pid_t pid = -1;
  const int error = posix_spawnp(&pid, words[0], &actions, &attributes, words.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  close(sockets[1]);
  if (error != 0) {
    close(sockets[0]);
    return unavailable("cannot start '{}': {}", arguments[0], std::strerror(error));
  }
  fcntl(sockets[0], F_SETFL, O_NONBLOCK);
  return std::unique_ptr<ChildProcess>(new ChildProcess(pid, sockets[0]));
}

ChildProcess::~ChildProcess() {
  close(socket_);  // it reads the end of its input
  const auto end = std::chrono::steady_clock::now() + kTimeToEnd;
  while (!is_reaped_ && !is_late_ && std::chrono::steady_clock::now() < end) {
    is_reaped_ = waitpid(pid_, nullptr, WNOHANG) == pid_;
    if (!is_reaped_) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  kill(-pid_, SIGKILL);  // also what it started
  if (!is_reaped_) waitpid(pid_, nullptr, 0);
}

std::string ChildProcess::how_it_ended() {
  kill(pid_, SIGKILL);  // it closed its output: it cannot answer any more
  int status = 0;
  if (is_reaped_ || waitpid(pid_, &status, 0) != pid_) return "the process ended";
  is_reaped_ = true;
  if (WIFEXITED(status))
    return fmt::format("the process ended with exit code {}", WEXITSTATUS(status));
  return fmt::format("the process ended by signal {} ({})", WTERMSIG(status),
                     strsignal(WTERMSIG(status)));
}

Result<std::string> ChildProcess::exchange(std::string_view line, Deadline deadline) {
  is_late_ = false;
  std::string_view parts[2] = {line, line.empty() ? "" : "\n"};
  size_t searched = 0;
  for (;;) {
    const size_t end = read_.find('\n', searched);
    if (end != std::string::npos && parts[0].empty() && parts[1].empty()) {
      std::string answer = read_.substr(0, end);
      read_.erase(0, end + 1);
      return answer;
    }
    searched = end != std::string::npos ? end : read_.size();
    if (read_.size() > kMaxLineBytes) {
      return data_loss("the process wrote a line of more than {} bytes", kMaxLineBytes);
    }
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    const bool has_more = !parts[0].empty() || !parts[1].empty();
    pollfd socket{socket_, static_cast<short>(POLLIN | (has_more ? POLLOUT : 0)), 0};
    const int ready =
        left.count() <= 0
            ? 0
            : poll(&socket, 1, static_cast<int>(std::min<int64_t>(left.count(), 1 << 30)));
    if (ready < 0 && errno == EINTR) continue;
    if (ready <= 0) {
      is_late_ = true;
      return unavailable("the process gave no answer in time");
    }
    if ((socket.revents & POLLOUT) != 0) {
      std::string_view& part = parts[0].empty() ? parts[1] : parts[0];
      const ssize_t sent = send(socket_, part.data(), part.size(), MSG_NOSIGNAL);
      if (sent > 0) part.remove_prefix(static_cast<size_t>(sent));
      if (sent < 0 && errno != EAGAIN && errno != EINTR) return unavailable("{}", how_it_ended());
    }
    if ((socket.revents & (POLLIN | POLLHUP | POLLERR)) != 0) {
      char buffer[1 << 16];
      const ssize_t received = recv(socket_, buffer, sizeof(buffer), 0);
      if (received > 0) read_.append(buffer, static_cast<size_t>(received));
      if (received == 0 || (received < 0 && errno != EAGAIN && errno != EINTR)) {
        // What it wrote before it ended still counts.
        if (!has_more && read_.find('\n') != std::string::npos) continue;
        return unavailable("{}", how_it_ended());
      }
    }
  }
}

Result<std::vector<std::string>> split_command(std::string_view command) {
  std::vector<std::string> words;
  bool is_inside = false;
  char quote = 0;
  for (const char c : command) {
    if (quote == 0 && (c == ' ' || c == '\t' || c == '\n')) {
      is_inside = false;
      continue;
    }
    if (!is_inside) words.emplace_back();
    is_inside = true;
    if (quote == 0 && (c == '\'' || c == '"')) {
      quote = c;
    } else if (c == quote) {
      quote = 0;
    } else {
      words.back() += c;
    }
  }
  if (quote != 0) return invalid_argument("a {} has no end", quote);
  if (words.empty()) return invalid_argument("is empty; expected a program and its arguments");
  return words;
}

void append_json_text(std::string_view text, std::string& json) {
  constexpr char kHex[] = "0123456789abcdef";
  json += '"';
  size_t begin = 0;  // of what can be copied as it is
  for (size_t i = 0; i < text.size();) {
    const unsigned char c = static_cast<unsigned char>(text[i]);
    if (c >= 0x20 && c < 0x80 && c != '"' && c != '\\') {
      ++i;
      continue;
    }
    size_t size = 1;
    if (c >= 0x80) {
      const Character character = character_at(text, i);
      size = character.size;
      if (character.code >= 0) {
        i += size;
        continue;
      }
    }
    json.append(text, begin, i - begin);
    if (c >= 0x80) {
      json += "\xef\xbf\xbd";
    } else if (c == '"' || c == '\\') {
      json += '\\';
      json += static_cast<char>(c);
    } else if (c == '\n') {
      json += "\\n";
    } else {
      json += "\\u00";
      json += kHex[c >> 4];
      json += kHex[c & 15];
    }
    i += size;
    begin = i;
  }
  json.append(text, begin, text.size() - begin);
  json += '"';
}

}  // namespace gradus::rewards
