// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>

#include "data/internal/jinja/runtime.h"
#include "data/internal/jinja/text.h"

namespace gradus::data::jinja {
namespace {

using Args = CallArguments;
using Names = std::set<std::string_view>;

const Names& method_names(Type type) {
  static const Names kString = {
      "capitalize",   "casefold",    "center",    "count",      "encode",       "endswith",
      "expandtabs",   "find",        "format",    "format_map", "index",        "isalnum",
      "isalpha",      "isascii",     "isdecimal", "isdigit",    "isidentifier", "islower",
      "isnumeric",    "isprintable", "isspace",   "istitle",    "isupper",      "join",
      "ljust",        "lower",       "lstrip",    "maketrans",  "partition",    "removeprefix",
      "removesuffix", "replace",     "rfind",     "rindex",     "rjust",        "rpartition",
      "rsplit",       "rstrip",      "split",     "splitlines", "startswith",   "strip",
      "swapcase",     "title",       "translate", "upper",      "zfill"};
  static const Names kDict = {"clear", "copy",    "fromkeys",   "get",    "items", "keys",
                              "pop",   "popitem", "setdefault", "update", "values"};
  static const Names kList = {"append", "clear", "copy",   "count",   "extend", "index",
                              "insert", "pop",   "remove", "reverse", "sort"};
  static const Names kTuple = {"count", "index"};
  static const Names kInt = {"as_integer_ratio", "bit_count",  "bit_length",
                             "conjugate",        "from_bytes", "to_bytes"};
  static const Names kFloat = {"as_integer_ratio", "conjugate", "fromhex", "hex", "is_integer"};
  static const Names kLoop = {"cycle", "changed"};
  static const Names kCycler = {"next", "reset"};
  static const Names kDictView = {"isdisjoint"};
  static const Names kNone = {};
  switch (type) {
    case Type::kString:
      return kString;
    case Type::kDict:
      return kDict;
    case Type::kList:
      return kList;
    case Type::kTuple:
    case Type::kRange:
      return kTuple;
    case Type::kBool:
    case Type::kInt:
      return kInt;
    case Type::kFloat:
      return kFloat;
    case Type::kLoop:
      return kLoop;
    case Type::kCycler:
      return kCycler;
    case Type::kDictView:
      return kDictView;
    default:
      return kNone;
  }
}

int64_t index_argument(const Value& value, int64_t fallback) {
  if (value.is_missing() || value.is_none()) return fallback;
  require_defined(value);
  if (!value.is_integer())
    fail("slice indices must be integers or None or have an __index__ method");
  return static_cast<int64_t>(std::clamp<Int>(value.as_int(), INT64_MIN / 2, INT64_MAX / 2));
}

int64_t size_argument(const Value& value) {
  require_defined(value);
  if (!value.is_integer())
    fail(fmt::format("'{}' object cannot be interpreted as an integer", type_name(value)));
  return static_cast<int64_t>(std::clamp<Int>(value.as_int(), INT64_MIN / 2, INT64_MAX / 2));
}

const std::string& text_argument(const Value& value) {
  require_defined(value);
  if (!value.is_string()) fail(fmt::format("must be str, not {}", type_name(value)));
  return value.text();
}

// One call of a method of a text.
class StringMethod {
 public:
  StringMethod(Interpreter& run, const Value& self, Args& args)
      : run_(run), self_(self), text_(self.text()), args_(args) {}

