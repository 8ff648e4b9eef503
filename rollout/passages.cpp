// SPDX-License-Identifier: Apache-2.0
#include "rollout/passages.h"

#include <fmt/format.h>

#include "common/strings.h"

namespace gradus::rollout {

std::string passage_line(int64_t number, std::string_view title, std::string_view text) {
  return fmt::format("{}Doc {}(Title: {}) {}", number == 1 ? "" : "\n", number, title, trim(text));
}

Result<std::string> passages_text(const retriever::Corpus& corpus, std::span<const int64_t> ids) {
  std::string text;
  for (size_t i = 0; i < ids.size(); ++i) {
    const Result<retriever::Passage> passage = corpus.passage(ids[i]);
    if (!passage.ok()) return passage.status();
    text += passage_line(static_cast<int64_t>(i) + 1, passage->title, passage->text);
  }
  return text;
}

}  // namespace gradus::rollout
