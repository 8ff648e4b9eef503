// SPDX-License-Identifier: Apache-2.0
#include "rewards/internal/json_schema.h"

#include <re2/re2.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <set>

namespace gradus::rewards {
namespace {

using nlohmann::json;

constexpr size_t kMaxTextBytes = 1 << 20;
constexpr int kMaxLevels = 200;
constexpr int kMaxDepth = 2000;  // of schemas within schemas, references followed

const std::set<std::string_view> kSchemaKeys = {
    "not", "if", "then", "else", "contains", "propertyNames", "items", "additionalProperties"};
const std::set<std::string_view> kSchemaLists = {"allOf", "anyOf", "oneOf", "prefixItems"};
const std::set<std::string_view> kSchemaMaps = {"properties", "patternProperties", "$defs",
                                                "definitions", "dependentSchemas"};
const std::set<std::string_view> kRefused = {"unevaluatedItems", "unevaluatedProperties",
                                             "$dynamicRef", "$recursiveRef"};
const std::set<std::string_view> kCounts = {"minLength",   "maxLength",     "minItems",
                                            "maxItems",    "minProperties", "maxProperties",
                                            "minContains", "maxContains"};
const std::set<std::string_view> kNumbers = {"minimum", "maximum", "exclusiveMinimum",
                                             "exclusiveMaximum", "multipleOf"};
const std::set<std::string_view> kTypes = {"null",   "boolean", "object", "array",
                                           "number", "integer", "string"};

std::string type_of(const json& value) {
  if (value.is_number_integer()) return "integer";
  return value.type_name();
}

bool has_type(const json& value, const std::string& type) {
  if (type == "integer") {
    return value.is_number_integer() ||
           (value.is_number() && std::floor(value.get<double>()) == value.get<double>());
  }
  if (type == "number") return value.is_number();
  return value.type_name() == type;
}

size_t num_characters(const std::string& text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

std::string joined(const std::string& place, const std::string& key) { return place + "/" + key; }

}  // namespace

struct JsonSchema::Compiled {
  json root;
  std::map<std::string, std::unique_ptr<re2::RE2>> patterns;  // by text

  Status compile(const json& schema, const std::string& place, int depth);
  Status add_pattern(const std::string& text, const std::string& place);
  const json* target_of(const std::string& reference) const;

