// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <set>

#include "data/internal/jinja/parser.h"
#include "data/internal/jinja/runtime.h"

namespace gradus::data::jinja {
namespace {

// What one scope knows of its names. Jinja compiles a template to Python; the variable of a name in
// a scope at some level is the Python variable (level, name), and scopes of equal level within one
// function share it. The rules below are that compiler's, so that templates which read a name
// before they set it agree too.
struct Symbols {
  enum class Load { kParameter, kResolve, kAlias, kUnset };
  struct Entry {
    Load load = Load::kUnset;
    std::string name;
    Slot source;
  };

  Symbols* parent = nullptr;
  int level = 0;
  std::shared_ptr<FunctionScope> function;
  std::map<std::string, int> refs;  // name -> slot of `function`
  std::map<int, Entry> loads;
  std::set<std::string> stores;

  int define(const std::string& name, Entry entry) {
    const std::string variable = fmt::format("{} {}", level, name);
    const int index = function->slots.emplace(variable, function->num_slots()).first->second;
    refs[name] = index;
    loads[index] = std::move(entry);
    return index;
  }

  // The slot of `name` here or further out, seen from function `from`; index -1 if there is none.
  Slot find(const std::string& name, const FunctionScope& from) const {
    for (const Symbols* symbols = this; symbols != nullptr; symbols = symbols->parent) {
      const auto found = symbols->refs.find(name);
      if (found != symbols->refs.end()) {
        return {from.level - symbols->function->level, found->second};
      }
    }
    return {};
  }
  Slot find_outer(const std::string& name) const {
    return parent == nullptr ? Slot{} : parent->find(name, *function);
  }

  void load(const std::string& name) {
    if (find(name, *function).index < 0) define(name, {Load::kResolve, name, {}});
  }
  void store(const std::string& name) {
    stores.insert(name);
    if (refs.count(name) != 0) return;
    const Slot outer = find_outer(name);
    define(name,
           outer.index >= 0 ? Entry{Load::kAlias, name, outer} : Entry{Load::kUnset, name, {}});
  }
  int declare_parameter(const std::string& name) {
    stores.insert(name);
    return define(name, {Load::kParameter, name, {}});
  }

  // Joins what the branches of an `if` did.
  void merge(const std::vector<Symbols>& branches) {
    std::set<std::string> new_stores;
    for (const Symbols& branch : branches)
      new_stores.insert(branch.stores.begin(), branch.stores.end());
    for (const std::string& name : stores) new_stores.erase(name);
    for (const Symbols& branch : branches) {
      for (const auto& [name, index] : branch.refs) refs[name] = index;
      for (const auto& [index, entry] : branch.loads) loads[index] = entry;
      stores.insert(branch.stores.begin(), branch.stores.end());
    }
    for (const std::string& name : new_stores) {
      const Slot outer = find_outer(name);
      loads[refs.at(name)] =
          outer.index >= 0 ? Entry{Load::kAlias, name, outer} : Entry{Load::kResolve, name, {}};
    }
  }

  std::vector<ScopeLoad> scope_loads() const {
    std::vector<ScopeLoad> out;
    for (const auto& [index, entry] : loads) {
      switch (entry.load) {
        case Load::kParameter:
          break;
        case Load::kResolve:
          out.push_back({ScopeLoad::Kind::kResolve, index, entry.name, {}});
          break;
        case Load::kAlias:
          out.push_back({ScopeLoad::Kind::kAlias, index, entry.name, entry.source});
          break;
        case Load::kUnset:
          out.push_back({ScopeLoad::Kind::kUnset, index, entry.name, {}});
          break;
      }
    }
    return out;
  }
};

template <class Visit>
void visit_arguments(Arguments& arguments, const Visit& visit) {
  for (ExprPtr& argument : arguments.positional) visit(*argument);
  for (auto& [name, argument] : arguments.named) visit(*argument);
  if (arguments.more_positional) visit(*arguments.more_positional);
  if (arguments.more_named) visit(*arguments.more_named);
}

template <class Visit>
void visit_children(Expr& expr, const Visit& visit) {
  for (ExprPtr& operand : expr.operands) {
    if (operand) visit(*operand);
  }
  visit_arguments(expr.arguments, visit);
}

// Which of `names` a body reads before it sets them.
class FreeNames {
 public:
  explicit FreeNames(std::set<std::string> names) : names_(std::move(names)) {}

