// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <acb.h>

#include <map>
#include <optional>
#include <string>

#include "rewards/math/expression.h"

namespace gradus::rewards::math {

// An Arb ball with an owner.
class Ball {
 public:
  Ball() { acb_init(value_); }
  Ball(const Ball& other) : Ball() { acb_set(value_, other.value_); }
  Ball(Ball&& other) noexcept : Ball() { acb_swap(value_, other.value_); }
  Ball& operator=(Ball other) noexcept {
    acb_swap(value_, other.value_);
    return *this;
  }
  ~Ball() { acb_clear(value_); }
  acb_ptr get() { return value_; }
  acb_srcptr get() const { return value_; }

 private:
  acb_t value_;
};

using Point = std::map<std::string, Rational>;

// Evaluates expressions as balls that hold the true value. After a call:
struct Evaluator {
  const Point& point;
  slong precision_bits;
  bool approximates = false;    // may use limits and integrals that are not certified (compat)
  bool has_left_reals = false;  // a root or logarithm of a negative number on the way
  slong spread_bits = 0;        // largest |log2| of a value on the way

  // Nothing for a division by a ball with zero in it, an unknown variable or function, infinity,
  // or a value beyond 2^65536 on the way.
  std::optional<Ball> evaluate(const Expression& a);
};

// Frees what FLINT, Arb and Calcium cached for the calling thread, when the thread ends.
void clean_up_with_thread();

}  // namespace gradus::rewards::math
