// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/status.h"
#include "common/strings.h"

namespace gradus {

// Named factories of one interface; the names are the values that YAML files use. Filled by each
// module's explicit register_builtin_xxx() call: a static registrar object in a static library
// would be dropped by the linker. Not thread-safe while being filled, thread-safe afterwards.
template <class Interface, class... Args>
class Registry {
 public:
  using Factory = std::function<Result<std::unique_ptr<Interface>>(Args...)>;

  // `kind` is what an entry is called in messages, e.g. "reward".
  explicit Registry(std::string kind) : kind_(std::move(kind)) {}

  // Adds an entry; a second one of the same name is a bug.
  void add(const std::string& name, Factory factory) {
    GRADUS_CHECK(factories_.emplace(name, std::move(factory)).second,
                 kind_ + " '" + name + "' is registered twice");
  }

  // InvalidArgument with the known names and the nearest one if `name` is unknown.
  Result<std::unique_ptr<Interface>> create(const std::string& name, Args... args) const {
    const auto found = factories_.find(name);
    if (found == factories_.end()) {
      const std::vector<std::string> known = names();
      return invalid_argument("unknown {} '{}'{}; known: {}", kind_, name,
                              did_you_mean(name, known), join(known, ", "));
    }
    return found->second(std::forward<Args>(args)...);
  }

  std::vector<std::string> names() const {
    std::vector<std::string> all;
    for (const auto& [name, factory] : factories_) all.push_back(name);
    return all;
  }

 private:
  std::string kind_;
  std::map<std::string, Factory> factories_;
};

}  // namespace gradus