  bool is_read(const std::string& name) const { return read_.count(name) != 0; }

  void visit(Body& body) {
    for (StmtPtr& stmt : body) visit(*stmt);
  }

 private:
  void visit(Expr& expr) {
    if (expr.kind == ExprKind::kName && names_.count(expr.name) != 0) read_.insert(expr.name);
    visit_children(expr, [this](Expr& child) { visit(child); });
  }
  void set(Expr& target) {
    if (target.kind == ExprKind::kName) names_.erase(target.name);
    for (ExprPtr& item : target.operands) set(*item);
  }
  void visit(Stmt& stmt) {
    if (stmt.kind == StmtKind::kCallBlock) visit(*stmt.expr);
    if (stmt.target) set(*stmt.target);
    for (auto& [target, value] : stmt.bindings) set(*target);
    for (auto& [target, value] : stmt.bindings) visit(*value);
    for (Parameter& parameter : stmt.parameters) names_.erase(parameter.name);
    for (Parameter& parameter : stmt.parameters) {
      if (parameter.default_value) visit(*parameter.default_value);
    }
    if (stmt.expr && stmt.kind != StmtKind::kCallBlock && stmt.kind != StmtKind::kFilterBlock) {
      visit(*stmt.expr);
    }
    for (auto& [condition, body] : stmt.branches) {
      visit(*condition);
      visit(body);
    }
    visit(stmt.body);
    visit(stmt.else_body);
    if (stmt.condition) visit(*stmt.condition);
    if (stmt.kind == StmtKind::kFilterBlock) visit(*stmt.expr);
  }

  std::set<std::string> names_;
  std::set<std::string> read_;
};

// Enters the names of a scope's statements into its symbols; scopes inside it are left alone.
class Analysis {
 public:
  explicit Analysis(Symbols& symbols) : symbols_(&symbols) {}

  void expression(Expr& expr) {
    if (expr.kind == ExprKind::kName || expr.kind == ExprKind::kNamespaceRef)
      symbols_->load(expr.name);
    visit_children(expr, [this](Expr& child) { expression(child); });
  }
  void target(Expr& expr, bool is_parameter) {
    if (expr.kind == ExprKind::kNamespaceRef) symbols_->load(expr.name);
    if (expr.kind == ExprKind::kName) {
      if (is_parameter) {
        symbols_->declare_parameter(expr.name);
      } else {
        symbols_->store(expr.name);
      }
    }
    for (ExprPtr& item : expr.operands) target(*item, is_parameter);
  }
  void body(Body& statements) {
    for (StmtPtr& stmt : statements) statement(*stmt);
  }

 private:
  Symbols branch(const std::function<void(Analysis&)>& visit) {
    Symbols copy = *symbols_;
    Analysis analysis(copy);
    visit(analysis);
    return copy;
  }

  // The `elif` branches from `first` on, each tested in the scope of all of them.
  void else_ifs(Stmt& stmt, size_t first) {
    for (size_t i = first; i < stmt.branches.size(); ++i) {
      expression(*stmt.branches[i].first);
      symbols_->merge({branch([&](Analysis& inner) { inner.body(stmt.branches[i].second); })});
    }
  }

  void statement(Stmt& stmt) {
    switch (stmt.kind) {
      case StmtKind::kText:
      case StmtKind::kBreak:
      case StmtKind::kContinue:
      case StmtKind::kGeneration:
        return;
      case StmtKind::kOutput:
      case StmtKind::kFor:
      case StmtKind::kCallBlock:
      case StmtKind::kFilterBlock:
        expression(*stmt.expr);
        return;
      case StmtKind::kSet:
        expression(*stmt.expr);
        target(*stmt.target, false);
        return;
      case StmtKind::kSetBlock:
        target(*stmt.target, false);
        return;
      case StmtKind::kMacro:
        symbols_->store(stmt.text);
        return;
      case StmtKind::kWith:
        for (auto& [name, value] : stmt.bindings) expression(*value);
        return;
      case StmtKind::kIf: {
        expression(*stmt.branches.front().first);
        std::vector<Symbols> branches;
        branches.push_back(
            branch([&](Analysis& inner) { inner.body(stmt.branches.front().second); }));
        branches.push_back(branch([&](Analysis& inner) { inner.else_ifs(stmt, 1); }));
        branches.push_back(branch([&](Analysis& inner) { inner.body(stmt.else_body); }));
        symbols_->merge(branches);
        return;
      }
    }
  }

