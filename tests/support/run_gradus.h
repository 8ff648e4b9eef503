// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <string>

namespace gradus::test {

struct Outcome {
  int exit_code = -1;  // -1: ended by a signal
  std::string output;
};

// Runs the built binary; `arguments` go through the shell, so standard error is in the output only
// with "2>&1", and input comes by "<<<" or "< FILE".
inline Outcome run_gradus(const std::string& arguments) {
  std::FILE* pipe = popen((std::string(GRADUS_BINARY) + " " + arguments).c_str(), "r");
  Outcome outcome;
  std::array<char, 4096> buffer;
  while (const size_t size = std::fread(buffer.data(), 1, buffer.size(), pipe)) {
    outcome.output.append(buffer.data(), size);
  }
  const int status = pclose(pipe);
  if (WIFEXITED(status)) outcome.exit_code = WEXITSTATUS(status);
  return outcome;
}

}  // namespace gradus::test
