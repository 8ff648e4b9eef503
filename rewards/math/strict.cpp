// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "rewards/math/compare.h"
#include "rewards/math/sets.h"

namespace gradus::rewards::math {
namespace {

constexpr size_t kMaxMembers = 256;

bool is_equal(const Decision& decision) { return decision.equality == Equality::kEqual; }
Decision equal(const char* rule) { return {Equality::kEqual, rule}; }
Decision different(const char* rule) { return {Equality::kDifferent, rule}; }
Decision undecided(const char* rule) { return {Equality::kUndecided, rule}; }

bool is_relation(const Expression& a) {
  return a->kind == Kind::kRelation || a->kind == Kind::kChain;
}
bool is_equation(const Expression& a) {
  return a->kind == Kind::kRelation && (a->text == "=" || a->text == "in");
}

bool is_definable(const Expression& a);

// A factor of a quotient of names: B in A/B, not 1/x.
bool is_factor(const Expression& a) {
  const bool is_inverse = a->kind == Kind::kPower && a->args[1]->kind == Kind::kNumber &&
                          a->args[1]->value == Rational(-1);
  return is_definable(is_inverse ? a->args[0] : a);
}

// What an equation can define: x, x_1, f(x), |AB|, AB, A:B, A/B, (x, y).
bool is_definable(const Expression& a) {
  switch (a->kind) {
    case Kind::kName:
      return true;
    case Kind::kCall:
      return a->text[0] == '@' || (a->text == "abs" && is_definable(a->args[0])) ||
             a->text == "det";
    case Kind::kRatio:
    case Kind::kTuple:
      return std::all_of(a->args.begin(), a->args.end(), is_definable);
    case Kind::kProduct:
      return std::all_of(a->args.begin(), a->args.end(), is_factor);
    default:
      return false;
  }
}

bool is_assignment(const Expression& a) { return is_equation(a) && is_definable(a->args[0]); }

bool is_constant(const Expression& a) {
  return variables_of(a).empty() && !has_kind(a, Kind::kText);
}

bool is_decimal(const Expression& a) {
  return has_node(a,
                  [](const Node& node) { return node.kind == Kind::kNumber && node.is_decimal; });
}

bool is_pair(const Expression& a) {
  return a->kind == Kind::kTuple && a->args.size() == 2 && a->text == "(";
}

class StrictComparer {
 public:
  explicit StrictComparer(const StrictOptions& options) : options_(options) {}

  Decision compare(const Expression& raw_gold, const Expression& raw_answer) {
    if (is_same(raw_gold, raw_answer)) return compare_same(raw_gold);
    if (num_comparisons_++ > kMaxMembers * 64) return undecided("too many comparisons");
    const Expression gold = prepared(raw_gold), answer = prepared(raw_answer);
    if (gold == nullptr) return undecided("a chain of the ground truth that does not hold");
    if (answer == nullptr) return different("a chain that does not hold");
    if (is_relation(gold) && is_relation(answer)) {
      return compare_relations(applications_as_names(gold), applications_as_names(answer));
    }
    if (is_relation(answer)) return compare_with_relation_answer(gold, answer);
    if (is_relation(gold)) return compare_with_relation_gold(gold, answer);
    return compare_values(gold, answer);
  }

 private:
  // The same tree may stand for no value at all.
  static Decision compare_same(const Expression& a) {
    const bool divides_by_zero = has_node(a, [](const Node& node) {
      return node.kind == Kind::kPower && node.args[1]->kind == Kind::kNumber &&
             node.args[1]->value.sign() < 0 &&
             rational_value(node.args[0]).value_or(Rational(1)).is_zero();
    });
    return divides_by_zero ? different("division by zero") : equal("same expression");
  }

  // A chain of equations is its name and its last value, when its constants agree; null when they
  // do not. A matrix is worked out, +- becomes a list of two.
  Expression prepared(const Expression& a) {
    if (a->kind == Kind::kChain) return shortened(a);
    if (is_equation(a) && !is_definable(a->args[0])) {
      // 5 = x is x = 5; 2 + 3 = 5 is 5.
      if (is_definable(a->args[1]) && is_constant(a->args[0])) {
        return make_node(Kind::kRelation, {a->args[1], a->args[0]}, "=");
      }
      if (is_constant(a->args[0]) && is_constant(a->args[1]) && is_scalar(a->args[0])) {
        return is_equal(compare(a->args[0], a->args[1])) ? a->args[1] : nullptr;
      }
    }
    if (is_relation(a) || a->kind == Kind::kList || a->kind == Kind::kSet) return a;
    if (has_kind(a, Kind::kPlusMinus)) return make_node(Kind::kList, both_signs(a));
    Expression evaluated = with_matrices_evaluated(a);
    return evaluated == nullptr ? a : evaluated;
  }

