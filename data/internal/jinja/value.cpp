// SPDX-License-Identifier: Apache-2.0
#include "data/internal/jinja/value.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "data/internal/jinja/runtime.h"
#include "data/internal/jinja/text.h"

namespace gradus::data::jinja {
namespace {

// Containers nested deeper than this would overflow the stack where their destructors follow each
// other.
constexpr int kMaxContainerDepth = 500;
// From here on a dict is searched through its index.
constexpr size_t kIndexedDictSize = 8;

void zero_division(const char* message) { fail(message); }

Int checked(bool overflow, const Int& value) {
  if (overflow) fail("integer overflow: beyond 127 bits");
  return value;
}

// Value of `real` as an Int if it is integral and in range.
bool exact_integer(double real, Int& out) {
  if (!(std::fabs(real) < 0x1p126) || real != std::floor(real)) return false;
  out = static_cast<Int>(real);
  return true;
}

// -1, 0, 1, or 2 when unordered (NaN).
int compare_numbers(const Value& a, const Value& b) {
  if (a.is_integer() && b.is_integer()) {
    return a.as_int() < b.as_int() ? -1 : a.as_int() > b.as_int() ? 1 : 0;
  }
  if (a.is(Type::kFloat) && b.is(Type::kFloat)) {
    const double x = a.as_double(), y = b.as_double();
    return x < y ? -1 : x > y ? 1 : x == y ? 0 : 2;
  }
  if (b.is_integer()) {
    const int reversed = compare_numbers(b, a);
    return reversed == 2 ? 2 : -reversed;
  }
  const double y = b.as_double();
  if (std::isnan(y)) return 2;
  if (!(std::fabs(y) < 0x1p126)) return y > 0 ? -1 : 1;
  const double whole = std::floor(y);
  const Int floor_int = static_cast<Int>(whole);
  if (a.as_int() != floor_int) return a.as_int() < floor_int ? -1 : 1;
  return y > whole ? -1 : 0;
}

bool equal_items(Budget& budget, const std::vector<Value>& a, const std::vector<Value>& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (!equals(budget, a[i], b[i])) return false;
  }
  return true;
}

Value view_item(const std::pair<Value, Value>& item, DictViewKind kind) {
  switch (kind) {
    case DictViewKind::kKeys:
      return item.first;
    case DictViewKind::kValues:
      return item.second;
    case DictViewKind::kItems:
      return Value::tuple({item.first, item.second});
  }
  fail("unknown kind of dict view");
}

void append_items(Budget& budget, const std::vector<Value>& items, std::string& out) {
  bool first = true;
  for (const Value& item : items) {
    if (!first) out += ", ";
    first = false;
    out += to_repr(budget, item);
  }
}

void append_dict(Budget& budget, const std::vector<std::pair<Value, Value>>& items,
                 std::string& out) {
  out += '{';
  bool first = true;
  for (const auto& [key, value] : items) {
    if (!first) out += ", ";
    first = false;
    out += to_repr(budget, key);
    out += ": ";
    out += to_repr(budget, value);
  }
  out += '}';
}

[[noreturn]] void fail_binary(const char* symbol, const Value& a, const Value& b) {
  fail(fmt::format("unsupported operand type(s) for {}: '{}' and '{}'", symbol, type_name(a),
                   type_name(b)));
}

const char* binary_symbol(BinaryOp op) {
  switch (op) {
    case BinaryOp::kAdd:
      return "+";
    case BinaryOp::kSub:
      return "-";
    case BinaryOp::kMul:
      return "*";
    case BinaryOp::kDiv:
      return "/";
    case BinaryOp::kFloorDiv:
      return "//";
    case BinaryOp::kMod:
      return "%";
    case BinaryOp::kPow:
      return "** or pow()";
  }
  fail("unknown operator");
}

Int floor_divide(Int a, Int b) {
  Int quotient = a / b;
  if (a % b != 0 && (a < 0) != (b < 0)) --quotient;
  return quotient;
}

double python_fmod(double a, double b) {
  double rest = std::fmod(a, b);
  if (rest != 0) {
    if ((b < 0) != (rest < 0)) rest += b;
  } else {
    rest = std::copysign(0.0, b);
  }
  return rest;
}

double python_floor_divide(double a, double b) {
  double rest = std::fmod(a, b);
  double quotient = (a - rest) / b;
  if (rest != 0 && (b < 0) != (rest < 0)) quotient -= 1;
  if (quotient == 0) return std::copysign(0.0, a / b);
  double whole = std::floor(quotient);
  if (quotient - whole > 0.5) whole += 1;
  return whole;
}

Value integer_power(Budget& budget, Int base, Int exponent) {
  Int result = 1;
  while (exponent > 0) {
    budget.step();
    if (exponent & 1) checked(__builtin_mul_overflow(result, base, &result), result);
    exponent >>= 1;
    if (exponent > 0) checked(__builtin_mul_overflow(base, base, &base), base);
  }
  return Value::integer(result);
}

Value binary_integers(Budget& budget, BinaryOp op, Int a, Int b) {
  Int result = 0;
  switch (op) {
    case BinaryOp::kAdd:
      return Value::integer(checked(__builtin_add_overflow(a, b, &result), result));
    case BinaryOp::kSub:
      return Value::integer(checked(__builtin_sub_overflow(a, b, &result), result));
    case BinaryOp::kMul:
      return Value::integer(checked(__builtin_mul_overflow(a, b, &result), result));
    case BinaryOp::kDiv:
      if (b == 0) zero_division("division by zero");
      return Value::real(
          static_cast<double>(static_cast<long double>(a) / static_cast<long double>(b)));
    case BinaryOp::kFloorDiv:
      if (b == 0) zero_division("integer division or modulo by zero");
      return Value::integer(floor_divide(a, b));
    case BinaryOp::kMod:
      if (b == 0) zero_division("integer modulo by zero");
      return Value::integer(a - floor_divide(a, b) * b);
    case BinaryOp::kPow:
      if (b >= 0) {
        if (a == 0 || a == 1) return Value::integer(b == 0 ? 1 : a);
        if (a == -1) return Value::integer(b % 2 == 0 ? 1 : -1);
        if (b > 127) fail("integer overflow: beyond 127 bits");
        return integer_power(budget, a, b);
      }
      if (a == 0) zero_division("0.0 cannot be raised to a negative power");
      return Value::real(std::pow(static_cast<double>(a), static_cast<double>(b)));
  }
  fail("unknown operator");
}

Value binary_reals(BinaryOp op, double a, double b) {
  switch (op) {
    case BinaryOp::kAdd:
      return Value::real(a + b);
    case BinaryOp::kSub:
      return Value::real(a - b);
    case BinaryOp::kMul:
      return Value::real(a * b);
    case BinaryOp::kDiv:
      if (b == 0) zero_division("float division by zero");
      return Value::real(a / b);
    case BinaryOp::kFloorDiv:
      if (b == 0) zero_division("float floor division by zero");
      return Value::real(python_floor_divide(a, b));
    case BinaryOp::kMod:
      if (b == 0) zero_division("float modulo");
      return Value::real(python_fmod(a, b));
    case BinaryOp::kPow: {
      if (a == 0 && b < 0) zero_division("0.0 cannot be raised to a negative power");
      if (a < 0 && std::isfinite(a) && std::isfinite(b) && b != std::floor(b)) {
        fail("complex numbers are not supported");
      }
      const double result = std::pow(a, b);
      if (std::isinf(result) && std::isfinite(a) && std::isfinite(b)) {
        fail("(34, 'Numerical result out of range')");
      }
      return Value::real(result);
    }
  }
  fail("unknown operator");
}

Value repeat(Budget& budget, const Value& sequence, Int count) {
  if (count < 0) count = 0;
  const Int size = sequence.is_string() ? static_cast<Int>(sequence.text().size())
                                        : static_cast<Int>(sequence.items().size());
  if (size * (count > 0 && size > 0) != 0 && count > (Int{1} << 40)) budget.out_of("memory");
  const auto total = static_cast<int64_t>(size > 0 ? size * count : 0);
  if (sequence.is_string()) {
    budget.bytes(total);
    std::string out;
    out.reserve(static_cast<size_t>(total));
    if (size > 0) {
      for (Int i = 0; i < count; ++i) out += sequence.text();
    }
    return Value::string(std::move(out), sequence.is_markup());
  }
  budget.bytes(total * static_cast<int64_t>(sizeof(Value)));
  std::vector<Value> out;
  out.reserve(static_cast<size_t>(total));
  if (size > 0) {
    for (Int i = 0; i < count; ++i) {
      out.insert(out.end(), sequence.items().begin(), sequence.items().end());
    }
  }
  return sequence.is(Type::kList) ? Value::list(std::move(out)) : Value::tuple(std::move(out));
}

Value add_strings(Budget& budget, const Value& a, const Value& b) {
  budget.bytes(static_cast<int64_t>(a.text().size() + b.text().size()));
  if (a.is_markup() == b.is_markup()) return Value::string(a.text() + b.text(), a.is_markup());
  // Markup escapes what is added to it.
  if (a.is_markup()) return Value::string(a.text() + escape_html(b.text()), true);
  return Value::string(escape_html(a.text()) + b.text(), true);
}

}  // namespace

