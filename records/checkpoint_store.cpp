// SPDX-License-Identifier: Apache-2.0
#include "records/checkpoint_store.h"

#include <sys/statvfs.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <set>
#include <thread>
#include <utility>

#include "common/atomic_file.h"
#include "common/strings.h"
#include "records/checkpoint_manifest.h"
#include "records/internal/durable_file.h"
#include "records/internal/file_regions.h"

namespace fs = std::filesystem;

namespace gradus::records {
namespace {

constexpr char kManifest[] = "manifest.json";
constexpr char kDraftPrefix[] = ".tmp_";
// How often rank 0 looks whether other ranks have written their shares.
constexpr auto kShareInterval = std::chrono::milliseconds(2);

std::string step_name(int64_t step) { return fmt::format("step_{}", step); }

// The step of "step_40", or nothing for another name.
std::optional<int64_t> step_of(const std::string& name) {
  constexpr std::string_view kPrefix = "step_";
  if (!name.starts_with(kPrefix)) return std::nullopt;
  int64_t step = 0;
  const char* end = name.data() + name.size();
  const auto parsed = std::from_chars(name.data() + kPrefix.size(), end, step);
  if (parsed.ec != std::errc() || parsed.ptr != end || name != step_name(step)) return std::nullopt;
  return step;
}

std::string share_note(int share) { return fmt::format("{}share_{}.pb", kDraftPrefix, share); }

// The manifest of a folder whose files have the recorded sizes.
Result<CheckpointManifest> read_manifest(const std::string& folder) {
  const std::string path = folder + "/" + kManifest;
  const Result<std::string> text = internal::read_file(path);
  if (!text.ok() && text.status().code() == StatusCode::kNotFound) {
    return data_loss("{}: no {}; writing or copying it did not finish", folder, kManifest);
  }
  GRADUS_RETURN_IF_ERROR(text.status());
  const Result<CheckpointManifest> manifest = manifest_from_json(*text);
  if (!manifest.ok()) return manifest.status().with_prefix(path);
  for (const FileRecord& file : manifest->files) {
    const std::string file_path = folder + "/" + file.name;
    std::error_code error;
    const auto size = fs::file_size(file_path, error);
    if (error) return data_loss("{}: missing; the manifest has it", file_path);
    if (static_cast<int64_t>(size) != file.num_bytes) {
      return data_loss("{}: {} bytes; the manifest says {}", file_path, size, file.num_bytes);
    }
  }
  return manifest;
}

Status verify_hashes(const std::string& folder, const CheckpointManifest& manifest) {
  for (const FileRecord& file : manifest.files) {
    const std::string path = folder + "/" + file.name;
    for (const FileRegion& region : file.regions) {
      const Result<uint64_t> hash = internal::hash_file(path, region.offset, region.num_bytes);
      GRADUS_RETURN_IF_ERROR(hash.status());
      if (*hash == region.hash) continue;
      const std::string what = region.name.empty()
                                   ? std::string()
                                   : fmt::format("tensor '{}' is damaged: ", region.name);
      return data_loss("{}: {}hash {:016x}; the manifest says {:016x}: the content has changed",
                       path, what, *hash, region.hash);
    }
  }
  return {};
}

// Flushes and hashes a file of the folder.
Result<FileRecord> flush_file(const std::string& folder, const std::string& name) {
  const std::string path = folder + "/" + name;
  std::error_code error;
  const auto size = static_cast<int64_t>(fs::file_size(path, error));
  if (error) return internal::file_error(path, "read", error.value());
  GRADUS_RETURN_IF_ERROR(internal::sync_file(path));
  Result<std::vector<FileRegion>> regions = internal::hash_regions(path, size);
  GRADUS_RETURN_IF_ERROR(regions.status());
  return FileRecord{name, size, std::move(*regions)};
}

// The files that other ranks have noted; takes the notes away.
Result<std::vector<FileRecord>> take_notes(const std::string& folder) {
  std::vector<FileRecord> files;
  for (int share = 1;; ++share) {
    const std::string path = folder + "/" + share_note(share);
    std::error_code error;
    if (!fs::exists(path, error)) return files;
    const Result<std::string> text = internal::read_file(path);
    GRADUS_RETURN_IF_ERROR(text.status());
    Result<CheckpointManifest> share_manifest = decode_manifest(*text);
    if (!share_manifest.ok()) return share_manifest.status().with_prefix(path);
    std::ranges::move(share_manifest->files, std::back_inserter(files));
    fs::remove(path, error);
  }
}

// Every file below `folder` with its hashes; those that no other rank has hashed are flushed and
// hashed here, and the folders flushed.
Result<std::vector<FileRecord>> flush_files(const std::string& folder) {
  Result<std::vector<FileRecord>> files = take_notes(folder);
  GRADUS_RETURN_IF_ERROR(files.status());
  std::set<std::string> noted;
  for (const FileRecord& file : *files) noted.insert(file.name);
  std::error_code error;
  for (const auto& entry : fs::recursive_directory_iterator(folder, error)) {
    const std::string path = entry.path();
    if (entry.is_directory()) {
      GRADUS_RETURN_IF_ERROR(internal::sync_folder(path));
      continue;
    }
    const std::string name = fs::relative(path, folder);
    if (noted.contains(name)) continue;
    Result<FileRecord> file = flush_file(folder, name);
    GRADUS_RETURN_IF_ERROR(file.status());
    files->push_back(std::move(*file));
  }
  if (error) return internal::file_error(folder, "list", error.value());
  std::ranges::sort(*files, {}, &FileRecord::name);
  return files;
}

// Through a temporary link, so that it always points somewhere. A convenience: errors are ignored.
void point_link(const std::string& folder, const std::string& name, const std::string& target) {
  const std::string temporary = folder + "/" + kDraftPrefix + name;
  std::error_code error;
  fs::remove(temporary, error);
  fs::create_directory_symlink(target, temporary, error);
  if (!error) fs::rename(temporary, folder + "/" + name, error);
}

}  // namespace

CheckpointDraft::CheckpointDraft(CheckpointDraft&& other) noexcept
    : step_(other.step_), folder_(std::exchange(other.folder_, {})) {}

CheckpointDraft::~CheckpointDraft() {
  std::error_code error;
  if (!folder_.empty()) fs::remove_all(folder_, error);
}

CheckpointStore::CheckpointStore(std::string folder, CheckpointPolicy policy, Warn warn)
    : folder_(std::move(folder)), policy_(std::move(policy)), warn_(std::move(warn)) {}

Result<CheckpointDraft> CheckpointStore::begin(int64_t step, int64_t num_bytes) {
  std::error_code error;
  fs::create_directories(folder_, error);
  if (error) return internal::file_error(folder_, "create the folder", error.value());
  std::vector<fs::path> leftovers;
  for (const auto& entry : fs::directory_iterator(folder_, error)) {
    if (entry.path().filename().string().starts_with(kDraftPrefix))
      leftovers.push_back(entry.path());
  }
  for (const fs::path& path : leftovers) fs::remove_all(path, error);
  struct statvfs space {};
  if (num_bytes > 0 && ::statvfs(folder_.c_str(), &space) == 0) {
    const auto num_free = static_cast<int64_t>(space.f_bavail * space.f_frsize);
    if (num_free < num_bytes) {
      return unavailable(
          "{}: the checkpoint of step {} needs {:.1f} MB, {:.1f} MB are free; free some space or "
          "keep "
          "fewer checkpoints",
          folder_, step, static_cast<double>(num_bytes) / 1e6, static_cast<double>(num_free) / 1e6);
    }
  }
  CheckpointDraft draft(step, folder_ + "/" + kDraftPrefix + step_name(step));
  fs::create_directory(draft.folder(), error);
  if (error) return internal::file_error(draft.folder(), "create the folder", error.value());
  return draft;
}

Status CheckpointStore::commit(CheckpointDraft draft, std::optional<double> metric) {
  Result<std::vector<FileRecord>> files = flush_files(draft.folder());
  GRADUS_RETURN_IF_ERROR(files.status());
  GRADUS_CHECK(!files->empty(), "a checkpoint without files");
  const CheckpointManifest manifest{draft.step(), policy_.best_metric, metric, std::move(*files)};
  GRADUS_RETURN_IF_ERROR(
      write_file_atomically(draft.folder() + "/" + kManifest, to_json(manifest)));
  GRADUS_RETURN_IF_ERROR(internal::sync_folder(draft.folder()));
  GRADUS_RETURN_IF_ERROR(publish(draft));
  draft.folder_.clear();
  return prune(manifest.step);
}

Status CheckpointStore::await_shares(const CheckpointDraft& draft, int num_shares,
                                     const std::atomic<bool>& gives_up) {
  for (int share = 1; share < num_shares; ++share) {
    std::error_code error;
    while (!fs::exists(draft.folder() + "/" + share_note(share), error)) {
      if (gives_up) {
        return unavailable("{}: rank {} has not written its share of the checkpoint",
                           draft.folder(), share);
      }
      std::this_thread::sleep_for(kShareInterval);
    }
  }
  return {};
}

Status CheckpointStore::finish_share(const std::string& draft_folder, int share,
                                     std::span<const std::string> files) {
  CheckpointManifest manifest;  // of the share alone: step and metric are rank 0's to say
  for (const std::string& name : files) {
    Result<FileRecord> file = flush_file(draft_folder, name);
    GRADUS_RETURN_IF_ERROR(file.status());
    manifest.files.push_back(std::move(*file));
  }
  return write_file_atomically(draft_folder + "/" + share_note(share), encode(manifest));
}

Status CheckpointStore::publish(const CheckpointDraft& draft) const {
  const std::string target = folder_ + "/" + step_name(draft.step());
  const std::string replaced = folder_ + "/" + kDraftPrefix + "replaced_" + step_name(draft.step());
  std::error_code error;
  const bool exists = fs::exists(target);
  if (exists) {
    fs::rename(target, replaced, error);
    if (error) return internal::file_error(target, "replace", error.value());
  }
  fs::rename(draft.folder(), target, error);
  if (error) {
    const Status status = internal::file_error(target, "create", error.value());
    if (exists) fs::rename(replaced, target, error);
    return status;
  }
  GRADUS_RETURN_IF_ERROR(internal::sync_folder(folder_));
  if (exists) fs::remove_all(replaced, error);
  return {};
}

Status CheckpointStore::prune(int64_t newest_step) const {
  std::vector<Checkpoint> all;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder_)) {
    const std::string folder = entry.path();
    if (!step_of(entry.path().filename()).has_value()) continue;
    // A broken one is left for people to look at, and is no reason to delete a whole one.
    if (const Result<CheckpointManifest> manifest = read_manifest(folder); manifest.ok()) {
      all.push_back({manifest->step, folder, manifest->metric});
    }
  }
  std::sort(all.begin(), all.end(),
            [](const Checkpoint& a, const Checkpoint& b) { return a.step > b.step; });
  const std::optional<Checkpoint> best_one = best();
  point_link(folder_, "latest", step_name(newest_step));
  if (best_one.has_value()) point_link(folder_, "best", step_name(best_one->step));
  int64_t num_kept = 0;
  for (const Checkpoint& checkpoint : all) {
    const bool is_recent = policy_.keep_last == 0 || num_kept < policy_.keep_last;
    const bool is_best = best_one.has_value() && best_one->step == checkpoint.step;
    if (is_recent) ++num_kept;
    if (is_recent || is_best || checkpoint.step == newest_step) continue;
    // Under another name first: what a kill leaves of it is then no checkpoint, and begin() clears
    // it.
    const std::string doomed = folder_ + "/" + kDraftPrefix + "old_" + step_name(checkpoint.step);
    std::error_code error;
    fs::rename(checkpoint.folder, doomed, error);
    if (!error) fs::remove_all(doomed, error);
    if (error) {
      warn_(fmt::format("{}: cannot delete the old checkpoint: {}", checkpoint.folder,
                        error.message()));
    }
  }
  return {};
}

