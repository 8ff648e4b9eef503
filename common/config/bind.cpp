// SPDX-License-Identifier: Apache-2.0
#include "common/config/bind.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include "common/internal/config_paths.h"
#include "common/internal/yaml_scalar.h"
#include "common/internal/yaml_tree.h"
#include "common/strings.h"

namespace gradus {
namespace {

using internal::ConfigProblem;
using internal::ConfigSource;
using internal::ScalarReading;
using internal::YamlEntry;
using internal::YamlNode;

constexpr size_t kMaxProblems = 50;  // beyond it the file is not what it is taken for

std::string quoted(const std::string& text) {
  constexpr size_t kMaxShown = 60;
  return "'" + (text.size() > kMaxShown ? text.substr(0, kMaxShown) + "..." : text) + "'";
}

std::string kind_name(const YamlNode& node) {
  switch (node.kind) {
    case YamlNode::Kind::kNull:
      return "nothing";
    case YamlNode::Kind::kScalar:
      return quoted(node.text);
    case YamlNode::Kind::kList:
      return "a list";
    case YamlNode::Kind::kMap:
      return "a map";
  }
  GRADUS_CHECK(false, "node kind out of range");
}

// Assigns the values of one source to the fields that it mentions.
class Binder final : public FieldVisitor {
 public:
  Binder(const ConfigSource& source, const std::vector<std::string>& known_paths,
         std::vector<ConfigProblem>& problems, ConfigOrigins& origins)
      : source_(source), known_paths_(known_paths), problems_(problems), origins_(origins) {}

  void bind(const YamlNode& root, const VisitFields& visit) {
    bind_section({"", &root}, [&] { visit(*this); });
  }

 private:
  // A node and the full name of the field it is for; no node if this source does not mention the
  // field.
  struct Target {
    std::string path;
    const YamlNode* node = nullptr;
  };
  struct Section {
    Target target;
    std::vector<std::string> fields;
  };

  // What the next visited field is bound to: the entry of its name, or the element of a container.
  Target take(const Field& field) {
    if (element_.node != nullptr) return std::exchange(element_, {});
    Section& section = sections_.back();
    section.fields.push_back(field.name);
    const YamlEntry* entry = section.target.node->find(field.name);
    return {internal::child_path(section.target.path, field.name),
            entry == nullptr ? nullptr : &entry->value};
  }

  void record_origin(const Target& target) {
    origins_[target.path] = source_.place(target.node->line, target.node->column);
  }

  // A list or map that replaces another leaves no origin of the old entries behind.
  void forget_origins_below(const std::string& path) {
    std::erase_if(origins_, [&](const auto& origin) {
      const std::string& name = origin.first;
      return name.size() > path.size() && name.compare(0, path.size(), path) == 0 &&
             (name[path.size()] == '.' || name[path.size()] == '[');
    });
  }

  void report(const Target& target, const std::string& must, const Constraint& constraint,
              const std::string& further_remedy = "") {
    // `--set a.b=c` already shows key and value.
    const bool is_shown = source_.is_override() && source_.override_key == target.path;
    std::string what = must;
    if (!is_shown) {
      what = fmt::format("'{}' {}, got {}", target.path, must, kind_name(*target.node));
    }
    if (!further_remedy.empty()) {
      what += "; " + further_remedy;
    } else if (!constraint.remedy.empty()) {
      what += "; " + constraint.remedy;
    }
    report_at(target.node->line, target.node->column, what, target.path);
  }

  void report_at(int line, int column, const std::string& what, const std::string& key,
                 bool is_unknown_key = false) {
    problems_.push_back({source_.index, line, column,
                         fmt::format("{}: {}", source_.place(line, column), what), key,
                         is_unknown_key});
  }

  template <class T>
  void bind_scalar(const Field& field, T& value, ScalarReading<T> (*read)(const std::string&),
                   const std::string& expected) {
    const Target target = take(field);
    if (target.node == nullptr) return;
    if (target.node->kind != YamlNode::Kind::kScalar) {
      report(target, "must be " + expected, {});
      return;
    }
    if (target.node->is_quoted) {
      report(target, "must be " + expected, {}, "remove the quotes");
      return;
    }
    const ScalarReading<T> reading = read(target.node->text);
    if (!reading.expected.empty()) {
      report(target, "must be " + reading.expected, {}, reading.remedy);
      return;
    }
    if constexpr (!std::is_same_v<T, bool>) {
      const std::string problem = field.constraint.problem_with(reading.value);
      if (!problem.empty()) {
        report(target, problem, field.constraint);
        return;
      }
    }
    value = reading.value;
    record_origin(target);
  }

