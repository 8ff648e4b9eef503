// SPDX-License-Identifier: Apache-2.0
#include "data/internal/tokenizer_core.h"

#include <algorithm>
#include <unordered_map>
#include <unordered_set>

#include "data/internal/component.h"

namespace gradus::data::internal {
namespace {

const nlohmann::json kNull;

const nlohmann::json& field(const nlohmann::json& object, const char* key) {
  const auto entry = object.find(key);
  return entry == object.end() ? kNull : *entry;
}

class WordSink : public PieceSink {
 public:
  WordSink(const WordPiece& model, std::vector<int32_t>& ids) : model_(model), ids_(ids) {}
  void take(std::string_view piece) override { model_.encode(piece, ids_); }

 private:
  const WordPiece& model_;
  std::vector<int32_t>& ids_;
};

class BpeSink : public PieceSink {
 public:
  BpeSink(const Bpe& bpe, Bpe::Workspace& workspace, std::vector<int32_t>& ids)
      : bpe_(bpe), workspace_(workspace), ids_(ids) {}
  void take(std::string_view piece) override { bpe_.encode(piece, workspace_, ids_); }

 private:
  const Bpe& bpe_;
  Bpe::Workspace& workspace_;
  std::vector<int32_t>& ids_;
};

}  // namespace

Result<std::unique_ptr<const TokenizerCore>> TokenizerCore::create(TokenizerJson json,
                                                                   const std::string& where) {
  std::unique_ptr<TokenizerCore> core(new TokenizerCore);
  auto normalizer = Normalizer::parse(field(json.root, "normalizer"), where + ": normalizer");
  GRADUS_RETURN_IF_ERROR(normalizer.status());
  core->normalizer_ = std::move(*normalizer);
  auto pre_tokenizer =
      PreTokenizer::parse(field(json.root, "pre_tokenizer"), where + ": pre_tokenizer");
  GRADUS_RETURN_IF_ERROR(pre_tokenizer.status());
  core->pre_tokenizer_ = std::move(*pre_tokenizer);
  auto decoder = Decoder::parse(field(json.root, "decoder"), where + ": decoder");
  GRADUS_RETURN_IF_ERROR(decoder.status());
  core->decoder_ = std::move(*decoder);
  GRADUS_RETURN_IF_ERROR(core->build_model(json, where));
  GRADUS_RETURN_IF_ERROR(
      core->build_added_tokens(field(json.root, "added_tokens"), where + ": added_tokens"));
  return std::unique_ptr<const TokenizerCore>(std::move(core));
}

Status TokenizerCore::build_model(TokenizerJson& json, const std::string& where) {
  const nlohmann::json& fields = field(json.root, "model");
  const std::string model_where = where + ": model";
  if (!fields.is_object())
    return invalid_argument("{}: missing; expected an object with vocab and merges", model_where);
  const bool is_word_piece = fields.contains("type") && fields["type"] == "WordPiece";
  if (fields.contains("type") && fields["type"] != "BPE" && !is_word_piece) {
    return invalid_argument("{}: unsupported type {}; served here: BPE, WordPiece", model_where,
                            fields["type"].dump());
  }
  if (!json.has_vocab || json.vocab.empty())
    return invalid_argument("{}: no tokens in 'vocab'", model_where);
  GRADUS_RETURN_IF_ERROR(is_word_piece ? build_word_piece(fields, json, model_where)
                                       : build_bpe(fields, json, model_where));
  vocab_size_ = static_cast<int64_t>(model_tokens().size());
  const int32_t max_id = bpe_ != nullptr ? bpe_->max_id() : word_piece_->max_id();
  contents_.resize(static_cast<size_t>(max_id) + 1);
  for (int32_t id = 0; id <= max_id; ++id) {
    const auto content = bpe_ != nullptr ? bpe_->content(id) : word_piece_->content(id);
    if (content) contents_[static_cast<size_t>(id)] = *content;
  }
  return {};
}

Status TokenizerCore::build_word_piece(const nlohmann::json& fields, TokenizerJson& json,
                                       const std::string& model_where) {
  ComponentReader model(fields, model_where);
  WordPieceSpec spec;
  spec.unk_token = model.text("unk_token", spec.unk_token);
  spec.prefix = model.text("continuing_subword_prefix", spec.prefix);
  spec.longest_word = model.count("max_input_chars_per_word", spec.longest_word);
  GRADUS_RETURN_IF_ERROR(model.status());
  spec.vocab = std::move(json.vocab);
  auto word_piece = WordPiece::create(std::move(spec), model_where);
  GRADUS_RETURN_IF_ERROR(word_piece.status());
  word_piece_ = std::move(*word_piece);
  return {};
}

Status TokenizerCore::build_bpe(const nlohmann::json& fields, TokenizerJson& json,
                                const std::string& model_where) {
  nlohmann::json typed = fields;
  typed["type"] = "BPE";  // older files leave it out
  ComponentReader model(typed, model_where);
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (const std::string affix = model.text(key, ""); !affix.empty()) {
      return invalid_argument("{}: unsupported {} '{}'; expected null", model_where, key, affix);
    }
  }
  if (const auto dropout = fields.find("dropout");
      dropout != fields.end() && !dropout->is_null() && *dropout != 0.0) {
    return invalid_argument("{}: unsupported dropout {}; expected null: encoding is deterministic",
                            model_where, dropout->dump());
  }
  BpeSpec spec;
  if (model.has("unk_token")) spec.unk_token = model.text("unk_token");
  spec.fuses_unk = model.flag("fuse_unk", false);
  spec.falls_back_to_bytes = model.flag("byte_fallback", false);
  spec.ignores_merges = model.flag("ignore_merges", false);
  GRADUS_RETURN_IF_ERROR(model.status());
  spec.is_byte_level = pre_tokenizer_.is_byte_level();
  spec.vocab = std::move(json.vocab);
  spec.merges = std::move(json.merges);
  auto bpe = Bpe::create(std::move(spec), model_where);
  GRADUS_RETURN_IF_ERROR(bpe.status());
  bpe_ = std::move(*bpe);
  return {};
}

