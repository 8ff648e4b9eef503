// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "common/status.h"

namespace gradus::cli {

// InvalidArgument if `path` is there already, unless it is an empty directory.
Status check_new_directory(const std::string& path);

// "models/a/" as "models/a", so that names can be made of it.
std::string without_trailing_slashes(std::string path);

// A directory in the making beside `target`: it gets its name when all of it is there, and goes if
// it does not come to that.
class PartialDirectory {
 public:
  explicit PartialDirectory(const std::string& target);
  PartialDirectory(const PartialDirectory&) = delete;
  PartialDirectory& operator=(const PartialDirectory&) = delete;
  ~PartialDirectory();

  const std::string& path() const { return path_; }
  Status commit();

 private:
  std::string target_;
  std::string path_;
};

}  // namespace gradus::cli
