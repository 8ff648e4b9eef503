// SPDX-License-Identifier: Apache-2.0
#include "retriever/embedder.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>

#include "common/atomic_file.h"
#include "common/check.h"
#include "common/rng.h"

namespace gradus::retriever {
namespace {

using nlohmann::json;

// Tokens of one pass: enough to keep the products busy, few enough for the caches.
constexpr int64_t kPassTokens = 1024;

constexpr std::array<const char*, 5> kSpecial = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"};

// An object of a small file that may be absent: then it has no keys.
Result<json> optional_object(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return json::object();
  json object = json::parse(file, nullptr, false);
  if (!object.is_object()) return data_loss("{}: not a JSON object", path);
  return object;
}

Result<int32_t> special_id(const data::Tokenizer& tokenizer, const std::string& dir,
                           const char* token) {
  const std::optional<int32_t> id = tokenizer.token_to_id(token);
  if (id) return *id;
  return invalid_argument("{}/tokenizer.json: no token {}, which a text of this encoder needs", dir,
                          token);
}

// tokenizer.json of BERT's uncased WordPiece with this vocabulary.
std::string wordpiece_json(const std::vector<std::string>& vocabulary) {
  nlohmann::ordered_json pieces = nlohmann::ordered_json::object();
  for (size_t i = 0; i < vocabulary.size(); ++i) pieces[vocabulary[i]] = i;
  nlohmann::ordered_json added = nlohmann::ordered_json::array();
  for (size_t i = 0; i < kSpecial.size(); ++i) {
    added.push_back({{"id", i},
                     {"content", kSpecial[i]},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  }
  const nlohmann::ordered_json tokenizer = {
      {"version", "1.0"},
      {"truncation", nullptr},
      {"padding", nullptr},
      {"added_tokens", added},
      {"normalizer",
       {{"type", "BertNormalizer"},
        {"clean_text", true},
        {"handle_chinese_chars", true},
        {"strip_accents", nullptr},
        {"lowercase", true}}},
      {"pre_tokenizer", {{"type", "BertPreTokenizer"}}},
      {"post_processor", nullptr},
      {"decoder", {{"type", "WordPiece"}, {"prefix", "##"}, {"cleanup", true}}},
      {"model",
       {{"type", "WordPiece"},
        {"unk_token", kSpecial[1]},
        {"continuing_subword_prefix", "##"},
        {"max_input_chars_per_word", 100},
        {"vocab", pieces}}}};
  return tokenizer.dump();
}

// [PAD] .. [MASK] and the characters, each also in the middle of a word.
std::vector<std::string> characters() {
  std::vector<std::string> pieces(kSpecial.begin(), kSpecial.end());
  for (char c = '!'; c <= '~'; ++c) {
    if (c >= 'A' && c <= 'Z') continue;
    pieces.push_back(std::string(1, c));
    if (std::isalnum(static_cast<unsigned char>(c))) pieces.push_back(std::string("##") + c);
  }
  return pieces;
}

}  // namespace

Status Embedder::write_new(const std::string& dir, std::span<const std::string> texts,
                           const NewEncoder& options) {
  std::vector<std::string> vocabulary = characters();
  const auto spelling = data::Tokenizer::from_json(wordpiece_json(vocabulary), "characters");
  if (!spelling.ok()) return spelling.status();
  std::map<std::string, double> num_texts;  // of each word
  const std::set<std::string> different(texts.begin(), texts.end());
  for (const std::string& text : different) {
    const Result<std::vector<int32_t>> ids = (*spelling)->encode(text);
    if (!ids.ok()) return ids.status();
    std::set<std::string> words;
    std::string word;
    for (const int32_t id : *ids) {
      const std::string& piece = vocabulary[static_cast<size_t>(id)];
      if (piece.starts_with("##")) {
        word += piece.substr(2);
        continue;
      }
      words.insert(word);
      word = id < static_cast<int32_t>(kSpecial.size()) ? "" : piece;
    }
    words.insert(word);
    for (const std::string& one : words) ++num_texts[one];
  }
  // Names that are all rare count alike, whichever is the rarest; tokens without a meaning of their
  // own count as in every text.
  const double num_different = static_cast<double>(std::max<size_t>(different.size(), 1));
  const auto frequency = [&](const std::string& word) {
    const auto found = num_texts.find(word);
    return std::max({1.0, num_different / 64, found == num_texts.end() ? 0 : found->second});
  };
  std::vector<double> frequencies(kSpecial.size(), num_different);
  for (size_t i = kSpecial.size(); i < vocabulary.size(); ++i) {
    frequencies.push_back(frequency(vocabulary[i]));
  }
  for (const auto& [word, count] : num_texts) {
    if (word.size() <= 1) continue;  // a character, which is there
    vocabulary.push_back(word);
    frequencies.push_back(frequency(word));
  }
  const model::BertConfig config = {.vocab_size = static_cast<int64_t>(vocabulary.size()),
                                    .width = options.width,
                                    .inner_width = options.inner_width,
                                    .num_layers = options.num_layers,
                                    .num_heads = options.num_heads,
                                    .max_positions = options.max_tokens,
                                    .layer_norm_eps = 1};
  GRADUS_RETURN_IF_ERROR(model::BertEncoder::make(config, frequencies, options.seed)->save(dir));
  GRADUS_RETURN_IF_ERROR(
      write_file_atomically(dir + "/tokenizer.json", wordpiece_json(vocabulary)));
  return load(dir).status();  // what does not load is not left behind without a word
}

Status Embedder::save(const std::string& dir) const {
  GRADUS_RETURN_IF_ERROR(encoder_->save(dir));
  for (const char* name :
       {"tokenizer.json", "sentence_bert_config.json", "1_Pooling/config.json"}) {
    const std::filesystem::path from = std::filesystem::path(dir_) / name;
    const std::filesystem::path to = std::filesystem::path(dir) / name;
    std::error_code error;
    if (!std::filesystem::exists(from, error)) continue;
    std::filesystem::create_directories(to.parent_path(), error);
    if (!error) {
      std::filesystem::copy_file(from, to, std::filesystem::copy_options::overwrite_existing,
                                 error);
    }
    if (error) {
      return unavailable("{}: cannot copy it to {}: {}", from.string(), to.string(),
                         error.message());
    }
  }
  return {};
}

Result<std::unique_ptr<Embedder>> Embedder::load(const std::string& dir) {
  std::unique_ptr<Embedder> embedder(new Embedder);
  embedder->dir_ = dir;
  auto encoder = model::BertEncoder::load(dir);
  if (!encoder.ok()) return encoder.status();
  auto tokenizer = data::Tokenizer::load(dir);
  if (!tokenizer.ok()) return tokenizer.status();
  embedder->encoder_ = std::move(*encoder);
  embedder->tokenizer_ = std::move(*tokenizer);
  const model::BertConfig& config = embedder->encoder_->config();
  if (embedder->tokenizer_->max_id() >= config.vocab_size) {
    return invalid_argument("{}: the tokenizer has ids up to {}, the encoder only {} rows", dir,
                            embedder->tokenizer_->max_id(), config.vocab_size);
  }
  const Result<int32_t> first = special_id(*embedder->tokenizer_, dir, "[CLS]");
  if (!first.ok()) return first.status();
  const Result<int32_t> last = special_id(*embedder->tokenizer_, dir, "[SEP]");
  if (!last.ok()) return last.status();
  embedder->first_id_ = *first;
  embedder->last_id_ = *last;

  const std::string lengths_path = dir + "/sentence_bert_config.json";
  const Result<json> lengths = optional_object(lengths_path);
  if (!lengths.ok()) return lengths.status();
  embedder->max_tokens_ = config.max_positions;
  if (const auto found = lengths->find("max_seq_length");
      found != lengths->end() && !found->is_null()) {
    if (!found->is_number_integer() || found->get<int64_t>() < 3 ||
        found->get<int64_t>() > config.max_positions) {
      return invalid_argument("{}: max_seq_length is {}; expected an integer in [3, {}]",
                              lengths_path, found->dump(), config.max_positions);
    }
    embedder->max_tokens_ = found->get<int64_t>();
  }
  const std::string pooling_path = dir + "/1_Pooling/config.json";
  const Result<json> pooling = optional_object(pooling_path);
  if (!pooling.ok()) return pooling.status();
  embedder->takes_first_ = pooling->value("pooling_mode_cls_token", false);
  if (!embedder->takes_first_ && !pooling->value("pooling_mode_mean_tokens", true)) {
    return invalid_argument("{}: pools neither by mean nor by the first token; served here: both",
                            pooling_path);
  }
  embedder->hash_ =
      hash64({embedder->encoder_->weights_hash(), static_cast<uint64_t>(embedder->max_tokens_),
              embedder->takes_first_ ? 1u : 0u});
  return embedder;
}

Result<std::vector<int32_t>> Embedder::tokenize(const std::string& text) const {
  Result<std::vector<int32_t>> pieces = tokenizer_->encode(text);
  if (!pieces.ok()) return pieces.status();
  const int64_t kept = std::min(static_cast<int64_t>(pieces->size()), max_tokens_ - 2);
  std::vector<int32_t> ids = {first_id_};
  ids.insert(ids.end(), pieces->begin(), pieces->begin() + kept);
  ids.push_back(last_id_);
  return ids;
}

double Embedder::pool(const float* hidden_LD, int64_t length, float* vector_D) const {
  const int64_t d = width();
  std::copy_n(hidden_LD, d, vector_D);
  for (int64_t t = 1; t < length && !takes_first_; ++t) {
    for (int64_t i = 0; i < d; ++i) vector_D[i] += hidden_LD[t * d + i];
  }
  // The number of tokens cancels in the length.
  double squares = 0;
  for (int64_t i = 0; i < d; ++i) squares += double{vector_D[i]} * vector_D[i];
  const double norm = std::max(std::sqrt(squares), 1e-12);
  for (int64_t i = 0; i < d; ++i) vector_D[i] *= static_cast<float>(1 / norm);
  return norm;
}

void Embedder::forward(std::span<const std::vector<int32_t>> texts, TrainingPass& pass) {
  std::vector<int32_t> tokens;
  std::vector<int64_t> begin = {0};
  for (const std::vector<int32_t>& text : texts) {
    tokens.insert(tokens.end(), text.begin(), text.end());
    begin.push_back(static_cast<int64_t>(tokens.size()));
  }
  const int64_t d = width();
  std::vector<float> hidden(tokens.size() * static_cast<size_t>(d));
  encoder_->forward(tokens, begin, hidden.data(), pass.activations);
  pass.vectors.resize(texts.size() * static_cast<size_t>(d));
  pass.lengths.resize(texts.size());
  for (size_t i = 0; i < texts.size(); ++i) {
    pass.lengths[i] = pool(hidden.data() + begin[i] * d, begin[i + 1] - begin[i],
                           pass.vectors.data() + i * static_cast<size_t>(d));
  }
}

// v = u / |u| with u the sum of the states (or the first): du = (dv - v (v dv)) / |u|, for each.
void Embedder::backward(const TrainingPass& pass, std::span<const float> dvectors_ND,
                        model::BertWeights& gradients) {
  const int64_t d = width();
  const std::vector<int64_t>& begin = pass.activations.begin;
  GRADUS_CHECK(dvectors_ND.size() == pass.vectors.size(), "Embedder::backward: one row per text");
  std::vector<float> dhidden(static_cast<size_t>(begin.back() * d));
  for (size_t n = 0; n + 1 < begin.size(); ++n) {
    const float* v = pass.vectors.data() + n * static_cast<size_t>(d);
    const float* dv = dvectors_ND.data() + n * static_cast<size_t>(d);
    double along = 0;
    for (int64_t i = 0; i < d; ++i) along += double{v[i]} * dv[i];
    for (int64_t t = begin[n]; t < (takes_first_ ? begin[n] + 1 : begin[n + 1]); ++t) {
      for (int64_t i = 0; i < d; ++i) {
        dhidden[t * d + i] = static_cast<float>((dv[i] - v[i] * along) / pass.lengths[n]);
      }
    }
  }
  encoder_->backward(pass.activations, dhidden.data(), gradients);
}

Result<std::vector<float>> Embedder::embed(std::span<const std::string> texts) {
  std::vector<std::vector<int32_t>> ids(texts.size());
  for (size_t i = 0; i < texts.size(); ++i) {
    Result<std::vector<int32_t>> one = tokenize(texts[i]);
    if (!one.ok()) return one.status().with_prefix(fmt::format("text {}", i));
    ids[i] = std::move(*one);
  }
  return embed_tokens(ids);
}

std::vector<float> Embedder::embed_tokens(std::span<const std::vector<int32_t>> ids) {
  // Texts of like length together: passes are full, and a text's place in them does not show.
  std::vector<size_t> order(ids.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return ids[a].size() > ids[b].size(); });
  const int64_t d = width();
  std::vector<float> vectors(ids.size() * static_cast<size_t>(d));
  std::vector<float> hidden;
  for (size_t from = 0; from < order.size();) {
    std::vector<int32_t> tokens;
    std::vector<int64_t> begin = {0};
    size_t to = from;
    while (to < order.size() &&
           (to == from ||
            static_cast<int64_t>(tokens.size() + ids[order[to]].size()) <= kPassTokens)) {
      tokens.insert(tokens.end(), ids[order[to]].begin(), ids[order[to]].end());
      begin.push_back(static_cast<int64_t>(tokens.size()));
      ++to;
    }
    hidden.resize(tokens.size() * static_cast<size_t>(d));
    encoder_->forward(tokens, begin, hidden.data());
    for (size_t i = from; i < to; ++i) {
      pool(hidden.data() + begin[i - from] * d, begin[i - from + 1] - begin[i - from],
           vectors.data() + order[i] * static_cast<size_t>(d));
    }
    from = to;
  }
  return vectors;
}

}  // namespace gradus::retriever
