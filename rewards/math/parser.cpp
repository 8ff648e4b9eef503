// SPDX-License-Identifier: Apache-2.0
#include "rewards/math/parser.h"

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <utility>

#include "common/strings.h"
#include "rewards/math/lexer.h"

namespace gradus::rewards::math {
namespace {

constexpr size_t kMaxBytes = 4096;
constexpr size_t kMaxTokens = 10000;
constexpr int kMaxDepth = 600;  // five or six a bracket

// Thrown and caught inside this file: the text is no expression.
struct Unreadable {};

// Function commands and the name of their call.
const std::map<std::string, std::string, std::less<>>& functions() {
  static const std::map<std::string, std::string, std::less<>> kFunctions = {
      {"sin", "sin"},       {"cos", "cos"},      {"tan", "tan"},       {"cot", "cot"},
      {"sec", "sec"},       {"csc", "csc"},      {"arcsin", "asin"},   {"arccos", "acos"},
      {"arctan", "atan"},   {"arccot", "acot"},  {"arcsec", "asec"},   {"arccsc", "acsc"},
      {"sinh", "sinh"},     {"cosh", "cosh"},    {"tanh", "tanh"},     {"arsinh", "asinh"},
      {"arcosh", "acosh"},  {"artanh", "atanh"}, {"arcsinh", "asinh"}, {"arccosh", "acosh"},
      {"arctanh", "atanh"}, {"log", "log"},      {"ln", "ln"},         {"exp", "exp"},
      {"lg", "log"},        {"max", "max"},      {"min", "min"},       {"gcd", "gcd"},
      {"lcm", "lcm"},       {"abs", "abs"},      {"floor", "floor"},   {"ceil", "ceil"},
      {"det", "det"},       {"tg", "tan"},       {"ctg", "cot"},       {"tr", "trace"},
      {"trace", "trace"},   {"cbrt", "cbrt"},    {"Re", "re"},         {"Im", "im"}};
  return kFunctions;
}

constexpr std::array<std::string_view, 38> kGreek = {
    "alpha", "beta",  "delta",   "Delta",    "epsilon", "varepsilon", "zeta",  "eta",
    "theta", "Theta", "iota",    "kappa",    "lambda",  "Lambda",     "mu",    "nu",
    "xi",    "Xi",    "Pi",      "rho",      "sigma",   "Sigma",      "tau",   "upsilon",
    "phi",   "Phi",   "varphi",  "chi",      "psi",     "Psi",        "omega", "Omega",
    "ell",   "hbar",  "omicron", "vartheta", "angle",   "triangle"};

bool is_greek(std::string_view name) {
  return std::find(kGreek.begin(), kGreek.end(), name) != kGreek.end();
}

std::string lower_case(std::string text) {
  for (char& c : text) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  return text;
}

// "(B)" is "b", "even  number" is "even number".
std::string plain_words(std::string_view text) {
  std::string words;
  for (const char c : text) {
    if (c == '(' || c == ')') continue;
    if (c == ' ' && (words.empty() || words.back() == ' ')) continue;
    words += c;
  }
  while (!words.empty() && (words.back() == ' ' || words.back() == '.')) words.pop_back();
  return lower_case(words);
}

std::string relation_of(const Token& token) {
  if (token.type == TokenType::kCharacter) {
    if (token.text == "=" || token.text == "<" || token.text == ">") return token.text;
    return "";
  }
  if (token.type != TokenType::kCommand) return "";
  static const std::map<std::string, std::string, std::less<>> kRelations = {
      {"le", "<="},       {"leq", "<="},   {"leqslant", "<="}, {"ge", ">="},   {"geq", ">="},
      {"geqslant", ">="}, {"lt", "<"},     {"gt", ">"},        {"ne", "!="},   {"neq", "!="},
      {"in", "in"},       {"approx", "~"}, {"equiv", "="},     {"simeq", "~"}, {"leqq", "<="},
      {"geqq", ">="},     {"sim", "~"},    {"approxeq", "~"}};
  const auto found = kRelations.find(token.text);
  return found == kRelations.end() ? "" : found->second;
}

class Parser {
 public:
  Parser(std::string_view text, const ParserOptions& options)
      : text_(text),
        is_compat_(options.is_compat),
        tokens_(tokenize(text, {.reads_words = !options.is_compat})) {}

  Expression run() {
    if (tokens_.size() > kMaxTokens) return nullptr;
    try {
      Expression result = parse_all();
      return at_end() ? result : nullptr;
    } catch (const Unreadable&) {
      return nullptr;
    }
  }

 private:
  // ---- tokens ----
  const Token& peek(size_t ahead = 0) const {
    return tokens_[std::min(at_ + ahead, tokens_.size() - 1)];
  }
  bool at_end() const { return peek().type == TokenType::kEnd; }
  bool is_character(char c, size_t ahead = 0) const {
    const Token& token = peek(ahead);
    return token.type == TokenType::kCharacter && token.text[0] == c;
  }
  bool is_command(std::string_view name, size_t ahead = 0) const {
    const Token& token = peek(ahead);
    return token.type == TokenType::kCommand && token.text == name;
  }
  bool take_character(char c) {
    if (!is_character(c)) return false;
    ++at_;
    return true;
  }
  bool take_command(std::string_view name) {
    if (!is_command(name)) return false;
    ++at_;
    return true;
  }
  void expect(char c) {
    if (!take_character(c)) throw Unreadable();
  }
  // Braces of LaTeX groups and \{ \} alike.
  bool is_open_brace() const {
    return is_character('{') || is_command("{") || is_command("lbrace");
  }

  struct Deeper {
    explicit Deeper(Parser& owner) : parser(owner) {
      if (++parser.depth_ > kMaxDepth) throw Unreadable();
    }
    ~Deeper() { --parser.depth_; }
    Parser& parser;
  };

  // ---- lists ----
  Expression parse_all() {
    std::vector<std::vector<Expression>> groups(1);
    bool are_alternatives = true;
    for (;;) {
      groups.back().push_back(parse_relation());
      is_or_ = false;
      if (take_character(';')) {
        skip_separators();
        groups.emplace_back();
      } else if (!take_separator()) {
        break;
      }
      are_alternatives &= is_or_;
      if (at_end() && !is_compat_) break;
    }
    if (groups.back().empty()) groups.pop_back();
    if (!is_compat_) take_trailing_stop();
    return joined_list(std::move(groups), are_alternatives);
  }