  Expression shortened(const Expression& chain) {
    const bool are_equations = std::all_of(chain->args.begin(), chain->args.end(), is_equation);
    if (!are_equations) return chain;
    std::vector<Expression> sides = {chain->args[0]->args[0]};
    for (const Expression& link : chain->args) sides.push_back(link->args[1]);
    const Expression& last = sides.back();
    for (size_t i = is_definable(sides[0]) ? 1 : 0; i + 1 < sides.size(); ++i) {
      if (is_definable(sides[i]) && !is_definable(last)) continue;
      if (!is_equal(compare(sides[i], last))) return nullptr;
    }
    if (!is_definable(sides[0])) return last;
    return make_node(Kind::kRelation, {sides[0], last}, "=");
  }

  static bool is_scalar(const Expression& a) {
    return !is_set_kind(a->kind) && a->kind != Kind::kTuple && a->kind != Kind::kMatrix &&
           a->kind != Kind::kText && !is_relation(a);
  }

  // ---- relations ----
  Decision compare_with_relation_answer(const Expression& gold, const Expression& answer) {
    if (is_assignment(answer)) return compare(gold, answer->args[1]);
    const bool is_open_pair = is_pair(gold);
    if (is_inequality(answer) && is_set_kind(gold->kind) && !is_open_pair)
      return compare_solutions(answer, gold);
    return different("a relation for a value");
  }

  Decision compare_with_relation_gold(const Expression& gold, const Expression& answer) {
    if (is_assignment(gold)) return compare(gold->args[1], answer);
    if (is_inequality(gold) && (is_set_kind(answer->kind) || is_pair(answer)))
      return compare_solutions(gold, answer);
    return different("a value for a relation");
  }

  static bool is_inequality(const Expression& a) {
    if (a->kind == Kind::kChain) return std::all_of(a->args.begin(), a->args.end(), is_inequality);
    return a->kind == Kind::kRelation && !is_equation(a);
  }

  static Decision compare_solutions(const Expression& relation, const Expression& set) {
    const auto decided = solves(relation, set);
    if (!decided.has_value()) return different("a relation that is no set of numbers");
    return *decided ? equal("solutions of a relation") : different("solutions of a relation");
  }

  Decision compare_relations(const Expression& gold, const Expression& answer) {
    if (is_assignment(gold) && is_assignment(answer)) {
      if (is_equal(compare_values(gold->args[0], answer->args[0])))
        return compare(gold->args[1], answer->args[1]);
      return compare_equations(gold, answer);
    }
    if (is_equation(gold) && is_equation(answer)) return compare_equations(gold, answer);
    return compare_inequalities(gold, answer);
  }

  // Equal up to a factor; a solved equation in one variable asks for its solution.
  Decision compare_equations(const Expression& gold, const Expression& answer) {
    for (const Expression* side : {&gold, &answer}) {
      if (!is_scalar((*side)->args[0]) || !is_scalar((*side)->args[1]))
        return different("equation");
    }
    const Expression a = difference_of(gold->args[0], gold->args[1]);
    const Expression b = difference_of(answer->args[0], answer->args[1]);
    const auto names = variables_of(a);
    if (names != variables_of(b)) return different("equation in other variables");
    if (names.size() < 2 && is_assignment(gold) && !is_assignment(answer))
      return different("an equation not solved");
    if (ratio_sign(a, b) == 0) return different("equation");
    return equal("equation up to a factor");
  }

  // Sign of the constant c with a = c b; 0 when there is none.
  static int ratio_sign(const Expression& a, const Expression& b) {
    const Expression a_at = at_sample_point(a), b_at = at_sample_point(b);
    const auto sign_a = compare_order(a_at, make_number(0)),
               sign_b = compare_order(b_at, make_number(0));
    if (!sign_a.has_value() || !sign_b.has_value() || *sign_a == 0 || *sign_b == 0) return 0;
    if (!is_equal(compare_scalars(product_of(a, b_at), product_of(b, a_at), false))) return 0;
    return *sign_a * *sign_b;
  }

