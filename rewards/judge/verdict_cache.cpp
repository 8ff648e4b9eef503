// SPDX-License-Identifier: Apache-2.0
#include "rewards/judge/verdict_cache.h"

#include <sqlite3.h>

#include <array>

#include "common/log.h"
#include "common/rng.h"

namespace gradus::rewards::judge {
namespace {

constexpr int kBusyTimeoutMs = 10000;
using Hash = std::array<uint64_t, 2>;

Hash hash_of(std::string_view key) {
  const uint64_t first = hash64(key);
  return {first, hash64({first, hash64(std::string(key) + "verdict")})};
}

}  // namespace

Result<std::unique_ptr<VerdictCache>> VerdictCache::open(const std::string& path) {
  sqlite3* database = nullptr;
  const int code =
      sqlite3_open_v2(path.c_str(), &database, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, nullptr);
  auto cache = std::unique_ptr<VerdictCache>(new VerdictCache(database, path));
  if (code != SQLITE_OK) {
    return unavailable("judge: cache {}: {}; name a file that can be made", path,
                       database == nullptr ? "no memory" : sqlite3_errmsg(database));
  }
  sqlite3_busy_timeout(database, kBusyTimeoutMs);
  GRADUS_RETURN_IF_ERROR(cache->prepare());
  return cache;
}

Status VerdictCache::prepare() {
  const char* const kSetUp =
      "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;"
      "CREATE TABLE IF NOT EXISTS verdicts (hash BLOB PRIMARY KEY, applicable INTEGER NOT NULL, "
      "score REAL NOT NULL, why TEXT NOT NULL) WITHOUT ROWID;";
  if (sqlite3_exec(database_, kSetUp, nullptr, nullptr, nullptr) != SQLITE_OK ||
      sqlite3_prepare_v2(database_, "SELECT applicable, score, why FROM verdicts WHERE hash = ?",
                         -1, &find_, nullptr) != SQLITE_OK ||
      sqlite3_prepare_v2(database_, "INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?, ?)", -1,
                         &keep_, nullptr) != SQLITE_OK) {
    return data_loss("judge: cache {}: {}; name another file, or delete it", path_,
                     sqlite3_errmsg(database_));
  }
  return {};
}

VerdictCache::~VerdictCache() {
  sqlite3_finalize(find_);
  sqlite3_finalize(keep_);
  sqlite3_close(database_);
}

void VerdictCache::warn() {
  warn_once("rewards", path_, "the judge's cache does not work; verdicts are asked for anew",
            {{"file", path_}, {"reason", sqlite3_errmsg(database_)}});
}

std::optional<JudgeVerdict> VerdictCache::find(std::string_view key) {
  const Hash hash = hash_of(key);
  const std::lock_guard lock(mutex_);
  sqlite3_bind_blob(find_, 1, hash.data(), sizeof hash, SQLITE_STATIC);
  std::optional<JudgeVerdict> verdict;
  const int code = sqlite3_step(find_);
  if (code == SQLITE_ROW) {
    verdict.emplace();
    verdict->status = sqlite3_column_int(find_, 0) != 0 ? data::RewardStatus::kOk
                                                        : data::RewardStatus::kNotApplicable;
    verdict->score = sqlite3_column_double(find_, 1);
    verdict->detail = reinterpret_cast<const char*>(sqlite3_column_text(find_, 2));
  } else if (code != SQLITE_DONE) {
    warn();
  }
  sqlite3_reset(find_);
  return verdict;
}

void VerdictCache::keep(std::string_view key, const JudgeVerdict& verdict) {
  if (data::is_failure(verdict.status)) return;
  const Hash hash = hash_of(key);
  const std::lock_guard lock(mutex_);
  sqlite3_bind_blob(keep_, 1, hash.data(), sizeof hash, SQLITE_STATIC);
  sqlite3_bind_int(keep_, 2, verdict.status == data::RewardStatus::kOk ? 1 : 0);
  sqlite3_bind_double(keep_, 3, verdict.score);
  sqlite3_bind_text(keep_, 4, verdict.detail.data(), static_cast<int>(verdict.detail.size()),
                    SQLITE_STATIC);
  if (sqlite3_step(keep_) != SQLITE_DONE) warn();
  sqlite3_reset(keep_);
}

}  // namespace gradus::rewards::judge