  static Expression joined_list(std::vector<std::vector<Expression>> groups,
                                bool are_alternatives) {
    if (groups.size() == 1) {
      if (groups[0].size() == 1) return groups[0][0];
      return make_node(Kind::kList, std::move(groups[0]), are_alternatives ? "or" : "");
    }
    std::vector<Expression> members;
    const bool are_single = std::all_of(groups.begin(), groups.end(),
                                        [](const auto& group) { return group.size() == 1; });
    for (auto& group : groups) {
      members.push_back(are_single ? group[0] : make_node(Kind::kTuple, std::move(group), "("));
    }
    return make_node(Kind::kList, std::move(members));
  }

  // A comma, "and", "or", or several of them in a row.
  bool take_separator() {
    bool has_any = false;
    for (;;) {
      if (take_character(',')) {
        has_any = true;
        continue;
      }
      if (peek().type == TokenType::kText) {
        const std::string word = lower_case(std::string(trim(peek().text)));
        if (word == "and" || word == "or" || word == "," || word == ", and" || word == "") {
          has_any |= word != "";
          is_or_ |= word == "or";
          ++at_;
          continue;
        }
      }
      if (const size_t length = length_of_joining_word()) {
        is_or_ |= length == 2;
        at_ += length;
        has_any = true;
        continue;
      }
      if (is_command("ldots") || is_command("dots") || is_command("cdots")) {
        if (!has_any) return false;
        if (!is_compat_) throw Unreadable();
        ++at_;
        continue;
      }
      return has_any;
    }
  }
  void skip_separators() {
    while (take_separator()) continue;
  }

  // 3 for the letters a n d, 2 for o r, 0 else; letters of a longer word do not count.
  size_t length_of_joining_word() const {
    for (const std::string_view word : {"and", "or"}) {
      bool matches = true;
      for (size_t i = 0; i < word.size() && matches; ++i) {
        const Token& token = peek(i);
        matches = token.type == TokenType::kLetter && token.text[0] == word[i] &&
                  (i == 0 || !token.has_space_before);
      }
      const Token& next = peek(word.size());
      if (matches && (next.type != TokenType::kLetter || next.has_space_before)) {
        return word.size();
      }
    }
    return 0;
  }

  void take_trailing_stop() {
    while (is_character('.') || is_character('!') || is_character(',') || is_character(';')) {
      if (is_character('!')) return;
      ++at_;
    }
  }

  // ---- relations ----
  Expression parse_relation() {
    const Deeper deeper(*this);
    std::vector<Expression> links;
    Expression left = parse_set_expression();
    std::optional<Expression> shown;  // what an approximation stands for
    for (;;) {
      const std::string relation = take_relation();
      if (relation.empty()) break;
      Expression right = parse_set_expression();
      if (relation == "~") {
        if (links.empty()) shown = is_only_names(left) ? right : left;
        if (links.empty()) left = *shown;
        continue;
      }
      links.push_back(make_node(Kind::kRelation, {left, right}, relation));
      left = std::move(right);
    }
    if (links.empty()) return left;
    return links.size() == 1 ? links[0] : make_node(Kind::kChain, std::move(links));
  }

  std::string take_relation() {
    if (is_character('!') && is_character('=', 1)) {
      at_ += 2;
      return "!=";
    }
    if (is_command("not") && is_character('=', 1)) {
      at_ += 2;
      return "!=";
    }
    std::string relation = relation_of(peek());
    if (relation.empty()) return relation;
    ++at_;
    take_character('&');
    if ((relation == "<" || relation == ">") && take_character('=')) relation += '=';
    return relation;
  }

  static bool is_only_names(const Expression& a) {
    if (a->kind == Kind::kName) return true;
    if (a->kind == Kind::kNumber || a->kind == Kind::kConstant || a->args.empty()) return false;
    return std::all_of(a->args.begin(), a->args.end(), is_only_names);
  }

  // ---- sets ----
  Expression parse_set_expression() {
    Expression left = parse_sum();
    for (;;) {
      Kind kind = Kind::kUnion;
      if (is_command("cap")) {
        kind = Kind::kIntersection;
      } else if (is_command("setminus") || is_command("backslash")) {
        kind = Kind::kDifference;
      } else if (!is_command("cup")) {
        break;
      }
      ++at_;
      Expression right = parse_sum();
      left = make_node(kind, {std::move(left), std::move(right)});
    }
    return left;
  }

  // ---- sums ----
  bool is_plus_minus() const { return is_command("pm") || is_command("mp"); }

  Expression parse_sum() {
    const Deeper deeper(*this);
    if (is_plus_minus()) {
      refuse_nested_plus_minus();
      const std::string sign = tokens_[at_++].text;
      return make_node(Kind::kPlusMinus, {parse_product()}, sign);
    }
    Expression left = parse_product();
    for (;;) {
      if (take_character('+')) {
        Expression right = parse_product();
        left = sum_of(std::move(left), std::move(right));
      } else if (is_character('-')) {
        ++at_;
        Expression right = parse_product();
        left = difference_of(left, right);
      } else if (is_plus_minus()) {
        refuse_nested_plus_minus();
        const std::string sign = tokens_[at_++].text;
        Expression right = parse_product();
        left = make_node(Kind::kPlusMinus, {std::move(left), std::move(right)}, sign);
      } else {
        break;
      }
    }
    return left;
  }

  void refuse_nested_plus_minus() const {
    if (is_compat_ && depth_in_groups_ > 0) throw Unreadable();
  }

  // ---- products ----
  Expression parse_product() {
    Expression left = parse_unary();
    for (;;) {
      if (is_character('*') || is_command("times") || is_command("cdot") || is_command("ast")) {
        ++at_;
        Expression right = parse_unary();
        left = product_of(std::move(left), std::move(right));
      } else if (is_character('/') || is_command("div")) {
        ++at_;
        Expression right = parse_unary();
        left = quotient_of(left, right);
      } else if (is_character(':')) {
        const size_t start = at_++;
        Expression right = parse_unary();
        if (left->kind == Kind::kRatio) {
          std::vector<Expression> terms = left->args;
          terms.push_back(std::move(right));
          left = make_node(Kind::kRatio, std::move(terms));
        } else {
          const bool has_minutes = tokens_[at_ - 1].type == TokenType::kNumber &&
                                   tokens_[at_ - 1].text.size() == 2 && at_ == start + 2;
          left = make_node(Kind::kRatio, {std::move(left), std::move(right)},
                           has_minutes ? "clock" : "");
        }
      } else if (is_command("mod") || (is_command("bmod") && !is_compat_)) {
        ++at_;
        Expression right = parse_unary();
        left = make_node(Kind::kCall, {std::move(left), std::move(right)}, "mod");
      } else {
        break;
      }
    }
    return left;
  }

