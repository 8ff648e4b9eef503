// SPDX-License-Identifier: Apache-2.0
#include "data/internal/jinja/parser.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <initializer_list>

#include "data/internal/jinja/lexer.h"
#include "data/internal/jinja/text.h"

namespace gradus::data::jinja {
namespace {

// Nesting of the source; Python's own compiler stops at about as much.
constexpr int kMaxNesting = 150;
constexpr int kMaxExprDepth = 300;

constexpr std::array<std::string_view, 6> kUnsupportedTags = {"block",  "extends", "include",
                                                              "import", "from",    "autoescape"};

bool is_constant_name(std::string_view name) {
  return name == "true" || name == "True" || name == "false" || name == "False" || name == "none" ||
         name == "None";
}

class Parser {
 public:
  explicit Parser(std::string_view source) : tokens_(tokenize(source)) {}

  Body parse() { return parse_body({}, "template"); }

 private:
  using Names = std::initializer_list<std::string_view>;

  class Nesting {
   public:
    explicit Nesting(Parser& parser) : parser_(parser) {
      if (++parser_.nesting_ > kMaxNesting) parser_.error("nested too deep", parser_.line());
    }
    ~Nesting() { --parser_.nesting_; }

   private:
    Parser& parser_;
  };

  const Token& current() const { return tokens_[pos_]; }
  const Token& look() const { return tokens_[std::min(pos_ + 1, tokens_.size() - 1)]; }
  int line() const { return current().line; }
  const Token& next() {
    const Token& token = tokens_[pos_];
    if (pos_ + 1 < tokens_.size()) ++pos_;
    return token;
  }
  bool is_operator(std::string_view symbol) const { return current().is_operator(symbol); }
  bool is_name(std::string_view name) const { return current().is_name(name); }
  bool skip_operator(std::string_view symbol) {
    if (!is_operator(symbol)) return false;
    next();
    return true;
  }
  bool skip_name(std::string_view name) {
    if (!is_name(name)) return false;
    next();
    return true;
  }

  [[noreturn]] void error(std::string message, int line) const {
    throw TemplateError{std::move(message), line};
  }
  [[noreturn]] void unexpected(std::string_view wanted) const {
    if (current().kind == TokenKind::kEnd) {
      error(fmt::format("unexpected end of template, expected '{}'", wanted), line());
    }
    error(fmt::format("expected '{}', got '{}'", wanted, describe(current())), line());
  }
  void expect_operator(std::string_view symbol) {
    if (!skip_operator(symbol)) unexpected(symbol);
  }
  void expect_keyword(std::string_view name) {
    if (!skip_name(name)) unexpected(name);
  }
  std::string expect_name() {
    if (current().kind != TokenKind::kName) unexpected("name");
    return next().text;
  }
  void expect_block_end() {
    if (current().kind != TokenKind::kBlockEnd) unexpected("end of statement block");
    next();
  }

  static ExprPtr make(ExprKind kind, int line) {
    auto expr = std::make_unique<Expr>();
    expr->kind = kind;
    expr->line = line;
    return expr;
  }

  // Sets the depth of a node whose children are in place.
  ExprPtr finish(ExprPtr expr) const {
    const auto include = [&](const ExprPtr& child) {
      if (child) expr->depth = std::max(expr->depth, child->depth + 1);
    };
    for (const ExprPtr& operand : expr->operands) include(operand);
    for (const ExprPtr& argument : expr->arguments.positional) include(argument);
    for (const auto& [name, argument] : expr->arguments.named) include(argument);
    include(expr->arguments.more_positional);
    include(expr->arguments.more_named);
    if (expr->depth > kMaxExprDepth) error("expression nested too deep", expr->line);
    return expr;
  }

  template <class... Operands>
  ExprPtr make_with(ExprKind kind, int line, Operands... operands) const {
    ExprPtr expr = make(kind, line);
    (expr->operands.push_back(std::move(operands)), ...);
    return finish(std::move(expr));
  }

  ExprPtr make_constant(Value value, int line) const {
    ExprPtr expr = make(ExprKind::kConst, line);
    expr->value = std::move(value);
    return expr;
  }

  // ---- statements

