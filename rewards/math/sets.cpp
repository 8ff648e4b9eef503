// SPDX-License-Identifier: Apache-2.0
#include "rewards/math/sets.h"

#include <algorithm>

#include "rewards/math/scalar.h"

namespace gradus::rewards::math {

bool is_set_kind(Kind kind) {
  return kind == Kind::kSet || kind == Kind::kList || kind == Kind::kInterval ||
         kind == Kind::kUnion || kind == Kind::kIntersection || kind == Kind::kDifference ||
         kind == Kind::kNamedSet;
}

namespace {

constexpr size_t kMaxEnds = 32;

bool is_pair(const Expression& a) {
  return a->kind == Kind::kTuple && a->args.size() == 2 && a->text == "(";
}

// End points of sets in order; the position of the i-th is 2 i + 1, of the gap before it 2 i.
class RealLine {
 public:
  // False when the set is none of real numbers or a point cannot be placed.
  bool add(const Expression& set) {
    switch (set->kind) {
      case Kind::kUnion:
      case Kind::kIntersection:
      case Kind::kDifference:
        return add(set->args[0]) && add(set->args[1]);
      case Kind::kNamedSet:
        return set->text == "R" || set->text == "empty";
      case Kind::kInterval:
      case Kind::kSet:
      case Kind::kList:
        break;
      case Kind::kTuple:
        if (!is_pair(set)) return false;
        break;
      default:
        return false;
    }
    return std::all_of(set->args.begin(), set->args.end(),
                       [&](const Expression& end) { return place(end).has_value(); });
  }

  size_t num_positions() const { return 2 * ends_.size() + 1; }
  const std::vector<Expression>& ends() const { return ends_; }

  bool contains(const Expression& set, size_t position) const {
    switch (set->kind) {
      case Kind::kUnion:
        return contains(set->args[0], position) || contains(set->args[1], position);
      case Kind::kIntersection:
        return contains(set->args[0], position) && contains(set->args[1], position);
      case Kind::kDifference:
        return contains(set->args[0], position) && !contains(set->args[1], position);
      case Kind::kNamedSet:
        return set->text == "R" && is_finite(position);
      case Kind::kInterval:
        return is_between(set, position, set->is_left_open, set->is_right_open);
      case Kind::kTuple:
        return is_between(set, position, true, true);
      default:
        return std::any_of(set->args.begin(), set->args.end(), [&](const Expression& member) {
          return position_of(member) == position;
        });
    }
  }

 private:
  // Index of the point among the ends, put in where it is new.
  std::optional<size_t> place(const Expression& point) {
    size_t index = 0;
    for (; index < ends_.size(); ++index) {
      const auto order = compare_order(point, ends_[index]);
      if (!order.has_value()) return std::nullopt;
      if (*order == 0) return remember(point, index);
      if (*order < 0) break;
    }
    if (ends_.size() >= kMaxEnds || !compare_order(point, point).has_value()) return std::nullopt;
    ends_.insert(ends_.begin() + static_cast<std::ptrdiff_t>(index), point);
    for (auto& [known, at] : places_) at += at >= index ? 1 : 0;
    return remember(point, index);
  }
  size_t remember(const Expression& point, size_t index) {
    places_.emplace_back(point, index);
    return index;
  }
  size_t position_of(const Expression& point) const {
    for (const auto& [known, index] : places_) {
      if (known == point) return 2 * index + 1;
    }
    return 0;
  }
  bool is_between(const Expression& interval, size_t position, bool is_left_open,
                  bool is_right_open) const {
    const size_t low = position_of(interval->args[0]), high = position_of(interval->args[1]);
    if (!is_finite(position)) return false;
    return (is_left_open ? position > low : position >= low) &&
           (is_right_open ? position < high : position <= high);
  }
  bool is_finite(size_t position) const {
    if (position % 2 == 0) {
      // The gap beyond an infinite end is empty.
      const bool is_first = position == 0 && !ends_.empty() && is_infinite(ends_.front());
      const bool is_last =
          position == 2 * ends_.size() && !ends_.empty() && is_infinite(ends_.back());
      return !is_first && !is_last;
    }
    return !is_infinite(ends_[position / 2]);
  }
  static bool is_infinite(const Expression& a) {
    return has_node(a, [](const Node& n) { return n.kind == Kind::kConstant && n.text == "inf"; });
  }