  Expression parse_unary() {
    const Deeper deeper(*this);
    if (take_character('+')) return parse_unary();
    if (take_character('-')) return negated(parse_unary());
    return parse_implicit_product(true);
  }

  // Factors written one after the other.
  Expression parse_implicit_product(bool takes_functions) {
    std::vector<Expression> factors = {parse_postfix()};
    bool is_previous_number = tokens_[at_ - 1].type == TokenType::kNumber;
    while (starts_factor(takes_functions)) {
      const size_t start = at_;
      const bool is_number = peek().type == TokenType::kNumber;
      if (is_number && !is_compat_ && !is_thousands(start)) throw Unreadable();
      if (is_number && !is_compat_ && is_previous_number) {
        append_thousands(factors.back());
        continue;
      }
      Expression factor = parse_postfix();
      factors.push_back(std::move(factor));
      is_previous_number = is_number;
    }
    return joined_factors(std::move(factors));
  }

  // Whether the number at `at` is three digits after a space that groups thousands.
  bool is_thousands(size_t at) const {
    if (at == 0 || tokens_[at - 1].type != TokenType::kNumber) return false;
    const std::string& digits = tokens_[at].text;
    return digits.size() >= 3 && digits.find('.') == (digits.size() == 3 ? std::string::npos : 3) &&
           tokens_[at - 1].text.find('.') == std::string::npos && tokens_[at - 1].text.size() <= 3;
  }
  void append_thousands(Expression& number) {
    const std::string& digits = peek().text;
    const Rational own = Rational::from_decimal(digits);
    number =
        make_number(number->value * Rational(1000) + own, digits.find('.') != std::string::npos);
    ++at_;
  }

  Expression joined_factors(std::vector<Expression> factors) {
    // From the right, since 3 1/2 is a mixed number only where the rest is one positive fraction.
    Expression result = factors.back();
    for (size_t i = factors.size() - 1; i-- > 0;) {
      const Expression& left = factors[i];
      const bool is_whole =
          left->kind == Kind::kNumber && left->value.is_integer() && !left->is_decimal;
      const bool is_fraction = result->kind == Kind::kNumber && !result->is_decimal &&
                               result->value.sign() > 0 &&
                               (is_compat_ || !result->value.is_integer());
      if (is_whole && is_fraction) {
        result = make_number(left->value.sign() < 0 ? left->value - result->value
                                                    : left->value + result->value);
      } else {
        result = product_of(left, std::move(result));
      }
    }
    return result;
  }

  bool starts_factor(bool takes_functions) const {
    const Token& token = peek();
    switch (token.type) {
      case TokenType::kNumber:
        return true;
      case TokenType::kLetter:
        return length_of_joining_word() == 0;
      case TokenType::kWord:
        return takes_functions || token.text == "pi";
      case TokenType::kText:
        return is_compat_ && !is_joining_text(token.text);
      case TokenType::kBegin:
        return true;
      case TokenType::kCharacter:
        if (token.text == "|") return num_open_bars_ == 0;
        return token.text == "(" || token.text == "[" || token.text == "{";
      case TokenType::kCommand:
        return starts_command_factor(token.text, takes_functions);
      case TokenType::kEnd:
      case TokenType::kEndOf:
        return false;
    }
    return false;
  }

  static bool is_joining_text(std::string_view text) {
    const std::string_view word = trim(text);
    return word == "and" || word == "or" || word.empty() || word == ",";
  }

  bool starts_command_factor(const std::string& name, bool takes_functions) const {
    if (functions().contains(name)) return takes_functions;
    return name == "frac" || name == "dfrac" || name == "tfrac" || name == "cfrac" ||
           name == "sqrt" || name == "binom" || name == "dbinom" || name == "tbinom" ||
           name == "pi" || name == "infty" || name == "gamma" || name == "Gamma" ||
           name == "lfloor" || name == "lceil" || name == "lvert" || name == "langle" ||
           name == "overline" || name == "bar" || name == "vec" || name == "hat" ||
           name == "mathbb" || name == "mathcal" || name == "sum" || name == "prod" ||
           name == "int" || name == "lim" || name == "boxed" || name == "fbox" || name == "vert" ||
           name == "overrightarrow" || name == "widehat" || name == "tilde" || name == "{" ||
           name == "lbrace" || name == "imath" || is_greek(name);
  }

  // ---- postfix operations ----
  Expression parse_postfix() {
    const Deeper deeper(*this);
    const size_t start = at_;
    Expression base = parse_primary();
    for (;;) {
      if (is_character('!') && !is_character('=', 1)) {
        ++at_;
        base = make_node(Kind::kCall, {base}, "factorial");
      } else if (is_character('^')) {
        ++at_;
        base = parse_power(base);
      } else if (is_command("degree") || is_command("circ")) {
        ++at_;
        base = in_degrees(base);
      } else if (take_character('\'')) {
        base = base->kind == Kind::kName ? make_leaf(Kind::kName, base->text + "'") : base;
      } else if (is_character('%') || is_command("%")) {
        ++at_;
        base = make_node(Kind::kPercent, {base});
      } else if (is_character('_') && base->kind == Kind::kNumber) {
        ++at_;
        Expression subscript = parse_argument();
        if (!is_compat_) base = make_node(Kind::kBased, {base, subscript});
      } else if (!is_compat_ && take_unit(start, base)) {
        continue;
      } else {
        return base;
      }
    }
  }

  Expression in_degrees(const Expression& base) {
    if (is_compat_) return base;
    std::string unit = "degree";
    // 20 degrees C: the scale is part of the unit.
    const Token& next = peek();
    if (next.type == TokenType::kLetter && (next.text == "c" || next.text == "f")) {
      ++at_;
      unit += next.text == "c" ? "C" : "F";
    } else if (next.type == TokenType::kText &&
               (trim(next.text) == "C" || trim(next.text) == "F")) {
      ++at_;
      unit += trim(next.text);
    }
    return make_node(Kind::kUnit, {base}, unit);
  }

