// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"

namespace gradus::wire {
class CheckpointManifest;
}

// What a checkpoint holds: its files with their sizes and the hashes of their tensors. Two forms of
// one struct: Protobuf (data/wire/flow.proto) is what a rank says to rank 0 of its share, JSON is
// manifest.json, for people and for later versions (docs/decisions/0014-manifest-in-two-forms.md).
namespace gradus::records {

// A part of a file that a message can name.
struct FileRegion {
  std::string name;  // empty: what lies between the named ones, or a file without parts
  int64_t offset = 0;
  int64_t num_bytes = 0;
  uint64_t hash = 0;
};

struct FileRecord {
  std::string name;  // relative to the checkpoint
  int64_t num_bytes = 0;
  std::vector<FileRegion> regions;  // that cover it
};

struct CheckpointManifest {
  int64_t step = 0;
  std::string metric_name;       // of run.save_best_metric; may be empty
  std::optional<double> metric;  // its value, if it was taken
  std::vector<FileRecord> files;
};

void to_message(const CheckpointManifest& manifest, wire::CheckpointManifest& message);
CheckpointManifest from_message(const wire::CheckpointManifest& message);

std::string encode(const CheckpointManifest& manifest);
// DataLoss if the bytes are no such message.
Result<CheckpointManifest> decode_manifest(std::string_view bytes);

// The text of manifest.json, version 2. A value that is not finite is read back as none.
std::string to_json(const CheckpointManifest& manifest);
// DataLoss if it is none, or of another version.
Result<CheckpointManifest> manifest_from_json(std::string_view text);

}  // namespace gradus::records