void fail(std::string message) { throw TemplateError{std::move(message), 0}; }

void Budget::out_of(const char* what) const {
  fail(fmt::format("the template needs more {} than allowed; is it an endless loop or recursion?",
                   what));
}

StringObject::StringObject(std::string content, bool is_markup)
    : text(std::move(content)), markup(is_markup), num_chars(count_chars(text)) {}

Value Value::boolean(bool value) {
  Value result(Type::kBool);
  result.integer_ = value ? 1 : 0;
  return result;
}
Value Value::integer(Int value) {
  Value result(Type::kInt);
  result.integer_ = value;
  return result;
}
Value Value::real(double value) {
  Value result(Type::kFloat);
  result.real_ = value;
  return result;
}
Value Value::string(std::string text, bool markup) {
  return of(Type::kString, std::make_shared<StringObject>(std::move(text), markup));
}

namespace {
Value make_sequence(Type type, std::vector<Value> items) {
  auto object = std::make_shared<ListObject>();
  for (const Value& item : items) nest(*object, item);
  object->items = std::move(items);
  return Value::of(type, std::move(object));
}
}  // namespace

Value Value::list(std::vector<Value> items) { return make_sequence(Type::kList, std::move(items)); }
Value Value::tuple(std::vector<Value> items) {
  return make_sequence(Type::kTuple, std::move(items));
}
Value Value::undefined(std::string message) {
  auto object = std::make_shared<UndefinedObject>();
  object->message = std::move(message);
  return of(Type::kUndefined, std::move(object));
}