  Expression parse_power(const Expression& base) {
    if (is_command("circ") || is_command("degree")) {
      ++at_;
      return in_degrees(base);
    }
    if (is_character('{') && (is_command("circ", 1) || is_command("degree", 1))) {
      at_ += 2;
      expect('}');
      return in_degrees(base);
    }
    if (is_transpose(base)) return transposed(base);
    if (is_character('\'') || is_command("prime")) {
      ++at_;
      return base;
    }
    Expression exponent = parse_exponent();
    return make_node(Kind::kPower, {base, std::move(exponent)});
  }

  Expression parse_exponent() {
    if (is_character('-') || is_character('+')) {
      if (is_compat_) throw Unreadable();
      const bool is_negative = is_character('-');
      ++at_;
      Expression exponent = parse_exponent();
      return is_negative ? negated(exponent) : exponent;
    }
    if (is_character('(')) {
      ++at_;
      return parse_bracketed(')');
    }
    return parse_argument();
  }

  bool is_transpose(const Expression& base) {
    if (base->kind != Kind::kMatrix) return false;
    const auto is_mark = [&](size_t ahead) {
      const Token& token = peek(ahead);
      return (token.type == TokenType::kLetter && token.text == "t") || is_command("top", ahead) ||
             is_command("intercal", ahead) || (token.type == TokenType::kText && token.text == "T");
    };
    if (is_mark(0)) {
      ++at_;
      return true;
    }
    if (is_character('{') && is_mark(1) && is_character('}', 2)) {
      at_ += 3;
      return true;
    }
    return false;
  }

  static Expression transposed(const Expression& matrix) {
    const size_t rows = static_cast<size_t>(matrix->num_rows);
    const size_t columns = matrix->args.size() / rows;
    auto node = std::make_shared<Node>();
    node->kind = Kind::kMatrix;
    node->num_rows = static_cast<int64_t>(columns);
    for (size_t column = 0; column < columns; ++column) {
      for (size_t row = 0; row < rows; ++row) {
        node->args.push_back(matrix->args[row * columns + column]);
      }
    }
    return node;
  }

  // ---- units (strict) ----
  // A unit after what stands from token `start` on: \text{cm}, \text{cm}^2, or letters "km" set
  // apart. "" in \text is dropped.
  bool take_unit(size_t start, Expression& base) {
    if (base->kind == Kind::kUnit && base->text != "degree" && peek().type != TokenType::kText) {
      return false;
    }
    if (peek().type == TokenType::kText) {
      if (start == at_) return false;
      return take_text_unit(base);
    }
    return take_letter_unit(base);
  }

  bool take_text_unit(Expression& base) {
    std::string_view words = trim(peek().text);
    if (is_joining_text(words)) return false;
    std::string unit(words);
    size_t length = 1;
    std::string power;
    if (is_character('^', 1)) {
      if (peek(2).type == TokenType::kNumber) {
        power = peek(2).text;
        length = 3;
      } else if (is_character('{', 2) && peek(3).type == TokenType::kNumber &&
                 is_character('}', 4)) {
        power = peek(3).text;
        length = 5;
      }
    }
    if (!power.empty()) unit += "^" + power;
    if (const int64_t factor = number_word(words); factor != 0) {
      at_ += length;
      base = product_of(base, make_number(factor));
      return true;
    }
    if (words == "%" || words == "percent") {
      at_ += length;
      base = make_node(Kind::kPercent, {base});
      return true;
    }
    const std::string canonical = canonical_unit(unit);
    if (canonical.empty()) throw Unreadable();
    at_ += length;
    base = base->kind == Kind::kUnit
               ? make_node(Kind::kUnit, {base->args[0]}, base->text + " " + canonical)
               : make_node(Kind::kUnit, {base}, canonical);
    return true;
  }

  static int64_t number_word(std::string_view word) {
    if (word == "hundred") return 100;
    if (word == "thousand") return 1000;
    if (word == "million") return 1000000;
    if (word == "billion") return 1000000000;
    if (word == "dozen") return 12;
    return 0;
  }

  // A run of at least two letters, after a number, that names a unit: "15 km", "3 apples".
  bool take_letter_unit(Expression& base) {
    if (peek().type != TokenType::kLetter || tokens_[at_ - 1].type != TokenType::kNumber) {
      return false;
    }
    size_t length = 0;
    std::string word;
    while (peek(length).type == TokenType::kLetter &&
           (length == 0 || !peek(length).has_space_before)) {
      word += text_[peek(length).begin];
      ++length;
    }
    if (length < 2) return false;
    if (const int64_t factor = number_word(lower_case(word)); factor != 0) {
      at_ += length;
      base = product_of(base, make_number(factor));
      return true;
    }
    if (lower_case(word) == "percent") {
      at_ += length;
      base = make_node(Kind::kPercent, {base});
      return true;
    }
    std::string unit = word;
    size_t end = length;
    if (is_character('^', length) && peek(length + 1).type == TokenType::kNumber) {
      unit += "^" + peek(length + 1).text;
      end += 2;
    }
    const std::string canonical = canonical_unit(unit);
    // Only words that the table knows: "xy" after a number is a product.
    if (canonical.empty() || canonical.starts_with("?")) return false;
    at_ += end;
    base = make_node(Kind::kUnit, {base}, canonical);
    return true;
  }

  // ---- primaries ----
  Expression parse_primary() {
    const Deeper deeper(*this);
    const Token& token = peek();
    switch (token.type) {
      case TokenType::kNumber:
        return parse_number();
      case TokenType::kLetter:
        return parse_letter();
      case TokenType::kWord:
        return parse_word();
      case TokenType::kText:
        return parse_text();
      case TokenType::kBegin:
        return parse_environment();
      case TokenType::kCharacter:
        return parse_character();
      case TokenType::kCommand:
        return parse_command();
      case TokenType::kEnd:
      case TokenType::kEndOf:
        throw Unreadable();
    }
    throw Unreadable();
  }

  Expression parse_number() {
    std::string digits = peek().text;
    ++at_;
    // {,} groups thousands.
    while (digits.find('.') == std::string::npos && is_character('{') && is_character(',', 1) &&
           is_character('}', 2) && peek(3).type == TokenType::kNumber) {
      digits += peek(3).text;
      at_ += 4;
    }
    if (!is_compat_) take_comma_groups(digits);
    const bool has_point = digits.find('.') != std::string::npos;
    if (!is_compat_) {
      if (Expression repeating = parse_repetend(digits)) return repeating;
    }
    // 12. before something else: the point ends the sentence and not the number.
    return make_number(Rational::from_decimal(digits), has_point);
  }

