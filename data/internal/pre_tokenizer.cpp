// SPDX-License-Identifier: Apache-2.0
#include "data/internal/pre_tokenizer.h"

#include <algorithm>

#include "data/internal/bert.h"
#include "data/internal/component.h"
#include "data/internal/normalizer.h"
#include "data/internal/unicode.h"

namespace gradus::data::internal {

struct PreTokenizer::Run {
  PieceSink& sink;
  Status error;
};

Result<PreTokenizer> PreTokenizer::parse(const nlohmann::json& json, const std::string& where) {
  PreTokenizer result;
  const Status status = for_each_component(
      json, "pretokenizers", where, [&](const nlohmann::json& part, const std::string& part_where) {
        return result.add(part, part_where);
      });
  GRADUS_RETURN_IF_ERROR(status);
  // Writing bytes as characters comes last in all known families: then the model does it on the
  // fly.
  if (!result.steps_.empty() && result.steps_.back().kind == Kind::kWriteBytes) {
    result.steps_.pop_back();
    result.is_byte_level_ = true;
  }
  return result;
}

Status PreTokenizer::add(const nlohmann::json& json, const std::string& where) {
  ComponentReader component(json, where);
  Step step;
  if (component.type() == "Split") {
    const auto pattern = component.pattern();
    const std::string behavior = component.text("behavior");
    step.is_inverted = component.flag("invert", false);
    if (behavior == "Removed") {
      step.behavior = Behavior::kRemoved;
    } else if (behavior == "Isolated") {
      step.behavior = Behavior::kIsolated;
    } else if (behavior == "MergedWithPrevious") {
      step.behavior = Behavior::kMergedWithPrevious;
    } else if (behavior == "MergedWithNext") {
      step.behavior = Behavior::kMergedWithNext;
    } else if (behavior == "Contiguous") {
      step.behavior = Behavior::kContiguous;
    } else {
      component.fail(invalid_argument(
          "{}: unsupported behavior '{}'; expected Removed, Isolated, MergedWithPrevious, "
          "MergedWithNext or Contiguous",
          where, behavior));
    }
    GRADUS_RETURN_IF_ERROR(component.status());
    if (pattern.text.empty())
      return invalid_argument("{}: the pattern to split at is empty", where);
    // A known expression matches all of any text, so to keep the matches alone is to keep
    // everything.
    const bool keeps_all = step.behavior == Behavior::kIsolated ||
                           (step.behavior == Behavior::kRemoved && step.is_inverted);
    const auto rules = pattern.is_regex && keeps_all ? scanner_rules(pattern.text) : std::nullopt;
    if (rules) {
      step.kind = Kind::kScan;
      step.rules = *rules;
    } else if (pattern.is_regex) {
      step.kind = Kind::kPattern;
      auto compiled = Pattern::compile(pattern.text);
      GRADUS_RETURN_IF_ERROR(compiled.status().with_prefix(where));
      step.pattern = std::move(*compiled);
    } else {
      step.kind = Kind::kText;
      step.text = pattern.text;
    }
    steps_.push_back(std::move(step));
  } else if (component.type() == "Digits") {
    step.kind = Kind::kDigits;
    step.takes_digits_alone = component.flag("individual_digits");
    steps_.push_back(std::move(step));
  } else if (component.type() == "ByteLevel") {
    if (component.flag("add_prefix_space")) steps_.push_back({.kind = Kind::kPrefixSpace});
    if (component.flag("use_regex", true)) steps_.push_back({.kind = Kind::kScan});
    steps_.push_back({.kind = Kind::kWriteBytes});
  } else if (component.type() == "Metaspace") {
    step.kind = Kind::kMetaspace;
    step.text = component.text("replacement");
    step.splits = component.flag("split", true);
    const bool has_prefix = component.flag("add_prefix_space", true);
    const std::string scheme = component.text("prepend_scheme", has_prefix ? "always" : "never");
    if (scheme == "always") {
      step.prepend = Prepend::kAlways;
    } else if (scheme == "first") {
      step.prepend = Prepend::kFirst;
    } else if (scheme == "never") {
      step.prepend = Prepend::kNever;
    } else {
      component.fail(invalid_argument(
          "{}: unsupported prepend_scheme '{}'; expected always, first or never", where, scheme));
    }
    if (step.text.empty()) {
      component.fail(invalid_argument("{}: 'replacement' is empty", where));
    }
    // Which of the pieces of another component is the first depends on where a normaliser's
    // insertions are counted: no model asks for it.
    if (step.prepend == Prepend::kFirst && !steps_.empty()) {
      component.fail(invalid_argument(
          "{}: unsupported prepend_scheme 'first' behind another pre-tokenizer", where));
    }
    steps_.push_back(std::move(step));
  } else if (component.type() == "BertPreTokenizer") {
    step.kind = Kind::kBert;
    steps_.push_back(std::move(step));
  } else {
    return component.unsupported("Split, Digits, ByteLevel, Metaspace, BertPreTokenizer, Sequence");
  }
  return component.status();
}

Status PreTokenizer::split(std::string_view text, bool is_at_start, PieceSink& sink) const {
  Run state{sink, {}};
  if (!text.empty()) run(0, text, is_at_start, state);
  return state.error;
}

bool PreTokenizer::run(size_t index, std::string_view text, bool is_at_start, Run& state) const {
  if (index == steps_.size()) {
    state.sink.take(text);
    return true;
  }
  const Step& step = steps_[index];
  const size_t next = index + 1;
  switch (step.kind) {
    case Kind::kScan: {
      for (size_t begin = 0; begin < text.size();) {
        const size_t end = scan_piece(step.rules, text, begin);
        if (!run(next, text.substr(begin, end - begin), is_at_start && begin == 0, state))
          return false;
        begin = end;
      }
      return true;
    }
    case Kind::kDigits: {
      const PropertyTable& properties = PropertyTable::instance();
      const auto code_point_at = [text](size_t i) { return decode_code_point(text.data() + i); };
      for (size_t begin = 0; begin < text.size();) {
        CodePoint c = code_point_at(begin);
        const bool is_digit = (properties[c.value] & kNumeric) != 0;
        size_t end = begin + c.length;
        while (end < text.size() && !(is_digit && step.takes_digits_alone)) {
          c = code_point_at(end);
          if (((properties[c.value] & kNumeric) != 0) != is_digit) break;
          end += c.length;
        }
        if (!run(next, text.substr(begin, end - begin), is_at_start && begin == 0, state))
          return false;
        begin = end;
      }
      return true;
    }
    case Kind::kPrefixSpace: {
      if (text.front() == ' ') return run(next, text, is_at_start, state);
      return run(next, std::string(" ").append(text), is_at_start, state);
    }
    case Kind::kWriteBytes: {
      std::string characters;
      append_byte_level(characters, text);
      return run(next, characters, is_at_start, state);
    }
    case Kind::kMetaspace: {
      std::string written;
      append_replaced(written, text, " ", step.text);
      const bool prepends =
          step.prepend == Prepend::kAlways || (step.prepend == Prepend::kFirst && is_at_start);
      if (prepends && !written.starts_with(step.text)) written.insert(0, step.text);
      if (!step.splits) return run(next, written, is_at_start, state);
      for (size_t begin = 0; begin < written.size();) {
        const size_t end = std::min(written.find(step.text, begin + 1), written.size());
        const auto piece = std::string_view(written).substr(begin, end - begin);
        if (!run(next, piece, is_at_start && begin == 0, state)) return false;
        begin = end;
      }
      return true;
    }
    case Kind::kBert: {
      size_t begin = 0;  // of the word that is open
      const auto close = [&](size_t end) {
        return begin == end ||
               run(next, text.substr(begin, end - begin), is_at_start && begin == 0, state);
      };
      for (size_t i = 0; i < text.size();) {
        const auto [c, length] = decode_code_point(text.data() + i);
        const bool is_alone = is_bert_punctuation(c);
        if (is_alone || is_bert_space(c)) {
          if (!close(i)) return false;
          begin = i;
          if (is_alone && !close(i + length)) return false;
          begin = i + length;
        }
        i += length;
      }
      return close(text.size());
    }
    case Kind::kText:
    case Kind::kPattern:
      break;
  }
  std::vector<Part> parts;
  size_t covered = 0;
  const auto add_match = [&](size_t begin, size_t end) {
    if (covered != begin) parts.push_back({covered, begin, step.is_inverted});
    parts.push_back({begin, end, !step.is_inverted});
    covered = end;
  };
  if (step.kind == Kind::kText) {
    for (size_t i = 0; (i = text.find(step.text, i)) != std::string_view::npos;
         i += step.text.size()) {
      add_match(i, i + step.text.size());
    }
  } else {
    Pattern::Matcher matcher(*step.pattern, text);
    while (true) {
      const auto match = matcher.next();
      if (!match.ok()) {
        state.error = match.status();
        return false;
      }
      if (!*match) break;
      const Span span = **match;
      add_match(span.begin, span.end);
    }
  }
  if (covered != text.size()) parts.push_back({covered, text.size(), step.is_inverted});
  return run_parts(index, text, is_at_start, parts, state);
}

bool PreTokenizer::run_parts(size_t index, std::string_view text, bool is_at_start,
                             std::vector<Part>& parts, Run& state) const {
  const Behavior behavior = steps_[index].behavior;
  // Join parts in place, then hand on those that are left. A match joins its neighbour only when
  // the part before it (in the direction of joining) was none.
  if (behavior == Behavior::kMergedWithPrevious || behavior == Behavior::kMergedWithNext) {
    const bool is_backward = behavior == Behavior::kMergedWithNext;
    if (is_backward) std::reverse(parts.begin(), parts.end());
    size_t kept = 0;
    bool previous_is_match = false;
    for (const Part part : parts) {
      if (part.is_match && !previous_is_match && kept > 0) {
        (is_backward ? parts[kept - 1].begin : parts[kept - 1].end) =
            is_backward ? part.begin : part.end;
      } else {
        parts[kept++] = part;
      }
      previous_is_match = part.is_match;
    }
    parts.resize(kept);
    if (is_backward) std::reverse(parts.begin(), parts.end());
  } else if (behavior == Behavior::kContiguous) {
    size_t kept = 0;
    for (const Part part : parts) {
      if (kept > 0 && parts[kept - 1].is_match == part.is_match) {
        parts[kept - 1].end = part.end;
      } else {
        parts[kept++] = part;
      }
    }
    parts.resize(kept);
  }
  for (const Part& part : parts) {
    if (part.begin == part.end || (behavior == Behavior::kRemoved && part.is_match)) continue;
    if (!run(index + 1, text.substr(part.begin, part.end - part.begin),
             is_at_start && part.begin == 0, state)) {
      return false;
    }
  }
  return true;
}

}  // namespace gradus::data::internal
