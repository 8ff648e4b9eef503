// SPDX-License-Identifier: Apache-2.0
// config_yaml and config_markdown of common/config/bind.h: what a struct's field list prints.
#include <fmt/format.h>

#include <algorithm>

#include "common/config/bind.h"
#include "common/internal/config_paths.h"
#include "common/internal/yaml_scalar.h"
#include "common/strings.h"

namespace gradus {
namespace {

// Whether YAML reads the bare word back as this text and nothing else.
bool is_plain(const std::string& text) {
  const auto is_word_character = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '/' || c == '.' ||
           c == '-' || c == '+';
  };
  if (text.empty() || text[0] == '-' || text[0] == '.') return false;
  if (!std::all_of(text.begin(), text.end(), is_word_character)) return false;
  std::string lower = text;
  for (char& c : lower) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  for (const char* word : {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}) {
    if (lower == word) return false;
  }
  return !std::isdigit(static_cast<unsigned char>(text[0])) && text[0] != '+';
}

std::string yaml_text(const std::string& text) {
  if (is_plain(text)) return text;
  std::string quoted = "\"";
  for (const char c : text) {
    const unsigned char byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      quoted += '\\';
      quoted += c;
    } else if (c == '\n') {
      quoted += "\\n";
    } else if (c == '\t') {
      quoted += "\\t";
    } else if (byte < 0x20 || byte == 0x7F) {
      quoted += fmt::format("\\x{:02x}", byte);
    } else {
      quoted += c;
    }
  }
  return quoted + '"';
}

std::string yaml_bool(bool value) { return value ? "true" : "false"; }

// Whether a list's entries are written between brackets, i.e. are no sections.
class EntryKind final : public FieldVisitor {
 public:
  bool is_scalar = false;
  std::string type;

 private:
  void set(const std::string& name) {
    is_scalar = true;
    type = name;
  }
  void on_bool(const Field&, bool&) override { set("bool"); }
  void on_integer(const Field&, int64_t&) override { set("integer"); }
  void on_number(const Field&, double&) override { set("number"); }
  void on_text(const Field&, std::string&) override { set("text"); }
  void on_choice(const Field&, int64_t&) override { set("choice"); }
  void on_section(const Field&, const std::function<void()>&) override { type = "section"; }
  void on_optional(const Field& field, Optional& optional) override {
    optional.visit_prototype(*this, field);
    type += " or unset";
  }
  void on_list(const Field& field, List& list) override {
    list.visit_prototype(*this, field);
    is_scalar = false;
    type = "list of " + type;
  }
  void on_map(const Field& field, Map& map) override {
    map.visit_prototype(*this, field);
    is_scalar = false;
    type = "map to " + type;
  }
};

class YamlPrinter final : public FieldVisitor {
 public:
  explicit YamlPrinter(const ConfigOrigins& origins) : origins_(origins) {}

  std::string text;

 private:
  // Where the next visited field goes, unless it is an entry of its section.
  struct Element {
    enum class Kind { kNone, kInline, kDash, kEntry };
    Kind kind = Kind::kNone;
    std::string key;   // of kEntry
    std::string path;  // full name
  };

  std::string take(const Field& field, std::string& key) {
    const Element element = std::exchange(element_, {});
    key = element.kind == Element::Kind::kNone ? field.name : element.key;
    return element.kind == Element::Kind::kNone ? internal::child_path(section_, field.name)
                                                : element.path;
  }

  // Starts a line; the first one of a list's entry has the dash.
  void start_line() {
    text += std::string(static_cast<size_t>(depth_) * 2, ' ');
    if (std::exchange(is_dash_due_, false)) text.replace(text.size() - 2, 2, "- ");
  }

  void line(const std::string& key, const std::string& value, const std::string& path) {
    start_line();
    const auto origin = origins_.find(path);
    text += fmt::format("{}: {}  # {}\n", yaml_text(key), value,
                        origin == origins_.end() ? "default" : origin->second);
  }