Status TokenizerCore::build_added_tokens(const nlohmann::json& list, const std::string& where) {
  if (!list.is_null() && !list.is_array())
    return invalid_argument("{}: expected a list, got {}", where, list.type_name());
  std::vector<AddedToken> tokens;
  std::unordered_map<std::string, size_t> index_of;
  auto next_id = static_cast<int64_t>(model_tokens().size());
  for (size_t i = 0; i < list.size(); ++i) {
    const std::string token_where = fmt::format("{}[{}]", where, i);
    if (!list[i].is_object())
      return invalid_argument("{}: expected an object, got {}", token_where, list[i].type_name());
    nlohmann::json typed = list[i];
    typed["type"] = "AddedToken";
    ComponentReader fields(typed, token_where);
    AddedToken token;
    const int64_t id = fields.count("id");
    token.content = fields.text("content");
    token.is_special = fields.flag("special", false);
    token.is_normalized = fields.flag("normalized", !token.is_special);
    token.strips_left = fields.flag("lstrip", false);
    token.strips_right = fields.flag("rstrip", false);
    token.is_single_word = fields.flag("single_word", false);
    GRADUS_RETURN_IF_ERROR(fields.status());
    if (token.content.empty()) continue;
    // `tokenizers` numbers added tokens itself: by the vocabulary, else behind all others. A file
    // that says otherwise does not belong to the embedding of its model.
    int64_t expected = model_tokens().find(token.content);
    const auto known = index_of.find(token.content);
    if (expected < 0 && known != index_of.end()) expected = tokens[known->second].id;
    if (expected < 0) expected = next_id;
    if (id != expected) {
      return invalid_argument("{}: id {} of '{}' does not fit the vocabulary; expected {}",
                              token_where, id, token.content, expected);
    }
    token.id = static_cast<int32_t>(id);
    next_id = std::max(next_id, id + 1);
    if (known != index_of.end()) {  // the last entry counts; special is special
      token.is_special = token.is_special || tokens[known->second].is_special;
      tokens[known->second] = std::move(token);
    } else {
      index_of[token.content] = tokens.size();
      tokens.push_back(std::move(token));
    }
  }
  added_ids_.reserve(tokens.size());
  std::vector<AddedToken> raw, normalized;
  std::vector<std::string> raw_contents;
  for (const AddedToken& token : tokens) {
    const auto id = static_cast<size_t>(token.id);
    if (id >= contents_.size()) contents_.resize(id + 1);
    if (!contents_[id]) ++vocab_size_;
    contents_[id] = token.content;
    if (is_special_.size() < contents_.size()) is_special_.resize(contents_.size());
    is_special_[id] = token.is_special;
    added_ids_.insert(token.content, token.id);
    if (token.is_normalized) {
      std::string content;
      GRADUS_RETURN_IF_ERROR(normalizer_.apply(token.content, content).with_prefix(where));
      if (content.empty()) {
        return invalid_argument(
            "{}: '{}' (id {}) is empty once normalised; expected a text that can be found", where,
            token.content, token.id);
      }
      normalized.push_back(token);
      normalized_contents_.push_back(std::move(content));
    } else {
      raw.push_back(token);
      raw_contents.push_back(token.content);
    }
  }
  is_special_.resize(contents_.size());
  raw_matcher_ = std::make_unique<AddedTokenMatcher>(std::move(raw), raw_contents);
  normalized_matcher_ = std::make_unique<AddedTokenMatcher>(normalized, normalized_contents_);
  for (const auto& content : contents_)
    spellings_.push_back(content ? *content : std::string_view());
  for (size_t i = 0; i < normalized.size(); ++i) {
    spellings_[static_cast<size_t>(normalized[i].id)] = normalized_contents_[i];
  }
  std::unordered_set<std::string_view> special_contents;
  for (const AddedToken& token : tokens) {
    if (token.is_special) special_contents.insert(token.content);
  }
  is_skipped_.resize(contents_.size());
  for (const AddedToken& token : tokens) {
    const auto id = static_cast<size_t>(token.id);
    is_skipped_[id] = special_contents.contains(spellings_[id]);
  }
  return {};
}

