// SPDX-License-Identifier: Apache-2.0
#include "rewards/code/assert_tests.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "common/strings.h"
#include "rewards/internal/builtin.h"

namespace gradus::rewards::code {
namespace {

constexpr int kMaxDepth = 64;

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_name_part(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || is_digit(c) || c == '_';
}

struct Assertion {
  bool tests_nothing = false;  // assert True
  std::string function;
  std::string arguments;  // JSON
  std::string returns;    // JSON
};

// Reads one assertion from the place after the word. Members are false where it is something else.
class AssertReader {
 public:
  AssertReader(std::string_view text, size_t at) : text_(text), at_(at) {}

  size_t at() const { return at_; }

  bool assertion(Assertion& out) {
    const bool is_negated = word("not");
    const bool has_bracket = take('(');
    out.function = name();
    if (out.function == "True" && !is_negated) {
      out.tests_nothing = true;
    } else {
      if (out.function.empty() || !sequence('(', ')', out.arguments)) return false;
      if (!expectation(is_negated, out.returns)) return false;
    }
    if (has_bracket && !take(')')) return false;
    return end_of_statement();
  }

 private:
  bool expectation(bool is_negated, std::string& out) {
    const size_t before = at_;
    skip_space();
    if (text_.substr(at_, 2) == "==") {
      at_ += 2;
      return !is_negated && value(out, 0);
    }
    if (word("is")) {
      skip_space();
      const char first = at_ < text_.size() ? text_[at_] : '\0';
      return !is_negated && (first == 'T' || first == 'F' || first == 'N') && value(out, 0);
    }
    at_ = before;
    out = is_negated ? "false" : "true";
    return true;
  }

  // A message may follow, which is an expression of any kind on the same line.
  bool end_of_statement() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\t')) ++at_;
    const bool ends = at_ == text_.size() || text_[at_] == '\n' || text_[at_] == '\r' ||
                      text_[at_] == ',' || text_[at_] == '#';
    if (ends) at_ = std::min(text_.find('\n', at_), text_.size());
    return ends;
  }

  void skip_space() {
    while (at_ < text_.size() &&
           (text_[at_] == ' ' || text_[at_] == '\t' || text_[at_] == '\n' || text_[at_] == '\r')) {
      ++at_;
    }
  }

  bool take(char c) {
    const size_t before = at_;
    skip_space();
    if (at_ < text_.size() && text_[at_] == c) return ++at_, true;
    at_ = before;
    return false;
  }

  bool word(std::string_view w) {
    const size_t before = at_;
    skip_space();
    const size_t end = at_ + w.size();
    if (text_.substr(at_, w.size()) == w && (end >= text_.size() || !is_name_part(text_[end]))) {
      at_ = end;
      return true;
    }
    at_ = before;
    return false;
  }

  std::string name() {
    skip_space();
    const size_t begin = at_;
    while (at_ < text_.size() && (is_name_part(text_[at_]) || text_[at_] == '.')) ++at_;
    return std::string(text_.substr(begin, at_ - begin));
  }

  // What stands between brackets, as a JSON list.
  bool sequence(char open, char close, std::string& out, int depth = 0, bool* has_comma = nullptr) {
    if (!take(open)) return false;
    out = "[";
    for (bool is_first = true; !take(close); is_first = false) {
      std::string one;
      if (!is_first) out += ',';
      if (!value(one, depth + 1)) return false;
      out += one;
      const bool comma = take(',');
      if (has_comma) *has_comma |= comma;
      if (comma) continue;
      if (!take(close)) return false;
      break;
    }
    out += ']';
    return true;
  }

  bool dictionary(std::string& out, int depth) {
    if (!take('{')) return false;
    out = "{";
    for (bool is_first = true; !take('}'); is_first = false) {
      std::string key, one;
      if (!is_first) out += ',';
      if (!text(key) || !take(':') || !value(one, depth + 1)) return false;
      out += key + ":" + one;
      if (take(',')) continue;
      if (!take('}')) return false;
      break;
    }
    out += '}';
    return true;
  }

  bool value(std::string& out, int depth) {
    if (depth > kMaxDepth) return false;
    skip_space();
    if (at_ == text_.size()) return false;
    const char c = text_[at_];
    if (c == '[') return sequence('[', ']', out, depth);
    if (c == '{') return dictionary(out, depth);
    if (c == '"' || c == '\'') return text(out);
    if (c == '(') {
      bool is_tuple = false;
      if (!sequence('(', ')', out, depth, &is_tuple)) return false;
      if (!is_tuple && out != "[]") out = out.substr(1, out.size() - 2);
      return true;
    }
    if (word("True")) return out = "true", true;
    if (word("False")) return out = "false", true;
    if (word("None")) return out = "null", true;
    return number(out);
  }