  // Each inequality as a difference that is positive ("<" and ">"), not negative, or not zero.
  struct Inequality {
    Expression difference;
    std::string sign;
  };
  static std::vector<Inequality> inequalities_of(const Expression& a) {
    std::vector<Inequality> links;
    const std::vector<Expression> args =
        a->kind == Kind::kChain ? a->args : std::vector<Expression>{a};
    for (const Expression& link : args) {
      const bool is_greater = link->text == ">" || link->text == ">=";
      const Expression& large = link->args[is_greater ? 0 : 1];
      const Expression& small = link->args[is_greater ? 1 : 0];
      const std::string sign = link->text == ">" || link->text == "<"     ? ">"
                               : link->text == ">=" || link->text == "<=" ? ">="
                                                                          : link->text;
      links.push_back({difference_of(large, small), sign});
    }
    return links;
  }

  static Decision compare_inequalities(const Expression& gold, const Expression& answer) {
    const auto wanted = inequalities_of(gold), given = inequalities_of(answer);
    if (wanted.size() != given.size()) return different("number of inequalities");
    std::vector<bool> is_taken(given.size(), false);
    for (const Inequality& link : wanted) {
      bool is_matched = false;
      for (size_t j = 0; j < given.size() && !is_matched; ++j) {
        if (is_taken[j] || link.sign != given[j].sign) continue;
        if (!is_scalar(link.difference) || !is_scalar(given[j].difference)) continue;
        if (variables_of(link.difference) != variables_of(given[j].difference)) continue;
        const int ratio = ratio_sign(link.difference, given[j].difference);
        is_matched = link.sign == "!=" || link.sign == "=" ? ratio != 0 : ratio > 0;
        is_taken[j] = is_matched;
      }
      if (!is_matched) return different("inequality");
    }
    return equal("inequality");
  }

  // ---- values ----
  Decision compare_values(const Expression& gold, const Expression& answer) {
    if (gold->kind == Kind::kText || answer->kind == Kind::kText)
      return compare_texts(gold, answer);
    if (gold->kind == Kind::kMatrix || answer->kind == Kind::kMatrix)
      return compare_matrices(gold, answer);
    const bool are_collections = is_collection(gold) || is_collection(answer);
    if (are_collections) return compare_collections(gold, answer);
    return compare_quantities(gold, answer);
  }

  // Text, or letters written one after the other.
  static std::string words_of(const Expression& a) {
    if (a->kind == Kind::kText || a->kind == Kind::kName || a->kind == Kind::kConstant)
      return a->text;
    if (a->kind != Kind::kProduct) return "";
    std::string words;
    for (const Expression& factor : a->args) {
      if (factor->kind == Kind::kProduct || words_of(factor).empty()) return "";
      words += words_of(factor);
    }
    return words;
  }
  static Decision compare_texts(const Expression& gold, const Expression& answer) {
    const std::string a = words_of(gold), b = words_of(answer);
    return !a.empty() && a == b ? equal("text") : different("text");
  }

  Decision compare_matrices(const Expression& a, const Expression& b) {
    const bool have_one_shape =
        a->kind == b->kind && a->num_rows == b->num_rows && a->args.size() == b->args.size();
    if (!have_one_shape) return different("shape");
    return compare_in_order(a->args, b->args, "matrix");
  }

  Decision compare_in_order(const std::vector<Expression>& gold,
                            const std::vector<Expression>& answer, const char* rule) {
    if (gold.size() != answer.size()) return different("number of members");
    bool is_open = false;
    for (size_t i = 0; i < gold.size(); ++i) {
      const Decision decision = compare(gold[i], answer[i]);
      if (decision.equality == Equality::kDifferent) return different(rule);
      is_open |= decision.equality == Equality::kUndecided;
    }
    return is_open ? undecided(rule) : equal(rule);
  }

  // ---- collections ----
  static bool is_collection(const Expression& a) {
    return is_set_kind(a->kind) || a->kind == Kind::kTuple;
  }
  static bool is_finite_set(const Expression& a) {
    return a->kind == Kind::kSet || a->kind == Kind::kList;
  }

  Decision compare_collections(const Expression& gold, const Expression& answer) {
    if (gold->kind == Kind::kTuple && answer->kind == Kind::kTuple) {
      return compare_in_order(gold->args, answer->args, "tuple");
    }
    if (is_finite_set(gold) && is_finite_set(answer)) return compare_members(gold, answer);
    if (is_alternatives(answer)) return compare_solutions(answer, gold);
    if (is_alternatives(gold)) return compare_solutions(gold, answer);
    if (is_finite_set(gold) && is_scalar(answer)) return compare_single(gold, answer, true);
    if (is_scalar(gold) && is_finite_set(answer)) return compare_single(answer, gold, false);
    if (is_scalar(gold) || is_scalar(answer)) return different("a value against a collection");
    if (gold->kind == Kind::kTuple || answer->kind == Kind::kTuple)
      return compare_pair_with_set(gold, answer);
    if (gold->kind == Kind::kInterval && answer->kind == Kind::kInterval)
      return compare_intervals(gold, answer);
    return compare_sets(gold, answer);
  }

