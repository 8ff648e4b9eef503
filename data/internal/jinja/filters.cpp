// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>

#include "data/internal/jinja/runtime.h"
#include "data/internal/jinja/text.h"

namespace gradus::data::jinja {
namespace {

using Args = CallArguments;
using Run = Interpreter;

// ---- streams

// Calls a function for each next value.
struct GeneratorIterator : IteratorObject {
  std::function<bool(Value&)> produce;
  bool next(Value& out) override { return produce(out); }
};

Value generator(const Value& source, std::function<bool(Value&)> produce) {
  auto object = std::make_shared<GeneratorIterator>();
  nest(*object, source);
  object->produce = std::move(produce);
  return Value::of(Type::kIterator, std::move(object));
}

// A stream of the values that `make` gives when the first is asked for.
Value late_list(const Value& source, std::function<std::vector<Value>()> make) {
  auto values = std::make_shared<std::optional<std::vector<Value>>>();
  auto place = std::make_shared<size_t>(0);
  return generator(source, [=](Value& out) {
    if (!*values) *values = make();
    if (*place >= (*values)->size()) return false;
    out = (**values)[(*place)++];
    return true;
  });
}

// The items of `source` one by one; none if it is false, as `map` and `select` have it.
std::function<bool(Value&)> items_of(Run& run, const Value& source) {
  auto stream = std::make_shared<std::shared_ptr<IteratorObject>>();
  auto is_empty = std::make_shared<bool>(false);
  return [&run, source, stream, is_empty](Value& out) {
    if (*is_empty) return false;
    if (*stream == nullptr) {
      *is_empty = !truthy(run.budget(), source);
      if (*is_empty) return false;
      *stream = run.iterate(source);
    }
    DepthGuard guard(run.budget());
    run.budget().step();
    return (*stream)->next(out);
  };
}

// ---- attributes by path

struct AttributePath {
  std::vector<Value> parts;

  // `attribute`: none, an int, or a text of names and numbers with dots between.
  static AttributePath of(const Value& attribute) {
    AttributePath path;
    if (attribute.is_none() || attribute.is_missing()) return path;
    if (!attribute.is_string()) {
      path.parts.push_back(attribute);
      return path;
    }
    Budget unlimited{INT64_MAX, INT64_MAX, 0, 1000};
    for (const std::string& part : split_by(unlimited, attribute.text(), ".", -1, false)) {
      Int number = 0;
      if (all_chars(part, "decimal") && parse_int(part, 10, number)) {
        path.parts.push_back(Value::integer(number));
      } else {
        path.parts.push_back(Value::string(part));
      }
    }
    return path;
  }