  Value call(const std::string& name) {
    run_.budget().bytes(static_cast<int64_t>(text_.size()));
    using Method = Value (StringMethod::*)();
    static const std::map<std::string_view, Method> kMethods = {
        {"split", &StringMethod::split},
        {"rsplit", &StringMethod::rsplit},
        {"splitlines", &StringMethod::splitlines},
        {"strip", &StringMethod::strip_both},
        {"lstrip", &StringMethod::strip_left},
        {"rstrip", &StringMethod::strip_right},
        {"startswith", &StringMethod::startswith},
        {"endswith", &StringMethod::endswith},
        {"upper", &StringMethod::upper},
        {"lower", &StringMethod::lower},
        {"casefold", &StringMethod::casefold},
        {"title", &StringMethod::title_case},
        {"capitalize", &StringMethod::capital},
        {"swapcase", &StringMethod::swap},
        {"replace", &StringMethod::replace_text},
        {"find", &StringMethod::find},
        {"rfind", &StringMethod::rfind},
        {"index", &StringMethod::index},
        {"rindex", &StringMethod::rindex},
        {"count", &StringMethod::count},
        {"join", &StringMethod::join},
        {"partition", &StringMethod::partition},
        {"rpartition", &StringMethod::rpartition},
        {"removeprefix", &StringMethod::removeprefix},
        {"removesuffix", &StringMethod::removesuffix},
        {"zfill", &StringMethod::zfill},
        {"center", &StringMethod::center},
        {"ljust", &StringMethod::ljust},
        {"rjust", &StringMethod::rjust},
        {"expandtabs", &StringMethod::expandtabs},
        {"format", &StringMethod::format},
        {"format_map", &StringMethod::format_map},
        {"islower", &StringMethod::islower},
        {"isupper", &StringMethod::isupper},
        {"istitle", &StringMethod::istitle},
        {"isascii", &StringMethod::isascii},
        {"isidentifier", &StringMethod::isidentifier},
        {"isprintable", &StringMethod::isprintable},
    };
    static const std::map<std::string_view, std::string_view> kClasses = {
        {"isalpha", "alpha"}, {"isdigit", "digit"}, {"isdecimal", "decimal"},
        {"isalnum", "alnum"}, {"isspace", "space"}, {"isnumeric", "numeric"}};
    if (const auto found = kClasses.find(name); found != kClasses.end()) {
      args_.finish();
      return Value::boolean(all_chars(text_, found->second));
    }
    const auto found = kMethods.find(name);
    if (found == kMethods.end()) fail(fmt::format("the method str.{} is not supported", name));
    return (this->*found->second)();
  }

 private:
  Value made(std::string text) const { return Value::string(std::move(text), self_.is_markup()); }
  Value made(std::vector<std::string> parts) {
    std::vector<Value> values;
    run_.budget().bytes(static_cast<int64_t>(parts.size() * sizeof(Value)));
    for (std::string& part : parts) values.push_back(made(std::move(part)));
    return Value::list(std::move(values));
  }
  // Parameters that take no name.
  Value positional(const char* name) {
    if (!args_.named.empty())
      fail(fmt::format("str.{}() takes no keyword arguments", args_.callee));
    return args_.take(name);
  }
  Value needed(const char* name) {
    if (!args_.named.empty())
      fail(fmt::format("str.{}() takes no keyword arguments", args_.callee));
    return args_.require(name);
  }

  Value split_any(bool from_right) {
    const Value separator = args_.take("sep", Value::none());
    const int64_t limit = size_argument(args_.take("maxsplit", Value::integer(-1)));
    args_.finish();
    if (separator.is_none()) return made(split_space(text_, limit, from_right));
    return made(split_by(run_.budget(), text_, text_argument(separator), limit, from_right));
  }
  Value split() { return split_any(false); }
  Value rsplit() { return split_any(true); }
  Value splitlines() {
    const bool keep_ends = args_.take_bool(run_, "keepends", false);
    args_.finish();
    return made(split_lines(text_, keep_ends));
  }

  Value strip_any(bool left, bool right) {
    const Value chars = positional("chars");
    args_.finish();
    if (chars.is_missing() || chars.is_none()) return made(std::string(strip(text_, left, right)));
    return made(std::string(strip(text_, left, right, text_argument(chars), true)));
  }
  Value strip_both() { return strip_any(true, true); }
  Value strip_left() { return strip_any(true, false); }
  Value strip_right() { return strip_any(false, true); }

  // The part that [start:end] names; false if start is beyond the end of the text.
  bool window(std::string_view& part, int64_t& start) {
    const int64_t size = self_.get<StringObject>().num_chars;
    start = index_argument(positional("start"), 0);
    int64_t end = index_argument(positional("end"), size);
    args_.finish();
    if (start < 0) start = std::max<int64_t>(0, start + size);
    if (end < 0) end = std::max<int64_t>(0, end + size);
    end = std::min(end, size);
    if (start > end) return false;
    const size_t begin = char_offset(text_, start);
    part = std::string_view(text_).substr(
        begin, char_offset(std::string_view(text_).substr(begin), end - start));
    return true;
  }

