// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

// A YAML text as a tree that keeps what yaml-cpp's own nodes lose: the place of every key and
// value, whether a scalar was quoted, and duplicate keys.
namespace gradus::internal {

// What is wrong at one place of one source.
struct ConfigProblem {
  int source = 0;  // order of the sources: base files first, then the file, then each --set
  int line = 0;    // 1 is the first
  int column = 0;
  std::string text;   // whole message, place included
  std::string key{};  // full name of the field that has no value for it; empty if there is none
  bool is_unknown_key = false;  // then `key` is the section's
};

// A file, or one `--set`.
struct ConfigSource {
  int index = 0;
  std::string name;          // path of the file, or "--set a.b=c"
  std::string override_key;  // "a.b" of a --set, empty for files

  bool is_override() const { return !override_key.empty(); }
  // "file:line:column", or the whole --set.
  std::string place(int line, int column) const;
};

struct YamlEntry;

struct YamlNode {
  enum class Kind { kNull, kScalar, kList, kMap };
  Kind kind = Kind::kNull;
  std::string text;  // of a scalar
  bool is_quoted = false;
  int line = 1;
  int column = 1;
  std::vector<YamlNode> elements;  // of a list
  std::vector<YamlEntry> entries;  // of a map, in the order of the file; keys are unique

  const YamlEntry* find(std::string_view key) const;
};

struct YamlEntry {
  std::string key;
  int line = 1;
  int column = 1;
  YamlNode value;
};

// {key: value}, at the place of the value.
YamlNode map_of(std::string key, YamlNode value);

// Parses one document. Problems are added to `problems`: syntax, a second document, duplicate keys
// (the later one is dropped), anchors, aliases, merge keys, tags, keys that are not text, control
// characters, invalid UTF-8, more than 1 MiB. Nothing is returned if there is no tree at all.
std::optional<YamlNode> parse_yaml(const std::string& text, const ConfigSource& source,
                                   std::vector<ConfigProblem>& problems);

}  // namespace gradus::internal
