// SPDX-License-Identifier: Apache-2.0
#include "model/internal/dequantize.h"

#include <bit>
#include <cstring>

#include "model/internal/float_formats.h"

namespace gradus::model {
namespace {

// Super-blocks of the K formats.
constexpr int kSuper = 256;

float half_at(const uint8_t* in) {
  float value;
  f16_to_f32(reinterpret_cast<const std::byte*>(in), 1, &value);
  return value;
}

uint32_t u32_at(const uint8_t* in) {
  uint32_t value;
  std::memcpy(&value, in, sizeof(value));
  return value;
}

// d f16 | 16 bytes: low nibbles are values 0..15, high ones 16..31.
void q4_0(const uint8_t* in, float* out) {
  const float d = half_at(in);
  for (int i = 0; i < 16; ++i) {
    out[i] = d * static_cast<float>((in[2 + i] & 15) - 8);
    out[i + 16] = d * static_cast<float>((in[2 + i] >> 4) - 8);
  }
}

// d, m f16 | 16 bytes of nibbles.
void q4_1(const uint8_t* in, float* out) {
  const float d = half_at(in);
  const float m = half_at(in + 2);
  for (int i = 0; i < 16; ++i) {
    out[i] = d * static_cast<float>(in[4 + i] & 15) + m;
    out[i + 16] = d * static_cast<float>(in[4 + i] >> 4) + m;
  }
}

// d f16 | fifth bits, one of each value | 16 bytes of nibbles.
void q5_0(const uint8_t* in, float* out) {
  const float d = half_at(in);
  const uint32_t high = u32_at(in + 2);
  for (int i = 0; i < 16; ++i) {
    const int first = (in[6 + i] & 15) | static_cast<int>((high >> i) & 1) << 4;
    const int second = (in[6 + i] >> 4) | static_cast<int>((high >> (i + 16)) & 1) << 4;
    out[i] = d * static_cast<float>(first - 16);
    out[i + 16] = d * static_cast<float>(second - 16);
  }
}

// d, m f16 | fifth bits | 16 bytes of nibbles.
void q5_1(const uint8_t* in, float* out) {
  const float d = half_at(in);
  const float m = half_at(in + 2);
  const uint32_t high = u32_at(in + 4);
  for (int i = 0; i < 16; ++i) {
    const int first = (in[8 + i] & 15) | static_cast<int>((high >> i) & 1) << 4;
    const int second = (in[8 + i] >> 4) | static_cast<int>((high >> (i + 16)) & 1) << 4;
    out[i] = d * static_cast<float>(first) + m;
    out[i + 16] = d * static_cast<float>(second) + m;
  }
}

// d f16 | 32 signed bytes.
void q8_0(const uint8_t* in, float* out) {
  const float d = half_at(in);
  for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(static_cast<int8_t>(in[2 + i]));
}

// The 6-bit scale and minimum of sub-block j in [0, 8) from 12 bytes: j < 4 in the low six bits of
// bytes j and j + 4, the others in the nibbles of byte j + 4 and the top two bits of bytes j - 4
// and j.
void scale_and_min(const uint8_t* packed, int j, int& scale, int& minimum) {
  if (j < 4) {
    scale = packed[j] & 63;
    minimum = packed[j + 4] & 63;
  } else {
    scale = (packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4;
    minimum = (packed[j + 4] >> 4) | (packed[j] >> 6) << 4;
  }
}

// d, dmin f16 | 12 bytes of scales and minima | 4 x 32 bytes: low nibbles are sub-block 2g, high 2g
// + 1.
void q4_k(const uint8_t* in, float* out) {
  const float d = half_at(in);
  const float dmin = half_at(in + 2);
  for (int j = 0; j < 8; ++j) {
    int scale, minimum;
    scale_and_min(in + 4, j, scale, minimum);
    const float step = d * static_cast<float>(scale);
    const float offset = dmin * static_cast<float>(minimum);
    const uint8_t* nibbles = in + 16 + j / 2 * 32;
    for (int i = 0; i < 32; ++i) {
      out[32 * j + i] = step * static_cast<float>((nibbles[i] >> (j % 2 * 4)) & 15) - offset;
    }
  }
}

// As q4_k, with 32 bytes between, whose bit j is the fifth bit in sub-block j.
void q5_k(const uint8_t* in, float* out) {
  const float d = half_at(in);
  const float dmin = half_at(in + 2);
  const uint8_t* high = in + 16;
  for (int j = 0; j < 8; ++j) {
    int scale, minimum;
    scale_and_min(in + 4, j, scale, minimum);
    const float step = d * static_cast<float>(scale);
    const float offset = dmin * static_cast<float>(minimum);
    const uint8_t* nibbles = in + 48 + j / 2 * 32;
    for (int i = 0; i < 32; ++i) {
      const int q = ((nibbles[i] >> (j % 2 * 4)) & 15) | ((high[i] >> j) & 1) << 4;
      out[32 * j + i] = step * static_cast<float>(q) - offset;
    }
  }
}

// 128 bytes of nibbles | 64 bytes of pairs of top bits | 16 signed scales | d f16. Each half of 128
// values is four groups of 32: low nibbles of bytes 0..31 and 32..63, then their high ones; group g
// has bits 2g, 2g + 1.
void q6_k(const uint8_t* in, float* out) {
  const float d = half_at(in + 208);
  const auto* scales = reinterpret_cast<const int8_t*>(in + 192);
  for (int group = 0; group < 8; ++group) {
    const int half = group / 4;
    const int part = group % 4;
    const uint8_t* nibbles = in + 64 * half + 32 * (part % 2);
    const uint8_t* high = in + 128 + 32 * half;
    for (int i = 0; i < 32; ++i) {
      const int q = ((nibbles[i] >> (part / 2 * 4)) & 15) | ((high[i] >> (2 * part)) & 3) << 4;
      const float step = d * static_cast<float>(scales[2 * group + i / 16]);
      out[32 * group + i] = step * static_cast<float>(q - 32);
    }
  }
}

template <class Block>
void for_blocks(GgmlBlock size, const std::byte* in, int64_t num_blocks, float* out, Block block) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(in);
  for (int64_t i = 0; i < num_blocks; ++i) block(bytes + i * size.bytes, out + i * size.values);
}

}  // namespace

GgmlBlock ggml_block(GgmlType type) {
  switch (type) {
    case GgmlType::kF32:
      return {1, 4};
    case GgmlType::kF16:
    case GgmlType::kBF16:
      return {1, 2};
    case GgmlType::kQ4_0:
      return {32, 18};
    case GgmlType::kQ4_1:
      return {32, 20};
    case GgmlType::kQ5_0:
      return {32, 22};
    case GgmlType::kQ5_1:
      return {32, 24};
    case GgmlType::kQ8_0:
      return {32, 34};
    case GgmlType::kQ4_K:
      return {kSuper, 144};
    case GgmlType::kQ5_K:
      return {kSuper, 176};
    case GgmlType::kQ6_K:
      return {kSuper, 210};
  }
  GRADUS_CHECK(false, "ggml type out of range");
}

void dequantize(GgmlType type, const std::byte* in, int64_t num_blocks, float* out) {
  const GgmlBlock size = ggml_block(type);
  switch (type) {
    case GgmlType::kF32:
      std::memcpy(out, in, static_cast<size_t>(num_blocks) * sizeof(float));
      return;
    case GgmlType::kF16:
      return f16_to_f32(in, num_blocks, out);
    case GgmlType::kBF16:
      return bf16_to_f32(in, num_blocks, out);
    case GgmlType::kQ4_0:
      return for_blocks(size, in, num_blocks, out, q4_0);
    case GgmlType::kQ4_1:
      return for_blocks(size, in, num_blocks, out, q4_1);
    case GgmlType::kQ5_0:
      return for_blocks(size, in, num_blocks, out, q5_0);
    case GgmlType::kQ5_1:
      return for_blocks(size, in, num_blocks, out, q5_1);
    case GgmlType::kQ8_0:
      return for_blocks(size, in, num_blocks, out, q8_0);
    case GgmlType::kQ4_K:
      return for_blocks(size, in, num_blocks, out, q4_k);
    case GgmlType::kQ5_K:
      return for_blocks(size, in, num_blocks, out, q5_k);
    case GgmlType::kQ6_K:
      return for_blocks(size, in, num_blocks, out, q6_k);
  }
  GRADUS_CHECK(false, "ggml type out of range");
}

}  // namespace gradus::model