  void on_bool(const Field& field, bool& value) override {
    bind_scalar(field, value, internal::read_bool, "true or false");
  }
  void on_integer(const Field& field, int64_t& value) override {
    bind_scalar(field, value, internal::read_integer, "an integer");
  }
  void on_number(const Field& field, double& value) override {
    bind_scalar(field, value, internal::read_number, "a number");
  }

  // The text of a scalar node, or nothing after a report.
  const std::string* text_of(const Target& target, const std::string& must) {
    if (target.node->kind == YamlNode::Kind::kScalar) return &target.node->text;
    const bool is_null = target.node->kind == YamlNode::Kind::kNull;
    report(target, must, {}, is_null ? "write \"\" for an empty text" : "");
    return nullptr;
  }

  void on_text(const Field& field, std::string& value) override {
    const Target target = take(field);
    if (target.node == nullptr) return;
    const std::string* text = text_of(target, "must be a text");
    if (text == nullptr) return;
    const std::string problem = field.constraint.problem_with(*text);
    if (!problem.empty()) {
      report(target, problem, field.constraint, nearest_choice(field, *text));
      return;
    }
    value = *text;
    record_origin(target);
  }

  void on_choice(const Field& field, int64_t& index) override {
    const Target target = take(field);
    if (target.node == nullptr) return;
    const std::vector<std::string>& choices = field.constraint.choices;
    const std::string must = "must be " + field.constraint.describe();
    if (target.node->kind != YamlNode::Kind::kScalar) {
      report(target, must, field.constraint);
      return;
    }
    const auto found = std::find(choices.begin(), choices.end(), target.node->text);
    if (found == choices.end()) {
      report(target, must, field.constraint, nearest_choice(field, target.node->text));
      return;
    }
    index = found - choices.begin();
    record_origin(target);
  }

  static std::string nearest_choice(const Field& field, const std::string& text) {
    const std::string hint = did_you_mean(text, field.constraint.choices);
    return hint.empty() ? "" : hint.substr(2);  // without its "; "
  }

  void on_section(const Field& field, const std::function<void()>& visit_fields) override {
    const Target target = take(field);
    if (target.node == nullptr) return;
    if (target.node->kind == YamlNode::Kind::kNull) return;  // all of its keys are commented out
    const std::string& shorthand = field.constraint.shorthand_key;
    if (target.node->kind == YamlNode::Kind::kScalar && !shorthand.empty()) {
      record_origin(target);
      const YamlNode map = internal::map_of(shorthand, *target.node);
      bind_section({target.path, &map}, visit_fields);
      return;
    }
    if (target.node->kind != YamlNode::Kind::kMap) {
      report(target, "must be a map of keys", {});
      return;
    }
    record_origin(target);
    bind_section(target, visit_fields);
  }

  void bind_section(const Target& target, const std::function<void()>& visit_fields) {
    sections_.push_back({target, {}});
    visit_fields();
    const Section section = std::move(sections_.back());
    sections_.pop_back();
    for (const YamlEntry& entry : target.node->entries) {
      const auto& fields = section.fields;
      if (std::find(fields.begin(), fields.end(), entry.key) != fields.end()) continue;
      report_at(entry.line, entry.column,
                fmt::format("unknown key '{}' {}{}", entry.key,
                            target.path.empty() ? "at the top level" : "in '" + target.path + "'",
                            hint_for_unknown(entry.key, fields)),
                target.path, true);
    }
  }

  std::string hint_for_unknown(const std::string& key,
                               const std::vector<std::string>& fields) const {
    const std::string nearest = did_you_mean(key, fields);
    if (!nearest.empty()) return nearest;
    std::vector<std::string> elsewhere;
    for (const std::string& path : known_paths_) {
      if (path.ends_with("." + key)) elsewhere.push_back("'" + path + "'");
    }
    if (!elsewhere.empty()) return "; did you mean " + join(elsewhere, " or ") + "?";
    return "; known keys: " + join(fields, ", ");
  }

  void on_optional(const Field& field, Optional& optional) override {
    const Target target = take(field);
    if (target.node == nullptr) return;
    if (target.node->kind == YamlNode::Kind::kNull) {
      forget_origins_below(target.path);
      optional.set_presence(false);
      record_origin(target);
      return;
    }
    optional.set_presence(true);
    element_ = target;
    optional.visit_content(*this, field);
  }

