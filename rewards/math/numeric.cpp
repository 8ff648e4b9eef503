// SPDX-License-Identifier: Apache-2.0
#include "rewards/math/numeric.h"

#include <acb_calc.h>

#include <algorithm>
#include <cmath>

#include "rewards/math/scalar.h"

namespace gradus::rewards::math {
namespace {

constexpr slong kMaxExponentBits = 1 << 16;

// Thrown and caught inside this file.
struct Undefined {};

struct ThreadCaches {
  ~ThreadCaches() { flint_cleanup(); }
};

using Function = void (*)(acb_t, const acb_t, slong);

void reciprocal_of(acb_t result, const acb_t x, slong bits, Function function) {
  function(result, x, bits);
  if (acb_contains_zero(result)) throw Undefined();
  acb_inv(result, result, bits);
}

const std::map<std::string, Function, std::less<>>& plain_functions() {
  static const std::map<std::string, Function, std::less<>> kFunctions = {
      {"exp", acb_exp},     {"sin", acb_sin},     {"cos", acb_cos},    {"tan", acb_tan},
      {"cot", acb_cot},     {"sinh", acb_sinh},   {"cosh", acb_cosh},  {"tanh", acb_tanh},
      {"asin", acb_asin},   {"acos", acb_acos},   {"atan", acb_atan},  {"asinh", acb_asinh},
      {"acosh", acb_acosh}, {"atanh", acb_atanh}, {"gamma", acb_gamma}};
  return kFunctions;
}

class Walker {
 public:
  explicit Walker(Evaluator& owner) : owner_(owner), bits_(owner.precision_bits) {}

  Ball walk(const Expression& a) {
    Ball result;
    acb_ptr r = result.get();
    switch (a->kind) {
      case Kind::kNumber:
        acb_set_fmpq(r, a->value.get(), bits_);
        break;
      case Kind::kName: {
        const auto found = owner_.point.find(a->text);
        if (found == owner_.point.end()) throw Undefined();
        acb_set_fmpq(r, found->second.get(), bits_);
        break;
      }
      case Kind::kConstant:
        walk_constant(a->text, r);
        break;
      case Kind::kSum:
        for (const Expression& arg : a->args) acb_add(r, r, walk(arg).get(), bits_);
        break;
      case Kind::kProduct:
        acb_one(r);
        for (const Expression& arg : a->args) acb_mul(r, r, walk(arg).get(), bits_);
        break;
      case Kind::kPower:
        walk_power(a, r);
        break;
      case Kind::kCall:
        walk_call(a, r);
        break;
      case Kind::kPercent:
        acb_div_ui(r, walk(a->args[0]).get(), 100, bits_);
        break;
      case Kind::kRatio:
        acb_set(r, walk(a->args[0]).get());
        for (size_t i = 1; i < a->args.size(); ++i) divide(r, walk(a->args[i]));
        break;
      case Kind::kUnevaluated:
        walk_unevaluated(a, r);
        break;
      default:
        throw Undefined();
    }
    check(r);
    return result;
  }

 private:
  void check(acb_srcptr r) {
    if (!acb_is_finite(r)) throw Undefined();
    for (const arb_srcptr part : {acb_realref(r), acb_imagref(r)}) {
      if (arf_is_zero(arb_midref(part))) continue;
      if (COEFF_IS_MPZ(ARF_EXP(arb_midref(part)))) throw Undefined();
      const slong size = std::abs(static_cast<slong>(ARF_EXP(arb_midref(part))));
      if (size > kMaxExponentBits) throw Undefined();
      // A part that is rounding error alone says nothing of the size.
      if (!arb_contains_zero(part)) owner_.spread_bits = std::max(owner_.spread_bits, size);
    }
  }

  void divide(acb_ptr r, const Ball& by) {
    if (acb_contains_zero(by.get())) throw Undefined();
    acb_div(r, r, by.get(), bits_);
  }

