// SPDX-License-Identifier: Apache-2.0
#include "records/internal/file_regions.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "records/internal/durable_file.h"
#include "records/state_file.h"

namespace gradus::records::internal {
namespace {

// Of a safetensors file: 8 bytes of header length, the header, the tensors.
std::vector<FileRegion> tensors_of(const std::string& path, int64_t num_bytes) {
  std::ifstream file(path, std::ios::binary);
  uint64_t header_bytes = 0;
  file.read(reinterpret_cast<char*>(&header_bytes), sizeof(header_bytes));
  if (!file || header_bytes > static_cast<uint64_t>(num_bytes)) return {};
  std::string header(header_bytes, '\0');
  file.read(header.data(), static_cast<std::streamsize>(header_bytes));
  const auto json = nlohmann::json::parse(header, nullptr, /*allow_exceptions=*/false);
  if (!file || !json.is_object()) return {};
  const int64_t begin = static_cast<int64_t>(sizeof(header_bytes) + header_bytes);
  std::vector<FileRegion> regions;
  for (const auto& [name, entry] : json.items()) {
    if (name == "__metadata__") continue;
    const auto offsets = entry.value("data_offsets", std::vector<int64_t>());
    if (offsets.size() != 2) return {};
    regions.push_back({name, begin + offsets[0], offsets[1] - offsets[0]});
  }
  return regions;
}

std::vector<FileRegion> entries_of(const std::string& path) {
  const Result<StateReader> reader = StateReader::open(path);
  if (!reader.ok()) return {};
  std::vector<FileRegion> regions;
  for (const StateEntry& entry : reader->entries()) {
    regions.push_back(
        {entry.name, static_cast<int64_t>(entry.offset), static_cast<int64_t>(entry.num_bytes())});
  }
  return regions;
}

// Adds nameless regions for what the named ones leave; one region if they are not sound.
std::vector<FileRegion> cover(std::vector<FileRegion> named, int64_t num_bytes) {
  std::ranges::sort(named, {}, &FileRegion::offset);
  std::vector<FileRegion> regions;
  int64_t at = 0;
  for (FileRegion& region : named) {
    if (region.offset < at || region.num_bytes < 0 || region.offset > num_bytes - region.num_bytes)
      return {{"", 0, num_bytes}};
    if (region.offset > at) regions.push_back({"", at, region.offset - at});
    at = region.offset + region.num_bytes;
    regions.push_back(std::move(region));
  }
  if (at < num_bytes || regions.empty()) regions.push_back({"", at, num_bytes - at});
  return regions;
}

}  // namespace

Result<std::vector<FileRegion>> hash_regions(const std::string& path, int64_t num_bytes) {
  static_assert(std::endian::native == std::endian::little);
  std::vector<FileRegion> named;
  if (path.ends_with(".safetensors")) named = tensors_of(path, num_bytes);
  if (path.ends_with(".bin")) named = entries_of(path);
  std::vector<FileRegion> regions = cover(std::move(named), num_bytes);
  for (FileRegion& region : regions) {
    const Result<uint64_t> hash = hash_file(path, region.offset, region.num_bytes);
    GRADUS_RETURN_IF_ERROR(hash.status());
    region.hash = *hash;
  }
  return regions;
}

}  // namespace gradus::records::internal