  void on_list(const Field& field, List& list) override {
    const Target target = take(field);
    if (target.node == nullptr) return;
    if (source_.is_override() && target.node->kind == YamlNode::Kind::kMap) {
      bind_elements_by_index(target, field, list);
      return;
    }
    if (target.node->kind != YamlNode::Kind::kList) {
      report(target, "must be a list", {}, "write [] for an empty list, [a, b] for two entries");
      return;
    }
    const std::vector<YamlNode>& elements = target.node->elements;
    const std::string problem = field.constraint.problem_with_size(elements.size());
    if (!problem.empty()) report(target, problem, field.constraint);
    forget_origins_below(target.path);
    record_origin(target);
    list.resize(0);  // entries start from their defaults
    list.resize(elements.size());
    for (size_t i = 0; i < elements.size(); ++i) {
      bind_element(field, list, i, {fmt::format("{}[{}]", target.path, i), &elements[i]});
    }
  }

  void bind_element(const Field& field, List& list, size_t index, const Target& target) {
    Field element = field;
    element.constraint.must_be_given = false;  // was about the list
    element_ = target;
    list.visit_element(*this, index, element);
    element_ = {};
  }

  // `--set reward.parts.0.weight=1`
  void bind_elements_by_index(const Target& target, const Field& field, List& list) {
    for (const YamlEntry& entry : target.node->entries) {
      const ScalarReading<int64_t> index = internal::read_integer(entry.key);
      if (!index.expected.empty() || index.value < 0 ||
          index.value >= static_cast<int64_t>(list.size())) {
        report_at(1, 1,
                  fmt::format("'{}' has {} entries, counted from 0; got '{}'", target.path,
                              list.size(), entry.key),
                  target.path);
        continue;
      }
      bind_element(field, list, static_cast<size_t>(index.value),
                   {fmt::format("{}[{}]", target.path, index.value), &entry.value});
    }
  }

  void on_map(const Field& field, Map& map) override {
    const Target target = take(field);
    if (target.node == nullptr) return;
    if (target.node->kind != YamlNode::Kind::kMap) {
      report(target, "must be a map of names to values", {}, "write {} for an empty map");
      return;
    }
    const std::string problem = field.constraint.problem_with_size(target.node->entries.size());
    if (!problem.empty()) report(target, problem, field.constraint);
    const bool sets_one_entry = source_.is_override() && source_.override_key != target.path;
    if (!sets_one_entry) {
      forget_origins_below(target.path);
      map.clear();
      record_origin(target);
    }
    Field element = field;
    element.constraint.must_be_given = false;
    for (const YamlEntry& entry : target.node->entries) {
      element_ = {internal::child_path(target.path, entry.key), &entry.value};
      map.visit_entry(*this, entry.key, element);
      element_ = {};
    }
  }

  const ConfigSource& source_;
  const std::vector<std::string>& known_paths_;
  std::vector<ConfigProblem>& problems_;
  ConfigOrigins& origins_;
  std::vector<Section> sections_;
  Target element_;
};

struct Layer {
  ConfigSource source;
  std::optional<YamlNode> root;
  std::vector<ConfigProblem> problems;

  void report(int line, int column, const std::string& what) {
    problems.push_back({0, line, column, fmt::format("{}: {}", source.place(line, column), what)});
  }
};

// Reads the files and overrides of one configuration into layers, the weakest first.
class LayerReader {
 public:
  std::vector<Layer>& layers() { return layers_; }

  // NotFound if the file cannot be opened.
  Status read_file(const std::string& path) {
    std::string text;
    GRADUS_RETURN_IF_ERROR(read_text(path, text));
    Layer layer;
    layer.source.name = path;
    layer.root = internal::parse_yaml(text, layer.source, layer.problems);
    if (layer.root ? layer.root->kind == YamlNode::Kind::kNull : layer.problems.empty()) {
      layer.report(1, 1, "is empty; an empty configuration is written {}");
      layer.root.reset();
    } else if (layer.root && layer.root->kind != YamlNode::Kind::kMap) {
      layer.report(layer.root->line, layer.root->column,
                   "must be a map of keys at the top level, got " + kind_name(*layer.root));
      layer.root.reset();
    }
    chain_.push_back({path, canonical(path)});
    if (layer.root) read_base(layer);
    append(std::move(layer));
    return {};
  }

  void read_override(const std::string& text) {
    Layer layer;
    const size_t equals = text.find('=');
    const std::string key = text.substr(0, equals);
    layer.source = {0, "--set " + text, key.empty() ? "?" : key};
    if (equals == std::string::npos || key.empty() || key.front() == '.' || key.back() == '.' ||
        key.find("..") != std::string::npos) {
      layer.report(1, 1, "must be a key and a value, as in --set trainer.num_steps=10");
    } else {
      std::optional<YamlNode> value =
          internal::parse_yaml(text.substr(equals + 1), layer.source, layer.problems);
      if (layer.problems.empty()) layer.root = nest(key, value.value_or(YamlNode{}));
    }
    append(std::move(layer));
  }