  void walk_constant(const std::string& name, acb_ptr r) {
    if (name == "pi") {
      acb_const_pi(r, bits_);
    } else if (name == "e") {
      arb_const_e(acb_realref(r), bits_);
    } else if (name == "i") {
      acb_onei(r);
    } else if (name == "gamma") {
      arb_const_euler(acb_realref(r), bits_);
    } else {
      throw Undefined();
    }
  }

  void note_negative(const Ball& x) {
    if (!acb_is_real(x.get()) || !arb_is_nonnegative(acb_realref(x.get()))) {
      owner_.has_left_reals = true;
    }
  }

  void walk_power(const Expression& a, acb_ptr r) {
    const std::optional<Rational> exponent = rational_value(a->args[1]);
    if (a->args[0]->kind == Kind::kConstant && a->args[0]->text == "e") {
      const Ball power = walk(a->args[1]);
      limit_exponential(power);
      acb_exp(r, power.get(), bits_);
      return;
    }
    const Ball base = walk(a->args[0]);
    if (exponent.has_value() && exponent->is_integer()) {
      if (!exponent->fits_int() || std::abs(exponent->to_int()) > (int64_t{1} << 20))
        throw Undefined();
      if (exponent->sign() < 0 && acb_contains_zero(base.get())) throw Undefined();
      acb_pow_si(r, base.get(), exponent->to_int(), bits_);
      return;
    }
    if (acb_contains_zero(base.get())) {
      if (!acb_is_zero(base.get()) || !exponent.has_value() || exponent->sign() <= 0)
        throw Undefined();
      acb_zero(r);
      return;
    }
    note_negative(base);
    Ball power = walk(a->args[1]);
    acb_t logarithm;
    acb_init(logarithm);
    acb_log(logarithm, base.get(), bits_);
    acb_mul(power.get(), power.get(), logarithm, bits_);
    acb_clear(logarithm);
    limit_exponential(power);
    acb_exp(r, power.get(), bits_);
  }

  void limit_exponential(const Ball& power) {
    if (!acb_is_finite(power.get())) throw Undefined();
    arb_t limit;
    arb_init(limit);
    arb_set_si(limit, kMaxExponentBits);
    arb_t size;
    arb_init(size);
    acb_abs(size, power.get(), 30);
    const bool is_small = arb_lt(size, limit) != 0;
    arb_clear(size);
    arb_clear(limit);
    if (!is_small) throw Undefined();
  }

  void walk_call(const Expression& a, acb_ptr r) {
    const std::string& name = a->text;
    if (name == "factorial" || name == "binomial" || name == "gcd" || name == "lcm") {
      return walk_combinatorial(a, r);
    }
    if (name == "det" || name == "trace" || name[0] == '@') throw Undefined();
    if (name == "max" || name == "min") return walk_extreme(a, r);
    Ball x = walk(a->args[0]);
    if (name == "sqrt") {
      note_negative(x);
      acb_sqrt(r, x.get(), bits_);
    } else if (name == "log") {
      walk_logarithm(x, walk(a->args[1]), r);
    } else if (name == "ln") {
      if (acb_contains_zero(x.get())) throw Undefined();
      note_negative(x);
      acb_log(r, x.get(), bits_);
    } else if (name == "abs") {
      acb_abs(acb_realref(r), x.get(), bits_);
      arb_zero(acb_imagref(r));
    } else if (name == "re") {
      acb_set_arb(r, acb_realref(x.get()));
    } else if (name == "im") {
      acb_set_arb(r, acb_imagref(x.get()));
    } else if (name == "floor" || name == "ceil") {
      walk_floor(a, x, name == "floor", r);
    } else if (name == "mod") {
      walk_modulo(x, walk(a->args[1]), r);
    } else if (name == "sec") {
      reciprocal_of(r, x.get(), bits_, acb_cos);
    } else if (name == "csc") {
      reciprocal_of(r, x.get(), bits_, acb_sin);
    } else {
      walk_inverse_or_plain(name, x, r);
    }
  }