bool Value::is_markup() const { return is_string() && get<StringObject>().markup; }
const std::string& Value::text() const { return get<StringObject>().text; }
const std::vector<Value>& Value::items() const { return get<ListObject>().items; }
const DictObject& Value::dict() const { return get<DictObject>(); }

void nest(Object& object, const Value& child) {
  if (child.object() == nullptr || child.is_string()) return;
  object.depth = std::max(object.depth, child.object()->depth + 1);
  if (object.depth > kMaxContainerDepth) fail("containers are nested too deep");
}

size_t DictObject::place(Budget& budget, const Value& key, size_t key_hash) const {
  if (items.size() > kIndexedDictSize) {
    const auto [begin, end] = index_.equal_range(key_hash);
    for (auto it = begin; it != end; ++it) {
      if (equals(budget, items[it->second].first, key)) return it->second;
    }
    return items.size();
  }
  size_t i = 0;
  while (i < items.size() && !equals(budget, items[i].first, key)) ++i;
  return i;
}

const Value* DictObject::find(Budget& budget, const Value& key) const {
  const size_t found = place(budget, key, hash(budget, key));
  return found < items.size() ? &items[found].second : nullptr;
}

const Value* DictObject::find(std::string_view key) const {
  const auto is_key = [&](size_t i) {
    return items[i].first.is_string() && items[i].first.text() == key;
  };
  if (items.size() > kIndexedDictSize) {
    const auto [begin, end] = index_.equal_range(std::hash<std::string_view>{}(key));
    for (auto it = begin; it != end; ++it) {
      if (is_key(it->second)) return &items[it->second].second;
    }
    return nullptr;
  }
  for (size_t i = 0; i < items.size(); ++i) {
    if (is_key(i)) return &items[i].second;
  }
  return nullptr;
}

