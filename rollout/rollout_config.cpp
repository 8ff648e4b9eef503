// SPDX-License-Identifier: Apache-2.0
#include "rollout/rollout_config.h"

#include <algorithm>
#include <set>

#include "common/config/rules.h"
#include "common/strings.h"
#include "rollout/tool.h"

namespace gradus::rollout {

void ToolConfig::visit(FieldVisitor& v) {
  v.field("name", name, "Name of the tool: search, calculator or python.", non_empty());
  v.field("tag", tag, "The model calls it by <tag>...</tag>; its name if empty.");
  v.field("index", index, "search: folder made by gradus index build.");
  v.field("model", model, "search: directory of the index's encoder, if it is not where it was.");
  v.field("url", url,
          "search: a retrieval server as gradus index serve or Search-R1's, instead of index, e.g. "
          "http://127.0.0.1:8000/retrieve.");
  v.field("top", top, "search: passages of an answer.", in_closed(1, 1000));
  v.field("retries", retries, "search: further requests to the server after one that failed.",
          in_closed(0, 100));
}

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
  v.field(
      "tools", tools,
      "What a response may call (docs/tools.md): the model writes <search>...</search>, and the "
      "answer comes into the response as tokens without a loss.");
  v.field("max_tool_calls", max_tool_calls,
          "Calls of a response; it ends with finish reason tool_limit at one more.", at_least(1));
  v.field("max_observation_tokens", max_observation_tokens,
          "Longest answer of a tool, which is cut there. It is not part of max_new_tokens.",
          at_least(1));
  v.field("tool_seconds", tool_seconds, "A call that takes longer is answered by saying so.",
          greater_than(0));
  v.field("tool_threads", tool_threads,
          "Calls of a rank carried out at once, while other responses are sampled. Results do not "
          "depend on it.",
          in_closed(1, 256));
  v.field("observation_tag", observation_tag, "Answers stand between <tag> and </tag>.",
          non_empty());
}

namespace {

void check_tool(const ToolConfig& tool, const std::string& place, ConfigRules& rules) {
  ToolRegistry registry("tool");
  register_builtin_tools(registry);
  const std::vector<std::string> known = registry.names();
  if (std::find(known.begin(), known.end(), tool.name) == known.end()) {
    rules.require(false, "{}.name: unknown tool '{}'{}; known: {}", place, tool.name,
                  did_you_mean(tool.name, known), join(known, ", "));
    return;
  }
  if (tool.name == "search") {
    rules.require(tool.index.empty() || tool.url.empty(),
                  "both {0}.index and {0}.url are set; a search asks one of them: drop the other",
                  place);
    rules.require(!tool.index.empty() || !tool.url.empty(),
                  "neither {0}.index nor {0}.url is set; name the folder of gradus index build, or "
                  "a retrieval server",
                  place);
    rules.require(tool.model.empty() || tool.url.empty(),
                  "both {0}.model and {0}.url are set; the server has the encoder: drop {0}.model",
                  place);
    return;
  }
  for (const auto& [key, value] :
       {std::pair("index", tool.index), {"model", tool.model}, {"url", tool.url}}) {
    rules.require(value.empty(), "{0}.{1} is set but {0}.name is {2}; it is an option of search",
                  place, key, tool.name);
  }
}

std::string tag_of(const ToolConfig& tool) { return tool.tag.empty() ? tool.name : tool.tag; }

}  // namespace

Status validate(const RolloutConfig& config) {
  ConfigRules rules;
  std::set<std::string> tags = {config.observation_tag};
  for (size_t i = 0; i < config.tools.size(); ++i) {
    const std::string place = fmt::format("rollout.tools[{}]", i);
    check_tool(config.tools[i], place, rules);
    const std::string tag = tag_of(config.tools[i]);
    rules.require(tags.insert(tag).second,
                  "{}.tag: '{}' is the tag of another tool or rollout.observation_tag; give each "
                  "its own",
                  place, tag);
    for (const std::string& stop : config.stop_texts) {
      rules.require(stop != "</" + tag + ">",
                    "rollout.stop_texts has '{}', which ends a call of {}; drop it there, or the "
                    "response ends before the tool is asked",
                    stop, place);
    }
  }
  return rules.status();
}

}  // namespace gradus::rollout