  void walk_inverse_or_plain(const std::string& name, const Ball& x, acb_ptr r) {
    if (name == "acot" || name == "asec" || name == "acsc") {
      if (acb_contains_zero(x.get())) throw Undefined();
      acb_inv(r, x.get(), bits_);
      const Function function = name == "acot" ? acb_atan : name == "asec" ? acb_acos : acb_asin;
      function(r, r, bits_);
      return;
    }
    const auto found = plain_functions().find(name);
    if (found == plain_functions().end()) throw Undefined();
    if (name == "exp" || name == "sinh" || name == "cosh" || name == "gamma") limit_exponential(x);
    found->second(r, x.get(), bits_);
  }

  void walk_logarithm(const Ball& x, const Ball& base, acb_ptr r) {
    if (acb_contains_zero(x.get()) || acb_contains_zero(base.get())) throw Undefined();
    note_negative(x);
    acb_log(r, x.get(), bits_);
    Ball below;
    acb_log(below.get(), base.get(), bits_);
    divide(r, below);
  }

  void walk_floor(const Expression& a, const Ball& x, bool is_floor, acb_ptr r) {
    if (!acb_is_real(x.get())) throw Undefined();
    if (const auto exact = rational_value(a->args[0])) {
      fmpz_t whole;
      fmpz_init(whole);
      const auto divide_to = is_floor ? fmpz_fdiv_q : fmpz_cdiv_q;
      divide_to(whole, fmpq_numref(exact->get()), fmpq_denref(exact->get()));
      acb_set_fmpz(r, whole);
      fmpz_clear(whole);
      return;
    }
    const auto round = is_floor ? arb_floor : arb_ceil;
    round(acb_realref(r), acb_realref(x.get()), bits_);
  }

  void walk_modulo(const Ball& x, const Ball& by, acb_ptr r) {
    acb_set(r, x.get());
    divide(r, by);
    if (!acb_is_real(r)) throw Undefined();
    arb_floor(acb_realref(r), acb_realref(r), bits_);
    acb_mul(r, r, by.get(), bits_);
    acb_sub(r, x.get(), r, bits_);
  }

  void walk_extreme(const Expression& a, acb_ptr r) {
    acb_set(r, walk(a->args[0]).get());
    for (size_t i = 1; i < a->args.size(); ++i) {
      const Ball next = walk(a->args[i]);
      if (!acb_is_real(r) || !acb_is_real(next.get())) throw Undefined();
      const auto choose = a->text == "max" ? arb_max : arb_min;
      choose(acb_realref(r), acb_realref(r), acb_realref(next.get()), bits_);
    }
  }

  void walk_combinatorial(const Expression& a, acb_ptr r) {
    if (const auto value = rational_value(a)) return acb_set_fmpq(r, value->get(), bits_);
    if (a->text == "gcd" || a->text == "lcm") throw Undefined();
    // By the gamma function, for arguments that are not whole.
    const auto factorial_of = [&](Ball x) {
      acb_add_ui(x.get(), x.get(), 1, bits_);
      limit_exponential(x);
      Ball result;
      acb_gamma(result.get(), x.get(), bits_);
      return result;
    };
    const Ball upper = walk(a->args[0]);
    acb_set(r, factorial_of(upper).get());
    if (a->text == "factorial") return;
    const Ball lower = walk(a->args[1]);
    Ball rest;
    acb_sub(rest.get(), upper.get(), lower.get(), bits_);
    divide(r, factorial_of(lower));
    divide(r, factorial_of(rest));
  }

  // ---- compat: what stands unevaluated ----
  void walk_unevaluated(const Expression& a, acb_ptr r) {
    if (!owner_.approximates) throw Undefined();
    if (a->text == "lim") return walk_limit(a, r);
    if (a->text == "int" && a->args.size() == 4) return walk_integral(a, r);
    throw Undefined();
  }

