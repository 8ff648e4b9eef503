// SPDX-License-Identifier: Apache-2.0
#include "data/gguf_tokenizer.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string_view>
#include <unordered_map>

#include "common/strings.h"
#include "data/internal/scanner.h"
#include "data/internal/unicode.h"

namespace gradus::data {
namespace {

using Json = nlohmann::ordered_json;
using internal::ScannerRules;

constexpr const char* kMetaspace = "\xE2\x96\x81";
enum TokenType {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6
};

Json byte_level(bool uses_regex) {
  return {{"type", "ByteLevel"},
          {"add_prefix_space", false},
          {"trim_offsets", true},
          {"use_regex", uses_regex}};
}

Json sequence(const char* list_key, Json parts) {
  return {{"type", "Sequence"}, {list_key, std::move(parts)}};
}

struct PreTokenizerFamily {
  Json pre_tokenizer;
  bool is_nfc = false;
  bool ignores_merges = false;
};

Json split_then_bytes(const ScannerRules& rules) {
  const Json split = {{"type", "Split"},
                      {"pattern", {{"Regex", internal::scanner_pattern(rules)}}},
                      {"behavior", "Isolated"},
                      {"invert", false}};
  return sequence("pretokenizers", Json::array({split, byte_level(false)}));
}

Result<PreTokenizerFamily> pre_tokenizer_family(const std::string& pre, const std::string& where) {
  static const std::vector<std::string> known = {"",          "default",         "gpt-2",  "smollm",
                                                 "llama-bpe", "llama-v3",        "llama3", "qwen2",
                                                 "qwen35",    "deepseek-r1-qwen"};
  using Form = ScannerRules::Form;
  if (pre.empty() || pre == "default" || pre == "gpt-2")
    return PreTokenizerFamily{byte_level(true)};
  if (pre == "smollm") {
    const Json digits = {{"type", "Digits"}, {"individual_digits", true}};
    return PreTokenizerFamily{sequence("pretokenizers", Json::array({digits, byte_level(true)}))};
  }
  if (pre == "llama-bpe" || pre == "llama-v3" || pre == "llama3") {
    return PreTokenizerFamily{split_then_bytes({Form::kLlama3, 3, false}), false, true};
  }
  if (pre == "qwen2" || pre == "deepseek-r1-qwen") {
    return PreTokenizerFamily{split_then_bytes({Form::kLlama3, 1, false}), true};
  }
  if (pre == "qwen35") return PreTokenizerFamily{split_then_bytes({Form::kLlama3, 1, true}), true};
  return invalid_argument("{}: unknown pre-tokenizer '{}' (tokenizer.ggml.pre); served here: {}{}",
                          where, pre,
                          join(std::vector<std::string>(known.begin() + 1, known.end()), ", "),
                          did_you_mean(pre, known));
}

// Merges of a vocabulary with scores: every way to join two tokens to a third, best score of the
// third first. Equal scores: longer parts first, then the order of the vocabulary.
std::vector<std::pair<std::string_view, std::string_view>> merges_from_scores(
    const GgufTokenizerMetadata& metadata) {
  struct Candidate {
    std::string_view left, right;
    float score;
    int32_t left_id, right_id;
    size_t left_length, right_length;  // code points
  };
  const auto is_normal = [&](size_t id) {
    return metadata.token_types.empty() || metadata.token_types[id] == kNormal ||
           metadata.token_types[id] == kUserDefined;
  };
  std::unordered_map<std::string_view, int32_t> ids;
  for (size_t id = 0; id < metadata.tokens.size(); ++id) {
    if (is_normal(id)) ids.emplace(metadata.tokens[id], static_cast<int32_t>(id));
  }
  std::vector<Candidate> candidates;
  for (size_t id = 0; id < metadata.tokens.size(); ++id) {
    if (!is_normal(id)) continue;
    const std::string_view token = metadata.tokens[id];
    const size_t first = candidates.size();
    size_t length = 0;
    for (size_t i = 0; i < token.size(); ++length)
      i += internal::decode_code_point(token.data() + i).length;
    size_t left_length = 0;
    for (size_t i = 0; i < token.size();) {
      i += internal::decode_code_point(token.data() + i).length;
      ++left_length;
      const auto left = ids.find(token.substr(0, i)), right = ids.find(token.substr(i));
      if (i == token.size() || left == ids.end() || right == ids.end()) continue;
      candidates.push_back({left->first, right->first, metadata.scores[id], left->second,
                            right->second, left_length, length - left_length});
    }
    std::sort(candidates.begin() + static_cast<ptrdiff_t>(first), candidates.end(),
              [](const Candidate& a, const Candidate& b) {
                return std::pair(a.left_id, a.right_id) < std::pair(b.left_id, b.right_id);
              });
  }
  std::stable_sort(candidates.begin(), candidates.end(),
                   [](const Candidate& a, const Candidate& b) {
                     return std::tuple(a.score, a.left_length, a.right_length) >
                            std::tuple(b.score, b.left_length, b.right_length);
                   });
  std::vector<std::pair<std::string_view, std::string_view>> merges;
  merges.reserve(candidates.size());
  for (const Candidate& candidate : candidates)
    merges.emplace_back(candidate.left, candidate.right);
  return merges;
}

// The post-processor with which PyPI tokenizers starts a text with the bos token. Gradus reads
// none: chat templates write the token themselves.
Json put_bos_first(const GgufTokenizerMetadata& metadata) {
  const std::string& bos = metadata.tokens[static_cast<size_t>(*metadata.bos_id)];
  const auto token = [&](int type_id) {
    return Json{{"SpecialToken", {{"id", bos}, {"type_id", type_id}}}};
  };
  const auto text = [&](const char* name, int type_id) {
    return Json{{"Sequence", {{"id", name}, {"type_id", type_id}}}};
  };
  return {{"type", "TemplateProcessing"},
          {"single", Json::array({token(0), text("A", 0)})},
          {"pair", Json::array({token(0), text("A", 0), token(1), text("B", 1)})},
          {"special_tokens",
           {{bos,
             {{"id", bos},
              {"ids", Json::array({*metadata.bos_id})},
              {"tokens", Json::array({bos})}}}}}};
}

Status check(const GgufTokenizerMetadata& metadata, const std::string& where) {
  const size_t size = metadata.tokens.size();
  if (size == 0) return invalid_argument("{}: no tokens (tokenizer.ggml.tokens)", where);
  if (!metadata.token_types.empty() && metadata.token_types.size() != size) {
    return invalid_argument("{}: {} token types for {} tokens", where, metadata.token_types.size(),
                            size);
  }
  if (!metadata.scores.empty() && metadata.scores.size() != size) {
    return invalid_argument("{}: {} token scores for {} tokens", where, metadata.scores.size(),
                            size);
  }
  for (const auto& [name, id] : {std::pair("bos", metadata.bos_id),
                                 {"eos", metadata.eos_id},
                                 {"padding", metadata.pad_id},
                                 {"unknown", metadata.unk_id}}) {
    if (id && (*id < 0 || static_cast<size_t>(*id) >= size)) {
      return invalid_argument("{}: {} token id {} is not in [0, {})", where, name, *id, size);
    }
  }
  for (size_t id = 0; id < size; ++id) {
    if (const auto offset = first_invalid_utf8(metadata.tokens[id])) {
      return invalid_argument("{}: token {} is not valid UTF-8 at byte {}", where, id, *offset);
    }
  }
  return {};
}

}  // namespace

Result<GgufTokenizerFiles> make_tokenizer_files(const GgufTokenizerMetadata& metadata,
                                                const std::string& where) {
  GRADUS_RETURN_IF_ERROR(check(metadata, where));
  const bool is_llama = metadata.model == "llama";
  if (!is_llama && metadata.model != "gpt2") {
    return invalid_argument(
        "{}: unsupported tokenizer model '{}' (tokenizer.ggml.model); served here: gpt2, llama",
        where, metadata.model);
  }
  const auto type_of = [&](size_t id) {
    return metadata.token_types.empty() ? static_cast<int32_t>(kNormal) : metadata.token_types[id];
  };

  Json added = Json::array();
  Json vocab = Json::object();
  // An ordered_json finds keys by going through all of them: entries are appended without looking.
  Json::object_t& vocab_entries = vocab.get_ref<Json::object_t&>();
  std::unordered_map<std::string_view, size_t> id_of;
  for (size_t id = 0; id < metadata.tokens.size(); ++id) {
    const std::string& token = metadata.tokens[id];
    const auto [earlier, is_new] = id_of.emplace(token, id);
    if (!is_new) {
      return invalid_argument("{}: token '{}' occurs twice, as {} and {}", where, token,
                              earlier->second, id);
    }
    vocab_entries.push_back({token, id});
    const int32_t type = type_of(id);
    const bool is_special = type == kControl || type == kUnknown;
    if (!is_special && type != kUserDefined) continue;
    added.push_back({{"id", id},
                     {"content", token},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", is_special}});
  }

  Json merges = Json::array();
  if (!metadata.merges.empty()) {
    for (const std::string& merge : metadata.merges) merges.push_back(merge);
  } else if (is_llama) {
    if (metadata.scores.empty()) {
      return invalid_argument(
          "{}: neither merges nor scores; expected tokenizer.ggml.merges or .scores", where);
    }
    for (const auto& [left, right] : merges_from_scores(metadata))
      merges.push_back(Json::array({left, right}));
  } else {
    return invalid_argument("{}: no merges (tokenizer.ggml.merges)", where);
  }

  const bool adds_bos = metadata.add_bos.value_or(is_llama) && metadata.bos_id.has_value();
  Json root;
  root["version"] = "1.0";
  root["truncation"] = nullptr;
  root["padding"] = nullptr;
  root["added_tokens"] = std::move(added);
  Json model = {{"type", "BPE"},
                {"dropout", nullptr},
                {"unk_token", nullptr},
                {"continuing_subword_prefix", nullptr},
                {"end_of_word_suffix", nullptr},
                {"fuse_unk", false},
                {"byte_fallback", false},
                {"ignore_merges", false}};
  if (is_llama) {
    const bool has_prefix = metadata.add_space_prefix.value_or(true);
    const Json write_spaces = {
        {"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", kMetaspace}};
    const Json read_spaces = {
        {"type", "Replace"}, {"pattern", {{"String", kMetaspace}}}, {"content", " "}};
    Json normalizers = Json::array(), decoders = Json::array({read_spaces});
    if (has_prefix) normalizers.push_back({{"type", "Prepend"}, {"prepend", kMetaspace}});
    normalizers.push_back(write_spaces);
    decoders.push_back({{"type", "ByteFallback"}});
    decoders.push_back({{"type", "Fuse"}});
    if (has_prefix)
      decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
    root["normalizer"] = sequence("normalizers", std::move(normalizers));
    root["pre_tokenizer"] = nullptr;
    root["post_processor"] = adds_bos ? put_bos_first(metadata) : Json(nullptr);
    root["decoder"] = sequence("decoders", std::move(decoders));
    if (metadata.unk_id)
      model["unk_token"] = metadata.tokens[static_cast<size_t>(*metadata.unk_id)];
    model["fuse_unk"] = true;
    model["byte_fallback"] = true;
  } else {
    auto family = pre_tokenizer_family(metadata.pre, where);
    GRADUS_RETURN_IF_ERROR(family.status());
    root["normalizer"] = family->is_nfc ? Json({{"type", "NFC"}}) : Json(nullptr);
    root["pre_tokenizer"] = std::move(family->pre_tokenizer);
    root["post_processor"] =
        adds_bos ? sequence("processors", Json::array({byte_level(true), put_bos_first(metadata)}))
                 : byte_level(true);
    root["decoder"] = byte_level(true);
    model["ignore_merges"] = family->ignores_merges;
  }
  model["vocab"] = std::move(vocab);
  model["merges"] = std::move(merges);
  root["model"] = std::move(model);

  Json config;
  const auto put_token = [&](const char* key, std::optional<int32_t> id) {
    if (id) config[key] = metadata.tokens[static_cast<size_t>(*id)];
  };
  config["add_bos_token"] = adds_bos;
  config["add_prefix_space"] = is_llama && metadata.add_space_prefix.value_or(true);
  put_token("bos_token", metadata.bos_id);
  put_token("eos_token", metadata.eos_id);
  put_token("pad_token", metadata.pad_id);
  put_token("unk_token", metadata.unk_id);
  config["clean_up_tokenization_spaces"] = false;
  if (metadata.chat_template) config["chat_template"] = *metadata.chat_template;
  config["tokenizer_class"] = "PreTrainedTokenizerFast";
  GgufTokenizerFiles files;
  try {
    files.tokenizer_json = root.dump(2) + "\n";
    files.tokenizer_config_json = config.dump(2) + "\n";
  } catch (const nlohmann::json::exception& error) {
    return invalid_argument("{}: tokenizer metadata is not valid UTF-8: {}", where, error.what());
  }
  return files;
}

}  // namespace gradus::data
