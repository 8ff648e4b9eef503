// SPDX-License-Identifier: Apache-2.0
#include "rollout/rollout_config.h"

namespace gradus::rollout {

void RolloutConfig::visit(FieldVisitor& v) {
  v.field("num_samples", num_samples, "Responses per prompt (group size G).", at_least(1));
  v.field("max_new_tokens", max_new_tokens, "Longest response.", at_least(1));
  v.field("temperature", temperature, "Divides the logits.",
          greater_than(0).with_remedy("use 1 to disable"));
  v.field("top_k", top_k, "Keep the k most likely tokens; 0 keeps all.", at_least(0));
  v.field("top_p", top_p,
          "Keep the smallest set of tokens that reaches this probability; 1 keeps all.",
          in_left_open(0, 1).with_remedy("use 1 to disable"));
  v.field("min_p", min_p,
          "Drop tokens below this fraction of the largest probability; 0 keeps all.",
          in_half_open(0, 1).with_remedy("use 0 to disable"));
  v.field(
      "stop_texts", stop_texts,
      "A response ends with the token that completes one of these, besides the model's own end.");
  v.field("max_batch", max_batch, "Sequences decoded together; never changes a result.",
          at_least(1));
  v.field("kv_cache_mib", kv_cache_mib,
          "Memory for keys and values per rank; when it is full, sequences wait and are computed "
          "again, which never changes a result.",
          at_least(1));
  v.field("prefill_chunk_tokens", prefill_chunk_tokens,
          "Most prompt tokens computed between two decoding steps; never changes a result.",
          at_least(1));
}

}  // namespace gradus::rollout