void DictObject::set(Budget& budget, Value key, Value value) {
  const size_t key_hash = hash(budget, key);
  const size_t found = place(budget, key, key_hash);
  nest(*this, value);
  if (found < items.size()) {
    items[found].second = std::move(value);
    return;
  }
  budget.bytes(static_cast<int64_t>(2 * sizeof(Value)));
  nest(*this, key);
  items.emplace_back(std::move(key), std::move(value));
  if (items.size() == kIndexedDictSize + 1) {
    for (size_t i = 0; i < items.size(); ++i) index_.emplace(hash(budget, items[i].first), i);
  } else if (items.size() > kIndexedDictSize) {
    index_.emplace(key_hash, items.size() - 1);
  }
}

int64_t RangeObject::size() const {
  if (step > 0) return start < stop ? static_cast<int64_t>((stop - start - 1) / step + 1) : 0;
  return start > stop ? static_cast<int64_t>((start - stop - 1) / -step + 1) : 0;
}

const Value* NamespaceObject::find(std::string_view name) const {
  for (const auto& [key, value] : attributes) {
    if (key == name) return &value;
  }
  return nullptr;
}

std::string type_name(const Value& value) {
  switch (value.type()) {
    case Type::kMissing:
    case Type::kUndefined:
      return "Undefined";
    case Type::kNone:
      return "NoneType";
    case Type::kBool:
      return "bool";
    case Type::kInt:
      return "int";
    case Type::kFloat:
      return "float";
    case Type::kString:
      return value.is_markup() ? "Markup" : "str";
    case Type::kList:
      return "list";
    case Type::kTuple:
      return "tuple";
    case Type::kDict:
      return "dict";
    case Type::kRange:
      return "range";
    case Type::kDictView:
      switch (value.get<DictViewObject>().kind) {
        case DictViewKind::kKeys:
          return "dict_keys";
        case DictViewKind::kValues:
          return "dict_values";
        case DictViewKind::kItems:
          return "dict_items";
      }
      return "dict_items";
    case Type::kIterator:
      return "generator";
    case Type::kNamespace:
      return "TemplateNamespace";
    case Type::kFunction:
      return "function";
    case Type::kMethod:
      return "builtin_function_or_method";
    case Type::kMacro:
      return "Macro";
    case Type::kLoop:
      return "LoopContext";
    case Type::kCycler:
      return "Cycler";
    case Type::kJoiner:
      return "Joiner";
  }
  return "object";
}

void require_defined(const Value& value) {
  if (value.is_undefined()) fail(value.get<UndefinedObject>().message);
}

bool length(const Value& value, int64_t& out) {
  switch (value.type()) {
    case Type::kUndefined:
      out = 0;
      return true;
    case Type::kString:
      out = value.get<StringObject>().num_chars;
      return true;
    case Type::kList:
    case Type::kTuple:
      out = static_cast<int64_t>(value.items().size());
      return true;
    case Type::kDict:
      out = static_cast<int64_t>(value.dict().items.size());
      return true;
    case Type::kRange:
      out = value.get<RangeObject>().size();
      return true;
    case Type::kDictView:
      out = static_cast<int64_t>(value.get<DictViewObject>().dict.dict().items.size());
      return true;
    case Type::kLoop:
      out = value.get<LoopObject>().length();
      return true;
    default:
      return false;
  }
}

bool truthy(Budget&, const Value& value) {
  switch (value.type()) {
    case Type::kMissing:
    case Type::kUndefined:
    case Type::kNone:
      return false;
    case Type::kBool:
    case Type::kInt:
      return value.as_int() != 0;
    case Type::kFloat:
      return value.as_double() != 0;
    case Type::kString:
      return !value.text().empty();
    default: {
      int64_t size = 0;
      return !length(value, size) || size != 0;
    }
  }
}

void append_text(Budget& budget, const Value& value, std::string& out) {
  if (value.is_string()) {
    out += value.text();
  } else if (!value.is_undefined()) {
    out += to_repr(budget, value);
  }
}

