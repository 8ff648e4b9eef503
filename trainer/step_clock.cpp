// SPDX-License-Identifier: Apache-2.0
#include "trainer/step_clock.h"

#include <utility>

namespace gradus::trainer {

void StepClock::settle() {
  const auto now = std::chrono::steady_clock::now();
  seconds_[phase_] += std::chrono::duration<double>(now - since_).count();
  since_ = now;
}

std::string StepClock::enter(std::string phase) {
  settle();
  return std::exchange(phase_, std::move(phase));
}

void StepClock::move(const std::string& from, const std::string& to, double seconds) {
  settle();
  seconds_[from] -= seconds;
  seconds_[to] += seconds;
}

double StepClock::seconds(const std::string& phase) const {
  const auto found = seconds_.find(phase);
  double seconds = found == seconds_.end() ? 0.0 : found->second;
  if (phase == phase_) {
    seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - since_).count();
  }
  return seconds;
}

std::map<std::string, double> StepClock::lap() {
  settle();
  return std::exchange(seconds_, {});
}

double add_lap(StepClock& clock, Metrics& metrics) {
  double step_seconds = 0;
  for (const auto& [name, seconds] : clock.lap()) {
    metrics.set(name, seconds);
    step_seconds += seconds;
  }
  metrics.set("timing_s/step", step_seconds);
  metrics.set("perf/time_per_step", step_seconds);
  return step_seconds;
}

}  // namespace gradus::trainer
