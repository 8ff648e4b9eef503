// SPDX-License-Identifier: Apache-2.0
#include "data/internal/jinja/lexer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "data/internal/jinja/text.h"

namespace gradus::data::jinja {
namespace {

constexpr std::array<std::string_view, 26> kOperators = {
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[",
    "]",  "(",  ")",  "{",  "}",  ">",  "<", "=", ".", ":", "|", ",", ";"};

// Line ends become "\n", and one at the very end goes.
std::string normalize(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      out += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      out += source[i];
    }
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(normalize(source)) {}

  std::vector<Token> run() {
    while (pos_ < source_.size()) read_root();
    Token end;
    end.line = line_;
    tokens_.push_back(std::move(end));
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void error(std::string message) const {
    throw TemplateError{std::move(message), line_};
  }

  bool at(std::string_view text) const { return at(pos_, text); }
  bool at(size_t pos, std::string_view text) const {
    return source_.compare(pos, text.size(), text) == 0;
  }
  char peek(size_t pos) const { return pos < source_.size() ? source_[pos] : '\0'; }

  size_t skip_space(size_t pos) const {
    while (pos < source_.size()) {
      size_t next = pos;
      if (!is_space(next_char(source_, next))) break;
      pos = next;
    }
    return pos;
  }

  // Moves to `end`, counting lines.
  void advance_to(size_t end) {
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<std::ptrdiff_t>(pos_),
                                         source_.begin() + static_cast<std::ptrdiff_t>(end), '\n'));
    is_line_start_ = end > 0 && end > pos_ && source_[end - 1] == '\n';
    pos_ = end;
  }

  void push(TokenKind kind, std::string text = {}) {
    Token token;
    token.kind = kind;
    token.line = line_;
    token.text = std::move(text);
    tokens_.push_back(std::move(token));
  }

  // Emits source_[pos_, end) as data, shortened as the sign behind the tag's start at `end` asks.
  void push_data(size_t end, char sign, bool is_variable) {
    std::string_view text = std::string_view(source_).substr(pos_, end - pos_);
    if (sign == '-') {
      text = strip(text, false, true);
    } else if (sign != '+' && !is_variable) {
      const size_t newline = text.rfind('\n');
      const size_t begin = newline == std::string_view::npos ? 0 : newline + 1;
      if ((begin > 0 || is_line_start_) && begin < text.size() &&
          strip(text.substr(begin), true, true).empty()) {
        text = text.substr(0, begin);
      }
    }
    if (!text.empty()) push(TokenKind::kData, std::string(text));
    advance_to(end);
  }

  // Where the tag at `pos` (behind "{%") says `word` and closes; npos if it does not. `trim`:
  // whether a line end behind the tag belongs to it.
  size_t keyword_tag_end(size_t pos, std::string_view word, bool trim) const {
    pos = skip_space(pos);
    if (!at(pos, word)) return std::string::npos;
    pos = skip_space(pos + word.size());
    if (at(pos, "-%}")) return skip_space(pos + 3);
    if (trim && at(pos, "+%}")) return pos + 3;
    if (!at(pos, "%}")) return std::string::npos;
    return pos + 2 + (trim && peek(pos + 2) == '\n' ? 1 : 0);
  }

  static bool is_sign(char c) { return c == '-' || c == '+'; }

  void read_root() {
    size_t tag = pos_;
    for (;; ++tag) {
      tag = source_.find('{', tag);
      if (tag == std::string::npos) {
        push(TokenKind::kData, source_.substr(pos_));
        advance_to(source_.size());
        return;
      }
      const char kind = peek(tag + 1);
      if (kind == '%' || kind == '{' || kind == '#') break;
    }
    const char kind = source_[tag + 1];
    const char sign = is_sign(peek(tag + 2)) ? source_[tag + 2] : '\0';
    const size_t inside = tag + (sign != '\0' ? 3 : 2);
    push_data(tag, sign, kind == '{');
    if (kind == '%') {
      const size_t raw_end = keyword_tag_end(inside, "raw", false);
      if (raw_end != std::string::npos) {
        advance_to(raw_end);
        read_raw();
        return;
      }
    }
    if (kind == '#') {
      advance_to(inside);
      read_comment();
      return;
    }
    push(kind == '{' ? TokenKind::kVariableBegin : TokenKind::kBlockBegin);
    advance_to(inside);
    read_tag(kind == '{');
  }

  void read_comment() {
    const size_t end = source_.find("#}", pos_);
    if (end == std::string::npos) error("missing end of comment tag");
    if (end > pos_ && source_[end - 1] == '-') {
      advance_to(skip_space(end + 2));
    } else if (end > pos_ && source_[end - 1] == '+') {
      advance_to(end + 2);
    } else {
      advance_to(end + 2 + (peek(end + 2) == '\n' ? 1 : 0));
    }
  }