std::string to_text(Budget& budget, const Value& value) {
  std::string out;
  append_text(budget, value, out);
  return out;
}

Value soft_text(Budget& budget, const Value& value) {
  return value.is_string() ? value : Value::string(to_text(budget, value));
}

std::string to_repr(Budget& budget, const Value& value) {
  DepthGuard guard(budget);
  budget.step();
  std::string out;
  switch (value.type()) {
    case Type::kMissing:
    case Type::kUndefined:
      return "Undefined";
    case Type::kNone:
      return "None";
    case Type::kBool:
      return value.as_bool() ? "True" : "False";
    case Type::kInt:
      return int_text(value.as_int());
    case Type::kFloat:
      return repr_float(value.as_double());
    case Type::kString:
      out = repr_text(value.text());
      if (value.is_markup()) out = "Markup(" + out + ")";
      break;
    case Type::kList:
      out = "[";
      append_items(budget, value.items(), out);
      out += "]";
      break;
    case Type::kTuple:
      out = "(";
      append_items(budget, value.items(), out);
      out += value.items().size() == 1 ? ",)" : ")";
      break;
    case Type::kDict:
      append_dict(budget, value.dict().items, out);
      break;
    case Type::kRange: {
      const auto& range = value.get<RangeObject>();
      out = "range(" + int_text(range.start) + ", " + int_text(range.stop);
      if (range.step != 1) out += ", " + int_text(range.step);
      out += ")";
      break;
    }
    case Type::kDictView:
      out = type_name(value) + "([";
      append_items(budget, to_vector(budget, value), out);
      out += "])";
      break;
    case Type::kNamespace: {
      out = "<Namespace {";
      bool first = true;
      for (const auto& [name, item] : value.get<NamespaceObject>().attributes) {
        if (!first) out += ", ";
        first = false;
        out += repr_text(name) + ": " + to_repr(budget, item);
      }
      out += "}>";
      break;
    }
    case Type::kMacro:
      out = "<Macro " + value.get<MacroObject>().repr_name() + ">";
      break;
    case Type::kLoop: {
      auto& loop = value.get<LoopObject>();
      out = fmt::format("<LoopContext {}/{}>", loop.index0 + 1, loop.length());
      break;
    }
    case Type::kIterator:
      fail("a stream of values has no text of its own; put `| list` or `| join` behind it");
    default:
      fail(fmt::format("a {} has no text of its own", type_name(value)));
  }
  budget.bytes(static_cast<int64_t>(out.size()));
  return out;
}

bool identical(const Value& a, const Value& b) {
  if (a.type() != b.type()) return false;
  switch (a.type()) {
    case Type::kNone:
      return true;
    case Type::kBool:
    case Type::kInt:
      return a.as_int() == b.as_int();
    default:
      return a.object() != nullptr && a.object() == b.object();
  }
}

bool equals(Budget& budget, const Value& a, const Value& b) {
  budget.step();
  if (a.is_number() && b.is_number()) return compare_numbers(a, b) == 0;
  if (a.type() != b.type()) return false;
  switch (a.type()) {
    case Type::kUndefined:
    case Type::kNone:
      return true;
    case Type::kString:
      return a.text() == b.text();
    case Type::kList:
    case Type::kTuple: {
      if (a.object() == b.object()) return true;
      DepthGuard guard(budget);
      return equal_items(budget, a.items(), b.items());
    }
    case Type::kDict: {
      if (a.object() == b.object()) return true;
      DepthGuard guard(budget);
      if (a.dict().items.size() != b.dict().items.size()) return false;
      for (const auto& [key, value] : a.dict().items) {
        const Value* other = b.dict().find(budget, key);
        if (other == nullptr || !equals(budget, value, *other)) return false;
      }
      return true;
    }
    case Type::kRange: {
      const auto& x = a.get<RangeObject>();
      const auto& y = b.get<RangeObject>();
      if (x.size() != y.size()) return false;
      if (x.size() == 0) return true;
      return x.start == y.start && (x.size() == 1 || x.step == y.step);
    }
    case Type::kMethod: {
      const auto& x = a.get<MethodObject>();
      const auto& y = b.get<MethodObject>();
      return x.name == y.name && identical(x.self, y.self);
    }
    default:
      return a.object() == b.object();
  }
}

