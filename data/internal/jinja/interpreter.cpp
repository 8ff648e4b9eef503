// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>

#include "data/internal/jinja/runtime.h"
#include "data/internal/jinja/text.h"

namespace gradus::data::jinja {
namespace {

// What a message calls an object: "dict object", "None".
std::string object_name(const Value& value) {
  if (value.is_none()) return "None";
  switch (value.type()) {
    case Type::kNamespace:
      return "jinja2.utils.Namespace object";
    case Type::kMacro:
      return "jinja2.runtime.Macro object";
    case Type::kLoop:
      return "jinja2.runtime.LoopContext object";
    default:
      return type_name(value) + " object";
  }
}

bool is_hashable(Budget& budget, const Value& value) {
  budget.step();
  if (value.is(Type::kList) || value.is(Type::kDict)) return false;
  if (!value.is(Type::kTuple)) return true;
  DepthGuard guard(budget);
  return std::all_of(value.items().begin(), value.items().end(),
                     [&](const Value& item) { return is_hashable(budget, item); });
}

Value missing_attribute(const Value& object, const std::string& name) {
  return Value::undefined(
      fmt::format("'{}' has no attribute {}", object_name(object), repr_text(name)));
}

Value unsafe_attribute(const Value& object, const std::string& name) {
  return Value::undefined(
      fmt::format("access to attribute '{}' of '{}' object is unsafe", name, type_name(object)));
}

// Iterates over anything with an index, a stream or keys.
struct SequenceIterator : IteratorObject {
  Budget* budget = nullptr;
  Value source;
  size_t place = 0;  // item, or byte offset of a string

  bool next(Value& out) override {
    switch (source.type()) {
      case Type::kList:
      case Type::kTuple:
        if (place >= source.items().size()) return false;
        out = source.items()[place++];
        return true;
      case Type::kDict:
        if (place >= source.dict().items.size()) return false;
        out = source.dict().items[place++].first;
        return true;
      case Type::kDictView: {
        const auto& view = source.get<DictViewObject>();
        const auto& items = view.dict.dict().items;
        if (place >= items.size()) return false;
        const auto& [key, value] = items[place++];
        out = view.kind == DictViewKind::kKeys     ? key
              : view.kind == DictViewKind::kValues ? value
                                                   : Value::tuple({key, value});
        return true;
      }
      case Type::kString: {
        const std::string& text = source.text();
        if (place >= text.size()) return false;
        const size_t begin = place;
        next_char(text, place);
        out = Value::string(text.substr(begin, place - begin));
        return true;
      }
      case Type::kRange:
        return item_at(source, static_cast<Int>(place++), out);
      default:
        return false;
    }
  }
};

}  // namespace

// What a loop's `if` lets through.
struct LoopFilterIterator : IteratorObject {
  Interpreter* interpreter = nullptr;
  const Stmt* loop = nullptr;
  std::shared_ptr<IteratorObject> source;
  std::shared_ptr<Frame> frame;
  bool is_entered = false;

