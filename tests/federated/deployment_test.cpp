// SPDX-License-Identifier: Apache-2.0
#include "federated/deployment.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <cstring>
#include <mutex>
#include <thread>

#include "comm/communicator.h"
#include "common/parallel.h"
#include "common/rng.h"
#include "federated/internal/client_update.h"
#include "federated/internal/deployment_wire.h"
#include "federated/internal/update_sums.h"
#include "federated/simulation.h"
#include "tests/support/files.h"
#include "tests/support/in_process_communicator.h"

namespace gradus::federated {
namespace {

using ::testing::HasSubstr;
namespace wire = internal::wire;

constexpr double kSoon = 20;  // seconds; nothing here takes as long unless it hangs
constexpr uint64_t kSeed = 5;

FederatedConfig small_config() {
  FederatedConfig config;
  config.num_rounds = 3;
  config.clients = {.num_clients = 4, .per_round = 4};
  config.local = {.num_epochs = 1, .batch_size = 16, .lr = 0.05, .momentum = 0};
  config.task.data = {.kind = DataKind::kMnist1d, .num_samples = 300};
  // 40 x 300 and 300 x 10, padded: two tiles.
  config.task.hidden = {300};
  config.deploy.linger_s = 10;
  config.deploy.retry_s = kSoon;
  return config;
}

// A server with its keys, and clients in threads.
class Deployment {
 public:
  explicit Deployment(FederatedConfig config) : config_(std::move(config)) {
    auto task = make_local_task(config_, kSeed);
    EXPECT_TRUE(task.ok()) << task.status().message();
    task_ = std::move(*task);
    for (int64_t k = 0; k < config_.clients.num_clients; ++k) keys_.push_back(Identity::fresh());
  }
  ~Deployment() {
    if (server_thread_.joinable()) (void)finish();
  }

  void start() {
    std::vector<PublicKey> keys;
    for (const Identity& key : keys_) keys.push_back(key.public_key());
    auto server = DeploymentServer::make(config_, kSeed, *task_, server_key_, keys, "127.0.0.1:0");
    ASSERT_TRUE(server.ok()) << server.status().message();
    server_ = std::move(*server);
    server_thread_ = std::thread([this] {
      const SerialSection alone;
      status_ = server_->run(
          {.save = [this](int64_t round, const std::function<Status(const std::string&)>& write)
               -> Result<std::string> {
             const std::string path = folder_.path() + "/server_" + std::to_string(round);
             GRADUS_RETURN_IF_ERROR(write(path));
             return path;
           },
           .on_round = [this](int64_t, std::span<const float> model, Metrics& metrics) -> Status {
             model_.assign(model.begin(), model.end());
             metrics_.push_back(metrics);
             return {};
           },
           .say =
               [this](const std::string& message) {
                 const std::lock_guard lock(mutex_);
                 said_ += message + "\n";
               },
           .is_stopped = [this] { return is_stopped_.load(); }});
    });
  }
  std::string address() const { return "127.0.0.1:" + std::to_string(server_->port()); }

  Status join(int64_t client, const Identity* key = nullptr, const FederatedConfig* other = nullptr,
              const PublicKey* server = nullptr) {
    const SerialSection alone;
    return run_client(other != nullptr ? *other : config_, kSeed, *task_,
                      key != nullptr ? *key : keys_[static_cast<size_t>(client)],
                      {.client_id = client,
                       .server = address(),
                       .server_key = server != nullptr ? *server : server_key_.public_key(),
                       .state_path = folder_.path() + "/client_" + std::to_string(client),
                       .say = [](const std::string&) {},
                       .is_stopped = [this] { return is_stopped_.load(); }});
  }
  void join_all(std::vector<int64_t> clients) {
    for (const int64_t k : clients) {
      clients_.emplace_back([this, k] {
        const Status status = join(k);
        EXPECT_TRUE(status.ok()) << status.message();
      });
    }
  }
  // Waits for the clients and the server.
  Status finish() {
    for (std::thread& client : clients_) client.join();
    clients_.clear();
    server_thread_.join();
    return status_;
  }
  void stop() { is_stopped_ = true; }

