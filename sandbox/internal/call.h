// SPDX-License-Identifier: Apache-2.0
// Compiled behind a solution in the sandbox: reads the arguments of one call as JSON from
// descriptor 3 and writes the returned value as JSON to descriptor 4. Everything here is known to
// the program; what the right value is, is not.
#pragma once

#include <unistd.h>

#include <array>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <type_traits>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

namespace gradus_call {

struct Reader {
  const char* at;
  const char* end;

  [[noreturn]] void fail(const char* expected) {
    std::fprintf(stderr, "arguments do not fit the function: expected %s at '%.20s'\n", expected,
                 at);
    std::exit(3);
  }
  char peek() {
    while (at < end && (*at == ' ' || *at == '\n' || *at == '\t' || *at == '\r')) ++at;
    return at < end ? *at : '\0';
  }
  void expect(char c, const char* what) {
    if (peek() != c) fail(what);
    ++at;
  }
  bool take(char c) {
    if (peek() != c) return false;
    ++at;
    return true;
  }
  bool take_word(std::string_view word) {
    peek();
    if (std::string_view(at, static_cast<size_t>(end - at)).substr(0, word.size()) != word) {
      return false;
    }
    at += word.size();
    return true;
  }
};

inline void append_utf8(std::string& text, uint32_t code) {
  if (code < 0x80) {
    text += static_cast<char>(code);
  } else if (code < 0x800) {
    text += static_cast<char>(0xC0 | code >> 6);
    text += static_cast<char>(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    text += static_cast<char>(0xE0 | code >> 12);
    text += static_cast<char>(0x80 | (code >> 6 & 0x3F));
    text += static_cast<char>(0x80 | (code & 0x3F));
  } else {
    text += static_cast<char>(0xF0 | code >> 18);
    text += static_cast<char>(0x80 | (code >> 12 & 0x3F));
    text += static_cast<char>(0x80 | (code >> 6 & 0x3F));
    text += static_cast<char>(0x80 | (code & 0x3F));
  }
}

inline uint32_t read_hex(Reader& in) {
  uint32_t code = 0;
  if (in.end - in.at < 4) in.fail("four hex digits");
  const auto result = std::from_chars(in.at, in.at + 4, code, 16);
  if (result.ptr != in.at + 4) in.fail("four hex digits");
  in.at += 4;
  return code;
}

inline void read(Reader& in, std::string& text) {
  in.expect('"', "a string");
  text.clear();
  while (in.at < in.end && *in.at != '"') {
    const char c = *in.at++;
    if (c != '\\') {
      text += c;
      continue;
    }
    const char escape = in.at < in.end ? *in.at++ : '\0';
    switch (escape) {
      case 'n':
        text += '\n';
        break;
      case 't':
        text += '\t';
        break;
      case 'r':
        text += '\r';
        break;
      case 'b':
        text += '\b';
        break;
      case 'f':
        text += '\f';
        break;
      case 'u': {
        uint32_t code = read_hex(in);
        if (code >= 0xD800 && code < 0xDC00 && in.end - in.at > 6 && in.at[0] == '\\') {
          in.at += 2;
          code = 0x10000 + ((code - 0xD800) << 10) + (read_hex(in) - 0xDC00);
        }
        append_utf8(text, code);
        break;
      }
      default:
        text += escape;
    }
  }
  in.expect('"', "the end of a string");
}

inline void read(Reader& in, char& value) {
  std::string text;
  read(in, text);
  if (text.size() != 1) in.fail("a string of one character");
  value = text[0];
}

inline void read(Reader& in, bool& value) {
  if (in.take_word("true")) {
    value = true;
  } else if (in.take_word("false")) {
    value = false;
  } else {
    in.fail("true or false");
  }
}

template <class T>
requires std::is_arithmetic_v<T>
void read(Reader& in, T& value) {
  in.peek();
  const auto result = std::from_chars(in.at, in.end, value);
  if (result.ec != std::errc()) in.fail(std::is_integral_v<T> ? "a whole number" : "a number");
  in.at = result.ptr;
  if constexpr (std::is_integral_v<T>) {
    if (in.at < in.end && (*in.at == '.' || *in.at == 'e')) in.fail("a whole number");
  }
}

// All below before any is defined, so that they may nest.
template <class T, class A>
void read(Reader& in, std::vector<T, A>& values);
template <class T, size_t N>
void read(Reader& in, std::array<T, N>& values);
template <class T>
void read(Reader& in, std::set<T>& values);
template <class T>
void read(Reader& in, std::unordered_set<T>& values);
template <class T>
void read(Reader& in, std::map<std::string, T>& values);
template <class T>
void read(Reader& in, std::unordered_map<std::string, T>& values);
template <class T>
void read(Reader& in, std::optional<T>& value);
template <class A, class B>
void read(Reader& in, std::pair<A, B>& value);
template <class... T>
void read(Reader& in, std::tuple<T...>& value);

template <class Add>
void read_list(Reader& in, const Add& add) {
  in.expect('[', "a list");
  if (in.take(']')) return;
  do add();
  while (in.take(','));
  in.expect(']', "the end of a list");
}

template <class T, class A>
void read(Reader& in, std::vector<T, A>& values) {
  read_list(in, [&] {
    T value{};
    read(in, value);
    values.push_back(std::move(value));
  });
}
template <class T, size_t N>
void read(Reader& in, std::array<T, N>& values) {
  size_t i = 0;
  read_list(in, [&] {
    if (i == N) in.fail("a shorter list");
    read(in, values[i++]);
  });
  if (i != N) in.fail("a longer list");
}
template <class T>
void read(Reader& in, std::set<T>& values) {
  read_list(in, [&] {
    T value{};
    read(in, value);
    values.insert(std::move(value));
  });
}
template <class T>
void read(Reader& in, std::unordered_set<T>& values) {
  read_list(in, [&] {
    T value{};
    read(in, value);
    values.insert(std::move(value));
  });
}
template <class Map>
void read_map(Reader& in, Map& values) {
  in.expect('{', "an object");
  if (in.take('}')) return;
  do {
    std::string key;
    read(in, key);
    in.expect(':', "':'");
    read(in, values[key]);
  } while (in.take(','));
  in.expect('}', "the end of an object");
}
template <class T>
void read(Reader& in, std::map<std::string, T>& values) {
  read_map(in, values);
}
template <class T>
void read(Reader& in, std::unordered_map<std::string, T>& values) {
  read_map(in, values);
}
template <class T>
void read(Reader& in, std::optional<T>& value) {
  if (in.take_word("null")) return;
  value.emplace();
  read(in, *value);
}
// The elements of a tuple, a pair or a list of arguments.
template <class Tuple>
void read_elements(Reader& in, Tuple& value) {
  in.expect('[', "a list");
  bool is_first = true;
  std::apply(
      [&](auto&... element) {
        const auto read_one = [&](auto& one) {
          if (!is_first) in.expect(',', "one more element");
          is_first = false;
          read(in, one);
        };
        (read_one(element), ...);
      },
      value);
  in.expect(']', "the end of a list");
}
template <class A, class B>
void read(Reader& in, std::pair<A, B>& value) {
  auto both = std::tie(value.first, value.second);
  read_elements(in, both);
}
template <class... T>
void read(Reader& in, std::tuple<T...>& value) {
  read_elements(in, value);
}

inline void write(std::string& out, const std::string& text) {
  out += '"';
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\u%04x", c);
      out += escape;
    } else {
      out += c;
    }
  }
  out += '"';
}
inline void write(std::string& out, const char* text) { write(out, std::string(text)); }
inline void write(std::string& out, char value) { write(out, std::string(1, value)); }
inline void write(std::string& out, bool value) { out += value ? "true" : "false"; }
template <class T>
requires std::is_arithmetic_v<T>
void write(std::string& out, T value) {
  if constexpr (std::is_floating_point_v<T>) {
    if (!std::isfinite(value)) {
      out += "null";
      return;
    }
  }
  char digits[64];
  const auto result = std::to_chars(digits, digits + sizeof digits, value);
  out.append(digits, result.ptr);
}

