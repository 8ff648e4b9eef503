// SPDX-License-Identifier: Apache-2.0
#include "rewards/math/polynomial.h"

#include <flint/fmpz_mpoly.h>

#include <algorithm>
#include <cstdlib>

namespace gradus::rewards::math {
namespace {

constexpr size_t kMaxGenerators = 16;
constexpr slong kMaxTerms = 4000;
constexpr slong kMaxWork = 2000000;  // products of terms, times the words of a coefficient, in all
constexpr int64_t kMaxExponent = 200;
constexpr int64_t kMaxCoefficientBits = 20000;

struct TooLarge {};
struct DividesByZero {};

// A text that two nodes share when they are the same tree, sums and products in any order.
void write_key(const Expression& a, std::string& key) {
  key += static_cast<char>('A' + static_cast<int>(a->kind));
  key += a->text;
  if (a->kind == Kind::kNumber) key += a->value.exact_text();
  std::vector<std::string> args;
  for (const Expression& arg : a->args) write_key(arg, args.emplace_back());
  if (a->kind == Kind::kSum || a->kind == Kind::kProduct) std::sort(args.begin(), args.end());
  key += '(';
  for (const std::string& arg : args) key += arg + ',';
  key += ')';
}

bool is_whole_power(const Expression& a) {
  return a->kind == Kind::kPower && a->args[1]->kind == Kind::kNumber &&
         a->args[1]->value.fits_int();
}

class Generators {
 public:
  std::vector<std::string> keys;
  bool are_variables = true;

  void collect(const Expression& a) {
    if (a->kind == Kind::kNumber) return;
    if (a->kind == Kind::kSum || a->kind == Kind::kProduct || a->kind == Kind::kPercent ||
        a->kind == Kind::kRatio) {
      for (const Expression& arg : a->args) collect(arg);
      return;
    }
    if (is_whole_power(a)) return collect(a->args[0]);
    are_variables &= a->kind == Kind::kName;
    std::string key;
    write_key(a, key);
    if (std::find(keys.begin(), keys.end(), key) == keys.end()) keys.push_back(key);
    if (keys.size() > kMaxGenerators) throw TooLarge();
  }
  slong index_of(const Expression& a) const {
    std::string key;
    write_key(a, key);
    return std::find(keys.begin(), keys.end(), key) - keys.begin();
  }
};

class Context {
 public:
  explicit Context(size_t num_generators) {
    fmpz_mpoly_ctx_init(context_, static_cast<slong>(num_generators), ORD_LEX);
  }
  ~Context() { fmpz_mpoly_ctx_clear(context_); }
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;
  const fmpz_mpoly_ctx_struct* get() const { return context_; }
  void charge(slong work) const {
    work_ += work;
    if (work_ > kMaxWork) throw TooLarge();
  }

 private:
  mutable slong work_ = 0;
  fmpz_mpoly_ctx_t context_;
};

class Polynomial {
 public:
  explicit Polynomial(const Context& context) : context_(&context) {
    fmpz_mpoly_init(value_, context.get());
  }
  Polynomial(const Polynomial& other) : Polynomial(*other.context_) {
    fmpz_mpoly_set(value_, other.value_, context_->get());
  }
  Polynomial& operator=(const Polynomial& other) {
    fmpz_mpoly_set(value_, other.value_, context_->get());
    return *this;
  }
  ~Polynomial() { fmpz_mpoly_clear(value_, context_->get()); }
  fmpz_mpoly_struct* get() { return value_; }
  const fmpz_mpoly_struct* get() const { return value_; }
  bool is_zero() const { return fmpz_mpoly_is_zero(value_, context_->get()) != 0; }

  Polynomial operator*(const Polynomial& b) const {
    context_->charge(length() * b.length() * (num_words() + b.num_words()));
    Polynomial result(*context_);
    fmpz_mpoly_mul(result.value_, value_, b.value_, context_->get());
    result.check();
    return result;
  }
  Polynomial operator+(const Polynomial& b) const {
    context_->charge(length() * num_words() + b.length() * b.num_words());
    Polynomial result(*context_);
    fmpz_mpoly_add(result.value_, value_, b.value_, context_->get());
    result.check();
    return result;
  }