 private:
  void append(Layer layer) {
    layer.source.index = static_cast<int>(layers_.size());
    for (ConfigProblem& problem : layer.problems) problem.source = layer.source.index;
    layers_.push_back(std::move(layer));
  }

  static Status read_text(const std::string& path, std::string& text) {
    std::error_code error;
    if (std::filesystem::is_directory(path, error)) {
      return invalid_argument("{}: is a folder; name a YAML file", path);
    }
    std::ifstream file(path, std::ios::binary);
    if (!file) return not_found("{}: cannot open: {}", path, std::strerror(errno));
    std::ostringstream content;
    content << file.rdbuf();
    text = content.str();
    return {};
  }

  static std::string canonical(const std::string& path) {
    std::error_code error;
    const std::filesystem::path full = std::filesystem::canonical(path, error);
    return error ? path : full.string();
  }

  // Takes the `base` key out of the layer and reads the file it names.
  void read_base(Layer& layer) {
    std::vector<YamlEntry>& entries = layer.root->entries;
    const auto found = std::find_if(entries.begin(), entries.end(),
                                    [](const YamlEntry& entry) { return entry.key == "base"; });
    if (found == entries.end()) return;
    const YamlNode node = found->value;
    entries.erase(found);
    if (node.kind != YamlNode::Kind::kScalar || node.text.empty()) {
      layer.report(node.line, node.column,
                   "'base' must be the path of one file, got " + kind_name(node));
      return;
    }
    const std::string path = (std::filesystem::path(layer.source.name).parent_path() / node.text)
                                 .lexically_normal()
                                 .string();
    std::vector<std::string> chain;
    bool is_cycle = false;
    for (const auto& [name, full] : chain_) {
      is_cycle |= full == canonical(path);
      if (is_cycle) chain.push_back(name);
    }
    if (is_cycle) {
      chain.push_back(path);
      layer.report(
          node.line, node.column,
          fmt::format("base '{}' leads back to itself ({})", node.text, join(chain, " -> ")));
      return;
    }
    const Status status = read_file(path);
    if (!status.ok()) {
      layer.report(node.line, node.column,
                   fmt::format("base '{}' cannot be read ({}); the path is relative to this file",
                               node.text, status.message()));
    }
  }

  // {a: {b: value}} for "a.b".
  static YamlNode nest(const std::string& key, YamlNode value) {
    const size_t dot = key.find('.');
    if (dot != std::string::npos) value = nest(key.substr(dot + 1), std::move(value));
    return internal::map_of(key.substr(0, dot), std::move(value));
  }