  void read_raw() {
    for (size_t tag = source_.find("{%", pos_); tag != std::string::npos;
         tag = source_.find("{%", tag + 1)) {
      const char sign = is_sign(peek(tag + 2)) ? source_[tag + 2] : '\0';
      const size_t end = keyword_tag_end(tag + (sign != '\0' ? 3 : 2), "endraw", true);
      if (end == std::string::npos) continue;
      push_data(tag, sign, false);
      advance_to(end);
      return;
    }
    error("missing end of raw directive");
  }

  // The end of the tag here: 0 if it is not.
  size_t tag_end(bool is_variable) const {
    if (is_variable) {
      if (at("-}}")) return skip_space(pos_ + 3);
      return at("}}") ? pos_ + 2 : 0;
    }
    if (at("+%}")) return pos_ + 3;
    if (at("-%}")) return skip_space(pos_ + 3);
    if (at("%}")) return pos_ + 2 + (peek(pos_ + 2) == '\n' ? 1 : 0);
    return 0;
  }

  void read_tag(bool is_variable) {
    std::string open;  // brackets to be closed
    while (pos_ < source_.size()) {
      if (open.empty()) {
        if (const size_t end = tag_end(is_variable)) {
          push(is_variable ? TokenKind::kVariableEnd : TokenKind::kBlockEnd);
          advance_to(end);
          return;
        }
      }
      const size_t space_end = skip_space(pos_);
      if (space_end != pos_) {
        advance_to(space_end);
      } else if (is_digit(source_[pos_])) {
        read_number();
      } else if (const size_t end = name_end(pos_); end != pos_) {
        std::string name = source_.substr(pos_, end - pos_);
        if (!is_identifier(name)) error("invalid character in identifier");
        push(TokenKind::kName, std::move(name));
        advance_to(end);
      } else if (source_[pos_] == '\'' || source_[pos_] == '"') {
        read_string();
      } else {
        read_operator(open);
      }
    }
  }

  size_t name_end(size_t pos) const {
    while (pos < source_.size()) {
      size_t next = pos;
      const char32_t c = next_char(source_, next);
      if (!(c == '_' || is_alphanumeric(c))) break;
      pos = next;
    }
    return pos;
  }

  // Digits with single underscores between them; `pos` itself if there are none.
  template <class IsDigit>
  size_t digits_end(size_t pos, const IsDigit& is_wanted) const {
    if (!is_wanted(peek(pos))) return pos;
    while (is_wanted(peek(pos)) || (peek(pos) == '_' && is_wanted(peek(pos + 1)))) ++pos;
    return pos;
  }
  size_t digits_end(size_t pos) const { return digits_end(pos, is_digit); }

  // Where a float that starts here ends; pos_ if there is none.
  size_t float_end() const {
    if (pos_ > 0 && source_[pos_ - 1] == '.') return pos_;
    size_t end = digits_end(pos_);
    bool is_float = false;
    if (peek(end) == '.') {
      const size_t fraction = digits_end(end + 1);
      if (fraction != end + 1) {
        end = fraction;
        is_float = true;
      }
    }
    if (peek(end) == 'e' || peek(end) == 'E') {
      const size_t sign = is_sign(peek(end + 1)) ? 1 : 0;
      const size_t exponent = digits_end(end + 1 + sign);
      if (exponent != end + 1 + sign) {
        end = exponent;
        is_float = true;
      }
    }
    return is_float ? end : pos_;
  }

  void read_number() {
    Token token;
    token.line = line_;
    size_t end = float_end();
    if (end != pos_) {
      token.kind = TokenKind::kFloat;
      parse_float(source_.substr(pos_, end - pos_), token.real);
    } else {
      token.kind = TokenKind::kInteger;
      const char prefix = static_cast<char>(peek(pos_ + 1) | 0x20);
      const auto with_prefix = [&](const auto& is_wanted) {
        size_t p = pos_ + 2;
        if (peek(p) == '_') ++p;
        const size_t stop = digits_end(p, is_wanted);
        return stop == p ? pos_ : stop;
      };
      int base = 10;
      end = pos_;
      if (source_[pos_] == '0' && prefix == 'b') {
        end = with_prefix([](char c) { return c == '0' || c == '1'; });
        base = 2;
      } else if (source_[pos_] == '0' && prefix == 'o') {
        end = with_prefix([](char c) { return c >= '0' && c <= '7'; });
        base = 8;
      } else if (source_[pos_] == '0' && prefix == 'x') {
        end = with_prefix([](char c) { return std::isxdigit(static_cast<unsigned char>(c)) != 0; });
        base = 16;
      }
      if (end == pos_) {
        base = 10;
        end = source_[pos_] == '0' ? digits_end(pos_, [](char c) { return c == '0'; })
                                   : digits_end(pos_);
      }
      if (!parse_int(source_.substr(pos_, end - pos_), base, token.integer)) {
        error("integer literal beyond 127 bits");
      }
    }
    tokens_.push_back(std::move(token));
    advance_to(end);
  }

