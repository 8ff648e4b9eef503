// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"
#include "data/internal/pattern.h"
#include "data/internal/scanner.h"

namespace gradus::data::internal {

// Takes pretokens in the order of the text.
class PieceSink {
 public:
  virtual ~PieceSink() = default;
  virtual void take(std::string_view piece) = 0;  // not empty; valid during the call only
};

// The "pre_tokenizer" of a tokenizer.json: Split, Digits, ByteLevel, Metaspace,
// BertPreTokenizer and sequences of them. Immutable, thread-safe.
class PreTokenizer {
 public:
  static Result<PreTokenizer> parse(const nlohmann::json& json, const std::string& where);

  // True when pretokens stand for themselves as bytes: the last component is ByteLevel, whose
  // writing of bytes as characters is left to the model.
  bool is_byte_level() const { return is_byte_level_; }

  // Cuts `text`, a stretch without added tokens. `is_at_start`: nothing stands before it.
  Status split(std::string_view text, bool is_at_start, PieceSink& sink) const;

 private:
  enum class Kind { kScan, kPattern, kText, kDigits, kPrefixSpace, kWriteBytes, kMetaspace, kBert };
  enum class Behavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };
  enum class Prepend { kAlways, kFirst, kNever };
  struct Step {
    Kind kind = Kind::kScan;
    ScannerRules rules;                      // kScan
    std::shared_ptr<const Pattern> pattern;  // kPattern
    std::string text;  // kText: what to look for; kMetaspace: the written space
    Behavior behavior = Behavior::kIsolated;
    bool is_inverted = false;
    bool takes_digits_alone = false;    // kDigits
    Prepend prepend = Prepend::kNever;  // kMetaspace
    bool splits = true;                 // kMetaspace
  };
  struct Run;
  struct Part {
    size_t begin, end;
    bool is_match;
  };
  Status add(const nlohmann::json& json, const std::string& where);
  bool run(size_t step, std::string_view text, bool is_at_start, Run& state) const;
  bool run_parts(size_t step, std::string_view text, bool is_at_start, std::vector<Part>& parts,
                 Run& state) const;

  std::vector<Step> steps_;
  bool is_byte_level_ = false;
};

}  // namespace gradus::data::internal
