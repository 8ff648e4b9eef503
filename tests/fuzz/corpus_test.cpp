// SPDX-License-Identifier: Apache-2.0
// Every parser of foreign bytes on its corpus and on a fixed set of mutations of it: what libFuzzer
// looks for, in every build, also under the sanitizers.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "common/log.h"
#include "common/rng.h"
#include "tests/fuzz/targets.h"
#include "tests/support/files.h"

namespace gradus {
namespace {

namespace fs = std::filesystem;

constexpr int kMutationsPerFile = 60;
constexpr size_t kMaxBytes = 1 << 16;  // larger ones are golden files, cut down

// One to four random edits: flip, overwrite, insert, erase, repeat, cut.
std::string mutate(std::string bytes, uint64_t seed) {
  RngSequence random(seed, RngStream::kTask);
  const auto place = [&] { return static_cast<size_t>(random.below(bytes.size() + 1)); };
  for (uint64_t edits = 1 + random.below(4); edits > 0; --edits) {
    const size_t at = place();
    const size_t length = std::min<size_t>(bytes.size() - at, random.below(17));
    const char byte = static_cast<char>(random.below(256));
    switch (random.below(6)) {
      case 0:
        if (at < bytes.size()) bytes[at] = static_cast<char>(bytes[at] ^ (1 << random.below(8)));
        break;
      case 1:
        if (at < bytes.size()) bytes[at] = byte;
        break;
      case 2:
        bytes.insert(at, 1 + random.below(8), byte);
        break;
      case 3:
        bytes.erase(at, length);
        break;
      case 4:
        bytes.insert(place(), std::string(bytes, at, length));
        break;
      default:
        if (random.below(4) == 0) bytes.resize(at);
        break;
    }
  }
  return bytes;
}

class FuzzCorpus : public ::testing::TestWithParam<fuzz::Target> {};

TEST_P(FuzzCorpus, ComesBackFromEveryInputAndItsMutations) {
  const fuzz::Target& target = GetParam();
  std::vector<std::string> folders = {std::string("tests/fuzz/corpus/") + target.name};
  if (target.name == std::string("chat_template")) folders.push_back("tests/golden/chat_templates");
  if (target.name == std::string("gguf")) folders.push_back("tests/golden/gguf");
  int num_files = 0;
  for (const std::string& folder : folders) {
    for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
      const std::string bytes = test::read_file(entry.path()).substr(0, kMaxBytes);
      SCOPED_TRACE(entry.path());
      ++num_files;
      target.run(bytes);
      const uint64_t name = hash64(entry.path().filename().string());
      for (int i = 0; i < kMutationsPerFile; ++i) {
        // Told apart by a debugger when it crashes: the seed is in the mutation's arguments.
        target.run(mutate(bytes, hash64({name, static_cast<uint64_t>(i)})));
      }
    }
  }
  EXPECT_GE(num_files, 3) << "the corpus of " << target.name;
}

INSTANTIATE_TEST_SUITE_P(Parsers, FuzzCorpus,
                         ::testing::ValuesIn(fuzz::targets().begin(), fuzz::targets().end()),
                         [](const auto& target) {
                           std::string name = target.param.name;
                           std::erase(name, '_');
                           return name;
                         });

}  // namespace
}  // namespace gradus