  std::vector<Expression> ends_;
  std::vector<std::pair<Expression, size_t>> places_;
};

}  // namespace

std::optional<bool> are_equal_sets(const Expression& a, const Expression& b) {
  RealLine line;
  if (!line.add(a) || !line.add(b)) return std::nullopt;
  for (size_t position = 0; position < line.num_positions(); ++position) {
    if (line.contains(a, position) != line.contains(b, position)) return false;
  }
  return true;
}

namespace {

std::optional<bool> holds_at(const Expression& relation, const std::string& variable,
                             const Expression& point) {
  if (relation->kind == Kind::kList) {
    for (const Expression& alternative : relation->args) {
      const auto holds = holds_at(alternative, variable, point);
      if (!holds.has_value() || *holds) return holds;
    }
    return false;
  }
  if (relation->kind == Kind::kChain) {
    for (const Expression& link : relation->args) {
      const auto holds = holds_at(link, variable, point);
      if (!holds.has_value() || !*holds) return holds;
    }
    return true;
  }
  const auto order = compare_order(substituted(relation->args[0], variable, point),
                                   substituted(relation->args[1], variable, point));
  if (!order.has_value()) return std::nullopt;
  if (relation->text == "=") return *order == 0;
  if (relation->text == "!=") return *order != 0;
  if (relation->text == "<") return *order < 0;
  if (relation->text == "<=") return *order <= 0;
  if (relation->text == ">") return *order > 0;
  if (relation->text == ">=") return *order >= 0;
  return std::nullopt;
}

// Points between two ends, or beyond one.
std::vector<Rational> samples_between(const std::optional<Rational>& low,
                                      const std::optional<Rational>& high) {
  std::vector<Rational> samples;
  if (low.has_value() && high.has_value()) {
    for (const int64_t part : {1, 13, 64, 127, 181, 243, 255}) {
      samples.push_back(*low + (*high - *low) * Rational(part, 256));
    }
    return samples;
  }
  const Rational base = low.has_value() ? *low : high.has_value() ? *high : Rational(0);
  for (const Rational& step : {Rational(1, 1000), Rational(1, 7), Rational(1), Rational(3, 2),
                               Rational(11), Rational(101), Rational(100003)}) {
    if (high.has_value() || !low.has_value()) samples.push_back(base - step);
    if (low.has_value() || !high.has_value()) samples.push_back(base + step);
  }
  return samples;
}

}  // namespace

std::optional<bool> solves(const Expression& relation, const Expression& set) {
  const std::vector<std::string> variables = variables_of(relation);
  if (variables.size() != 1 || !variables_of(set).empty()) return std::nullopt;
  RealLine line;
  if (!line.add(set)) return std::nullopt;
  std::vector<std::optional<Rational>> ends;
  for (const Expression& end : line.ends()) ends.push_back(rounded(end, 20));
  for (size_t position = 0; position < line.num_positions(); ++position) {
    const size_t index = position / 2;
    const bool expected = line.contains(set, position);
    if (position % 2 == 1) {
      if (!ends[index].has_value()) continue;  // infinity
      const auto holds = holds_at(relation, variables[0], line.ends()[index]);
      if (!holds.has_value()) {
        if (expected) return std::nullopt;  // undefined is no solution
        continue;
      }
      if (*holds != expected) return false;
      continue;
    }
    const bool is_beyond = (index == 0 && !ends.empty() && !ends.front().has_value()) ||
                           (index == ends.size() && !ends.empty() && !ends.back().has_value());
    if (is_beyond) continue;
    const std::optional<Rational> low = index == 0 ? std::nullopt : ends[index - 1];
    const std::optional<Rational> high = index == ends.size() ? std::nullopt : ends[index];
    for (const Rational& sample : samples_between(low, high)) {
      const auto holds = holds_at(relation, variables[0], make_number(sample));
      if (holds.value_or(false) != expected) return false;
    }
  }
  return true;
}

// ---- matrices ----

namespace {

constexpr int64_t kMaxDeterminant = 5;

Expression matrix_of(int64_t num_rows, std::vector<Expression> entries) {
  auto node = std::make_shared<Node>();
  node->kind = Kind::kMatrix;
  node->num_rows = num_rows;
  node->args = std::move(entries);
  return node;
}

size_t columns_of(const Expression& matrix) {
  return matrix->args.size() / static_cast<size_t>(matrix->num_rows);
}

Expression determinant_of(const std::vector<Expression>& entries, size_t size) {
  if (size == 1) return entries[0];
  Expression total = make_number(0);
  for (size_t column = 0; column < size; ++column) {
    std::vector<Expression> minor;
    for (size_t i = size; i < entries.size(); ++i) {
      if (i % size != column) minor.push_back(entries[i]);
    }
    const Expression term = product_of(entries[column], determinant_of(minor, size - 1));
    total = column % 2 == 0 ? sum_of(total, term) : difference_of(total, term);
  }
  return total;
}

Expression sum_of_matrices(const std::vector<Expression>& terms) {
  std::vector<Expression> entries = terms[0]->args;
  for (size_t i = 1; i < terms.size(); ++i) {
    const bool fits = terms[i]->kind == Kind::kMatrix && terms[0]->kind == Kind::kMatrix &&
                      terms[i]->num_rows == terms[0]->num_rows &&
                      terms[i]->args.size() == entries.size();
    if (!fits) return nullptr;
    for (size_t j = 0; j < entries.size(); ++j) entries[j] = sum_of(entries[j], terms[i]->args[j]);
  }
  return matrix_of(terms[0]->num_rows, std::move(entries));
}

Expression product_of_two(const Expression& a, const Expression& b) {
  if (a->kind != Kind::kMatrix || b->kind != Kind::kMatrix) {
    const Expression& matrix = a->kind == Kind::kMatrix ? a : b;
    const Expression& factor = a->kind == Kind::kMatrix ? b : a;
    if (matrix->kind != Kind::kMatrix) return product_of(a, b);
    std::vector<Expression> entries;
    for (const Expression& entry : matrix->args) entries.push_back(product_of(factor, entry));
    return matrix_of(matrix->num_rows, std::move(entries));
  }
  const size_t inner = columns_of(a), columns = columns_of(b);
  if (inner != static_cast<size_t>(b->num_rows) || a->args.size() * columns > 10000) return nullptr;
  std::vector<Expression> entries;
  for (size_t row = 0; row < static_cast<size_t>(a->num_rows); ++row) {
    for (size_t column = 0; column < columns; ++column) {
      Expression entry = make_number(0);
      for (size_t k = 0; k < inner; ++k) {
        entry = sum_of(entry, product_of(a->args[row * inner + k], b->args[k * columns + column]));
      }
      entries.push_back(std::move(entry));
    }
  }
  return matrix_of(a->num_rows, std::move(entries));
}

Expression function_of_matrix(const std::string& name, const Expression& matrix) {
  const size_t size = columns_of(matrix);
  if (static_cast<int64_t>(size) != matrix->num_rows) return nullptr;
  if (name == "det")
    return static_cast<int64_t>(size) > kMaxDeterminant ? nullptr
                                                        : determinant_of(matrix->args, size);
  Expression trace = make_number(0);
  for (size_t i = 0; i < size; ++i) trace = sum_of(trace, matrix->args[i * size + i]);
  return trace;
}

}  // namespace

Expression with_matrices_evaluated(const Expression& a) {
  if (!has_kind(a, Kind::kMatrix)) return a;
  auto node = std::make_shared<Node>(*a);
  for (Expression& arg : node->args) {
    arg = with_matrices_evaluated(arg);
    if (arg == nullptr) return nullptr;
  }
  const bool has_matrix =
      std::any_of(node->args.begin(), node->args.end(),
                  [](const Expression& arg) { return arg->kind == Kind::kMatrix; });
  if (!has_matrix) return node;
  if (a->kind == Kind::kSum) return sum_of_matrices(node->args);
  if (a->kind == Kind::kProduct) {
    Expression result = node->args[0];
    for (size_t i = 1; i < node->args.size() && result != nullptr; ++i) {
      result = product_of_two(result, node->args[i]);
    }
    return result;
  }
  const bool is_function =
      a->kind == Kind::kCall && (a->text == "det" || a->text == "trace" || a->text == "abs");
  if (is_function) return function_of_matrix(a->text == "abs" ? "det" : a->text, node->args[0]);
  if (a->kind == Kind::kPower) {
    const auto exponent = rational_value(node->args[1]);
    if (!exponent.has_value() || !exponent->fits_int() || exponent->to_int() < 1 ||
        exponent->to_int() > 8) {
      return nullptr;
    }
    Expression result = node->args[0];
    for (int64_t i = 1; i < exponent->to_int() && result != nullptr; ++i) {
      result = product_of_two(result, node->args[0]);
    }
    return result;
  }
  return node;
}

}  // namespace gradus::rewards::math