  // As JSON has it: `.5` and `5.` get their zeros, `1_000` loses its line.
  bool number(std::string& out) {
    out.clear();
    if (take('-')) out = "-";
    skip_space();
    const size_t begin = at_;
    std::string digits;
    while (at_ < text_.size()) {
      const char c = text_[at_];
      const bool is_sign_of_exponent =
          (c == '-' || c == '+') && at_ > begin && (text_[at_ - 1] | 0x20) == 'e';
      if (!is_name_part(c) && c != '.' && !is_sign_of_exponent) break;
      if (c == '.' && (digits.empty() || !is_digit(digits.back()))) digits += '0';
      if (!digits.empty() && digits.back() == '.' && !is_digit(c)) digits += '0';
      if (c != '_') digits += c;
      ++at_;
    }
    if (!digits.empty() && digits.back() == '.') digits += '0';
    out += digits;
    return nlohmann::json::accept(out);
  }

  // Texts side by side are one. Those with a prefix (b, f, r) or in three quotes are not read.
  bool text(std::string& out) {
    std::string content;
    skip_space();
    if (at_ == text_.size() || (text_[at_] != '"' && text_[at_] != '\'')) return false;
    while (at_ < text_.size() && (text_[at_] == '"' || text_[at_] == '\'')) {
      const char quote = text_[at_++];
      if (text_.substr(at_, 2) == std::string(2, quote)) return false;
      for (;; ++at_) {
        if (at_ >= text_.size() || text_[at_] == '\n') return false;
        if (text_[at_] == quote) break;
        if (text_[at_] != '\\') {
          content += text_[at_];
          continue;
        }
        if (++at_ == text_.size()) return false;
        constexpr std::string_view kFrom = "ntr\\'\"", kTo = "\n\t\r\\'\"";
        const size_t kind = kFrom.find(text_[at_]);
        if (kind == std::string_view::npos) return false;
        content += kTo[kind];
      }
      ++at_;
      const size_t after = at_;
      skip_space();
      if (at_ == text_.size() || (text_[at_] != '"' && text_[at_] != '\'')) at_ = after;
      if (at_ == after) break;
    }
    out = nlohmann::json(content).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    return true;
  }

  std::string_view text_;
  size_t at_;
};

bool is_passed_over(std::string_view line) {
  return line.empty() || line[0] == '#' || line == "def check(candidate):" ||
         line.starts_with("import ") || line.starts_with("from ") || line == "pass";
}

}  // namespace

Result<CodeTests> parse_asserts(std::string_view python, std::string_view function) {
  CodeTests tests;
  tests.function = std::string(function);
  for (size_t begin = 0; begin < python.size();) {
    size_t end = std::min(python.find('\n', begin), python.size());
    const std::string_view line = trim(python.substr(begin, end - begin));
    const auto refuse = [&](std::string_view why) {
      const auto number = 1 + std::count(python.begin(), python.begin() + begin, '\n');
      return invalid_argument("line {}: '{}' {}", number, excerpt(line), why);
    };
    if (line.starts_with("METADATA") && line.ends_with('{')) {
      end = python.find("\n}", begin);
      if (end == std::string_view::npos) return refuse("has no end");
      end = std::min(python.find('\n', end + 1), python.size());
    } else if (!is_passed_over(line)) {
      constexpr std::string_view kAssert = "assert";
      Assertion one;
      AssertReader reader(python, begin + python.substr(begin).find(kAssert) + kAssert.size());
      if (!line.starts_with(kAssert) || line.size() == kAssert.size() ||
          is_name_part(line[kAssert.size()]) || !reader.assertion(one)) {
        return refuse("is no test that can be read; expected assert f(LITERALS) == LITERAL");
      }
      end = reader.at();
      if (!one.tests_nothing) {
        if (one.function == "candidate" && !function.empty()) one.function = tests.function;
        if (tests.function.empty()) tests.function = one.function;
        if (one.function != tests.function) {
          return refuse(fmt::format("calls {}, and other tests call {}; expected one function",
                                    one.function, tests.function));
        }
        CodeTest& test = tests.tests.emplace_back();
        test.is_call = true;
        test.input = std::move(one.arguments);
        test.expected = std::move(one.returns);
      }
    }
    begin = end + 1;
  }
  return tests;
}

}  // namespace gradus::rewards::code