  Value get(Run& run, Value item, const Value& fallback = Value::none()) const {
    for (const Value& part : parts) {
      item = run.item(item, part);
      if (!fallback.is_none() && item.is_undefined()) item = fallback;
    }
    return item;
  }
};

Value ignore_case(const Value& value, bool case_sensitive) {
  if (case_sensitive || !value.is_string()) return value;
  return Value::string(to_lower(value.text()));
}

// Stable, like Python's sorted.
void sort_by_keys(Run& run, std::vector<std::pair<Value, Value>>& keyed, bool reverse) {
  std::stable_sort(keyed.begin(), keyed.end(), [&](const auto& a, const auto& b) {
    return reverse ? less(run.budget(), b.first, a.first) : less(run.budget(), a.first, b.first);
  });
}

std::vector<Value> seconds(std::vector<std::pair<Value, Value>> keyed) {
  std::vector<Value> out;
  for (auto& [key, value] : keyed) out.push_back(std::move(value));
  return out;
}

int64_t take_size(const Value& value, const char* name, int64_t lowest, int64_t highest) {
  require_defined(value);
  if (!value.is_integer())
    fail(fmt::format("{} must be an integer, not {}", name, type_name(value)));
  return static_cast<int64_t>(std::clamp<Int>(value.as_int(), lowest, highest));
}

// A method of the text of a value; the mark of safe text is kept.
template <class Function>
Value map_text(Run& run, const Value& value, const Function& function) {
  const Value text = soft_text(run.budget(), value);
  run.budget().bytes(static_cast<int64_t>(text.text().size()));
  return Value::string(function(text.text()), text.is_markup());
}

// ---- text

Value filter_upper(Run& run, const Value& value, Args& args) {
  args.finish();
  return map_text(run, value, to_upper);
}
Value filter_lower(Run& run, const Value& value, Args& args) {
  args.finish();
  return map_text(run, value, to_lower);
}
Value filter_capitalize(Run& run, const Value& value, Args& args) {
  args.finish();
  return map_text(run, value, capitalize);
}

Value filter_title(Run& run, const Value& value, Args& args) {
  args.finish();
  // Each word, begun behind a blank, dash or opening bracket, gets a capital.
  const std::string text = to_text(run.budget(), value);
  run.budget().bytes(static_cast<int64_t>(text.size()));
  const auto is_break = [](char32_t c) {
    return c == '-' || c == '(' || c == '{' || c == '[' || c == '<' || is_space(c);
  };
  std::string out;
  for (size_t offset = 0; offset < text.size();) {
    const size_t begin = offset;
    size_t next = offset;
    const bool breaks = is_break(next_char(text, next));
    const size_t head_end = next;
    offset = next;
    while (offset < text.size()) {
      next = offset;
      if (is_break(next_char(text, next)) != breaks) break;
      offset = next;
    }
    if (breaks) {
      out += text.substr(begin, offset - begin);
    } else {
      out += to_upper(std::string_view(text).substr(begin, head_end - begin));
      out += to_lower(std::string_view(text).substr(head_end, offset - head_end));
    }
  }
  return Value::string(std::move(out));
}

Value filter_trim(Run& run, const Value& value, Args& args) {
  const Value chars = args.take("chars", Value::none());
  args.finish();
  if (!chars.is_none() && !chars.is_string()) fail("strip arg must be None or str");
  return map_text(run, value, [&](const std::string& text) {
    return std::string(chars.is_none() ? strip(text, true, true)
                                       : strip(text, true, true, chars.text(), true));
  });
}

Value filter_replace(Run& run, const Value& value, Args& args) {
  const std::string from = to_text(run.budget(), args.require("old"));
  const std::string to = to_text(run.budget(), args.require("new"));
  const Value count = args.take("count", Value::none());
  args.finish();
  const std::string text = to_text(run.budget(), value);
  run.budget().bytes(static_cast<int64_t>(text.size()));
  const int64_t limit = count.is_none() ? -1 : take_size(count, "count", -1, INT64_MAX);
  return Value::string(replace(run.budget(), text, from, to, limit));
}

Value filter_string(Run& run, const Value& value, Args& args) {
  args.finish();
  return soft_text(run.budget(), value);
}

Value filter_safe(Run& run, const Value& value, Args& args) {
  args.finish();
  return Value::string(to_text(run.budget(), value), true);
}

Value filter_escape(Run& run, const Value& value, Args& args) {
  args.finish();
  if (value.is_markup()) return value;
  return Value::string(escape_html(to_text(run.budget(), value)), true);
}

Value filter_forceescape(Run& run, const Value& value, Args& args) {
  args.finish();
  return Value::string(escape_html(to_text(run.budget(), value)), true);
}

Value filter_indent(Run& run, const Value& value, Args& args) {
  const Value width = args.take("width", Value::integer(4));
  const bool first = args.take_bool(run, "first", false);
  const bool blank = args.take_bool(run, "blank", false);
  args.finish();
  require_defined(value);
  if (!value.is_string()) {
    fail(fmt::format("unsupported operand type(s) for +=: '{}' and 'str'", type_name(value)));
  }
  const std::string indention =
      width.is_string()
          ? width.text()
          : std::string(static_cast<size_t>(take_size(width, "width", 0, 100'000)), ' ');
  const std::vector<std::string> lines = split_lines(value.text() + "\n", false);
  run.budget().bytes(static_cast<int64_t>(value.text().size() + lines.size() * indention.size()));
  std::string out = first ? indention : "";
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i != 0) {
      out += '\n';
      if (blank || !lines[i].empty()) out += indention;
    }
    out += lines[i];
  }
  return Value::string(std::move(out), value.is_markup());
}

Value filter_center(Run& run, const Value& value, Args& args) {
  Args width;
  width.positional.push_back(args.take("width", Value::integer(80)));
  args.finish();
  return call_builtin_method(run, soft_text(run.budget(), value), "center", width);
}

Value filter_truncate(Run& run, const Value& value, Args& args) {
  const int64_t length =
      take_size(args.take("length", Value::integer(255)), "length", INT64_MIN, INT64_MAX);
  const bool killwords = args.take_bool(run, "killwords", false);
  const Value end = args.take("end", Value::string("..."));
  const Value leeway = args.take("leeway", Value::none());
  args.finish();
  if (!end.is_string()) fail("the end of truncate must be a text");
  const int64_t slack = leeway.is_none() ? 5 : take_size(leeway, "leeway", INT64_MIN, INT64_MAX);
  const int64_t end_length = end.get<StringObject>().num_chars;
  if (length < end_length) fail(fmt::format("expected length >= {}, got {}", end_length, length));
  if (slack < 0) fail(fmt::format("expected leeway >= 0, got {}", slack));
  int64_t size = 0;
  if (!jinja::length(value, size)) {
    fail(fmt::format("object of type '{}' has no len()", type_name(value)));
  }
  if (size <= length || size - length <= slack) return value;
  if (!value.is_string()) fail(fmt::format("truncate needs a text, not {}", type_name(value)));
  const std::string& text = value.text();
  std::string cut = text.substr(0, char_offset(text, length - end_length));
  if (!killwords) {
    const size_t blank = cut.rfind(' ');
    if (blank != std::string::npos) cut.resize(blank);
  }
  return Value::string(cut + end.text());
}

Value filter_wordcount(Run& run, const Value& value, Args& args) {
  args.finish();
  const std::string text = to_text(run.budget(), value);
  int64_t count = 0;
  bool is_inside = false;
  for (size_t offset = 0; offset < text.size();) {
    const char32_t c = next_char(text, offset);
    const bool is_word = c == '_' || is_alphanumeric(c);
    count += is_word && !is_inside;
    is_inside = is_word;
  }
  return Value::integer(count);
}

Value filter_format(Run& run, const Value& value, Args& args) {
  if (!args.positional.empty() && !args.named.empty()) {
    fail("can't handle positional and keyword arguments at the same time");
  }
  Value values = Value::tuple(args.positional);
  if (!args.named.empty()) {
    auto dict = std::make_shared<DictObject>();
    for (const auto& [name, argument] : args.named)
      dict->set(run.budget(), Value::string(name), argument);
    values = Value::of(Type::kDict, std::move(dict));
  }
  const Value text = soft_text(run.budget(), value);
  return Value::string(percent_format(run.budget(), text.text(), values), text.is_markup());
}

Value filter_urlencode(Run& run, const Value& value, Args& args) {
  args.finish();
  const auto quote = [&](const Value& part, bool for_query) {
    std::string out;
    for (const char c : to_text(run.budget(), part)) {
      const bool is_kept = std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '.' ||
                           c == '-' || c == '~' || (c == '/' && !for_query);
      if (is_kept)
        out += c;
      else if (c == ' ' && for_query)
        out += '+';
      else
        out += fmt::format("%{:02X}", static_cast<unsigned>(static_cast<unsigned char>(c)));
    }
    return out;
  };
  if (value.is_string() || !is_iterable(value)) return Value::string(quote(value, false));
  std::string out;
  const auto add = [&](const Value& key, const Value& item) {
    if (!out.empty()) out += '&';
    out += quote(key, true) + "=" + quote(item, true);
  };
  if (value.is(Type::kDict)) {
    for (const auto& [key, item] : value.dict().items) add(key, item);
    return Value::string(std::move(out));
  }
  for_each(run.budget(), value, [&](const Value& pair) {
    const std::vector<Value> items = to_vector(run.budget(), pair);
    if (items.size() != 2) fail("urlencode needs pairs");
    add(items[0], items[1]);
    return true;
  });
  return Value::string(std::move(out));
}

Value filter_tojson(Run& run, const Value& value, Args& args) {
  JsonStyle style;
  style.ensure_ascii = args.take_bool(run, "ensure_ascii", false);
  const Value indent = args.take("indent", Value::none());
  const Value separators = args.take("separators", Value::none());
  style.sort_keys = args.take_bool(run, "sort_keys", false);
  args.finish();
  if (!indent.is_none()) {
    style.has_indent = true;
    style.item_separator = ",";
    style.indent =
        indent.is_string()
            ? indent.text()
            : std::string(static_cast<size_t>(take_size(indent, "indent", 0, 1000)), ' ');
  }
  if (!separators.is_none()) {
    const std::vector<Value> pair = to_vector(run.budget(), separators);
    if (pair.size() != 2 || !pair[0].is_string() || !pair[1].is_string())
      fail("separators must be two texts");
    style.item_separator = pair[0].text();
    style.key_separator = pair[1].text();
  }
  return Value::string(to_json(run.budget(), value, style));
}

// ---- numbers

Value filter_abs(Run&, const Value& value, Args& args) {
  args.finish();
  require_defined(value);
  if (value.is_integer()) return value.as_int() < 0 ? negate(value) : positive(value);
  if (value.is(Type::kFloat)) return Value::real(std::fabs(value.as_double()));
  fail(fmt::format("bad operand type for abs(): '{}'", type_name(value)));
}

Value integer_of_real(double value) {
  if (std::isnan(value)) fail("cannot convert float NaN to integer");
  if (std::isinf(value)) fail("cannot convert float infinity to integer");
  if (std::fabs(value) >= 0x1p126) fail("integer overflow: beyond 127 bits");
  return Value::integer(static_cast<Int>(value));
}

Value filter_int(Run&, const Value& value, Args& args) {
  const Value fallback = args.take("default", Value::integer(0));
  const int base =
      static_cast<int>(take_size(args.take("base", Value::integer(10)), "base", -1, 37));
  args.finish();
  require_defined(value);
  if (value.is_integer()) return Value::integer(value.as_int());
  if (value.is(Type::kFloat)) {
    return std::isnan(value.as_double()) ? fallback : integer_of_real(value.as_double());
  }
  if (!value.is_string()) return fallback;
  Int number = 0;
  if ((base == 0 || (base >= 2 && base <= 36)) && parse_int(value.text(), base, number)) {
    return Value::integer(number);
  }
  double real = 0;
  if (!parse_float(value.text(), real) || !std::isfinite(real)) return fallback;
  return integer_of_real(real);
}

Value filter_float(Run&, const Value& value, Args& args) {
  const Value fallback = args.take("default", Value::real(0));
  args.finish();
  require_defined(value);
  if (value.is_number()) return Value::real(value.as_double());
  double real = 0;
  return value.is_string() && parse_float(value.text(), real) ? Value::real(real) : fallback;
}

// round(value, precision) of Python: half to even on the exact binary value.
Value round_half_even(Run& run, const Value& value, int64_t precision) {
  if (value.is_integer()) {
    if (precision >= 0) return positive(value);
    if (precision < -37) return Value::integer(0);
    const Value unit =
        binary(run.budget(), BinaryOp::kPow, Value::integer(10), Value::integer(-precision));
    const Int step = unit.as_int();
    Int rest = value.as_int() % step;
    if (rest < 0) rest += step;
    Int result = value.as_int() - rest;
    if (rest * 2 > step || (rest * 2 == step && (result / step) % 2 != 0)) result += step;
    return Value::integer(result);
  }
  const double real = value.as_double();
  if (!std::isfinite(real) || precision > 323) return value;
  if (precision < -308) return Value::real(std::copysign(0.0, real));
  if (precision >= 0) {
    double rounded = 0;
    parse_float(fmt::format("{:.{}f}", real, precision), rounded);
    return Value::real(rounded);
  }
  const double unit = std::pow(10.0, static_cast<double>(-precision));
  double scaled = real / unit;
  double rounded = std::round(scaled);
  if (std::fabs(scaled - rounded) == 0.5) rounded = 2.0 * std::round(scaled / 2.0);
  return Value::real(rounded * unit);
}

Value filter_round(Run& run, const Value& value, Args& args) {
  const Value precision_value = args.take("precision", Value::integer(0));
  const Value method = args.take("method", Value::string("common"));
  args.finish();
  const std::string name = method.is_string() ? method.text() : "";
  if (name != "common" && name != "ceil" && name != "floor")
    fail("method must be common, ceil or floor");
  const int64_t precision = take_size(precision_value, "precision", -400, 400);
  require_defined(value);
  if (!value.is_number())
    fail(fmt::format("type {} doesn't define __round__ method", type_name(value)));
  if (name == "common") return round_half_even(run, value, precision);
  Budget& budget = run.budget();
  const Value unit = binary(budget, BinaryOp::kPow, Value::integer(10), Value::integer(precision));
  const Value scaled = binary(budget, BinaryOp::kMul, value, unit);
  Value whole = scaled;
  if (scaled.is(Type::kFloat)) {
    whole = integer_of_real(name == "ceil" ? std::ceil(scaled.as_double())
                                           : std::floor(scaled.as_double()));
  }
  return binary(budget, BinaryOp::kDiv, whole, unit);
}

Value filter_filesizeformat(Run&, const Value& value, Args& args) {
  const Value is_binary = args.take("binary", Value::boolean(false));
  args.finish();
  require_defined(value);
  double bytes = 0;
  if (value.is_number())
    bytes = value.as_double();
  else if (!value.is_string() || !parse_float(value.text(), bytes))
    fail("filesizeformat needs a number");
  const bool binary_units = is_binary.is(Type::kBool) && is_binary.as_bool();
  const double base = binary_units ? 1024 : 1000;
  if (bytes == 1) return Value::string("1 Byte");
  if (bytes < base) return Value::string(int_text(integer_of_real(bytes).as_int()) + " Bytes");
  const std::string prefixes = binary_units ? "KMGTPEZY" : "kMGTPEZY";
  double unit = base;
  for (size_t i = 0;; ++i) {
    unit *= base;
    if (bytes < unit || i + 1 == prefixes.size()) {
      return Value::string(
          fmt::format("{:.1f} {}{}", base * bytes / unit, prefixes[i], binary_units ? "iB" : "B"));
    }
  }
}

// ---- collections

Value filter_length(Run&, const Value& value, Args& args) {
  args.finish();
  int64_t size = 0;
  if (!length(value, size)) fail(fmt::format("object of type '{}' has no len()", type_name(value)));
  return Value::integer(size);
}

Value filter_list(Run& run, const Value& value, Args& args) {
  args.finish();
  return Value::list(to_vector(run.budget(), value));
}

Value filter_first(Run& run, const Value& value, Args& args) {
  args.finish();
  Value out;
  return run.iterate(value)->next(out) ? out
                                       : Value::undefined("No first item, sequence was empty.");
}

std::vector<Value> reversed(Run& run, const Value& value) {
  std::vector<Value> items = to_vector(run.budget(), value);
  std::reverse(items.begin(), items.end());
  return items;
}

Value filter_last(Run& run, const Value& value, Args& args) {
  args.finish();
  if (value.is(Type::kIterator) || !is_iterable(value)) {
    fail(fmt::format("'{}' object is not reversible", type_name(value)));
  }
  Value last;
  if (value.is_sequence() || value.is(Type::kRange)) {
    if (item_at(value, -1, last)) return last;
  } else {
    const std::vector<Value> items = to_vector(run.budget(), value);
    if (!items.empty()) return items.back();
  }
  return Value::undefined("No last item, sequence was empty.");
}

Value filter_reverse(Run& run, const Value& value, Args& args) {
  args.finish();
  if (value.is_string())
    return slice(run.budget(), value, Value::none(), Value::none(), Value::integer(-1));
  if (!is_iterable(value)) fail("argument must be iterable");
  if (value.is(Type::kIterator)) return Value::list(reversed(run, value));
  return late_list(value, [&run, value] { return reversed(run, value); });
}

Value filter_join(Run& run, const Value& value, Args& args) {
  const std::string separator = to_text(run.budget(), args.take("d", Value::string("")));
  const AttributePath path = AttributePath::of(args.take("attribute", Value::none()));
  args.finish();
  std::string out;
  bool first = true;
  for_each(run.budget(), value, [&](const Value& item) {
    if (!first) out += separator;
    first = false;
    const size_t before = out.size();
    append_text(run.budget(), path.get(run, item), out);
    run.budget().bytes(static_cast<int64_t>(out.size() - before + separator.size()));
    return true;
  });
  return Value::string(std::move(out));
}

Value filter_default(Run& run, const Value& value, Args& args) {
  const Value fallback = args.take("default_value", Value::string(""));
  const bool boolean = args.take_bool(run, "boolean", false);
  args.finish();
  return value.is_undefined() || (boolean && !truthy(run.budget(), value)) ? fallback : value;
}

Value filter_sort(Run& run, const Value& value, Args& args) {
  const bool reverse = args.take_bool(run, "reverse", false);
  const bool case_sensitive = args.take_bool(run, "case_sensitive", false);
  const Value attribute = args.take("attribute", Value::none());
  args.finish();
  std::vector<AttributePath> paths;
  if (attribute.is_string()) {
    for (const std::string& part : split_by(run.budget(), attribute.text(), ",", -1, false)) {
      paths.push_back(AttributePath::of(Value::string(part)));
    }
  } else {
    paths.push_back(AttributePath::of(attribute));
  }
  std::vector<std::pair<Value, Value>> keyed;
  for (const Value& item : to_vector(run.budget(), value)) {
    std::vector<Value> key;
    for (const AttributePath& path : paths)
      key.push_back(ignore_case(path.get(run, item), case_sensitive));
    keyed.emplace_back(Value::list(std::move(key)), item);
  }
  sort_by_keys(run, keyed, reverse);
  return Value::list(seconds(std::move(keyed)));
}

Value filter_dictsort(Run& run, const Value& value, Args& args) {
  const bool case_sensitive = args.take_bool(run, "case_sensitive", false);
  const Value by = args.take("by", Value::string("key"));
  const bool reverse = args.take_bool(run, "reverse", false);
  args.finish();
  const std::string which = by.is_string() ? by.text() : "";
  if (which != "key" && which != "value") fail("You can only sort by either \"key\" or \"value\"");
  require_defined(value);
  if (!value.is(Type::kDict))
    fail(fmt::format("'{}' object has no attribute 'items'", type_name(value)));
  std::vector<std::pair<Value, Value>> keyed;
  for (const auto& [key, item] : value.dict().items) {
    keyed.emplace_back(ignore_case(which == "key" ? key : item, case_sensitive),
                       Value::tuple({key, item}));
  }
  sort_by_keys(run, keyed, reverse);
  return Value::list(seconds(std::move(keyed)));
}

Value filter_unique(Run& run, const Value& value, Args& args) {
  const bool case_sensitive = args.take_bool(run, "case_sensitive", false);
  const AttributePath path = AttributePath::of(args.take("attribute", Value::none()));
  args.finish();
  return late_list(value, [&run, value, case_sensitive, path] {
    DictObject seen;
    std::vector<Value> out;
    for_each(run.budget(), value, [&](const Value& item) {
      const Value key = ignore_case(path.get(run, item), case_sensitive);
      if (seen.find(run.budget(), key) == nullptr) {
        seen.set(run.budget(), key, Value::none());
        out.push_back(item);
      }
      return true;
    });
    return out;
  });
}

Value extreme(Run& run, const Value& value, Args& args, const char* symbol) {
  const bool case_sensitive = args.take_bool(run, "case_sensitive", false);
  const AttributePath path = AttributePath::of(args.take("attribute", Value::none()));
  args.finish();
  Value best, best_key;
  for_each(run.budget(), value, [&](const Value& item) {
    const Value key = ignore_case(path.get(run, item), case_sensitive);
    if (best.is_missing() || compare(run.budget(), key, best_key, symbol)) {
      best = item;
      best_key = key;
    }
    return true;
  });
  return best.is_missing() ? Value::undefined("No aggregated item, sequence was empty.") : best;
}
Value filter_min(Run& run, const Value& value, Args& args) {
  return extreme(run, value, args, "<");
}
Value filter_max(Run& run, const Value& value, Args& args) {
  return extreme(run, value, args, ">");
}

Value filter_sum(Run& run, const Value& value, Args& args) {
  const AttributePath path = AttributePath::of(args.take("attribute", Value::none()));
  Value total = args.take("start", Value::integer(0));
  args.finish();
  if (total.is_string()) fail("sum() can't sum strings [use ''.join(seq) instead]");
  for_each(run.budget(), value, [&](const Value& item) {
    total = binary(run.budget(), BinaryOp::kAdd, total, path.get(run, item));
    return true;
  });
  return total;
}

Value filter_batch(Run& run, const Value& value, Args& args) {
  const Value count = args.require("linecount");
  const Value fill = args.take("fill_with", Value::none());
  args.finish();
  return late_list(value, [&run, value, count, fill] {
    std::vector<Value> out, line;
    for_each(run.budget(), value, [&](const Value& item) {
      if (equals(run.budget(), Value::integer(static_cast<Int>(line.size())), count)) {
        out.push_back(Value::list(std::move(line)));
        line.clear();
      }
      line.push_back(item);
      return true;
    });
    if (!line.empty()) {
      if (!fill.is_none()) {
        const int64_t wanted = take_size(count, "linecount", 0, 1'000'000);
        run.budget().bytes(wanted * static_cast<int64_t>(sizeof(Value)));
        while (static_cast<int64_t>(line.size()) < wanted) line.push_back(fill);
      }
      out.push_back(Value::list(std::move(line)));
    }
    return out;
  });
}

Value filter_slice(Run& run, const Value& value, Args& args) {
  const Value slices = args.require("slices");
  const Value fill = args.take("fill_with", Value::none());
  args.finish();
  return late_list(value, [&run, value, slices, fill] {
    const std::vector<Value> items = to_vector(run.budget(), value);
    const int64_t count = take_size(slices, "slices", INT64_MIN, 1'000'000);
    if (count == 0) fail("integer division or modulo by zero");
    std::vector<Value> out;
    const auto size = static_cast<int64_t>(items.size());
    for (int64_t i = 0, begin = 0; i < count; ++i) {
      run.budget().step();
      const int64_t end = begin + size / count + (i < size % count ? 1 : 0);
      std::vector<Value> part(items.begin() + begin, items.begin() + end);
      if (!fill.is_none() && i >= size % count) part.push_back(fill);
      out.push_back(Value::list(std::move(part)));
      begin = end;
    }
    return out;
  });
}

Value filter_items(Run&, const Value& value, Args& args) {
  args.finish();
  return late_list(value, [value] {
    std::vector<Value> out;
    if (value.is_undefined()) return out;
    if (!value.is(Type::kDict)) fail("Can only get item pairs from a mapping.");
    for (const auto& [key, item] : value.dict().items) out.push_back(Value::tuple({key, item}));
    return out;
  });
}

Value filter_groupby(Run& run, const Value& value, Args& args) {
  const AttributePath path = AttributePath::of(args.require("attribute"));
  const Value fallback = args.take("default", Value::none());
  const bool case_sensitive = args.take_bool(run, "case_sensitive", false);
  args.finish();
  std::vector<std::pair<Value, Value>> keyed;
  for (const Value& item : to_vector(run.budget(), value)) {
    keyed.emplace_back(ignore_case(path.get(run, item, fallback), case_sensitive), item);
  }
  sort_by_keys(run, keyed, false);
  std::vector<Value> groups;
  for (size_t begin = 0; begin < keyed.size();) {
    size_t end = begin;
    std::vector<Value> members;
    while (end < keyed.size() && equals(run.budget(), keyed[end].first, keyed[begin].first)) {
      members.push_back(keyed[end++].second);
    }
    const Value key =
        case_sensitive ? keyed[begin].first : path.get(run, members.front(), fallback);
    Value group = Value::tuple({key, Value::list(std::move(members))});
    group.get<ListObject>().is_group = true;
    groups.push_back(std::move(group));
    begin = end;
  }
  return Value::list(std::move(groups));
}

Value filter_attr(Run& run, const Value& value, Args& args) {
  const Value name = args.require("name");
  args.finish();
  if (!name.is_string()) fail("attribute name must be a string");
  // Keys of a dict do not count, other than with a dot.
  if (value.is(Type::kDict) && !has_method(value, name.text())) {
    return Value::undefined(
        fmt::format("'dict object' has no attribute {}", repr_text(name.text())));
  }
  return run.attribute(value, name.text());
}

// ---- functions over collections

Value filter_map(Run& run, const Value& value, Args& args) {
  auto next = items_of(run, value);
  const Args given = args;
  auto apply = std::make_shared<std::function<Value(const Value&)>>();
  // What to apply is looked at when the first item is asked for, as in Python.
  const auto prepare = [&run, given]() -> std::function<Value(const Value&)> {
    Args rest = given;
    const auto named = [&](std::string_view name) {
      return std::find_if(rest.named.begin(), rest.named.end(),
                          [&](const auto& a) { return a.first == name; });
    };
    if (rest.positional.empty() && named("attribute") != rest.named.end()) {
      const AttributePath path = AttributePath::of(named("attribute")->second);
      rest.named.erase(named("attribute"));
      Value fallback = Value::none();
      if (const auto found = named("default"); found != rest.named.end()) {
        fallback = found->second;
        rest.named.erase(found);
      }
      if (!rest.named.empty()) {
        fail(fmt::format("Unexpected keyword argument {}", repr_text(rest.named.front().first)));
      }
      return [&run, path, fallback](const Value& item) { return path.get(run, item, fallback); };
    }
    if (rest.positional.empty()) fail("map requires a filter argument");
    if (!rest.positional[0].is_string()) fail("the name of a filter must be a text");
    const std::string name = rest.positional[0].text();
    rest.positional.erase(rest.positional.begin());
    return [&run, name, rest](const Value& item) { return run.apply_filter(name, item, rest); };
  };
  return generator(value, [next, apply, prepare](Value& out) {
    Value item;
    if (!next(item)) return false;
    if (!*apply) *apply = prepare();
    out = (*apply)(item);
    return true;
  });
}

Value select_or_reject(Run& run, const Value& value, const Args& args, bool wanted,
                       bool by_attribute) {
  auto next = items_of(run, value);
  const Args given = args;
  const auto passes = [&run, given, by_attribute](const Value& item) {
    size_t num_used = 0;
    Value subject = item;
    if (by_attribute) {
      if (given.positional.empty()) fail("Missing parameter for attribute name");
      subject = AttributePath::of(given.positional[0]).get(run, item);
      num_used = 1;
    }
    if (given.positional.size() == num_used) return truthy(run.budget(), subject);
    const Value& name = given.positional[num_used];
    if (!name.is_string()) fail("the name of a test must be a text");
    Args rest;
    rest.positional.assign(given.positional.begin() + static_cast<std::ptrdiff_t>(num_used) + 1,
                           given.positional.end());
    rest.named = given.named;
    return run.apply_test(name.text(), subject, std::move(rest));
  };
  return generator(value, [next, passes, wanted](Value& out) {
    while (next(out)) {
      if (passes(out) == wanted) return true;
    }
    return false;
  });
}
Value filter_select(Run& run, const Value& value, Args& args) {
  return select_or_reject(run, value, args, true, false);
}
Value filter_reject(Run& run, const Value& value, Args& args) {
  return select_or_reject(run, value, args, false, false);
}
Value filter_selectattr(Run& run, const Value& value, Args& args) {
  return select_or_reject(run, value, args, true, true);
}
Value filter_rejectattr(Run& run, const Value& value, Args& args) {
  return select_or_reject(run, value, args, false, true);
}

}  // namespace

FilterFunction find_filter(std::string_view name) {
  static const std::map<std::string_view, FilterFunction> kFilters = {
      {"abs", filter_abs},
      {"attr", filter_attr},
      {"batch", filter_batch},
      {"capitalize", filter_capitalize},
      {"center", filter_center},
      {"count", filter_length},
      {"d", filter_default},
      {"default", filter_default},
      {"dictsort", filter_dictsort},
      {"e", filter_escape},
      {"escape", filter_escape},
      {"filesizeformat", filter_filesizeformat},
      {"first", filter_first},
      {"float", filter_float},
      {"forceescape", filter_forceescape},
      {"format", filter_format},
      {"groupby", filter_groupby},
      {"indent", filter_indent},
      {"int", filter_int},
      {"items", filter_items},
      {"join", filter_join},
      {"last", filter_last},
      {"length", filter_length},
      {"list", filter_list},
      {"lower", filter_lower},
      {"map", filter_map},
      {"max", filter_max},
      {"min", filter_min},
      {"reject", filter_reject},
      {"rejectattr", filter_rejectattr},
      {"replace", filter_replace},
      {"reverse", filter_reverse},
      {"round", filter_round},
      {"safe", filter_safe},
      {"select", filter_select},
      {"selectattr", filter_selectattr},
      {"slice", filter_slice},
      {"sort", filter_sort},
      {"string", filter_string},
      {"sum", filter_sum},
      {"title", filter_title},
      {"tojson", filter_tojson},
      {"trim", filter_trim},
      {"truncate", filter_truncate},
      {"unique", filter_unique},
      {"upper", filter_upper},
      {"urlencode", filter_urlencode},
      {"wordcount", filter_wordcount},
  };
  const auto found = kFilters.find(name);
  return found == kFilters.end() ? nullptr : found->second;
}

}  // namespace gradus::data::jinja