  const FederatedConfig& config() const { return config_; }
  const LocalTask& task() const { return *task_; }
  const Identity& key(int64_t client) const { return keys_[static_cast<size_t>(client)]; }
  const PublicKey& server_key() const { return server_key_.public_key(); }
  std::string said() {
    const std::lock_guard lock(mutex_);
    return said_;
  }
  const std::vector<float>& model() const { return model_; }
  double metric(size_t round, const std::string& name) const {
    return metrics_.at(round).value(name);
  }

 private:
  FederatedConfig config_;
  test::TemporaryFolder folder_;
  std::unique_ptr<LocalTask> task_;
  Identity server_key_ = Identity::fresh();
  std::vector<Identity> keys_;
  std::unique_ptr<DeploymentServer> server_;
  std::thread server_thread_;
  std::vector<std::thread> clients_;
  std::atomic<bool> is_stopped_ = false;
  Status status_;
  std::vector<float> model_;
  std::vector<Metrics> metrics_;
  std::mutex mutex_;
  std::string said_;
};

std::vector<float> simulated(const FederatedConfig& config) {
  const auto task = make_local_task(config, kSeed);
  EXPECT_TRUE(task.ok());
  const auto ranks = comm::make_communicator();
  EXPECT_TRUE(ranks.ok());
  const auto simulation = Simulation::make(config, kSeed, **task, **ranks, "");
  EXPECT_TRUE(simulation.ok()) << simulation.status().message();
  for (int64_t r = 0; r < config.num_rounds; ++r) {
    Metrics metrics;
    const Status status = (*simulation)->run_round(metrics);
    EXPECT_TRUE(status.ok()) << status.message();
  }
  return {(*simulation)->model().begin(), (*simulation)->model().end()};
}

// The model after one round of these clients, by the parts that a simulation is made of.
std::vector<float> after_one_round(const FederatedConfig& config, const LocalTask& task,
                                   const std::vector<int64_t>& clients) {
  auto aggregator = internal::aggregator_of(config, task);
  EXPECT_TRUE(aggregator.ok());
  const auto p = static_cast<size_t>(task.num_parameters());
  std::vector<float> model(p);
  task.initialize(internal::initial_seed(kSeed), model);
  const ClientTerms terms = (*aggregator)->client_terms(0);
  const auto worker = task.make_worker();
  std::vector<std::vector<float>> updates(clients.size(), std::vector<float>(p));
  Round round(**aggregator, 0);
  for (size_t i = 0; i < clients.size(); ++i) {
    ModelDelta delta;
    delta.report = worker->train({.client_id = clients[i],
                                  .seed = internal::training_seed(kSeed, 0, clients[i]),
                                  .model_P = model,
                                  .terms = &terms,
                                  .lr = config.local.lr},
                                 updates[i], {});
    delta.values = updates[i];
    EXPECT_TRUE(round.add(delta).ok());
  }
  const auto result = round.finish();
  EXPECT_TRUE(result.ok());
  for (size_t j = 0; j < p; ++j) {
    model[j] = static_cast<float>(static_cast<double>(model[j]) + result->delta_P[j]);
  }
  return model;
}

bool equal_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return !a.empty() && a.size() == b.size() &&
         std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

struct Case {
  std::string name;
  FederatedConfig config;
};
std::ostream& operator<<(std::ostream& out, const Case& one) { return out << one.name; }

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const char* strategy : {"fedavg", "fednova", "fedexp", "qfedavg", "fedadam", "scaffold",
                               "feddyn", "moon", "flood"}) {
    Case one{strategy, small_config()};
    one.config.strategy.name = strategy;
    all.push_back(one);
  }
  all.push_back({"some_clients", small_config()});
  all.back().config.clients.per_round = 2;
  all.back().config.num_rounds = 6;
  all.push_back({"int8", small_config()});
  all.back().config.compression.kind = CompressionKind::kInt8;
  all.push_back({"top_k", small_config()});
  all.back().config.compression = {.kind = CompressionKind::kTopK, .fraction = 0.05};
  all.push_back({"scaffold_by_turns", small_config()});
  all.back().config.strategy.name = "scaffold";
  all.back().config.clients.per_round = 2;
  all.back().config.clients.sampler = SamplerKind::kCyclic;
  all.back().config.num_rounds = 6;
  all.back().config.deploy.max_transfers = 1;
  return all;
}