template <class T, class A>
void write(std::string& out, const std::vector<T, A>& values);
template <class T, size_t N>
void write(std::string& out, const std::array<T, N>& values);
template <class T>
void write(std::string& out, const std::set<T>& values);
template <class T>
void write(std::string& out, const std::unordered_set<T>& values);
template <class T>
void write(std::string& out, const std::map<std::string, T>& values);
template <class T>
void write(std::string& out, const std::unordered_map<std::string, T>& values);
template <class T>
void write(std::string& out, const std::optional<T>& value);
template <class A, class B>
void write(std::string& out, const std::pair<A, B>& value);
template <class... T>
void write(std::string& out, const std::tuple<T...>& value);

template <class Range>
void write_list(std::string& out, const Range& values) {
  out += '[';
  bool is_first = true;
  for (const auto& value : values) {
    if (!is_first) out += ',';
    is_first = false;
    write(out, static_cast<const typename Range::value_type&>(value));
  }
  out += ']';
}
template <class Map>
void write_map(std::string& out, const Map& values) {
  out += '{';
  bool is_first = true;
  for (const auto& [key, value] : values) {
    if (!is_first) out += ',';
    is_first = false;
    write(out, key);
    out += ':';
    write(out, value);
  }
  out += '}';
}
template <class T, class A>
void write(std::string& out, const std::vector<T, A>& values) {
  write_list(out, values);
}
template <class T, size_t N>
void write(std::string& out, const std::array<T, N>& values) {
  write_list(out, values);
}
template <class T>
void write(std::string& out, const std::set<T>& values) {
  write_list(out, values);
}
template <class T>
void write(std::string& out, const std::unordered_set<T>& values) {
  write_list(out, values);
}
template <class T>
void write(std::string& out, const std::map<std::string, T>& values) {
  write_map(out, values);
}
template <class T>
void write(std::string& out, const std::unordered_map<std::string, T>& values) {
  write_map(out, values);
}
template <class T>
void write(std::string& out, const std::optional<T>& value) {
  if (value.has_value()) {
    write(out, *value);
  } else {
    out += "null";
  }
}
template <class Tuple>
void write_elements(std::string& out, const Tuple& value) {
  out += '[';
  bool is_first = true;
  std::apply(
      [&](const auto&... element) {
        const auto write_one = [&](const auto& one) {
          if (!is_first) out += ',';
          is_first = false;
          write(out, one);
        };
        (write_one(element), ...);
      },
      value);
  out += ']';
}
template <class A, class B>
void write(std::string& out, const std::pair<A, B>& value) {
  write_elements(out, std::tie(value.first, value.second));
}
template <class... T>
void write(std::string& out, const std::tuple<T...>& value) {
  write_elements(out, value);
}

