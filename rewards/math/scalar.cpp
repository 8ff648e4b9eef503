// SPDX-License-Identifier: Apache-2.0
#include "rewards/math/scalar.h"

#include <algorithm>
#include <cmath>

#include "rewards/math/constant.h"
#include "rewards/math/numeric.h"
#include "rewards/math/polynomial.h"

namespace gradus::rewards::math {
namespace {

constexpr int64_t kMaxRationalBits = 1000000;
constexpr int64_t kMaxFactorial = 2000;
constexpr int64_t kMaxTerms = 1000;
constexpr slong kMaxPrecisionBits = 8192;
constexpr slong kProbeBits = 128;
constexpr size_t kNumPoints = 12;
constexpr size_t kMinPoints = 8;  // at which both sides must be defined

std::optional<Rational> power_of(const Rational& base, const Rational& exponent) {
  if (!exponent.fits_int()) return std::nullopt;
  const int64_t n = exponent.to_int();
  if (base.is_zero()) {
    if (n <= 0) return std::nullopt;
    return Rational(0);
  }
  const int64_t size = std::abs(n);
  if (size > kMaxRationalBits || base.num_bits() * size > kMaxRationalBits) return std::nullopt;
  return base.pow(n);
}

std::optional<int64_t> small_count(const Rational& value) {
  if (!value.fits_int() || value.to_int() < 0 || value.to_int() > kMaxFactorial)
    return std::nullopt;
  return value.to_int();
}

std::optional<Rational> combinatorial_of(const std::string& name,
                                         const std::vector<Rational>& args) {
  Rational result;
  fmpz* top = fmpq_numref(result.get());
  if (name == "factorial") {
    const auto n = small_count(args[0]);
    if (!n.has_value()) return std::nullopt;
    fmpz_fac_ui(top, static_cast<ulong>(*n));
    return result;
  }
  if (name == "binomial") {
    const auto n = small_count(args[0]), k = small_count(args[1]);
    if (!n.has_value() || !k.has_value()) return std::nullopt;
    if (*k <= *n) fmpz_bin_uiui(top, static_cast<ulong>(*n), static_cast<ulong>(*k));
    return result;
  }
  const bool are_whole =
      std::all_of(args.begin(), args.end(), [](const Rational& arg) { return arg.is_integer(); });
  if (!are_whole) return std::nullopt;
  fmpz_set(top, fmpq_numref(args[0].get()));
  const auto combine = name == "gcd" ? fmpz_gcd : fmpz_lcm;
  for (size_t i = 1; i < args.size(); ++i) combine(top, top, fmpq_numref(args[i].get()));
  return result;
}

Rational floor_of(const Rational& a) {
  Rational result;
  fmpz_fdiv_q(fmpq_numref(result.get()), fmpq_numref(a.get()), fmpq_denref(a.get()));
  return result;
}

// The square root of a fraction, where it is a fraction.
std::optional<Rational> root_of(const Rational& a) {
  if (a.sign() < 0) return std::nullopt;
  Rational root;
  if (!fmpz_is_square(fmpq_numref(a.get())) || !fmpz_is_square(fmpq_denref(a.get()))) {
    return std::nullopt;
  }
  fmpz_sqrt(fmpq_numref(root.get()), fmpq_numref(a.get()));
  fmpz_sqrt(fmpq_denref(root.get()), fmpq_denref(a.get()));
  return root;
}

std::optional<Rational> call_of(const std::string& name, const std::vector<Rational>& args) {
  if (name == "factorial" || name == "binomial" || name == "gcd" || name == "lcm") {
    return combinatorial_of(name, args);
  }
  if (name == "sqrt") return root_of(args[0]);
  if (name == "abs") return args[0].abs();
  if (name == "floor") return floor_of(args[0]);
  if (name == "ceil") return -floor_of(-args[0]);
  if (name == "mod" && !args[1].is_zero()) {
    return args[0] - args[1] * floor_of(args[0] / args[1]);
  }
  if (name == "max" || name == "min") {
    const auto extreme = std::minmax_element(args.begin(), args.end());
    return name == "max" ? *extreme.second : *extreme.first;
  }
  return std::nullopt;
}

}  // namespace

std::optional<Rational> rational_value(const Expression& a) {
  switch (a->kind) {
    case Kind::kNumber:
      return a->value;
    case Kind::kSum:
    case Kind::kProduct:
    case Kind::kPercent:
    case Kind::kPower:
    case Kind::kRatio:
    case Kind::kCall:
      break;
    default:
      return std::nullopt;
  }
  std::vector<Rational> args;
  for (const Expression& arg : a->args) {
    auto value = rational_value(arg);
    if (!value.has_value()) return std::nullopt;
    args.push_back(std::move(*value));
  }
  if (a->kind == Kind::kCall) return call_of(a->text, args);
  if (a->kind == Kind::kPower) return power_of(args[0], args[1]);
  if (a->kind == Kind::kPercent) return args[0] / Rational(100);
  Rational result = args[0];
  int64_t work = 0;  // bits of all partial results
  for (size_t i = 1; i < args.size(); ++i) {
    if (a->kind == Kind::kRatio && args[i].is_zero()) return std::nullopt;
    result = a->kind == Kind::kSum       ? result + args[i]
             : a->kind == Kind::kProduct ? result * args[i]
                                         : result / args[i];
    work += result.num_bits();
    if (work > kMaxRationalBits) return std::nullopt;
  }
  return result;
}

Expression substituted(const Expression& a, const std::string& variable, const Expression& value) {
  if (a->kind == Kind::kName) return a->text == variable ? value : a;
  if (a->args.empty()) return a;
  auto node = std::make_shared<Node>(*a);
  bool has_changed = false;
  for (Expression& arg : node->args) {
    Expression changed = substituted(arg, variable, value);
    has_changed |= changed != arg;
    arg = std::move(changed);
  }
  return has_changed ? node : a;
}

Expression at_sample_point(const Expression& a) {
  Expression result = a;
  int64_t numerator = 3;
  for (const std::string& name : variables_of(a)) {
    result = substituted(result, name, make_number(Rational(numerator, 7)));
    numerator += 5;
  }
  return result;
}

namespace {

// ---- compat: sums, products and derivatives that stand unevaluated ----

Expression derivative(const Expression& a, const std::string& x);

Expression derivative_of_call(const Expression& a, const std::string& x) {
  const Expression& u = a->args[0];
  const Expression du = derivative(u, x);
  if (du == nullptr) return nullptr;
  Expression outer;
  if (a->text == "sin") {
    outer = make_node(Kind::kCall, {u}, "cos");
  } else if (a->text == "cos") {
    outer = negated(make_node(Kind::kCall, {u}, "sin"));
  } else if (a->text == "exp") {
    outer = a;
  } else if (a->text == "ln") {
    outer = quotient_of(make_number(1), u);
  } else if (a->text == "tan") {
    outer = make_node(Kind::kPower, {make_node(Kind::kCall, {u}, "cos"), make_number(-2)});
  } else if (a->text == "sqrt") {
    outer = quotient_of(make_number(1), product_of(make_number(2), a));
  } else {
    return nullptr;
  }
  return product_of(outer, du);
}

Expression derivative(const Expression& a, const std::string& x) {
  switch (a->kind) {
    case Kind::kNumber:
    case Kind::kConstant:
      return make_number(0);
    case Kind::kName:
      return make_number(a->text == x ? 1 : 0);
    case Kind::kSum: {
      Expression total = make_number(0);
      for (const Expression& arg : a->args) {
        Expression term = derivative(arg, x);
        if (term == nullptr) return nullptr;
        total = sum_of(total, term);
      }
      return total;
    }
    case Kind::kProduct: {
      Expression total = make_number(0);
      for (size_t i = 0; i < a->args.size(); ++i) {
        Expression term = derivative(a->args[i], x);
        if (term == nullptr) return nullptr;
        for (size_t j = 0; j < a->args.size(); ++j) {
          if (j != i) term = product_of(term, a->args[j]);
        }
        total = sum_of(total, term);
      }
      return total;
    }
    case Kind::kPower: {
      const Expression inner = derivative(a->args[0], x);
      if (inner == nullptr) return nullptr;
      const Expression& n = a->args[1];
      const bool is_e = a->args[0]->kind == Kind::kConstant && a->args[0]->text == "e";
      if (is_e) {
        const Expression slope = derivative(n, x);
        return slope == nullptr ? nullptr : product_of(a, slope);
      }
      if (!variables_of(n).empty()) return nullptr;
      return product_of(product_of(n, inner),
                        make_node(Kind::kPower, {a->args[0], difference_of(n, make_number(1))}));
    }
    case Kind::kCall:
      return derivative_of_call(a, x);
    default:
      return nullptr;
  }
}

Expression expanded_sum(const Expression& a) {
  const auto low = rational_value(a->args[2]), high = rational_value(a->args[3]);
  if (!low.has_value() || !high.has_value() || !low->fits_int() || !high->fits_int()) return a;
  const int64_t begin = low->to_int(), end = high->to_int();
  if (a->args[1]->kind != Kind::kName || end - begin >= kMaxTerms) return a;
  const bool is_sum = a->text == "sum";
  std::vector<Expression> terms = {make_number(is_sum ? 0 : 1)};
  for (int64_t k = begin; k <= end; ++k) {
    terms.push_back(substituted(a->args[0], a->args[1]->text, make_number(k)));
  }
  return make_node(is_sum ? Kind::kSum : Kind::kProduct, std::move(terms));
}

Expression with_evaluated_parts(const Expression& a) {
  if (!has_kind(a, Kind::kUnevaluated)) return a;
  auto node = std::make_shared<Node>(*a);
  for (Expression& arg : node->args) arg = with_evaluated_parts(arg);
  const Expression changed = std::move(node);
  if (changed->kind != Kind::kUnevaluated) return changed;
  if (changed->text == "sum" || changed->text == "prod") return expanded_sum(changed);
  if (changed->text == "diff") {
    Expression result = derivative(changed->args[0], changed->args[1]->text);
    return result == nullptr ? changed : result;
  }
  return changed;
}

// The variables of integrals and limits replaced by a number, so that only free ones are left.
Expression without_bound_names(const Expression& a) {
  if (!has_kind(a, Kind::kUnevaluated)) return a;
  auto node = std::make_shared<Node>(*a);
  for (Expression& arg : node->args) arg = without_bound_names(arg);
  if (a->kind != Kind::kUnevaluated || a->args.size() < 2 || a->args[1]->kind != Kind::kName)
    return node;
  return substituted(node, a->args[1]->text, make_number(1));
}

// ---- constants ----

bool is_infinite(const Expression& a) {
  return has_node(a, [](const Node& n) { return n.kind == Kind::kConstant && n.text == "inf"; });
}

// +1 or -1 for plus or minus infinity, 0 for anything else.
int sign_of_infinity(const Expression& a) {
  if (a->kind == Kind::kConstant && a->text == "inf") return 1;
  if (a->kind != Kind::kProduct || a->args.size() != 2 || sign_of_infinity(a->args[1]) != 1)
    return 0;
  const auto factor = rational_value(a->args[0]);
  return factor.has_value() ? factor->sign() : 0;
}

struct Difference {
  bool is_defined = false;
  bool excludes_zero = false;
  bool is_small = false;  // certainly below 2^-54 in absolute value
  slong spread_bits = 0;
  bool has_left_reals = false;
  Ball value{};
};

Difference difference_at(const Expression& a, const Expression& b, const Point& point, slong bits,
                         bool approximates) {
  Difference difference;
  Evaluator evaluator{point, bits, approximates};
  const auto left = evaluator.evaluate(a);
  if (!left.has_value()) return difference;
  const auto right = evaluator.evaluate(b);
  if (!right.has_value()) return difference;
  difference.is_defined = true;
  difference.spread_bits = evaluator.spread_bits;
  difference.has_left_reals = evaluator.has_left_reals;
  acb_sub(difference.value.get(), left->get(), right->get(), bits);
  difference.excludes_zero = acb_contains_zero(difference.value.get()) == 0;
  mag_t bound;
  mag_init(bound);
  acb_get_mag(bound, difference.value.get());
  difference.is_small = mag_cmp_2exp_si(bound, -54) < 0;
  mag_clear(bound);
  return difference;
}

bool is_within_bits(const Ball& ball, double bits) {
  mag_t bound;
  mag_init(bound);
  acb_get_mag(bound, ball.get());
  const bool result = mag_cmp_2exp_si(bound, -static_cast<slong>(bits)) < 0;
  mag_clear(bound);
  return result;
}

Decision compare_constants(const Expression& a, const Expression& b, bool is_compat) {
  const Point nowhere;
  slong bits = kProbeBits;
  Difference difference = difference_at(a, b, nowhere, bits, is_compat);
  if (!difference.is_defined) return {Equality::kUndecided, "a value that cannot be computed"};
  if (difference.excludes_zero) return {Equality::kDifferent, "numeric value"};
  // Floors and their like come out whole.
  if (acb_is_zero(difference.value.get())) return {Equality::kEqual, "numeric value"};
  // The bits that equality needs: those of a separation bound, or else enough for the sizes met.
  const std::optional<double> separation = separation_bits(difference_of(a, b));
  const slong needed = std::max<slong>(
      512, 2 * difference.spread_bits + 256 + (separation ? static_cast<slong>(*separation) : 0));
  if (needed > 2 * kMaxPrecisionBits) return {Equality::kUndecided, "too large to compare"};
  while (bits < needed) {
    bits = std::min(needed, bits * 4);
    difference = difference_at(a, b, nowhere, bits, is_compat);
    if (!difference.is_defined) return {Equality::kUndecided, "a value that cannot be computed"};
    if (difference.excludes_zero) return {Equality::kDifferent, "numeric value"};
  }
  if (separation.has_value() && is_within_bits(difference.value, *separation)) {
    return {Equality::kEqual, "radicals"};
  }
  const Equality proven = compare_by_calcium(a, b);
  if (proven == Equality::kUndecided && is_compat) return {Equality::kEqual, "equal to 512 bits"};
  return {proven, "constant"};
}

// ---- expressions with variables ----

// A small generator with fixed seeds, so that a verdict is a function of the texts.
uint64_t next_random(uint64_t& state) {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return state >> 33;
}

// Even points are positive, odd ones of both signs; sizes about 1/8 to 4.
Point point_number(size_t index, const std::vector<std::string>& names) {
  Point point;
  uint64_t state = 0x9E3779B97F4A7C15u * (index + 1);
  for (const std::string& name : names) {
    const int64_t size = 33 + static_cast<int64_t>(next_random(state) % 991);
    const bool is_negative = index % 2 == 1 && next_random(state) % 2 == 1;
    point[name] = Rational(is_negative ? -size : size, 256);
  }
  return point;
}

Decision compare_at_points(const Expression& a, const Expression& b, bool is_compat) {
  std::vector<std::string> names = variables_of(difference_of(a, b));
  size_t num_agreeing = 0, num_mismatched = 0, num_tried = 0;
  slong bits = kProbeBits;
  for (size_t i = 0; i < 2 * kNumPoints && num_agreeing < kNumPoints; ++i) {
    const Point point = point_number(i, names);
    ++num_tried;
    Difference difference = difference_at(a, b, point, bits, is_compat);
    if (difference.is_defined && !difference.excludes_zero) {
      // Tiny constants must not hide in the rounding of large ones.
      const slong needed = kProbeBits + 2 * difference.spread_bits;
      if (needed > kMaxPrecisionBits) return {Equality::kUndecided, "too large to compare"};
      difference = difference_at(a, b, point, needed, is_compat);
    }
    if (!difference.is_defined) {
      Evaluator left{point, bits, is_compat}, right{point, bits, is_compat};
      num_mismatched += left.evaluate(a).has_value() != right.evaluate(b).has_value() ? 1 : 0;
      continue;
    }
    if (difference.excludes_zero && !(is_compat && difference.is_small)) {
      if (!difference.has_left_reals) return {Equality::kDifferent, "numeric value at a point"};
      ++num_mismatched;
      continue;
    }
    num_agreeing +=
        (is_compat && difference.is_small) || is_within_bits(difference.value, 90) ? 1 : 0;
  }
  if (num_agreeing < kMinPoints || 4 * num_mismatched > num_tried) {
    return {Equality::kUndecided, "defined at too few points"};
  }
  return {Equality::kEqual, "equal at random points"};
}

}  // namespace

Decision compare_scalars(const Expression& a, const Expression& b, bool is_compat) {
  const int infinity_of_a = sign_of_infinity(a), infinity_of_b = sign_of_infinity(b);
  if (infinity_of_a != 0 || infinity_of_b != 0) {
    const bool are_equal = infinity_of_a == infinity_of_b;
    return {are_equal ? Equality::kEqual : Equality::kDifferent, "infinity"};
  }
  const bool is_worked_out =
      is_compat && (has_kind(a, Kind::kUnevaluated) || has_kind(b, Kind::kUnevaluated));
  if (!is_worked_out && (is_infinite(a) || is_infinite(b)))
    return {Equality::kUndecided, "arithmetic with infinity"};
  const auto value_of_a = rational_value(a), value_of_b = rational_value(b);
  if (value_of_a.has_value() && value_of_b.has_value()) {
    const bool are_equal = *value_of_a == *value_of_b;
    return {are_equal ? Equality::kEqual : Equality::kDifferent, "fraction"};
  }
  if (is_worked_out) {
    const Expression left = with_evaluated_parts(a), right = with_evaluated_parts(b);
    if (!has_kind(left, Kind::kUnevaluated) && !has_kind(right, Kind::kUnevaluated)) {
      return compare_scalars(left, right, is_compat);
    }
    const bool are_constants = variables_of(without_bound_names(left)).empty() &&
                               variables_of(without_bound_names(right)).empty();
    if (are_constants) {
      const bool are_equal = agree_to_15_digits(left, right);
      return {are_equal ? Equality::kEqual : Equality::kDifferent, "15 digits"};
    }
  }
  const bool have_variables = !variables_of(a).empty() || !variables_of(b).empty();
  const Equality identity = compare_as_polynomials(a, b);
  if (identity == Equality::kEqual) return {identity, "polynomial identity"};
  if (identity == Equality::kDifferent && have_variables) return {identity, "polynomial identity"};
  return have_variables ? compare_at_points(a, b, is_compat) : compare_constants(a, b, is_compat);
}

bool agree_to_15_digits(const Expression& a, const Expression& b) {
  const Point nowhere;
  const Difference difference = difference_at(a, b, nowhere, 256, true);
  return difference.is_defined && difference.is_small;
}

std::optional<int> compare_order(const Expression& a, const Expression& b) {
  const int infinity_of_a = sign_of_infinity(a), infinity_of_b = sign_of_infinity(b);
  if (infinity_of_a != 0 || infinity_of_b != 0) {
    return infinity_of_a == infinity_of_b ? 0 : infinity_of_a < infinity_of_b ? -1 : 1;
  }
  const auto value_of_a = rational_value(a), value_of_b = rational_value(b);
  if (value_of_a.has_value() && value_of_b.has_value()) return (*value_of_a - *value_of_b).sign();
  const Point nowhere;
  for (slong bits = 64; bits <= 1024; bits *= 4) {
    const Difference difference = difference_at(a, b, nowhere, bits, false);
    if (!difference.is_defined || !arb_contains_zero(acb_imagref(difference.value.get()))) {
      return std::nullopt;
    }
    if (arb_is_positive(acb_realref(difference.value.get()))) return 1;
    if (arb_is_negative(acb_realref(difference.value.get()))) return -1;
  }
  if (compare_scalars(a, b, false).equality == Equality::kEqual) return 0;
  return std::nullopt;
}

std::optional<bool> is_close(const Expression& a, const Rational& b, const Rational& tolerance) {
  if (const auto value = rational_value(a)) return (*value - b).abs() <= tolerance;
  const auto above = compare_order(a, make_number(b + tolerance));
  const auto below = compare_order(a, make_number(b - tolerance));
  if (!above.has_value() || !below.has_value()) return std::nullopt;
  return *above <= 0 && *below >= 0;
}

namespace {

Rational nearest_multiple(const Rational& value, int64_t decimals) {
  const Rational unit = Rational(10).pow(decimals);
  const Rational scaled = value * unit;
  Rational whole = floor_of(scaled);
  const Rational rest = scaled - whole;
  const Rational half(1, 2);
  const bool is_odd = fmpz_is_odd(fmpq_numref(whole.get())) != 0;
  if (half < rest || (rest == half && is_odd)) whole = whole + Rational(1);
  return whole / unit;
}

}  // namespace

std::optional<Rational> rounded(const Expression& a, int64_t decimals) {
  if (const auto value = rational_value(a)) return nearest_multiple(*value, decimals);
  if (!variables_of(a).empty()) return std::nullopt;
  const Point nowhere;
  Evaluator evaluator{nowhere, 256, true};
  const auto ball = evaluator.evaluate(a);
  if (!ball.has_value() || !arb_contains_zero(acb_imagref(ball->get()))) return std::nullopt;
  Rational middle;
  // 256 bits are far more than a decimal answer; the middle stands for the ball.
  fmpz_t exponent;
  fmpz_init(exponent);
  arf_get_fmpz_2exp(fmpq_numref(middle.get()), exponent, arb_midref(acb_realref(ball->get())));
  const slong shift = fmpz_get_si(exponent);
  fmpz_clear(exponent);
  return nearest_multiple(middle * Rational(2).pow(shift), decimals);
}

}  // namespace gradus::rewards::math
