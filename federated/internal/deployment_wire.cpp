// SPDX-License-Identifier: Apache-2.0
#include "federated/internal/deployment_wire.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <map>

#include "common/rng.h"
#include "federated/compression.h"

namespace gradus::federated::internal {
namespace {

enum Encoding : int32_t { kRaw = 0, kInt8Blocks = 1, kPlaces = 2 };

static_assert(std::endian::native == std::endian::little, "tiles are little-endian");

// Names and values of all fields of a section, values as text.
class SettingsList final : public FieldVisitor {
 public:
  explicit SettingsList(std::string prefix) : path_(std::move(prefix)) {}
  std::vector<std::pair<std::string, std::string>> settings;

 protected:
  void on_bool(const Field& field, bool& value) override { add(field, value ? "true" : "false"); }
  void on_integer(const Field& field, int64_t& value) override {
    add(field, std::to_string(value));
  }
  void on_number(const Field& field, double& value) override {
    add(field, fmt::format("{}", value));
  }
  void on_text(const Field& field, std::string& value) override { add(field, value); }
  void on_choice(const Field& field, int64_t& index) override {
    add(field, field.constraint.choices.at(static_cast<size_t>(index)));
  }
  void on_section(const Field& field, const std::function<void()>& visit_fields) override {
    const std::string outer = path_;
    path_ += "." + field.name;
    visit_fields();
    path_ = outer;
  }
  void on_list(const Field& field, List& list) override {
    add(field, fmt::format("{} entries", list.size()));
    for (size_t i = 0; i < list.size(); ++i) {
      Field element = field;
      element.name += fmt::format("[{}]", i);
      list.visit_element(*this, i, element);
    }
  }
  void on_optional(const Field& field, Optional& optional) override {
    if (optional.has_value()) {
      optional.visit_content(*this, field);
    } else {
      add(field, "unset");
    }
  }
  void on_map(const Field& field, Map& map) override {
    for (const std::string& key : map.keys()) {
      Field entry = field;
      entry.name += "." + key;
      map.visit_entry(*this, key, entry);
    }
  }

