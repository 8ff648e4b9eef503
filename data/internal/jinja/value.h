// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

// Values of the template language: Python's objects as far as templates see them. Every operation
// has Python's result, Python's spelling when printed, and Python's refusals (a TemplateError).
namespace gradus::data::jinja {

// Ints are exact to 127 bits; what goes beyond is an error where Python would go on.
__extension__ typedef __int128 Int;

// What stops a rendering or a parse: thrown inside the engine, made a Status at its border.
struct TemplateError {
  std::string message;
  int line = 0;  // 0: not known yet, the interpreter's current line
};

[[noreturn]] void fail(std::string message);

// What a rendering may still use. Everything that recurses, loops over data or makes text is
// charged here, so that a hostile template ends with an error instead of filling memory or time.
struct Budget {
  int64_t steps_left = 0;
  int64_t bytes_left = 0;
  int depth = 0;
  int max_depth = 0;

  void step(int64_t count = 1) {
    if ((steps_left -= count) < 0) out_of("steps");
  }
  void bytes(int64_t count) {
    if ((bytes_left -= count) < 0) out_of("memory");
  }
  [[noreturn]] void out_of(const char* what) const;
};

// One level of nesting, for as long as it lives.
class DepthGuard {
 public:
  explicit DepthGuard(Budget& budget) : budget_(budget) {
    if (++budget_.depth > budget_.max_depth) {
      --budget_.depth;
      budget_.out_of("nesting");
    }
  }
  ~DepthGuard() { --budget_.depth; }
  DepthGuard(const DepthGuard&) = delete;
  DepthGuard& operator=(const DepthGuard&) = delete;

 private:
  Budget& budget_;
};

enum class Type : uint8_t {
  kMissing,  // a variable not set yet; never seen by an operation
  kUndefined,
  kNone,
  kBool,
  kInt,
  kFloat,
  kString,
  kList,
  kTuple,
  kDict,
  kRange,
  kDictView,
  kIterator,
  kNamespace,
  kFunction,
  kMethod,
  kMacro,
  kLoop,
  kCycler,
  kJoiner,
};

struct Object {
  virtual ~Object() = default;
  // Levels of containers below, so that no value is nested deeper than destructors can follow.
  int depth = 0;
};

struct StringObject;
struct ListObject;
struct DictObject;

class Value {
 public:
  Value() : type_(Type::kMissing) {}
  static Value none() { return Value(Type::kNone); }
  static Value boolean(bool value);
  static Value integer(Int value);
  static Value real(double value);
  // Text in UTF-8; `markup` is jinja's mark of text that is safe HTML already.
  static Value string(std::string text, bool markup = false);
  static Value list(std::vector<Value> items);
  static Value tuple(std::vector<Value> items);
  // `message` says why, should the value be used.
  static Value undefined(std::string message);
  static Value of(Type type, std::shared_ptr<Object> object) {
    Value value(type);
    value.object_ = std::move(object);
    return value;
  }

  Type type() const { return type_; }
  bool is(Type type) const { return type_ == type; }
  bool is_missing() const { return type_ == Type::kMissing; }
  bool is_undefined() const { return type_ == Type::kUndefined; }
  bool is_none() const { return type_ == Type::kNone; }
  bool is_string() const { return type_ == Type::kString; }
  bool is_sequence() const { return type_ == Type::kList || type_ == Type::kTuple; }
  // Bools are ints, as in Python.
  bool is_integer() const { return type_ == Type::kInt || type_ == Type::kBool; }
  bool is_number() const { return is_integer() || type_ == Type::kFloat; }
  bool is_markup() const;

  bool as_bool() const { return integer_ != 0; }
  Int as_int() const { return integer_; }  // of an int or a bool
  double as_double() const { return type_ == Type::kFloat ? real_ : static_cast<double>(integer_); }
  const std::string& text() const;          // of a string
  const std::vector<Value>& items() const;  // of a list or tuple
  const DictObject& dict() const;
  const std::shared_ptr<Object>& object() const { return object_; }
  template <class T>
  T& get() const {
    return static_cast<T&>(*object_);
  }

