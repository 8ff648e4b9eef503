// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <string_view>

// The parsers of foreign bytes, each as a function that must come back, whatever it is given:
// no crash, no leak, no hang. corpus_test.cpp runs them on the corpus and on its mutations in every
// build; with -DGRADUS_FUZZ=ON each is a libFuzzer program (docs/exactness.md).
namespace gradus::fuzz {

struct Target {
  const char* name;  // also of its folder in tests/fuzz/corpus
  void (*run)(std::string_view bytes);
};

std::span<const Target> targets();

}  // namespace gradus::fuzz
