// SPDX-License-Identifier: Apache-2.0
#include "rewards/internal/ifeval.h"

#include <algorithm>
#include <functional>
#include <map>
#include <optional>

#include "common/strings.h"
#include "rewards/internal/language.h"
#include "rewards/internal/text.h"

namespace gradus::rewards {
namespace {

using nlohmann::json;
using Lines = std::vector<std::string_view>;

enum class Type { kNumber, kText, kTexts, kRelation };

struct Parameter {
  std::string name;
  Type type;
};

struct Kind {
  std::vector<Parameter> parameters;
  std::function<bool(const json&, std::string_view)> follows;
};

int64_t number_of(const json& p, const char* name) {
  return static_cast<int64_t>(p[name].get<double>());
}
std::string text_of(const json& p, const char* name) { return p[name].get<std::string>(); }

bool holds(int64_t count, const std::string& relation, int64_t threshold) {
  return relation == "less than" ? count < threshold : count >= threshold;
}

Lines split(std::string_view text, std::string_view separator) {
  Lines parts;
  for (;;) {
    const size_t at = text.find(separator);
    parts.push_back(text.substr(0, at));
    if (at == std::string_view::npos) return parts;
    text.remove_prefix(at + separator.size());
  }
}

int64_t count_of(const std::string& text, const std::string& part) {
  if (part.empty()) return 0;
  int64_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos;
       at = text.find(part, at + part.size())) {
    ++count;
  }
  return count;
}

bool has_all(const json& p, std::string_view text) {
  const std::string lower = folded(text);
  return std::all_of(p["keywords"].begin(), p["keywords"].end(), [&](const json& word) {
    return lower.find(folded(word.get<std::string>())) != std::string::npos;
  });
}

bool has_none(const json& p, std::string_view text) {
  const std::string lower = folded(text);
  return std::none_of(p["forbidden_words"].begin(), p["forbidden_words"].end(), [&](const json& w) {
    return find_word(lower, folded(w.get<std::string>()), 0) != std::string::npos;
  });
}

bool has_letters(const json& p, std::string_view text) {
  return holds(count_of(folded(text), folded(text_of(p, "letter"))), text_of(p, "let_relation"),
               number_of(p, "let_frequency"));
}

// Without the parts that are empty at either end; nothing where another one is.
std::optional<int64_t> num_filled(const Lines& parts) {
  int64_t count = 0;
  for (size_t i = 0; i < parts.size(); ++i) {
    if (!trim(parts[i]).empty()) {
      ++count;
    } else if (i != 0 && i + 1 != parts.size()) {
      return std::nullopt;
    }
  }
  return count;
}

bool has_paragraphs(const json& p, std::string_view text) {
  return num_filled(split(text, "***")) == number_of(p, "num_paragraphs");
}

bool has_first_word(const json& p, std::string_view text) {
  Lines paragraphs = split(text, "\n\n");
  const int64_t num_filled = std::count_if(paragraphs.begin(), paragraphs.end(),
                                           [](auto part) { return !trim(part).empty(); });
  const int64_t nth = number_of(p, "nth_paragraph");
  if (num_filled != number_of(p, "num_paragraphs") || nth < 1 || nth > num_filled) return false;
  const auto words = fields_of(paragraphs[static_cast<size_t>(nth - 1)]);
  if (words.empty()) return false;
  std::string_view word = words[0];
  word.remove_prefix(std::min(word.find_first_not_of("'\""), word.size()));
  word = word.substr(0, word.find_first_of(".,?!'\""));
  return folded(word) == folded(text_of(p, "first_word"));
}

// "[address]" on one line.
bool has_placeholders(const json& p, std::string_view text) {
  int64_t count = 0;
  for (const std::string_view line : split(text, "\n")) {
    size_t open = line.find('[');
    while (open != std::string_view::npos) {
      const size_t close = line.find(']', open);
      if (close == std::string_view::npos) break;
      ++count;
      open = line.find('[', close);
    }
  }
  return count >= number_of(p, "num_placeholders");
}

std::string without_spaces(std::string_view text) {
  std::string result(text);
  std::erase_if(result, [](char c) { return c == ' ' || (c >= '\t' && c <= '\r'); });
  return result;
}

// "P.S." and "P.P.S" also with a space between their letters.
bool has_postscript(const json& p, std::string_view text) {
  const std::string marker = text_of(p, "postscript_marker"), lower = folded(text);
  if (marker == "P.S." || marker == "P.P.S") {
    return without_spaces(lower).find(folded(marker)) != std::string::npos;
  }
  return lower.find(folded(trim(marker))) != std::string::npos;
}

bool has_bullets(const json& p, std::string_view text) {
  int64_t count = 0;
  for (std::string_view line : split(text, "\n")) {
    line = trim(line);
    const bool is_star = line.size() > 1 && line[0] == '*' && line[1] != '*';
    count += is_star || line.starts_with('-') ? 1 : 0;
  }
  return count == number_of(p, "num_bullets");
}

bool is_constrained(const json&, std::string_view text) {
  for (const char* option : {"My answer is yes.", "My answer is no.", "My answer is maybe."}) {
    if (text.find(option) != std::string_view::npos) return true;
  }
  return false;
}

// How often a text stands between two marks on one line, with no star in it; each mark serves once.
int64_t num_marked(std::string_view text, std::string_view mark) {
  int64_t count = 0;
  for (size_t at = text.find(mark); at != std::string_view::npos;) {
    const size_t begin = at + mark.size();
    const size_t end = std::min(text.find_first_of("*\n", begin), text.size());
    if (text.substr(end).starts_with(mark)) {
      count += trim(text.substr(begin, end - begin)).empty() ? 0 : 1;
      at = text.find(mark, end + mark.size());
    } else {
      at = text.find(mark, at + 1);
    }
  }
  return count;
}

// *one* and **two**, which a single star also marks, around nothing.
bool has_highlights(const json& p, std::string_view text) {
  return num_marked(text, "*") + num_marked(text, "**") >= number_of(p, "num_highlights");
}

// "SECTION 1" ...: the splitter with a number behind it.
bool has_sections(const json& p, std::string_view text) {
  const std::string splitter(trim(text_of(p, "section_spliter")));
  if (splitter.empty()) return false;
  int64_t count = 0;
  for (size_t at = text.find(splitter); at != std::string_view::npos;) {
    size_t next = at + splitter.size();
    if (next < text.size() && (text[next] == ' ' || text[next] == '\n' || text[next] == '\t'))
      ++next;
    count += next < text.size() && text[next] >= '0' && text[next] <= '9' ? 1 : 0;
    at = text.find(splitter, at + splitter.size());
  }
  return count >= number_of(p, "num_sections");
}

bool is_json(const json&, std::string_view text) {
  text = trim(text);
  for (const std::string_view fence : {"```json", "```Json", "```JSON", "```"}) {
    if (!text.starts_with(fence)) continue;
    text.remove_prefix(fence.size());
    break;
  }
  if (text.ends_with("```")) text.remove_suffix(3);
  return json::accept(trim(text));
}

bool has_title(const json&, std::string_view text) {
  for (const std::string_view line : split(text, "\n")) {
    const size_t open = line.find("<<");
    if (open == std::string_view::npos) continue;
    const size_t close = line.rfind(">>");
    if (close == std::string_view::npos || close <= open + 2) continue;
    std::string_view title = line.substr(open, close - open);
    title.remove_prefix(std::min(title.find_first_not_of('<'), title.size()));
    while (title.ends_with('>')) title.remove_suffix(1);
    if (!trim(title).empty()) return true;
  }
  return false;
}

bool has_two_responses(const json&, std::string_view text) {
  const Lines parts = split(text, "******");
  if (num_filled(parts) != 2) return false;
  std::vector<std::string_view> filled;
  for (const std::string_view part : parts) {
    if (!trim(part).empty()) filled.push_back(trim(part));
  }
  return filled[0] != filled[1];
}

bool repeats_prompt(const json& p, std::string_view text) {
  return folded(trim(text)).starts_with(folded(trim(text_of(p, "prompt_to_repeat"))));
}

bool has_end(const json& p, std::string_view text) {
  text = trim(text);
  while (text.starts_with('"')) text.remove_prefix(1);
  while (text.ends_with('"')) text.remove_suffix(1);
  return folded(text).ends_with(folded(trim(text_of(p, "end_phrase"))));
}

// Letters of one case only, at least one, as Python's isupper() and islower().
bool is_all(std::string_view text, bool upper) {
  bool is_any = false;
  for (size_t at = 0; at < text.size();) {
    const Character c = character_at(text, at);
    at += c.size;
    if (upper ? is_lower(c.code) : is_upper(c.code)) return false;
    is_any |= upper ? is_upper(c.code) : is_lower(c.code);
  }
  return is_any;
}

bool is_in(std::string_view text, const std::string& language) {
  const std::string found = language_of(text);
  return found.empty() || found == language;
}

bool has_capital_words(const json& p, std::string_view text) {
  int64_t count = 0;
  for (const std::string_view word : fields_of(text)) count += is_all(word, true) ? 1 : 0;
  return holds(count, text_of(p, "capital_relation"), number_of(p, "capital_frequency"));
}

bool is_quoted(const json&, std::string_view text) {
  text = trim(text);
  return text.size() > 1 && text.front() == '"' && text.back() == '"';
}

const std::map<std::string, Kind>& kinds() {
  static const std::map<std::string, Kind> all = {
      {"change_case:capital_word_frequency",
       {{{"capital_frequency", Type::kNumber}, {"capital_relation", Type::kRelation}},
        has_capital_words}},
      {"change_case:english_capital",
       {{}, [](const json&, std::string_view t) { return is_all(t, true) && is_in(t, "en"); }}},
      {"change_case:english_lowercase",
       {{}, [](const json&, std::string_view t) { return is_all(t, false) && is_in(t, "en"); }}},
      {"combination:repeat_prompt", {{{"prompt_to_repeat", Type::kText}}, repeats_prompt}},
      {"combination:two_responses", {{}, has_two_responses}},
      {"detectable_content:number_placeholders",
       {{{"num_placeholders", Type::kNumber}}, has_placeholders}},
      {"detectable_content:postscript", {{{"postscript_marker", Type::kText}}, has_postscript}},
      {"detectable_format:constrained_response", {{}, is_constrained}},
      {"detectable_format:json_format", {{}, is_json}},
      {"detectable_format:multiple_sections",
       {{{"section_spliter", Type::kText}, {"num_sections", Type::kNumber}}, has_sections}},
      {"detectable_format:number_bullet_lists", {{{"num_bullets", Type::kNumber}}, has_bullets}},
      {"detectable_format:number_highlighted_sections",
       {{{"num_highlights", Type::kNumber}}, has_highlights}},
      {"detectable_format:title", {{}, has_title}},
      {"keywords:existence", {{{"keywords", Type::kTexts}}, has_all}},
      {"keywords:forbidden_words", {{{"forbidden_words", Type::kTexts}}, has_none}},
      {"keywords:frequency",
       {{{"keyword", Type::kText}, {"frequency", Type::kNumber}, {"relation", Type::kRelation}},
        [](const json& p, std::string_view t) {
          return holds(count_of(folded(t), folded(text_of(p, "keyword"))), text_of(p, "relation"),
                       number_of(p, "frequency"));
        }}},
      {"keywords:letter_frequency",
       {{{"letter", Type::kText},
         {"let_frequency", Type::kNumber},
         {"let_relation", Type::kRelation}},
        has_letters}},
      {"language:response_language",
       {{{"language", Type::kText}},
        [](const json& p, std::string_view t) { return is_in(t, text_of(p, "language")); }}},
      {"length_constraints:nth_paragraph_first_word",
       {{{"num_paragraphs", Type::kNumber},
         {"nth_paragraph", Type::kNumber},
         {"first_word", Type::kText}},
        has_first_word}},
      {"length_constraints:number_paragraphs",
       {{{"num_paragraphs", Type::kNumber}}, has_paragraphs}},
      {"length_constraints:number_sentences",
       {{{"num_sentences", Type::kNumber}, {"relation", Type::kRelation}},
        [](const json& p, std::string_view t) {
          return holds(num_sentences(t), text_of(p, "relation"), number_of(p, "num_sentences"));
        }}},
      {"length_constraints:number_words",
       {{{"num_words", Type::kNumber}, {"relation", Type::kRelation}},
        [](const json& p, std::string_view t) {
          return holds(static_cast<int64_t>(words_of(t).size()), text_of(p, "relation"),
                       number_of(p, "num_words"));
        }}},
      {"punctuation:no_comma",
       {{}, [](const json&, std::string_view t) { return t.find(',') == std::string_view::npos; }}},
      {"startend:end_checker", {{{"end_phrase", Type::kText}}, has_end}},
      {"startend:quotation", {{}, is_quoted}}};
  return all;
}

bool has_type(const json& value, Type type) {
  switch (type) {
    case Type::kNumber:
      return value.is_number() && value.get<double>() >= 0 && value.get<double>() < 1e15;
    case Type::kText:
      return value.is_string();
    case Type::kTexts:
      return value.is_array() && !value.empty() &&
             std::all_of(value.begin(), value.end(), [](const json& v) { return v.is_string(); });
    case Type::kRelation:
      return value == "less than" || value == "at least";
  }
  return false;
}

const char* expected(Type type) {
  switch (type) {
    case Type::kNumber:
      return "a number of at least 0";
    case Type::kText:
      return "a text";
    case Type::kTexts:
      return "a list of texts";
    case Type::kRelation:
      return "\"less than\" or \"at least\"";
  }
  return "";
}

}  // namespace