bool less(Budget& budget, const Value& a, const Value& b, const char* symbol) {
  return compare(budget, a, b, symbol);
}

bool compare(Budget& budget, const Value& a, const Value& b, std::string_view symbol) {
  budget.step();
  require_defined(a);
  require_defined(b);
  const auto decide = [&](int order) {
    if (order == 2) return false;
    if (symbol == "<") return order < 0;
    if (symbol == ">") return order > 0;
    if (symbol == "<=") return order <= 0;
    return order >= 0;
  };
  if (a.is_number() && b.is_number()) return decide(compare_numbers(a, b));
  if (a.is_string() && b.is_string()) {
    const int order = a.text().compare(b.text());
    return decide(order < 0 ? -1 : order > 0 ? 1 : 0);
  }
  if (a.is_sequence() && a.type() == b.type()) {
    DepthGuard guard(budget);
    const auto &x = a.items(), &y = b.items();
    for (size_t i = 0; i < x.size() && i < y.size(); ++i) {
      if (!equals(budget, x[i], y[i])) return compare(budget, x[i], y[i], symbol);
    }
    return decide(x.size() < y.size() ? -1 : x.size() > y.size() ? 1 : 0);
  }
  fail(fmt::format("'{}' not supported between instances of '{}' and '{}'", symbol, type_name(a),
                   type_name(b)));
}

size_t hash(Budget& budget, const Value& value) {
  budget.step();
  switch (value.type()) {
    case Type::kUndefined:
      return 1;
    case Type::kNone:
      return 2;
    case Type::kBool:
    case Type::kInt:
      return std::hash<int64_t>{}(static_cast<int64_t>(value.as_int()));
    case Type::kFloat: {
      Int whole = 0;
      if (exact_integer(value.as_double(), whole)) {
        return std::hash<int64_t>{}(static_cast<int64_t>(whole));
      }
      return std::hash<double>{}(value.as_double());
    }
    case Type::kString:
      return std::hash<std::string_view>{}(value.text());
    case Type::kTuple: {
      DepthGuard guard(budget);
      size_t result = 0x345678;
      for (const Value& item : value.items()) result = result * 1000003 ^ hash(budget, item);
      return result;
    }
    case Type::kList:
    case Type::kDict:
      fail(fmt::format("unhashable type: '{}'", type_name(value)));
    case Type::kRange:
      return static_cast<size_t>(value.get<RangeObject>().size());
    default:
      return std::hash<const void*>{}(value.object().get());
  }
}

bool is_iterable(const Value& value) {
  switch (value.type()) {
    case Type::kUndefined:
    case Type::kString:
    case Type::kList:
    case Type::kTuple:
    case Type::kDict:
    case Type::kRange:
    case Type::kDictView:
    case Type::kIterator:
    case Type::kLoop:
      return true;
    default:
      return false;
  }
}

void for_each(Budget& budget, const Value& value, const std::function<bool(const Value&)>& visit) {
  switch (value.type()) {
    case Type::kUndefined:
      return;
    case Type::kString: {
      const Value keep = value;
      const std::string& text = keep.text();
      for (size_t offset = 0; offset < text.size();) {
        budget.step();
        const size_t begin = offset;
        next_char(text, offset);
        if (!visit(Value::string(text.substr(begin, offset - begin)))) return;
      }
      return;
    }
    case Type::kList:
    case Type::kTuple: {
      const Value keep = value;
      for (const Value& item : keep.items()) {
        budget.step();
        if (!visit(item)) return;
      }
      return;
    }
    case Type::kDict: {
      const Value keep = value;
      for (const auto& item : keep.dict().items) {
        budget.step();
        if (!visit(item.first)) return;
      }
      return;
    }
    case Type::kDictView: {
      const Value keep = value;
      const auto& view = keep.get<DictViewObject>();
      for (const auto& item : view.dict.dict().items) {
        budget.step();
        if (!visit(view_item(item, view.kind))) return;
      }
      return;
    }
    case Type::kRange: {
      const RangeObject range = value.get<RangeObject>();
      const int64_t size = range.size();
      for (int64_t i = 0; i < size; ++i) {
        budget.step();
        if (!visit(Value::integer(range.start + range.step * i))) return;
      }
      return;
    }
    case Type::kIterator: {
      const Value keep = value;
      Value item;
      while (keep.get<IteratorObject>().next(item)) {
        budget.step();
        if (!visit(item)) return;
      }
      return;
    }
    default:
      fail(fmt::format("'{}' object is not iterable", type_name(value)));
  }
}

