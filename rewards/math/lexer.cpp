// SPDX-License-Identifier: Apache-2.0
#include "rewards/math/lexer.h"

#include <algorithm>
#include <array>
#include <utility>

namespace gradus::rewards::math {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
bool is_space(char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; }
char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; }

template <size_t N>
bool is_one_of(std::string_view text, const std::array<std::string_view, N>& words) {
  return std::find(words.begin(), words.end(), text) != words.end();
}

// Commands that say how something looks, not what it is.
constexpr std::array<std::string_view, 37> kIgnored = {
    "left",     "right",     "mleft",  "mright", "big",          "Big",         "bigg",
    "Bigg",     "bigl",      "bigr",   "Bigl",   "Bigr",         "biggl",       "biggr",
    "Biggl",    "Biggr",     "quad",   "qquad",  "displaystyle", "textstyle",   "limits",
    "nolimits", "middle",    "rm",     "bf",     "it",           "boldsymbol",  "bm",
    "mathbf",   "mathit",    "mathsf", "hspace", "negthinspace", "negmedspace", "thinspace",
    "medspace", "thickspace"};

constexpr std::array<std::string_view, 12> kTextCommands = {
    "text",   "textbf", "textit", "textrm", "textnormal",   "mbox",
    "mathrm", "textsf", "texttt", "emph",   "operatorname", "textup"};

// Unicode signs and the commands that they stand for; "" is dropped.
constexpr std::pair<std::string_view, std::string_view> kSigns[] = {
    {"\u2212", "-"},        {"\u2013", "-"},          {"\u00d7", "\\times"},
    {"\u00b7", "\\cdot"},   {"\u22c5", "\\cdot"},     {"\u00f7", "\\div"},
    {"\u03c0", "\\pi"},     {"\u221a", "\\sqrt"},     {"\u221e", "\\infty"},
    {"\u2264", "\\le"},     {"\u2265", "\\ge"},       {"\u2260", "\\ne"},
    {"\u2248", "\\approx"}, {"\u2208", "\\in"},       {"\u222a", "\\cup"},
    {"\u2229", "\\cap"},    {"\u2216", "\\setminus"}, {"\u2205", "\\emptyset"},
    {"\u211d", "\\R"},      {"\u2124", "\\Z"},        {"\u211a", "\\Q"},
    {"\u2115", "\\N"},      {"\u2102", "\\C"},        {"\u00b0", "\\degree"},
    {"\u00b1", "\\pm"},     {"\u00a0", " "},          {"\u2009", " "},
    {"\u202f", " "},        {"\u00b2", "^2"},         {"\u00b3", "^3"},
    {"\u03b1", "\\alpha"},  {"\u03b2", "\\beta"},     {"\u03b3", "\\gamma"},
    {"\u03b4", "\\delta"},  {"\u03b5", "\\epsilon"},  {"\u03b8", "\\theta"},
    {"\u03bb", "\\lambda"}, {"\u03bc", "\\mu"},       {"\u03c1", "\\rho"},
    {"\u03c3", "\\sigma"},  {"\u03c4", "\\tau"},      {"\u03c6", "\\phi"},
    {"\u03c9", "\\omega"},  {"\u0394", "\\Delta"},    {"\u20ac", "\\euro"},
    {"\u00a3", "\\pound"}};

constexpr std::array<std::string_view, 28> kWords = {
    "sqrt", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "sin",      "cos", "tan",
    "cot",  "sec",    "csc",    "log",    "ln",   "exp",  "pi",   "infinity", "inf", "oo",
    "abs",  "floor",  "ceil",   "gcd",    "lcm",  "max",  "min",  "cbrt"};

class Lexer {
 public:
  Lexer(std::string_view text, const LexerOptions& options) : text_(text), options_(options) {}

  std::vector<Token> run() {
    while (at_ < text_.size()) step();
    add(TokenType::kEnd, "", at_);
    return std::move(tokens_);
  }

 private:
  void add(TokenType type, std::string text, size_t begin) {
    tokens_.push_back({type, std::move(text), begin, has_space_});
    has_space_ = false;
  }

  void step() {
    const char c = text_[at_];
    if (is_space(c) || c == '~') {
      ++at_;
      has_space_ = true;
    } else if (is_digit(c) || (c == '.' && at_ + 1 < text_.size() && is_digit(text_[at_ + 1]))) {
      read_number();
    } else if (is_letter(c)) {
      read_letters();
    } else if (c == '\\') {
      read_command();
    } else if (static_cast<unsigned char>(c) >= 0x80) {
      read_sign();
    } else {
      if (c == '$') {
        has_space_ = true;
      } else {
        add(TokenType::kCharacter, std::string(1, c), at_);
      }
      ++at_;
    }
  }