 private:
  explicit Value(Type type) : type_(type) {}

  Type type_;
  union {
    Int integer_ = 0;
    double real_;
  };
  std::shared_ptr<Object> object_;
};

struct StringObject : Object {
  StringObject(std::string content, bool is_markup);
  std::string text;
  bool markup;
  int64_t num_chars;  // code points; equal to text.size() exactly when all are ASCII
};

struct UndefinedObject : Object {
  std::string message;
};

struct ListObject : Object {
  std::vector<Value> items;
  bool is_group = false;  // a pair of `groupby`, whose items have the names `grouper` and `list`
};

// Keeps the order of insertion, like Python's dict.
struct DictObject : Object {
  std::vector<std::pair<Value, Value>> items;

  // Null if absent. An unhashable key is an error.
  const Value* find(Budget& budget, const Value& key) const;
  const Value* find(std::string_view key) const;
  void set(Budget& budget, Value key, Value value);

 private:
  // Where `key` is in `items`, or their number.
  size_t place(Budget& budget, const Value& key, size_t hash) const;
  std::unordered_multimap<size_t, size_t> index_;  // hash -> place, once there are many items
};

struct RangeObject : Object {
  Int start = 0, stop = 0, step = 1;
  int64_t size() const;
};

enum class DictViewKind { kKeys, kValues, kItems };
struct DictViewObject : Object {
  Value dict;
  DictViewKind kind = DictViewKind::kKeys;
};

// A stream that can be read once, such as what `map` and `select` return.
struct IteratorObject : Object {
  // False at the end.
  virtual bool next(Value& out) = 0;
};

// An object whose attributes templates may set; the only mutable one.
struct NamespaceObject : Object {
  std::vector<std::pair<std::string, Value>> attributes;
  const Value* find(std::string_view name) const;
};

struct MethodObject : Object {
  Value self;
  std::string name;
};

// Makes `object` a container of `child`; an error when it is nested too deep.
void nest(Object& object, const Value& child);

// Names as Python prints them: "str", "int", "dict_items", ...
std::string type_name(const Value& value);

bool truthy(Budget& budget, const Value& value);
// str(value) and repr(value).
std::string to_text(Budget& budget, const Value& value);
void append_text(Budget& budget, const Value& value, std::string& out);
std::string to_repr(Budget& budget, const Value& value);
// to_text as a value; a string stays itself with its mark.
Value soft_text(Budget& budget, const Value& value);

bool equals(Budget& budget, const Value& a, const Value& b);
bool identical(const Value& a, const Value& b);
// a < b, or a TypeError in Python's words with `symbol` (<, >, <=, >=) for the operator.
bool less(Budget& budget, const Value& a, const Value& b, const char* symbol = "<");
bool compare(Budget& budget, const Value& a, const Value& b, std::string_view symbol);
size_t hash(Budget& budget, const Value& value);
bool contains(Budget& budget, const Value& container, const Value& element);
// len(value); false if it has none.
bool length(const Value& value, int64_t& out);
// iter(value): calls `visit` until it returns false. TypeError if not iterable.
void for_each(Budget& budget, const Value& value, const std::function<bool(const Value&)>& visit);
std::vector<Value> to_vector(Budget& budget, const Value& value);
bool is_iterable(const Value& value);

enum class BinaryOp { kAdd, kSub, kMul, kDiv, kFloorDiv, kMod, kPow };
Value binary(Budget& budget, BinaryOp op, const Value& a, const Value& b);
Value negate(const Value& value);
Value positive(const Value& value);

// value[index] with an int; false when out of range or not a sequence.
bool item_at(const Value& value, Int index, Value& out);
// value[start:stop:step], each possibly none.
Value slice(Budget& budget, const Value& value, const Value& start, const Value& stop,
            const Value& step);

// An error that says why if `value` is undefined.
void require_defined(const Value& value);

}  // namespace gradus::data::jinja