  Symbols* symbols_;
};

// Writes slots into the tree. `is_soft`: directly inside an `if`, where jinja leaves an unknown
// filter to be found missing when it is used.
class Binder {
 public:
  void function_body(Symbols& symbols, Body& statements) { body(symbols, statements, false); }

  ExprPtr clone_target(const Expr& target) {
    auto copy = std::make_unique<Expr>();
    copy->kind = target.kind;
    copy->line = target.line;
    copy->name = target.name;
    for (const ExprPtr& item : target.operands) copy->operands.push_back(clone_target(*item));
    return copy;
  }

 private:
  static Symbols inner(Symbols& outer, std::shared_ptr<FunctionScope> function) {
    Symbols symbols;
    symbols.parent = &outer;
    symbols.level = outer.level + 1;
    symbols.function = std::move(function);
    return symbols;
  }
  static std::shared_ptr<FunctionScope> new_function(const Symbols& outer) {
    auto function = std::make_shared<FunctionScope>();
    function->level = outer.function->level + 1;
    return function;
  }

  void body(Symbols& symbols, Body& statements, bool is_soft) {
    for (StmtPtr& stmt : statements) statement(symbols, *stmt, is_soft);
  }

  void expression(Symbols& symbols, Expr& expr, bool is_soft) {
    if (expr.kind == ExprKind::kConditional) is_soft = true;
    if (expr.kind == ExprKind::kName || expr.kind == ExprKind::kNamespaceRef) {
      expr.slot = symbols.find(expr.name, *symbols.function);
    } else if (expr.kind == ExprKind::kFilter) {
      expr.filter = find_filter(expr.name);
      if (expr.filter == nullptr && !is_soft) {
        throw TemplateError{fmt::format("unknown or unsupported filter '{}'", expr.name),
                            expr.line};
      }
    } else if (expr.kind == ExprKind::kTest) {
      expr.test = find_test(expr.name);
      if (expr.test == nullptr && !is_soft) {
        throw TemplateError{fmt::format("unknown or unsupported test '{}'", expr.name), expr.line};
      }
    }
    visit_children(expr, [&](Expr& child) { expression(symbols, child, is_soft); });
  }

  // Parameters and body of a macro, call block or generation block.
  void function(Symbols& outer, Stmt& stmt) {
    stmt.function = new_function(outer);
    Symbols symbols = inner(outer, stmt.function);
    Analysis analysis(symbols);
    FreeNames free({"caller", "kwargs", "varargs"});
    free.visit(stmt.body);
    std::set<std::string> own;
    for (Parameter& parameter : stmt.parameters) {
      own.insert(parameter.name);
      symbols.declare_parameter(parameter.name);
    }
    for (Parameter& parameter : stmt.parameters) {
      if (parameter.default_value) analysis.expression(*parameter.default_value);
    }
    analysis.body(stmt.body);
    stmt.uses_caller = free.is_read("caller");
    stmt.uses_kwargs = free.is_read("kwargs") && own.count("kwargs") == 0;
    stmt.uses_varargs = free.is_read("varargs") && own.count("varargs") == 0;
    if (stmt.uses_caller && own.count("caller") == 0)
      stmt.caller_slot = symbols.declare_parameter("caller");
    if (stmt.uses_kwargs) stmt.kwargs_slot = symbols.declare_parameter("kwargs");
    if (stmt.uses_varargs) stmt.varargs_slot = symbols.declare_parameter("varargs");
    stmt.loads = symbols.scope_loads();
    for (Parameter& parameter : stmt.parameters) {
      parameter.slot = symbols.find(parameter.name, *symbols.function);
      if (parameter.default_value) expression(symbols, *parameter.default_value, false);
    }
    body(symbols, stmt.body, false);
  }