  Value matches_end(bool at_start) {
    const Value wanted = needed("prefix");
    std::string_view part;
    int64_t start = 0;
    const bool is_inside = window(part, start);
    const auto matches = [&](const Value& one) {
      if (!one.is_string()) {
        require_defined(one);
        fail(fmt::format("{} first arg must be str or a tuple of str, not {}",
                         at_start ? "startswith" : "endswith", type_name(one)));
      }
      return is_inside && (at_start ? part.starts_with(one.text()) : part.ends_with(one.text()));
    };
    if (!wanted.is(Type::kTuple)) return Value::boolean(matches(wanted));
    return Value::boolean(std::any_of(wanted.items().begin(), wanted.items().end(), matches));
  }
  Value startswith() { return matches_end(true); }
  Value endswith() { return matches_end(false); }

  int64_t position(bool from_right) {
    const std::string wanted = text_argument(needed("sub"));
    std::string_view part;
    int64_t start = 0;
    if (!window(part, start)) return -1;
    const size_t found =
        from_right ? find_last_text(run_.budget(), part, wanted) : find_text(part, wanted);
    return found == std::string_view::npos ? -1 : start + count_chars(part.substr(0, found));
  }
  Value find() { return Value::integer(position(false)); }
  Value rfind() { return Value::integer(position(true)); }
  Value found_or_fail(bool from_right) {
    const int64_t place = position(from_right);
    if (place < 0) fail("substring not found");
    return Value::integer(place);
  }
  Value index() { return found_or_fail(false); }
  Value rindex() { return found_or_fail(true); }

  Value count() {
    const std::string wanted = text_argument(needed("sub"));
    std::string_view part;
    int64_t start = 0;
    if (!window(part, start)) return Value::integer(0);
    if (wanted.empty()) return Value::integer(count_chars(part) + 1);
    int64_t count = 0;
    for (size_t at = find_text(part, wanted); at != std::string_view::npos;
         at = find_text(part, wanted, at + wanted.size())) {
      ++count;
    }
    return Value::integer(count);
  }

  template <class Function>
  Value plain(const Function& function) {
    args_.finish();
    return made(function(text_));
  }
  Value upper() { return plain(to_upper); }
  Value lower() { return plain(to_lower); }
  Value title_case() { return plain(title); }
  Value capital() { return plain(capitalize); }
  Value swap() { return plain(swap_case); }
  Value casefold() { return plain(fold_case); }

  Value replace_text() {
    const Value from = needed("old");
    const Value to = needed("new");
    const Value count = positional("count");
    args_.finish();
    const std::string target =
        self_.is_markup() && !to.is_markup() ? escape_html(text_argument(to)) : text_argument(to);
    return made(replace(run_.budget(), text_, text_argument(from), target,
                        count.is_missing() ? -1 : size_argument(count)));
  }

  Value join() {
    const Value items = needed("iterable");
    args_.finish();
    if (!is_iterable(items)) fail("can only join an iterable");
    std::string out;
    int64_t place = 0;
    for_each(run_.budget(), items, [&](const Value& item) {
      if (place > 0) out += text_;
      if (self_.is_markup()) {
        out += item.is_markup() ? item.text() : escape_html(to_text(run_.budget(), item));
      } else if (!item.is_string()) {
        fail(fmt::format("sequence item {}: expected str instance, {} found", place,
                         type_name(item)));
      } else {
        out += item.text();
      }
      run_.budget().bytes(
          static_cast<int64_t>(text_.size() + (item.is_string() ? item.text().size() : 0)));
      ++place;
      return true;
    });
    return made(std::move(out));
  }

  Value partition_any(bool from_right) {
    const std::string separator = text_argument(needed("sep"));
    args_.finish();
    if (separator.empty()) fail("empty separator");
    const size_t at =
        from_right ? find_last_text(run_.budget(), text_, separator) : find_text(text_, separator);
    if (at == std::string::npos) {
      return from_right ? Value::tuple({made(std::string()), made(std::string()), self_})
                        : Value::tuple({self_, made(std::string()), made(std::string())});
    }
    return Value::tuple(
        {made(text_.substr(0, at)), made(separator), made(text_.substr(at + separator.size()))});
  }
  Value partition() { return partition_any(false); }
  Value rpartition() { return partition_any(true); }

