// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/status.h"

namespace gradus::data::internal {

// A tokenizer.json with the two large lists of its model taken out: a document tree of a quarter of
// a million merges would cost more time than all the rest of loading.
struct TokenizerJson {
  nlohmann::json root;  // without model.vocab and model.merges
  std::vector<std::pair<std::string, int32_t>> vocab;
  std::vector<std::pair<std::string, std::string>> merges;  // from "a b" or ["a", "b"]
  bool has_vocab = false;
};

// InvalidArgument, starting with `where`, for malformed JSON and for entries of the wrong kind.
Result<TokenizerJson> read_tokenizer_json(std::string_view text, const std::string& where);

}  // namespace gradus::data::internal
