// SPDX-License-Identifier: Apache-2.0
#include "records/run_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <utility>
#include <vector>

#include "common/atomic_file.h"
#include "records/checkpoint_store.h"
#include "records/internal/durable_file.h"
#include "records/metrics_log.h"
#include "records/rollout_dump.h"

namespace fs = std::filesystem;

namespace gradus::records {
namespace {

// What a folder holds of an earlier run.
struct Found {
  size_t num_metric_lines = 0;
  int64_t last_step = 0;
  size_t num_rollout_files = 0;
  std::string newest_checkpoint;  // "step_40", or empty
  std::string foreign;            // first entry that no run writes, or empty

  bool is_run() const {
    return num_metric_lines + num_rollout_files > 0 || !newest_checkpoint.empty();
  }
  std::string describe() const {
    std::string text;
    if (num_metric_lines > 0) text = fmt::format("metrics up to step {}", last_step);
    if (!newest_checkpoint.empty()) {
      text += fmt::format("{}checkpoint {}", text.empty() ? "" : ", ", newest_checkpoint);
    }
    return text.empty() ? fmt::format("{} files of rollouts", num_rollout_files) : text;
  }
};

bool is_run_entry(const std::string& name) {
  for (const char* known : {"config.resolved.yaml", "metrics.jsonl", "rollouts", "checkpoints",
                            "logs", "report.html", ".lock"}) {
    // A crash can leave the half-written twin of a file, "NAME.tmp".
    if (name == known || name.starts_with(std::string(known) + ".tmp")) return true;
  }
  return name.starts_with("events.out.tfevents.");
}

Found look_into(const RunPaths& paths) {
  Found found;
  if (const auto lines = read_metrics(paths.metrics()); lines.ok()) {
    found.num_metric_lines = lines->size();
    for (const MetricLine& line : *lines) found.last_step = std::max(found.last_step, line.step);
  }
  found.num_rollout_files = rollout_steps(paths.rollouts()).size();
  const CheckpointStore store(paths.checkpoints(), {}, [](const std::string&) {});
  if (const auto all = store.list(); !all.empty()) {
    found.newest_checkpoint = fs::path(all.back().folder).filename();
  }
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(paths.folder(), error)) {
    const std::string name = entry.path().filename();
    if (!is_run_entry(name) && (found.foreign.empty() || name < found.foreign))
      found.foreign = name;
  }
  return found;
}

Status make_folder(const std::string& path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error) return internal::file_error(path, "create the folder", error.value());
  return {};
}

// The descriptor that holds the lock.
Result<int> lock_folder(const RunPaths& paths) {
  const std::string path = paths.folder() + "/.lock";
  const int descriptor = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (descriptor < 0) return internal::file_error(path, "create", errno);
  if (::flock(descriptor, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    ::close(descriptor);
    const auto owner = internal::read_file(path);
    return unavailable("{}: another process is writing to this run ({}); stop it or wait for it",
                       paths.folder(), owner.ok() && !owner->empty() ? *owner : "unknown");
  }
  // Some network file systems have no locks; the run goes on without one there.
  char host[256] = "";
  ::gethostname(host, sizeof(host) - 1);
  const std::string owner = fmt::format("process {} on {}", ::getpid(), host);
  if (::ftruncate(descriptor, 0) != 0 ||
      ::pwrite(descriptor, owner.data(), owner.size(), 0) != static_cast<ssize_t>(owner.size())) {
    const Status status = internal::file_error(path, "write", errno);
    ::close(descriptor);
    return status;
  }
  return descriptor;
}

}  // namespace

std::string RunPaths::rollouts(int64_t step) const {
  return fmt::format("{}/rollouts/step_{}.jsonl", folder_, step);
}

std::string RunPaths::failed_step(int64_t step) const {
  return fmt::format("{}/failed_step_{}", folder_, step);
}

Result<RunFolder> RunFolder::open(const std::string& folder, RunStart start) {
  RunPaths paths(folder);
  std::error_code error;
  const bool exists = fs::exists(folder, error);
  if (exists && !fs::is_directory(folder, error)) {
    return invalid_argument("{}: is a file; choose a folder for the run", folder);
  }
  const Found found = exists ? look_into(paths) : Found{};
  if (start == RunStart::kFresh && found.is_run()) {
    return invalid_argument(
        "{}: a run is already here ({}); continue it with --resume or set another run.name", folder,
        found.describe());
  }
  if (start == RunStart::kResume && !found.is_run()) {
    return not_found("{}: no run to resume ({}); start it without --resume or check the path",
                     folder, exists ? "nothing recorded yet" : "no such folder");
  }
  if (!found.is_run() && !found.foreign.empty()) {
    return invalid_argument(
        "{}: not empty and not a run (it holds '{}'); choose an empty or new folder", folder,
        found.foreign);
  }
  for (const std::string& path : {folder, paths.checkpoints(), paths.rollouts(), paths.logs()}) {
    GRADUS_RETURN_IF_ERROR(make_folder(path));
  }
  const Result<int> lock = lock_folder(paths);
  GRADUS_RETURN_IF_ERROR(lock.status());
  return RunFolder(std::move(paths), *lock, found.is_run());
}

RunFolder::RunFolder(RunFolder&& other) noexcept
    : paths_(other.paths_), lock_(std::exchange(other.lock_, -1)), is_resumed_(other.is_resumed_) {}

RunFolder::~RunFolder() {
  if (lock_ >= 0) ::close(lock_);
}

Status RunFolder::write_config(const std::string& yaml) {
  return write_file_atomically(paths_.config(), yaml);
}

Status RunFolder::cut_after(int64_t step) {
  for (const int64_t recorded : rollout_steps(paths_.rollouts())) {
    if (recorded <= step) continue;
    const std::string path = paths_.rollouts(recorded);
    if (::unlink(path.c_str()) != 0) return internal::file_error(path, "remove", errno);
  }
  return {};
}

}  // namespace gradus::records