class DeployedRounds : public ::testing::TestWithParam<Case> {};

TEST_P(DeployedRounds, EndWithTheBitsOfASimulation) {
  Deployment run(GetParam().config);
  run.start();
  run.join_all({3, 1, 0, 2});
  const Status status = run.finish();
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_TRUE(equal_bits(run.model(), simulated(GetParam().config))) << run.said();
}

INSTANTIATE_TEST_SUITE_P(Strategies, DeployedRounds, ::testing::ValuesIn(cases()),
                         [](const auto& one) {
                           std::string name = one.param.name;
                           std::erase(name, '_');
                           return name;
                         });

TEST(DeployedClients, AreRefusedByName) {
  FederatedConfig config = small_config();
  Deployment run(config);
  run.start();
  const Identity stranger = Identity::fresh();
  EXPECT_THAT(run.join(0, &stranger).message(),
              HasSubstr("refused: the key " + to_text(stranger.public_key()) +
                        " is not among those of the clients"));
  EXPECT_THAT(run.join(0, &run.key(2)).message(),
              HasSubstr("is that of client 2, but this is client 0; give --client 2"));
  EXPECT_THAT(run.join(9, &run.key(2)).message(),
              HasSubstr("--client 9: the run's clients are 0 to 3"));
  FederatedConfig other = config;
  other.local.lr = 0.06;
  const std::string message = run.join(1, nullptr, &other).message();
  EXPECT_THAT(message,
              HasSubstr("federated.local.lr is 0.05 at the server and 0.06 at the client"));
  EXPECT_THAT(message, HasSubstr("configurations differ (server "));
  other = config;
  other.task.hidden = {300, 20};
  EXPECT_THAT(run.join(1, nullptr, &other).message(),
              HasSubstr("federated.task.hidden is 1 entries"));
  // What is one side's own business may differ.
  other = config;
  other.deploy.io_timeout_s = 7;
  other.eval_every = 3;
  std::thread first([&] { EXPECT_TRUE(run.join(1, nullptr, &other).ok()); });
  const PublicKey wrong = stranger.public_key();
  EXPECT_THAT(run.join(0, nullptr, nullptr, &wrong).message(),
              HasSubstr("the server has the key " + to_text(run.server_key())));
  run.join_all({0, 2, 3});
  EXPECT_TRUE(run.finish().ok());
  first.join();
  EXPECT_THAT(run.said(), HasSubstr(to_text(stranger.public_key())));
}

TEST(DeployedClients, GiveUpAServerThatIsAway) {
  FederatedConfig config = small_config();
  config.deploy.retry_s = 0.3;
  const auto task = make_local_task(config, kSeed);
  const Identity key = Identity::fresh();
  const test::TemporaryFolder folder;
  const Status status = run_client(config, kSeed, **task, key,
                                   {.client_id = 0,
                                    .server = "127.0.0.1:1",
                                    .server_key = key.public_key(),
                                    .state_path = folder.path() + "/state",
                                    .say = [](const std::string&) {},
                                    .is_stopped = [] { return false; }});
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_THAT(status.message(), HasSubstr("127.0.0.1:1: Connection refused; tried for "));
  EXPECT_THAT(status.message(), HasSubstr("is gradus federate serve running there?"));
}

