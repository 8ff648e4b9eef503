// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

// The metrics that Gradus emits, declared in one table (docs/metrics.md is printed from it); names
// are verl's where verl has the metric. Emitting a name that the table lacks is a bug and throws.
namespace gradus {

// How several values of one step (of micro-batches, of ranks) become one.
enum class MetricReduction { kMean, kSum, kMax, kMin, kLast };

struct MetricInfo {
  std::string_view name;  // "<part>" in it stands for any text, e.g. reward/<part>/mean
  std::string_view unit;  // "1" for pure numbers
  MetricReduction reduction;
  std::string_view meaning;
};

std::span<const MetricInfo> declared_metrics();

// The declaration of `name`, or null. Exact names win over patterns.
const MetricInfo* find_metric(std::string_view name);

std::vector<std::string> metric_names();

const char* reduction_name(MetricReduction reduction);  // "mean", "sum", ...

// docs/metrics.md.
std::string metrics_markdown();

// A value as Metrics holds it: of a mean the weighted sum and the sum of weights.
struct MetricPart {
  std::string name;
  double value = 0;
  double weight = 0;
};

// The values of one step. Not thread-safe.
class Metrics {
 public:
  // Replaces the value. Throws InternalError if `name` is not declared.
  void set(std::string_view name, double value);

  // Folds a further value in by the declared reduction; a mean weighs by `weight` (tokens,
  // samples), and values of total weight 0 have no mean and are left out. Throws as set() does.
  void add(std::string_view name, double value, double weight = 1.0);

  // Folds in the values of another part of the same step, e.g. another rank's, weights included.
  void merge(const Metrics& other);

  // Everything held, sorted by name, to be sent to another rank; restore() takes it in there, in
  // place of a value of the same name, and throws as set() does.
  std::vector<MetricPart> parts() const;
  void restore(const MetricPart& part);

  bool contains(std::string_view name) const;
  // Throws InternalError if it was not set.
  double value(std::string_view name) const;
  // All values, sorted by name.
  std::map<std::string, double> values() const;

 private:
  struct Entry {
    MetricReduction reduction;
    double value = 0;   // of a mean: the weighted sum
    double weight = 0;  // of a mean: the sum of weights
  };

  std::map<std::string, Entry, std::less<>> entries_;
};

}  // namespace gradus
