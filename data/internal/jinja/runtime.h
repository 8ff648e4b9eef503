// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ctime>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "data/chat_template.h"
#include "data/internal/jinja/ast.h"
#include "data/internal/jinja/value.h"

// Running a parsed template.
namespace gradus::data::jinja {

// Arguments of a call, filter or test. Filters take theirs by position or name with `take`, then
// `finish`.
struct CallArguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;

  // Names the callee in messages.
  std::string_view callee;
  size_t num_taken = 0;

  // The next parameter, called `name`; missing if not given.
  Value take(std::string_view name);
  Value take(std::string_view name, Value fallback);
  // As take, but must be given.
  Value require(std::string_view name);
  bool take_bool(Interpreter& interpreter, std::string_view name, bool fallback);
  // An error if an argument is left over.
  void finish();
};

// Variables of one call of a function, and where its free variables are.
struct Frame {
  std::shared_ptr<Frame> parent;
  std::vector<Value> slots;
};

struct FunctionObject : Object {
  std::string name;
  std::function<Value(Interpreter&, CallArguments&)> call;
};

struct MacroObject : Object {
  const Stmt* definition = nullptr;
  std::shared_ptr<Frame> closure;
  std::string name;  // empty for a caller
  std::string repr_name() const;
};

// The variable `loop`.
struct LoopObject : Object {
  Interpreter* interpreter = nullptr;
  Value iterable;
  std::shared_ptr<Object> stream;  // IteratorObject over the iterable
  int64_t index0 = -1;
  int64_t known_length = -1;
  int depth0 = 0;
  Value before, current, after;  // missing if not there
  Value last_changed;
  const Stmt* recursive_loop = nullptr;
  std::shared_ptr<Frame> closure;

  bool advance(Value& out);
  bool has_next();
  int64_t length();
};

struct CyclerObject : Object {
  std::vector<Value> items;
  size_t position = 0;
};

struct JoinerObject : Object {
  Value separator;
  bool is_used = false;
};

class Interpreter {
 public:
  Interpreter(const Template& parsed, const RenderOptions& options);
  ~Interpreter();
  Interpreter(const Interpreter&) = delete;
  Interpreter& operator=(const Interpreter&) = delete;

  // The variables of the template.
  void set_variable(const std::string& name, Value value);
  // Renders; throws TemplateError with its line.
  RenderedChat run();

  Budget& budget() { return budget_; }
  const RenderOptions& options() const { return options_; }
  int line() const { return line_; }

  Value attribute(const Value& object, const std::string& name);
  Value item(const Value& object, const Value& index);
  Value call(const Value& callee, CallArguments& arguments);
  Value apply_filter(const std::string& name, const Value& subject, CallArguments arguments);
  bool apply_test(const std::string& name, const Value& subject, CallArguments arguments);
  Value make_namespace();
  // An iterator over any iterable.
  std::shared_ptr<IteratorObject> iterate(const Value& iterable);
  std::string run_recursive(const Stmt& loop, const Value& iterable,
                            const std::shared_ptr<Frame>& closure, int depth0);

 private:
  enum class Flow { kNormal, kBreak, kContinue };
  friend struct LoopFilterIterator;

  Value eval(const Expr& expr);
  Value eval_or_none(const ExprPtr& expr) { return expr ? eval(*expr) : Value::none(); }
  bool eval_compare(const Expr& expr);
  Value eval_filter(const Expr& expr, const Value* block_text);
  Value eval_call(const Expr& expr, const Value* caller);
  CallArguments eval_arguments(const Arguments& arguments, std::string_view callee);
  Value lookup(const Expr& name);
  Value& slot(const Slot& slot);

  Flow exec(const Body& body);
  Flow exec(const Stmt& stmt);
  Flow exec_for(const Stmt& stmt);
  Flow exec_loop(const Stmt& stmt, const Value& iterable, const Stmt* recursive,
                 const std::shared_ptr<Frame>& closure, int depth0);
  void enter(const std::vector<ScopeLoad>& loads);
  void assign(const Expr& target, const Value& value);
  Value filtered(const Stmt& stmt, const Value& iterable, const std::shared_ptr<Frame>& closure);
  Value make_macro(const Stmt& stmt, std::string name);
  Value call_macro(const MacroObject& macro, CallArguments& arguments);
  Value call_method(const Value& self, const std::string& name, CallArguments& arguments);
  void write(const std::string& text);
  // What a filter or call block gave, which jinja does not turn into text.
  void write_block(const Value& value);
  // Keeps a frame that may be part of a circle until the end.
  void keep(const std::shared_ptr<Frame>& frame);
  // Runs `body` with its output caught.
  Flow capture(const Body& body, std::string& out);
  // Runs `action` with `frame` as the current one.
  template <class Action>
  void in_frame(const std::shared_ptr<Frame>& frame, const Action& action);

  const Template& template_;
  RenderOptions options_;
  Budget budget_;
  std::vector<std::pair<std::string, Value>> variables_;
  std::shared_ptr<Frame> frame_;
  std::string* out_ = nullptr;
  RenderedChat result_;
  int line_ = 1;
  // Frames and namespaces can hold each other in circles; the destructor empties them.
  std::vector<std::shared_ptr<Frame>> kept_frames_;
  std::vector<std::shared_ptr<NamespaceObject>> namespaces_;
  std::vector<std::shared_ptr<LoopObject>> loops_;
};

// Null if unknown.
FilterFunction find_filter(std::string_view name);
TestFunction find_test(std::string_view name);
// Missing if unknown. Globals: range, dict, namespace, cycler, joiner, raise_exception,
// strftime_now.
Value find_global(Interpreter& interpreter, std::string_view name);
// Whether Python's object has an attribute of this name, and whether it is one that the sandbox
// forbids.
bool has_method(const Value& object, std::string_view name);
bool is_forbidden_method(const Value& object, std::string_view name);
Value call_builtin_method(Interpreter& interpreter, const Value& self, const std::string& name,
                          CallArguments& arguments);

}  // namespace gradus::data::jinja
