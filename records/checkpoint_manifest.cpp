// SPDX-License-Identifier: Apache-2.0
#include "records/checkpoint_manifest.h"

#include <exception>
#include <limits>
#include <nlohmann/json.hpp>

#include "data/wire/flow.pb.h"
#include "records/internal/json_text.h"

namespace gradus::records {
namespace {

constexpr int kManifestVersion = 2;

// [{"name", "bytes", "regions": [["name", offset, bytes, "hash"], ...]}, ...]
std::string files_text(const std::vector<FileRecord>& files) {
  std::string text = "[";
  const char* separator = "\n    ";
  for (const FileRecord& file : files) {
    text += separator;
    text += "{\"name\": ";
    internal::append_json_string(text, file.name);
    text += fmt::format(", \"bytes\": {}, \"regions\": [", file.num_bytes);
    const char* region_separator = "\n      [";
    for (const FileRegion& region : file.regions) {
      text += region_separator;
      internal::append_json_string(text, region.name);
      text += fmt::format(", {}, {}, \"{:016x}\"]", region.offset, region.num_bytes, region.hash);
      region_separator = ",\n      [";
    }
    text += "]}";
    separator = ",\n    ";
  }
  return text + "]";
}

// Throws what nlohmann and std::stoull throw.
std::vector<FileRecord> parse_files(const nlohmann::json& json) {
  std::vector<FileRecord> files;
  for (const auto& file : json) {
    FileRecord record{file.at("name").get<std::string>(), file.at("bytes").get<int64_t>(), {}};
    for (const auto& region : file.at("regions")) {
      record.regions.push_back({region.at(0).get<std::string>(), region.at(1).get<int64_t>(),
                                region.at(2).get<int64_t>(),
                                std::stoull(region.at(3).get<std::string>(), nullptr, 16)});
    }
    files.push_back(std::move(record));
  }
  return files;
}

}  // namespace

void to_message(const CheckpointManifest& manifest, wire::CheckpointManifest& message) {
  message.set_step(manifest.step);
  message.set_metric_name(manifest.metric_name);
  if (manifest.metric.has_value()) message.set_metric(*manifest.metric);
  for (const FileRecord& file : manifest.files) {
    wire::FileRecord& added = *message.add_files();
    added.set_name(file.name);
    added.set_num_bytes(file.num_bytes);
    for (const FileRegion& region : file.regions) {
      wire::FileRegion& part = *added.add_regions();
      part.set_name(region.name);
      part.set_offset(region.offset);
      part.set_num_bytes(region.num_bytes);
      part.set_hash(region.hash);
    }
  }
}

CheckpointManifest from_message(const wire::CheckpointManifest& message) {
  CheckpointManifest manifest;
  manifest.step = message.step();
  manifest.metric_name = message.metric_name();
  if (message.has_metric()) manifest.metric = message.metric();
  for (const wire::FileRecord& file : message.files()) {
    FileRecord& added = manifest.files.emplace_back(FileRecord{file.name(), file.num_bytes(), {}});
    for (const wire::FileRegion& region : file.regions()) {
      added.regions.push_back({region.name(), region.offset(), region.num_bytes(), region.hash()});
    }
  }
  return manifest;
}

std::string encode(const CheckpointManifest& manifest) {
  wire::CheckpointManifest message;
  to_message(manifest, message);
  return message.SerializeAsString();
}

Result<CheckpointManifest> decode_manifest(std::string_view bytes) {
  wire::CheckpointManifest message;
  const bool fits = bytes.size() <= static_cast<size_t>(std::numeric_limits<int>::max());
  if (!fits || !message.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    return data_loss("a message of {} bytes is no checkpoint manifest; it was cut or damaged",
                     bytes.size());
  }
  return from_message(message);
}

std::string to_json(const CheckpointManifest& manifest) {
  std::string text = fmt::format("{{\n  \"format\": \"gradus checkpoint\",\n  \"version\": {},\n",
                                 kManifestVersion);
  text += fmt::format("  \"step\": {},\n", manifest.step);
  if (manifest.metric.has_value()) {
    text += "  \"metric\": {\"name\": ";
    internal::append_json_string(text, manifest.metric_name);
    text += ", \"value\": ";
    internal::append_json_number(text, *manifest.metric);
    text += "},\n";
  }
  return text + "  \"files\": " + files_text(manifest.files) + "\n}\n";
}

Result<CheckpointManifest> manifest_from_json(std::string_view text) {
  CheckpointManifest manifest;
  try {
    const auto json = nlohmann::json::parse(text);
    const int version = json.at("version").get<int>();
    if (version != kManifestVersion) {
      return data_loss("manifest version {}; this build reads version {}", version,
                       kManifestVersion);
    }
    manifest.step = json.at("step").get<int64_t>();
    if (json.contains("metric")) {
      const auto& metric = json["metric"];
      manifest.metric_name = metric.value("name", std::string());
      if (metric.at("value").is_number()) manifest.metric = metric["value"].get<double>();
    }
    manifest.files = parse_files(json.at("files"));
  } catch (const std::exception& error) {
    return data_loss("not a manifest: {}", error.what());
  }
  return manifest;
}

}  // namespace gradus::records