  // Statements up to a tag that is one of `ends` (its name is then the current token; the tag's
  // start is consumed), or to the end of the template if `ends` is empty. `tag` is what is being
  // parsed.
  Body parse_body(Names ends, const std::string& tag) {
    Nesting nesting(*this);
    Body body;
    for (;;) {
      const int here = line();
      switch (current().kind) {
        case TokenKind::kEnd: {
          if (ends.size() == 0) return body;
          std::vector<std::string> names(ends.begin(), ends.end());
          error(fmt::format("unexpected end of template; '{}' must be closed with '{}'", tag,
                            names.back()),
                here);
        }
        case TokenKind::kData: {
          auto stmt = make_stmt(StmtKind::kText, here);
          stmt->text = next().text;
          body.push_back(std::move(stmt));
          break;
        }
        case TokenKind::kVariableBegin: {
          next();
          auto stmt = make_stmt(StmtKind::kOutput, here);
          stmt->expr = parse_tuple();
          if (current().kind != TokenKind::kVariableEnd) unexpected("end of print statement");
          next();
          body.push_back(std::move(stmt));
          break;
        }
        case TokenKind::kBlockBegin:
          next();
          if (current().kind == TokenKind::kName &&
              std::find(ends.begin(), ends.end(), current().text) != ends.end()) {
            return body;
          }
          parse_statement(body, tag, ends);
          expect_block_end();
          break;
        default:
          unexpected("statement");
      }
    }
  }

  // The rest of a tag's start, its body, and the name of the tag that ends it.
  Body parse_block(Names ends, const std::string& tag) {
    skip_operator(":");
    expect_block_end();
    return parse_body(ends, tag);
  }

  static StmtPtr make_stmt(StmtKind kind, int line) {
    auto stmt = std::make_unique<Stmt>();
    stmt->kind = kind;
    stmt->line = line;
    return stmt;
  }

  void parse_statement(Body& body, const std::string& outer, Names ends) {
    if (current().kind != TokenKind::kName) error("tag name expected", line());
    const std::string tag = current().text;
    if (tag == "print") {
      parse_print(body);
    } else if (tag == "for") {
      body.push_back(parse_for());
    } else if (tag == "if") {
      body.push_back(parse_if());
    } else if (tag == "set") {
      body.push_back(parse_set());
    } else if (tag == "macro") {
      body.push_back(parse_macro());
    } else if (tag == "call") {
      body.push_back(parse_call_block());
    } else if (tag == "filter") {
      body.push_back(parse_filter_block());
    } else if (tag == "with") {
      body.push_back(parse_with());
    } else if (tag == "generation") {
      auto stmt = make_stmt(StmtKind::kGeneration, next().line);
      stmt->body = parse_function_body({"endgeneration"}, tag);
      next();
      body.push_back(std::move(stmt));
    } else if (tag == "break" || tag == "continue") {
      if (loops_ == 0) error(fmt::format("'{}' outside of a loop", tag), line());
      body.push_back(
          make_stmt(tag == "break" ? StmtKind::kBreak : StmtKind::kContinue, next().line));
    } else if (std::find(kUnsupportedTags.begin(), kUnsupportedTags.end(), tag) !=
               kUnsupportedTags.end()) {
      error(fmt::format("the tag '{}' is not supported; a chat template is one self-contained file",
                        tag),
            line());
    } else {
      std::string message = fmt::format("unknown tag '{}'", tag);
      if (ends.size() != 0) {
        message +=
            fmt::format("; '{}' must be closed with '{}'", outer,
                        fmt::join(std::vector<std::string>(ends.begin(), ends.end()), "' or '"));
      }
      error(message, line());
    }
  }

  // A body that Python makes a function of: `break` cannot leave it.
  Body parse_function_body(Names ends, const std::string& tag) {
    const int outer = loops_;
    loops_ = 0;
    Body body = parse_block(ends, tag);
    loops_ = outer;
    return body;
  }

  void parse_print(Body& body) {
    next();
    bool first = true;
    while (current().kind != TokenKind::kBlockEnd) {
      if (!first) expect_operator(",");
      first = false;
      auto stmt = make_stmt(StmtKind::kOutput, line());
      stmt->expr = parse_expression();
      body.push_back(std::move(stmt));
    }
  }

