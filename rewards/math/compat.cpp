// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "rewards/math/compare.h"
#include "rewards/math/sets.h"

// Comparison by Math-Verify's rules. Names of its stages are in the comments, so that a difference
// in verdicts can be followed up.
namespace gradus::rewards::math {
namespace {

bool is_equal(const Decision& decision) { return decision.equality == Equality::kEqual; }
Decision equal(const char* rule) { return {Equality::kEqual, rule}; }
Decision different(const char* rule) { return {Equality::kDifferent, rule}; }

bool is_relation(const Expression& a) {
  return a->kind == Kind::kRelation || a->kind == Kind::kChain;
}
bool is_link_equation(const Expression& link) { return link->text == "=" || link->text == "in"; }

bool is_equation(const Expression& a) {
  if (a->kind == Kind::kRelation) return is_link_equation(a);
  return a->kind == Kind::kChain && std::all_of(a->args.begin(), a->args.end(), is_link_equation);
}

// A tree whose leaves are names: x, f(x), |AB|, A:B.
bool is_only_names(const Expression& a) {
  if (a->kind == Kind::kName) return true;
  if (a->kind == Kind::kPower && a->args[1]->kind == Kind::kNumber &&
      a->args[1]->value == Rational(-1)) {
    return is_only_names(a->args[0]);
  }
  return !a->args.empty() && std::all_of(a->args.begin(), a->args.end(), is_only_names);
}

const Expression& first_link(const Expression& a) {
  return a->kind == Kind::kChain ? a->args.front() : a;
}
const Expression& last_link(const Expression& a) {
  return a->kind == Kind::kChain ? a->args.back() : a;
}

bool is_assignment(const Expression& a) {
  return is_equation(a) && is_only_names(first_link(a)->args[0]);
}

bool is_decimal(const Expression& a) {
  if (a->kind == Kind::kPercent) return is_decimal(a->args[0]);
  return a->kind == Kind::kNumber && a->is_decimal;
}
bool is_number(const Expression& a) {
  return a->kind == Kind::kNumber ||
         (a->kind == Kind::kPercent && a->args[0]->kind == Kind::kNumber);
}
bool is_whole(const Expression& a) {
  if (a->kind == Kind::kPercent) return is_whole(a->args[0]);
  return a->kind == Kind::kNumber && !a->is_decimal && a->value.is_integer();
}
const Rational& whole_of(const Expression& a) {
  return a->kind == Kind::kPercent ? a->args[0]->value : a->value;
}

// Members of lists with +- as two members, and equal ones once.
std::vector<Expression> members_of(const std::vector<Expression>& args) {
  std::vector<Expression> members;
  for (const Expression& arg : args) {
    for (Expression& member : both_signs(arg)) {
      const bool is_known =
          std::any_of(members.begin(), members.end(),
                      [&](const Expression& known) { return is_same(known, member); });
      if (!is_known) members.push_back(std::move(member));
    }
  }
  return members;
}

class CompatComparer {
 public:
  explicit CompatComparer(const CompatOptions& options) : options_(options) {}

  Decision compare(Expression gold, Expression answer) {
    gold = prepared(gold);
    answer = prepared(answer);
    if (gold == nullptr || answer == nullptr) return {Equality::kUndecided, "matrix shapes"};
    if (!options_.names_matter) rename(gold, answer);
    const bool gold_is_assignment = is_assignment(gold),
               answer_is_assignment = is_assignment(answer);
    const bool gold_is_equation = is_equation(gold), answer_is_equation = is_equation(answer);
    if (gold_is_assignment) gold = shortened(gold);
    if (answer_is_assignment) answer = shortened(answer);
    if (answer_is_equation && !gold_is_equation) {
      answer = prepared(last_link(answer)->args[1]);
    } else if (gold_is_assignment && !answer_is_equation) {
      gold = prepared(last_link(gold)->args[1]);
    }
    return compare_values(gold, answer);
  }

