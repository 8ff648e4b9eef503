// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <bit>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <thread>

#include "common/config/rules.h"
#include "common/rng.h"
#include "federated/deployment.h"
#include "federated/internal/client_update.h"
#include "federated/internal/deployment_wire.h"
#include "records/state_file.h"

namespace gradus::federated {
namespace {

using Clock = std::chrono::steady_clock;
namespace wire = internal::wire;

constexpr double kLookS = 0.2;          // between looks at is_stopped
constexpr double kFirstBackoffS = 0.1;  // doubled from try to try
constexpr double kLargestBackoffS = 5;

// Four chains, which the processor follows at once.
uint64_t hash_of(std::span<const float> values) {
  constexpr size_t kChains = 4;
  uint64_t chains[kChains] = {1, 2, 3, 4};
  size_t j = 0;
  for (; j + kChains <= values.size(); j += kChains) {
    for (size_t c = 0; c < kChains; ++c) {
      chains[c] = (chains[c] ^ std::bit_cast<uint32_t>(values[j + c])) * 0x9e3779b97f4a7c15u;
      chains[c] ^= chains[c] >> 29;
    }
  }
  for (; j < values.size(); ++j)
    chains[0] = hash64({chains[0], std::bit_cast<uint32_t>(values[j])});
  return hash64({chains[0], chains[1], chains[2], chains[3]});
}

// A client's side: what it holds, and its answers to the server.
class Client {
 public:
  Client(const FederatedConfig& config, uint64_t seed, const LocalTask& task,
         const Identity& identity, const ClientOptions& options)
      : config_(config), seed_(seed), task_(task), identity_(identity), options_(options) {}

  Status prepare() {
    Result<std::unique_ptr<Aggregator>> aggregator = internal::aggregator_of(config_, task_);
    if (!aggregator.ok()) return aggregator.status();
    aggregator_ = std::move(*aggregator);
    settings_ = internal::shared_settings(config_, seed_);
    const auto p = static_cast<size_t>(task_.num_parameters());
    update_.resize(p * static_cast<size_t>(aggregator_->num_vectors()));
    state_.resize(static_cast<size_t>(internal::client_state_size(config_, *aggregator_, task_)));
    return load();
  }

  Status run() {
    Clock::time_point last_contact = Clock::now();
    double backoff_s = kFirstBackoffS;
    for (;;) {
      if (options_.is_stopped()) return {};
      bool was_welcome = false;
      const Status status = visit(was_welcome);
      if (status.ok()) return {};
      const bool may_pass =
          status.code() == StatusCode::kUnavailable || status.code() == StatusCode::kDataLoss;
      if (!may_pass) return status;
      if (was_welcome) {
        last_contact = Clock::now();
        backoff_s = kFirstBackoffS;
        options_.say(fmt::format("the server is gone ({}); connecting again", status.message()));
      }
      const double waited = std::chrono::duration<double>(Clock::now() - last_contact).count();
      if (waited >= config_.deploy.retry_s) {
        return unavailable(
            "{}; tried for {:.0f} s; is gradus federate serve running there? "
            "federated.deploy.retry_s says how long to try",
            status.message(), waited);
      }
      const Clock::time_point next =
          Clock::now() + std::chrono::milliseconds(static_cast<int64_t>(1000 * backoff_s));
      while (Clock::now() < next && !options_.is_stopped()) {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
      }
      backoff_s = std::min(2 * backoff_s, kLargestBackoffS);
    }
  }

