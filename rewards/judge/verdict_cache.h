// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>

#include "common/status.h"
#include "rewards/judge.h"

struct sqlite3;
struct sqlite3_stmt;

namespace gradus::rewards::judge {

// Verdicts on disk (SQLite), so that nothing is asked twice: not by the next epoch, not after a
// resume, not by another rank with the same file. Thread-safe; several processes may share a file.
class VerdictCache {
 public:
  // Unavailable where the file cannot be made, DataLoss where it is no such cache.
  static Result<std::unique_ptr<VerdictCache>> open(const std::string& path);
  ~VerdictCache();
  VerdictCache(const VerdictCache&) = delete;
  VerdictCache& operator=(const VerdictCache&) = delete;

  // `key` is all that a verdict depends on; its hash of 128 bits is stored. Only kOk and
  // kNotApplicable are kept. What goes wrong is warned of once, and nothing is found or kept.
  std::optional<JudgeVerdict> find(std::string_view key);
  void keep(std::string_view key, const JudgeVerdict& verdict);

 private:
  VerdictCache(sqlite3* database, std::string path) : database_(database), path_(std::move(path)) {}
  Status prepare();
  void warn();

  sqlite3* database_;
  std::string path_;
  sqlite3_stmt* find_ = nullptr;
  sqlite3_stmt* keep_ = nullptr;
  std::mutex mutex_;
};

}  // namespace gradus::rewards::judge
