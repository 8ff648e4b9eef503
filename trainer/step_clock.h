// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <map>
#include <string>

#include "common/metrics.h"

// Where the wall time of a step goes. Every moment belongs to exactly one phase, so the phases of a
// step add up to it, nested ones included: an inner phase takes its time from the outer one. What
// no phase claims is kUnnamedPhase.
namespace gradus::trainer {

inline constexpr char kUnnamedPhase[] = "timing_s/other";

// Not thread-safe.
class StepClock {
 public:
  // The time up to now belongs to the phase that ends; `phase`, a timing_s metric, begins. Returns
  // the one that ended.
  std::string enter(std::string phase);
  // Gives `seconds` of phase `from`, measured by somebody else, to phase `to`.
  void move(const std::string& from, const std::string& to, double seconds);
  // Seconds of a phase since the last lap.
  double seconds(const std::string& phase) const;
  // Seconds of every phase since the last lap (or the making); all are 0 again. The phase of the
  // moment goes on.
  std::map<std::string, double> lap();

 private:
  void settle();

  std::chrono::steady_clock::time_point since_ = std::chrono::steady_clock::now();
  std::string phase_ = kUnnamedPhase;
  std::map<std::string, double> seconds_;
};

// Adds the phases since the last lap, and the step that they are: timing_s/..., timing_s/step,
// perf/time_per_step. Returns its seconds.
double add_lap(StepClock& clock, Metrics& metrics);

// A phase from its making to its end; then the one before goes on.
class Phase {
 public:
  Phase(StepClock& clock, const char* name) : clock_(clock), before_(clock.enter(name)) {}
  Phase(const Phase&) = delete;
  Phase& operator=(const Phase&) = delete;
  ~Phase() { clock_.enter(before_); }

 private:
  StepClock& clock_;
  std::string before_;
};

}  // namespace gradus::trainer