  Value removeprefix() {
    const std::string prefix = text_argument(needed("prefix"));
    args_.finish();
    return made(text_.starts_with(prefix) ? text_.substr(prefix.size()) : text_);
  }
  Value removesuffix() {
    const std::string suffix = text_argument(needed("suffix"));
    args_.finish();
    return made(text_.ends_with(suffix) ? text_.substr(0, text_.size() - suffix.size()) : text_);
  }

  int64_t missing_chars(int64_t width) {
    const int64_t missing = std::max<int64_t>(0, width - self_.get<StringObject>().num_chars);
    run_.budget().bytes(missing);
    return missing;
  }
  Value zfill() {
    const int64_t missing = missing_chars(size_argument(needed("width")));
    args_.finish();
    const size_t sign = !text_.empty() && (text_[0] == '-' || text_[0] == '+') ? 1 : 0;
    return made(text_.substr(0, sign) + std::string(static_cast<size_t>(missing), '0') +
                text_.substr(sign));
  }
  Value justify(char align) {
    const int64_t width = size_argument(needed("width"));
    const Value fill_value = positional("fillchar");
    args_.finish();
    const std::string fill = fill_value.is_missing() ? " " : text_argument(fill_value);
    if (count_chars(fill) != 1) fail("The fill character must be exactly one character long");
    const int64_t missing = missing_chars(width);
    // str.center puts the odd one to the left when the width is odd.
    const int64_t left = align == '<'   ? 0
                         : align == '>' ? missing
                                        : missing / 2 + (missing & width & 1);
    std::string out;
    for (int64_t i = 0; i < left; ++i) out += fill;
    out += text_;
    for (int64_t i = left; i < missing; ++i) out += fill;
    return made(std::move(out));
  }
  Value center() { return justify('^'); }
  Value ljust() { return justify('<'); }
  Value rjust() { return justify('>'); }

  Value expandtabs() {
    const int64_t size =
        std::min<int64_t>(1000, size_argument(args_.take("tabsize", Value::integer(8))));
    args_.finish();
    std::string out;
    int64_t column = 0;
    for (size_t offset = 0; offset < text_.size();) {
      const size_t begin = offset;
      const char32_t c = next_char(text_, offset);
      if (c == '\t') {
        const int64_t blanks = size > 0 ? size - column % size : 0;
        run_.budget().bytes(blanks);
        out.append(static_cast<size_t>(blanks), ' ');
        column += blanks;
        continue;
      }
      out += text_.substr(begin, offset - begin);
      column = c == '\n' || c == '\r' ? 0 : column + 1;
    }
    return made(std::move(out));
  }

  template <class Check>
  Value checked(const Check& check) {
    args_.finish();
    return Value::boolean(check(text_));
  }
  Value islower() { return checked(is_lower); }
  Value isupper() { return checked(is_upper); }
  Value istitle() { return checked(is_title); }
  Value isidentifier() { return checked(is_identifier); }
  Value isascii() {
    return checked([](const std::string& text) {
      return std::all_of(text.begin(), text.end(),
                         [](char c) { return static_cast<signed char>(c) >= 0; });
    });
  }
  Value isprintable() {
    return checked([](const std::string& text) {
      for (size_t offset = 0; offset < text.size();) {
        if (!is_printable(next_char(text, offset))) return false;
      }
      return true;
    });
  }

  // ---- str.format

  Value format_map() {
    const Value map = needed("mapping");
    args_.finish();
    if (!map.is(Type::kDict)) fail("format_map needs a mapping");
    Args fields;
    for (const auto& [key, value] : map.dict().items) {
      if (key.is_string()) fields.named.emplace_back(key.text(), value);
    }
    next_field_ = 0;
    return made(format_text(text_, fields, 2));
  }
  Value format() {
    next_field_ = 0;
    return made(format_text(text_, args_, 2));
  }