  // x < 1 or x > 3
  static bool is_alternatives(const Expression& a) {
    return a->kind == Kind::kList && a->text == "or" &&
           std::all_of(a->args.begin(), a->args.end(), is_inequality);
  }

  // {5} is 5.
  Decision compare_single(const Expression& set, const Expression& value, bool set_is_gold) {
    if (set->args.size() != 1) return different("number of members");
    return set_is_gold ? compare(set->args[0], value) : compare(value, set->args[0]);
  }

  // (a, b) beside a union or R is an open interval; beside a list or a closed interval it is none.
  Decision compare_pair_with_set(const Expression& gold, const Expression& answer) {
    const Expression& tuple = gold->kind == Kind::kTuple ? gold : answer;
    const Expression& set = gold->kind == Kind::kTuple ? answer : gold;
    const bool is_open_set = set->kind == Kind::kUnion || set->kind == Kind::kIntersection ||
                             set->kind == Kind::kDifference || set->kind == Kind::kNamedSet;
    if (!is_pair(tuple) || !is_open_set) return different("a tuple against a set");
    return compare_sets(gold, answer);
  }

  static Decision compare_sets(const Expression& gold, const Expression& answer) {
    if (gold->kind == Kind::kNamedSet && answer->kind == Kind::kNamedSet) {
      return gold->text == answer->text ? equal("set") : different("set");
    }
    const auto decided = are_equal_sets(gold, answer);
    if (!decided.has_value()) return different("sets that cannot be ordered");
    return *decided ? equal("set") : different("set");
  }

  Decision compare_intervals(const Expression& a, const Expression& b) {
    if (a->is_left_open != b->is_left_open || a->is_right_open != b->is_right_open) {
      return different("open and closed ends");
    }
    return compare_in_order(a->args, b->args, "interval");
  }

  static std::vector<Expression> members_of(const Expression& a) {
    std::vector<Expression> members;
    for (const Expression& arg : a->args) {
      for (Expression& member : both_signs(arg)) members.push_back(std::move(member));
    }
    return members;
  }
  // In a set in braces a member counts once.
  static std::vector<Expression> distinct_members_of(const Expression& a) {
    std::vector<Expression> members;
    for (Expression& member : members_of(a)) {
      const bool is_known = a->kind == Kind::kSet && std::any_of(members.begin(), members.end(),
                                                                 [&](const Expression& known) {
                                                                   return is_same(known, member);
                                                                 });
      if (!is_known) members.push_back(std::move(member));
    }
    return members;
  }

  Decision compare_members(const Expression& gold, const Expression& answer) {
    const std::vector<Expression> wanted = distinct_members_of(gold),
                                  given = distinct_members_of(answer);
    if (wanted.size() != given.size() || wanted.size() > kMaxMembers)
      return different("number of members");
    const bool wants_names = std::all_of(wanted.begin(), wanted.end(), is_assignment);
    const bool gives_names = std::any_of(given.begin(), given.end(), is_assignment);
    // x = 1, y = 2 may be given as 1, 2, in that order.
    if (wants_names && !gives_names && !have_one_name(wanted))
      return compare_in_order(wanted, given, "values in order");
    std::vector<bool> is_taken(given.size(), false);
    bool is_open = false;
    for (const Expression& member : wanted) {
      bool is_matched = false, is_member_open = false;
      for (size_t j = 0; j < given.size() && !is_matched; ++j) {
        if (is_taken[j]) continue;
        const Decision decision = compare(member, given[j]);
        is_matched = is_equal(decision);
        is_member_open |= decision.equality == Equality::kUndecided;
        is_taken[j] = is_matched;
      }
      if (!is_matched && !is_member_open) return different("members");
      is_open |= !is_matched;
    }
    return is_open ? undecided("members") : equal("members");
  }

  static bool have_one_name(const std::vector<Expression>& assignments) {
    return std::all_of(assignments.begin(), assignments.end(), [&](const Expression& a) {
      return is_same(a->args[0], assignments[0]->args[0]);
    });
  }

