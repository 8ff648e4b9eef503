// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <map>
#include <span>
#include <string>
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

// The type-erased form of load_config. `path` may be empty: then what the struct holds is the base.
// NotFound if the file is missing, InvalidArgument with all problems otherwise; the struct is then
// half-filled.
Status bind_config(const std::string& path, std::span<const std::string> overrides,
                   const VisitFields& visit, ConfigOrigins& origins);

template <class Config>
struct LoadedConfig {
  Config value;
  ConfigOrigins origins;
};

// `overrides` are the texts after `--set`; `defaults` is what no source mentions.
template <class Config>
Result<LoadedConfig<Config>> load_config(const std::string& path,
                                         std::span<const std::string> overrides = {},
                                         Config defaults = {}) {
  LoadedConfig<Config> loaded{std::move(defaults), {}};
  GRADUS_RETURN_IF_ERROR(bind_config(
      path, overrides, [&](FieldVisitor& v) { loaded.value.visit(v); }, loaded.origins));
  return loaded;
}

// `status` with `place: ` before each line: where the first of the keys that the line names was set
// (by --set, if one of them was), or `path` itself if all of them have their defaults.
Status with_places(const Status& status, const std::string& path, const ConfigOrigins& origins);

// The configuration as YAML that load_config reads back to the same values, with the origin of each
// value as a comment.
std::string config_yaml(const VisitFields& visit, const ConfigOrigins& origins);

// Reference in Markdown: a table for each section with key, type, default, range and help.
std::string config_markdown(const VisitFields& visit);

}  // namespace gradus
