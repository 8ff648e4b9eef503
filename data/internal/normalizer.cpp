// SPDX-License-Identifier: Apache-2.0
#include "data/internal/normalizer.h"

#include "data/internal/component.h"
#include "data/internal/unicode.h"

namespace gradus::data::internal {

void append_replaced(std::string& out, std::string_view text, std::string_view pattern,
                     std::string_view content) {
  size_t begin = 0;
  for (size_t i; (i = text.find(pattern, begin)) != std::string_view::npos;
       begin = i + pattern.size()) {
    out.append(text.substr(begin, i - begin)).append(content);
  }
  out.append(text.substr(begin));
}

Status append_replaced(std::string& out, std::string_view text, const Pattern& pattern,
                       std::string_view content) {
  Pattern::Matcher matcher(pattern, text);
  size_t begin = 0;
  while (true) {
    const auto match = matcher.next();
    GRADUS_RETURN_IF_ERROR(match.status());
    if (!*match) break;
    const Span span = **match;
    out.append(text.substr(begin, span.begin - begin)).append(content);
    begin = span.end;
  }
  out.append(text.substr(begin));
  return {};
}

Status read_replace(ComponentReader& component, const std::string& where, std::string& text,
                    std::string& content, std::shared_ptr<const Pattern>& pattern) {
  const auto replaced = component.pattern();
  text = replaced.text;
  content = component.text("content");
  GRADUS_RETURN_IF_ERROR(component.status());
  if (text.empty()) return invalid_argument("{}: the pattern to replace is empty", where);
  if (!replaced.is_regex) return {};
  if (content.find('$') != std::string::npos) {
    return invalid_argument(
        "{}: unsupported '$' in the content '{}' of a Replace with a regular expression", where,
        content);
  }
  auto compiled = Pattern::compile(text);
  GRADUS_RETURN_IF_ERROR(compiled.status().with_prefix(where));
  pattern = std::move(*compiled);
  return {};
}

Result<Normalizer> Normalizer::parse(const nlohmann::json& json, const std::string& where) {
  Normalizer normalizer;
  const Status status = for_each_component(
      json, "normalizers", where,
      [&](const nlohmann::json& part, const std::string& part_where) -> Status {
        ComponentReader component(part, part_where);
        Step step;
        if (component.type() == "NFC") {
          step.kind = Step::Kind::kNfc;
        } else if (component.type() == "Prepend") {
          step.kind = Step::Kind::kPrepend;
          step.text = component.text("prepend");
        } else if (component.type() == "Replace") {
          GRADUS_RETURN_IF_ERROR(
              read_replace(component, part_where, step.text, step.content, step.pattern));
          step.kind = step.pattern ? Step::Kind::kReplacePattern : Step::Kind::kReplaceText;
        } else if (component.type() == "BertNormalizer") {
          step.kind = Step::Kind::kBert;
          step.bert.cleans = component.flag("clean_text", true);
          step.bert.spaces_ideographs = component.flag("handle_chinese_chars", true);
          step.bert.lowers = component.flag("lowercase", true);
          step.bert.strips_accents = component.flag("strip_accents", step.bert.lowers);
        } else {
          return component.unsupported("NFC, Prepend, Replace, BertNormalizer, Sequence");
        }
        GRADUS_RETURN_IF_ERROR(component.status());
        normalizer.steps_.push_back(std::move(step));
        return {};
      });
  GRADUS_RETURN_IF_ERROR(status);
  return normalizer;
}

Status Normalizer::apply(std::string_view text, std::string& out) const {
  out = text;
  std::string next;
  for (const Step& step : steps_) {
    if (out.empty()) break;
    next.clear();
    switch (step.kind) {
      case Step::Kind::kNfc:
        append_nfc(next, out);
        break;
      case Step::Kind::kPrepend:
        next.append(step.text).append(out);
        break;
      case Step::Kind::kReplaceText:
        append_replaced(next, out, step.text, step.content);
        break;
      case Step::Kind::kReplacePattern:
        GRADUS_RETURN_IF_ERROR(append_replaced(next, out, *step.pattern, step.content));
        break;
      case Step::Kind::kBert:
        append_bert_normalised(next, out, step.bert);
        break;
    }
    out.swap(next);
  }
  return {};
}

}  // namespace gradus::data::internal