  std::string format_text(std::string_view text, const Args& fields, int depth) {
    if (depth < 0) fail("Max string recursion exceeded");
    std::string out;
    for (size_t i = 0; i < text.size();) {
      const char c = text[i++];
      if (c == '{' || c == '}') {
        if (i < text.size() && text[i] == c) {
          out += c;
          ++i;
          continue;
        }
        if (c == '}') fail("Single '}' encountered in format string");
        size_t end = i;
        for (int open = 1; open > 0; ++end) {
          if (end >= text.size())
            fail(i >= text.size() ? "Single '{' encountered in format string"
                                  : "expected '}' before end of string");
          open += text[end] == '{' ? 1 : text[end] == '}' ? -1 : 0;
        }
        out += replacement(text.substr(i, end - 1 - i), fields, depth);
        i = end;
        continue;
      }
      out += c;
    }
    run_.budget().bytes(static_cast<int64_t>(out.size()));
    return out;
  }

  std::string replacement(std::string_view field, const Args& fields, int depth) {
    size_t name_end = 0;
    for (bool in_brackets = false; name_end < field.size(); ++name_end) {
      const char c = field[name_end];
      if (c == '[') in_brackets = true;
      if (c == ']') in_brackets = false;
      if (!in_brackets && (c == ':' || c == '!')) break;
    }
    Value value = field_value(field.substr(0, name_end), fields);
    field.remove_prefix(name_end);
    if (!field.empty() && field[0] == '!') {
      if (field.size() < 2 || (field.size() > 2 && field[2] != ':'))
        fail("expected ':' after conversion specifier");
      if (field[1] == 's')
        value = Value::string(to_text(run_.budget(), value));
      else if (field[1] == 'r')
        value = Value::string(to_repr(run_.budget(), value));
      else
        fail(fmt::format("Unknown conversion specifier '{}'", field[1]));
      field.remove_prefix(2);
    }
    if (!field.empty()) field.remove_prefix(1);
    return format_value(run_.budget(), value, format_text(field, fields, depth - 1));
  }

  Value field_value(std::string_view path, const Args& fields) {
    size_t end = path.find_first_of(".[");
    if (end == std::string_view::npos) end = path.size();
    const std::string first(path.substr(0, end));
    Int place = 0;
    Value value;
    const bool is_number = all_chars(first, "decimal") && parse_int(first, 10, place);
    if (first.empty() || is_number) {
      if (first.empty() ? next_field_ < 0 : next_field_ > 0) {
        fail("cannot switch between manual field specification and automatic field numbering");
      }
      if (first.empty())
        place = next_field_++;
      else
        next_field_ = -1;
      if (place >= static_cast<Int>(fields.positional.size())) {
        fail("Replacement index out of range for positional args tuple");
      }
      value = fields.positional[static_cast<size_t>(place)];
    } else {
      const auto found =
          std::find_if(fields.named.begin(), fields.named.end(),
                       [&](const auto& argument) { return argument.first == first; });
      if (found == fields.named.end()) fail(fmt::format("format has no argument '{}'", first));
      value = found->second;
    }
    for (path.remove_prefix(end); !path.empty();) {
      if (path[0] == '.') {
        end = std::min(path.size(), path.find_first_of(".[", 1));
        value = run_.attribute(value, std::string(path.substr(1, end - 1)));
        path.remove_prefix(end);
        continue;
      }
      if (path[0] != '[') fail("Only '.' or '[' may follow ']' in format field specifier");
      end = path.find(']');
      if (end == std::string_view::npos) fail("Missing ']' in format string");
      const std::string key(path.substr(1, end - 1));
      if (key.empty()) fail("Empty attribute in format string");
      Int number = 0;
      value = all_chars(key, "decimal") && parse_int(key, 10, number)
                  ? run_.item(value, Value::integer(number))
                  : run_.item(value, Value::string(key));
      path.remove_prefix(end + 1);
    }
    return value;
  }