  bool next(Value& out) override {
    DepthGuard guard(interpreter->budget_);
    for (;;) {
      if (!source->next(out)) return false;
      bool passes = false;
      interpreter->in_frame(frame, [&] {
        if (!is_entered) interpreter->enter(loop->filter_loads);
        is_entered = true;
        interpreter->assign(*loop->filter_target, out);
        passes = truthy(interpreter->budget_, interpreter->eval(*loop->condition));
      });
      if (passes) return true;
    }
  }
};

std::string MacroObject::repr_name() const { return name.empty() ? "anonymous" : repr_text(name); }

Value CallArguments::take(std::string_view name) {
  const size_t place = num_taken++;
  const auto found = std::find_if(named.begin(), named.end(),
                                  [&](const auto& argument) { return argument.first == name; });
  if (place < positional.size()) {
    if (found != named.end())
      fail(fmt::format("{} got multiple values for argument '{}'", callee, name));
    return positional[place];
  }
  if (found == named.end()) return {};
  Value value = std::move(found->second);
  named.erase(found);
  return value;
}

Value CallArguments::take(std::string_view name, Value fallback) {
  Value value = take(name);
  return value.is_missing() ? fallback : value;
}

Value CallArguments::require(std::string_view name) {
  Value value = take(name);
  if (value.is_missing()) {
    fail(fmt::format("{} missing 1 required positional argument: '{}'", callee, name));
  }
  return value;
}

bool CallArguments::take_bool(Interpreter& interpreter, std::string_view name, bool fallback) {
  const Value value = take(name);
  return value.is_missing() ? fallback : truthy(interpreter.budget(), value);
}

void CallArguments::finish() {
  if (positional.size() > num_taken) {
    fail(
        fmt::format("{} takes at most {} arguments, got {}", callee, num_taken, positional.size()));
  }
  if (!named.empty()) {
    fail(fmt::format("{} got an unexpected keyword argument '{}'", callee, named.front().first));
  }
}

bool LoopObject::advance(Value& out) {
  if (!after.is_missing()) {
    out = std::move(after);
    after = Value();
  } else if (!static_cast<IteratorObject&>(*stream).next(out)) {
    return false;
  }
  ++index0;
  before = current;
  current = out;
  return true;
}

bool LoopObject::has_next() {
  if (!after.is_missing()) return true;
  Value next;
  if (!static_cast<IteratorObject&>(*stream).next(next)) return false;
  after = std::move(next);
  return true;
}

int64_t LoopObject::length() {
  if (known_length >= 0) return known_length;
  if (jinja::length(iterable, known_length)) return known_length;
  // A stream has no length: the rest is read ahead.
  std::vector<Value> rest;
  Value item;
  while (static_cast<IteratorObject&>(*stream).next(item)) {
    interpreter->budget().step();
    rest.push_back(item);
  }
  known_length = static_cast<int64_t>(rest.size()) + index0 + 1 + (after.is_missing() ? 0 : 1);
  stream = interpreter->iterate(Value::list(std::move(rest)));
  return known_length;
}

Interpreter::Interpreter(const Template& parsed, const RenderOptions& options)
    : template_(parsed), options_(options) {
  budget_.steps_left = options.limits.max_steps;
  budget_.bytes_left = options.limits.max_value_bytes;
  budget_.max_depth = options.limits.max_depth;
}

Interpreter::~Interpreter() {
  for (auto& frame : kept_frames_) frame->slots.clear();
  for (auto& frame : kept_frames_) frame->parent.reset();
  for (auto& space : namespaces_) space->attributes.clear();
  for (auto& loop : loops_) {
    loop->iterable = loop->before = loop->current = loop->after = loop->last_changed = Value();
    loop->stream.reset();
  }
}

void Interpreter::set_variable(const std::string& name, Value value) {
  for (auto& [other, old] : variables_) {
    if (other == name) {
      old = std::move(value);
      return;
    }
  }
  variables_.emplace_back(name, std::move(value));
}

RenderedChat Interpreter::run() {
  try {
    frame_ = std::make_shared<Frame>();
    frame_->slots.resize(static_cast<size_t>(template_.function->num_slots()));
    kept_frames_.push_back(frame_);
    out_ = &result_.text;
    enter(template_.loads);
    exec(template_.body);
    return std::move(result_);
  } catch (TemplateError& error) {
    if (error.line == 0) error.line = line_;
    throw;
  }
}

template <class Action>
void Interpreter::in_frame(const std::shared_ptr<Frame>& frame, const Action& action) {
  struct Restore {
    std::shared_ptr<Frame>& place;
    std::shared_ptr<Frame> saved;
    ~Restore() { place = std::move(saved); }
  } restore{frame_, frame_};
  frame_ = frame;
  action();
}

void Interpreter::keep(const std::shared_ptr<Frame>& frame) {
  budget_.bytes(static_cast<int64_t>(sizeof(Frame) + frame->slots.size() * sizeof(Value)));
  kept_frames_.push_back(frame);
}

Value& Interpreter::slot(const Slot& slot) {
  Frame* frame = frame_.get();
  for (int i = 0; i < slot.hops; ++i) frame = frame->parent.get();
  return frame->slots[static_cast<size_t>(slot.index)];
}

void Interpreter::enter(const std::vector<ScopeLoad>& loads) {
  for (const ScopeLoad& load : loads) {
    Value& target = frame_->slots[static_cast<size_t>(load.slot)];
    switch (load.kind) {
      case ScopeLoad::Kind::kUnset:
        target = Value();
        break;
      case ScopeLoad::Kind::kAlias:
        target = Value(slot(load.source));
        break;
      case ScopeLoad::Kind::kResolve: {
        target = Value();
        const auto found =
            std::find_if(variables_.begin(), variables_.end(),
                         [&](const auto& variable) { return variable.first == load.name; });
        target = found != variables_.end() ? found->second : find_global(*this, load.name);
        break;
      }
    }
  }
}

void Interpreter::write(const std::string& text) {
  if (static_cast<int64_t>(out_->size() + text.size()) > options_.limits.max_output_bytes) {
    budget_.out_of("output");
  }
  *out_ += text;
}

void Interpreter::write_block(const Value& value) {
  if (!value.is_string()) {
    fail(fmt::format("a block must give a text, not {}", type_name(value)));
  }
  write(value.text());
}

Interpreter::Flow Interpreter::capture(const Body& body, std::string& out) {
  struct Restore {
    std::string*& place;
    std::string* saved;
    ~Restore() { place = saved; }
  } restore{out_, out_};
  out_ = &out;
  const Flow flow = exec(body);
  budget_.bytes(static_cast<int64_t>(out.size()));
  return flow;
}

// ---- statements

Interpreter::Flow Interpreter::exec(const Body& body) {
  DepthGuard guard(budget_);
  for (const StmtPtr& stmt : body) {
    const Flow flow = exec(*stmt);
    if (flow != Flow::kNormal) return flow;
  }
  return Flow::kNormal;
}

Interpreter::Flow Interpreter::exec(const Stmt& stmt) {
  budget_.step();
  line_ = stmt.line;
  switch (stmt.kind) {
    case StmtKind::kText:
      write(stmt.text);
      return Flow::kNormal;
    case StmtKind::kOutput: {
      const Value value = eval(*stmt.expr);
      write(value.is_string() ? value.text() : to_text(budget_, value));
      return Flow::kNormal;
    }
    case StmtKind::kIf:
      for (const auto& [condition, body] : stmt.branches) {
        if (truthy(budget_, eval(*condition))) return exec(body);
      }
      return exec(stmt.else_body);
    case StmtKind::kFor:
      return exec_for(stmt);
    case StmtKind::kSet: {
      // Python checks the namespaces before it evaluates the value.
      const std::function<void(const Expr&)> check = [&](const Expr& target) {
        if (target.kind == ExprKind::kNamespaceRef && !slot(target.slot).is(Type::kNamespace)) {
          fail("cannot assign attribute on non-namespace object");
        }
        for (const ExprPtr& item : target.operands) check(*item);
      };
      if (stmt.target->kind != ExprKind::kName) check(*stmt.target);
      const Value value = eval(*stmt.expr);
      line_ = stmt.line;
      assign(*stmt.target, value);
      return Flow::kNormal;
    }
    case StmtKind::kSetBlock: {
      std::string text;
      enter(stmt.loads);
      const Flow flow = capture(stmt.body, text);
      if (flow != Flow::kNormal) return flow;
      Value value = Value::string(std::move(text));
      if (stmt.expr) value = eval_filter(*stmt.expr, &value);
      line_ = stmt.line;
      assign(*stmt.target, value);
      return Flow::kNormal;
    }
    case StmtKind::kFilterBlock: {
      std::string text;
      enter(stmt.loads);
      const Flow flow = capture(stmt.body, text);
      if (flow != Flow::kNormal) return flow;
      const Value value = Value::string(std::move(text));
      write_block(eval_filter(*stmt.expr, &value));
      return Flow::kNormal;
    }
    case StmtKind::kMacro:
      slot(stmt.slot) = make_macro(stmt, stmt.text);
      return Flow::kNormal;
    case StmtKind::kCallBlock: {
      const Value caller = make_macro(stmt, "");
      write_block(eval_call(*stmt.expr, &caller));
      return Flow::kNormal;
    }
    case StmtKind::kGeneration: {
      const auto macro = make_macro(stmt, "");
      CallArguments none;
      const int64_t begin = static_cast<int64_t>(out_->size());
      write(call_macro(macro.get<MacroObject>(), none).text());
      if (out_ == &result_.text) {
        result_.generation_spans.push_back({begin, static_cast<int64_t>(out_->size())});
      }
      return Flow::kNormal;
    }
    case StmtKind::kWith:
      enter(stmt.loads);
      for (const auto& [target, value] : stmt.bindings) assign(*target, eval(*value));
      return exec(stmt.body);
    case StmtKind::kBreak:
      return Flow::kBreak;
    case StmtKind::kContinue:
      return Flow::kContinue;
  }
  fail("unknown statement");
}

Value Interpreter::filtered(const Stmt& stmt, const Value& iterable,
                            const std::shared_ptr<Frame>& closure) {
  auto filter = std::make_shared<LoopFilterIterator>();
  filter->interpreter = this;
  filter->loop = &stmt;
  filter->source = iterate(iterable);
  filter->depth = filter->source->depth + 1;
  filter->frame = std::make_shared<Frame>();
  filter->frame->parent = closure;
  filter->frame->slots.resize(static_cast<size_t>(stmt.filter_function->num_slots()));
  keep(filter->frame);
  return Value::of(Type::kIterator, std::move(filter));
}

Interpreter::Flow Interpreter::exec_for(const Stmt& stmt) {
  const Value iterable = eval(*stmt.expr);
  line_ = stmt.line;
  if (stmt.is_recursive) {
    write(run_recursive(stmt, iterable, frame_, 0));
    return Flow::kNormal;
  }
  return exec_loop(stmt, stmt.condition ? filtered(stmt, iterable, frame_) : iterable, nullptr,
                   nullptr, 0);
}

std::string Interpreter::run_recursive(const Stmt& loop, const Value& iterable,
                                       const std::shared_ptr<Frame>& closure, int depth0) {
  DepthGuard guard(budget_);
  const Value source = loop.condition ? filtered(loop, iterable, closure) : iterable;
  auto frame = std::make_shared<Frame>();
  frame->parent = closure;
  frame->slots.resize(static_cast<size_t>(loop.function->num_slots()));
  keep(frame);
  std::string text;
  std::string* const saved = out_;
  struct Restore {
    std::string*& place;
    std::string* saved;
    ~Restore() { place = saved; }
  } restore{out_, saved};
  out_ = &text;
  in_frame(frame, [&] { exec_loop(loop, source, &loop, closure, depth0); });
  budget_.bytes(static_cast<int64_t>(text.size()));
  return text;
}

Interpreter::Flow Interpreter::exec_loop(const Stmt& stmt, const Value& iterable,
                                         const Stmt* recursive,
                                         const std::shared_ptr<Frame>& closure, int depth0) {
  const std::shared_ptr<IteratorObject> stream = iterate(iterable);
  std::shared_ptr<LoopObject> loop;
  if (stmt.uses_loop) {
    loop = std::make_shared<LoopObject>();
    loop->interpreter = this;
    loop->iterable = iterable;
    loop->stream = stream;
    loop->recursive_loop = recursive;
    loop->closure = closure;
    loop->depth0 = depth0;
    frame_->slots[static_cast<size_t>(stmt.loop_slot)] = Value::of(Type::kLoop, loop);
  }
  bool is_empty = true;
  Value item;
  Flow result = Flow::kNormal;
  while (loop ? loop->advance(item) : stream->next(item)) {
    budget_.step();
    assign(*stmt.target, item);
    enter(stmt.loads);
    const Flow flow = exec(stmt.body);
    line_ = stmt.line;
    if (flow == Flow::kContinue)
      continue;  // as in Python, it counts as "nothing done" for the else
    if (flow == Flow::kBreak) break;
    is_empty = false;
  }
  if (stmt.has_else && is_empty) {
    enter(stmt.else_loads);
    result = exec(stmt.else_body);
  }
  if (loop && loop.use_count() > 2) loops_.push_back(loop);
  return result;
}

void Interpreter::assign(const Expr& target, const Value& value) {
  switch (target.kind) {
    case ExprKind::kName:
      slot(target.slot) = value;
      return;
    case ExprKind::kNamespaceRef: {
      if (target.attribute[0] == '_') {
        fail(fmt::format(
            "chat templates cannot store underscore-prefixed attributes on a namespace, got '{}'",
            target.attribute));
      }
      auto& space = slot(target.slot).get<NamespaceObject>();
      nest(space, value);
      for (auto& [name, old] : space.attributes) {
        if (name == target.attribute) {
          old = value;
          return;
        }
      }
      budget_.bytes(sizeof(Value));
      space.attributes.emplace_back(target.attribute, value);
      return;
    }
    case ExprKind::kTuple: {
      if (!is_iterable(value))
        fail(fmt::format("cannot unpack non-iterable {} object", type_name(value)));
      const size_t wanted = target.operands.size();
      std::vector<Value> items;
      for_each(budget_, value, [&](const Value& item) {
        items.push_back(item);
        return items.size() <= wanted;
      });
      if (items.size() > wanted)
        fail(fmt::format("too many values to unpack (expected {})", wanted));
      if (items.size() < wanted) {
        fail(
            fmt::format("not enough values to unpack (expected {}, got {})", wanted, items.size()));
      }
      for (size_t i = 0; i < wanted; ++i) assign(*target.operands[i], items[i]);
      return;
    }
    default:
      fail("cannot assign to this expression");
  }
}

Value Interpreter::make_macro(const Stmt& stmt, std::string name) {
  auto macro = std::make_shared<MacroObject>();
  macro->definition = &stmt;
  macro->closure = frame_;
  macro->name = std::move(name);
  return Value::of(Type::kMacro, std::move(macro));
}

Value Interpreter::call_macro(const MacroObject& macro, CallArguments& arguments) {
  DepthGuard guard(budget_);
  const Stmt& stmt = *macro.definition;
  const std::string name = macro.name.empty() ? "None" : repr_text(macro.name);
  auto frame = std::make_shared<Frame>();
  frame->parent = macro.closure;
  frame->slots.resize(static_cast<size_t>(stmt.function->num_slots()));
  budget_.bytes(static_cast<int64_t>(sizeof(Frame) + frame->slots.size() * sizeof(Value)));
  // Whatever is made inside and refers to the frame makes a circle with it, whether the call ends
  // or fails.
  struct KeepShared {
    std::vector<std::shared_ptr<Frame>>& kept;
    const std::shared_ptr<Frame>& frame;
    ~KeepShared() {
      if (frame.use_count() > 1) kept.push_back(frame);
    }
  } keep_shared{kept_frames_, frame};
  const auto take_named = [&](std::string_view wanted) {
    for (auto it = arguments.named.begin(); it != arguments.named.end(); ++it) {
      if (it->first != wanted) continue;
      Value value = std::move(it->second);
      arguments.named.erase(it);
      return value;
    }
    return Value();
  };
  std::vector<Value> values;
  bool found_caller = false;
  for (size_t i = 0; i < stmt.parameters.size(); ++i) {
    if (i < arguments.positional.size()) {
      values.push_back(arguments.positional[i]);
    } else {
      values.push_back(take_named(stmt.parameters[i].name));
      found_caller = found_caller || stmt.parameters[i].name == "caller";
    }
  }
  if (arguments.positional.size() >= stmt.parameters.size())
    found_caller = stmt.has_caller_parameter;
  if (stmt.uses_caller && !found_caller) {
    Value caller = take_named("caller");
    if (caller.is_missing() || caller.is_none()) caller = Value::undefined("No caller defined");
    if (stmt.caller_slot >= 0) {
      frame->slots[static_cast<size_t>(stmt.caller_slot)] = std::move(caller);
    } else {
      fail(fmt::format("macro {} takes its caller as an argument", name));
    }
  }
  if (stmt.uses_kwargs) {
    auto dict = std::make_shared<DictObject>();
    for (auto& [key, value] : arguments.named) dict->set(budget_, Value::string(key), value);
    frame->slots[static_cast<size_t>(stmt.kwargs_slot)] = Value::of(Type::kDict, std::move(dict));
  } else if (!arguments.named.empty()) {
    const bool is_caller =
        std::any_of(arguments.named.begin(), arguments.named.end(),
                    [](const auto& argument) { return argument.first == "caller"; });
    if (is_caller)
      fail(fmt::format("macro {} was invoked with two values for the special caller argument",
                       name));
    fail(fmt::format("macro {} takes no keyword argument {}", name,
                     repr_text(arguments.named.front().first)));
  }
  if (stmt.uses_varargs) {
    std::vector<Value> rest;
    for (size_t i = stmt.parameters.size(); i < arguments.positional.size(); ++i) {
      rest.push_back(arguments.positional[i]);
    }
    frame->slots[static_cast<size_t>(stmt.varargs_slot)] = Value::tuple(std::move(rest));
  } else if (arguments.positional.size() > stmt.parameters.size()) {
    fail(fmt::format("macro {} takes not more than {} argument(s)", name, stmt.parameters.size()));
  }
  std::string text;
  in_frame(frame, [&] {
    for (size_t i = 0; i < values.size(); ++i) slot(stmt.parameters[i].slot) = std::move(values[i]);
    enter(stmt.loads);
    for (const Parameter& parameter : stmt.parameters) {
      Value& place = slot(parameter.slot);
      if (!place.is_missing()) continue;
      if (parameter.default_value) {
        Value value = eval(*parameter.default_value);
        slot(parameter.slot) = std::move(value);
      } else {
        place = Value::undefined(fmt::format("parameter '{}' was not provided", parameter.name));
      }
    }
    capture(stmt.body, text);
  });
  return Value::string(std::move(text));
}

// ---- expressions

Value Interpreter::lookup(const Expr& name) {
  if (name.slot.index >= 0) {
    const Value& value = slot(name.slot);
    if (!value.is_missing()) return value;
  }
  return Value::undefined(fmt::format("'{}' is undefined", name.name));
}

Value Interpreter::eval(const Expr& expr) {
  budget_.step();
  if (expr.kind == ExprKind::kConst) return expr.value;
  line_ = expr.line;
  if (expr.kind == ExprKind::kName) return lookup(expr);
  DepthGuard guard(budget_);
  switch (expr.kind) {
    case ExprKind::kConst:
    case ExprKind::kName:
      break;
    case ExprKind::kNamespaceRef:
      fail("a namespace reference is no value");
    case ExprKind::kTuple:
    case ExprKind::kList: {
      std::vector<Value> items;
      items.reserve(expr.operands.size());
      budget_.bytes(static_cast<int64_t>(expr.operands.size() * sizeof(Value)));
      for (const ExprPtr& operand : expr.operands) items.push_back(eval(*operand));
      return expr.kind == ExprKind::kList ? Value::list(std::move(items))
                                          : Value::tuple(std::move(items));
    }
    case ExprKind::kDict: {
      auto dict = std::make_shared<DictObject>();
      for (size_t i = 0; i < expr.operands.size(); i += 2) {
        Value key = eval(*expr.operands[i]);
        Value value = eval(*expr.operands[i + 1]);
        dict->set(budget_, std::move(key), std::move(value));
      }
      return Value::of(Type::kDict, std::move(dict));
    }
    case ExprKind::kBinary: {
      const Value left = eval(*expr.operands[0]);
      const Value right = eval(*expr.operands[1]);
      line_ = expr.line;
      return binary(budget_, expr.op, left, right);
    }
    case ExprKind::kNegate:
      return negate(eval(*expr.operands[0]));
    case ExprKind::kPositive:
      return positive(eval(*expr.operands[0]));
    case ExprKind::kNot:
      return Value::boolean(!truthy(budget_, eval(*expr.operands[0])));
    case ExprKind::kAnd: {
      Value left = eval(*expr.operands[0]);
      return truthy(budget_, left) ? eval(*expr.operands[1]) : left;
    }
    case ExprKind::kOr: {
      Value left = eval(*expr.operands[0]);
      return truthy(budget_, left) ? left : eval(*expr.operands[1]);
    }
    case ExprKind::kConcat: {
      std::string text;
      std::vector<Value> values;
      for (const ExprPtr& operand : expr.operands) values.push_back(eval(*operand));
      line_ = expr.line;
      for (const Value& value : values) append_text(budget_, value, text);
      budget_.bytes(static_cast<int64_t>(text.size()));
      return Value::string(std::move(text));
    }
    case ExprKind::kCompare:
      return Value::boolean(eval_compare(expr));
    case ExprKind::kConditional:
      if (truthy(budget_, eval(*expr.operands[0]))) return eval(*expr.operands[1]);
      if (expr.operands[2]) return eval(*expr.operands[2]);
      return Value::undefined(fmt::format(
          "the inline if-expression on line {} evaluated to false and no else section was defined",
          expr.line));
    case ExprKind::kAttribute: {
      const Value object = eval(*expr.operands[0]);
      line_ = expr.line;
      return attribute(object, expr.name);
    }
    case ExprKind::kItem: {
      const Value object = eval(*expr.operands[0]);
      const Value index = eval(*expr.operands[1]);
      line_ = expr.line;
      return item(object, index);
    }
    case ExprKind::kSlice: {
      const Value object = eval(*expr.operands[0]);
      const Value start = eval_or_none(expr.operands[1]);
      const Value stop = eval_or_none(expr.operands[2]);
      const Value step = eval_or_none(expr.operands[3]);
      line_ = expr.line;
      return slice(budget_, object, start, stop, step);
    }
    case ExprKind::kCall:
      return eval_call(expr, nullptr);
    case ExprKind::kFilter:
      return eval_filter(expr, nullptr);
    case ExprKind::kTest: {
      if (expr.test == nullptr) fail(fmt::format("unknown or unsupported test '{}'", expr.name));
      const Value subject = eval(*expr.operands[0]);
      CallArguments arguments = eval_arguments(expr.arguments, expr.name);
      line_ = expr.line;
      return Value::boolean(expr.test(*this, subject, arguments));
    }
  }
  fail("unknown expression");
}

bool Interpreter::eval_compare(const Expr& expr) {
  Value left = eval(*expr.operands[0]);
  for (size_t i = 0; i < expr.comparisons.size(); ++i) {
    Value right = eval(*expr.operands[i + 1]);
    line_ = expr.line;
    bool holds = false;
    switch (expr.comparisons[i]) {
      case Comparison::kEqual:
        holds = equals(budget_, left, right);
        break;
      case Comparison::kNotEqual:
        holds = !equals(budget_, left, right);
        break;
      case Comparison::kLess:
        holds = compare(budget_, left, right, "<");
        break;
      case Comparison::kLessEqual:
        holds = compare(budget_, left, right, "<=");
        break;
      case Comparison::kGreater:
        holds = compare(budget_, left, right, ">");
        break;
      case Comparison::kGreaterEqual:
        holds = compare(budget_, left, right, ">=");
        break;
      case Comparison::kIn:
        holds = contains(budget_, right, left);
        break;
      case Comparison::kNotIn:
        holds = !contains(budget_, right, left);
        break;
    }
    if (!holds) return false;
    left = std::move(right);
  }
  return true;
}

Value Interpreter::eval_filter(const Expr& expr, const Value* block_text) {
  DepthGuard guard(budget_);
  Value subject;
  if (!expr.operands[0]) {
    subject = *block_text;
  } else if (expr.operands[0]->kind == ExprKind::kFilter) {
    subject = eval_filter(*expr.operands[0], block_text);
  } else {
    subject = eval(*expr.operands[0]);
  }
  if (expr.filter == nullptr) fail(fmt::format("unknown or unsupported filter '{}'", expr.name));
  CallArguments arguments = eval_arguments(expr.arguments, expr.name);
  line_ = expr.line;
  budget_.step();
  return expr.filter(*this, subject, arguments);
}

CallArguments Interpreter::eval_arguments(const Arguments& arguments, std::string_view callee) {
  CallArguments out;
  out.callee = callee;
  for (const ExprPtr& argument : arguments.positional) out.positional.push_back(eval(*argument));
  for (const auto& [name, argument] : arguments.named)
    out.named.emplace_back(name, eval(*argument));
  if (arguments.more_positional) {
    const std::vector<Value> more = to_vector(budget_, eval(*arguments.more_positional));
    out.positional.insert(out.positional.end(), more.begin(), more.end());
  }
  if (arguments.more_named) {
    const Value more = eval(*arguments.more_named);
    if (!more.is(Type::kDict))
      fail(fmt::format("argument after ** must be a mapping, not {}", type_name(more)));
    for (const auto& [key, value] : more.dict().items) {
      if (!key.is_string()) fail("keywords must be strings");
      for (const auto& [name, other] : out.named) {
        if (name == key.text())
          fail(fmt::format("got multiple values for keyword argument '{}'", name));
      }
      out.named.emplace_back(key.text(), value);
    }
  }
  return out;
}

Value Interpreter::eval_call(const Expr& expr, const Value* caller) {
  const Value callee = eval(*expr.operands[0]);
  CallArguments arguments = eval_arguments(expr.arguments, expr.operands[0]->name);
  if (caller != nullptr) {
    for (const auto& [name, value] : arguments.named) {
      if (name == "caller") fail("got multiple values for keyword argument 'caller'");
    }
    arguments.named.emplace_back("caller", *caller);
  }
  line_ = expr.line;
  Value result = call(callee, arguments);
  line_ = expr.line;
  return result;
}

Value Interpreter::call(const Value& callee, CallArguments& arguments) {
  require_defined(callee);
  budget_.step();
  switch (callee.type()) {
    case Type::kFunction:
      return callee.get<FunctionObject>().call(*this, arguments);
    case Type::kMacro: {
      const Value keep = callee;
      return call_macro(keep.get<MacroObject>(), arguments);
    }
    case Type::kMethod: {
      const Value keep = callee;
      const auto& method = keep.get<MethodObject>();
      return call_method(method.self, method.name, arguments);
    }
    case Type::kJoiner: {
      arguments.finish();
      auto& joiner = callee.get<JoinerObject>();
      if (joiner.is_used) return joiner.separator;
      joiner.is_used = true;
      return Value::string("");
    }
    case Type::kLoop: {
      const Value iterable = arguments.require("iterable");
      arguments.finish();
      auto& loop = callee.get<LoopObject>();
      if (loop.recursive_loop == nullptr) {
        fail("the loop must have the 'recursive' marker to be called recursively");
      }
      return Value::string(
          run_recursive(*loop.recursive_loop, iterable, loop.closure, loop.depth0 + 1));
    }
    default:
      fail(fmt::format("'{}' object is not callable", type_name(callee)));
  }
}

Value Interpreter::call_method(const Value& self, const std::string& name,
                               CallArguments& arguments) {
  if (self.is(Type::kLoop)) {
    auto& loop = self.get<LoopObject>();
    if (!arguments.named.empty()) fail(fmt::format("loop.{}() takes no keyword arguments", name));
    if (name == "cycle") {
      if (arguments.positional.empty()) fail("no items for cycling given");
      return arguments.positional[static_cast<size_t>(loop.index0) % arguments.positional.size()];
    }
    const Value now = Value::tuple(arguments.positional);
    if (!loop.last_changed.is_missing() && equals(budget_, loop.last_changed, now))
      return Value::boolean(false);
    loop.last_changed = now;
    return Value::boolean(true);
  }
  if (self.is(Type::kCycler)) {
    arguments.finish();
    auto& cycler = self.get<CyclerObject>();
    if (name == "reset") {
      cycler.position = 0;
      return Value::none();
    }
    const Value value = cycler.items[cycler.position];
    cycler.position = (cycler.position + 1) % cycler.items.size();
    return value;
  }
  return call_builtin_method(*this, self, name, arguments);
}

Value Interpreter::apply_filter(const std::string& name, const Value& subject,
                                CallArguments arguments) {
  const FilterFunction filter = find_filter(name);
  if (filter == nullptr) fail(fmt::format("unknown or unsupported filter '{}'", name));
  arguments.callee = name;
  arguments.num_taken = 0;
  budget_.step();
  return filter(*this, subject, arguments);
}

bool Interpreter::apply_test(const std::string& name, const Value& subject,
                             CallArguments arguments) {
  const TestFunction test = find_test(name);
  if (test == nullptr) fail(fmt::format("unknown or unsupported test '{}'", name));
  arguments.callee = name;
  arguments.num_taken = 0;
  budget_.step();
  return test(*this, subject, arguments);
}

Value Interpreter::make_namespace() {
  auto space = std::make_shared<NamespaceObject>();
  budget_.bytes(sizeof(NamespaceObject));
  namespaces_.push_back(space);
  return Value::of(Type::kNamespace, std::move(space));
}

std::shared_ptr<IteratorObject> Interpreter::iterate(const Value& iterable) {
  if (iterable.is(Type::kIterator))
    return std::static_pointer_cast<IteratorObject>(iterable.object());
  if (iterable.is(Type::kLoop)) fail("iterating over `loop` itself is not supported");
  if (!is_iterable(iterable)) fail(fmt::format("'{}' object is not iterable", type_name(iterable)));
  auto iterator = std::make_shared<SequenceIterator>();
  iterator->budget = &budget_;
  iterator->source = iterable;
  nest(*iterator, iterable);
  return iterator;
}

Value Interpreter::attribute(const Value& object, const std::string& name) {
  require_defined(object);
  if (name.size() > 4 && name.compare(0, 2, "__") == 0 &&
      name.compare(name.size() - 2, 2, "__") == 0) {
    return unsafe_attribute(object, name);
  }
  switch (object.type()) {
    case Type::kNamespace: {
      const Value* found = object.get<NamespaceObject>().find(name);
      if (found == nullptr) return missing_attribute(object, name);
      return name[0] == '_' ? unsafe_attribute(object, name) : *found;
    }
    case Type::kLoop: {
      auto& loop = object.get<LoopObject>();
      if (name == "index0") return Value::integer(loop.index0);
      if (name == "index") return Value::integer(loop.index0 + 1);
      if (name == "first") return Value::boolean(loop.index0 == 0);
      if (name == "last") return Value::boolean(!loop.has_next());
      if (name == "length") return Value::integer(loop.length());
      if (name == "revindex") return Value::integer(loop.length() - loop.index0);
      if (name == "revindex0") return Value::integer(loop.length() - loop.index0 - 1);
      if (name == "depth") return Value::integer(loop.depth0 + 1);
      if (name == "depth0") return Value::integer(loop.depth0);
      if (name == "previtem") {
        return loop.index0 == 0 ? Value::undefined("there is no previous item") : loop.before;
      }
      if (name == "nextitem") {
        return loop.has_next() ? loop.after : Value::undefined("there is no next item");
      }
      break;
    }
    case Type::kMacro: {
      const auto& macro = object.get<MacroObject>();
      if (name == "name") return macro.name.empty() ? Value::none() : Value::string(macro.name);
      if (name == "arguments") {
        std::vector<Value> names;
        for (const Parameter& parameter : macro.definition->parameters) {
          names.push_back(Value::string(parameter.name));
        }
        return Value::tuple(std::move(names));
      }
      if (name == "catch_kwargs") return Value::boolean(macro.definition->uses_kwargs);
      if (name == "catch_varargs") return Value::boolean(macro.definition->uses_varargs);
      if (name == "caller") return Value::boolean(macro.definition->uses_caller);
      break;
    }
    case Type::kCycler: {
      const auto& cycler = object.get<CyclerObject>();
      if (name == "current") return cycler.items[cycler.position];
      if (name == "items") return Value::tuple(cycler.items);
      break;
    }
    case Type::kInt:
    case Type::kBool:
      if (name == "real" || name == "numerator") return positive(object);
      if (name == "imag") return Value::integer(0);
      if (name == "denominator") return Value::integer(1);
      break;
    case Type::kFloat:
      if (name == "real") return object;
      if (name == "imag") return Value::real(0);
      break;
    case Type::kTuple:
      if (object.get<ListObject>().is_group) {
        if (name == "grouper") return object.items()[0];
        if (name == "list") return object.items()[1];
      }
      break;
    case Type::kRange: {
      const auto& range = object.get<RangeObject>();
      if (name == "start") return Value::integer(range.start);
      if (name == "stop") return Value::integer(range.stop);
      if (name == "step") return Value::integer(range.step);
      break;
    }
    default:
      break;
  }
  if (has_method(object, name)) {
    if (is_forbidden_method(object, name)) return unsafe_attribute(object, name);
    auto method = std::make_shared<MethodObject>();
    method->self = object;
    method->name = name;
    nest(*method, object);
    return Value::of(Type::kMethod, std::move(method));
  }
  if (object.is(Type::kDict)) {
    if (const Value* found = object.dict().find(name)) return *found;
  }
  return missing_attribute(object, name);
}

Value Interpreter::item(const Value& object, const Value& index) {
  require_defined(object);
  if (object.is(Type::kDict)) {
    if (index.is_string()) {
      if (const Value* found = object.dict().find(index.text())) return *found;
    } else if (is_hashable(budget_, index)) {
      if (const Value* found = object.dict().find(budget_, index)) return *found;
    }
  } else if (index.is_integer()) {
    Value found;
    if (item_at(object, index.as_int(), found)) return found;
  }
  if (index.is_string()) {
    Value found = attribute(object, index.text());
    return found;
  }
  std::string place = index.is_undefined() ? "Undefined" : to_repr(budget_, index);
  return Value::undefined(fmt::format("{} has no element {}", object_name(object), place));
}

}  // namespace gradus::data::jinja
