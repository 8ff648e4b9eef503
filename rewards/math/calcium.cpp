// SPDX-License-Identifier: Apache-2.0
#include <flint/flint.h>

// Inline functions of Calcium's headers are C: they take what is allocated without a cast.
namespace {
struct AnyPointer {
  void* pointer;
  template <class T>
  operator T*() const {
    return static_cast<T*>(pointer);
  }
};
}  // namespace
#define flint_malloc(size) (AnyPointer{(flint_malloc)(size)})
#define flint_calloc(count, size) (AnyPointer{(flint_calloc)(count, size)})
#define flint_realloc(pointer, size) (AnyPointer{(flint_realloc)(pointer, size)})
#include <calcium/ca.h>
#undef flint_malloc
#undef flint_calloc
#undef flint_realloc

#include "rewards/math/constant.h"
#include "rewards/math/numeric.h"

namespace gradus::rewards::math {
namespace {

constexpr int64_t kMaxNodes = 80;

// Thrown and caught inside this file.
struct NotCovered {};

class CalciumContext {
 public:
  CalciumContext() {
    ca_ctx_init(context_);
    ca_ctx_set_option(context_, CA_OPT_PREC_LIMIT, 512);
    ca_ctx_set_option(context_, CA_OPT_QQBAR_DEG_LIMIT, 16);
    ca_ctx_set_option(context_, CA_OPT_LLL_PREC, 128);
    ca_ctx_set_option(context_, CA_OPT_POW_LIMIT, 16);
    ca_ctx_set_option(context_, CA_OPT_SMOOTH_LIMIT, 32);
    ca_ctx_set_option(context_, CA_OPT_GROEBNER_LENGTH_LIMIT, 12);
    ca_ctx_set_option(context_, CA_OPT_GROEBNER_POLY_LENGTH_LIMIT, 60);
    ca_ctx_set_option(context_, CA_OPT_GROEBNER_POLY_BITS_LIMIT, 500);
    ca_ctx_set_option(context_, CA_OPT_VIETA_LIMIT, 4);
  }
  ~CalciumContext() { ca_ctx_clear(context_); }
  CalciumContext(const CalciumContext&) = delete;
  CalciumContext& operator=(const CalciumContext&) = delete;
  ca_ctx_struct* get() { return context_; }

 private:
  ca_ctx_t context_;
};

class CalciumNumber {
 public:
  explicit CalciumNumber(CalciumContext& context) : context_(&context) {
    ca_init(value_, context.get());
  }
  CalciumNumber(CalciumNumber&& other) noexcept : CalciumNumber(*other.context_) {
    ca_swap(value_, other.value_, context_->get());
  }
  CalciumNumber(const CalciumNumber&) = delete;
  CalciumNumber& operator=(const CalciumNumber&) = delete;
  ~CalciumNumber() { ca_clear(value_, context_->get()); }
  ca_struct* get() { return value_; }

 private:
  CalciumContext* context_;
  ca_t value_;
};

class CalciumConverter {
 public:
  explicit CalciumConverter(CalciumContext& context) : context_(context) {}

  CalciumNumber convert(const Expression& a) {
    CalciumNumber result(context_);
    ca_struct* r = result.get();
    ca_ctx_struct* c = context_.get();
    switch (a->kind) {
      case Kind::kNumber:
        if (a->value.num_bits() > 2000) throw NotCovered();
        ca_set_fmpq(r, a->value.get(), c);
        break;
      case Kind::kConstant:
        convert_constant(a->text, r);
        break;
      case Kind::kSum:
        for (const Expression& arg : a->args) ca_add(r, r, convert(arg).get(), c);
        break;
      case Kind::kProduct:
        ca_one(r, c);
        for (const Expression& arg : a->args) ca_mul(r, r, convert(arg).get(), c);
        break;
      case Kind::kPercent:
        ca_div_si(r, convert(a->args[0]).get(), 100, c);
        break;
      case Kind::kPower:
        convert_power(a, r);
        break;
      case Kind::kCall:
        convert_call(a, r);
        break;
      default:
        throw NotCovered();
    }
    return result;
  }

 private:
  void convert_constant(const std::string& name, ca_struct* r) {
    if (name == "pi") {
      ca_pi(r, context_.get());
    } else if (name == "i") {
      ca_i(r, context_.get());
    } else if (name == "e") {
      ca_one(r, context_.get());
      ca_exp(r, r, context_.get());
    } else if (name == "gamma") {
      ca_euler(r, context_.get());
    } else {
      throw NotCovered();
    }
  }

  void convert_power(const Expression& a, ca_struct* r) {
    if (a->args[0]->kind == Kind::kConstant && a->args[0]->text == "e") {
      ca_exp(r, convert(a->args[1]).get(), context_.get());
      return;
    }
    const auto exponent = rational_value(a->args[1]);
    if (exponent.has_value() && exponent->num_bits() > 8) throw NotCovered();
    ca_pow(r, convert(a->args[0]).get(), convert(a->args[1]).get(), context_.get());
  }

  void convert_call(const Expression& a, ca_struct* r) {
    ca_ctx_struct* c = context_.get();
    CalciumNumber x = convert(a->args[0]);
    const std::string& name = a->text;
    if (name == "sqrt") {
      ca_sqrt(r, x.get(), c);
    } else if (name == "exp") {
      ca_exp(r, x.get(), c);
    } else if (name == "ln") {
      ca_log(r, x.get(), c);
    } else if (name == "log") {
      CalciumNumber base = convert(a->args[1]);
      ca_log(base.get(), base.get(), c);
      ca_log(r, x.get(), c);
      ca_div(r, r, base.get(), c);
    } else if (name == "abs") {
      ca_abs(r, x.get(), c);
    } else if (name == "tan" || name == "cot") {
      ca_tan(r, x.get(), c);
      if (name == "cot") ca_inv(r, r, c);
    } else if (name == "atan") {
      ca_atan(r, x.get(), c);
    } else if (name == "asin") {
      ca_asin(r, x.get(), c);
    } else if (name == "acos") {
      ca_acos(r, x.get(), c);
    } else {
      convert_sine(name, x.get(), r);
    }
  }

  void convert_sine(const std::string& name, ca_struct* x, ca_struct* r) {
    ca_ctx_struct* c = context_.get();
    CalciumNumber other(context_);
    if (name == "sin" || name == "csc") {
      ca_sin_cos(r, other.get(), x, c);
    } else if (name == "cos" || name == "sec") {
      ca_sin_cos(other.get(), r, x, c);
    } else {
      throw NotCovered();
    }
    if (name == "csc" || name == "sec") ca_inv(r, r, c);
  }

  CalciumContext& context_;
};

}  // namespace

Equality compare_by_calcium(const Expression& a, const Expression& b) {
  if (num_nodes(a) + num_nodes(b) > kMaxNodes) return Equality::kUndecided;
  clean_up_with_thread();
  try {
    CalciumContext context;
    CalciumConverter converter(context);
    CalciumNumber left = converter.convert(a), right = converter.convert(b);
    switch (ca_check_equal(left.get(), right.get(), context.get())) {
      case T_TRUE:
        return Equality::kEqual;
      case T_FALSE:
        return Equality::kDifferent;
      default:
        return Equality::kUndecided;
    }
  } catch (const NotCovered&) {
    return Equality::kUndecided;
  }
}

}  // namespace gradus::rewards::math
