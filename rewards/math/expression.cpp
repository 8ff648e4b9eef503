// SPDX-License-Identifier: Apache-2.0
#include "rewards/math/expression.h"

#include <algorithm>

namespace gradus::rewards::math {

Rational Rational::from_decimal(std::string_view digits) {
  std::string whole;
  int64_t num_decimals = 0;
  bool is_after_point = false;
  for (const char c : digits) {
    if (c == '.') {
      is_after_point = true;
      continue;
    }
    whole += c;
    num_decimals += is_after_point ? 1 : 0;
  }
  if (whole.empty()) whole = "0";
  Rational result;
  fmpz_set_str(fmpq_numref(result.value_), whole.c_str(), 10);
  fmpz_set_ui(fmpq_denref(result.value_), 10);
  fmpz_pow_ui(fmpq_denref(result.value_), fmpq_denref(result.value_),
              static_cast<ulong>(num_decimals));
  fmpq_canonicalise(result.value_);
  return result;
}

std::string Rational::text() const {
  if (num_bits() > 1000) return "(a fraction of " + std::to_string(num_bits()) + " bits)";
  return exact_text();
}

std::string Rational::exact_text() const {
  char* text = fmpq_get_str(nullptr, 10, value_);
  std::string result = text;
  flint_free(text);
  return result;
}

Expression make_number(Rational value, bool is_decimal) {
  auto node = std::make_shared<Node>();
  node->value = std::move(value);
  node->is_decimal = is_decimal;
  return node;
}

Expression make_node(Kind kind, std::vector<Expression> args, std::string text) {
  auto node = std::make_shared<Node>();
  node->kind = kind;
  node->args = std::move(args);
  node->text = std::move(text);
  return node;
}

Expression make_leaf(Kind kind, std::string text) { return make_node(kind, {}, std::move(text)); }

Expression negated(const Expression& a) {
  if (a->kind == Kind::kNumber) return make_number(-a->value, a->is_decimal);
  return product_of(make_number(-1), a);
}

namespace {

Expression joined(Kind kind, Expression a, Expression b) {
  std::vector<Expression> args;
  for (Expression* side : {&a, &b}) {
    if ((*side)->kind == kind) {
      args.insert(args.end(), (*side)->args.begin(), (*side)->args.end());
    } else {
      args.push_back(std::move(*side));
    }
  }
  return make_node(kind, std::move(args));
}

}  // namespace

Expression sum_of(Expression a, Expression b) {
  return joined(Kind::kSum, std::move(a), std::move(b));
}

Expression product_of(Expression a, Expression b) {
  return joined(Kind::kProduct, std::move(a), std::move(b));
}

Expression difference_of(const Expression& a, const Expression& b) { return sum_of(a, negated(b)); }

Expression quotient_of(const Expression& a, const Expression& b) {
  const bool are_exact = a->kind == Kind::kNumber && b->kind == Kind::kNumber && !a->is_decimal &&
                         !b->is_decimal && !b->value.is_zero();
  if (are_exact) return make_number(a->value / b->value);
  return product_of(a, make_node(Kind::kPower, {b, make_number(-1)}));
}

Expression applications_as_names(const Expression& a) {
  if (a->kind == Kind::kCall && a->text[0] == '@') return make_leaf(Kind::kName, to_text(a));
  if (a->args.empty()) return a;
  auto node = std::make_shared<Node>(*a);
  for (Expression& arg : node->args) arg = applications_as_names(arg);
  return node;
}

bool is_kind(const Expression& a, Kind kind) { return a != nullptr && a->kind == kind; }
bool is_call(const Expression& a, const char* name) {
  return a->kind == Kind::kCall && a->text == name;
}
bool has_kind(const Expression& a, Kind kind) {
  return has_node(a, [kind](const Node& node) { return node.kind == kind; });
}

bool is_same(const Expression& a, const Expression& b) {
  if (a == b) return true;
  if (a->kind != b->kind || a->text != b->text || a->args.size() != b->args.size() ||
      a->num_rows != b->num_rows || a->is_left_open != b->is_left_open ||
      a->is_right_open != b->is_right_open || a->is_decimal != b->is_decimal) {
    return false;
  }
  if (a->kind == Kind::kNumber && !(a->value == b->value)) return false;
  for (size_t i = 0; i < a->args.size(); ++i) {
    if (!is_same(a->args[i], b->args[i])) return false;
  }
  return true;
}

namespace {

void collect_variables(const Expression& a, std::vector<std::string>& names) {
  if (a->kind == Kind::kName) names.push_back(a->text);
  for (const Expression& arg : a->args) collect_variables(arg, names);
}

}  // namespace

std::vector<std::string> variables_of(const Expression& a) {
  std::vector<std::string> names;
  collect_variables(a, names);
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());
  return names;
}

