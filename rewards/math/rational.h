// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <flint/fmpq.h>

#include <string>
#include <string_view>
#include <utility>

namespace gradus::rewards::math {

// An exact fraction in lowest terms: FLINT's fmpq with an owner. Every operation is exact; callers
// bound the size of what they ask for (num_bits, pow).
class Rational {
 public:
  Rational() { fmpq_init(value_); }
  Rational(int64_t numerator, int64_t denominator = 1) : Rational() {  // NOLINT: numbers are values
    fmpq_set_si(value_, numerator, 1);
    fmpz_set_si(fmpq_denref(value_), denominator);
    fmpq_canonicalise(value_);
  }
  Rational(const Rational& other) : Rational() { fmpq_set(value_, other.value_); }
  Rational(Rational&& other) noexcept : Rational() { fmpq_swap(value_, other.value_); }
  Rational& operator=(Rational other) noexcept {
    fmpq_swap(value_, other.value_);
    return *this;
  }
  ~Rational() { fmpq_clear(value_); }

  // Digits with at most one point, no sign: "12.50" is 25/2. The caller has checked the characters.
  static Rational from_decimal(std::string_view digits);

  const fmpq* get() const { return value_; }
  fmpq* get() { return value_; }
  bool is_zero() const { return fmpq_is_zero(value_) != 0; }
  bool is_integer() const { return fmpz_is_one(fmpq_denref(value_)) != 0; }
  int sign() const { return fmpq_sgn(value_); }
  // Of numerator and denominator together.
  int64_t num_bits() const {
    return static_cast<int64_t>(fmpz_bits(fmpq_numref(value_)) + fmpz_bits(fmpq_denref(value_)));
  }
  // The value as a machine integer; only when fits_int().
  bool fits_int() const { return is_integer() && fmpz_fits_si(fmpq_numref(value_)) != 0; }
  int64_t to_int() const { return fmpz_get_si(fmpq_numref(value_)); }
  // All digits; `text` is cut short for people beyond 1,000 bits.
  std::string exact_text() const;
  std::string text() const;

  Rational operator+(const Rational& b) const { return apply(fmpq_add, b); }
  Rational operator-(const Rational& b) const { return apply(fmpq_sub, b); }
  Rational operator*(const Rational& b) const { return apply(fmpq_mul, b); }
  // b is not zero.
  Rational operator/(const Rational& b) const { return apply(fmpq_div, b); }
  Rational operator-() const { return Rational(0) - *this; }
  // Not zero to a negative power.
  Rational pow(int64_t exponent) const {
    Rational result;
    fmpq_pow_si(result.value_, value_, exponent);
    return result;
  }
  Rational abs() const { return sign() < 0 ? -*this : *this; }

  bool operator==(const Rational& b) const { return fmpq_equal(value_, b.value_) != 0; }
  bool operator<(const Rational& b) const { return fmpq_cmp(value_, b.value_) < 0; }
  bool operator<=(const Rational& b) const { return fmpq_cmp(value_, b.value_) <= 0; }

 private:
  template <class Operation>
  Rational apply(Operation operation, const Rational& b) const {
    Rational result;
    operation(result.value_, value_, b.value_);
    return result;
  }

  fmpq_t value_;
};

}  // namespace gradus::rewards::math
