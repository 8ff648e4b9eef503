// SPDX-License-Identifier: Apache-2.0
#include "comm/watch.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "comm/communicator.h"
#include "common/strings.h"

namespace gradus::comm {

void Watch::begin(const Wait& wait) {
  const std::lock_guard lock(mutex_);
  wait_ = wait;
  moved_ = Clock::now();
}

void Watch::end() {
  const std::lock_guard lock(mutex_);
  wait_ = {};
}

void Watch::moved() {
  const std::lock_guard lock(mutex_);
  moved_ = Clock::now();
}

void Watch::set_step(int64_t step) {
  const std::lock_guard lock(mutex_);
  step_ = step;
}

void Watch::leave() { begin({.kind = WaitKind::kLeft}); }

RankReport Watch::report() const {
  const std::lock_guard lock(mutex_);
  RankReport report;
  report.rank = rank_;
  report.kind = wait_.kind;
  report.first = wait_.first;
  report.count = wait_.count;
  report.tag = wait_.tag;
  report.process = static_cast<int32_t>(getpid());
  report.number = wait_.number;
  report.step = step_;
  report.waiting_s = std::chrono::duration<double>(Clock::now() - moved_).count();
  std::strncpy(report.name, wait_.name, sizeof(report.name) - 1);
  return report;
}

void Watch::set_lost(int rank) {
  const std::lock_guard lock(mutex_);
  lost_.insert(rank);
}

bool Watch::is_lost(int rank) const {
  const std::lock_guard lock(mutex_);
  return lost_.count(rank) > 0;
}

size_t Watch::num_lost() const {
  const std::lock_guard lock(mutex_);
  return lost_.size();
}

namespace {

bool is_silent(const Sighting& sighting, double limit_s) {
  return sighting.report.kind != WaitKind::kLeft &&
         (sighting.is_gone || sighting.silent_s > limit_s);
}

bool is_receive(WaitKind kind) {
  return kind == WaitKind::kReceive || kind == WaitKind::kReceiveAny;
}

bool waits_for(const RankReport& report, int rank) {
  return rank >= report.first && rank < report.first + report.count && rank != report.rank;
}

// Whether `report` cannot go on before `other`, one of the ranks that it names, does something else
// than it does now.
bool is_held_up_by(const RankReport& report, const RankReport& other) {
  switch (report.kind) {
    case WaitKind::kNone:
    case WaitKind::kLeft:
      return false;
    case WaitKind::kCollective: {
      // It has entered the same one, or is past it: then the library is at work.
      const bool is_in_same = other.kind == WaitKind::kCollective && other.first == report.first &&
                              other.count == report.count;
      if (!is_in_same) return true;
      return other.number < report.number ||
             (other.number == report.number && std::strcmp(other.name, report.name) != 0);
    }
    case WaitKind::kSend:  // a pair of send and receive is a transfer under way
      return !(is_receive(other.kind) && waits_for(other, report.rank) && other.tag == report.tag);
    case WaitKind::kSwap:
      return !(other.kind == WaitKind::kSwap && waits_for(other, report.rank) &&
               other.tag == report.tag);
    case WaitKind::kReceive:
    case WaitKind::kReceiveAny:
      return !(other.kind == WaitKind::kSend && waits_for(other, report.rank) &&
               other.tag == report.tag);
  }
  GRADUS_CHECK(false, "wait kind out of range");
}

// The ranks that hold `rank` up, ascending.
std::vector<int> obstacles(std::span<const Sighting> ranks, int rank) {
  const RankReport& report = ranks[static_cast<size_t>(rank)].report;
  std::vector<int> found;
  for (int other = 0; other < static_cast<int>(ranks.size()); ++other) {
    if (waits_for(report, other) &&
        is_held_up_by(report, ranks[static_cast<size_t>(other)].report)) {
      found.push_back(other);
    }
  }
  return found;
}

// Ranks that wait, have not moved for `limit_s` and reach no rank that computes: what is left when
// all that can go on, and all that these can let go on, are taken away.
std::vector<int> mutually_waiting(std::span<const Sighting> ranks, double limit_s,
                                  const std::set<int>& lost) {
  const size_t num_ranks = ranks.size();
  std::vector<bool> goes_on(num_ranks, false);
  std::vector<std::vector<int>> held_by(num_ranks);
  for (size_t rank = 0; rank < num_ranks; ++rank) {
    held_by[rank] = obstacles(ranks, static_cast<int>(rank));
    const RankReport& report = ranks[rank].report;
    const bool takes_any = report.kind == WaitKind::kReceiveAny;
    const size_t num_peers =
        static_cast<size_t>(report.count) -
        (report.rank >= report.first && report.rank < report.first + report.count);
    const bool is_held = takes_any ? held_by[rank].size() == num_peers : !held_by[rank].empty();
    goes_on[rank] = report.kind == WaitKind::kNone || lost.count(static_cast<int>(rank)) > 0 ||
                    (report.kind != WaitKind::kLeft && (report.waiting_s <= limit_s || !is_held));
  }
  for (bool has_changed = true; has_changed;) {
    has_changed = false;
    for (size_t rank = 0; rank < num_ranks; ++rank) {
      const RankReport& report = ranks[rank].report;
      if (goes_on[rank] || report.kind == WaitKind::kLeft) continue;
      const auto can = [&](int other) { return goes_on[static_cast<size_t>(other)]; };
      const bool any = std::any_of(held_by[rank].begin(), held_by[rank].end(), can);
      const bool all = std::all_of(held_by[rank].begin(), held_by[rank].end(), can);
      if (report.kind == WaitKind::kReceiveAny ? any : all) goes_on[rank] = has_changed = true;
    }
  }
  std::vector<int> stuck;
  for (size_t rank = 0; rank < num_ranks; ++rank) {
    if (!goes_on[rank] && ranks[rank].report.kind != WaitKind::kLeft) {
      stuck.push_back(static_cast<int>(rank));
    }
  }
  return stuck;
}

std::string at_step(int64_t step) {
  return step > 0 ? fmt::format("at step {}", step) : "before the first step";
}

std::string names_of(const std::vector<int>& ranks) {
  return fmt::format("rank{} {}", ranks.size() == 1 ? "" : "s", fmt::join(ranks, ", "));
}

// "in 'gradient sum' (receive, tag tree) at step 3"
std::string operation_of(const RankReport& report) {
  const std::string step = at_step(report.step);
  const std::string tag = tag_name(static_cast<Tag>(report.tag));
  switch (report.kind) {
    case WaitKind::kNone:
      return step;
    case WaitKind::kCollective:
      return fmt::format("in '{}' (collective {} of ranks {} to {}) {}", report.name,
                         report.number + 1, report.first, report.first + report.count - 1, step);
    case WaitKind::kSend:
      return fmt::format("in '{}' (send, tag {}) {}", report.name, tag, step);
    case WaitKind::kSwap:
      return fmt::format("in '{}' (swap, tag {}) {}", report.name, tag, step);
    case WaitKind::kReceive:
    case WaitKind::kReceiveAny:
      return fmt::format("in '{}' (receive, tag {}) {}", report.name, tag, step);
    case WaitKind::kLeft:
      return "at its end";
  }
  GRADUS_CHECK(false, "wait kind out of range");
}

}  // namespace

std::optional<Diagnosis> diagnose(std::span<const Sighting> ranks, double limit_s,
                                  const std::set<int>& lost) {
  Diagnosis diagnosis;
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    if (lost.count(static_cast<int>(rank)) == 0 && is_silent(ranks[rank], limit_s)) {
      diagnosis.culprits.push_back(static_cast<int>(rank));
    }
  }
  if (!diagnosis.culprits.empty()) {
    diagnosis.headline = names_of(diagnosis.culprits);
    const Sighting& first = ranks[static_cast<size_t>(diagnosis.culprits[0])];
    diagnosis.headline += first.is_gone
                              ? " ended without a word"
                              : fmt::format(" gave no sign of life for {:.1f} s", first.silent_s);
    diagnosis.headline += fmt::format(" (process {} on {})", first.report.process, first.host);
    return diagnosis;
  }
  diagnosis.culprits = mutually_waiting(ranks, limit_s, lost);
  if (diagnosis.culprits.empty()) return std::nullopt;
  bool are_left_behind = false;
  for (const int rank : diagnosis.culprits) {
    for (const int other : obstacles(ranks, rank)) {
      are_left_behind |= ranks[static_cast<size_t>(other)].report.kind == WaitKind::kLeft;
    }
  }
  diagnosis.headline =
      names_of(diagnosis.culprits) +
      (are_left_behind ? " cannot go on: others have ended" : " wait for each other");
  return diagnosis;
}

std::string describe(std::span<const Sighting> ranks, int rank, double limit_s) {
  const Sighting& sighting = ranks[static_cast<size_t>(rank)];
  const RankReport& report = sighting.report;
  if (is_silent(sighting, limit_s)) {
    const std::string last = report.kind == WaitKind::kNone ? "computed" : "waited";
    return fmt::format("rank {} is silent; when last heard of it {} {}", rank, last,
                       operation_of(report));
  }
  if (report.kind == WaitKind::kLeft) return fmt::format("rank {} has ended", rank);
  if (report.kind == WaitKind::kNone) {
    return fmt::format("rank {} computes {}", rank, operation_of(report));
  }
  const std::vector<int> held_by = obstacles(ranks, rank);
  return fmt::format("rank {} waits for {} {}, {:.1f} s by now", rank,
                     held_by.empty() ? "a transfer under way" : names_of(held_by),
                     operation_of(report), report.waiting_s);
}

}  // namespace gradus::comm
