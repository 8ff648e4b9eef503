// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "data/tokenizer.h"
#include "model/checkpoint.h"
#include "model/sequence_scorer.h"
#include "model/transformer.h"
#include "tests/support/files.h"
#include "tests/support/model_rows.h"

namespace gradus::testing {

// The directory of a reward model, made of a tiny language model when first asked for: 4 MB less
// than a fixture.
inline const std::string& tiny_reward_model() {
  static const test::TemporaryFolder folder;
  static const std::string dir = [] {
    std::string path = folder.path() + "/reward_model";
    const std::string source = tiny_model_dir("qwen2");
    const auto scorer = model::Transformer::with_score_head(*tiny_model("qwen2"), 5);
    const Status written = model::write_checkpoint(
        path, scorer->config(),
        [&](const model::WeightSpec& spec, float* out) {
          return model::read_parameter(scorer->layout(), scorer->parameters(), spec, out);
        },
        {.tokenizer_dir = source});
    GRADUS_CHECK(written.ok(), written.message());
    return path;
  }();
  return dir;
}

}  // namespace gradus::testing
