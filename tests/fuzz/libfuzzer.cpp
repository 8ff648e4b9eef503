// SPDX-License-Identifier: Apache-2.0
// The entry point of libFuzzer; GRADUS_FUZZ_TARGET is the name of the target that it runs.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "tests/fuzz/targets.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  for (const gradus::fuzz::Target& target : gradus::fuzz::targets()) {
    if (std::string_view(target.name) == GRADUS_FUZZ_TARGET) {
      target.run({reinterpret_cast<const char*>(data), size});
    }
  }
  return 0;
}
