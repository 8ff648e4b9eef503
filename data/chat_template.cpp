// SPDX-License-Identifier: Apache-2.0
#include "data/chat_template.h"

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "common/strings.h"
#include "data/internal/jinja/parser.h"
#include "data/internal/jinja/runtime.h"

namespace gradus::data {
namespace {

using nlohmann::ordered_json;

jinja::Value to_value(jinja::Budget& budget, const ordered_json& json) {
  using jinja::Value;
  jinja::DepthGuard guard(budget);
  budget.step();
  switch (json.type()) {
    case ordered_json::value_t::null:
      return Value::none();
    case ordered_json::value_t::boolean:
      return Value::boolean(json.get<bool>());
    case ordered_json::value_t::number_integer:
      return Value::integer(json.get<int64_t>());
    case ordered_json::value_t::number_unsigned:
      return Value::integer(static_cast<jinja::Int>(json.get<uint64_t>()));
    case ordered_json::value_t::number_float:
      return Value::real(json.get<double>());
    case ordered_json::value_t::string: {
      const auto& text = json.get_ref<const std::string&>();
      budget.bytes(static_cast<int64_t>(text.size()));
      if (const auto offset = first_invalid_utf8(text)) {
        jinja::fail(fmt::format("a variable is not valid UTF-8 (at byte {} of a text)", *offset));
      }
      return Value::string(text);
    }
    case ordered_json::value_t::array: {
      std::vector<Value> items;
      items.reserve(json.size());
      for (const auto& item : json) items.push_back(to_value(budget, item));
      return Value::list(std::move(items));
    }
    case ordered_json::value_t::object: {
      auto dict = std::make_shared<jinja::DictObject>();
      for (const auto& [key, item] : json.items()) {
        dict->set(budget, Value::string(key), to_value(budget, item));
      }
      return Value::of(jinja::Type::kDict, std::move(dict));
    }
    default:
      jinja::fail("a variable is of a kind that JSON does not have");
  }
}

Status template_error(const std::string& name, const jinja::TemplateError& error) {
  // Without a line it is about the variables, not about the template.
  if (error.line == 0) return invalid_argument("template {}: {}", name, error.message);
  return invalid_argument("template {}:{}: {}", name, error.line, error.message);
}

void set_members(jinja::Interpreter& interpreter, const ordered_json& object) {
  for (const auto& [key, value] : object.items()) {
    interpreter.set_variable(key, to_value(interpreter.budget(), value));
  }
}

// Renders after `set_variables`.
Result<RenderedChat> run_template(const jinja::Template& parsed, const RenderOptions& options,
                                  const std::function<void(jinja::Interpreter&)>& set_variables) {
  try {
    jinja::Interpreter interpreter(parsed, options);
    set_variables(interpreter);
    return interpreter.run();
  } catch (const jinja::TemplateError& error) {
    return template_error(parsed.name, error);
  }
}

Result<std::string> read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return not_found("{}: cannot open", path.string());
  std::ostringstream text;
  text << file.rdbuf();
  if (file.bad()) return data_loss("{}: cannot read", path.string());
  return std::move(text).str();
}

Result<ordered_json> read_json_object(const std::filesystem::path& path) {
  Result<std::string> text = read_file(path);
  if (!text.ok()) return text.status();
  ordered_json json = ordered_json::parse(*text, nullptr, false);
  if (json.is_discarded()) return data_loss("{}: not valid JSON", path.string());
  if (!json.is_object()) {
    return data_loss("{}: must be a JSON object, got {}", path.string(), json.type_name());
  }
  return json;
}

// Entries like "bos_token": a text or an object with its "content". Names in `known` stay as they
// are.
void add_special_tokens(const ordered_json& json, ChatTemplate& chat_template) {
  for (const auto& [name, value] : json.items()) {
    if (name.size() < 6 || name.compare(name.size() - 6, 6, "_token") != 0) continue;
    if (chat_template.special_tokens().count(name) != 0) continue;
    if (value.is_string()) {
      chat_template.set_special_token(name, value.get<std::string>());
    } else if (value.is_object() && value.contains("content") && value["content"].is_string()) {
      chat_template.set_special_token(name, value["content"].get<std::string>());
    }
  }
}

// The text of `chat_template` in tokenizer_config.json.
Result<std::string> configured_template(const ordered_json& value, const std::string& where) {
  if (value.is_string()) return value.get<std::string>();
  std::vector<std::string> names;
  if (value.is_array()) {
    for (const auto& entry : value) {
      if (!entry.is_object() || !entry.contains("name") || !entry.contains("template") ||
          !entry["name"].is_string() || !entry["template"].is_string()) {
        return data_loss("{}: an entry of chat_template must have a name and a template", where);
      }
      if (entry["name"] == "default") return entry["template"].get<std::string>();
      names.push_back(entry["name"].get<std::string>());
    }
    return not_found("{}: chat_template has no entry named 'default', only: {}", where,
                     join(names, ", "));
  }
  return data_loss("{}: chat_template must be a text or a list of named templates, got {}", where,
                   value.type_name());
}

}  // namespace