  void read_string() {
    const char quote = source_[pos_];
    size_t end = pos_ + 1;
    while (end < source_.size() && source_[end] != quote) end += source_[end] == '\\' ? 2 : 1;
    if (end >= source_.size()) {
      error(fmt::format("unexpected char {} (a text that is not closed)",
                        repr_text(std::string(1, quote))));
    }
    push(TokenKind::kString, unescape(std::string_view(source_).substr(pos_ + 1, end - pos_ - 1)));
    advance_to(end + 1);
  }

  std::string unescape(std::string_view text) const {
    std::string out;
    for (size_t i = 0; i < text.size();) {
      if (text[i] != '\\') {
        out += text[i++];
        continue;
      }
      if (++i >= text.size()) error("\\ at end of string");
      const char c = text[i];
      if (static_cast<unsigned char>(c) >= 0x80) {
        // Python sees the character as an escape sequence of its own, whose backslash this one
        // escapes.
        const auto code = static_cast<uint32_t>(next_char(text, i));
        out += code < 0x100     ? fmt::format("\\x{:02x}", code)
               : code < 0x10000 ? fmt::format("\\u{:04x}", code)
                                : fmt::format("\\U{:08x}", code);
        continue;
      }
      ++i;
      switch (c) {
        case '\n':
          break;
        case '\\':
          out += '\\';
          break;
        case '\'':
          out += '\'';
          break;
        case '"':
          out += '"';
          break;
        case 'a':
          out += '\a';
          break;
        case 'b':
          out += '\b';
          break;
        case 'f':
          out += '\f';
          break;
        case 'n':
          out += '\n';
          break;
        case 'r':
          out += '\r';
          break;
        case 't':
          out += '\t';
          break;
        case 'v':
          out += '\v';
          break;
        case 'x':
          append_escaped(text, i, 2, 16, out);
          break;
        case 'u':
          append_escaped(text, i, 4, 16, out);
          break;
        case 'U':
          append_escaped(text, i, 8, 16, out);
          break;
        case 'N':
          error("\\N{...} is not supported in a text; use \\u or \\U");
        default:
          if (c >= '0' && c <= '7') {
            size_t digits = 1;
            while (digits < 3 && i - 1 + digits < text.size() && text[i - 1 + digits] >= '0' &&
                   text[i - 1 + digits] <= '7') {
              ++digits;
            }
            --i;
            append_escaped(text, i, digits, 8, out);
          } else {
            out += '\\';
            out += c;
          }
      }
    }
    return out;
  }

  void append_escaped(std::string_view text, size_t& i, size_t num_digits, int base,
                      std::string& out) const {
    Int code = 0;
    const std::string digits(text.substr(std::min(i, text.size()), num_digits));
    const bool all_digits =
        digits.size() == num_digits && std::all_of(digits.begin(), digits.end(), [](char c) {
          return std::isxdigit(static_cast<unsigned char>(c)) != 0;
        });
    if (!all_digits || !parse_int(digits, base, code)) error("truncated escape in a text");
    if (code > 0x10FFFF) error("illegal Unicode character in a text");
    if (code >= 0xD800 && code <= 0xDFFF) error("a surrogate in a text cannot be written as UTF-8");
    append_char(out, static_cast<char32_t>(code));
    i += num_digits;
  }

  void read_operator(std::string& open) {
    const auto found = std::find_if(kOperators.begin(), kOperators.end(),
                                    [&](std::string_view symbol) { return at(symbol); });
    if (found == kOperators.end()) {
      size_t next = pos_;
      next_char(source_, next);
      error(fmt::format("unexpected char {}", repr_text(source_.substr(pos_, next - pos_))));
    }
    const char c = found->front();
    if (c == '{') open += '}';
    if (c == '(') open += ')';
    if (c == '[') open += ']';
    if (c == '}' || c == ')' || c == ']') {
      if (open.empty()) error(fmt::format("unexpected '{}'", c));
      if (open.back() != c) error(fmt::format("unexpected '{}', expected '{}'", c, open.back()));
      open.pop_back();
    }
    push(TokenKind::kOperator, std::string(*found));
    advance_to(pos_ + found->size());
  }

  std::string source_;
  size_t pos_ = 0;
  int line_ = 1;
  bool is_line_start_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

std::string describe(const Token& token) {
  switch (token.kind) {
    case TokenKind::kData:
      return "template data / text";
    case TokenKind::kVariableBegin:
      return "begin of print statement";
    case TokenKind::kVariableEnd:
      return "end of print statement";
    case TokenKind::kBlockBegin:
      return "begin of statement block";
    case TokenKind::kBlockEnd:
      return "end of statement block";
    case TokenKind::kName:
    case TokenKind::kOperator:
      return token.text;
    case TokenKind::kString:
      return "string";
    case TokenKind::kInteger:
      return "integer";
    case TokenKind::kFloat:
      return "float";
    case TokenKind::kEnd:
      return "end of template";
  }
  return "token";
}

std::vector<Token> tokenize(std::string_view source) { return Lexer(source).run(); }

}  // namespace gradus::data::jinja
