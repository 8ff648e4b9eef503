// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "common/atomic_file.h"
#include "common/mapped_file.h"
#include "common/status.h"

// safetensors files: an 8-byte little-endian header length, a JSON header {name: {dtype, shape,
// data_offsets}}, and the bytes of the tensors, without holes. A file is foreign data: everything
// is checked when it is opened, and each message names the file, what was seen and what was
// expected.
namespace gradus::model {

// One entry of a header. `shape` is row-major; a scalar has an empty shape.
struct SafetensorsTensor {
  std::string name;
  std::string dtype;  // "F32", "BF16", "F16", "I64", ... as in the file
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;  // in the mapped file: valid while its reader lives
  int64_t num_values() const;
};

// The tensors of one file, of a set of shards, or of whichever of the two a directory holds.
// Move-only; const calls are thread-safe. The files must not change while a reader is open.
class SafetensorsReader {
 public:
  // `path` is a file, an index (*.index.json), or a directory with model.safetensors or
  // model.safetensors.index.json. NotFound without them; DataLoss for what is broken in a file.
  static Result<SafetensorsReader> open(const std::string& path);

  SafetensorsReader(SafetensorsReader&&) = default;
  SafetensorsReader& operator=(SafetensorsReader&&) = default;

  // In the order of their bytes in the file, shard by shard.
  const std::vector<SafetensorsTensor>& tensors() const { return tensors_; }
  // Null when there is no such tensor.
  const SafetensorsTensor* find(std::string_view name) const;
  // "__metadata__" of the first file, in the file's order.
  const std::vector<std::pair<std::string, std::string>>& metadata() const { return metadata_; }
  // The file or index that was opened, for messages.
  const std::string& path() const { return path_; }

 private:
  SafetensorsReader() = default;
  Status add_file(const std::string& path);
  Status add_shards(const std::string& index_path);

  std::string path_;
  std::vector<MappedFile> files_;
  std::vector<SafetensorsTensor> tensors_;
  std::unordered_map<std::string, size_t> index_;
  std::vector<std::pair<std::string, std::string>> metadata_;
};

// Writes the values of `tensor` (F32, F16 or BF16) as float, exactly, to `out` [num_values()]. Uses
// the thread pool. InvalidArgument for another dtype.
Status convert_to_f32(const SafetensorsTensor& tensor, float* out);
// Values [first, first + count) of it, in the calling thread.
Status convert_to_f32(const SafetensorsTensor& tensor, int64_t first, int64_t count, float* out);

// What a writer is told of a tensor before its bytes.
struct SafetensorsSpec {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;
};

// Writes one file, tensor by tensor, so that no more than one needs to be in memory. The file
// appears under its name, synced to disk, in finish() and not before; without it nothing is left.
// Tensors stand in the file in the order of `specs`: with those of a reader and its metadata the
// file is reproduced byte for byte.
class SafetensorsWriter {
 public:
  static Result<SafetensorsWriter> create(
      const std::string& path, std::vector<SafetensorsSpec> specs,
      const std::vector<std::pair<std::string, std::string>>& metadata = {{"format", "pt"}});

  // The bytes of the next tensor of `specs`; their number must fit it. Unavailable when the disk is
  // full.
  Status append(std::span<const std::byte> bytes);
  // The same from floats [num_values] in the spec's dtype, F32 or BF16 (round to nearest, ties to
  // even).
  Status append_f32(std::span<const float> values);
  // Unavailable when the disk is full. A bug (throws) when tensors are missing.
  Status finish();

 private:
  SafetensorsWriter(AtomicFile file, std::vector<SafetensorsSpec> specs)
      : file_(std::move(file)), specs_(std::move(specs)) {}

  AtomicFile file_;
  std::vector<SafetensorsSpec> specs_;
  size_t next_ = 0;
};

}  // namespace gradus::model