 private:
  // +- at the top is a list of two, a pair in round brackets is an interval where it can be one.
  Expression prepared(const Expression& a) {
    switch (a->kind) {
      case Kind::kPlusMinus:
        return make_node(Kind::kList, both_signs(a));
      case Kind::kList:
      case Kind::kSet: {
        std::vector<Expression> members = members_of(a->args);
        return make_node(a->kind, std::move(members));
      }
      case Kind::kTuple: {
        const bool is_pair = a->args.size() == 2 && a->text == "(";
        if (!is_pair || compare_order(a->args[0], a->args[1]).value_or(-1) >= 0) return a;
        return interval(a->args[0], a->args[1], true, true);
      }
      case Kind::kInterval:
        if (compare_order(a->args[0], a->args[1]).value_or(-1) <= 0) return a;
        return make_node(Kind::kTuple, a->args, "(");
      default:
        return with_matrices_evaluated(a);
    }
  }

  static Expression interval(const Expression& low, const Expression& high, bool is_left_open,
                             bool is_right_open) {
    auto node = std::make_shared<Node>();
    node->kind = Kind::kInterval;
    node->args = {low, high};
    node->is_left_open = is_left_open;
    node->is_right_open = is_right_open;
    return node;
  }

  static void rename(const Expression& gold, Expression& answer) {
    const auto names = variables_of(answer), wanted = variables_of(gold);
    if (names.size() != wanted.size()) return;
    for (size_t i = 0; i < names.size(); ++i) {
      answer = substituted(answer, names[i], make_leaf(Kind::kName, wanted[i]));
    }
  }

  // x = a = b is x = b.
  static Expression shortened(const Expression& a) {
    return make_node(Kind::kRelation, {first_link(a)->args[0], last_link(a)->args[1]}, "=");
  }

  static bool is_collection(const Expression& a) {
    return is_set_kind(a->kind) || a->kind == Kind::kTuple;
  }

  Decision compare_values(const Expression& gold, const Expression& answer) {
    if (is_relation(gold) && is_collection(answer) && answer->kind != Kind::kTuple) {
      if (solves(applications_as_names(gold), answer).value_or(false))
        return equal("solutions of a relation");
    }
    if (options_.compares_relations_with_sets && is_relation(answer) && is_collection(gold)) {
      if (solves(applications_as_names(answer), gold).value_or(false))
        return equal("solutions of a relation");
    }
    if (divides_by_zero(gold)) return different("division by zero");
    if (is_same(gold, answer)) return equal("same text");
    if (is_relation(gold) && is_relation(answer)) return compare_relations(gold, answer);
    if (is_collection(gold) || is_collection(answer)) return compare_collections(gold, answer);
    if (is_relation(gold) || is_relation(answer)) return different("a relation against a value");
    if (gold->kind == Kind::kName || answer->kind == Kind::kName)
      return compare_names(gold, answer);
    if (gold->kind == Kind::kMatrix || answer->kind == Kind::kMatrix)
      return compare_matrices(gold, answer);
    return compare_numbers(gold, answer);
  }

  static bool divides_by_zero(const Expression& a) {
    return has_node(a, [](const Node& node) {
      return node.kind == Kind::kPower && node.args[0]->kind == Kind::kNumber &&
             node.args[0]->value.is_zero() && node.args[1]->kind == Kind::kNumber &&
             node.args[1]->value.sign() < 0;
    });
  }