TEST(DeployedSettings, AreRefusedByKeyWhereADeploymentCannotHaveThem) {
  FederatedConfig config = small_config();
  EXPECT_TRUE(validate_deployment(config).ok());
  config.mode = FederatedMode::kAsync;
  config.privacy.noise_multiplier = 1;
  config.secure_aggregation.is_on = true;
  config.clients.dropout = 0.1;
  config.clients.deadline_s = 3;
  config.clients.attack = AttackKind::kNan;
  const std::string message = validate_deployment(config).message();
  for (const char* key : {"federated.mode", "federated.privacy.noise_multiplier",
                          "federated.secure_aggregation.is_on", "federated.clients.dropout",
                          "federated.clients.deadline_s", "federated.clients.attack"}) {
    EXPECT_THAT(message, HasSubstr(key));
  }
  config = small_config();
  config.strategy.name = "median";
  const auto task = make_local_task(config, kSeed);
  const std::vector<PublicKey> keys(4);
  EXPECT_THAT(DeploymentServer::make(config, kSeed, **task, Identity::fresh(), keys, "127.0.0.1:0")
                  .status()
                  .message(),
              HasSubstr("federated.strategy.name median needs all updates at once"));
  config.strategy.name = "fedavg";
  EXPECT_THAT(DeploymentServer::make(config, kSeed, **task, Identity::fresh(), {{}}, "127.0.0.1:0")
                  .status()
                  .message(),
              HasSubstr("1 client keys, but federated.clients.num_clients is 4"));
}

// A client by hand: what it says is the test's.
class ScriptedClient {
 public:
  ScriptedClient(Deployment& run, int64_t id) : run_(run), id_(id) {
    auto aggregator = internal::aggregator_of(run.config(), run.task());
    update_.resize(static_cast<size_t>(run.task().num_parameters()));
    model_.resize(update_.size());
    run.task().initialize(internal::initial_seed(kSeed), model_);
    const ClientTerms terms = (*aggregator)->client_terms(0);
    ModelDelta delta;
    delta.report = run.task().make_worker()->train({.client_id = id,
                                                    .seed = internal::training_seed(kSeed, 0, id),
                                                    .model_P = model_,
                                                    .terms = &terms,
                                                    .lr = run.config().local.lr},
                                                   update_, {});
    delta.values = update_;
    measure(delta);
    report_ = delta.report;
  }

  void connect(int32_t protocol = internal::kProtocolVersion) {
    auto channel = connect_securely(run_.address(), run_.key(id_), run_.server_key(), kSoon);
    ASSERT_TRUE(channel.ok()) << channel.status().message();
    channel_ = std::move(*channel);
    const auto settings = internal::shared_settings(run_.config(), kSeed);
    wire::Message message;
    message.mutable_hello()->set_protocol(protocol);
    message.mutable_hello()->set_client_id(id_);
    message.mutable_hello()->set_fingerprint(internal::fingerprint_of(settings));
    message.mutable_hello()->set_num_parameters(run_.task().num_parameters());
    send(message);
  }
  void disconnect() { channel_.reset(); }
  void send(const wire::Message& message) {
    const Status status = internal::send_message(*channel_, message, kSoon);
    EXPECT_TRUE(status.ok()) << status.message();
  }
  wire::Message receive() {
    wire::Message message;
    const Status status = internal::receive_message(*channel_, message, kSoon);
    EXPECT_TRUE(status.ok()) << status.message();
    return message;
  }
  // Up to the order to train.
  void begin() {
    connect();
    ASSERT_TRUE(receive().has_welcome());
    ASSERT_TRUE(receive().has_train());
  }
  void send_report(uint64_t nonce, int64_t round = 0) {
    wire::Message message;
    *message.mutable_report() = internal::report_message(report_, round, nonce);
    send(message);
  }
  std::string refusal() {
    const wire::Message message = receive();
    EXPECT_TRUE(message.has_refusal()) << internal::kind_of(message);
    return message.refusal().reason();
  }
  // The order to upload.
  wire::Upload order() {
    const wire::Message message = receive();
    EXPECT_TRUE(message.has_upload()) << internal::kind_of(message);
    return message.upload();
  }
  // Tiles [begin, end) of the update; all by default.
  void send_tiles(int64_t attempt, int64_t begin = 0, int64_t end = 1000) {
    const auto size = static_cast<int64_t>(update_.size());
    for (int64_t t = begin; t < end && t * internal::kTileValues < size; ++t) {
      const int64_t at = t * internal::kTileValues;
      const auto count = static_cast<size_t>(std::min(internal::kTileValues, size - at));
      wire::Message message;
      message.mutable_tile()->set_attempt(attempt);
      message.mutable_tile()->set_offset(at);
      internal::set_values({update_.data() + at, count}, {}, *message.mutable_tile());
      send(message);
    }
  }