 private:
  slong length() const { return fmpz_mpoly_length(value_, context_->get()); }
  slong num_words() const { return 1 + std::abs(fmpz_mpoly_max_bits(value_)) / 64; }
  void check() const {
    if (length() > kMaxTerms || num_words() > kMaxCoefficientBits / 64) throw TooLarge();
  }
  const Context* context_;
  fmpz_mpoly_t value_;
};

// numerator / denominator, not reduced: equality needs no common divisors.
struct Fraction {
  Polynomial numerator;
  Polynomial denominator;
};

class Converter {
 public:
  Converter(const Generators& generators, const Context& context)
      : generators_(generators), context_(context) {}

  Fraction convert(const Expression& a) const {
    switch (a->kind) {
      case Kind::kNumber:
        return number(a->value);
      case Kind::kSum: {
        Fraction total = convert(a->args[0]);
        for (size_t i = 1; i < a->args.size(); ++i) total = sum(total, convert(a->args[i]));
        return total;
      }
      case Kind::kProduct: {
        Fraction total = convert(a->args[0]);
        for (size_t i = 1; i < a->args.size(); ++i) total = product(total, convert(a->args[i]));
        return total;
      }
      case Kind::kPercent:
        return product(convert(a->args[0]), number(Rational(1, 100)));
      case Kind::kRatio: {
        Fraction total = convert(a->args[0]);
        for (size_t i = 1; i < a->args.size(); ++i) {
          total = product(total, inverse(convert(a->args[i])));
        }
        return total;
      }
      default:
        break;
    }
    if (is_whole_power(a)) return power(convert(a->args[0]), a->args[1]->value.to_int());
    Fraction result = number(Rational(1));
    fmpz_mpoly_gen(result.numerator.get(), generators_.index_of(a), context_.get());
    return result;
  }

 private:
  Fraction number(const Rational& value) const {
    if (value.num_bits() > kMaxCoefficientBits) throw TooLarge();
    Fraction result{Polynomial(context_), Polynomial(context_)};
    fmpz_mpoly_set_fmpz(result.numerator.get(), fmpq_numref(value.get()), context_.get());
    fmpz_mpoly_set_fmpz(result.denominator.get(), fmpq_denref(value.get()), context_.get());
    return result;
  }
  static Fraction product(const Fraction& a, const Fraction& b) {
    return {a.numerator * b.numerator, a.denominator * b.denominator};
  }
  Fraction sum(const Fraction& a, const Fraction& b) const {
    if (fmpz_mpoly_equal(a.denominator.get(), b.denominator.get(), context_.get())) {
      return {a.numerator + b.numerator, a.denominator};
    }
    return {a.numerator * b.denominator + b.numerator * a.denominator,
            a.denominator * b.denominator};
  }
  static Fraction inverse(const Fraction& a) {
    if (a.numerator.is_zero()) throw DividesByZero();
    return {a.denominator, a.numerator};
  }
  Fraction power(Fraction base, int64_t exponent) const {
    if (exponent < 0) base = inverse(base);
    int64_t rest = std::abs(exponent);
    if (rest > kMaxExponent) {
      const bool is_monomial = fmpz_mpoly_length(base.numerator.get(), context_.get()) <= 1 &&
                               fmpz_mpoly_length(base.denominator.get(), context_.get()) <= 1;
      if (!is_monomial || rest > 10000) throw TooLarge();
    }
    Fraction result = number(Rational(1));
    while (rest > 0) {
      if (rest % 2 == 1) result = product(result, base);
      rest /= 2;
      if (rest > 0) base = product(base, base);
    }
    return result;
  }

  const Generators& generators_;
  const Context& context_;
};

}  // namespace

Equality compare_as_polynomials(const Expression& a, const Expression& b) {
  try {
    Generators generators;
    generators.collect(a);
    generators.collect(b);
    const Context context(generators.keys.size());
    const Converter converter(generators, context);
    const Fraction left = converter.convert(a), right = converter.convert(b);
    const Polynomial first = left.numerator * right.denominator;
    const Polynomial second = right.numerator * left.denominator;
    if (fmpz_mpoly_equal(first.get(), second.get(), context.get())) return Equality::kEqual;
    return generators.are_variables ? Equality::kDifferent : Equality::kUndecided;
  } catch (const TooLarge&) {
    return Equality::kUndecided;
  } catch (const DividesByZero&) {
    return Equality::kUndecided;
  }
}

}  // namespace gradus::rewards::math