  StmtPtr parse_for() {
    auto stmt = make_stmt(StmtKind::kFor, next().line);
    const int outer_stores = loop_stores_;
    stmt->target = parse_target({"in"});
    expect_keyword("in");
    stmt->expr = parse_tuple(false, {"recursive"});
    if (skip_name("if")) stmt->condition = parse_expression();
    stmt->is_recursive = skip_name("recursive");
    const int outer_loops = loops_;
    const int body_loads = loop_loads_;
    // A recursive loop is a function of its own, but its body is still inside the loop.
    loops_ = stmt->is_recursive ? 1 : loops_ + 1;
    stmt->body = parse_block({"else", "endfor"}, "for");
    stmt->uses_loop = stmt->is_recursive || loop_loads_ != body_loads;
    loops_ = stmt->is_recursive ? 0 : outer_loops;
    if (next().text == "else") {
      stmt->has_else = true;
      stmt->else_body = parse_block({"endfor"}, "for");
      next();
    }
    loops_ = outer_loops;
    if (loop_stores_ != outer_stores) {
      error("can't assign to the special variable 'loop' inside a loop", stmt->line);
    }
    return stmt;
  }

  StmtPtr parse_if() {
    auto stmt = make_stmt(StmtKind::kIf, next().line);
    for (;;) {
      ExprPtr condition = parse_tuple(false);
      Body body = parse_block({"elif", "else", "endif"}, "if");
      stmt->branches.emplace_back(std::move(condition), std::move(body));
      const std::string end = next().text;
      if (end == "elif") continue;
      if (end == "else") {
        stmt->has_else = true;
        stmt->else_body = parse_block({"endif"}, "if");
        next();
      }
      return stmt;
    }
  }

  StmtPtr parse_set() {
    auto stmt = make_stmt(StmtKind::kSet, next().line);
    stmt->target = parse_target({}, true);
    if (skip_operator("=")) {
      stmt->expr = parse_tuple();
      return stmt;
    }
    stmt->kind = StmtKind::kSetBlock;
    stmt->expr = parse_filters(nullptr, false);
    stmt->body = parse_block({"endset"}, "set");
    next();
    return stmt;
  }

  void parse_signature(Stmt& stmt) {
    expect_operator("(");
    while (!is_operator(")")) {
      if (!stmt.parameters.empty()) expect_operator(",");
      Parameter parameter;
      parameter.line = line();
      parameter.name = expect_assignable_name();
      if (skip_operator("=")) {
        parameter.default_value = parse_expression();
      } else if (!stmt.parameters.empty() && stmt.parameters.back().default_value) {
        error("non-default argument follows default argument", line());
      }
      for (const Parameter& other : stmt.parameters) {
        if (other.name == parameter.name) {
          error(fmt::format("duplicate argument '{}' in function definition", parameter.name),
                line());
        }
      }
      if (parameter.name == "caller") {
        if (!parameter.default_value) {
          error("the special argument 'caller' must be omitted or given a default", line());
        }
        stmt.has_caller_parameter = true;
      }
      stmt.parameters.push_back(std::move(parameter));
    }
    expect_operator(")");
  }

  std::string expect_assignable_name() {
    const int here = line();
    std::string name = expect_name();
    if (is_constant_name(name)) error(fmt::format("can't assign to '{}'", name), here);
    return name;
  }

  StmtPtr parse_macro() {
    auto stmt = make_stmt(StmtKind::kMacro, next().line);
    stmt->text = expect_assignable_name();
    parse_signature(*stmt);
    stmt->body = parse_function_body({"endmacro"}, "macro");
    next();
    return stmt;
  }

  StmtPtr parse_call_block() {
    auto stmt = make_stmt(StmtKind::kCallBlock, next().line);
    if (is_operator("(")) parse_signature(*stmt);
    stmt->expr = parse_expression();
    if (stmt->expr->kind != ExprKind::kCall) error("expected call", stmt->line);
    stmt->body = parse_function_body({"endcall"}, "call");
    next();
    return stmt;
  }

