// SPDX-License-Identifier: Apache-2.0
#include "federated/internal/client_states.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

namespace gradus::federated::internal {
namespace {

namespace fs = std::filesystem;

size_t bytes_of(int64_t num_clients, int64_t size) {
  return static_cast<size_t>(num_clients) * static_cast<size_t>(size) * sizeof(float);
}

Status failure(const std::string& path, const char* doing) {
  return unavailable("{}: cannot {}: {}", path, doing, std::strerror(errno));
}

// Step of a log beside `path`, or -1 for other files.
int64_t step_of(const fs::path& file, const std::string& path) {
  const std::string prefix = fs::path(path).filename().string() + ".undo_";
  const std::string name = file.filename().string();
  if (!name.starts_with(prefix)) return -1;
  return std::atoll(name.c_str() + prefix.size());
}

// Logs beside `path`, newest first.
std::vector<std::pair<int64_t, std::string>> logs_of(const std::string& path) {
  std::vector<std::pair<int64_t, std::string>> logs;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(fs::path(path).parent_path(), error)) {
    const int64_t step = step_of(entry.path(), path);
    if (step >= 0) logs.emplace_back(step, entry.path().string());
  }
  std::sort(logs.rbegin(), logs.rend());
  return logs;
}

}  // namespace

Result<ClientStates> ClientStates::open(const std::string& path, int64_t num_clients, int64_t size,
                                        bool is_fresh) {
  ClientStates states;
  states.path_ = path;
  states.num_clients_ = num_clients;
  states.size_ = size;
  if (size == 0) return states;
  int descriptor = -1;
  int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  if (!path.empty()) {
    std::error_code ignored;
    for (const auto& [step, log] : logs_of(path)) {
      if (is_fresh) fs::remove(log, ignored);
    }
    descriptor = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (descriptor < 0) return failure(path, "open");
    if ((is_fresh && ::ftruncate(descriptor, 0) != 0) ||
        ::ftruncate(descriptor, static_cast<off_t>(bytes_of(num_clients, size))) != 0) {
      ::close(descriptor);
      return failure(path, "set its size");
    }
    flags = MAP_SHARED;
  }
  void* mapped =
      ::mmap(nullptr, bytes_of(num_clients, size), PROT_READ | PROT_WRITE, flags, descriptor, 0);
  if (descriptor >= 0) ::close(descriptor);
  if (mapped == MAP_FAILED) return failure(path, "map");
  states.data_ = static_cast<float*>(mapped);
  return states;
}

ClientStates::ClientStates(ClientStates&& other) noexcept { *this = std::move(other); }

ClientStates& ClientStates::operator=(ClientStates&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(num_clients_, other.num_clients_);
  std::swap(size_, other.size_);
  std::swap(logged_, other.logged_);
  std::swap(step_, other.step_);
  std::swap(rank_, other.rank_);
  return *this;
}

ClientStates::~ClientStates() {
  if (data_ != nullptr) ::munmap(data_, bytes_of(num_clients_, size_));
}

std::span<float> ClientStates::row(int64_t client) {
  if (data_ == nullptr) return {};
  return {data_ + client * size_, static_cast<size_t>(size_)};
}

void ClientStates::start_interval(int64_t step, int rank) {
  if (rank == 0 && data_ != nullptr && !path_.empty()) {
    for (const auto& [log_step, log] : logs_of(path_)) {
      std::error_code ignored;
      if (log_step < step_) fs::remove(log, ignored);
    }
  }
  logged_.clear();
  step_ = step;
  rank_ = rank;
}

Status ClientStates::before_change(std::span<const int64_t> all, std::span<const int64_t> mine) {
  if (data_ == nullptr || path_.empty()) return {};
  std::string bytes;
  for (const int64_t client : mine) {
    if (logged_.contains(client)) continue;
    const std::span<const float> values = row(client);
    bytes.append(reinterpret_cast<const char*>(&client), sizeof(client));
    bytes.append(reinterpret_cast<const char*>(values.data()), values.size_bytes());
  }
  logged_.insert(all.begin(), all.end());
  if (bytes.empty()) return {};
  const std::string log = fmt::format("{}.undo_{}.{}", path_, step_, rank_);
  const int descriptor = ::open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (descriptor < 0) return failure(log, "open");
  const ssize_t written = ::write(descriptor, bytes.data(), bytes.size());
  ::close(descriptor);
  if (written != static_cast<ssize_t>(bytes.size())) return failure(log, "write all");
  return {};
}

Status ClientStates::roll_back(const std::string& path, int64_t size, int64_t step) {
  if (size == 0) return {};
  const int descriptor = ::open(path.c_str(), O_WRONLY | O_CLOEXEC);
  if (descriptor < 0) {
    return errno == ENOENT
               ? not_found("{}: the states of the clients are gone; start the run anew", path)
               : failure(path, "open");
  }
  const size_t row_bytes = bytes_of(1, size);
  Status status;
  for (const auto& [log_step, log] : logs_of(path)) {
    if (log_step < step || !status.ok()) continue;
    const int input = ::open(log.c_str(), O_RDONLY | O_CLOEXEC);
    std::string record(sizeof(int64_t) + row_bytes, '\0');
    // A record that a kill cut off belongs to a state that was not changed yet.
    while (input >= 0 &&
           ::read(input, record.data(), record.size()) == static_cast<ssize_t>(record.size())) {
      int64_t client = 0;
      std::memcpy(&client, record.data(), sizeof(client));
      if (::pwrite(descriptor, record.data() + sizeof(client), row_bytes,
                   static_cast<off_t>(static_cast<size_t>(client) * row_bytes)) !=
          static_cast<ssize_t>(row_bytes)) {
        status = failure(path, "write");
        break;
      }
    }
    if (input >= 0) ::close(input);
    std::error_code ignored;
    if (status.ok()) fs::remove(log, ignored);
  }
  ::close(descriptor);
  return status;
}

}  // namespace gradus::federated::internal
