// SPDX-License-Identifier: Apache-2.0
#include "federated/compression.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "common/check.h"

namespace gradus::federated {
namespace {

constexpr size_t kHead = 16;
constexpr int64_t kBlock = 64;
// A scale 2^e is stored as e + kExponentBias; 0 stands for a block of zeros.
constexpr int kExponentBias = 134;

template <class T>
void append(std::vector<uint8_t>& bytes, T value) {
  const auto* begin = reinterpret_cast<const uint8_t*>(&value);
  bytes.insert(bytes.end(), begin, begin + sizeof(value));
}

template <class T>
T read(std::span<const uint8_t> bytes, size_t at) {
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof(value));
  return value;
}

void append_block(std::span<const float> block, std::vector<uint8_t>& bytes) {
  float largest = 0;
  for (const float value : block) largest = std::max(largest, std::fabs(value));
  // The least e >= -133 with 127 * 2^e >= largest, but 121 at most: more would decode to infinity.
  int exponent = largest > 0 ? std::max(std::ilogb(largest) - 6, 1 - kExponentBias) : 0;
  if (largest > 0 && std::ldexp(127.0, exponent) < largest) {
    exponent = std::min(exponent + 1, 121);
  }
  bytes.push_back(largest > 0 ? static_cast<uint8_t>(exponent + kExponentBias) : uint8_t{0});
  for (const float value : block) {
    const double number = std::nearbyint(std::ldexp(static_cast<double>(value), -exponent));
    bytes.push_back(static_cast<uint8_t>(static_cast<int8_t>(std::clamp(number, -127.0, 127.0))));
  }
}

void append_largest(std::span<const float> values, double fraction, std::vector<uint8_t>& bytes) {
  const auto count = std::clamp<size_t>(
      static_cast<size_t>(std::floor(fraction * static_cast<double>(values.size()))), 1,
      values.size());
  std::vector<uint32_t> places(values.size());
  std::iota(places.begin(), places.end(), 0u);
  // Of equals the earlier, so that the choice is one.
  const auto comes_first = [values](uint32_t a, uint32_t b) {
    const float x = std::fabs(values[a]), y = std::fabs(values[b]);
    return x > y || (x == y && a < b);
  };
  std::nth_element(places.begin(), places.begin() + static_cast<std::ptrdiff_t>(count) - 1,
                   places.end(), comes_first);
  places.resize(count);
  std::sort(places.begin(), places.end());
  for (const uint32_t place : places) append(bytes, place);
  for (const uint32_t place : places) append(bytes, values[place]);
}

Status read_blocks(std::span<const uint8_t> payload, std::span<float> values) {
  const auto count = static_cast<int64_t>(values.size());
  const auto wanted = static_cast<size_t>(count + (count + kBlock - 1) / kBlock);
  if (payload.size() != wanted) {
    return data_loss("compressed update: {} bytes of int8 for {} values; there must be {}",
                     payload.size(), count, wanted);
  }
  size_t at = 0;
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int code = payload[at++];
    for (int64_t i = begin; i < std::min(begin + kBlock, count); ++i) {
      const auto number = static_cast<double>(static_cast<int8_t>(payload[at++]));
      if (number == -128 || (code == 0 && number != 0)) {
        return data_loss("compressed update: value {} has a code that none has", i);
      }
      values[static_cast<size_t>(i)] =
          code == 0 ? 0.0f : static_cast<float>(std::ldexp(number, code - kExponentBias));
      if (!std::isfinite(values[static_cast<size_t>(i)])) {
        return data_loss("compressed update: value {} is not finite", i);
      }
    }
  }
  return {};
}