 private:
  // One connection, until the run has ended or it is stopped.
  Status visit(bool& was_welcome) {
    Result<std::unique_ptr<SecureChannel>> connected = connect_securely(
        options_.server, identity_, options_.server_key, config_.deploy.io_timeout_s);
    if (!connected.ok()) return connected.status();
    channel_ = std::move(*connected);
    GRADUS_RETURN_IF_ERROR(greet(was_welcome));
    for (;;) {
      if (options_.is_stopped()) return {};
      if (!channel_->wait(kLookS)) continue;
      wire::Message message;
      GRADUS_RETURN_IF_ERROR(receive(message));
      switch (message.body_case()) {
        case wire::Message::kTrain:
          GRADUS_RETURN_IF_ERROR(train(message.train()));
          break;
        case wire::Message::kUpload:
          GRADUS_RETURN_IF_ERROR(upload(message.upload()));
          break;
        case wire::Message::kReceived:
          break;
        case wire::Message::kRefusal:
          if (message.refusal().is_final()) {
            return invalid_argument("{}: refused: {}", options_.server, message.refusal().reason());
          }
          options_.say("the server: " + message.refusal().reason());
          break;
        case wire::Message::kFinished:
          options_.say(
              fmt::format("the run has ended after {} rounds", message.finished().num_rounds()));
          return {};
        default:
          return unexpected(message);
      }
    }
  }

  Status greet(bool& was_welcome) {
    wire::Message message;
    wire::Hello& hello = *message.mutable_hello();
    hello.set_protocol(internal::kProtocolVersion);
    hello.set_client_id(options_.client_id);
    hello.set_fingerprint(internal::fingerprint_of(settings_));
    for (const auto& [key, value] : settings_) {
      wire::Setting& setting = *hello.add_settings();
      setting.set_key(key);
      setting.set_value(value);
    }
    hello.set_num_parameters(task_.num_parameters());
    GRADUS_RETURN_IF_ERROR(send(message));
    GRADUS_RETURN_IF_ERROR(receive(message));
    if (message.has_refusal()) {
      return invalid_argument("{}: refused: {}", options_.server, message.refusal().reason());
    }
    if (!message.has_welcome()) return unexpected(message);
    was_welcome = true;
    const wire::Welcome& welcome = message.welcome();
    options_.say(fmt::format("client {}: connected to {}, round {} of {}", options_.client_id,
                             options_.server, welcome.round() + 1, welcome.num_rounds()));
    if (welcome.run_id() != run_id_) {
      if (run_id_ != 0) {
        options_.say("a new run: what was remembered of another one is forgotten");
      }
      run_id_ = welcome.run_id();
      held_round_ = -1;
      std::fill(state_.begin(), state_.end(), 0.0f);
    }
    return {};
  }

  Status train(const wire::Train& order) {
    const int64_t round = order.round();
    if (held_round_ != round || held_model_ != order.model_hash()) {
      if (held_round_ > round && !state_.empty()) {
        options_.say(
            fmt::format("the server is at round {}, after this client was at {}: what it "
                        "remembers is of the later one",
                        round + 1, held_round_ + 1));
      }
      GRADUS_RETURN_IF_ERROR(fetch(order));
      const ClientTerms terms = aggregator_->client_terms(round);
      if (!worker_) worker_ = task_.make_worker();
      const auto task_state = static_cast<size_t>(internal::task_state_size(*aggregator_, task_));
      const std::span<float> state(state_);
      ModelDelta delta;
      delta.report =
          worker_->train({.client_id = options_.client_id,
                          .seed = internal::training_seed(seed_, round, options_.client_id),
                          .model_P = model_,
                          .broadcast_P = broadcast_,
                          .terms = &terms,
                          .lr = internal::client_lr(config_.local, round)},
                         update_, state.first(task_state));
      internal::compress_and_clip(config_, update_, state.subspan(task_state));
      delta.values = update_;
      measure(delta);
      report_ = delta.report;
      held_round_ = round;
      held_model_ = order.model_hash();
      // Of the update itself: a client that was killed and has trained again to the same bits goes
      // on where its upload stopped, and one with other bits is a second update.
      nonce_ = hash64({hash_of(update_), static_cast<uint64_t>(round),
                       static_cast<uint64_t>(options_.client_id)});
      // What it remembers has changed, and it could not train again from what it was before.
      if (!state_.empty()) GRADUS_RETURN_IF_ERROR(save());
    }
    wire::Message message;
    *message.mutable_report() = internal::report_message(report_, round, nonce_);
    return send(message);
  }