  std::vector<float> model_, update_;
  ClientReport report_;

 private:
  Deployment& run_;
  int64_t id_;
  std::unique_ptr<SecureChannel> channel_;
};

FederatedConfig one_round(double round_timeout_s) {
  FederatedConfig config = small_config();
  config.num_rounds = 1;
  config.clients = {.num_clients = 3, .per_round = 3};
  config.deploy.round_timeout_s = round_timeout_s;
  config.deploy.linger_s = 0.2;
  return config;
}

TEST(DeployedUpdates, GoOnWhereTheyStoppedWhenAClientComesAgain) {
  Deployment run(one_round(kSoon));
  run.start();
  run.join_all({0, 1});
  ScriptedClient client(run, 2);
  client.begin();
  client.send_report(77);
  EXPECT_EQ(client.order().offset(), 0);
  client.send_tiles(1, 0, 1);
  client.disconnect();
  int64_t offset = 0;
  for (int i = 0; i < 100 && offset == 0; ++i) {
    client.begin();
    client.send_report(77);
    const wire::Upload order = client.order();
    offset = order.offset();
    if (offset > 0) client.send_tiles(order.attempt(), 1);
  }
  EXPECT_EQ(offset, internal::kTileValues) << "the first tile is in";
  EXPECT_TRUE(client.receive().has_received());
  EXPECT_TRUE(run.finish().ok());
  EXPECT_TRUE(equal_bits(run.model(), after_one_round(run.config(), run.task(), {0, 1, 2})));
}

TEST(DeployedUpdates, AreRefusedWhenReplayedStaleOrSecond) {
  Deployment run(one_round(kSoon));
  run.start();
  ScriptedClient client(run, 2);
  client.begin();
  client.send_report(77, 4);
  EXPECT_THAT(client.refusal(), HasSubstr("client 2: an update of round 5; round 1 is open"));
  client.send_report(77);
  client.send_report(78);
  EXPECT_THAT(client.refusal(), HasSubstr("client 2: a second update in round 0"));
  client.send_report(77);  // said again: nothing happens twice
  run.join_all({0, 1});
  client.send_tiles(client.order().attempt());
  EXPECT_TRUE(client.receive().has_received());
  EXPECT_TRUE(run.finish().ok());
  EXPECT_EQ(run.metric(0, "federated/refused"), 2);
  EXPECT_EQ(run.metric(0, "federated/updates"), 3);
  EXPECT_TRUE(equal_bits(run.model(), after_one_round(run.config(), run.task(), {0, 1, 2})));
}

TEST(DeployedRounds, GoOnWithoutAClientThatSendsNothing) {
  Deployment run(one_round(1));
  run.start();
  run.join_all({0, 1});
  ScriptedClient client(run, 2);
  client.begin();
  EXPECT_TRUE(run.finish().ok());
  EXPECT_THAT(run.said(), HasSubstr("round 1 goes on without client 2: no report within 1 s"));
  EXPECT_EQ(run.metric(0, "federated/dropped"), 1);
  EXPECT_TRUE(equal_bits(run.model(), after_one_round(run.config(), run.task(), {0, 1})));
}

TEST(DeployedRounds, TakeBackHalfAnUpdateThatNeverEnds) {
  Deployment run(one_round(1));
  run.start();
  run.join_all({0, 1});
  ScriptedClient client(run, 2);
  client.begin();
  client.send_report(77);
  client.order();
  client.send_tiles(1, 0, 1);
  EXPECT_TRUE(run.finish().ok());
  EXPECT_THAT(run.said(),
              HasSubstr("round 1 goes on without client 2: no whole update within 1 s"));
  EXPECT_EQ(run.metric(0, "federated/late"), 1);
  EXPECT_TRUE(equal_bits(run.model(), after_one_round(run.config(), run.task(), {0, 1})));
}