  // ---- relations (sympy_compare_relational) ----
  Decision compare_relations(const Expression& gold, const Expression& answer) {
    if (gold->kind == Kind::kChain && answer->kind == Kind::kChain) {
      if (gold->args.size() != answer->args.size()) return different("chains of different lengths");
      for (size_t i = 0; i < gold->args.size(); ++i) {
        Decision decision = compare_relations(gold->args[i], answer->args[i]);
        if (!is_equal(decision)) return decision;
      }
      return equal("chain of relations");
    }
    if (gold->kind == Kind::kChain || answer->kind == Kind::kChain)
      return different("a chain against a relation");
    const std::string sign = is_link_equation(gold) ? "=" : gold->text;
    const std::string other = is_link_equation(answer) ? "=" : answer->text;
    if (has_collection_side(gold) || has_collection_side(answer)) {
      return sign == other && is_same_side(gold, answer, 0) && is_same_side(gold, answer, 1)
                 ? equal("both sides")
                 : different("both sides");
    }
    const Expression gold_difference = difference_of(gold->args[0], gold->args[1]);
    const Expression difference = difference_of(answer->args[0], answer->args[1]);
    if (sign == other && is_equal(compare_values(gold_difference, difference)))
      return equal("relation");
    const bool is_flipped = other == flipped(sign);
    if (is_flipped && is_equal(compare_values(gold_difference, negated_sides(answer)))) {
      return equal("relation, turned round");
    }
    if (sign == "=" && other == "=" && have_one_solution_set(gold_difference, difference)) {
      return equal("equation up to a factor");
    }
    return different("relation");
  }

  static bool has_collection_side(const Expression& relation) {
    return is_collection(relation->args[0]) || is_collection(relation->args[1]) ||
           relation->args[1]->kind == Kind::kPlusMinus;
  }
  bool is_same_side(const Expression& gold, const Expression& answer, size_t side) {
    return is_equal(compare(gold->args[side], answer->args[side]));
  }
  static Expression negated_sides(const Expression& relation) {
    return difference_of(relation->args[1], relation->args[0]);
  }
  static std::string flipped(const std::string& sign) {
    if (sign == "<") return ">";
    if (sign == ">") return "<";
    if (sign == "<=") return ">=";
    if (sign == ">=") return "<=";
    return sign == "=" ? "=" : "";
  }

  // Math-Verify solves both; it can compare the solutions only of two variables or more.
  static bool have_one_solution_set(const Expression& a, const Expression& b) {
    const auto names = variables_of(a);
    return names.size() >= 2 && names == variables_of(b) && differ_by_factor(a, b);
  }
  static bool differ_by_factor(const Expression& a, const Expression& b) {
    const Expression a_at = at_sample_point(a), b_at = at_sample_point(b);
    const auto zero = compare_scalars(a_at, make_number(0), true);
    if (zero.equality != Equality::kDifferent) return false;
    return is_equal(compare_scalars(product_of(a, b_at), product_of(b, a_at), true));
  }

  // ---- sets and tuples (sympy_compare_sets) ----
  Decision compare_collections(const Expression& gold, const Expression& answer) {
    const Expression a = as_collection(gold), b = as_collection(answer);
    if (a->kind == Kind::kInterval && b->kind == Kind::kInterval) return compare_intervals(a, b);
    // A finite set without some members stays as it is written.
    const bool is_open_difference = (a->kind == Kind::kDifference && is_finite(a->args[0])) ||
                                    (b->kind == Kind::kDifference && is_finite(b->args[0]));
    if (is_open_difference) return different("sets");
    if (is_real_set(a) && is_real_set(b) && are_equal_sets(a, b).value_or(false))
      return equal("sets");
    const bool a_is_finite = is_finite(a), b_is_finite = is_finite(b);
    if (a_is_finite && b_is_finite) return compare_members(a, b);
    if (a->kind == Kind::kInterval && a->is_left_open && a->is_right_open && b_is_finite) {
      return compare_members(make_node(Kind::kTuple, a->args, "("), b);
    }
    if (b->kind == Kind::kInterval && b->is_left_open && b->is_right_open && a_is_finite) {
      return compare_members(a, make_node(Kind::kTuple, b->args, "("));
    }
    return different("sets");
  }

  Expression as_collection(const Expression& a) {
    return is_collection(a) ? a : make_node(Kind::kSet, {a});
  }
  static bool is_finite(const Expression& a) {
    return a->kind == Kind::kSet || a->kind == Kind::kList || a->kind == Kind::kTuple;
  }
  static bool is_real_set(const Expression& a) { return is_set_kind(a->kind); }

  Decision compare_intervals(const Expression& a, const Expression& b) {
    if (a->is_left_open != b->is_left_open || a->is_right_open != b->is_right_open) {
      return different("open and closed ends");
    }
    const bool are_equal =
        is_equal(compare(a->args[0], b->args[0])) && is_equal(compare(a->args[1], b->args[1]));
    return are_equal ? equal("interval") : different("interval");
  }

