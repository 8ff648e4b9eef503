// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"
#include "data/internal/pattern.h"

namespace gradus::data::internal {

// The "decoder" of a tokenizer.json: ByteLevel, ByteFallback, Replace, Fuse, Strip, Metaspace and
// sequences of them; null joins the tokens with spaces. Immutable, thread-safe.
class Decoder {
 public:
  static Result<Decoder> parse(const nlohmann::json& json, const std::string& where);

  struct Step {
    enum class Kind {
      kByteLevel,
      kByteFallback,
      kReplaceText,
      kReplacePattern,
      kFuse,
      kStrip,
      kMetaspace,
      kWordPiece,
      kJoin
    };
    Kind kind = Kind::kJoin;
    std::string text;     // what to replace, strip, the written space, or the prefix of a piece
    std::string content;  // kReplace...: what to put in its place
    std::shared_ptr<const Pattern> pattern;
    size_t strip_start = 0, strip_stop = 0;
    bool drops_first = false;  // kMetaspace: written spaces of the first token vanish
    bool cleans_up = false;    // kWordPiece: no space before punctuation and contractions
    bool is_on_fused = false;  // all tokens have become one text before this step
  };
  const std::vector<Step>& steps() const { return steps_; }

 private:
  std::vector<Step> steps_;
};

// Runs tokens through the steps of a decoder one by one. Not thread-safe.
class DecoderRun {
 public:
  explicit DecoderRun(const Decoder& decoder);
  ~DecoderRun();
  DecoderRun(DecoderRun&&) noexcept;

  // Appends to `out` the text that `token` completes. What leaves here is valid UTF-8.
  void push(std::string_view token, std::string& out);
  // Appends the rest; the run is as new afterwards.
  void finish(std::string& out);

 private:
  struct State;
  void push_step(size_t step, std::string_view token, std::string& out);
  void finish_step(size_t step, std::string& out);
  void release_bytes(size_t step, std::string& out);
  const Decoder* decoder_;
  std::vector<State> states_;
};

}  // namespace gradus::data::internal
