// SPDX-License-Identifier: Apache-2.0
#include "records/internal/event_file.h"

#include <unistd.h>

#include <array>
#include <cstring>
#include <filesystem>

namespace gradus::records::internal {
namespace {

// Field numbers of tensorflow/core/util/event.proto and framework/summary.proto.
constexpr uint32_t kEventWallTime = 1, kEventStep = 2, kEventFileVersion = 3, kEventSummary = 5,
                   kEventSessionLog = 7;
constexpr uint32_t kSummaryValue = 1, kValueTag = 1, kValueSimple = 2, kSessionLogStatus = 1;
constexpr uint64_t kSessionStart = 1;
constexpr uint32_t kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5;  // wire types

void append_varint(std::string& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
  out += static_cast<char>(value);
}

void append_key(std::string& out, uint32_t field, uint32_t wire_type) {
  append_varint(out, field << 3 | wire_type);
}

template <class Value>
void append_fixed(std::string& out, Value value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

void append_bytes(std::string& out, uint32_t field, std::string_view bytes) {
  append_key(out, field, kBytes);
  append_varint(out, bytes.size());
  out += bytes;
}

std::string begin_event(double time, int64_t step) {
  std::string event;
  append_key(event, kEventWallTime, kFixed64);
  append_fixed(event, time);
  append_key(event, kEventStep, kVarint);
  append_varint(event, static_cast<uint64_t>(step));
  return event;
}

uint32_t masked_crc32c(std::string_view bytes) {
  const uint32_t crc = crc32c(bytes);
  return (crc >> 15 | crc << 17) + 0xA282EAD8u;
}

}  // namespace

uint32_t crc32c(std::string_view bytes) {
  static const std::array<uint32_t, 256> table = [] {
    std::array<uint32_t, 256> entries{};
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t crc = i;
      for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0x82F63B78u : 0);
      entries[i] = crc;
    }
    return entries;
  }();
  uint32_t crc = ~0u;
  for (const char c : bytes) crc = crc >> 8 ^ table[(crc ^ static_cast<unsigned char>(c)) & 0xFF];
  return ~crc;
}

Result<EventFile> EventFile::create(const std::string& folder, double time) {
  char host[256] = "";
  ::gethostname(host, sizeof(host) - 1);
  const std::string stem = fmt::format("{}/events.out.tfevents.{:010}.{}.{}", folder,
                                       static_cast<int64_t>(time), host, ::getpid());
  // A run resumed by the same process within a second must not write into its earlier file.
  std::string path = stem;
  for (int i = 1; std::filesystem::exists(path); ++i) path = fmt::format("{}.{}", stem, i);
  Result<OutputFile> file = OutputFile::open(path, OutputFile::Mode::kAppend);
  GRADUS_RETURN_IF_ERROR(file.status());
  EventFile events(std::move(*file));
  std::string event = begin_event(time, 0);
  append_bytes(event, kEventFileVersion, "brain.Event:2");
  GRADUS_RETURN_IF_ERROR(events.write_record(event));
  return events;
}

Status EventFile::write_record(const std::string& payload) {
  std::string frame;
  append_fixed(frame, static_cast<uint64_t>(payload.size()));
  append_fixed(frame, masked_crc32c(frame));
  frame += payload;
  append_fixed(frame, masked_crc32c(payload));
  return file_.write(frame);
}

Status EventFile::write_restart(double time, int64_t step) {
  std::string session;
  append_key(session, kSessionLogStatus, kVarint);
  append_varint(session, kSessionStart);
  std::string event = begin_event(time, step);
  append_bytes(event, kEventSessionLog, session);
  return write_record(event);
}

Status EventFile::write_scalars(double time, int64_t step, const MetricRow& metrics) {
  std::string summary, value;
  for (const auto& [name, number] : metrics) {
    value.clear();
    append_bytes(value, kValueTag, name);
    append_key(value, kValueSimple, kFixed32);
    append_fixed(value, static_cast<float>(number));
    append_bytes(summary, kSummaryValue, value);
  }
  std::string event = begin_event(time, step);
  append_bytes(event, kEventSummary, summary);
  return write_record(event);
}

}  // namespace gradus::records::internal