  // 12,345 outside all brackets is one number: a list is written with a space or in braces.
  void take_comma_groups(std::string& digits) {
    if (depth_in_brackets_ > 0 || digits.size() > 3 || digits[0] == '0') return;
    size_t ahead = 0;
    std::string groups;
    while (is_character(',', ahead) && peek(ahead + 1).type == TokenType::kNumber &&
           !peek(ahead).has_space_before && !peek(ahead + 1).has_space_before) {
      const std::string& group = peek(ahead + 1).text;
      const size_t length = std::min(group.find('.'), group.size());
      if (length != 3) return;
      groups += group;
      ahead += 2;
      if (length != group.size()) break;
    }
    if (is_character(',', ahead) && !peek(ahead + 1).has_space_before) return;
    digits += groups;
    at_ += ahead;
  }

  // 0.1\overline{6}, with the point after the whole number read as its own character.
  Expression parse_repetend(const std::string& digits) {
    const bool has_point = digits.find('.') != std::string::npos;
    size_t ahead = has_point ? 0 : 1;
    if (!has_point && !is_character('.')) return nullptr;
    if (!is_command("overline", ahead) && !is_command("bar", ahead) && !is_command("dot", ahead)) {
      return nullptr;
    }
    if (!is_character('{', ahead + 1) || peek(ahead + 2).type != TokenType::kNumber ||
        !is_character('}', ahead + 3)) {
      return nullptr;
    }
    const std::string& period = peek(ahead + 2).text;
    if (period.find('.') != std::string::npos) return nullptr;
    const int64_t num_decimals =
        has_point ? static_cast<int64_t>(digits.size() - digits.find('.') - 1) : 0;
    const Rational nines = Rational(10).pow(static_cast<int64_t>(period.size())) - Rational(1);
    const Rational tail = Rational::from_decimal(period) / (nines * Rational(10).pow(num_decimals));
    at_ += ahead + 4;
    return make_number(Rational::from_decimal(digits) + tail);
  }

  Expression parse_letter() {
    if (const size_t length = is_compat_ ? 0 : length_of_plain_text())
      return take_plain_text(length);
    std::string name = peek().text;
    const bool is_upper = text_[peek().begin] != name[0];
    ++at_;
    if (name == "e" && !is_upper) return parse_exponential();
    if (name == "i" && (!is_compat_ || is_upper) && !is_character('_')) {
      return make_leaf(Kind::kConstant, "i");
    }
    return parse_name(std::move(name));
  }

  Expression parse_exponential() { return make_leaf(Kind::kConstant, "e"); }

  // The whole text is words ("even", "no solution"): their number of tokens.
  size_t length_of_plain_text() const {
    if (at_ != 0) return 0;
    size_t length = 0;
    size_t run = 0, longest = 0;
    while (peek(length).type == TokenType::kLetter) {
      run = peek(length).has_space_before ? 1 : run + 1;
      longest = std::max(longest, run);
      ++length;
    }
    const bool ends = peek(length).type == TokenType::kEnd ||
                      (is_character('.', length) && peek(length + 1).type == TokenType::kEnd);
    return ends && longest >= 4 ? length : 0;
  }
  Expression take_plain_text(size_t length) {
    std::string words;
    for (size_t i = 0; i < length; ++i) {
      if (peek(i).has_space_before && i > 0) words += ' ';
      words += peek(i).text;
    }
    at_ += length;
    return make_leaf(Kind::kText, words);
  }

  Expression parse_name(std::string name) {
    if (is_character('_')) {
      ++at_;
      name += "_" + subscript_text();
    }
    return parse_application(make_leaf(Kind::kName, std::move(name)));
  }

  // f(x), P(A), x_1(2): a name before brackets around one atom is a function of it.
  Expression parse_application(const Expression& name) {
    if (!is_character('(') || !is_character(')', 2)) return name;
    const Token& atom = peek(1);
    const bool is_atom = atom.type == TokenType::kLetter || atom.type == TokenType::kNumber ||
                         (atom.type == TokenType::kCommand && is_greek(atom.text));
    if (!is_atom) return name;
    at_ += 3;
    if (atom.type == TokenType::kNumber) {
      return make_node(Kind::kCall, {make_number(Rational::from_decimal(atom.text))},
                       "@" + name->text);
    }
    return make_node(Kind::kCall, {make_leaf(Kind::kName, atom.text)}, "@" + name->text);
  }

  // The characters of the next token or group.
  std::string subscript_text() {
    if (!is_character('{')) {
      if (at_end()) throw Unreadable();
      std::string text = peek().text;
      ++at_;
      return text;
    }
    std::string text;
    int64_t depth = 0;
    do {
      if (at_end()) throw Unreadable();
      depth += is_character('{') ? 1 : is_character('}') ? -1 : 0;
      if (!is_character('{') && !is_character('}')) text += peek().text;
      ++at_;
    } while (depth > 0);
    return text;
  }

  Expression parse_word() {
    const std::string word = peek().text;
    ++at_;
    if (word == "pi") return make_leaf(Kind::kConstant, "pi");
    if (word == "infinity" || word == "inf" || word == "oo")
      return make_leaf(Kind::kConstant, "inf");
    if (word == "sqrt") return parse_root();
    return parse_function(functions().find(word)->second);
  }

  Expression parse_text() {
    const std::string words = peek().text;
    const std::string plain = plain_words(words);
    if (!is_compat_) {
      const bool is_e = trim(words) == "e";
      const bool is_i = trim(words) == "i";
      ++at_;
      if (is_e) return parse_exponential();
      if (is_i) return make_leaf(Kind::kConstant, "i");
      if (plain == "d" || plain == "t") return make_leaf(Kind::kName, plain);
      return make_leaf(Kind::kText, plain);
    }
    ++at_;
    std::string name;
    for (const char c : plain) {
      if (c != ' ') name += c;
    }
    if (is_character('_')) {
      ++at_;
      name += "_" + subscript_text();
    }
    if (name.empty()) throw Unreadable();
    return make_leaf(Kind::kName, name);
  }

  Expression parse_character() {
    const char c = peek().text[0];
    if (c == '{') return parse_braces();
    if (c == '(' || c == '[') return parse_brackets(c);
    if (c == '|') {
      ++at_;
      ++num_open_bars_;
      const int saved = num_open_bars_;
      Expression inside = in_group([&] { return parse_sum(); });
      num_open_bars_ = saved - 1;
      expect('|');
      return make_node(Kind::kCall, {std::move(inside)}, "abs");
    }
    throw Unreadable();
  }