  std::vector<Layer> layers_;
  std::vector<std::pair<std::string, std::string>>
      chain_;  // files being read, as named and in full
};

Status status_of(std::vector<ConfigProblem> problems) {
  if (problems.empty()) return {};
  std::stable_sort(
      problems.begin(), problems.end(), [](const ConfigProblem& a, const ConfigProblem& b) {
        return std::tie(a.source, a.line, a.column) < std::tie(b.source, b.line, b.column);
      });
  std::vector<std::string> lines;
  for (const ConfigProblem& problem : problems) {
    if (lines.size() == kMaxProblems) {
      lines.push_back(fmt::format("and {} more problems", problems.size() - kMaxProblems));
      break;
    }
    lines.push_back(problem.text);
  }
  return {StatusCode::kInvalidArgument, join(lines, "\n")};
}

}  // namespace

bool is_unread(const UnreadKeys& unread, std::string_view key) {
  for (;;) {
    if (unread.contains(std::string(key))) return true;
    if (key.empty()) return false;
    const size_t end = key.find_last_of(".[");
    key = key.substr(0, end == std::string_view::npos ? 0 : end);
  }
}

Status bind_config(const std::string& path, std::span<const std::string> overrides,
                   const VisitFields& visit, ConfigOrigins& origins, UnreadKeys& unread) {
  LayerReader reader;
  if (!path.empty()) {
    const Status status = reader.read_file(path);
    if (!status.ok()) unread.insert("");
    GRADUS_RETURN_IF_ERROR(status);
  }
  for (const std::string& override_text : overrides) reader.read_override(override_text);
  const std::vector<std::string> known_paths = config_paths(visit);
  std::vector<ConfigProblem> problems;
  for (const Layer& layer : reader.layers()) {
    problems.insert(problems.end(), layer.problems.begin(), layer.problems.end());
    if (layer.root) {
      Binder(layer.source, known_paths, problems, origins).bind(*layer.root, visit);
    } else {
      unread.insert("");
    }
  }
  // An unknown key may be the one that is missing, written wrong.
  std::set<std::string> sections_with_unknown;
  for (const ConfigProblem& problem : problems) {
    if (problem.is_unknown_key) {
      sections_with_unknown.insert(problem.key);
    } else if (!problem.key.empty()) {
      unread.insert(problem.key);
    }
  }
  std::vector<ConfigProblem> missing;
  internal::report_missing(visit, path, origins, missing);
  for (ConfigProblem& problem : missing) {
    const size_t dot = problem.key.rfind('.');
    const std::string section = dot == std::string::npos ? "" : problem.key.substr(0, dot);
    if (is_unread(unread, problem.key) || sections_with_unknown.contains(section)) continue;
    unread.insert(problem.key);
    for (const Layer& layer : reader.layers()) {
      const std::string& name = layer.source.name;
      if (!problem.text.starts_with(name + ":")) continue;
      problem.source = layer.source.index;
      static_cast<void>(std::sscanf(problem.text.c_str() + name.size(), ":%d:%d:", &problem.line,
                                    &problem.column));
    }
    problems.push_back(std::move(problem));
  }
  return status_of(std::move(problems));
}

namespace {

// The origin of a key, or of the first entry of a map of which only entries were set.
ConfigOrigins::const_iterator find_origin(const ConfigOrigins& origins, const std::string& key) {
  if (key.empty()) return origins.end();
  const auto found = origins.find(key);
  if (found != origins.end()) return found;
  const auto entry = origins.lower_bound(key + ".");
  return entry != origins.end() && entry->first.starts_with(key + ".") ? entry : origins.end();
}

// The origin of the list's entry that a key belongs to: "a[1]" of "a[1].b.c".
ConfigOrigins::const_iterator find_entry_origin(const ConfigOrigins& origins,
                                                const std::string& key) {
  const size_t end = key.rfind(']');
  return end == std::string::npos ? origins.end() : origins.find(key.substr(0, end + 1));
}

}  // namespace

Status with_places(const Status& status, const std::string& path, const ConfigOrigins& origins) {
  if (status.ok()) return status;
  std::istringstream message(status.message());
  std::vector<std::string> lines;
  for (std::string line; std::getline(message, line);) {
    std::string place, place_of_entry;
    std::string word;
    for (const char c : line + " ") {
      const bool is_key_character = std::isalnum(static_cast<unsigned char>(c)) || c == '_' ||
                                    c == '.' || c == '[' || c == ']';
      if (is_key_character) {
        word += c;
        continue;
      }
      const std::string key = std::exchange(word, {});
      const auto found = find_origin(origins, key);
      if (found == origins.end()) {
        const auto entry = find_entry_origin(origins, key);
        if (entry != origins.end() && place_of_entry.empty()) place_of_entry = entry->second;
        continue;
      }
      const bool is_override = found->second.starts_with("--set ");
      if (place.empty() || (is_override && !place.starts_with("--set "))) place = found->second;
    }
    if (place.empty()) place = place_of_entry.empty() ? path : place_of_entry;
    lines.push_back(place.empty() ? line : fmt::format("{}: {}", place, line));
  }
  return {status.code(), join(lines, "\n")};
}

namespace {

// "file:3:7: ..."; lines without a place come first.
struct PlacedLine {
  int line = 0, column = 0;
  std::string text;
};

PlacedLine placed(std::string text) {
  PlacedLine out;
  for (size_t at = text.find(':'); at != std::string::npos; at = text.find(':', at + 1)) {
    if (std::sscanf(text.c_str() + at, ":%d:%d: ", &out.line, &out.column) == 2) break;
  }
  out.text = std::move(text);
  return out;
}

}  // namespace

Status in_order_of_lines(const Status& one, const Status& other) {
  if (one.ok()) return other;
  if (other.ok()) return one;
  std::vector<PlacedLine> placed_lines;
  std::istringstream message(fmt::format("{}\n{}", one.message(), other.message()));
  for (std::string line; std::getline(message, line);) {
    placed_lines.push_back(placed(std::move(line)));
  }
  std::stable_sort(placed_lines.begin(), placed_lines.end(),
                   [](const PlacedLine& a, const PlacedLine& b) {
                     return std::tie(a.line, a.column) < std::tie(b.line, b.column);
                   });
  std::vector<std::string> lines;
  for (PlacedLine& line : placed_lines) lines.push_back(std::move(line.text));
  return {one.code(), join(lines, "\n")};
}

}  // namespace gradus