int64_t num_nodes(const Expression& a) {
  int64_t count = 1;
  for (const Expression& arg : a->args) count += num_nodes(arg);
  return count;
}

namespace {

constexpr size_t kMaxTextBytes = 300;

class Printer {
 public:
  std::string text;

  // `strength` is that of the operation around: 0 none, 1 sum, 2 product, 3 power.
  void print(const Expression& a, int strength) {
    if (text.size() > kMaxTextBytes) return;
    switch (a->kind) {
      case Kind::kNumber:
        return print_number(a, strength);
      case Kind::kName:
      case Kind::kConstant:
      case Kind::kNamedSet:
        text += a->text;
        return;
      case Kind::kText:
        text += '"' + a->text + '"';
        return;
      case Kind::kSum:
        return print_joined(a, " + ", 1, strength);
      case Kind::kProduct:
        return print_joined(a, "*", 2, strength);
      case Kind::kPower:
        return print_joined(a, "^", 3, strength + 1);
      case Kind::kCall:
      case Kind::kUnevaluated:
        return print_list(a, a->text + "(", ")");
      case Kind::kPercent:
        print(a->args[0], 3);
        text += '%';
        return;
      case Kind::kUnit:
        print(a->args[0], 3);
        text += ' ' + a->text;
        return;
      case Kind::kBased:
        return print_joined(a, "_", 3, strength);
      case Kind::kPlusMinus:
        if (a->args.size() == 1) text += "+-";
        return print_joined(a, " +- ", 1, strength);
      case Kind::kRatio:
        return print_joined(a, ":", 2, strength);
      case Kind::kRelation:
        return print_joined(a, " " + a->text + " ", 1, 0);
      case Kind::kChain:
        return print_joined(a, " and ", 0, 0);
      case Kind::kList:
        return print_joined(a, ", ", 0, 0);
      case Kind::kSet:
        return print_list(a, "{", "}");
      case Kind::kTuple:
        return print_list(a, "(", ")");
      case Kind::kInterval:
        return print_list(a, a->is_left_open ? "(" : "[", a->is_right_open ? ")" : "]");
      case Kind::kUnion:
        return print_joined(a, " u ", 1, strength);
      case Kind::kIntersection:
        return print_joined(a, " n ", 1, strength);
      case Kind::kDifference:
        return print_joined(a, " \\ ", 1, strength);
      case Kind::kMatrix:
        return print_matrix(a);
    }
  }

 private:
  void print_number(const Expression& a, int strength) {
    const bool needs_brackets = strength >= 3 && (a->value.sign() < 0 || !a->value.is_integer());
    text += needs_brackets ? "(" + a->value.text() + ")" : a->value.text();
  }
  void print_joined(const Expression& a, const std::string& between, int own, int strength) {
    if (own < strength) text += '(';
    for (size_t i = 0; i < a->args.size(); ++i) {
      if (i > 0) text += between;
      print(a->args[i], own);
    }
    if (own < strength) text += ')';
  }
  void print_list(const Expression& a, const std::string& open, const char* close) {
    text += open;
    print_joined(a, ", ", 0, 0);
    text += close;
  }
  void print_matrix(const Expression& a) {
    const size_t num_columns = a->args.size() / static_cast<size_t>(a->num_rows);
    text += '[';
    for (size_t i = 0; i < a->args.size(); ++i) {
      if (i > 0) text += i % num_columns == 0 ? "; " : ", ";
      print(a->args[i], 0);
    }
    text += ']';
  }
};

}  // namespace

std::string to_text(const Expression& a) {
  Printer printer;
  printer.print(a, 0);
  if (printer.text.size() > kMaxTextBytes) {
    size_t end = kMaxTextBytes;
    while (end > 0 && (printer.text[end] & 0xC0) == 0x80) --end;
    printer.text = printer.text.substr(0, end) + "...";
  }
  return printer.text;
}

}  // namespace gradus::rewards::math
