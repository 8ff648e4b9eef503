// SPDX-License-Identifier: Apache-2.0
#include "cli/partial_directory.h"

#include <unistd.h>

#include <filesystem>

namespace gradus::cli {

namespace fs = std::filesystem;

Status check_new_directory(const std::string& path) {
  std::error_code error;
  if (!fs::exists(path, error) || (fs::is_directory(path, error) && fs::is_empty(path, error))) {
    return {};
  }
  return invalid_argument("{}: exists already; choose another directory or remove it", path);
}

std::string without_trailing_slashes(std::string path) {
  while (path.size() > 1 && path.ends_with('/')) path.pop_back();
  return path;
}

PartialDirectory::PartialDirectory(const std::string& target)
    : target_(target), path_(fmt::format("{}.partial-{}", target, ::getpid())) {}

PartialDirectory::~PartialDirectory() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

Status PartialDirectory::commit() {
  std::error_code error;
  fs::rename(path_, target_, error);
  if (error) return unavailable("{}: cannot rename {} to it: {}", target_, path_, error.message());
  return {};
}

}  // namespace gradus::cli
