// SPDX-License-Identifier: Apache-2.0
#include <sys/resource.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "common/parallel.h"
#include "common/rng.h"
#include "privacy/internal/crypto.h"
#include "privacy/quantizer.h"
#include "privacy/secure_aggregation.h"

// bench_privacy_secure_aggregation [CLIENTS VALUES NEIGHBOURS DROPPED_PERCENT]
//
// One whole round of secure aggregation in one process, on the pool's threads: every client does
// all of its own work, masks included, then the server opens what does not cancel; clients drop out
// after they have shared their secrets, the dearest moment. Prints one JSON line: wall-clock
// seconds in all and by side, processor seconds, whether the sum is exact, bytes up per client
// against the vector's in fp32, and the roof: what the same masks take by libsodium's ChaCha20
// alone, on the same threads, in the same run. Without arguments 100 clients, 1,000,000 values, 64
// neighbours, 10 %.
namespace gradus::privacy {
namespace {

using Clock = std::chrono::steady_clock;
double since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}
double processor_seconds() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// Seconds for a key stream of so many bytes, in pieces of 8 KiB.
double stream_seconds(double num_bytes) {
  const auto start = Clock::now();
  const auto pieces = static_cast<int64_t>(num_bytes / 8192);
  parallel_for(pieces, 64, [](int64_t begin, int64_t end) {
    std::vector<uint8_t> piece(8192);
    for (int64_t i = begin; i < end; ++i) {
      internal::key_stream({}, static_cast<uint32_t>(i) << 7, piece);
    }
  });
  return since(start);
}

int run(int64_t num_clients, int64_t num_values, int64_t num_neighbours, int64_t dropped_percent) {
  SecurePlan plan{.round = 1,
                  .num_neighbours = num_neighbours,
                  .threshold = num_neighbours * 2 / 3 + 1,
                  .num_values = num_values};
  std::map<int64_t, IdentityKey> identities;
  for (int64_t id = 0; id < num_clients; ++id) {
    identities[id] = make_identity();
    plan.client_ids_N.push_back(id);
    plan.identities_N.push_back(identities[id].public_key);
  }
  const Status status = validate(plan);
  if (!status.ok()) {
    std::fprintf(stderr, "%s\n", status.message().c_str());
    return 2;
  }
  const int64_t num_dropped = num_clients * dropped_percent / 100;
  const Result<Quantizer> quantizer = Quantizer::make(1, 20, num_clients);
  std::vector<uint32_t> want(static_cast<size_t>(num_values));

  double client_seconds = 0, server_seconds = 0;
  size_t bytes_up = 0;
  const auto start = Clock::now();
  const double processor_start = processor_seconds();
  // What `body` takes goes to one of the two sides.
  const auto timed = [](double& seconds, auto&& body) {
    const auto begin = Clock::now();
    auto result = body();
    seconds += since(begin);
    return result;
  };
  SecureServer server(plan);
  std::map<int64_t, SecureClient> clients;
  for (const int64_t id : plan.client_ids_N) {
    clients.emplace(id, SecureClient(plan, id, identities[id]));
    const KeyMessage message = *timed(client_seconds, [&] { return clients.at(id).advertise(); });
    if (!timed(server_seconds, [&] { return server.add(message); }).ok()) return 1;
  }
  auto keys = *server.close_keys();
  for (auto& [id, client] : clients) {
    const ShareMessage message = *timed(client_seconds, [&] { return client.share(keys[id]); });
    if (id == num_clients - 1) {
      bytes_up += 8 + 32 + 64 + 8 + 64 + 64;  // keys, seed's hash and signatures
      for (const SealedShares& sealed : message.shares) bytes_up += 16 + sealed.sealed.size();
      bytes_up += message.hashes.size() * sizeof(ShareHashes);
    }
    if (!timed(server_seconds, [&] { return server.add(message); }).ok()) return 1;
  }
  auto shares = *server.close_shares();
  double input_seconds = 0;
  for (auto& [id, client] : clients) {
    if (id < num_dropped) continue;
    const auto begin = Clock::now();
    std::vector<float> update(static_cast<size_t>(num_values));
    RngSequence rng(static_cast<uint64_t>(id), RngStream::kTask);
    for (float& value : update) value = static_cast<float>(rng.next_u32()) * 0x1.0p-31f - 1;
    std::vector<uint32_t> numbers(update.size());
    if (!quantizer->quantize(update, Rounding::kNearest, {}, numbers).ok()) return 1;
    for (size_t i = 0; i < want.size(); ++i) want[i] += numbers[i];
    input_seconds += since(begin);
    const MaskedMessage message =
        *timed(client_seconds, [&] { return client.mask(shares[id], std::move(numbers)); });
    if (id == num_clients - 1) bytes_up += 4 * message.values_P.size();
    if (!timed(server_seconds, [&] { return server.add(message); }).ok()) return 1;
  }
  const std::vector<int64_t> survivors = *server.close_values();
  for (const int64_t id : survivors) {
    const auto message = *timed(client_seconds, [&] { return clients.at(id).consent(survivors); });
    if (!timed(server_seconds, [&] { return server.add(message); }).ok()) return 1;
  }
  auto consents = *server.close_consents();
  for (const int64_t id : survivors) {
    const auto message =
        *timed(client_seconds, [&] { return clients.at(id).reveal(consents[id]); });
    if (id == num_clients - 1) bytes_up += 2 * 72 + message.shares.size() * sizeof(RevealedShare);
    if (!timed(server_seconds, [&] { return server.add(message); }).ok()) return 1;
  }
  const auto sum = timed(server_seconds, [&] { return server.finish(); });
  const double seconds = since(start) - input_seconds;
  const double processor = processor_seconds() - processor_start;
  if (!sum.ok()) {
    std::fprintf(stderr, "%s\n", sum.status().message().c_str());
    return 1;
  }
  // Masks that were made: by each survivor, and by the server for itself and for those that are
  // gone.
  const auto num_survivors = static_cast<double>(survivors.size());
  const double num_masks = num_survivors * static_cast<double>(num_neighbours + 2) +
                           static_cast<double>(num_dropped * num_neighbours);
  const double roof = stream_seconds(num_masks * 4 * static_cast<double>(num_values));
  std::printf(
      "{\"clients\": %ld, \"values\": %ld, \"neighbours\": %ld, \"threshold\": %ld, \"dropped\": "
      "%ld, "
      "\"threads\": %d, \"seconds\": %.2f, \"client_seconds\": %.2f, \"server_seconds\": %.2f, "
      "\"processor_seconds\": %.2f, \"stream_seconds\": %.2f, \"share_of_roof\": %.2f, "
      "\"bytes_up_ratio\": %.4f, \"exact\": %s}\n",
      num_clients, num_values, num_neighbours, plan.threshold, num_dropped, num_threads(), seconds,
      client_seconds, server_seconds, processor, roof, roof / seconds,
      static_cast<double>(bytes_up) / (4 * static_cast<double>(num_values)),
      *sum == want ? "true" : "false");
  return *sum == want ? 0 : 1;
}

}  // namespace
}  // namespace gradus::privacy

int main(int argc, char** argv) {
  const auto argument = [&](int i, int64_t otherwise) {
    return argc > i ? std::strtoll(argv[i], nullptr, 10) : otherwise;
  };
  return gradus::privacy::run(argument(1, 100), argument(2, 1'000'000), argument(3, 64),
                              argument(4, 10));
}