  void scalar(const Field& field, const std::string& value) {
    if (element_.kind == Element::Kind::kInline) {
      element_ = {};
      inline_values_.push_back(value);
      return;
    }
    std::string key;
    const std::string path = take(field, key);
    line(key, value, path);
  }

  void on_bool(const Field& field, bool& value) override { scalar(field, yaml_bool(value)); }
  void on_integer(const Field& field, int64_t& value) override {
    scalar(field, fmt::format("{}", value));
  }
  void on_number(const Field& field, double& value) override {
    scalar(field, fmt::format("{}", value));
  }
  void on_text(const Field& field, std::string& value) override { scalar(field, yaml_text(value)); }
  void on_choice(const Field& field, int64_t& index) override {
    scalar(field, field.constraint.choices.at(static_cast<size_t>(index)));
  }

  void on_section(const Field& field, const std::function<void()>& visit_fields) override {
    const bool is_list_entry = element_.kind == Element::Kind::kDash;
    std::string key;
    const std::string path = take(field, key);
    if (!is_list_entry) {
      start_line();
      text += yaml_text(key) + ":\n";
    }
    const std::string outer = std::exchange(section_, path);
    ++depth_;
    is_dash_due_ = is_list_entry;
    visit_fields();
    --depth_;
    section_ = outer;
  }

  void on_optional(const Field& field, Optional& optional) override {
    if (!optional.has_value()) {
      scalar(field, "~");
      return;
    }
    if (element_.kind == Element::Kind::kNone) {
      element_ = {Element::Kind::kEntry, field.name, internal::child_path(section_, field.name)};
    }
    optional.visit_content(*this, field);
  }

  void on_list(const Field& field, List& list) override {
    std::string key;
    const std::string path = take(field, key);
    EntryKind entry;
    list.visit_prototype(entry, field);
    if (entry.is_scalar || list.size() == 0) {
      inline_values_.clear();
      for (size_t i = 0; i < list.size(); ++i) {
        element_ = {Element::Kind::kInline, "", ""};
        list.visit_element(*this, i, field);
      }
      line(key, "[" + join(inline_values_, ", ") + "]", path);
      return;
    }
    GRADUS_CHECK(entry.type == "section", "no form to print '" + path + "', " + entry.type);
    start_line();
    text += yaml_text(key) + ":\n";
    ++depth_;
    for (size_t i = 0; i < list.size(); ++i) {
      element_ = {Element::Kind::kDash, "", fmt::format("{}[{}]", path, i)};
      list.visit_element(*this, i, field);
    }
    --depth_;
  }

  void on_map(const Field& field, Map& map) override {
    std::string key;
    const std::string path = take(field, key);
    const std::vector<std::string> keys = map.keys();
    if (keys.empty()) {
      line(key, "{}", path);
      return;
    }
    start_line();
    text += yaml_text(key) + ":\n";
    ++depth_;
    for (const std::string& name : keys) {
      element_ = {Element::Kind::kEntry, name, internal::child_path(path, name)};
      map.visit_entry(*this, name, field);
    }
    --depth_;
  }

  const ConfigOrigins& origins_;
  std::string section_;
  Element element_;
  int depth_ = 0;
  bool is_dash_due_ = false;
  std::vector<std::string> inline_values_;
};

class MarkdownPrinter final : public FieldVisitor {
 public:
  std::string print(const VisitFields& visit) {
    visit(*this);
    std::string text;
    for (const Table& table : tables_) {
      text += fmt::format(
          "\n## `{}`\n\n{}\n\n| key | type | default | range | meaning |\n"
          "|---|---|---|---|---|\n{}",
          table.path, table.help, table.rows);
    }
    return text;
  }

 private:
  struct Table {
    std::string path;
    std::string help;
    std::string rows;
  };

  void row(const Field& field, const std::string& type, const std::string& default_value,
           const std::string& range) {
    if (open_.empty()) return;  // a section at the top level has no table to stand in
    std::string help = field.help;
    for (size_t at = help.find('|'); at != std::string::npos; at = help.find('|', at + 2)) {
      help.insert(at, "\\");
    }
    tables_[open_.back()].rows +=
        fmt::format("| `{}` | {} | {} | {} | {} |\n", field.name, type,
                    default_value.empty() ? "" : "`" + default_value + "`", range, help);
  }

