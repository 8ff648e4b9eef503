// SPDX-License-Identifier: Apache-2.0
#include "rewards/math/constant.h"

#include <algorithm>
#include <cmath>

namespace gradus::rewards::math {
namespace {

constexpr double kMaxSeparationBits = 16000;

// Thrown and caught inside this file.
struct NotCovered {};

double log2_of(const fmpz* value) {
  if (fmpz_is_zero(value)) return 0;
  slong exponent = 0;
  const double mantissa = fmpz_get_d_2exp(&exponent, value);
  return std::log2(std::abs(mantissa)) + static_cast<double>(exponent) + 1e-9;
}

// log2 of the paper's u and l, upper bounds.
struct Bound {
  double u = 0;
  double l = 0;
};

class BoundFinder {
 public:
  double degree = 1;

  Bound find(const Expression& a) {
    switch (a->kind) {
      case Kind::kNumber:
        return {log2_of(fmpq_numref(a->value.get())), log2_of(fmpq_denref(a->value.get()))};
      case Kind::kConstant:
        if (a->text != "i") throw NotCovered();
        note_root(a, 2);
        return {0, 0};
      case Kind::kSum: {
        Bound total = find(a->args[0]);
        for (size_t i = 1; i < a->args.size(); ++i) {
          const Bound next = find(a->args[i]);
          total = {std::max(total.u + next.l, total.l + next.u) + 1, total.l + next.l};
        }
        return total;
      }
      case Kind::kProduct: {
        Bound total;
        for (const Expression& arg : a->args) {
          const Bound next = find(arg);
          total = {total.u + next.u, total.l + next.l};
        }
        return total;
      }
      case Kind::kPercent: {
        const Bound inner = find(a->args[0]);
        return {inner.u, inner.l + std::log2(100.0)};
      }
      case Kind::kPower:
        return find_power(a);
      case Kind::kCall:
        if (a->text != "sqrt") throw NotCovered();
        return root(a, find(a->args[0]), 2);
      default:
        throw NotCovered();
    }
  }

 private:
  Bound find_power(const Expression& a) {
    const auto exponent = rational_value(a->args[1]);
    if (!exponent.has_value() || exponent->num_bits() > 24) throw NotCovered();
    const int64_t numerator = fmpz_get_si(fmpq_numref(exponent->get()));
    const int64_t denominator = fmpz_get_si(fmpq_denref(exponent->get()));
    Bound bound = find(a->args[0]);
    if (denominator != 1) bound = root(a->args[0], bound, denominator);
    if (numerator < 0) std::swap(bound.u, bound.l);
    const double times = static_cast<double>(std::abs(numerator));
    return {bound.u * times, bound.l * times};
  }

  Bound root(const Expression& a, const Bound& inner, int64_t index) {
    note_root(a, index);
    const double k = static_cast<double>(index);
    if (inner.u >= inner.l) return {(inner.u + (k - 1) * inner.l) / k, inner.l};
    return {inner.u, ((k - 1) * inner.u + inner.l) / k};
  }

  // A root that occurs twice counts once.
  void note_root(const Expression& a, int64_t index) {
    for (const auto& [seen, seen_index] : roots_) {
      if (seen_index == index && is_same(seen, a)) return;
    }
    roots_.emplace_back(a, index);
    degree *= static_cast<double>(index);
    if (degree > 4096) throw NotCovered();
  }

  std::vector<std::pair<Expression, int64_t>> roots_;
};

}  // namespace

std::optional<double> separation_bits(const Expression& a) {
  try {
    BoundFinder finder;
    const Bound bound = finder.find(a);
    const double bits = (finder.degree - 1) * std::max(bound.u, 0.0) + std::max(bound.l, 0.0) + 2;
    if (bits > kMaxSeparationBits) return std::nullopt;
    return bits;
  } catch (const NotCovered&) {
    return std::nullopt;
  }
}

}  // namespace gradus::rewards::math