std::vector<Value> to_vector(Budget& budget, const Value& value) {
  if (value.is_sequence()) {
    budget.bytes(static_cast<int64_t>(value.items().size() * sizeof(Value)));
    return value.items();
  }
  std::vector<Value> out;
  for_each(budget, value, [&](const Value& item) {
    budget.bytes(sizeof(Value));
    out.push_back(item);
    return true;
  });
  return out;
}

bool contains(Budget& budget, const Value& container, const Value& element) {
  switch (container.type()) {
    case Type::kString:
      if (!element.is_string()) {
        fail(fmt::format("'in <string>' requires string as left operand, not {}",
                         type_name(element)));
      }
      budget.step(1 + static_cast<int64_t>(container.text().size() / 64));
      return find_text(container.text(), element.text()) != std::string::npos;
    case Type::kDict:
      return container.dict().find(budget, element) != nullptr;
    case Type::kDictView:
      if (container.get<DictViewObject>().kind == DictViewKind::kKeys) {
        return container.get<DictViewObject>().dict.dict().find(budget, element) != nullptr;
      }
      break;
    default:
      if (!is_iterable(container)) {
        fail(fmt::format("argument of type '{}' is not iterable", type_name(container)));
      }
  }
  bool found = false;
  for_each(budget, container, [&](const Value& item) {
    found = identical(item, element) || equals(budget, item, element);
    return !found;
  });
  return found;
}

Value binary(Budget& budget, BinaryOp op, const Value& a, const Value& b) {
  if (a.is_integer() && b.is_integer()) return binary_integers(budget, op, a.as_int(), b.as_int());
  if (a.is_number() && b.is_number()) return binary_reals(op, a.as_double(), b.as_double());
  if (op == BinaryOp::kMod && a.is_string()) {
    return Value::string(percent_format(budget, a.text(), b), a.is_markup());
  }
  require_defined(a);
  require_defined(b);
  if (op == BinaryOp::kAdd) {
    if (a.is_string() && b.is_string()) return add_strings(budget, a, b);
    if (a.is_sequence() && a.type() == b.type()) {
      std::vector<Value> items = to_vector(budget, a);
      const std::vector<Value> more = to_vector(budget, b);
      items.insert(items.end(), more.begin(), more.end());
      return a.is(Type::kList) ? Value::list(std::move(items)) : Value::tuple(std::move(items));
    }
    if (a.is_string() || a.is_sequence()) {
      const char* kind = a.is_string() ? "str" : a.is(Type::kList) ? "list" : "tuple";
      fail(fmt::format("can only concatenate {} (not \"{}\") to {}", kind, type_name(b), kind));
    }
  }
  if (op == BinaryOp::kMul) {
    const auto repeatable = [](const Value& v) { return v.is_string() || v.is_sequence(); };
    if (repeatable(a) && b.is_integer()) return repeat(budget, a, b.as_int());
    if (repeatable(b) && a.is_integer()) return repeat(budget, b, a.as_int());
    if (repeatable(a)) {
      fail(fmt::format("can't multiply sequence by non-int of type '{}'", type_name(b)));
    }
  }
  fail_binary(binary_symbol(op), a, b);
}

Value negate(const Value& value) {
  require_defined(value);
  if (value.is_integer()) {
    Int result = 0;
    return Value::integer(checked(__builtin_sub_overflow(Int{0}, value.as_int(), &result), result));
  }
  if (value.is(Type::kFloat)) return Value::real(-value.as_double());
  fail(fmt::format("bad operand type for unary -: '{}'", type_name(value)));
}

Value positive(const Value& value) {
  require_defined(value);
  if (value.is_integer()) return Value::integer(value.as_int());
  if (value.is(Type::kFloat)) return value;
  fail(fmt::format("bad operand type for unary +: '{}'", type_name(value)));
}