Status read_largest(std::span<const uint8_t> payload, std::span<float> values) {
  const size_t count = payload.size() / 8;
  if (payload.size() % 8 != 0 || count < 1 || count > values.size()) {
    return data_loss(
        "compressed update: {} bytes of top-k for {} values; there must be 8 for each of "
        "1 to {}",
        payload.size(), values.size(), values.size());
  }
  int64_t last = -1;
  for (size_t k = 0; k < count; ++k) {
    const auto place = read<uint32_t>(payload, 4 * k);
    const auto value = read<float>(payload, 4 * (count + k));
    if (place >= values.size() || static_cast<int64_t>(place) <= last) {
      return data_loss("compressed update: place {} after {}; places must increase and be below {}",
                       place, last, values.size());
    }
    if (!std::isfinite(value)) {
      return data_loss("compressed update: value {} is not finite", place);
    }
    values[place] = value;
    last = place;
  }
  return {};
}

}  // namespace

Result<std::vector<uint8_t>> compress(const CompressionConfig& config,
                                      std::span<const float> values_P) {
  GRADUS_CHECK(!values_P.empty() && values_P.size() <= UINT32_MAX,
               "compress takes between 1 and 2^32 - 1 values");
  GRADUS_CHECK(config.fraction > 0 && config.fraction <= 1, "top-k keeps a share in (0, 1]");
  for (size_t i = 0; i < values_P.size(); ++i) {
    if (!std::isfinite(values_P[i])) {
      return invalid_argument("update: value {} is {}; all must be finite", i, values_P[i]);
    }
  }
  std::vector<uint8_t> bytes;
  append(bytes, static_cast<uint64_t>(config.kind));
  append(bytes, static_cast<uint64_t>(values_P.size()));
  if (config.kind == Compression::kInt8) {
    for (size_t begin = 0; begin < values_P.size(); begin += kBlock) {
      append_block(values_P.subspan(begin, std::min<size_t>(kBlock, values_P.size() - begin)),
                   bytes);
    }
  } else {
    append_largest(values_P, config.fraction, bytes);
  }
  return bytes;
}

Result<std::vector<float>> decompress(std::span<const uint8_t> bytes, int64_t num_values) {
  if (bytes.size() < kHead) {
    return data_loss("compressed update: {} bytes; the head alone has {}", bytes.size(), kHead);
  }
  const auto kind = read<uint64_t>(bytes, 0), count = read<uint64_t>(bytes, 8);
  if (count != static_cast<uint64_t>(num_values)) {
    return data_loss("compressed update: of {} values; the model has {}", count, num_values);
  }
  std::vector<float> values_P(static_cast<size_t>(num_values));
  const std::span<const uint8_t> payload = bytes.subspan(kHead);
  if (kind == static_cast<uint64_t>(Compression::kInt8)) {
    GRADUS_RETURN_IF_ERROR(read_blocks(payload, values_P));
  } else if (kind == static_cast<uint64_t>(Compression::kTopK)) {
    GRADUS_RETURN_IF_ERROR(read_largest(payload, values_P));
  } else {
    return data_loss("compressed update: kind {}; it must be 1 (int8) or 2 (top-k)", kind);
  }
  return values_P;
}

Result<std::vector<uint8_t>> ErrorFeedback::compress(const CompressionConfig& config,
                                                     std::span<const float> update_P) {
  GRADUS_CHECK(update_P.size() == remainder_P_.size(), "error feedback of another model");
  std::vector<float> whole_P(update_P.size());
  for (size_t i = 0; i < whole_P.size(); ++i) whole_P[i] = update_P[i] + remainder_P_[i];
  Result<std::vector<uint8_t>> bytes = federated::compress(config, whole_P);
  if (!bytes.ok()) return bytes;
  const Result<std::vector<float>> decoded =
      decompress(*bytes, static_cast<int64_t>(whole_P.size()));
  GRADUS_CHECK(decoded.ok(), decoded.status().message());
  for (size_t i = 0; i < whole_P.size(); ++i) remainder_P_[i] = whole_P[i] - (*decoded)[i];
  return bytes;
}

}  // namespace gradus::federated