  template <class Parse>
  Expression in_group(const Parse& parse) {
    ++depth_in_brackets_;
    ++depth_in_groups_;
    Expression result = parse();
    --depth_in_brackets_;
    --depth_in_groups_;
    return result;
  }

  // Members of a bracket, up to but without its closing token.
  std::vector<std::vector<Expression>> parse_members() {
    std::vector<std::vector<Expression>> groups(1);
    ++depth_in_brackets_;
    const int saved_bars = std::exchange(num_open_bars_, 0);
    for (;;) {
      groups.back().push_back(parse_relation());
      if (take_character(';')) {
        groups.emplace_back();
      } else if (!take_separator()) {
        break;
      }
    }
    num_open_bars_ = saved_bars;
    --depth_in_brackets_;
    return groups;
  }

  static std::vector<Expression> flattened(std::vector<std::vector<Expression>> groups) {
    std::vector<Expression> members;
    for (auto& group : groups) {
      for (Expression& member : group) members.push_back(std::move(member));
    }
    return members;
  }

  // { } of a LaTeX group, or of a set whose backslashes are missing.
  Expression parse_braces() {
    ++at_;
    if (take_character('}')) return make_leaf(Kind::kNamedSet, "empty");
    if (is_character(',') && is_character('}', 1)) throw Unreadable();
    std::vector<Expression> members = flattened(parse_members());
    expect('}');
    if (members.size() == 1) return members[0];
    return make_node(Kind::kSet, std::move(members));
  }

  Expression parse_bracketed(char close) {
    Expression inside = in_group([&] { return parse_sum(); });
    expect(close);
    return inside;
  }

  Expression parse_brackets(char open) {
    ++at_;
    std::vector<Expression> members = flattened(parse_members());
    const bool is_round = is_character(')');
    if (!is_round && !is_character(']') && !is_command("rbrack")) throw Unreadable();
    ++at_;
    if (members.size() == 1) {
      if ((open == '(') != is_round) throw Unreadable();
      if (members[0]->kind == Kind::kRelation || members[0]->kind == Kind::kPlusMinus) {
        if (is_compat_) throw Unreadable();
      }
      return members[0];
    }
    if (members.size() == 2 && (open == '[' || !is_round)) {
      auto node = std::make_shared<Node>();
      node->kind = Kind::kInterval;
      node->args = std::move(members);
      node->is_left_open = open == '(';
      node->is_right_open = is_round;
      return node;
    }
    if ((open == '(') != is_round) throw Unreadable();
    return make_node(Kind::kTuple, std::move(members), std::string(1, open));
  }

  Expression parse_set() {
    ++at_;
    const auto takes_close = [&] {
      if (!is_command("}") && !is_command("rbrace") && !is_character('}')) return false;
      ++at_;
      return true;
    };
    if (takes_close()) return make_leaf(Kind::kNamedSet, "empty");
    if (!is_compat_) {
      if (Expression built = parse_set_builder()) {
        if (!takes_close()) throw Unreadable();
        return built;
      }
    }
    std::vector<Expression> members = flattened(parse_members());
    if (!takes_close()) throw Unreadable();
    return make_node(Kind::kSet, std::move(members));
  }

  // {x | x > 3}, {x in R : x > 3}: the relation stands for its solutions. Null, nothing read, else.
  Expression parse_set_builder() {
    const size_t start = at_;
    size_t bar = 0;
    for (size_t ahead = 1; ahead < 8 && bar == 0; ++ahead) {
      if (is_command("mid", ahead) || is_character('|', ahead) || is_character(':', ahead))
        bar = ahead;
      if (is_command("}", ahead) || peek(ahead).type == TokenType::kEnd) break;
    }
    if (bar == 0 || peek().type != TokenType::kLetter) return nullptr;
    if (bar != 1 && !is_command("in", 1)) return nullptr;
    at_ = start + bar + 1;
    ++depth_in_brackets_;
    Expression relation = parse_relation();
    --depth_in_brackets_;
    return relation;
  }

  Expression parse_command() {
    const std::string name = peek().text;
    if (name == "{" || name == "lbrace") return parse_set();
    if (const auto found = functions().find(name); found != functions().end()) {
      ++at_;
      return parse_function(found->second);
    }
    if (is_greek(name)) {
      ++at_;
      return parse_name(name);
    }
    ++at_;
    if (name == "frac" || name == "dfrac" || name == "tfrac" || name == "cfrac")
      return parse_fraction();
    if (name == "sqrt") return parse_root();
    if (name == "pi") return make_leaf(Kind::kConstant, "pi");
    if (name == "infty") return make_leaf(Kind::kConstant, "inf");
    if (name == "imath") return make_leaf(Kind::kConstant, "i");
    if (name == "gamma" || name == "Gamma") return parse_gamma();
    if (name == "binom" || name == "dbinom" || name == "tbinom") return parse_binomial();
    if (name == "emptyset" || (name == "varnothing" && !is_compat_))
      return make_leaf(Kind::kNamedSet, "empty");
    if (name == "R" || name == "Z" || name == "Q" || name == "N" || name == "C") {
      return make_leaf(Kind::kNamedSet, name);
    }
    if (name == "mathbb" || name == "mathcal") return parse_named_set(name == "mathbb");
    if (name == "lfloor") return parse_between("rfloor", "floor");
    if (name == "lceil") return parse_between("rceil", "ceil");
    if (name == "lvert" || name == "vert")
      return parse_between(name == "vert" ? "vert" : "rvert", "abs");
    if (name == "langle") return parse_angles();
    if (name == "boxed" || name == "fbox") return parse_box();
    if (name == "sum" || name == "prod") return parse_big_operator(name);
    if (name == "int") return parse_integral();
    if (name == "lim") return parse_limit();
    if (name == "$" || name == "euro" || name == "pound") return parse_currency(name);
    if (name == "overline" || name == "bar" || name == "vec" || name == "hat" || name == "tilde" ||
        name == "overrightarrow" || name == "widehat") {
      return make_leaf(Kind::kName, name + "{" + subscript_text() + "}");
    }
    if (name == "varnothing") return make_leaf(Kind::kName, name);
    throw Unreadable();
  }

  Expression parse_currency(const std::string& name) {
    if (is_compat_) throw Unreadable();
    Expression amount = parse_postfix();
    const std::string unit = name == "$" ? "USD" : name == "euro" ? "EUR" : "GBP";
    if (amount->kind == Kind::kUnit) {
      if (amount->text != unit) throw Unreadable();
      return amount;
    }
    return make_node(Kind::kUnit, {std::move(amount)}, unit);
  }