  StmtPtr parse_filter_block() {
    auto stmt = make_stmt(StmtKind::kFilterBlock, next().line);
    stmt->expr = parse_filters(nullptr, true);
    stmt->body = parse_block({"endfilter"}, "filter");
    next();
    return stmt;
  }

  StmtPtr parse_with() {
    auto stmt = make_stmt(StmtKind::kWith, next().line);
    while (current().kind != TokenKind::kBlockEnd) {
      if (!stmt->bindings.empty()) expect_operator(",");
      ExprPtr target = parse_target({});
      expect_operator("=");
      ExprPtr value = parse_expression();
      stmt->bindings.emplace_back(std::move(target), std::move(value));
    }
    stmt->body = parse_block({"endwith"}, "with");
    next();
    return stmt;
  }

  // ---- targets of assignments

  ExprPtr parse_target(Names ends, bool with_namespace = false) {
    ExprPtr target = parse_tuple(true, ends, false, true, with_namespace);
    check_target(*target);
    return target;
  }

  void check_target(const Expr& target) {
    switch (target.kind) {
      case ExprKind::kName:
        if (target.name == "loop") ++loop_stores_;
        return;
      case ExprKind::kNamespaceRef:
        return;
      case ExprKind::kTuple:
        for (const ExprPtr& item : target.operands) check_target(*item);
        return;
      default:
        error("can't assign to this expression", target.line);
    }
  }

  // ---- expressions

  bool is_tuple_end(Names ends) const {
    if (current().kind == TokenKind::kVariableEnd || current().kind == TokenKind::kBlockEnd ||
        is_operator(")")) {
      return true;
    }
    return current().kind == TokenKind::kName &&
           std::find(ends.begin(), ends.end(), current().text) != ends.end();
  }

  // An expression, or a tuple if commas follow. `is_target`: names and literals alone.
  ExprPtr parse_tuple(bool with_conditional = true, Names ends = {}, bool is_parenthesized = false,
                      bool is_target = false, bool with_namespace = false) {
    int here = line();
    std::vector<ExprPtr> items;
    bool is_tuple = false;
    for (;;) {
      if (!items.empty()) expect_operator(",");
      if (is_tuple_end(ends)) break;
      items.push_back(is_target ? parse_primary(with_namespace)
                                : parse_expression(with_conditional));
      if (!is_operator(",")) break;
      is_tuple = true;
      here = line();
    }
    if (!is_tuple) {
      if (!items.empty()) return std::move(items.front());
      if (!is_parenthesized) {
        error(fmt::format("expected an expression, got '{}'", describe(current())), line());
      }
    }
    ExprPtr expr = make(ExprKind::kTuple, here);
    expr->operands = std::move(items);
    return finish(std::move(expr));
  }

  ExprPtr parse_expression(bool with_conditional = true) {
    Nesting nesting(*this);
    return with_conditional ? parse_conditional() : parse_or();
  }

  ExprPtr parse_conditional() {
    int here = line();
    ExprPtr value = parse_or();
    while (skip_name("if")) {
      ExprPtr condition = parse_or();
      ExprPtr alternative;
      if (skip_name("else")) {
        Nesting nesting(*this);
        alternative = parse_conditional();
      }
      value = make_with(ExprKind::kConditional, here, std::move(condition), std::move(value),
                        std::move(alternative));
      here = line();
    }
    return value;
  }

  ExprPtr parse_or() {
    int here = line();
    ExprPtr left = parse_and();
    while (skip_name("or")) {
      left = make_with(ExprKind::kOr, here, std::move(left), parse_and());
      here = line();
    }
    return left;
  }

  ExprPtr parse_and() {
    int here = line();
    ExprPtr left = parse_not();
    while (skip_name("and")) {
      left = make_with(ExprKind::kAnd, here, std::move(left), parse_not());
      here = line();
    }
    return left;
  }

  ExprPtr parse_not() {
    if (!is_name("not")) return parse_compare();
    Nesting nesting(*this);
    const int here = next().line;
    return make_with(ExprKind::kNot, here, parse_not());
  }