  // ---- numbers and formulas, with their units ----
  Decision compare_quantities(const Expression& gold, const Expression& answer) {
    const bool have_units = gold->kind == Kind::kUnit && answer->kind == Kind::kUnit;
    if (have_units && gold->text != answer->text) return different("units differ");
    const Expression& a = gold->kind == Kind::kUnit ? gold->args[0] : gold;
    const Expression& b = answer->kind == Kind::kUnit ? answer->args[0] : answer;
    if (a->kind == Kind::kBased || b->kind == Kind::kBased) return compare_based(a, b);
    if (a->kind == Kind::kRatio || b->kind == Kind::kRatio) return compare_ratios(a, b);
    if (has_kind(b, Kind::kUnevaluated)) return different("unevaluated");
    if (a->kind == Kind::kPercent && b->kind == Kind::kPercent)
      return compare_scalar_values(a->args[0], b->args[0]);
    return compare_scalar_values(in_radians(a), in_radians(b));
  }

  // A unit inside a formula: degrees of an angle count, any other is no number.
  static Expression in_radians(const Expression& a) {
    if (!has_kind(a, Kind::kUnit)) return a;
    if (a->kind == Kind::kUnit && a->text == "degree") {
      return product_of(a->args[0],
                        quotient_of(make_leaf(Kind::kConstant, "pi"), make_number(180)));
    }
    auto node = std::make_shared<Node>(*a);
    for (Expression& arg : node->args) arg = in_radians(arg);
    return node;
  }

  Decision compare_based(const Expression& a, const Expression& b) {
    if (a->kind == Kind::kBased && b->kind == Kind::kBased)
      return compare_in_order(a->args, b->args, "number in a base");
    // Digits without their base may be meant.
    const Expression& digits = a->kind == Kind::kBased ? a->args[0] : a;
    const Expression& others = b->kind == Kind::kBased ? b->args[0] : b;
    if (a->kind != Kind::kBased) return different("a base for a number");
    return compare_scalar_values(digits, others);
  }

  // Times of day term by term; ratios by proportion.
  Decision compare_ratios(const Expression& a, const Expression& b) {
    if (a->kind != b->kind) {
      const Expression& ratio = a->kind == Kind::kRatio ? a : b;
      if (ratio->args.size() != 2 || a->text == "clock") return different("ratio");
      return compare_scalar_values(a, b);
    }
    if (a->args.size() != b->args.size()) return different("terms of a ratio");
    if (is_clock(a)) return compare_in_order(a->args, b->args, "time of day");
    for (size_t i = 1; i < a->args.size(); ++i) {
      const Decision decision = compare_scalar_values(product_of(a->args[0], b->args[i]),
                                                      product_of(b->args[0], a->args[i]));
      if (!is_equal(decision)) return decision;
    }
    return equal("ratio");
  }
  static bool is_clock(const Expression& ratio) {
    if (ratio->text != "clock" || ratio->args.size() != 2) return false;
    const auto hours = rational_value(ratio->args[0]), minutes = rational_value(ratio->args[1]);
    return hours.has_value() && minutes.has_value() && *hours <= Rational(24) &&
           *minutes < Rational(60) && Rational(0) <= *hours;
  }

  Decision compare_scalar_values(const Expression& a, const Expression& b) {
    if (is_decimal(b) && is_constant(a) && is_constant(b)) return compare_with_decimal(a, b);
    if (is_decimal(a) && is_constant(a) && is_constant(b)) return compare_with_decimal(b, a);
    // What the ground truth leaves unevaluated is worked out; the answer has been refused before.
    return compare_scalars(a, b, has_kind(a, Kind::kUnevaluated));
  }

  // The exact value must lie within the tolerance of the decimal.
  Decision compare_with_decimal(const Expression& value, const Expression& decimal) {
    const auto exact = rational_value(decimal);
    if (!exact.has_value()) return compare_scalars(value, decimal, false);
    const auto own = is_decimal(value) ? std::nullopt : rational_value(value);
    if (own.has_value() && own->is_integer()) {
      return *own == *exact ? equal("whole number") : different("whole number");
    }
    const Rational relative = exact->abs() / Rational(100000);
    const Rational& tolerance = relative < options_.tolerance ? relative : options_.tolerance;
    const auto decided = is_close(value, *exact, tolerance);
    if (!decided.has_value()) return compare_scalars(value, decimal, false);
    return *decided ? equal("decimal within tolerance") : different("decimal");
  }

  const StrictOptions& options_;
  size_t num_comparisons_ = 0;
};

}  // namespace

Decision compare_strict(const Expression& gold, const Expression& answer,
                        const StrictOptions& options) {
  return StrictComparer(options).compare(gold, answer);
}

}  // namespace gradus::rewards::math