  // A group in braces, or one token: \frac12 has the arguments 1 and 2, x^10 has 10.
  Expression parse_argument() {
    if (is_character('{')) {
      ++at_;
      Expression inside = in_group([&] { return parse_sum(); });
      expect('}');
      return inside;
    }
    if (peek().type == TokenType::kNumber) return parse_bare_number();
    if (peek().type == TokenType::kLetter) {
      const std::string name = peek().text;
      ++at_;
      if (name == "e") return make_leaf(Kind::kConstant, "e");
      if (name == "i" && !is_compat_) return make_leaf(Kind::kConstant, "i");
      return make_leaf(Kind::kName, name);
    }
    if (peek().type == TokenType::kCommand || peek().type == TokenType::kText)
      return parse_primary();
    throw Unreadable();
  }

  Expression parse_bare_number() {
    const std::string digits = peek().text;
    ++at_;
    return make_number(Rational::from_decimal(digits), digits.find('.') != std::string::npos);
  }

  // One digit of the next number token, as TeX takes it; the rest stays.
  Expression parse_digit_argument() {
    Token& token = tokens_[at_];
    if (token.type != TokenType::kNumber || token.text.size() < 2) return parse_argument();
    const std::string digit = token.text.substr(0, 1);
    token.text = token.text.substr(1);
    ++token.begin;
    return make_number(Rational::from_decimal(digit));
  }

  Expression parse_fraction() {
    if (Expression derivative = parse_derivative()) return derivative;
    Expression numerator = parse_digit_argument();
    // The denominator of \frac123 is 23 here, as graders of the field read it.
    Expression denominator = parse_argument();
    return quotient_of(numerator, denominator);
  }

  // \frac{d}{dx} before its expression.
  Expression parse_derivative() {
    const auto is_letter_token = [&](size_t ahead, const char* letter) {
      return peek(ahead).type == TokenType::kLetter &&
             (letter == nullptr || peek(ahead).text == letter);
    };
    if (!is_character('{') || !is_letter_token(1, "d") || !is_character('}', 2) ||
        !is_character('{', 3) || !is_letter_token(4, "d") || !is_letter_token(5, nullptr) ||
        !is_character('}', 6)) {
      return nullptr;
    }
    const std::string variable = peek(5).text;
    at_ += 7;
    Expression inside = in_group([&] { return parse_implicit_product(true); });
    return make_node(Kind::kUnevaluated, {std::move(inside), make_leaf(Kind::kName, variable)},
                     "diff");
  }

  Expression parse_root() {
    Expression index;
    if (is_character('[')) {
      ++at_;
      index = parse_bracketed(']');
    }
    Expression radicand;
    if (is_compat_ && index != nullptr && !is_character('{')) throw Unreadable();
    if (is_character('(')) {
      ++at_;
      radicand = parse_bracketed(')');
    } else {
      radicand = peek().type == TokenType::kNumber && is_compat_ ? parse_digit_argument()
                                                                 : parse_argument();
    }
    if (index == nullptr || (index->kind == Kind::kNumber && index->value == Rational(2))) {
      return make_node(Kind::kCall, {std::move(radicand)}, "sqrt");
    }
    return make_node(Kind::kPower, {std::move(radicand), quotient_of(make_number(1), index)});
  }

  Expression parse_gamma() {
    if (!is_character('(')) return make_leaf(Kind::kConstant, "gamma");
    ++at_;
    return make_node(Kind::kCall, {parse_bracketed(')')}, "gamma");
  }

  Expression parse_binomial() {
    if (is_compat_ && !is_character('{')) throw Unreadable();
    Expression upper = parse_digit_argument();
    Expression lower = parse_argument();
    return make_node(Kind::kCall, {std::move(upper), std::move(lower)}, "binomial");
  }

  Expression parse_named_set(bool is_blackboard) {
    const std::string letter = subscript_text();
    if (is_blackboard &&
        (letter == "r" || letter == "z" || letter == "q" || letter == "n" || letter == "c")) {
      return make_leaf(Kind::kNamedSet, std::string(1, static_cast<char>(letter[0] - 32)));
    }
    return make_leaf(Kind::kName, letter);
  }

  Expression parse_between(const char* close, const char* call) {
    ++num_open_bars_;
    Expression inside = in_group([&] { return parse_sum(); });
    --num_open_bars_;
    if (!take_command(close)) throw Unreadable();
    return make_node(Kind::kCall, {std::move(inside)}, call);
  }

  Expression parse_angles() {
    if (is_compat_) throw Unreadable();
    std::vector<Expression> members = flattened(parse_members());
    if (!take_command("rangle")) throw Unreadable();
    return make_node(Kind::kTuple, std::move(members), "<");
  }

  Expression parse_box() {
    expect('{');
    std::vector<Expression> members = flattened(parse_members());
    expect('}');
    return members.size() == 1 ? members[0] : make_node(Kind::kList, std::move(members));
  }

  Expression parse_function(const std::string& name) {
    Expression base, power;
    for (;;) {
      if (is_character('_') && base == nullptr) {
        ++at_;
        base = parse_argument();
      } else if (is_character('^') && power == nullptr) {
        ++at_;
        power = parse_exponent();
      } else {
        break;
      }
    }
    std::vector<Expression> args = parse_function_arguments(name);
    if (name == "log") {
      args.push_back(base != nullptr ? base : make_number(10));
    } else if (base != nullptr) {
      throw Unreadable();
    }
    return applied(name, std::move(args), power);
  }

  static Expression applied(std::string name, std::vector<Expression> args,
                            const Expression& power) {
    if (name == "cbrt") {
      return make_node(Kind::kPower, {args[0], make_number(Rational(1, 3))});
    }
    const bool is_inverse = power != nullptr && power->kind == Kind::kNumber &&
                            power->value == Rational(-1) && name != "ln" && name != "log";
    if (is_inverse) name = "a" + name;
    Expression call = make_node(Kind::kCall, std::move(args), name);
    if (power == nullptr || is_inverse) return call;
    return make_node(Kind::kPower, {std::move(call), power});
  }

  std::vector<Expression> parse_function_arguments(const std::string& name) {
    const bool takes_many = name == "max" || name == "min" || name == "gcd" || name == "lcm";
    if (is_character('(') || (takes_many && is_open_brace())) {
      ++at_;
      std::vector<Expression> members = flattened(parse_members());
      if (!is_character(')') && !is_character('}') && !is_command("}")) throw Unreadable();
      ++at_;
      if (members.size() > 1 && !takes_many) throw Unreadable();
      return members;
    }
    if (takes_many) throw Unreadable();
    return {in_group(
        [&] { return is_character('-') ? parse_unary() : parse_implicit_product(false); })};
  }

