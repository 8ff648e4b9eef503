// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <map>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/config/field_visitor.h"
#include "common/status.h"

// Reads YAML into a configuration struct (one with `visit(FieldVisitor&)`). Precedence, weakest
// first: the struct's defaults, the file named by the `base:` key (one parent, relative to the
// file, which may have a base itself), the file, each `--set a.b=c` in order, where c is YAML and
// `reward.parts.0.weight` reaches into a list. Sections are merged key by key; a list or a map of
// free names replaces the one below it.
//
// Everything wrong is reported at once, one line for each problem, as `file:line:column: ...` or
// `--set a.b=c: ...`. Values are strict: integers are decimal without leading zeros, numbers
// finite, booleans true or false, and null is only for what may be unset.
namespace gradus {

// Where each value came from ("run.yaml:3:10" or "--set a.b=c"), by its full name, e.g.
// "trainer.clip_low" or "reward.parts[0].name"; what is not in it has its default. Sections that a
// source mentions are in it too.
using ConfigOrigins = std::map<std::string, std::string>;

// Visits the fields of the struct at hand.
using VisitFields = std::function<void(FieldVisitor&)>;

// Full names of all keys and sections; entries of lists and maps as "reward.parts[].name".
std::vector<std::string> config_paths(const VisitFields& visit);

// Full names of what has no value: keys whose values could not be taken, and keys that must be
// given and are not. "" is the whole of a file.
using UnreadKeys = std::set<std::string>;

// Whether `key`, or what it is a part of, is among them.
bool is_unread(const UnreadKeys& unread, std::string_view key);

// The type-erased form of read_config. `path` may be empty: then what the struct holds is the base.
Status bind_config(const std::string& path, std::span<const std::string> overrides,
                   const VisitFields& visit, ConfigOrigins& origins, UnreadKeys& unread);

template <class Config>
struct LoadedConfig {
  Config value;
  ConfigOrigins origins;
};

// What could be read, for callers that have rules of their own to report with the rest.
template <class Config>
struct ReadConfig {
  LoadedConfig<Config> loaded;
  // NotFound if the file is missing, InvalidArgument with all problems otherwise.
  Status status;
  UnreadKeys unread;  // these have their defaults
};

// `overrides` are the texts after `--set`; `defaults` is what no source mentions.
template <class Config>
ReadConfig<Config> read_config(const std::string& path, std::span<const std::string> overrides = {},
                               Config defaults = {}) {
  ReadConfig<Config> read{{std::move(defaults), {}}, {}, {}};
  read.status = bind_config(
      path, overrides, [&](FieldVisitor& v) { read.loaded.value.visit(v); }, read.loaded.origins,
      read.unread);
  return read;
}

// The same, where nothing but the whole will do.
template <class Config>
Result<LoadedConfig<Config>> load_config(const std::string& path,
                                         std::span<const std::string> overrides = {},
                                         Config defaults = {}) {
  ReadConfig<Config> read = read_config(path, overrides, std::move(defaults));
  GRADUS_RETURN_IF_ERROR(read.status);
  return std::move(read.loaded);
}

// `status` with `place: ` before each line: where the first of the keys that the line names was set
// (by --set, if one of them was); if all of them have their defaults, where the first entry of a
// list that they belong to was set, or `path` itself.
Status with_places(const Status& status, const std::string& path, const ConfigOrigins& origins);

// Both statuses as one, its lines in the order of the file: what is wrong with values, and what
// with rules between them. Ok if both are.
Status in_order_of_lines(const Status& one, const Status& other);

// The configuration as YAML that load_config reads back to the same values, with the origin of each
// value as a comment.
std::string config_yaml(const VisitFields& visit, const ConfigOrigins& origins);

// Reference in Markdown: a table for each section with key, type, default, range and help.
std::string config_markdown(const VisitFields& visit);

}  // namespace gradus