  // In order where the ground truth is a tuple, else each member with some other.
  Decision compare_members(const Expression& gold, const Expression& answer) {
    if (gold->args.size() != answer->args.size()) return different("number of members");
    const bool in_order = gold->kind == Kind::kTuple;
    std::vector<bool> is_taken(answer->args.size(), false);
    for (size_t i = 0; i < gold->args.size(); ++i) {
      bool is_matched = false;
      for (size_t j = 0; j < answer->args.size() && !is_matched; ++j) {
        if (is_taken[j] || (in_order && j != i)) continue;
        is_matched = is_equal(compare(gold->args[i], answer->args[j]));
        is_taken[j] = is_matched;
      }
      if (!is_matched) return different("members");
    }
    return equal("members");
  }

  // ---- names (sympy_compare_symbols) ----
  static Decision compare_names(const Expression& gold, const Expression& answer) {
    const std::string a = letters_of(gold), b = letters_of(answer);
    return !a.empty() && a == b ? equal("name") : different("name");
  }
  // A name, or a product of single names written one after the other, e among them.
  static std::string letters_of(const Expression& a) {
    if (a->kind == Kind::kName) return a->text;
    if (a->kind == Kind::kConstant && a->text == "e") return "e";
    if (a->kind != Kind::kProduct) return "";
    std::string letters;
    for (const Expression& factor : a->args) {
      if (factor->kind == Kind::kProduct || letters_of(factor).empty()) return "";
      letters += letters_of(factor);
    }
    return letters;
  }

  // ---- numbers (sympy_numeric_eq, sympy_symbolic_eq) ----
  Decision compare_matrices(const Expression& a, const Expression& b) {
    const bool have_one_shape =
        a->kind == b->kind && a->num_rows == b->num_rows && a->args.size() == b->args.size();
    if (!have_one_shape) return different("shape");
    for (size_t i = 0; i < a->args.size(); ++i) {
      Decision decision = compare_numbers(a->args[i], b->args[i]);
      if (!is_equal(decision)) return decision;
    }
    return equal("matrix");
  }

  Decision compare_numbers(const Expression& a, const Expression& b) {
    const bool has_whole =
        (a->kind == Kind::kNumber && is_whole(a)) || (b->kind == Kind::kNumber && is_whole(b));
    if ((is_decimal(a) || is_decimal(b)) && !has_whole) {
      const auto left = rounded(a, options_.decimals), right = rounded(b, options_.decimals);
      if (left.has_value() && right.has_value() && *left == *right)
        return equal("rounded decimals");
    }
    if (is_number(a) && is_number(b) && is_whole(a) && is_whole(b) && whole_of(a) == whole_of(b)) {
      return equal("whole numbers");
    }
    if (!is_number(a) && !is_number(b) && agree_to_15_digits(a, b)) return equal("15 digits");
    return compare_scalars(a, b, true);
  }

  const CompatOptions& options_;
};

}  // namespace

std::vector<Expression> both_signs(const Expression& e) {
  if (!has_kind(e, Kind::kPlusMinus)) return {e};
  const auto with_sign = [](const auto& self, const Expression& a, bool is_plus) -> Expression {
    if (a->args.empty()) return a;
    auto node = std::make_shared<Node>(*a);
    for (Expression& arg : node->args) arg = self(self, arg, is_plus);
    if (a->kind != Kind::kPlusMinus) return node;
    const bool adds = is_plus != (a->text == "mp");
    const Expression& last = node->args.back();
    const Expression signed_term = adds ? last : negated(last);
    return node->args.size() == 1 ? signed_term : sum_of(node->args[0], signed_term);
  };
  return {with_sign(with_sign, e, true), with_sign(with_sign, e, false)};
}

Decision compare_compat(const Expression& gold, const Expression& answer,
                        const CompatOptions& options) {
  return CompatComparer(options).compare(gold, answer);
}

}  // namespace gradus::rewards::math
