// SPDX-License-Identifier: Apache-2.0
#include "data/tokenizer.h"

#include <fstream>
#include <iterator>

#include "common/strings.h"
#include "data/internal/tokenizer_core.h"

namespace gradus::data {

Tokenizer::Tokenizer(std::unique_ptr<const internal::TokenizerCore> core)
    : core_(std::move(core)) {}
Tokenizer::~Tokenizer() = default;

Result<std::unique_ptr<Tokenizer>> Tokenizer::from_json(std::string_view tokenizer_json,
                                                        const std::string& where) {
  auto json = internal::read_tokenizer_json(tokenizer_json, where);
  GRADUS_RETURN_IF_ERROR(json.status());
  auto core = internal::TokenizerCore::create(std::move(*json), where);
  GRADUS_RETURN_IF_ERROR(core.status());
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::move(*core)));
}

Result<std::unique_ptr<Tokenizer>> Tokenizer::load(const std::string& model_dir) {
  const std::string path = model_dir + "/tokenizer.json";
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    return not_found(
        "{}: cannot open; expected a model directory with a tokenizer.json (gradus convert makes "
        "one "
        "from a GGUF file)",
        path);
  }
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (file.bad()) return data_loss("{}: cannot read", path);
  return from_json(text, path);
}

Result<std::vector<int32_t>> Tokenizer::encode(std::string_view text) const {
  if (const auto offset = first_invalid_utf8(text)) {
    return invalid_argument("text to encode: invalid UTF-8 at byte {}; expected valid UTF-8",
                            *offset);
  }
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 4 + 4);
  GRADUS_RETURN_IF_ERROR(core_->encode(text, ids));
  return ids;
}

Result<std::string> Tokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
  internal::DecodeStream stream(*core_, skip_special);
  std::string text;
  for (size_t i = 0; i < ids.size(); ++i) {
    GRADUS_RETURN_IF_ERROR(stream.push(ids[i], text).with_prefix(fmt::format("ids[{}]", i)));
  }
  stream.finish(text);
  return text;
}

int64_t Tokenizer::vocab_size() const { return core_->vocab_size(); }
int32_t Tokenizer::max_id() const { return core_->max_id(); }

std::optional<int32_t> Tokenizer::token_to_id(std::string_view token) const {
  const int32_t id = core_->find(token);
  return id >= 0 ? std::optional<int32_t>(id) : std::nullopt;
}

std::optional<std::string> Tokenizer::id_to_token(int32_t id) const {
  const auto content = core_->content(id);
  return content ? std::optional<std::string>(*content) : std::nullopt;
}

bool Tokenizer::is_special(int32_t id) const { return core_->is_special(id); }
bool Tokenizer::is_known(int32_t id) const { return core_->content(id).has_value(); }

StreamingDecoder::StreamingDecoder(const Tokenizer& tokenizer, bool skip_special)
    : stream_(std::make_unique<internal::DecodeStream>(*tokenizer.core_, skip_special)) {}
StreamingDecoder::~StreamingDecoder() = default;
StreamingDecoder::StreamingDecoder(StreamingDecoder&&) noexcept = default;
StreamingDecoder& StreamingDecoder::operator=(StreamingDecoder&&) noexcept = default;

Result<std::string> StreamingDecoder::append(int32_t id) {
  std::string text;
  GRADUS_RETURN_IF_ERROR(stream_->push(id, text));
  return text;
}

std::string StreamingDecoder::finish() {
  std::string text;
  stream_->finish(text);
  return text;
}

}  // namespace gradus::data