  // _{k=1}^{n} term
  Expression parse_big_operator(const std::string& name) {
    if (!take_character('_')) throw Unreadable();
    expect('{');
    Expression start = in_group([&] { return parse_relation(); });
    expect('}');
    if (start->kind != Kind::kRelation || start->text != "=" || !take_character('^'))
      throw Unreadable();
    Expression end = parse_exponent();
    Expression term = in_group([&] { return parse_product(); });
    return make_node(Kind::kUnevaluated,
                     {std::move(term), start->args[0], start->args[1], std::move(end)}, name);
  }

  // _a^b f dx, or \int f dx.
  Expression parse_integral() {
    Expression low, high;
    if (take_character('_')) {
      low = parse_argument();
      if (!take_character('^')) throw Unreadable();
      high = parse_exponent();
    }
    const size_t end = differential();
    if (end == 0) throw Unreadable();
    const std::string variable = tokens_[end + 1].text;
    const Token saved = tokens_[end];
    tokens_[end].type = TokenType::kEnd;
    Expression inside = at_ == end ? make_number(1) : in_group([&] { return parse_sum(); });
    tokens_[end] = saved;
    if (at_ != end) throw Unreadable();
    at_ = end + 2;
    std::vector<Expression> args = {std::move(inside), make_leaf(Kind::kName, variable)};
    if (low != nullptr) {
      args.push_back(std::move(low));
      args.push_back(std::move(high));
    }
    return make_node(Kind::kUnevaluated, std::move(args), "int");
  }

  // The token d of the next dx; 0 when there is none.
  size_t differential() const {
    for (size_t i = at_; i + 1 < tokens_.size(); ++i) {
      if (tokens_[i].type == TokenType::kLetter && tokens_[i].text == "d" &&
          tokens_[i + 1].type == TokenType::kLetter) {
        return i;
      }
    }
    return 0;
  }

  Expression parse_limit() {
    if (!take_character('_')) throw Unreadable();
    expect('{');
    if (peek().type != TokenType::kLetter) throw Unreadable();
    const std::string variable = peek().text;
    ++at_;
    if (!take_command("to") && !take_command("rightarrow")) throw Unreadable();
    Expression point = in_group([&] { return parse_sum(); });
    expect('}');
    Expression inside = in_group([&] { return parse_product(); });
    return make_node(Kind::kUnevaluated,
                     {std::move(inside), make_leaf(Kind::kName, variable), std::move(point)},
                     "lim");
  }

  Expression parse_environment() {
    const std::string name = peek().text;
    ++at_;
    const bool is_matrix = name == "matrix" || name == "pmatrix" || name == "bmatrix" ||
                           name == "Bmatrix" || name == "array" || name == "smallmatrix";
    const bool is_determinant = name == "vmatrix";
    if (!is_matrix && !is_determinant) throw Unreadable();
    auto node = std::make_shared<Node>();
    node->kind = Kind::kMatrix;
    size_t num_in_row = 0, num_columns = 0;
    const int saved_bars = std::exchange(num_open_bars_, 0);
    for (;;) {
      node->args.push_back(in_group([&] { return parse_sum(); }));
      ++num_in_row;
      if (take_character('&')) continue;
      if (num_columns != 0 && num_in_row != num_columns) throw Unreadable();
      num_columns = std::exchange(num_in_row, 0);
      ++node->num_rows;
      if (!take_command("\\")) break;
      if (peek().type == TokenType::kEndOf) break;
    }
    num_open_bars_ = saved_bars;
    if (peek().type != TokenType::kEndOf) throw Unreadable();
    ++at_;
    if (is_determinant) return make_node(Kind::kCall, {Expression(std::move(node))}, "det");
    return node;
  }

  std::string_view text_;
  bool is_compat_;
  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0;
  int depth_in_brackets_ = 0;  // of any kind
  int depth_in_groups_ = 0;    // of those in which +- is refused
  int num_open_bars_ = 0;
  bool is_or_ = false;  // of the separator taken last
};

}  // namespace

namespace {

// Without the pairs of round brackets that stand around the whole text, one left.
std::string_view without_outer_brackets(std::string_view text) {
  size_t open = 0, close = 0;
  while (open < text.size() && text[open] == '(') ++open;
  while (close < text.size() && text[text.size() - 1 - close] == ')') ++close;
  size_t lowest = open, depth = open;
  for (size_t i = open; i + close < text.size(); ++i) {
    if (text[i] == ')' && depth == 0) return text;
    depth += text[i] == '(' ? 1 : text[i] == ')' ? static_cast<size_t>(-1) : 0;
    lowest = std::min(lowest, depth);
  }
  const size_t pairs = std::min(lowest, close);
  if (depth != close || pairs < 2) return text;
  return text.substr(pairs - 1, text.size() - 2 * (pairs - 1));
}

}  // namespace

namespace {

// 12,345.6 and nothing else.
bool is_grouped_number(std::string_view text) {
  if (text.starts_with('-')) text.remove_prefix(1);
  const auto digits_at = [&](size_t at) {
    size_t count = 0;
    while (at + count < text.size() && text[at + count] >= '0' && text[at + count] <= '9') ++count;
    return count;
  };
  size_t at = digits_at(0);
  if (at == 0 || at > 3 || at == text.size() || text[at] != ',') return false;
  while (at < text.size() && text[at] == ',' && digits_at(at + 1) == 3) at += 4;
  if (at < text.size() && text[at] == '.' && digits_at(at + 1) > 0) at += 1 + digits_at(at + 1);
  return at == text.size();
}

Expression grouped_number(std::string_view text) {
  std::string digits;
  for (const char c : text) {
    if (c != ',' && c != '-') digits += c;
  }
  const Rational value = Rational::from_decimal(digits);
  return make_number(text.starts_with('-') ? -value : value, digits.find('.') != std::string::npos);
}

}  // namespace

Expression parse_expression(std::string_view text, const ParserOptions& options) {
  text = without_outer_brackets(trim(text));
  if (text.empty() || text.size() > kMaxBytes) return nullptr;
  if (is_grouped_number(text)) return grouped_number(text);
  return Parser(text, options).run();
}

}  // namespace gradus::rewards::math