bool item_at(const Value& value, Int index, Value& out) {
  int64_t size = 0;
  switch (value.type()) {
    case Type::kString:
    case Type::kList:
    case Type::kTuple:
    case Type::kRange:
      length(value, size);
      break;
    default:
      return false;
  }
  if (index < 0) index += size;
  if (index < 0 || index >= size) return false;
  const auto place = static_cast<size_t>(index);
  if (value.is_sequence()) {
    out = value.items()[place];
  } else if (value.is(Type::kRange)) {
    const auto& range = value.get<RangeObject>();
    out = Value::integer(range.start + range.step * index);
  } else {
    size_t offset = char_offset(value.text(), static_cast<int64_t>(place));
    const size_t begin = offset;
    next_char(value.text(), offset);
    out = Value::string(value.text().substr(begin, offset - begin), value.is_markup());
  }
  return true;
}

namespace {

Int slice_bound(const Value& bound, Int fallback, Int size, Int lowest, Int highest) {
  if (bound.is_none()) return fallback;
  if (bound.is_undefined() || !bound.is_integer()) {
    fail("slice indices must be integers or None or have an __index__ method");
  }
  Int index = bound.as_int();
  if (index < 0) index += size;
  return std::clamp(index, lowest, highest);
}

}  // namespace

Value slice(Budget& budget, const Value& value, const Value& start, const Value& stop,
            const Value& step) {
  require_defined(value);
  int64_t size = 0;
  const bool is_sliceable = value.is_string() || value.is_sequence() || value.is(Type::kRange);
  if (!is_sliceable) {
    if (value.is(Type::kDict)) fail("unhashable type: 'slice'");
    fail(fmt::format("'{}' object is not subscriptable", type_name(value)));
  }
  length(value, size);
  Int stride = 1;
  if (!step.is_none()) {
    if (!step.is_integer())
      fail("slice indices must be integers or None or have an __index__ method");
    stride = step.as_int();
    if (stride == 0) fail("slice step cannot be zero");
  }
  const bool forward = stride > 0;
  const Int lowest = forward ? 0 : -1, highest = forward ? size : size - 1;
  const Int from = slice_bound(start, forward ? lowest : highest, size, lowest, highest);
  const Int to = slice_bound(stop, forward ? highest : lowest, size, lowest, highest);
  if (value.is(Type::kRange)) {
    const auto& range = value.get<RangeObject>();
    auto object = std::make_shared<RangeObject>();
    object->start = range.start + range.step * from;
    object->stop = range.start + range.step * to;
    object->step = range.step * stride;
    return Value::of(Type::kRange, std::move(object));
  }
  RangeObject picked;
  picked.start = from;
  picked.stop = to;
  picked.step = stride;
  const int64_t count = picked.size();
  if (value.is_sequence()) {
    budget.bytes(count * static_cast<int64_t>(sizeof(Value)));
    budget.step(count / 8);
    std::vector<Value> out;
    out.reserve(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) {
      out.push_back(value.items()[static_cast<size_t>(from + stride * i)]);
    }
    return value.is(Type::kList) ? Value::list(std::move(out)) : Value::tuple(std::move(out));
  }
  const std::string& text = value.text();
  budget.bytes(static_cast<int64_t>(text.size()));
  if (stride == 1) {
    const size_t begin = char_offset(text, static_cast<int64_t>(from));
    const size_t length_bytes = char_offset(std::string_view(text).substr(begin), count);
    return Value::string(text.substr(begin, length_bytes), value.is_markup());
  }
  std::vector<size_t> offsets;
  budget.bytes(static_cast<int64_t>(size * static_cast<int64_t>(sizeof(size_t))));
  for (size_t offset = 0; offset < text.size(); next_char(text, offset)) offsets.push_back(offset);
  offsets.push_back(text.size());
  std::string out;
  for (int64_t i = 0; i < count; ++i) {
    const auto place = static_cast<size_t>(from + stride * i);
    out.append(text, offsets[place], offsets[place + 1] - offsets[place]);
  }
  return Value::string(std::move(out), value.is_markup());
}

}  // namespace gradus::data::jinja