  void scalar(const Field& field, const std::string& type, const std::string& default_value) {
    if (std::exchange(is_element_, false)) {
      element_default_ = default_value;
      return;
    }
    row(field, type, default_value, range_of(field));
  }

  static std::string range_of(const Field& field) { return field.constraint.describe(); }

  void on_bool(const Field& field, bool& value) override {
    scalar(field, "bool", yaml_bool(value));
  }
  void on_integer(const Field& field, int64_t& value) override {
    scalar(field, "integer", fmt::format("{}", value));
  }
  void on_number(const Field& field, double& value) override {
    scalar(field, "number", fmt::format("{}", value));
  }
  void on_text(const Field& field, std::string& value) override {
    scalar(field, "text", value.empty() ? "\"\"" : yaml_text(value));
  }
  void on_choice(const Field& field, int64_t& index) override {
    scalar(field, "choice", field.constraint.choices.at(static_cast<size_t>(index)));
  }

  void on_section(const Field& field, const std::function<void()>& visit_fields) override {
    const bool is_element = std::exchange(is_element_, false);
    const std::string path =
        is_element
            ? element_path_
            : internal::child_path(open_.empty() ? "" : tables_[open_.back()].path, field.name);
    const std::string& shorthand = field.constraint.shorthand_key;
    const std::string type = shorthand.empty() ? "section" : "section, or its `" + shorthand + "`";
    if (!is_element) row(field, type, "", "");
    tables_.push_back({path, field.help, ""});
    open_.push_back(tables_.size() - 1);
    visit_fields();
    open_.pop_back();
  }

  static std::string type_of(const Field& field, Container& container) {
    EntryKind entry;
    container.visit_prototype(entry, field);
    return entry.type;
  }

  // The default of an entry, shown by `visit`.
  std::string entry_default(const std::function<void()>& visit) {
    is_element_ = true;
    element_path_ = "";
    element_default_ = "...";  // of entries that are sections
    const size_t num_tables = tables_.size();
    visit();
    tables_.resize(num_tables);
    is_element_ = false;
    return element_default_;
  }

  void container_row(const Field& field, Container& container, const std::string& type,
                     const std::string& default_value, const std::string& suffix) {
    row(field, type, default_value, range_of(field));
    is_element_ = true;
    element_path_ =
        internal::child_path(open_.empty() ? "" : tables_[open_.back()].path, field.name) + suffix;
    container.visit_prototype(*this, field);
    is_element_ = false;
  }

  void on_optional(const Field& field, Optional& optional) override {
    std::string value = "~";
    if (optional.has_value()) {
      value = entry_default([&] { optional.visit_content(*this, field); });
    }
    container_row(field, optional, type_of(field, optional) + " or unset", value, "");
  }

  void on_list(const Field& field, List& list) override {
    std::vector<std::string> values;
    for (size_t i = 0; i < list.size(); ++i) {
      values.push_back(entry_default([&] { list.visit_element(*this, i, field); }));
    }
    container_row(field, list, "list of " + type_of(field, list), "[" + join(values, ", ") + "]",
                  "[]");
  }

  void on_map(const Field& field, Map& map) override {
    std::vector<std::string> values;
    for (const std::string& key : map.keys()) {
      values.push_back(key + ": " + entry_default([&] { map.visit_entry(*this, key, field); }));
    }
    container_row(field, map, "map to " + type_of(field, map), "{" + join(values, ", ") + "}",
                  "[]");
  }

  std::vector<Table> tables_;
  std::vector<size_t> open_;  // tables of the sections around
  bool is_element_ = false;
  std::string element_path_;
  std::string element_default_;
};

}  // namespace

std::string config_yaml(const VisitFields& visit, const ConfigOrigins& origins) {
  YamlPrinter printer(origins);
  visit(printer);
  return printer.text;
}

std::string config_markdown(const VisitFields& visit) { return MarkdownPrinter().print(visit); }

}  // namespace gradus
