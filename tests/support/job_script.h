// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <string>

#include "tests/support/files.h"

namespace gradus::test {

// The job script that docs/cluster.md shows, for a run called `name`, with the built binary as
// `gradus`.
inline std::string job_script(const std::string& name, const std::string& options) {
  const std::string page = read_file(std::string(GRADUS_SOURCE_DIR) + "/docs/cluster.md");
  const size_t begin = page.find("#!/bin/bash\n#SBATCH"), end = page.find("```", begin);
  if (end == std::string::npos) return "false  # docs/cluster.md shows no job script";
  std::string script = page.substr(begin, end - begin);
  const auto replace = [&](const std::string& from, const std::string& to) {
    for (size_t at = 0; (at = script.find(from, at)) != std::string::npos; at += to.size()) {
      script.replace(at, from.size(), to);
    }
  };
  replace("runs/run", "runs/" + name);
  replace("train run.yaml", "train run.yaml --set run.name=" + name + " " + options);
  const std::string folder = std::filesystem::absolute(GRADUS_BINARY).parent_path();
  script.insert(script.find("set -eu"), "export PATH=" + folder + ":$PATH\n");
  return script;
}

}  // namespace gradus::test