const std::vector<std::string>& ifeval_kinds() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> all;
    for (const auto& [name, kind] : kinds()) all.push_back(name);
    return all;
  }();
  return names;
}

Status check_instruction(const std::string& kind, const json& parameters) {
  const auto found = kinds().find(kind);
  if (found == kinds().end()) {
    return invalid_argument("'{}' is no instruction of IFEval{}; known: {}", kind,
                            did_you_mean(kind, ifeval_kinds()), join(ifeval_kinds(), ", "));
  }
  for (const Parameter& parameter : found->second.parameters) {
    const bool is_there = parameters.is_object() && parameters.contains(parameter.name) &&
                          !parameters[parameter.name].is_null();
    if (is_there && has_type(parameters[parameter.name], parameter.type)) continue;
    return invalid_argument("{}: {} is {}; expected {}", kind, parameter.name,
                            is_there ? parameters[parameter.name].dump() : "missing",
                            expected(parameter.type));
  }
  return {};
}

bool follows_instruction(const std::string& kind, const json& parameters,
                         std::string_view response) {
  return !trim(response).empty() && kinds().at(kind).follows(parameters, response);
}

int64_t num_sentences(std::string_view text) {
  static const std::vector<std::string_view> kShort = {
      "mr",  "mrs", "ms",  "dr",     "prof", "st",  "vs",  "etc", "e.g",
      "i.e", "no",  "inc", "ltd",    "co",   "jr",  "sr",  "a.m", "p.m",
      "u.s", "fig", "vol", "approx", "dept", "est", "gen", "col", "rev"};
  int64_t count = 0;
  bool is_open = false;  // a sentence has begun
  size_t word = 0;       // where the present word begins
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == ' ' || (c >= '\t' && c <= '\r')) {
      word = i + 1;
      continue;
    }
    is_open |= is_word_character(static_cast<unsigned char>(c) < 128 ? c : 0x100);
    // A full stop of CJK ends a sentence wherever it stands.
    const std::string_view rest = text.substr(i);
    if (rest.starts_with("\xe3\x80\x82") || rest.starts_with("\xef\xbc\x81") ||
        rest.starts_with("\xef\xbc\x9f")) {
      count += is_open ? 1 : 0;
      is_open = false;
      i += 2;
      continue;
    }
    if (c != '.' && c != '!' && c != '?') continue;
    size_t end = i + 1;
    while (end < text.size() &&
           std::string_view(".!?\"')]*").find(text[end]) != std::string_view::npos) {
      ++end;
    }
    const bool is_at_end = end == text.size();
    const bool has_space =
        !is_at_end && (text[end] == ' ' || (text[end] >= '\t' && text[end] <= '\r'));
    if (!is_at_end && !has_space) continue;
    if (c == '.' && !is_at_end && end == i + 1) {
      std::string_view before = text.substr(word, std::min<size_t>(i - word, 12));
      before.remove_prefix(std::min(before.find_first_not_of("(\"'"), before.size()));
      const std::string lower = folded(before);
      const bool is_initial =
          lower.size() == 1 && lower[0] >= 'a' && lower[0] <= 'z' && before[0] != 'I';
      const bool is_short = std::find(kShort.begin(), kShort.end(), lower) != kShort.end();
      // "1." before the text of a list's entry.
      const bool is_number = !lower.empty() &&
                             lower.find_first_not_of("0123456789") == std::string::npos &&
                             (word == 0 || text[word - 1] == '\n');
      size_t next = end;
      while (next < text.size() &&
             (text[next] == ' ' || (text[next] >= '\t' && text[next] <= '\r')))
        ++next;
      const bool goes_on = next < text.size() && text[next] >= 'a' && text[next] <= 'z';
      if (is_number || is_initial || (is_short && (goes_on || lower != "etc"))) continue;
    }
    count += is_open ? 1 : 0;
    is_open = false;
    i = end - 1;
  }
  return count + (is_open ? 1 : 0);
}

}  // namespace gradus::rewards
