// SPDX-License-Identifier: Apache-2.0
#include "data/internal/decoder.h"

#include <optional>

#include "common/strings.h"
#include "data/internal/component.h"
#include "data/internal/normalizer.h"
#include "data/internal/unicode.h"

namespace gradus::data::internal {
namespace {

using Step = Decoder::Step;
using Kind = Step::Kind;

// The byte that a token like "<0x0A>" stands for. A '+' passes as the first digit, as in Rust's
// number reader.
std::optional<char> fallback_byte(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return std::nullopt;
  const auto digit = [](char c) {
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                  : -1;
  };
  const int high = token[3] == '+' ? 0 : digit(token[3]), low = digit(token[4]);
  if (high < 0 || low < 0) return std::nullopt;
  return static_cast<char>(high * 16 + low);
}

// The bytes that the characters of `token` stand for, or `token` itself if one of them stands for
// none.
void append_token_bytes(std::string& out, std::string_view token) {
  const size_t size = out.size();
  for (size_t i = 0; i < token.size();) {
    const auto [c, length] = decode_code_point(token.data() + i);
    const int byte = byte_of_character(c);
    if (byte < 0) {
      out.resize(size);
      out.append(token);
      return;
    }
    out.push_back(static_cast<char>(byte));
    i += length;
  }
}

// `token` without up to `start` leading and `stop` trailing occurrences of `text`.
std::string_view stripped(std::string_view token, const Step& step) {
  for (size_t i = 0; i < step.strip_start && token.starts_with(step.text); ++i)
    token.remove_prefix(step.text.size());
  for (size_t i = 0; i < step.strip_stop && token.ends_with(step.text); ++i)
    token.remove_suffix(step.text.size());
  return token;
}

// What the WordPiece decoder of `tokenizers` does with each token, in this order.
std::string cleaned_up(std::string text) {
  constexpr std::pair<const char*, const char*> kChanges[] = {
      {" .", "."},   {" ?", "?"},     {" !", "!"},    {" ,", ","},
      {" ' ", "'"},  {" n't", "n't"}, {" 'm", "'m"},  {" do not", " don't"},
      {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};
  for (const auto& [from, to] : kChanges) {
    std::string changed;
    append_replaced(changed, text, from, to);
    text = std::move(changed);
  }
  return text;
}

bool is_single_code_point(std::string_view text) {
  return !text.empty() && decode_code_point(text.data()).length == text.size();
}

}  // namespace

Result<Decoder> Decoder::parse(const nlohmann::json& json, const std::string& where) {
  Decoder decoder;
  bool is_fused = false;
  const Status status = for_each_component(
      json, "decoders", where,
      [&](const nlohmann::json& part, const std::string& part_where) -> Status {
        ComponentReader component(part, part_where);
        Step step;
        step.is_on_fused = is_fused;
        if (component.type() == "ByteLevel") {
          step.kind = Kind::kByteLevel;
          is_fused = true;
        } else if (component.type() == "ByteFallback") {
          step.kind = Kind::kByteFallback;
        } else if (component.type() == "Fuse") {
          step.kind = Kind::kFuse;
          is_fused = true;
        } else if (component.type() == "Replace") {
          GRADUS_RETURN_IF_ERROR(
              read_replace(component, part_where, step.text, step.content, step.pattern));
          step.kind = step.pattern ? Kind::kReplacePattern : Kind::kReplaceText;
        } else if (component.type() == "Strip") {
          step.kind = Kind::kStrip;
          step.text = component.text("content");
          step.strip_start = static_cast<size_t>(component.count("start"));
          step.strip_stop = static_cast<size_t>(component.count("stop"));
          if (step.text.empty())
            component.fail(invalid_argument("{}: 'content' is empty", part_where));
        } else if (component.type() == "Metaspace") {
          step.kind = Kind::kMetaspace;
          step.text = component.text("replacement");
          const bool has_prefix = component.flag("add_prefix_space", true);
          step.drops_first =
              component.text("prepend_scheme", has_prefix ? "always" : "never") != "never";
          if (step.text.empty())
            component.fail(invalid_argument("{}: 'replacement' is empty", part_where));
        } else if (component.type() == "WordPiece") {
          step.kind = Kind::kWordPiece;
          step.text = component.text("prefix", "##");
          step.cleans_up = component.flag("cleanup", true);
        } else {
          return component.unsupported(
              "ByteLevel, ByteFallback, Replace, Fuse, Strip, Metaspace, WordPiece, Sequence");
        }
        GRADUS_RETURN_IF_ERROR(component.status());
        decoder.steps_.push_back(std::move(step));
        return {};
      });
  GRADUS_RETURN_IF_ERROR(status);
  if (json.is_null()) decoder.steps_.push_back({.kind = Kind::kJoin});
  return decoder;
}

struct DecoderRun::State {
  std::string held;       // bytes or text that later tokens may change
  size_t num_tokens = 0;  // seen so far
  size_t num_stripped = 0;
  LossyUtf8 utf8;
};

DecoderRun::DecoderRun(const Decoder& decoder)
    : decoder_(&decoder), states_(decoder.steps().size()) {}
DecoderRun::~DecoderRun() = default;
DecoderRun::DecoderRun(DecoderRun&&) noexcept = default;

void DecoderRun::push(std::string_view token, std::string& out) { push_step(0, token, out); }

void DecoderRun::finish(std::string& out) {
  for (size_t step = 0; step < states_.size(); ++step) finish_step(step, out);
  for (State& state : states_) state = State();
}

void DecoderRun::push_step(size_t index, std::string_view token, std::string& out) {
  if (index == states_.size()) {
    out.append(token);
    return;
  }
  const Step& step = decoder_->steps()[index];
  State& state = states_[index];
  const size_t next = index + 1;
  switch (step.kind) {
    case Kind::kJoin: {
      if (state.num_tokens++ > 0) push_step(next, " ", out);
      return push_step(next, token, out);
    }
    case Kind::kFuse:
      return push_step(next, token, out);
    case Kind::kByteLevel: {
      if (step.is_on_fused) {
        state.held.append(token);
        return;
      }
      std::string bytes, text;
      append_token_bytes(bytes, token);
      state.utf8.append(text, bytes);
      return push_step(next, text, out);
    }
    case Kind::kByteFallback: {
      if (step.is_on_fused) {
        state.held.append(token);
        return;
      }
      if (const auto byte = fallback_byte(token)) {
        state.held.push_back(*byte);
        return;
      }
      release_bytes(index, out);
      return push_step(next, token, out);
    }
    case Kind::kReplaceText:
    case Kind::kReplacePattern: {
      // In a fused text a match may span what comes piece by piece, but for that of one code point.
      if (step.is_on_fused &&
          !(step.kind == Kind::kReplaceText && is_single_code_point(step.text))) {
        state.held.append(token);
        return;
      }
      std::string text;
      if (step.kind == Kind::kReplaceText) {
        append_replaced(text, token, step.text, step.content);
      } else if (!append_replaced(text, token, *step.pattern, step.content).ok()) {
        text = token;  // tokens are short: their matches end long before the limit
      }
      return push_step(next, text, out);
    }
    case Kind::kStrip: {
      if (!step.is_on_fused) return push_step(next, stripped(token, step), out);
      state.held.append(token);
      if (step.strip_stop > 0) return;
      // Only the start is stripped: as soon as it is known, the rest flows.
      std::string_view held = state.held;
      while (state.num_stripped < step.strip_start && held.starts_with(step.text)) {
        held.remove_prefix(step.text.size());
        ++state.num_stripped;
      }
      if (state.num_stripped < step.strip_start && step.text.starts_with(held)) {
        state.held = held;
        return;
      }
      state.num_stripped = step.strip_start;
      push_step(next, held, out);
      state.held.clear();
      return;
    }
    case Kind::kWordPiece: {
      std::string text;
      if (state.num_tokens++ == 0) {
        text = token;
      } else if (token.starts_with(step.text)) {
        text = token.substr(step.text.size());
      } else {
        text = " " + std::string(token);
      }
      return push_step(next, step.cleans_up ? cleaned_up(std::move(text)) : text, out);
    }
    case Kind::kMetaspace: {
      const bool drops = step.drops_first && (state.num_tokens == 0 || step.is_on_fused);
      ++state.num_tokens;
      std::string text;
      append_replaced(text, token, step.text, drops ? "" : " ");
      return push_step(next, text, out);
    }
  }
}

void DecoderRun::release_bytes(size_t index, std::string& out) {
  State& state = states_[index];
  if (state.held.empty()) return;
  std::string bytes;
  bytes.swap(state.held);
  if (!first_invalid_utf8(bytes)) return push_step(index + 1, bytes, out);
  for (size_t i = 0; i < bytes.size(); ++i) push_step(index + 1, "\xEF\xBF\xBD", out);
}

void DecoderRun::finish_step(size_t index, std::string& out) {
  const Step& step = decoder_->steps()[index];
  State& state = states_[index];
  std::string text;
  switch (step.kind) {
    case Kind::kByteLevel: {
      std::string bytes;
      append_token_bytes(bytes, state.held);
      state.utf8.append(text, bytes);
      state.utf8.finish(text);
      break;
    }
    case Kind::kByteFallback: {
      if (!step.is_on_fused) return release_bytes(index, out);
      const auto byte = fallback_byte(state.held);
      text = !byte                                      ? state.held
             : static_cast<unsigned char>(*byte) < 0x80 ? std::string(1, *byte)
                                                        : "\xEF\xBF\xBD";
      break;
    }
    case Kind::kReplaceText:
      append_replaced(text, state.held, step.text, step.content);
      break;
    case Kind::kReplacePattern:
      if (!append_replaced(text, state.held, *step.pattern, step.content).ok()) text = state.held;
      break;
    case Kind::kStrip:
      text = state.num_stripped == 0 ? stripped(state.held, step) : std::string_view(state.held);
      break;
    case Kind::kJoin:
    case Kind::kFuse:
    case Kind::kMetaspace:
    case Kind::kWordPiece:
      break;
  }
  if (!text.empty()) push_step(index + 1, text, out);
}

}  // namespace gradus::data::internal
