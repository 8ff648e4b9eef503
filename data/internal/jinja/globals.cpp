// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <chrono>
#include <map>

#include "data/internal/jinja/runtime.h"
#include "data/internal/jinja/text.h"

namespace gradus::data::jinja {
namespace {

using Args = CallArguments;
using Run = Interpreter;

// jinja's sandbox stops longer ranges.
constexpr int64_t kMaxRange = 100'000;

Value global_range(Run&, Args& args) {
  if (!args.named.empty()) fail("range() takes no keyword arguments");
  const size_t count = args.positional.size();
  if (count == 0 || count > 3) fail(fmt::format("range expected 1 to 3 arguments, got {}", count));
  for (const Value& argument : args.positional) {
    require_defined(argument);
    if (!argument.is_integer()) {
      fail(fmt::format("'{}' object cannot be interpreted as an integer", type_name(argument)));
    }
    if (argument.as_int() > INT64_MAX || argument.as_int() < INT64_MIN)
      fail("range argument too large");
  }
  auto range = std::make_shared<RangeObject>();
  range->stop = args.positional[count == 1 ? 0 : 1].as_int();
  if (count > 1) range->start = args.positional[0].as_int();
  if (count > 2) range->step = args.positional[2].as_int();
  if (range->step == 0) fail("range() arg 3 must not be zero");
  if (range->size() > kMaxRange || range->size() < 0) {
    fail(fmt::format("range too big; the sandbox blocks ranges larger than {}", kMaxRange));
  }
  return Value::of(Type::kRange, std::move(range));
}

// dict(*args, **kwargs).
std::shared_ptr<DictObject> make_dict(Run& run, Args& args) {
  if (args.positional.size() > 1) {
    fail(fmt::format("dict expected at most 1 argument, got {}", args.positional.size()));
  }
  auto dict = std::make_shared<DictObject>();
  if (!args.positional.empty()) {
    const Value& source = args.positional.front();
    if (source.is(Type::kDict)) {
      for (const auto& [key, value] : source.dict().items) dict->set(run.budget(), key, value);
    } else {
      require_defined(source);
      for_each(run.budget(), source, [&](const Value& pair) {
        const std::vector<Value> items = to_vector(run.budget(), pair);
        if (items.size() != 2) {
          fail(fmt::format("dictionary update sequence element has length {}; 2 is required",
                           items.size()));
        }
        dict->set(run.budget(), items[0], items[1]);
        return true;
      });
    }
  }
  for (const auto& [name, value] : args.named) dict->set(run.budget(), Value::string(name), value);
  return dict;
}

Value global_dict(Run& run, Args& args) { return Value::of(Type::kDict, make_dict(run, args)); }

Value global_namespace(Run& run, Args& args) {
  const auto dict = make_dict(run, args);
  Value space = run.make_namespace();
  auto& object = space.get<NamespaceObject>();
  for (const auto& [key, value] : dict->items) {
    if (!key.is_string()) fail("the attributes of a namespace must have texts as names");
    if (!key.text().empty() && key.text()[0] == '_') {
      fail(fmt::format(
          "chat templates cannot store underscore-prefixed attributes on a namespace, got '{}'",
          key.text()));
    }
    nest(object, value);
    object.attributes.emplace_back(key.text(), value);
  }
  return space;
}

Value global_cycler(Run&, Args& args) {
  if (!args.named.empty()) fail("cycler() takes no keyword arguments");
  if (args.positional.empty()) fail("at least one item has to be provided");
  auto cycler = std::make_shared<CyclerObject>();
  for (const Value& item : args.positional) nest(*cycler, item);
  cycler->items = args.positional;
  return Value::of(Type::kCycler, std::move(cycler));
}

Value global_joiner(Run&, Args& args) {
  auto joiner = std::make_shared<JoinerObject>();
  joiner->separator = args.take("sep", Value::string(", "));
  args.finish();
  nest(*joiner, joiner->separator);
  return Value::of(Type::kJoiner, std::move(joiner));
}

Value global_raise_exception(Run& run, Args& args) {
  const Value message = args.require("message");
  args.finish();
  fail(fmt::format("raise_exception: {}", to_text(run.budget(), message)));
}

Value global_strftime_now(Run& run, Args& args) {
  const Value format = args.require("format");
  args.finish();
  if (!format.is_string())
    fail(fmt::format("strftime() argument 1 must be str, not {}", type_name(format)));
  std::tm now{};
  int64_t microseconds = 0;
  if (run.options().now) {
    now = *run.options().now;
  } else {
    const auto clock = std::chrono::system_clock::now();
    const std::time_t seconds = std::chrono::system_clock::to_time_t(clock);
    localtime_r(&seconds, &now);
    microseconds =
        std::chrono::duration_cast<std::chrono::microseconds>(clock.time_since_epoch()).count() %
        1'000'000;
  }
  // Python's datetime without a zone: %f is its own, %z and %Z are empty.
  std::string pattern;
  const std::string& wanted = format.text();
  for (size_t i = 0; i < wanted.size(); ++i) {
    if (wanted[i] != '%' || i + 1 >= wanted.size()) {
      pattern += wanted[i];
      continue;
    }
    const char kind = wanted[++i];
    if (kind == 'f')
      pattern += fmt::format("{:06}", microseconds);
    else if (kind != 'z' && kind != 'Z')
      pattern += {'%', kind};
  }
  if (pattern.empty()) return Value::string("");
  if (pattern.size() > 10'000) fail("the format of strftime_now is too long");
  // A blank at the end tells an empty result from a buffer that is too small.
  pattern += ' ';
  std::string text(pattern.size() * 32 + 64, '\0');
  text.resize(std::strftime(text.data(), text.size(), pattern.c_str(), &now));
  if (text.empty()) fail("the result of strftime_now is too long");
  text.pop_back();
  return Value::string(std::move(text));
}

Value global_lipsum(Run&, Args&) { fail("lipsum is not supported"); }

}  // namespace

Value find_global(Interpreter&, std::string_view name) {
  static const std::map<std::string_view, Value (*)(Run&, Args&)> kGlobals = {
      {"range", global_range},
      {"dict", global_dict},
      {"namespace", global_namespace},
      {"cycler", global_cycler},
      {"joiner", global_joiner},
      {"lipsum", global_lipsum},
      {"raise_exception", global_raise_exception},
      {"strftime_now", global_strftime_now},
  };
  const auto found = kGlobals.find(name);
  if (found == kGlobals.end()) return {};
  auto function = std::make_shared<FunctionObject>();
  function->name = std::string(name);
  function->call = found->second;
  return Value::of(Type::kFunction, std::move(function));
}

}  // namespace gradus::data::jinja