  bool skip_comparison(Comparison& comparison) {
    if (current().kind == TokenKind::kOperator) {
      const std::string& symbol = current().text;
      if (symbol == "==")
        comparison = Comparison::kEqual;
      else if (symbol == "!=")
        comparison = Comparison::kNotEqual;
      else if (symbol == "<")
        comparison = Comparison::kLess;
      else if (symbol == "<=")
        comparison = Comparison::kLessEqual;
      else if (symbol == ">")
        comparison = Comparison::kGreater;
      else if (symbol == ">=")
        comparison = Comparison::kGreaterEqual;
      else
        return false;
      next();
      return true;
    }
    if (skip_name("in")) {
      comparison = Comparison::kIn;
      return true;
    }
    if (is_name("not") && look().is_name("in")) {
      next();
      next();
      comparison = Comparison::kNotIn;
      return true;
    }
    return false;
  }

  ExprPtr parse_compare() {
    const int here = line();
    ExprPtr first = parse_sum();
    Comparison comparison{};
    if (!skip_comparison(comparison)) return first;
    ExprPtr expr = make(ExprKind::kCompare, here);
    expr->operands.push_back(std::move(first));
    do {
      expr->comparisons.push_back(comparison);
      expr->operands.push_back(parse_sum());
    } while (skip_comparison(comparison));
    return finish(std::move(expr));
  }

  ExprPtr make_binary(BinaryOp op, int here, ExprPtr left, ExprPtr right) const {
    ExprPtr expr = make_with(ExprKind::kBinary, here, std::move(left), std::move(right));
    expr->op = op;
    return expr;
  }

  ExprPtr parse_sum() {
    int here = line();
    ExprPtr left = parse_concat();
    while (is_operator("+") || is_operator("-")) {
      const BinaryOp op = next().text == "+" ? BinaryOp::kAdd : BinaryOp::kSub;
      left = make_binary(op, here, std::move(left), parse_concat());
      here = line();
    }
    return left;
  }

  ExprPtr parse_concat() {
    const int here = line();
    ExprPtr first = parse_product();
    if (!is_operator("~")) return first;
    ExprPtr expr = make(ExprKind::kConcat, here);
    expr->operands.push_back(std::move(first));
    while (skip_operator("~")) expr->operands.push_back(parse_product());
    return finish(std::move(expr));
  }

  ExprPtr parse_product() {
    int here = line();
    ExprPtr left = parse_power();
    while (is_operator("*") || is_operator("/") || is_operator("//") || is_operator("%")) {
      const std::string symbol = next().text;
      const BinaryOp op = symbol == "*"    ? BinaryOp::kMul
                          : symbol == "/"  ? BinaryOp::kDiv
                          : symbol == "//" ? BinaryOp::kFloorDiv
                                           : BinaryOp::kMod;
      left = make_binary(op, here, std::move(left), parse_power());
      here = line();
    }
    return left;
  }

  ExprPtr parse_power() {
    int here = line();
    ExprPtr left = parse_unary();
    while (skip_operator("**")) {
      left = make_binary(BinaryOp::kPow, here, std::move(left), parse_unary());
      here = line();
    }
    return left;
  }

  ExprPtr parse_unary(bool with_filters = true) {
    Nesting nesting(*this);
    const int here = line();
    ExprPtr expr;
    if (skip_operator("-")) {
      expr = make_with(ExprKind::kNegate, here, parse_unary(false));
    } else if (skip_operator("+")) {
      expr = make_with(ExprKind::kPositive, here, parse_unary(false));
    } else {
      expr = parse_primary();
    }
    expr = parse_postfix(std::move(expr));
    return with_filters ? parse_filters_and_tests(std::move(expr)) : std::move(expr);
  }

  ExprPtr parse_primary(bool with_namespace = false) {
    const Token token = current();
    switch (token.kind) {
      case TokenKind::kName:
        return parse_name(token, with_namespace);
      case TokenKind::kString: {
        std::string text;
        while (current().kind == TokenKind::kString) text += next().text;
        return make_constant(Value::string(std::move(text)), token.line);
      }
      case TokenKind::kInteger:
        next();
        return make_constant(Value::integer(token.integer), token.line);
      case TokenKind::kFloat:
        next();
        return make_constant(Value::real(token.real), token.line);
      case TokenKind::kOperator:
        if (token.text == "(") {
          next();
          Nesting nesting(*this);
          ExprPtr expr = parse_tuple(true, {}, true);
          expect_operator(")");
          return expr;
        }
        if (token.text == "[") return parse_list();
        if (token.text == "{") return parse_dict();
        break;
      default:
        break;
    }
    error(fmt::format("unexpected '{}'", describe(token)), token.line);
  }

