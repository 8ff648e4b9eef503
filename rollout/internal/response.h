// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "common/status.h"
#include "data/tokenizer.h"
#include "data/types.h"
#include "model/model_config.h"
#include "rollout/tool_box.h"

namespace gradus::rollout {

// InvalidArgument names the first request that cannot run: an empty or too long prompt, a token
// outside the vocabulary, a sequence that a cache of `num_pages` pages cannot hold.
Status validate_requests(std::span<const data::RolloutRequest> requests,
                         const model::ModelConfig& config, int64_t num_pages,
                         int64_t bytes_per_page, bool has_tokenizer, const ToolBox* tools);

// For messages.
std::string name_of(const data::RequestId& id);

// A response in the making: the tokens so far, their text, and when it ends. Engines differ in
// where tokens come from; what they are told here is one.
class Response {
 public:
  // `tokenizer` may be null: no text then. `tools` may be null: no calls then. Request, tokenizer,
  // config and tools must outlive it.
  Response(const data::RolloutRequest& request, const data::Tokenizer* tokenizer,
           const model::ModelConfig& config, uint64_t policy_version, uint64_t weights_hash,
           const ToolBox* tools);

  // Takes over what an interrupted response has; a new one has nothing. Once, before append().
  Status begin();
  // Adds a sampled token; true if it ends the response.
  Result<bool> append(int32_t token, float logprob, float sampling_logprob);
  // The call that the last token completed, once; nothing may be appended before its observation.
  std::optional<ToolCall> take_call();
  // Adds what the tool said; true if the response ends there.
  Result<bool> append_observation(size_t tool, const ToolReply& reply);
  // Tokens that may still come: the response never gets more, but may end before.
  int64_t num_left() const;
  void cancel() { trajectory_.finish_reason = data::FinishReason::kCancelled; }
  // The trajectory, complete; the response is empty afterwards.
  data::Trajectory finish();

  const data::RolloutRequest& request() const { return *request_; }
  const data::Trajectory& trajectory() const { return trajectory_; }
  int64_t num_tokens() const { return static_cast<int64_t>(trajectory_.behavior_logprobs.size()); }

 private:
  void add_segment();
  Status decode(int32_t token);
  void find_call(size_t from);
  bool is_at_an_end();

  const data::RolloutRequest* request_;
  const data::Tokenizer* tokenizer_;
  const model::ModelConfig* config_;
  uint64_t policy_version_, weights_hash_;
  data::Trajectory trajectory_;
  std::unique_ptr<data::StreamingDecoder> decoder_;
  const ToolBox* tools_;
  std::string text_;
  size_t calls_from_ = 0;  // in text_: calls begin behind the last observation
  std::optional<ToolCall> call_;
  size_t call_begin_ = 0;           // in text_: of its opening tag
  std::vector<std::string> notes_;  // CallContext::notes; not those of earlier runs
  int64_t num_begun_ = 0;           // response tokens of earlier runs
};

}  // namespace gradus::rollout
