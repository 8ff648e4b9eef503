// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "data/internal/jinja/value.h"

// The tree of a template. Names are resolved to slots before it is run (scope.h).
namespace gradus::data::jinja {

class Interpreter;
struct CallArguments;
using FilterFunction = Value (*)(Interpreter&, const Value& subject, CallArguments& arguments);
using TestFunction = bool (*)(Interpreter&, const Value& subject, CallArguments& arguments);

// Where a variable lives: `hops` functions outward, then the slot there.
struct Slot {
  int hops = 0;
  int index = -1;
};

enum class ExprKind {
  kConst,
  kName,
  kNamespaceRef,  // target `name.attribute` of a set
  kTuple,
  kList,
  kDict,  // operands: key, value, key, value, ...
  kBinary,
  kNegate,
  kPositive,
  kNot,
  kAnd,
  kOr,
  kConcat,
  kCompare,      // operands: one more than `comparisons`
  kConditional,  // operands: condition, value, alternative (may be null)
  kAttribute,
  kItem,
  kSlice,  // operands: sequence, start, stop, step (each of the last three may be null)
  kCall,   // operands: callee
  kFilter,
  kTest,
};

enum class Comparison {
  kEqual,
  kNotEqual,
  kLess,
  kLessEqual,
  kGreater,
  kGreaterEqual,
  kIn,
  kNotIn
};

struct Expr;
using ExprPtr = std::unique_ptr<Expr>;

struct Arguments {
  std::vector<ExprPtr> positional;
  std::vector<std::pair<std::string, ExprPtr>> named;
  ExprPtr more_positional;  // *expression
  ExprPtr more_named;       // **expression
};

struct Expr {
  ExprKind kind = ExprKind::kConst;
  int line = 0;
  int depth = 1;          // levels below, this one included
  Value value;            // of a constant
  std::string name;       // of a variable, attribute, filter or test
  std::string attribute;  // of a namespace reference
  Slot slot;
  BinaryOp op = BinaryOp::kAdd;
  std::vector<Comparison> comparisons;
  std::vector<ExprPtr> operands;  // of filters and tests: the subject, null in a filter block
  Arguments arguments;
  FilterFunction filter = nullptr;
  TestFunction test = nullptr;
};

// Sets a slot when a scope is entered.
struct ScopeLoad {
  enum class Kind { kResolve, kAlias, kUnset };
  Kind kind = Kind::kUnset;
  int slot = -1;
  std::string name;  // of the template's variable, for kResolve
  Slot source;       // for kAlias
};

// What has slots of its own when called: the template, a macro, a call block, a recursive loop, a
// loop filter.
struct FunctionScope {
  int level = 0;  // of nesting
  std::map<std::string, int> slots;
  int num_slots() const { return static_cast<int>(slots.size()); }
};

enum class StmtKind {
  kText,
  kOutput,
  kIf,
  kFor,
  kSet,
  kSetBlock,
  kMacro,
  kCallBlock,
  kFilterBlock,
  kWith,
  kGeneration,
  kBreak,
  kContinue,
};

struct Stmt;
using StmtPtr = std::unique_ptr<Stmt>;
using Body = std::vector<StmtPtr>;

struct Parameter {
  std::string name;
  int line = 0;
  Slot slot;
  ExprPtr default_value;  // null: none
};

struct Stmt {
  StmtKind kind = StmtKind::kText;
  int line = 0;
  std::string text;  // of kText; name of a macro
  ExprPtr expr;      // output, iterable, value, call or filter
  ExprPtr target;
  ExprPtr filter_target;  // the loop's target once more, inside the function of its filter
  ExprPtr condition;      // of a loop's `if`
  Body body;
  Body else_body;
  bool has_else = false;
  bool is_recursive = false;
  bool uses_loop = false;
  std::vector<std::pair<ExprPtr, Body>> branches;     // of kIf: conditions with bodies
  std::vector<std::pair<ExprPtr, ExprPtr>> bindings;  // of kWith: targets and values
  std::vector<Parameter> parameters;
  bool uses_caller = false, uses_kwargs = false, uses_varargs = false;
  bool has_caller_parameter = false;

  // Filled by resolve().
  std::shared_ptr<FunctionScope> function;         // null unless it is one
  std::shared_ptr<FunctionScope> filter_function;  // of a loop's `if`
  std::vector<ScopeLoad> loads, else_loads, filter_loads;
  Slot slot;  // of a macro's name
  int loop_slot = -1, caller_slot = -1, kwargs_slot = -1, varargs_slot = -1;
};

struct Template {
  std::string name;
  std::string source;
  Body body;
  std::shared_ptr<FunctionScope> function;
  std::vector<ScopeLoad> loads;
};

}  // namespace gradus::data::jinja
