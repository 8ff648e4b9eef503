// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "common/status.h"
#include "records/internal/durable_file.h"
#include "records/metrics_log.h"

// TensorBoard event files: TFRecord frames (u64 length, masked CRC-32C of it, payload, masked
// CRC-32C of the payload; little-endian) around Event messages in Protobuf wire format. Four
// messages with seven fields are needed of it, so they are written by hand.
namespace gradus::records::internal {

// CRC-32C (Castagnoli, reflected polynomial 0x82F63B78).
uint32_t crc32c(std::string_view bytes);

class EventFile {
 public:
  // Makes FOLDER/events.out.tfevents.<seconds>.<host>.<process> and writes the version record.
  static Result<EventFile> create(const std::string& folder, double time);

  // Tells readers to forget what other files say of `step` and later.
  Status write_restart(double time, int64_t step);
  Status write_scalars(double time, int64_t step, const MetricRow& metrics);
  Status sync() { return file_.sync(); }

 private:
  explicit EventFile(OutputFile file) : file_(std::move(file)) {}
  Status write_record(const std::string& payload);

  OutputFile file_;
};

}  // namespace gradus::records::internal