  // The value at the point + 2^-80, with an error of 2^-60 taken on trust.
  void walk_limit(const Expression& a, acb_ptr r) {
    const auto at = rational_value(a->args[2]);
    const bool is_infinite = a->args[2]->kind == Kind::kConstant && a->args[2]->text == "inf";
    if (!at.has_value() && !is_infinite) throw Undefined();
    Point near = owner_.point;
    const Rational tiny = Rational(2).pow(-80);
    near[a->args[1]->text] = is_infinite ? Rational(2).pow(80) : *at + tiny;
    Evaluator inner{near, bits_ + 400, true};
    const auto value = inner.evaluate(a->args[0]);
    if (!value.has_value()) throw Undefined();
    acb_set(r, value->get());
    mag_t error;
    mag_init(error);
    mag_set_ui_2exp_si(error, 1, -60);
    acb_add_error_mag(r, error);
    mag_clear(error);
  }

  struct Integrand {
    const Expression* expression;
    const std::string* variable;
    const Point* point;
  };

  static int integrand(acb_ptr result, const acb_t x, void* parameter, slong order, slong bits) {
    (void)order;
    const auto& integrand = *static_cast<const Integrand*>(parameter);
    Evaluator inner{*integrand.point, bits, true};
    Walker walker(inner);
    walker.variable_ = integrand.variable;
    walker.variable_value_ = x;
    try {
      acb_set(result, walker.walk_with_variable(*integrand.expression).get());
    } catch (const Undefined&) {
      acb_indeterminate(result);
    }
    return 0;
  }

  // Only polynomials, sines, cosines and exponentials, which are analytic everywhere.
  Ball walk_with_variable(const Expression& a) {
    Ball result;
    if (a->kind == Kind::kName && a->text == *variable_) {
      acb_set(result.get(), variable_value_);
      return result;
    }
    switch (a->kind) {
      case Kind::kSum:
        for (const Expression& arg : a->args) {
          acb_add(result.get(), result.get(), walk_with_variable(arg).get(), bits_);
        }
        return result;
      case Kind::kProduct:
        acb_one(result.get());
        for (const Expression& arg : a->args) {
          acb_mul(result.get(), result.get(), walk_with_variable(arg).get(), bits_);
        }
        return result;
      case Kind::kPower: {
        const auto exponent = rational_value(a->args[1]);
        const bool is_e = a->args[0]->kind == Kind::kConstant && a->args[0]->text == "e";
        if (is_e) {
          acb_exp(result.get(), walk_with_variable(a->args[1]).get(), bits_);
          return result;
        }
        if (!exponent.has_value() || !exponent->fits_int() || std::abs(exponent->to_int()) > 1000) {
          throw Undefined();
        }
        acb_pow_si(result.get(), walk_with_variable(a->args[0]).get(), exponent->to_int(), bits_);
        return result;
      }
      case Kind::kCall: {
        if (a->text != "sin" && a->text != "cos" && a->text != "exp") throw Undefined();
        plain_functions().find(a->text)->second(result.get(), walk_with_variable(a->args[0]).get(),
                                                bits_);
        return result;
      }
      default:
        return walk(a);
    }
  }

  void walk_integral(const Expression& a, acb_ptr r) {
    const Ball low = walk(a->args[2]), high = walk(a->args[3]);
    Integrand parameter{&a->args[0], &a->args[1]->text, &owner_.point};
    acb_calc_integrate_opt_t options;
    acb_calc_integrate_opt_init(options);
    options->eval_limit = 400;
    mag_t tolerance;
    mag_init(tolerance);
    mag_set_ui_2exp_si(tolerance, 1, -60);
    acb_calc_integrate(r, integrand, &parameter, low.get(), high.get(), 60, tolerance, options,
                       100);
    mag_clear(tolerance);
  }

  Evaluator& owner_;
  slong bits_;
  const std::string* variable_ = nullptr;
  acb_srcptr variable_value_ = nullptr;
};

}  // namespace

std::optional<Ball> Evaluator::evaluate(const Expression& a) {
  clean_up_with_thread();
  try {
    return Walker(*this).walk(a);
  } catch (const Undefined&) {
    return std::nullopt;
  }
}

void clean_up_with_thread() {
  thread_local const ThreadCaches kCaches;
  (void)kCaches;
}

}  // namespace gradus::rewards::math