  Status fetch(const wire::Train& order) {
    if (order.num_values() != task_.num_parameters() ||
        (order.num_broadcast() != 0 && order.num_broadcast() != order.num_values())) {
      return invalid_argument("{}: its model has {} values, this client's {}", options_.server,
                              order.num_values(), task_.num_parameters());
    }
    wire::Message message;
    message.mutable_fetch();
    GRADUS_RETURN_IF_ERROR(send(message));
    model_.resize(static_cast<size_t>(order.num_values()));
    broadcast_.resize(static_cast<size_t>(order.num_broadcast()));
    const int64_t total = order.num_values() + order.num_broadcast();
    std::vector<float> values;
    // Others may be served first.
    while (!channel_->wait(kLookS)) {
      if (options_.is_stopped()) return unavailable("stopped");
    }
    for (int64_t at = 0; at < total;) {
      GRADUS_RETURN_IF_ERROR(receive(message));
      if (!message.has_tile()) return unexpected(message);
      GRADUS_RETURN_IF_ERROR(internal::values_of(message.tile(), values));
      if (message.tile().offset() != at || values.empty() ||
          static_cast<int64_t>(values.size()) > total - at) {
        return data_loss("{}: a tile of {} values at {}; expected one at {}", options_.server,
                         values.size(), message.tile().offset(), at);
      }
      // A tile is of one of the two.
      const bool is_model = at < order.num_values();
      const std::span<float> to = is_model ? std::span(model_) : std::span(broadcast_);
      const auto begin = static_cast<size_t>(is_model ? at : at - order.num_values());
      if (values.size() > to.size() - begin)
        return data_loss("{}: a tile over two vectors", options_.server);
      std::copy(values.begin(), values.end(), to.begin() + static_cast<std::ptrdiff_t>(begin));
      at += static_cast<int64_t>(values.size());
    }
    return {};
  }

  Status upload(const wire::Upload& order) {
    const auto size = static_cast<int64_t>(update_.size());
    if (order.round() != held_round_ || order.offset() < 0 || order.offset() > size ||
        order.offset() % internal::kTileValues != 0) {
      return data_loss("{}: asks for round {} from {}; this client has round {}", options_.server,
                       order.round(), order.offset(), held_round_);
    }
    wire::Message message;
    wire::Tile& tile = *message.mutable_tile();
    tile.set_attempt(order.attempt());
    for (int64_t at = order.offset(); at < size; at += internal::kTileValues) {
      const auto count = static_cast<size_t>(std::min(internal::kTileValues, size - at));
      tile.set_offset(at);
      internal::set_values(std::span<const float>(update_).subspan(static_cast<size_t>(at), count),
                           config_.compression, tile);
      GRADUS_RETURN_IF_ERROR(send(message));
    }
    return {};
  }

  Status save() const {
    const std::string path = options_.state_path + ".new";
    const auto write = [&]() -> Status {
      Result<records::StateWriter> writer = records::StateWriter::create(path);
      if (!writer.ok()) return writer.status();
      const wire::Report report = internal::report_message(report_, held_round_, nonce_);
      GRADUS_RETURN_IF_ERROR(writer->add("client", options_.client_id));
      GRADUS_RETURN_IF_ERROR(writer->add("run_id", run_id_));
      GRADUS_RETURN_IF_ERROR(writer->add("settings", internal::fingerprint_of(settings_)));
      GRADUS_RETURN_IF_ERROR(writer->add("model_hash", held_model_));
      GRADUS_RETURN_IF_ERROR(writer->add_text("report", report.SerializeAsString()));
      GRADUS_RETURN_IF_ERROR(writer->add("update", std::span<const float>(update_)));
      GRADUS_RETURN_IF_ERROR(writer->add("state", std::span<const float>(state_)));
      return writer->finish();
    };
    GRADUS_RETURN_IF_ERROR(write());
    std::error_code error;
    std::filesystem::rename(path, options_.state_path, error);
    if (error) return invalid_argument("{}: {}", options_.state_path, error.message());
    return {};
  }