std::vector<Checkpoint> CheckpointStore::list() const {
  std::vector<Checkpoint> all;
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder_, error)) {
    const std::string folder = entry.path();
    const std::optional<int64_t> step = step_of(entry.path().filename());
    if (!step.has_value()) continue;
    const Result<CheckpointManifest> manifest = read_manifest(folder);
    if (!manifest.ok()) {
      warn_(manifest.status().message() + "; the checkpoint is not used");
    } else if (manifest->step != *step) {
      warn_(fmt::format("{}: the manifest is of step {}; the checkpoint is not used", folder,
                        manifest->step));
    } else {
      all.push_back({*step, folder, manifest->metric});
    }
  }
  std::sort(all.begin(), all.end(),
            [](const Checkpoint& a, const Checkpoint& b) { return a.step < b.step; });
  return all;
}

std::optional<Checkpoint> CheckpointStore::latest() const {
  std::vector<Checkpoint> all = list();
  for (; !all.empty(); all.pop_back()) {
    const Result<CheckpointManifest> manifest = read_manifest(all.back().folder);
    const Status status =
        manifest.ok() ? verify_hashes(all.back().folder, *manifest) : manifest.status();
    if (status.ok()) return all.back();
    warn_(status.message() + "; the checkpoint is not used");
  }
  return std::nullopt;
}