  std::string check(const json& schema, const json& value, const std::string& place,
                    int depth) const;
  std::string check_text(const json& schema, const std::string& text) const;
  std::string check_array(const json& schema, const json& value, const std::string& place,
                          int depth) const;
  std::string check_object(const json& schema, const json& value, const std::string& place,
                           int depth) const;
};

Status JsonSchema::Compiled::add_pattern(const std::string& text, const std::string& place) {
  re2::RE2::Options options;
  options.set_log_errors(false);
  auto pattern = std::make_unique<re2::RE2>(text, options);
  if (!pattern->ok()) {
    return invalid_argument("{}: '{}' is no regular expression of RE2: {}", place, text,
                            pattern->error());
  }
  patterns.emplace(text, std::move(pattern));
  return {};
}

const json* JsonSchema::Compiled::target_of(const std::string& reference) const {
  if (!reference.starts_with('#')) return nullptr;
  try {
    const json::json_pointer pointer(reference.substr(1));
    return root.contains(pointer) ? &root.at(pointer) : nullptr;
  } catch (const json::exception&) {
    return nullptr;
  }
}

Status JsonSchema::Compiled::compile(const json& schema, const std::string& place, int depth) {
  const std::string here = place.empty() ? "/" : place;
  if (schema.is_boolean()) return {};
  if (!schema.is_object()) {
    return invalid_argument("{}: is {}; expected a schema, an object or true or false", here,
                            schema.type_name());
  }
  if (depth > kMaxLevels) return invalid_argument("{}: is nested too deep", here);
  for (const auto& [key, value] : schema.items()) {
    const std::string at = joined(place, key);
    if (kRefused.contains(key)) {
      return invalid_argument("{}: this keyword cannot be checked; leave it out", at);
    }
    if (kSchemaKeys.contains(key)) {
      GRADUS_RETURN_IF_ERROR(compile(value, at, depth + 1));
    } else if (kSchemaLists.contains(key)) {
      if (!value.is_array()) return invalid_argument("{}: is no list of schemas", at);
      for (size_t i = 0; i < value.size(); ++i) {
        GRADUS_RETURN_IF_ERROR(compile(value[i], joined(at, std::to_string(i)), depth + 1));
      }
    } else if (kSchemaMaps.contains(key)) {
      if (!value.is_object()) return invalid_argument("{}: is no map of schemas", at);
      for (const auto& [name, one] : value.items()) {
        if (key == "patternProperties") GRADUS_RETURN_IF_ERROR(add_pattern(name, at));
        GRADUS_RETURN_IF_ERROR(compile(one, joined(at, name), depth + 1));
      }
    } else if (kCounts.contains(key)) {
      if (!value.is_number_integer() || value.get<int64_t>() < 0) {
        return invalid_argument("{}: is {}; expected a whole number of at least 0", at,
                                value.dump());
      }
    } else if (kNumbers.contains(key)) {
      if (!value.is_number() || (key == "multipleOf" && value.get<double>() <= 0)) {
        return invalid_argument("{}: is {}; expected a number{}", at, value.dump(),
                                key == "multipleOf" ? " above 0" : "");
      }
    } else if (key == "type") {
      const json types = value.is_array() ? value : json::array({value});
      for (const json& type : types) {
        if (!type.is_string() || !kTypes.contains(type.get<std::string>())) {
          return invalid_argument("{}: {} is no type of JSON Schema", at, type.dump());
        }
      }
    } else if (key == "pattern") {
      if (!value.is_string()) return invalid_argument("{}: is no text", at);
      GRADUS_RETURN_IF_ERROR(add_pattern(value.get<std::string>(), at));
    } else if (key == "required" || key == "enum") {
      if (!value.is_array()) return invalid_argument("{}: is no list", at);
      for (const json& name : value) {
        if (key == "required" && !name.is_string()) {
          return invalid_argument("{}: {} is no text", at, name.dump());
        }
      }
    } else if (key == "dependentRequired") {
      if (!value.is_object()) return invalid_argument("{}: is no map of lists", at);
      for (const auto& [name, names] : value.items()) {
        const bool is_list = names.is_array() && std::all_of(names.begin(), names.end(),
                                                             [](auto& n) { return n.is_string(); });
        if (!is_list) return invalid_argument("{}/{}: is no list of names", at, name);
      }
    } else if (key == "uniqueItems") {
      if (!value.is_boolean()) return invalid_argument("{}: is neither true nor false", at);
    } else if (key == "$ref") {
      if (!value.is_string() || target_of(value.get<std::string>()) == nullptr) {
        return invalid_argument("{}: {} leads nowhere; expected a place in this schema, #/...", at,
                                value.dump());
      }
    }
  }
  return {};
}

std::string JsonSchema::Compiled::check_text(const json& schema, const std::string& text) const {
  const size_t length = num_characters(text);
  if (schema.contains("minLength") && length < schema["minLength"].get<size_t>()) {
    return fmt::format("has {} characters; expected at least {}", length,
                       schema["minLength"].get<size_t>());
  }
  if (schema.contains("maxLength") && length > schema["maxLength"].get<size_t>()) {
    return fmt::format("has {} characters; expected at most {}", length,
                       schema["maxLength"].get<size_t>());
  }
  if (schema.contains("pattern")) {
    const std::string& pattern = schema["pattern"].get_ref<const std::string&>();
    if (!re2::RE2::PartialMatch(text, *patterns.at(pattern))) {
      return "does not match " + pattern;
    }
  }
  return "";
}

std::string JsonSchema::Compiled::check_array(const json& schema, const json& value,
                                              const std::string& place, int depth) const {
  const std::string here = place.empty() ? "/" : place;
  const auto count = [&](const char* key, size_t otherwise) {
    return schema.contains(key) ? schema[key].get<size_t>() : otherwise;
  };
  if (value.size() < count("minItems", 0)) {
    return fmt::format("{}: has {} items; expected at least {}", here, value.size(),
                       count("minItems", 0));
  }
  if (value.size() > count("maxItems", SIZE_MAX)) {
    return fmt::format("{}: has {} items; expected at most {}", here, value.size(),
                       count("maxItems", SIZE_MAX));
  }
  if (schema.contains("uniqueItems") && schema["uniqueItems"].get<bool>()) {
    std::set<json> seen;  // by the order of JSON values, which takes 1 and 1.0 for equal
    for (const json& item : value) {
      if (!seen.insert(item).second) return here + ": has an item twice";
    }
  }
  size_t num_prefix = 0;
  if (schema.contains("prefixItems")) {
    num_prefix = std::min(schema["prefixItems"].size(), value.size());
    for (size_t i = 0; i < num_prefix; ++i) {
      const std::string problem =
          check(schema["prefixItems"][i], value[i], joined(place, std::to_string(i)), depth + 1);
      if (!problem.empty()) return problem;
    }
  }
  if (schema.contains("items")) {
    for (size_t i = num_prefix; i < value.size(); ++i) {
      const std::string problem =
          check(schema["items"], value[i], joined(place, std::to_string(i)), depth + 1);
      if (!problem.empty()) return problem;
    }
  }
  if (schema.contains("contains")) {
    size_t num_found = 0;
    for (const json& item : value) {
      num_found += check(schema["contains"], item, place, depth + 1).empty() ? 1 : 0;
    }
    if (num_found < count("minContains", 1) || num_found > count("maxContains", SIZE_MAX)) {
      return fmt::format("{}: {} items are as 'contains' asks", here, num_found);
    }
  }
  return "";
}

std::string JsonSchema::Compiled::check_object(const json& schema, const json& value,
                                               const std::string& place, int depth) const {
  const std::string here = place.empty() ? "/" : place;
  const auto is_there = [&](const char* key) { return schema.contains(key); };
  if (is_there("minProperties") && value.size() < schema["minProperties"].get<size_t>()) {
    return fmt::format("{}: has {} properties, too few", here, value.size());
  }
  if (is_there("maxProperties") && value.size() > schema["maxProperties"].get<size_t>()) {
    return fmt::format("{}: has {} properties, too many", here, value.size());
  }
  if (is_there("required")) {
    for (const json& name : schema["required"]) {
      if (!value.contains(name.get_ref<const std::string&>())) {
        return fmt::format("{}: has no '{}'", here, name.get_ref<const std::string&>());
      }
    }
  }
  if (is_there("dependentRequired")) {
    for (const auto& [name, others] : schema["dependentRequired"].items()) {
      if (!value.contains(name)) continue;
      for (const json& other : others) {
        if (!value.contains(other.get_ref<const std::string&>())) {
          return fmt::format("{}: has '{}' without '{}'", here, name,
                             other.get_ref<const std::string&>());
        }
      }
    }
  }
  if (is_there("dependentSchemas")) {
    for (const auto& [name, other] : schema["dependentSchemas"].items()) {
      if (!value.contains(name)) continue;
      const std::string problem = check(other, value, place, depth + 1);
      if (!problem.empty()) return problem;
    }
  }
  for (const auto& [name, member] : value.items()) {
    const std::string at = joined(place, name);
    if (is_there("propertyNames")) {
      const std::string problem = check(schema["propertyNames"], json(name), at, depth + 1);
      if (!problem.empty()) return problem;
    }
    bool is_known = false;
    if (is_there("properties") && schema["properties"].contains(name)) {
      is_known = true;
      const std::string problem = check(schema["properties"][name], member, at, depth + 1);
      if (!problem.empty()) return problem;
    }
    if (is_there("patternProperties")) {
      for (const auto& [pattern, one] : schema["patternProperties"].items()) {
        if (!re2::RE2::PartialMatch(name, *patterns.at(pattern))) continue;
        is_known = true;
        const std::string problem = check(one, member, at, depth + 1);
        if (!problem.empty()) return problem;
      }
    }
    if (!is_known && is_there("additionalProperties")) {
      const json& rest = schema["additionalProperties"];
      if (rest.is_boolean() && !rest.get<bool>()) return at + ": is not expected";
      const std::string problem = check(rest, member, at, depth + 1);
      if (!problem.empty()) return problem;
    }
  }
  return "";
}

std::string JsonSchema::Compiled::check(const json& schema, const json& value,
                                        const std::string& place, int depth) const {
  const std::string here = place.empty() ? "/" : place;
  if (schema.is_boolean()) return schema.get<bool>() ? "" : here + ": nothing is allowed here";
  if (depth > kMaxDepth) return here + ": the schema refers to itself without end";
  const auto fails = [&](const json& other) {
    return !check(other, value, place, depth + 1).empty();
  };
  if (schema.contains("$ref")) {
    const std::string problem =
        check(*target_of(schema["$ref"].get<std::string>()), value, place, depth + 1);
    if (!problem.empty()) return problem;
  }
  if (schema.contains("type")) {
    const json types = schema["type"].is_array() ? schema["type"] : json::array({schema["type"]});
    const bool fits = std::any_of(types.begin(), types.end(), [&](const json& type) {
      return has_type(value, type.get<std::string>());
    });
    if (!fits) {
      return fmt::format("{}: is {}; expected {}", here, type_of(value), schema["type"].dump());
    }
  }
  if (schema.contains("enum")) {
    const json& values = schema["enum"];
    if (std::find(values.begin(), values.end(), value) == values.end()) {
      return here + ": is none of the values of 'enum'";
    }
  }
  if (schema.contains("const") && value != schema["const"]) return here + ": is not 'const'";
  if (value.is_number()) {
    const double number = value.get<double>();
    const auto bound = [&](const char* key) {
      return schema.contains(key) ? std::optional(schema[key].get<double>()) : std::nullopt;
    };
    const auto low = bound("minimum"), high = bound("maximum");
    const auto above = bound("exclusiveMinimum"), below = bound("exclusiveMaximum");
    if (low && number < *low) return fmt::format("{}: is {}, below {}", here, number, *low);
    if (high && number > *high) return fmt::format("{}: is {}, above {}", here, number, *high);
    if (above && number <= *above) {
      return fmt::format("{}: is {}, not above {}", here, number, *above);
    }
    if (below && number >= *below) {
      return fmt::format("{}: is {}, not below {}", here, number, *below);
    }
    if (const auto step = bound("multipleOf")) {
      const double times = number / *step;
      if (std::abs(times - std::round(times)) > 1e-9 * std::max(1.0, std::abs(times))) {
        return fmt::format("{}: is {}, no multiple of {}", here, number, *step);
      }
    }
  }
  if (value.is_string()) {
    const std::string problem = check_text(schema, value.get_ref<const std::string&>());
    if (!problem.empty()) return here + ": " + problem;
  }
  if (value.is_array()) {
    const std::string problem = check_array(schema, value, place, depth);
    if (!problem.empty()) return problem;
  }
  if (value.is_object()) {
    const std::string problem = check_object(schema, value, place, depth);
    if (!problem.empty()) return problem;
  }
  if (schema.contains("allOf")) {
    for (const json& other : schema["allOf"]) {
      const std::string problem = check(other, value, place, depth + 1);
      if (!problem.empty()) return problem;
    }
  }
  const auto num_right = [&](const char* key) {
    return std::count_if(schema[key].begin(), schema[key].end(),
                         [&](const json& other) { return !fails(other); });
  };
  if (schema.contains("anyOf") && num_right("anyOf") == 0) return here + ": fits none of 'anyOf'";
  if (schema.contains("oneOf")) {
    // Counted once: twice at each level would double with the depth of the value.
    const auto num_fitting = num_right("oneOf");
    if (num_fitting != 1) {
      return fmt::format("{}: fits {} of 'oneOf'; expected 1", here, num_fitting);
    }
  }
  if (schema.contains("not") && !fails(schema["not"])) return here + ": is what 'not' forbids";
  if (schema.contains("if")) {
    const char* branch = fails(schema["if"]) ? "else" : "then";
    if (schema.contains(branch)) return check(schema[branch], value, place, depth + 1);
  }
  return "";
}

JsonSchema::JsonSchema(std::unique_ptr<Compiled> compiled) : compiled_(std::move(compiled)) {}
JsonSchema::JsonSchema(JsonSchema&&) noexcept = default;
JsonSchema& JsonSchema::operator=(JsonSchema&&) noexcept = default;
JsonSchema::~JsonSchema() = default;

Result<JsonSchema> JsonSchema::parse(const std::string& text) {
  Result<json> schema = read_json_text(text);
  if (!schema.ok()) return schema.status();
  auto compiled = std::make_unique<Compiled>();
  compiled->root = std::move(*schema);
  GRADUS_RETURN_IF_ERROR(compiled->compile(compiled->root, "", 0));
  return JsonSchema(std::move(compiled));
}

std::string JsonSchema::problem_with(const json& value) const {
  return compiled_->check(compiled_->root, value, "", 0);
}

Result<json> read_json_text(std::string_view text) {
  if (text.size() > kMaxTextBytes) {
    return invalid_argument("has {} bytes; expected at most {}", text.size(), kMaxTextBytes);
  }
  int level = 0;
  bool is_in_text = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (is_in_text) {
      if (c == '\\') ++i;
      if (c == '"') is_in_text = false;
    } else if (c == '"') {
      is_in_text = true;
    } else if (c == '[' || c == '{') {
      if (++level > kMaxLevels) return invalid_argument("is nested deeper than {}", kMaxLevels);
    } else if (c == ']' || c == '}') {
      --level;
    }
  }
  json value = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (value.is_discarded()) return invalid_argument("is no JSON");
  return value;
}

}  // namespace gradus::rewards