  Status load() {
    const std::string& path = options_.state_path;
    if (!std::filesystem::exists(path)) return {};
    const Result<records::StateReader> reader = records::StateReader::open(path);
    if (!reader.ok()) return reader.status();
    const Result<int64_t> client = reader->read_i64("client");
    const Result<uint64_t> run = reader->read_u64("run_id");
    const Result<uint64_t> settings = reader->read_u64("settings");
    const Result<uint64_t> model = reader->read_u64("model_hash");
    const Result<std::string> bytes = reader->read_text("report");
    for (const Status& status :
         {client.status(), run.status(), settings.status(), model.status(), bytes.status()}) {
      GRADUS_RETURN_IF_ERROR(status);
    }
    if (*client != options_.client_id || *settings != internal::fingerprint_of(settings_)) {
      return invalid_argument(
          "{}: the state of client {} under configuration {:016x}; this is client {} under "
          "{:016x}; "
          "remove it, or name another file with --state",
          path, *client, *settings, options_.client_id, internal::fingerprint_of(settings_));
    }
    wire::Report report;
    if (!report.ParseFromString(*bytes)) return data_loss("{}: 'report' is no report", path);
    GRADUS_RETURN_IF_ERROR(reader->read("update", std::span<float>(update_)));
    GRADUS_RETURN_IF_ERROR(reader->read("state", std::span<float>(state_)));
    report_ = internal::report_of(report, options_.client_id);
    run_id_ = *run;
    held_round_ = report.round();
    held_model_ = *model;
    nonce_ = report.nonce();
    return {};
  }

  Status send(const wire::Message& message) {
    return internal::send_message(*channel_, message, config_.deploy.io_timeout_s);
  }
  Status receive(wire::Message& message) {
    return internal::receive_message(*channel_, message, config_.deploy.io_timeout_s);
  }
  Status unexpected(const wire::Message& message) const {
    return data_loss("{}: a {} that was not expected here", options_.server,
                     internal::kind_of(message));
  }

  const FederatedConfig& config_;
  uint64_t seed_;
  const LocalTask& task_;
  const Identity& identity_;
  const ClientOptions& options_;
  std::unique_ptr<Aggregator> aggregator_;
  std::vector<std::pair<std::string, std::string>> settings_;
  std::unique_ptr<LocalWorker> worker_;
  std::unique_ptr<SecureChannel> channel_;
  std::vector<float> model_, broadcast_;
  // What the file at state_path has.
  uint64_t run_id_ = 0;
  std::vector<float> state_, update_;
  ClientReport report_;
  int64_t held_round_ = -1;
  uint64_t held_model_ = 0, nonce_ = 0;
};

}  // namespace

Status validate_deployment(const FederatedConfig& config) {
  ConfigRules rules;
  const ClientsConfig& clients = config.clients;
  rules.require(config.mode == FederatedMode::kSync,
                "federated.mode is async, which a deployment does not have; set it to sync");
  rules.require(!config.privacy.is_on(),
                "federated.privacy.noise_multiplier is set, but in a deployment who takes part "
                "follows from run.seed, which every client knows, so the accountants' bounds would "
                "not hold; set it to 0");
  rules.require(!config.secure_aggregation.is_on,
                "federated.secure_aggregation.is_on is for simulations; in a deployment the server "
                "sees each update; set it to false");
  rules.require(
      clients.dropout == 0,
      "federated.clients.dropout is {}: it is simulated, and in a deployment clients drop "
      "out by themselves; set it to 0",
      clients.dropout);
  rules.require(clients.deadline_s == 0,
                "federated.clients.deadline_s is {} simulated seconds; a deployment has "
                "federated.deploy.round_timeout_s; set it to 0",
                clients.deadline_s);
  rules.require(clients.attack == AttackKind::kNone,
                "federated.clients.attack is for simulations; set it to none");
  return rules.status();
}

Status run_client(const FederatedConfig& config, uint64_t seed, const LocalTask& task,
                  const Identity& identity, const ClientOptions& options) {
  GRADUS_RETURN_IF_ERROR(validate_deployment(config));
  if (options.client_id < 0 || options.client_id >= config.clients.num_clients) {
    return invalid_argument("--client {}: the run's clients are 0 to {}", options.client_id,
                            config.clients.num_clients - 1);
  }
  Client client(config, seed, task, identity, options);
  GRADUS_RETURN_IF_ERROR(client.prepare());
  return client.run();
}

}  // namespace gradus::federated