  ExprPtr parse_name(const Token& token, bool with_namespace) {
    next();
    if (is_constant_name(token.text)) {
      const char first = static_cast<char>(token.text[0] | 0x20);
      return make_constant(first == 'n' ? Value::none() : Value::boolean(first == 't'), token.line);
    }
    if (with_namespace && skip_operator(".")) {
      ExprPtr expr = make(ExprKind::kNamespaceRef, token.line);
      expr->name = token.text;
      expr->attribute = expect_name();
      return expr;
    }
    ExprPtr expr = make(ExprKind::kName, token.line);
    expr->name = token.text;
    if (expr->name == "loop") ++loop_loads_;
    return expr;
  }

  ExprPtr parse_list() {
    ExprPtr expr = make(ExprKind::kList, next().line);
    while (!is_operator("]")) {
      if (!expr->operands.empty()) expect_operator(",");
      if (is_operator("]")) break;
      expr->operands.push_back(parse_expression());
    }
    expect_operator("]");
    return finish(std::move(expr));
  }

  ExprPtr parse_dict() {
    ExprPtr expr = make(ExprKind::kDict, next().line);
    while (!is_operator("}")) {
      if (!expr->operands.empty()) expect_operator(",");
      if (is_operator("}")) break;
      expr->operands.push_back(parse_expression());
      expect_operator(":");
      expr->operands.push_back(parse_expression());
    }
    expect_operator("}");
    return finish(std::move(expr));
  }

  ExprPtr parse_postfix(ExprPtr expr) {
    for (;;) {
      if (is_operator(".") || is_operator("[")) {
        expr = parse_subscript(std::move(expr));
      } else if (is_operator("(")) {
        expr = parse_call(std::move(expr));
      } else {
        return expr;
      }
    }
  }

  ExprPtr parse_filters_and_tests(ExprPtr expr) {
    for (;;) {
      if (is_operator("|")) {
        expr = parse_filters(std::move(expr), false);
      } else if (is_name("is")) {
        expr = parse_test(std::move(expr));
      } else if (is_operator("(")) {
        expr = parse_call(std::move(expr));
      } else {
        return expr;
      }
    }
  }

  ExprPtr parse_subscript(ExprPtr object) {
    const Token token = next();
    if (token.text == ".") {
      const Token attribute = next();
      if (attribute.kind == TokenKind::kName) {
        ExprPtr expr = make_with(ExprKind::kAttribute, token.line, std::move(object));
        expr->name = attribute.text;
        return expr;
      }
      if (attribute.kind != TokenKind::kInteger) error("expected name or number", attribute.line);
      return make_with(ExprKind::kItem, token.line, std::move(object),
                       make_constant(Value::integer(attribute.integer), attribute.line));
    }
    std::vector<ExprPtr> items;
    bool has_slice = false;
    while (!is_operator("]")) {
      if (!items.empty()) expect_operator(",");
      items.push_back(parse_subscript_item());
      // A slice of something else, as in x[y[1:2]], has its sequence already.
      has_slice =
          has_slice || (items.back()->kind == ExprKind::kSlice && !items.back()->operands[0]);
    }
    expect_operator("]");
    if (items.size() == 1) {
      if (!has_slice)
        return make_with(ExprKind::kItem, token.line, std::move(object), std::move(items.front()));
      ExprPtr expr = std::move(items.front());
      expr->operands.front() = std::move(object);
      return finish(std::move(expr));
    }
    if (has_slice) error("a slice among several subscripts is not supported", token.line);
    ExprPtr tuple = make(ExprKind::kTuple, token.line);
    tuple->operands = std::move(items);
    return make_with(ExprKind::kItem, token.line, std::move(object), finish(std::move(tuple)));
  }