 private:
  void add(const Field& field, std::string value) {
    settings.emplace_back(path_ + "." + field.name, std::move(value));
  }
  std::string path_;
};

// What one side may have otherwise than the other.
bool is_private(const std::string& key) {
  return key.starts_with("federated.deploy.") || key == "federated.eval_every" ||
         key == "federated.task.data.path";
}

template <class T>
void append(std::string& bytes, const T* values, size_t count) {
  bytes.append(reinterpret_cast<const char*>(values), count * sizeof(T));
}

bool equal_bits(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

}  // namespace

Status send_message(SecureChannel& channel, const wire::Message& message, double timeout_s) {
  const std::string bytes = message.SerializeAsString();
  return channel.send(std::as_bytes(std::span(bytes)), timeout_s);
}

Status receive_message(SecureChannel& channel, wire::Message& message, double timeout_s) {
  std::string bytes;
  GRADUS_RETURN_IF_ERROR(channel.receive(bytes, timeout_s));
  if (!message.ParseFromString(bytes) || message.body_case() == wire::Message::BODY_NOT_SET) {
    return data_loss("{}: a frame of {} bytes that is no message", channel.peer_address(),
                     bytes.size());
  }
  return {};
}

std::string kind_of(const wire::Message& message) {
  switch (message.body_case()) {
    case wire::Message::kHello:
      return "Hello";
    case wire::Message::kWelcome:
      return "Welcome";
    case wire::Message::kRefusal:
      return "Refusal";
    case wire::Message::kTrain:
      return "Train";
    case wire::Message::kFetch:
      return "Fetch";
    case wire::Message::kTile:
      return "Tile";
    case wire::Message::kReport:
      return "Report";
    case wire::Message::kUpload:
      return "Upload";
    case wire::Message::kReceived:
      return "Received";
    case wire::Message::kFinished:
      return "Finished";
    case wire::Message::BODY_NOT_SET:
      return "nothing";
  }
  return "something new";
}

wire::Report report_message(const ClientReport& report, int64_t round, uint64_t nonce) {
  wire::Report message;
  message.set_round(round);
  message.set_nonce(nonce);
  message.set_num_samples(report.num_samples);
  if (report.num_steps) message.set_num_steps(*report.num_steps);
  if (report.loss) message.set_loss(*report.loss);
  if (report.score) message.set_score(*report.score);
  if (report.train_loss) message.set_train_loss(*report.train_loss);
  for (const int64_t count : report.label_counts) message.add_label_counts(count);
  message.set_squared_norm(report.squared_norm);
  message.set_max_abs(report.max_abs);
  message.set_is_finite(report.is_finite);
  return message;
}

ClientReport report_of(const wire::Report& message, int64_t client_id) {
  ClientReport report = {.client_id = client_id,
                         .base_version = message.round(),
                         .num_samples = message.num_samples(),
                         .squared_norm = message.squared_norm(),
                         .max_abs = message.max_abs(),
                         .is_finite = message.is_finite()};
  if (message.has_num_steps()) report.num_steps = message.num_steps();
  if (message.has_loss()) report.loss = message.loss();
  if (message.has_score()) report.score = message.score();
  if (message.has_train_loss()) report.train_loss = message.train_loss();
  report.label_counts.assign(message.label_counts().begin(), message.label_counts().end());
  return report;
}

void set_values(std::span<const float> values, const UpdateCompression& compression,
                wire::Tile& tile) {
  std::string& bytes = *tile.mutable_values();
  bytes.clear();
  tile.set_count(static_cast<int64_t>(values.size()));
  tile.set_encoding(kRaw);
  if (compression.kind == CompressionKind::kInt8) {
    const auto packed = compress({Compression::kInt8}, values);
    const auto back = packed.ok() ? decompress(*packed, tile.count()) : packed.status();
    if (back.ok() && equal_bits(*back, values)) {
      tile.set_encoding(kInt8Blocks);
      append(bytes, packed->data(), packed->size());
      return;
    }
  }
  if (compression.kind == CompressionKind::kTopK) {
    std::vector<int32_t> places;
    std::vector<float> others;
    for (size_t j = 0; j < values.size(); ++j) {
      if (std::bit_cast<uint32_t>(values[j]) == 0) continue;
      places.push_back(static_cast<int32_t>(j));
      others.push_back(values[j]);
    }
    if (2 * places.size() < values.size()) {
      tile.set_encoding(kPlaces);
      append(bytes, places.data(), places.size());
      append(bytes, others.data(), others.size());
      return;
    }
  }
  append(bytes, values.data(), values.size());
}

Status values_of(const wire::Tile& tile, std::vector<float>& values) {
  const int64_t count = tile.count();
  const std::string& bytes = tile.values();
  if (count < 0 || count > kTileValues) {
    return data_loss("a tile of {} values; at most {} are taken", count, kTileValues);
  }
  const auto size = static_cast<size_t>(count);
  values.resize(size);
  switch (tile.encoding()) {
    case kRaw:
      if (bytes.size() != size * sizeof(float)) break;
      std::memcpy(values.data(), bytes.data(), bytes.size());
      return {};
    case kInt8Blocks: {
      Result<std::vector<float>> unpacked =
          decompress({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}, count);
      if (!unpacked.ok()) return unpacked.status();
      values = std::move(*unpacked);
      return {};
    }
    case kPlaces: {
      const size_t num_places = bytes.size() / 8;
      if (bytes.size() % 8 != 0 || num_places > size) break;
      std::fill(values.begin(), values.end(), 0.0f);
      int64_t last = -1;
      for (size_t i = 0; i < num_places; ++i) {
        int32_t place = 0;
        std::memcpy(&place, bytes.data() + 4 * i, 4);
        if (place <= last || place >= count) {
          return data_loss("a tile with the place {} after {} of {}", place, last, count);
        }
        last = place;
        std::memcpy(&values[static_cast<size_t>(place)], bytes.data() + 4 * (num_places + i), 4);
      }
      return {};
    }
    default:
      return data_loss("a tile in encoding {}, which this version does not know", tile.encoding());
  }
  return data_loss("a tile of {} values in {} bytes", count, bytes.size());
}

std::vector<std::pair<std::string, std::string>> shared_settings(const FederatedConfig& config,
                                                                 uint64_t seed) {
  SettingsList list("federated");
  FederatedConfig copy = config;
  copy.visit(list);
  std::vector<std::pair<std::string, std::string>> shared = {{"run.seed", std::to_string(seed)}};
  for (auto& setting : list.settings) {
    if (!is_private(setting.first)) shared.push_back(std::move(setting));
  }
  return shared;
}

uint64_t fingerprint_of(const std::vector<std::pair<std::string, std::string>>& settings) {
  std::string text;
  for (const auto& [key, value] : settings) text += key + "=" + value + "\n";
  return hash64(text);
}

Status compare_settings(const std::vector<std::pair<std::string, std::string>>& server,
                        const wire::Hello& hello) {
  const uint64_t fingerprint = fingerprint_of(server);
  if (hello.fingerprint() == fingerprint) return {};
  std::map<std::string, std::string> theirs;
  for (const wire::Setting& setting : hello.settings()) theirs[setting.key()] = setting.value();
  const std::string both = fmt::format("configurations differ (server {:016x}, client {:016x})",
                                       fingerprint, hello.fingerprint());
  for (const auto& [key, value] : server) {
    const auto found = theirs.find(key);
    const std::string other = found == theirs.end() ? "without it" : found->second;
    if (other != value) {
      return invalid_argument(
          "{}: {} is {} at the server and {} at the client; give both the same "
          "file and --set",
          both, key, value, other);
    }
    theirs.erase(found);
  }
  return invalid_argument("{}: the client has {}, which the server does not know; use one version",
                          both, theirs.empty() ? "another order of keys" : theirs.begin()->first);
}

}  // namespace gradus::federated::internal
