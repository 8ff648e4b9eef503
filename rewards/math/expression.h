// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "rewards/math/rational.h"

// What an answer says, as a tree. Nodes are immutable and shared, so that a tree may be cut and
// joined without copies; const use is thread-safe.
namespace gradus::rewards::math {

enum class Kind : uint8_t {
  kNumber,        // value; is_decimal when written with a point
  kName,          // a variable: text, with its subscript, "x_1"
  kText,          // words: "even"
  kConstant,      // text: "pi", "e", "i", "inf", "gamma"
  kSum,           // args added
  kProduct,       // args multiplied
  kPower,         // args[0] ^ args[1]
  kCall,          // text of args: "sqrt", "sin", "abs", "log" (of args[0] to base args[1]) ...
  kPercent,       // args[0] hundredths
  kUnit,          // args[0] of the unit `text`, in its canonical name
  kBased,         // digits args[0] written in base args[1]; what the digits mean is not computed
  kPlusMinus,     // args[0] +- args[1], or +- args[0]
  kRatio,         // args[0] : args[1] : ...
  kRelation,      // args[0] text args[1]; text is one of = != < <= > >= in
  kChain,         // relations that share their middle: a < b < c
  kList,          // a, b, c without brackets, in no order; text "or" when that word joins all
  kSet,           // {a, b, c}
  kTuple,         // (a, b, c); text is the opening bracket
  kInterval,      // args[0] to args[1]; is_left_open, is_right_open
  kUnion,         // of two sets
  kIntersection,  // of two sets
  kDifference,    // of two sets
  kNamedSet,      // text: "N", "Z", "Q", "R", "C", "empty"
  kMatrix,        // num_rows rows of args
  kUnevaluated,   // text: "sum", "prod", "int", "lim", "diff"; args as the parser says
};

struct Node;
using Expression = std::shared_ptr<const Node>;

struct Node {
  Kind kind = Kind::kNumber;
  std::string text{};
  Rational value{};
  std::vector<Expression> args{};
  int64_t num_rows = 0;
  bool is_decimal = false;
  bool is_left_open = false;
  bool is_right_open = false;
};

Expression make_number(Rational value, bool is_decimal = false);
Expression make_node(Kind kind, std::vector<Expression> args, std::string text = {});
Expression make_leaf(Kind kind, std::string text);
Expression negated(const Expression& a);
Expression sum_of(Expression a, Expression b);
Expression difference_of(const Expression& a, const Expression& b);
Expression product_of(Expression a, Expression b);
Expression quotient_of(const Expression& a, const Expression& b);

// f(2), P(A) as variables of their own.
Expression applications_as_names(const Expression& a);

bool is_kind(const Expression& a, Kind kind);
bool is_call(const Expression& a, const char* name);
// The same tree, node by node.
bool is_same(const Expression& a, const Expression& b);
// Whether any node of the tree fulfils `predicate(const Node&)`.
template <class Predicate>
bool has_node(const Expression& a, const Predicate& predicate) {
  if (predicate(*a)) return true;
  for (const Expression& arg : a->args) {
    if (has_node(arg, predicate)) return true;
  }
  return false;
}
bool has_kind(const Expression& a, Kind kind);
// Names of the variables, sorted, each once.
std::vector<std::string> variables_of(const Expression& a);
int64_t num_nodes(const Expression& a);

// One line for people, in plain notation: "1/2*x^2", "{1, 2}", "[0, inf)". At most ~300 bytes.
std::string to_text(const Expression& a);

}  // namespace gradus::rewards::math