Result<ChatTemplate> ChatTemplate::parse(std::string source, std::string name) {
  if (const auto offset = first_invalid_utf8(source)) {
    const auto line =
        1 + std::count(source.begin(), source.begin() + static_cast<std::ptrdiff_t>(*offset), '\n');
    return invalid_argument("template {}:{}: invalid UTF-8 at byte {}", name, line, *offset);
  }
  try {
    return ChatTemplate(jinja::parse_template(std::move(source), name));
  } catch (const jinja::TemplateError& error) {
    return template_error(name, error);
  }
}

void ChatTemplate::set_special_token(const std::string& name, std::string text) {
  special_tokens_[name] = std::move(text);
}

const std::string& ChatTemplate::source() const { return parsed_->source; }
const std::string& ChatTemplate::name() const { return parsed_->name; }

Result<RenderedChat> ChatTemplate::render_with_spans(const nlohmann::ordered_json& variables,
                                                     const RenderOptions& options) const {
  if (!variables.is_object()) {
    return invalid_argument("template {}: the variables must be an object, got {}", name(),
                            variables.type_name());
  }
  return run_template(*parsed_, options, [&](jinja::Interpreter& interpreter) {
    set_members(interpreter, variables);
  });
}

Result<std::string> ChatTemplate::render(const nlohmann::ordered_json& variables,
                                         const RenderOptions& options) const {
  Result<RenderedChat> rendered = render_with_spans(variables, options);
  if (!rendered.ok()) return rendered.status();
  return std::move(rendered->text);
}

Result<std::string> ChatTemplate::render_chat(const nlohmann::ordered_json& messages,
                                              bool add_generation_prompt,
                                              const nlohmann::ordered_json* tools,
                                              const nlohmann::ordered_json* documents,
                                              const nlohmann::ordered_json* extra,
                                              const RenderOptions& options) const {
  if (extra != nullptr && !extra->is_object()) {
    return invalid_argument("template {}: extra variables must be an object, got {}", name(),
                            extra->type_name());
  }
  Result<RenderedChat> rendered =
      run_template(*parsed_, options, [&](jinja::Interpreter& interpreter) {
        const auto set = [&](const std::string& variable, const ordered_json* value) {
          if (extra != nullptr && extra->contains(variable)) return;
          interpreter.set_variable(variable, value == nullptr
                                                 ? jinja::Value::none()
                                                 : to_value(interpreter.budget(), *value));
        };
        for (const auto& [token, text] : special_tokens_) {
          interpreter.set_variable(token, jinja::Value::string(text));
        }
        set("messages", &messages);
        set("tools", tools);
        set("documents", documents);
        interpreter.set_variable("add_generation_prompt",
                                 jinja::Value::boolean(add_generation_prompt));
        if (extra != nullptr) set_members(interpreter, *extra);
      });
  if (!rendered.ok()) return rendered.status();
  return std::move(rendered->text);
}

Result<ChatTemplate> load_chat_template(const std::string& model_dir) {
  namespace fs = std::filesystem;
  const fs::path directory(model_dir);
  const fs::path file = directory / "chat_template.jinja";
  const fs::path config_path = directory / "tokenizer_config.json";
  ordered_json config = ordered_json::object();
  std::error_code ignored;
  if (fs::exists(config_path, ignored)) {
    Result<ordered_json> read = read_json_object(config_path);
    if (!read.ok()) return read.status();
    config = std::move(*read);
  }
  std::string where = file.string();
  Result<std::string> source = std::string();
  if (fs::exists(file, ignored)) {
    source = read_file(file);
  } else if (config.contains("chat_template") && !config["chat_template"].is_null()) {
    where = config_path.string();
    source = configured_template(config["chat_template"], where);
  } else {
    return not_found(
        "{}: no chat template; expected chat_template.jinja or `chat_template` in "
        "tokenizer_config.json (a base "
        "model has none: give prompts as text, or a template of your own)",
        model_dir);
  }
  if (!source.ok()) return source.status();
  Result<ChatTemplate> parsed = ChatTemplate::parse(std::move(*source), where);
  if (!parsed.ok()) return parsed;
  add_special_tokens(config, *parsed);
  const fs::path map_path = directory / "special_tokens_map.json";
  if (fs::exists(map_path, ignored)) {
    Result<ordered_json> map = read_json_object(map_path);
    if (!map.ok()) return map.status();
    add_special_tokens(*map, *parsed);
  }
  return parsed;
}

Result<bool> is_prefix_preserving(const ChatTemplate& chat_template) {
  const auto message = [](const char* role, const char* content) {
    return ordered_json{{"role", role}, {"content", content}};
  };
  for (const char* answer : {"It is blue.", "<think>\nLight scatters.\n</think>\n\nIt is blue."}) {
    ordered_json messages = ordered_json::array({message("user", "What colour is the sky?")});
    const Result<std::string> question = chat_template.render_chat(messages, true);
    if (!question.ok()) return question.status();
    messages.push_back(message("assistant", answer));
    const Result<std::string> answered = chat_template.render_chat(messages, false);
    if (!answered.ok()) return answered.status();
    messages.push_back(message("user", "And at night?"));
    const Result<std::string> continued = chat_template.render_chat(messages, true);
    if (!continued.ok()) return continued.status();
    if (!answered->starts_with(*question) || !continued->starts_with(*answered)) return false;
  }
  return true;
}

}  // namespace gradus::data