  void read_number() {
    const size_t begin = at_;
    bool has_point = false;
    while (at_ < text_.size()) {
      const bool is_point =
          text_[at_] == '.' && !has_point && at_ + 1 < text_.size() && is_digit(text_[at_ + 1]);
      if (!is_digit(text_[at_]) && !is_point) break;
      has_point |= is_point;
      ++at_;
    }
    add(TokenType::kNumber, std::string(text_.substr(begin, at_ - begin)), begin);
  }

  // A known word at the start of a run of letters, or one letter.
  void read_letters() {
    if (options_.reads_words) {
      size_t end = at_;
      while (end < text_.size() && end < at_ + 10 && is_letter(text_[end])) ++end;
      const std::string_view run = text_.substr(at_, end - at_);
      for (const std::string_view word : kWords) {
        if (!run.starts_with(word)) continue;
        add(TokenType::kWord, std::string(word), at_);
        at_ += word.size();
        return;
      }
    }
    add(TokenType::kLetter, std::string(1, lower(text_[at_])), at_);
    ++at_;
  }

  void read_sign() {
    for (const auto& [sign, command] : kSigns) {
      if (!text_.substr(at_).starts_with(sign)) continue;
      if (command == " ") {
        has_space_ = true;
      } else if (command.starts_with('\\')) {
        add(TokenType::kCommand, std::string(command.substr(1)), at_);
      } else {
        for (const char c : command) {
          add(is_digit(c) ? TokenType::kNumber : TokenType::kCharacter, std::string(1, c), at_);
        }
      }
      at_ += sign.size();
      return;
    }
    add(TokenType::kCharacter, std::string(1, text_[at_]), at_);
    ++at_;
  }

  void read_command() {
    const size_t begin = at_++;
    if (at_ == text_.size()) return add(TokenType::kCommand, "\\", begin);
    if (!is_letter(text_[at_])) {
      const char c = text_[at_++];
      if (c == '!') {
        while (at_ < text_.size() && is_space(text_[at_])) ++at_;  // 14,\! 916 is one number
      } else if (is_space(c) || c == ',' || c == ';' || c == ':' || c == '>' || c == '/') {
        has_space_ = true;
      } else if (c != '(' && c != ')') {
        add(TokenType::kCommand, std::string(1, c), begin);
      } else {
        add(TokenType::kCharacter, std::string(1, c), begin);
      }
      return;
    }
    while (at_ < text_.size() && is_letter(text_[at_])) ++at_;
    std::string_view name = text_.substr(begin + 1, at_ - begin - 1);
    for (const std::string_view space : {"qquad", "quad"}) {
      if (!name.starts_with(space)) continue;
      at_ = begin + 1 + space.size();  // \quadx is a space and x
      name = space;
    }
    if (is_one_of(name, kIgnored)) {
      if ((name == "left" || name == "right") && at_ < text_.size() && text_[at_] == '.') ++at_;
      has_space_ = true;
    } else if (is_one_of(name, kTextCommands)) {
      read_text(begin, name == "operatorname");
    } else if (name == "begin" || name == "end") {
      read_environment(begin, name == "begin");
    } else {
      add(TokenType::kCommand, std::string(name), begin);
    }
  }

  // What stands between the next brace and its partner; nothing read when there is none.
  bool read_group(std::string& content) {
    size_t at = at_;
    while (at < text_.size() && is_space(text_[at])) ++at;
    if (at == text_.size() || text_[at] != '{') return false;
    int64_t depth = 0;
    for (size_t i = at; i < text_.size(); ++i) {
      depth += text_[i] == '{' ? 1 : text_[i] == '}' ? -1 : 0;
      if (depth == 0) {
        content = std::string(text_.substr(at + 1, i - at - 1));
        at_ = i + 1;
        return true;
      }
    }
    return false;
  }

  void read_text(size_t begin, bool is_operator) {
    std::string content;
    if (!read_group(content)) {
      // \mathrm e: the font of the next letter, which only a lenient reader passes over.
      if (!options_.reads_words) return add(TokenType::kCommand, "text", begin);
      has_space_ = true;
      return;
    }
    if (is_operator) {
      add(TokenType::kCommand, content, begin);
    } else {
      add(TokenType::kText, std::move(content), begin);
    }
  }

  void read_environment(size_t begin, bool is_begin) {
    std::string name;
    if (!read_group(name)) return add(TokenType::kCommand, is_begin ? "begin" : "end", begin);
    if (!name.empty() && name.back() == '*') name.pop_back();
    std::string columns;
    if (is_begin && name == "array") read_group(columns);
    add(is_begin ? TokenType::kBegin : TokenType::kEndOf, std::move(name), begin);
  }

  std::string_view text_;
  LexerOptions options_;
  size_t at_ = 0;
  bool has_space_ = false;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view text, const LexerOptions& options) {
  return Lexer(text, options).run();
}

}  // namespace gradus::rewards::math