TEST(DeployedUpdates, ThatAreNotAsTheirReportsSayAreLeftOut) {
  struct Lie {
    const char* what;
    std::function<void(ScriptedClient&)> tell;
    const char* message;
  };
  const std::vector<Lie> lies = {
      {"a value beyond the report's largest",
       [](ScriptedClient& client) { client.update_[16999] = 100; },
       "client 2: a value of 100 in its update, whose report says "},
      {"not a number", [](ScriptedClient& client) { client.update_[5] = NAN; },
       "client 2: a value of nan in its update"},
      {"a smaller norm", [](ScriptedClient& client) { client.report_.squared_norm /= 4; },
       "client 2: its update has norm "},
  };
  for (const Lie& lie : lies) {
    Deployment run(one_round(kSoon));
    run.start();
    run.join_all({0, 1});
    ScriptedClient client(run, 2);
    client.begin();
    lie.tell(client);
    client.send_report(77);
    client.send_tiles(client.order().attempt());
    EXPECT_TRUE(run.finish().ok());
    EXPECT_THAT(run.said(), HasSubstr(lie.message)) << lie.what;
    EXPECT_EQ(run.metric(0, "federated/refused"), 1) << lie.what;
    EXPECT_EQ(run.metric(0, "federated/refused/mismatch"), 1) << lie.what;
    EXPECT_TRUE(equal_bits(run.model(), after_one_round(run.config(), run.task(), {0, 1})))
        << lie.what;
  }
}

TEST(DeployedUpdates, OutsideTheLimitsAreRefusedByTheirReports) {
  FederatedConfig config = one_round(kSoon);
  config.clients.max_norm = 1000;
  Deployment run(config);
  run.start();
  run.join_all({0, 1});
  ScriptedClient client(run, 2);
  client.begin();
  client.report_.squared_norm = 4e6;
  client.send_report(77);
  EXPECT_THAT(client.refusal(), HasSubstr("client 2: its update has norm 2000; the limit is 1000"));
  EXPECT_TRUE(run.finish().ok());
  EXPECT_TRUE(equal_bits(run.model(), after_one_round(run.config(), run.task(), {0, 1})));
}

TEST(DeployedClients, OfAnotherProtocolOrWithoutSenseAreShownTheDoor) {
  Deployment run(one_round(kSoon));
  run.start();
  ScriptedClient client(run, 2);
  client.connect(99);
  const wire::Message message = client.receive();
  EXPECT_TRUE(message.refusal().is_final());
  EXPECT_THAT(message.refusal().reason(),
              HasSubstr("the client speaks version 99 of the protocol, the server 1"));
  {
    const auto channel = connect_securely(run.address(), run.key(1), run.server_key(), kSoon);
    ASSERT_TRUE(channel.ok());
    const std::string junk = "\xff\xff\xff no message";
    ASSERT_TRUE((*channel)->send(std::as_bytes(std::span(junk)), kSoon).ok());
    std::string frame;
    EXPECT_FALSE((*channel)->receive(frame, kSoon).ok());
  }
  run.join_all({0, 1, 2});
  EXPECT_TRUE(run.finish().ok());
  EXPECT_THAT(run.said(), HasSubstr("that is no message"));
  EXPECT_TRUE(equal_bits(run.model(), after_one_round(run.config(), run.task(), {0, 1, 2})));
}

// ---- parts

std::vector<float> normals(int64_t count, uint64_t seed) {
  RngSequence rng(seed, RngStream::kTask);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = static_cast<float>(rng.normal());
  return values;
}

TEST(UpdateTile, CarriesTheBitsOfItsValuesInFewerBytesWhereItCan) {
  const UpdateCompression int8{.kind = CompressionKind::kInt8},
      top_k{.kind = CompressionKind::kTopK}, none;
  const auto bytes_of = [](const std::vector<float>& values, const UpdateCompression& how) {
    wire::Tile tile;
    internal::set_values(values, how, tile);
    std::vector<float> back;
    const Status status = internal::values_of(tile, back);
    EXPECT_TRUE(status.ok()) << status.message();
    EXPECT_EQ(std::memcmp(back.data(), values.data(), 4 * values.size()), 0);
    EXPECT_EQ(back.size(), values.size());
    return tile.values().size();
  };
  const std::vector<float> plain = normals(1000, 1);
  EXPECT_EQ(bytes_of(plain, none), 4000u);
  EXPECT_EQ(bytes_of(plain, int8), 4000u) << "no bits are lost that the client did not drop";
  EXPECT_EQ(bytes_of(plain, top_k), 4000u);
  const auto packed = compress({Compression::kInt8}, plain);
  const std::vector<float> rounded = *decompress(*packed, 1000);
  EXPECT_LT(bytes_of(rounded, int8), 1100u);
  std::vector<float> sparse(1000, 0.0f);
  sparse[0] = -0.0f;
  sparse[17] = 3;
  sparse[999] = 1e-42f;
  EXPECT_EQ(bytes_of(sparse, top_k), 24u);
  EXPECT_EQ(bytes_of({}, none), 0u);
}