  void loop(Symbols& outer, Stmt& stmt, bool is_soft) {
    if (stmt.condition) {
      stmt.filter_function = new_function(outer);
      stmt.filter_target = clone_target(*stmt.target);
      Symbols symbols = inner(outer, stmt.filter_function);
      Analysis analysis(symbols);
      analysis.target(*stmt.filter_target, true);
      analysis.expression(*stmt.condition);
      stmt.filter_loads = symbols.scope_loads();
      target(symbols, *stmt.filter_target);
      expression(symbols, *stmt.condition, false);
    }
    expression(outer, *stmt.expr, is_soft);
    if (stmt.is_recursive) stmt.function = new_function(outer);
    const std::shared_ptr<FunctionScope> function =
        stmt.is_recursive ? stmt.function : outer.function;
    Symbols symbols = inner(outer, function);
    if (stmt.uses_loop) stmt.loop_slot = symbols.declare_parameter("loop");
    Analysis analysis(symbols);
    analysis.target(*stmt.target, true);
    analysis.body(stmt.body);
    stmt.loads = symbols.scope_loads();
    target(symbols, *stmt.target);
    body(symbols, stmt.body, false);
    if (stmt.has_else) {
      Symbols else_symbols = inner(outer, function);
      Analysis(else_symbols).body(stmt.else_body);
      stmt.else_loads = else_symbols.scope_loads();
      body(else_symbols, stmt.else_body, false);
    }
  }

  void target(Symbols& symbols, Expr& expr) {
    if (expr.kind != ExprKind::kTuple) expr.slot = symbols.find(expr.name, *symbols.function);
    for (ExprPtr& item : expr.operands) target(symbols, *item);
  }

  void statement(Symbols& symbols, Stmt& stmt, bool is_soft) {
    switch (stmt.kind) {
      case StmtKind::kText:
      case StmtKind::kBreak:
      case StmtKind::kContinue:
        return;
      case StmtKind::kOutput:
        expression(symbols, *stmt.expr, is_soft);
        return;
      case StmtKind::kIf:
        for (auto& [condition, statements] : stmt.branches) {
          expression(symbols, *condition, true);
          body(symbols, statements, true);
        }
        body(symbols, stmt.else_body, true);
        return;
      case StmtKind::kFor:
        loop(symbols, stmt, is_soft);
        return;
      case StmtKind::kSet:
        expression(symbols, *stmt.expr, is_soft);
        target(symbols, *stmt.target);
        return;
      case StmtKind::kMacro:
        function(symbols, stmt);
        stmt.slot = symbols.find(stmt.text, *symbols.function);
        return;
      case StmtKind::kCallBlock:
        expression(symbols, *stmt.expr, is_soft);
        function(symbols, stmt);
        return;
      case StmtKind::kGeneration:
        function(symbols, stmt);
        return;
      case StmtKind::kSetBlock:
      case StmtKind::kFilterBlock:
      case StmtKind::kWith:
        scoped_block(symbols, stmt, is_soft);
        return;
    }
  }

  void scoped_block(Symbols& outer, Stmt& stmt, bool is_soft) {
    Symbols symbols = inner(outer, outer.function);
    Analysis analysis(symbols);
    for (auto& [name, value] : stmt.bindings) {
      analysis.target(*name, true);
      expression(outer, *value, is_soft);
    }
    analysis.body(stmt.body);
    if (stmt.expr) analysis.expression(*stmt.expr);
    stmt.loads = symbols.scope_loads();
    for (auto& [name, value] : stmt.bindings) target(symbols, *name);
    if (stmt.expr) expression(symbols, *stmt.expr, false);
    body(symbols, stmt.body, false);
    if (stmt.target) target(outer, *stmt.target);
  }
};

}  // namespace

void resolve(Template& parsed) {
  Symbols symbols;
  parsed.function = std::make_shared<FunctionScope>();
  symbols.function = parsed.function;
  Analysis(symbols).body(parsed.body);
  parsed.loads = symbols.scope_loads();
  Binder().function_body(symbols, parsed.body);
}

}  // namespace gradus::data::jinja