  Interpreter& run_;
  const Value& self_;
  const std::string& text_;
  Args& args_;
  int64_t next_field_ = 0;  // -1: fields are numbered by hand
};

Value dict_view(const Value& dict, DictViewKind kind) {
  auto view = std::make_shared<DictViewObject>();
  nest(*view, dict);
  view->dict = dict;
  view->kind = kind;
  return Value::of(Type::kDictView, std::move(view));
}

Value call_dict_method(Interpreter& run, const Value& self, const std::string& name, Args& args) {
  if (name == "get") {
    if (!args.named.empty()) fail("dict.get() takes no keyword arguments");
    const Value key = args.require("key");
    const Value fallback = args.take("default", Value::none());
    args.finish();
    const Value* found = self.dict().find(run.budget(), key);
    return found == nullptr ? fallback : *found;
  }
  if (name == "fromkeys") {
    const Value keys = args.require("iterable");
    const Value value = args.take("value", Value::none());
    args.finish();
    auto dict = std::make_shared<DictObject>();
    for_each(run.budget(), keys, [&](const Value& key) {
      dict->set(run.budget(), key, value);
      return true;
    });
    return Value::of(Type::kDict, std::move(dict));
  }
  args.finish();
  if (name == "items") return dict_view(self, DictViewKind::kItems);
  if (name == "keys") return dict_view(self, DictViewKind::kKeys);
  if (name == "values") return dict_view(self, DictViewKind::kValues);
  if (name == "copy") return self;
  fail(fmt::format("the method dict.{} is not supported", name));
}

Value call_sequence_method(Interpreter& run, const Value& self, const std::string& name,
                           Args& args) {
  if (name == "copy") {
    args.finish();
    return self;
  }
  const std::vector<Value> items = to_vector(run.budget(), self);
  const Value wanted = args.require("value");
  if (name == "count") {
    args.finish();
    const auto count = std::count_if(items.begin(), items.end(), [&](const Value& item) {
      return identical(item, wanted) || equals(run.budget(), item, wanted);
    });
    return Value::integer(count);
  }
  const auto size = static_cast<int64_t>(items.size());
  int64_t start = index_argument(args.take("start"), 0);
  int64_t stop = index_argument(args.take("stop"), size);
  args.finish();
  if (start < 0) start = std::max<int64_t>(0, start + size);
  if (stop < 0) stop += size;
  for (int64_t i = start; i < std::min(stop, size); ++i) {
    if (equals(run.budget(), items[static_cast<size_t>(i)], wanted)) return Value::integer(i);
  }
  fail(fmt::format("{} is not in {}", to_repr(run.budget(), wanted), type_name(self)));
}

Value call_number_method(const Value& self, const std::string& name, Args& args) {
  args.finish();
  if (name == "conjugate") return positive(self);
  if (name == "is_integer" && self.is(Type::kFloat)) {
    const double real = self.as_double();
    return Value::boolean(real - real == 0 &&
                          real == static_cast<double>(static_cast<long double>(real)) &&
                          __builtin_floor(real) == real);
  }
  if ((name == "bit_length" || name == "bit_count") && self.is_integer()) {
    Int rest = self.as_int() < 0 ? -self.as_int() : self.as_int();
    int length = 0, count = 0;
    for (; rest > 0; rest >>= 1) {
      ++length;
      count += static_cast<int>(rest & 1);
    }
    return Value::integer(name == "bit_length" ? length : count);
  }
  fail(fmt::format("the method {}.{} is not supported", type_name(self), name));
}

}  // namespace

bool has_method(const Value& object, std::string_view name) {
  return method_names(object.type()).count(name) != 0;
}

bool is_forbidden_method(const Value& object, std::string_view name) {
  static const Names kDict = {"clear", "pop", "popitem", "setdefault", "update"};
  static const Names kList = {"append", "clear", "pop",    "reverse",
                              "insert", "sort",  "extend", "remove"};
  if (object.is(Type::kDict)) return kDict.count(name) != 0;
  return object.is(Type::kList) && kList.count(name) != 0;
}

Value call_builtin_method(Interpreter& interpreter, const Value& self, const std::string& name,
                          Args& args) {
  args.callee = name;
  switch (self.type()) {
    case Type::kString:
      return StringMethod(interpreter, self, args).call(name);
    case Type::kDict:
      return call_dict_method(interpreter, self, name, args);
    case Type::kList:
    case Type::kTuple:
    case Type::kRange:
      return call_sequence_method(interpreter, self, name, args);
    case Type::kBool:
    case Type::kInt:
    case Type::kFloat:
      return call_number_method(self, name, args);
    default:
      fail(fmt::format("the method {}.{} is not supported", type_name(self), name));
  }
}

}  // namespace gradus::data::jinja