  // An index, or a slice whose first operand, the sequence, is still to be set.
  ExprPtr parse_subscript_item() {
    const int here = line();
    ExprPtr start, stop, step;
    if (!is_operator(":")) {
      start = parse_expression();
      if (!is_operator(":")) return start;
    }
    next();
    const auto is_end = [&] { return is_operator("]") || is_operator(","); };
    if (!is_operator(":") && !is_end()) stop = parse_expression();
    if (skip_operator(":") && !is_end()) step = parse_expression();
    return make_with(ExprKind::kSlice, here, ExprPtr(), std::move(start), std::move(stop),
                     std::move(step));
  }

  Arguments parse_arguments() {
    const int here = line();
    expect_operator("(");
    Arguments arguments;
    bool needs_comma = false;
    const auto ensure = [&](bool is_valid) {
      if (!is_valid) error("invalid syntax for function call expression", here);
    };
    while (!is_operator(")")) {
      if (needs_comma) {
        expect_operator(",");
        if (is_operator(")")) break;
      }
      if (skip_operator("*")) {
        ensure(!arguments.more_positional && !arguments.more_named);
        arguments.more_positional = parse_expression();
      } else if (skip_operator("**")) {
        ensure(!arguments.more_named);
        arguments.more_named = parse_expression();
      } else if (current().kind == TokenKind::kName && look().is_operator("=")) {
        ensure(!arguments.more_named);
        std::string name = next().text;
        next();
        for (const auto& [other, value] : arguments.named) {
          if (other == name) error(fmt::format("keyword argument repeated: {}", name), line());
        }
        arguments.named.emplace_back(std::move(name), parse_expression());
      } else {
        ensure(!arguments.more_positional && !arguments.more_named && arguments.named.empty());
        arguments.positional.push_back(parse_expression());
      }
      needs_comma = true;
    }
    expect_operator(")");
    return arguments;
  }

  ExprPtr parse_call(ExprPtr callee) {
    ExprPtr expr = make(ExprKind::kCall, line());
    expr->arguments = parse_arguments();
    expr->operands.push_back(std::move(callee));
    return finish(std::move(expr));
  }

  std::string parse_dotted_name() {
    std::string name = expect_name();
    while (skip_operator(".")) name += "." + expect_name();
    return name;
  }

  ExprPtr parse_filters(ExprPtr subject, bool is_started) {
    while (is_operator("|") || is_started) {
      if (!is_started) next();
      is_started = false;
      ExprPtr expr = make(ExprKind::kFilter, line());
      expr->name = parse_dotted_name();
      if (is_operator("(")) expr->arguments = parse_arguments();
      expr->operands.push_back(std::move(subject));
      subject = finish(std::move(expr));
    }
    return subject;
  }

  ExprPtr parse_test(ExprPtr subject) {
    const int here = next().line;
    const bool is_negated = skip_name("not");
    ExprPtr expr = make(ExprKind::kTest, here);
    expr->name = parse_dotted_name();
    const TokenKind kind = current().kind;
    if (is_operator("(")) {
      expr->arguments = parse_arguments();
    } else if ((kind == TokenKind::kName || kind == TokenKind::kString ||
                kind == TokenKind::kInteger || kind == TokenKind::kFloat || is_operator("[") ||
                is_operator("{")) &&
               !is_name("else") && !is_name("or") && !is_name("and")) {
      if (is_name("is")) error("you cannot chain multiple tests with is", line());
      ExprPtr argument = parse_primary();
      expr->arguments.positional.push_back(parse_postfix(std::move(argument)));
    }
    expr->operands.push_back(std::move(subject));
    expr = finish(std::move(expr));
    return is_negated ? make_with(ExprKind::kNot, here, std::move(expr)) : std::move(expr);
  }

  std::vector<Token> tokens_;
  size_t pos_ = 0;
  int nesting_ = 0;
  int loops_ = 0;                         // around this place, within its function
  int loop_loads_ = 0, loop_stores_ = 0;  // of the variable `loop`, so far
};

}  // namespace

std::shared_ptr<const Template> parse_template(std::string source, std::string name) {
  auto parsed = std::make_shared<Template>();
  parsed->name = std::move(name);
  parsed->source = std::move(source);
  parsed->body = Parser(parsed->source).parse();
  resolve(*parsed);
  return parsed;
}

}  // namespace gradus::data::jinja
