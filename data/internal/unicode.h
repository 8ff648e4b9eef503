// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

// Code points and their properties, for text that is known to be valid UTF-8. Thread-safe.
namespace gradus::data::internal {

enum Property : uint8_t {
  kLetter = 1,    // \p{L}
  kNumber = 2,    // \p{N}
  kMark = 4,      // \p{M}
  kSpace = 8,     // \s
  kNumeric = 16,  // what the Digits component splits off
  kWord = 32,     // \w as the single_word flag of added tokens sees it
};

// Property bits of all code points in two stages, 256 code points to a page, equal pages stored
// once.
class PropertyTable {
 public:
  static const PropertyTable& instance();
  uint8_t operator[](uint32_t code_point) const {
    return pages_[(static_cast<size_t>(page_of_[code_point >> 8]) << 8) | (code_point & 255)];
  }

 private:
  PropertyTable();
  uint8_t page_of_[0x1100];
  std::string storage_;
  const uint8_t* pages_;
};

struct CodePoint {
  uint32_t value;
  uint32_t length;  // bytes, 1 to 4
};

// The code point that starts at `text`, which must be valid UTF-8.
inline CodePoint decode_code_point(const char* text) {
  const auto byte = [text](int i) {
    return static_cast<uint32_t>(static_cast<unsigned char>(text[i]));
  };
  const uint32_t lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  if (lead < 0xE0) return {((lead & 31) << 6) | (byte(1) & 63), 2};
  if (lead < 0xF0) return {((lead & 15) << 12) | ((byte(1) & 63) << 6) | (byte(2) & 63), 3};
  return {((lead & 7) << 18) | ((byte(1) & 63) << 12) | ((byte(2) & 63) << 6) | (byte(3) & 63), 4};
}

// Start of the code point that ends before `position` > 0.
inline size_t previous_code_point(std::string_view text, size_t position) {
  do {
    --position;
  } while ((static_cast<unsigned char>(text[position]) & 0xC0) == 0x80);
  return position;
}

void append_code_point(std::string& out, uint32_t code_point);

// Appends the canonical composition (NFC) of `text`.
void append_nfc(std::string& out, std::string_view text);

// Appends the canonical decomposition (NFD) of `text`.
void append_nfd(std::string& out, std::string_view text);

// The character that byte-level BPE writes for a byte: itself where that prints, else U+0100 and
// up.
uint32_t byte_level_character(uint8_t byte);
// The reverse; -1 for a character that stands for no byte.
int byte_of_character(uint32_t code_point);
// Appends the characters that stand for the bytes of `text`.
void append_byte_level(std::string& out, std::string_view text);

// Appends bytes that need not be valid UTF-8 to text that is, in pieces: each maximal part that
// cannot begin a code point becomes U+FFFD, as in Rust's from_utf8_lossy and the WHATWG decoder. An
// incomplete code point at the end waits for the next piece.
class LossyUtf8 {
 public:
  void append(std::string& out, std::string_view bytes);
  void finish(std::string& out);  // what still waits becomes U+FFFD

 private:
  void push(std::string& out, unsigned char byte);
  char pending_[4];
  uint32_t num_pending_ = 0;
  uint32_t expected_ = 0;     // length of the pending code point
  unsigned char low_ = 0x80;  // range of the next continuation byte
  unsigned char high_ = 0xBF;
};

}  // namespace gradus::data::internal
