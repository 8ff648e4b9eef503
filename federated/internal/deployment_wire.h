// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "federated/federated_config.h"
#include "federated/model_delta.h"
#include "federated/secure_channel.h"
#include "federated/wire/deployment.pb.h"

// The messages of a deployment on a channel, and what both sides of it share.
namespace gradus::federated::internal {

namespace wire = gradus::wire::deployment;

inline constexpr int32_t kProtocolVersion = 1;
// Values of a tile: 64 KiB, of which a server holds as many as it has transfers at once.
inline constexpr int64_t kTileValues = 16384;

Status send_message(SecureChannel& channel, const wire::Message& message, double timeout_s);
// DataLoss for bytes that are no message.
Status receive_message(SecureChannel& channel, wire::Message& message, double timeout_s);
// The name of what a message holds, for errors: "Report".
std::string kind_of(const wire::Message& message);

wire::Report report_message(const ClientReport& report, int64_t round, uint64_t nonce);
ClientReport report_of(const wire::Report& message, int64_t client_id);

// Puts a tile's values into the message, as raw floats, or in fewer bytes where those decode to the
// same bits: blocks of int8 (compression.h) and places with values, if most are zero.
void set_values(std::span<const float> values, const UpdateCompression& compression,
                wire::Tile& tile);
// The values of a tile. DataLoss if its bytes are not those of `count` values.
Status values_of(const wire::Tile& tile, std::vector<float>& values);

// The settings that server and clients must share, with the keys of the configuration file: the
// section `federated` but for what is one side's own business, and the seed.
std::vector<std::pair<std::string, std::string>> shared_settings(const FederatedConfig& config,
                                                                 uint64_t seed);
uint64_t fingerprint_of(const std::vector<std::pair<std::string, std::string>>& settings);
// Ok, or InvalidArgument that names the first difference.
Status compare_settings(const std::vector<std::pair<std::string, std::string>>& server,
                        const wire::Hello& hello);

}  // namespace gradus::federated::internal