Result<Checkpoint> CheckpointStore::at(int64_t step) const {
  const std::string folder = folder_ + "/" + step_name(step);
  std::error_code error;
  if (!fs::is_directory(folder, error)) {
    std::vector<std::string> names;
    for (const Checkpoint& checkpoint : list()) names.push_back(std::to_string(checkpoint.step));
    return not_found("{}: no checkpoint of step {}; there are: {}", folder_, step,
                     names.empty() ? "none" : join(names, ", "));
  }
  const Result<CheckpointManifest> manifest = read_manifest(folder);
  GRADUS_RETURN_IF_ERROR(manifest.status());
  GRADUS_RETURN_IF_ERROR(verify_hashes(folder, *manifest));
  return Checkpoint{step, folder, manifest->metric};
}

std::optional<Checkpoint> CheckpointStore::best() const {
  std::optional<Checkpoint> best_one;
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder_, error)) {
    if (!step_of(entry.path().filename()).has_value()) continue;
    const Result<CheckpointManifest> manifest = read_manifest(entry.path());
    if (!manifest.ok() || !manifest->metric.has_value() || std::isnan(*manifest->metric)) continue;
    const Checkpoint candidate{manifest->step, entry.path(), manifest->metric};
    // Of equals the earliest: later ones have only drifted further from the start.
    const bool is_better =
        !best_one.has_value() ||
        (policy_.higher_is_better ? *candidate.metric > *best_one->metric
                                  : *candidate.metric < *best_one->metric) ||
        (*candidate.metric == *best_one->metric && candidate.step < best_one->step);
    if (is_better) best_one = candidate;
  }
  return best_one;
}

}  // namespace gradus::records