Bpe::WorkspacePointer TokenizerCore::take_workspace() const {
  {
    const std::lock_guard lock(mutex_);
    if (!workspaces_.empty()) {
      auto workspace = std::move(workspaces_.back());
      workspaces_.pop_back();
      return workspace;
    }
  }
  return Bpe::make_workspace();
}

void TokenizerCore::return_workspace(Bpe::WorkspacePointer workspace) const {
  const std::lock_guard lock(mutex_);
  workspaces_.push_back(std::move(workspace));
}

Status TokenizerCore::encode(std::string_view text, std::vector<int32_t>& ids) const {
  if (word_piece_ != nullptr) {
    WordSink sink(*word_piece_, ids);
    return encode_into(text, sink, ids);
  }
  auto workspace = take_workspace();
  BpeSink sink(*bpe_, *workspace, ids);
  const Status status = encode_into(text, sink, ids);
  return_workspace(std::move(workspace));
  return status;
}

Status TokenizerCore::encode_into(std::string_view text, PieceSink& sink,
                                  std::vector<int32_t>& ids) const {
  std::vector<Segment> segments, inner_segments;
  std::string normalized;
  raw_matcher_->find(text, segments);
  Status status;
  for (const Segment& segment : segments) {
    if (segment.id >= 0) {
      ids.push_back(segment.id);
      continue;
    }
    std::string_view stretch = text.substr(segment.begin, segment.end - segment.begin);
    if (!normalizer_.empty()) {
      status = normalizer_.apply(stretch, normalized);
      stretch = normalized;
    }
    if (normalized_matcher_->empty()) {
      if (status.ok()) status = pre_tokenizer_.split(stretch, segment.begin == 0, sink);
    } else {
      inner_segments.clear();
      normalized_matcher_->find(stretch, inner_segments);
      for (const Segment& inner : inner_segments) {
        if (inner.id >= 0) {
          ids.push_back(inner.id);
        } else if (status.ok()) {
          const bool is_at_start = segment.begin == 0 && inner.begin == 0;
          status = pre_tokenizer_.split(stretch.substr(inner.begin, inner.end - inner.begin),
                                        is_at_start, sink);
        }
      }
    }
    if (!status.ok()) break;
  }
  return status;
}

std::optional<std::string_view> TokenizerCore::content(int32_t id) const {
  if (id < 0 || static_cast<size_t>(id) >= contents_.size()) return std::nullopt;
  const auto& content = contents_[static_cast<size_t>(id)];
  return content ? std::optional<std::string_view>(*content) : std::nullopt;
}

int32_t TokenizerCore::find(std::string_view token) const {
  const int32_t id = added_ids_.find(token);
  return id >= 0 ? id : model_tokens().find(token);
}

bool TokenizerCore::is_special(int32_t id) const {
  return id >= 0 && static_cast<size_t>(id) < is_special_.size() &&
         is_special_[static_cast<size_t>(id)];
}

Status DecodeStream::push(int32_t id, std::string& out) {
  if (!core_.content(id)) {
    return invalid_argument(
        "token id {} is not in the vocabulary; expected an id of one of its {} tokens, at most {}",
        id, core_.vocab_size(), core_.max_id());
  }
  if (!skip_special_ || !core_.is_skipped(id)) run_.push(core_.spelling(id), out);
  return {};
}

}  // namespace gradus::data::internal