TEST(UpdateTile, OfWrongBytesIsRefused) {
  const auto problem = [](int32_t encoding, int64_t count, const std::string& bytes) {
    wire::Tile tile;
    tile.set_encoding(encoding);
    tile.set_count(count);
    tile.set_values(bytes);
    std::vector<float> values;
    const Status status = internal::values_of(tile, values);
    EXPECT_EQ(status.code(), StatusCode::kDataLoss);
    return status.message();
  };
  EXPECT_THAT(problem(0, 2, "1234567"), HasSubstr("a tile of 2 values in 7 bytes"));
  EXPECT_THAT(problem(0, -1, ""), HasSubstr("a tile of -1 values"));
  EXPECT_THAT(problem(0, internal::kTileValues + 1, ""), HasSubstr("at most 16384 are taken"));
  EXPECT_THAT(problem(9, 2, "12345678"), HasSubstr("encoding 9"));
  EXPECT_THAT(problem(2, 4, std::string("\4\0\0\0", 4) + "1234"),
              HasSubstr("the place 4 after -1 of 4"));
  EXPECT_THAT(problem(2, 4, std::string("\2\0\0\0\2\0\0\0", 8) + "12345678"),
              HasSubstr("the place 2 after 2 of 4"));
  problem(1, 64, "junk");
}

TEST(UpdateSums, HaveTheBitsOfARoundForTilesInAnyOrder) {
  // Three clients, two vectors of 40,000 values: tiles run over the border between the vectors.
  constexpr int64_t kP = 40000;
  AggregatorConfig config;
  config.name = "scaffold";
  const AggregatorContext context{.num_parameters = kP, .num_clients = 3};
  auto aggregator = make_aggregator(config, context);
  auto twin = make_aggregator(config, context);
  ASSERT_TRUE(aggregator.ok() && twin.ok());
  std::vector<std::vector<float>> updates;
  Round round(**aggregator, 0);
  for (int64_t k = 0; k < 3; ++k) {
    updates.push_back(normals(2 * kP, static_cast<uint64_t>(k)));
    ASSERT_TRUE(
        round.add({.report = {.client_id = k, .num_samples = 7 + 3 * k}, .values = updates.back()})
            .ok());
  }
  const auto expected = round.finish();
  ASSERT_TRUE(expected.ok());
  internal::UpdateSums sums(kP, 2, *expected);
  for (int64_t at = 0; at < 2 * kP; at += 16384) {
    for (const size_t k : {size_t{2}, size_t{0}, size_t{1}}) {
      const auto count = static_cast<size_t>(std::min<int64_t>(16384, 2 * kP - at));
      sums.add(k, at, std::span<const float>(updates[k]).subspan(static_cast<size_t>(at), count));
    }
  }
  const std::span<double> delta = sums.finish();
  (*twin)->step(expected->reports_K, expected->weights_K, delta);
  EXPECT_EQ(std::memcmp(delta.data(), expected->delta_P.data(), 8 * kP), 0);
  const std::vector<float> x = normals(kP, 9);
  const auto model = sums.become_model([&](int64_t at, std::span<float> piece) -> Status {
    std::copy_n(x.begin() + at, piece.size(), piece.begin());
    return {};
  });
  ASSERT_TRUE(model.ok());
  for (size_t j = 0; j < kP; ++j) {
    ASSERT_EQ((*model)[j], static_cast<float>(static_cast<double>(x[j]) + expected->delta_P[j]))
        << j;
  }
}

}  // namespace
}  // namespace gradus::federated
