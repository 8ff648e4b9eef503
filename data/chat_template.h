// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <ctime>
#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "common/status.h"

// Chat templates: from messages to the text that a model was trained on. The language is the part
// of Jinja that published templates use, rendered byte for byte as Python's jinja2 renders it in
// the environment that transformers sets up: immutable sandbox, trim_blocks, lstrip_blocks, loop
// controls, `tojson` without HTML escapes, `raise_exception`, `strftime_now`, `{% generation %}`.
// What is outside that part (include, import, extends, block, autoescape, a few filters) is an
// error with its line. Our own engine (data/internal/jinja) bounds steps, memory, output and depth,
// because a template comes with a download and is a program of its own.
namespace gradus::data {

// What one rendering may use. A template that needs more ends with a status; the defaults are some
// hundred times what the largest published templates use on a long conversation.
struct RenderLimits {
  int64_t max_steps = 20'000'000;       // evaluated expressions, statements and elements
  int64_t max_output_bytes = 64 << 20;  // of the text
  int64_t max_value_bytes = 1LL << 30;  // of all values made on the way, summed
  int max_depth = 400;                  // nested expressions, calls and containers
};

struct RenderOptions {
  RenderLimits limits;
  // Local time that strftime_now formats; absent: now. Set it where a result must repeat.
  std::optional<std::tm> now;
};

// A rendered text and the byte ranges [begin, end) of it that stood inside `{% generation %}`
// blocks: what the assistant says, the tokens to train on. Blocks inside a macro or a `set` block
// have no range.
struct RenderedChat {
  struct Span {
    int64_t begin = 0;
    int64_t end = 0;
  };
  std::string text;
  std::vector<Span> generation_spans;
};

namespace jinja {
struct Template;
}

// One parsed template with the special tokens of its tokenizer. Cheap to copy. Const calls are
// thread-safe.
class ChatTemplate {
 public:
  // Parses `source`; `name` is what messages call it. InvalidArgument `template NAME:LINE: ...` if
  // the source is not Jinja, not UTF-8, or uses something unsupported.
  static Result<ChatTemplate> parse(std::string source, std::string name);

  // A variable that every rendering gets, such as ("bos_token", "<s>"); the last text of a name
  // wins.
  void set_special_token(const std::string& name, std::string text);
  const std::map<std::string, std::string>& special_tokens() const { return special_tokens_; }

  // The text of a conversation, with the variables that transformers passes: the special tokens,
  // `messages` (array of {"role", "content", ...}), `tools` and `documents` (none when null),
  // `add_generation_prompt`, and the members of the object `extra` (null: none), which win over all
  // others. InvalidArgument `template NAME:LINE: ...` if the template fails, calls raise_exception
  // or goes beyond the limits.
  Result<std::string> render_chat(const nlohmann::ordered_json& messages,
                                  bool add_generation_prompt,
                                  const nlohmann::ordered_json* tools = nullptr,
                                  const nlohmann::ordered_json* documents = nullptr,
                                  const nlohmann::ordered_json* extra = nullptr,
                                  const RenderOptions& options = {}) const;

  // The text for an object of variables, nothing added to it: no special token, no default.
  Result<std::string> render(const nlohmann::ordered_json& variables,
                             const RenderOptions& options = {}) const;

  // As render, with the ranges of the generation blocks.
  Result<RenderedChat> render_with_spans(const nlohmann::ordered_json& variables,
                                         const RenderOptions& options = {}) const;

  const std::string& source() const;
  const std::string& name() const;

 private:
  explicit ChatTemplate(std::shared_ptr<const jinja::Template> parsed)
      : parsed_(std::move(parsed)) {}

  std::shared_ptr<const jinja::Template> parsed_;
  std::map<std::string, std::string> special_tokens_;
};

// The template of a Hugging Face model directory: chat_template.jinja, else `chat_template` of
// tokenizer_config.json (a text, or a list of {"name", "template"} whose "default" is taken), with
// the special tokens of tokenizer_config.json and, where that lacks them, special_tokens_map.json
// (texts or objects with "content"). NotFound without a template, DataLoss for a file that is not
// what it should be.
Result<ChatTemplate> load_chat_template(const std::string& model_dir);

// Whether each turn only appends to the text of the turns before it, which training on several
// turns needs: then the tokens of turn k - 1 are a prefix of turn k's. Compares renderings of a
// growing conversation, once with a plain answer and once with one that holds a <think> block
// (Qwen3's template drops these from earlier turns, so it is not prefix-preserving). An error if
// the template refuses such a conversation.
Result<bool> is_prefix_preserving(const ChatTemplate& chat_template);

}  // namespace gradus::data