inline std::string read_all() {
  std::string text;
  char buffer[65536];
  for (ssize_t size; (size = ::read(3, buffer, sizeof buffer)) > 0;) {
    text.append(buffer, static_cast<size_t>(size));
  }
  return text;
}

template <class R, class Function, class... A>
int run_as(const Function& function, std::type_identity<std::tuple<A...>>) {
  const std::string text = read_all();
  Reader in{text.data(), text.data() + text.size()};
  std::tuple<std::decay_t<A>...> arguments;
  read_elements(in, arguments);
  std::string out;
  const auto call = [&](auto&... argument) -> R { return function(static_cast<A&&>(argument)...); };
  if constexpr (std::is_void_v<R>) {
    std::apply(call, arguments);
    if constexpr (sizeof...(A) > 0) write(out, std::get<0>(arguments));
  } else {
    write(out, static_cast<const std::decay_t<R>&>(std::apply(call, arguments)));
  }
  const char* at = out.data();
  for (size_t left = out.size(); left > 0;) {
    const ssize_t written = ::write(4, at, left);
    if (written <= 0) return 3;
    at += written;
    left -= static_cast<size_t>(written);
  }
  return 0;
}

template <class R, class... A>
int run(R (*function)(A...)) {
  return run_as<R>(function, std::type_identity<std::tuple<A...>>());
}
template <class R, class C, class... A>
int run(R (C::*function)(A...)) {
  C object{};
  return run_as<R>(
      [&](A... argument) -> R { return (object.*function)(std::forward<A>(argument)...); },
      std::type_identity<std::tuple<A...>>());
}
template <class R, class C, class... A>
int run(R (C::*function)(A...) const) {
  C object{};
  return run_as<R>(
      [&](A... argument) -> R { return (object.*function)(std::forward<A>(argument)...); },
      std::type_identity<std::tuple<A...>>());
}

}  // namespace gradus_call
