// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <stdexcept>
#include <string>

namespace gradus {

// A broken invariant of Gradus itself: expression, message and place. `main` reports it and exits
// with 70.
class InternalError : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

[[noreturn]] void throw_internal_error(const char* expression, const char* file, int line,
                                       const std::string& message);

}  // namespace gradus

// Throws InternalError unless `condition` holds; on in release builds. The message is built only on
// failure.
#define GRADUS_CHECK(condition, message)                                         \
  do {                                                                           \
    if (!(condition)) {                                                          \
      ::gradus::throw_internal_error(#condition, __FILE__, __LINE__, (message)); \
    }                                                                            \
  } while (false)
