// SPDX-License-Identifier: Apache-2.0
#include "rollout/internal/response.h"

#include <algorithm>

#include "common/strings.h"
#include "rollout/engine.h"

namespace gradus::rollout {
namespace {

// Whether the response to go on with belongs to the request and has room left.
Status validate_begun(const data::RolloutRequest& request) {
  const data::Trajectory& begun = request.begun;
  if (begun.token_ids.empty()) return {};
  GRADUS_RETURN_IF_ERROR(data::validate(begun));
  const bool is_its_prompt =
      begun.prompt_length == static_cast<int64_t>(request.token_ids.size()) &&
      std::equal(request.token_ids.begin(), request.token_ids.end(), begun.token_ids.begin());
  if (!is_its_prompt) return invalid_argument("the response to go on with has another prompt");
  const int64_t length = static_cast<int64_t>(begun.behavior_logprobs.size());
  if (length < 1 || length >= request.sampling.max_new_tokens) {
    return invalid_argument(
        "the response to go on with has {} tokens, expected at least 1 and fewer than "
        "max_new_tokens ({})",
        length, request.sampling.max_new_tokens);
  }
  return {};
}

int64_t mib_for(int64_t num_pages, int64_t bytes_per_page) {
  return (num_pages * bytes_per_page + (1 << 20) - 1) >> 20;
}

}  // namespace

std::string name_of(const data::RequestId& id) {
  return fmt::format("prompt {}, sample {}", id.prompt_id, id.sample_index);
}

Status validate_requests(std::span<const data::RolloutRequest> requests,
                         const model::ModelConfig& config, int64_t num_pages,
                         int64_t bytes_per_page, bool has_tokenizer, const ToolBox* tools) {
  GRADUS_CHECK(has_tokenizer || tools == nullptr, "tools need a tokenizer");
  const int64_t observation_tokens = tools == nullptr ? 0 : tools->max_tokens();
  for (size_t i = 0; i < requests.size(); ++i) {
    const data::RolloutRequest& request = requests[i];
    const int64_t length = static_cast<int64_t>(request.token_ids.size());
    if (length == 0) {
      return invalid_argument("{}: the prompt has no tokens; give at least one",
                              name_of(request.id));
    }
    if (length >= config.max_position_embeddings) {
      return invalid_argument(
          "{}: the prompt has {} tokens and leaves no room for a response in the model's context "
          "of {}; "
          "shorten it",
          name_of(request.id), length, config.max_position_embeddings);
    }
    for (const int32_t token : request.token_ids) {
      if (token < 0 || token >= config.vocab_size) {
        return invalid_argument("{}: token id {} is not in the model's vocabulary [0, {})",
                                name_of(request.id), token, config.vocab_size);
      }
    }
    if (request.sampling.max_new_tokens < 1) {
      return invalid_argument("{}: max_new_tokens must be at least 1, got {}", name_of(request.id),
                              request.sampling.max_new_tokens);
    }
    GRADUS_RETURN_IF_ERROR(validate_begun(request).with_prefix(name_of(request.id)));
    if (!request.sampling.stop_texts.empty() && !has_tokenizer) {
      return invalid_argument("{}: stop texts need a tokenizer", name_of(request.id));
    }
    const int64_t most = request.sampling.max_new_tokens + observation_tokens;
    const int64_t needed = num_request_pages(config, length, most);
    if (needed > num_pages) {
      return invalid_argument(
          "{}: up to {} tokens need {} pages of the key-value cache, which has {}; raise "
          "kv_cache_mib to at least {}",
          name_of(request.id), std::min(length + most, config.max_position_embeddings), needed,
          num_pages, mib_for(needed, bytes_per_page));
    }
  }
  return {};
}

Response::Response(const data::RolloutRequest& request, const data::Tokenizer* tokenizer,
                   const model::ModelConfig& config, uint64_t policy_version, uint64_t weights_hash,
                   const ToolBox* tools)
    : request_(&request),
      tokenizer_(tokenizer),
      config_(&config),
      policy_version_(policy_version),
      weights_hash_(weights_hash),
      tools_(tools) {
  trajectory_.id = request.id;
  trajectory_.token_ids = request.token_ids;
  trajectory_.prompt_length = static_cast<int64_t>(request.token_ids.size());
  trajectory_.policy_version = policy_version;
  trajectory_.weights_hash = weights_hash;
  if (tokenizer != nullptr) decoder_ = std::make_unique<data::StreamingDecoder>(*tokenizer);
}

Status Response::decode(int32_t token) {
  if (decoder_ == nullptr || !tokenizer_->is_known(token)) return {};
  Result<std::string> piece = decoder_->append(token);
  if (!piece.ok()) return piece.status();
  text_ += *piece;
  return {};
}

Status Response::begin() {
  const data::Trajectory& begun = request_->begun;
  if (begun.token_ids.empty()) return {};
  trajectory_.token_ids = begun.token_ids;
  trajectory_.behavior_logprobs = begun.behavior_logprobs;
  trajectory_.sampling_logprobs = begun.sampling_logprobs;
  trajectory_.segments = begun.segments;
  trajectory_.observations = begun.observations;
  num_begun_ = static_cast<int64_t>(begun.behavior_logprobs.size());
  if (trajectory_.segments.empty()) {
    trajectory_.segments.push_back({0, num_begun_, begun.policy_version, begun.weights_hash});
  }
  const int64_t length = static_cast<int64_t>(begun.token_ids.size()) - begun.prompt_length;
  auto observation = begun.observations.begin();
  for (int64_t i = 0; i < length; ++i) {
    const bool is_left = observation != begun.observations.end();
    if (is_left && i == observation->begin) calls_from_ = text_.size();
    GRADUS_RETURN_IF_ERROR(decode(begun.token_ids[static_cast<size_t>(begun.prompt_length + i)]));
    if (is_left && i + 1 == observation->end) {
      text_.resize(calls_from_);
      ++observation;
    }
  }
  return {};
}

int64_t Response::num_left() const {
  const int64_t length = static_cast<int64_t>(trajectory_.token_ids.size());
  int64_t left = std::min(request_->sampling.max_new_tokens - num_tokens(),
                          config_->max_position_embeddings - length);
  if (request_->token_budget > 0) {
    left = std::min(left, request_->token_budget - (num_tokens() - num_begun_));
  }
  return left;
}

// Whether the text behind `from` completes a call; the first one, if one token ends several.
void Response::find_call(size_t from) {
  size_t first = std::string::npos;
  for (size_t i = 0; i < tools_->entries().size(); ++i) {
    const ToolBox::Entry& entry = tools_->entries()[i];
    const size_t overlap = entry.close.size() - 1;
    const size_t end =
        text_.find(entry.close, std::max(calls_from_, from > overlap ? from - overlap : 0));
    if (end >= first) continue;
    first = end;
    call_.emplace(ToolCall{i, {}});
    call_begin_ = end;
    const size_t begin = text_.rfind(entry.open, end);
    if (begin == std::string::npos || begin < calls_from_) continue;
    call_begin_ = begin;
    call_->text = text_.substr(begin + entry.open.size(), end - begin - entry.open.size());
  }
}

std::optional<ToolCall> Response::take_call() {
  std::optional<ToolCall> call = std::exchange(call_, std::nullopt);
  if (!call) return call;
  const size_t number = trajectory_.observations.size();
  if (number > 0) {
    notes_.emplace_back(
        trim(std::string_view(text_).substr(calls_from_, call_begin_ - calls_from_)));
  }
  call->context.key = request_->rng_key;
  call->context.number = static_cast<int64_t>(number);
  call->context.notes = notes_;
  Result<std::string> prompt = tokenizer_->decode(request_->token_ids, /*skip_special=*/true);
  if (prompt.ok()) call->context.prompt = trim(*prompt);
  return call;
}

// By a limit of length.
bool Response::is_at_an_end() {
  const int64_t length = static_cast<int64_t>(trajectory_.token_ids.size());
  if (num_tokens() >= request_->sampling.max_new_tokens ||
      length >= config_->max_position_embeddings) {
    trajectory_.finish_reason = data::FinishReason::kLength;
    return true;
  }
  return false;
}

Result<bool> Response::append(int32_t token, float logprob, float sampling_logprob) {
  const data::SamplingParams& sampling = request_->sampling;
  data::append_token(trajectory_, token, logprob, sampling_logprob);
  if (std::find(sampling.stop_ids.begin(), sampling.stop_ids.end(), token) !=
      sampling.stop_ids.end()) {
    trajectory_.finish_reason = data::FinishReason::kStop;
    return true;
  }
  const size_t before = text_.size();
  GRADUS_RETURN_IF_ERROR(decode(token));
  if (text_.size() > before) {
    for (const std::string& stop : sampling.stop_texts) {
      const size_t from = std::max(calls_from_, before > stop.size() ? before - stop.size() : 0);
      const size_t found = text_.find(stop, from);
      if (!stop.empty() && found != std::string::npos) {
        text_.resize(found);
        decoder_.reset();
        trajectory_.finish_reason = data::FinishReason::kStop;
        return true;
      }
    }
    if (tools_ != nullptr) find_call(before);
  }
  if (is_at_an_end()) {
    call_.reset();  // nobody would read the answer
    return true;
  }
  if (call_) {
    const size_t num_calls = trajectory_.observations.size();
    if (num_calls < static_cast<size_t>(tools_->limits().max_calls)) return false;
    call_.reset();
    trajectory_.finish_reason = data::FinishReason::kToolLimit;
    return true;
  }
  if (num_left() <= 0) {
    trajectory_.finish_reason = data::FinishReason::kInterrupted;
    return true;
  }
  return false;
}

Result<bool> Response::append_observation(size_t tool, const ToolReply& reply) {
  const int64_t num_calls = static_cast<int64_t>(trajectory_.observations.size()) + 1;
  Result<ToolBox::Words> words =
      tools_->words_of(reply.text, num_calls == tools_->limits().max_calls);
  if (!words.ok()) return words.status().with_prefix(name_of(request_->id));
  const size_t length = trajectory_.token_ids.size() + words->token_ids.size();
  if (length >= static_cast<size_t>(config_->max_position_embeddings)) {
    trajectory_.finish_reason = data::FinishReason::kLength;
    return true;
  }
  data::append_observation(
      trajectory_, words->token_ids,
      {.tool = tools_->entries()[tool].name, .status = reply.status, .is_cut = words->is_cut});
  const size_t before = text_.size();
  for (const int32_t token : words->token_ids) GRADUS_RETURN_IF_ERROR(decode(token));
  trajectory_.observations.back().text = text_.substr(before);
  text_.resize(before);
  calls_from_ = before;
  if (num_left() > 0) return false;
  trajectory_.finish_reason = data::FinishReason::kInterrupted;
  return true;
}

// Notes down which tokens the present weights sampled, if others have sampled some.
void Response::add_segment() {
  const int64_t length = num_tokens();
  if (trajectory_.segments.empty() || length == num_begun_) return;
  data::Segment& last = trajectory_.segments.back();
  if (last.policy_version == policy_version_ && last.weights_hash == weights_hash_) {
    last.end = length;
  } else {
    trajectory_.segments.push_back({num_begun_, length, policy_version_, weights_hash_});
  }
  if (trajectory_.segments.size() == 1) trajectory_.segments.clear();
}

data::Trajectory Response::finish() {
  add_segment();
  if (decoder_ != nullptr) text_ += decoder_->finish();
  trajectory_.text = std::move(text_);
  return std::move(trajectory_);
}

}  // namespace gradus::rollout
