// SPDX-License-Identifier: Apache-2.0
#include "model/internal/tensor_check.h"

#include <unordered_map>
#include <unordered_set>

namespace gradus::model {
namespace {

// Tensors of one kind of mismatch: their number and what is told of the first.
struct Mismatch {
  int64_t count = 0;
  std::string first;
  void add(const std::string& description) {
    if (count++ == 0) first = description;
  }
};

}  // namespace

std::string shape_text(std::span<const int64_t> shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

Status compare_tensors(const std::vector<NamedShape>& expected,
                       const std::vector<NamedShape>& found, const std::string& source) {
  Mismatch missing, reshaped, unknown;
  std::unordered_map<std::string, const NamedShape*> found_by_name;
  for (const NamedShape& tensor : found) found_by_name.emplace(tensor.name, &tensor);
  std::unordered_set<std::string> expected_names;
  for (const NamedShape& want : expected) {
    expected_names.insert(want.name);
    const auto it = found_by_name.find(want.name);
    if (it == found_by_name.end()) {
      missing.add(fmt::format("'{}' {}", want.name, shape_text(want.shape)));
    } else if (it->second->shape != want.shape) {
      reshaped.add(fmt::format("'{}' {} where {} implies {}", want.name,
                               shape_text(it->second->shape), source, shape_text(want.shape)));
    }
  }
  for (const NamedShape& tensor : found) {
    if (!expected_names.contains(tensor.name)) {
      unknown.add(fmt::format("'{}' {}", tensor.name, shape_text(tensor.shape)));
    }
  }
  std::vector<std::string> problems;
  const auto report = [&](const Mismatch& mismatch, const char* what) {
    if (mismatch.count == 0) return;
    problems.push_back(fmt::format("{} {} {}, first {}", mismatch.count,
                                   mismatch.count == 1 ? "tensor" : "tensors", what,
                                   mismatch.first));
  };
  report(missing, "missing");
  report(reshaped, "of the wrong shape");
  report(unknown, "unknown");
  if (problems.empty()) return {};
  return data_loss("{}; the weights do not belong to {}", fmt::join(problems, "; "), source);
}

}  // namespace gradus::model
