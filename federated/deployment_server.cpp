// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <list>
#include <map>
#include <mutex>
#include <optional>
#include <random>
#include <set>
#include <shared_mutex>
#include <thread>

#include "common/log.h"
#include "common/strings.h"
#include "federated/deployment.h"
#include "federated/internal/client_update.h"
#include "federated/internal/deployment_wire.h"
#include "federated/internal/measurement.h"
#include "federated/internal/round_metrics.h"
#include "federated/internal/round_plan.h"
#include "federated/internal/update_sums.h"
#include "federated/replay_guard.h"
#include "records/state_file.h"

// Threads: run() is the caller's and goes from round to round; one thread takes connections; each
// connection has one, a Session. A session that has nothing to do waits for its socket and for its
// event, by which the others call it. State::mutex guards who stands where; the sums have locks of
// their own, and State::sums_gate keeps them in place while a tile is added.
namespace gradus::federated {
namespace {

using Clock = std::chrono::steady_clock;
namespace wire = internal::wire;

// Of a connection's thread. The default of 8 MiB cost 0.6 MB of memory each, by pages that the
// kernel gives in large pieces.
constexpr size_t kStackBytes = 256 << 10;
constexpr double kIdleS = 1;  // a session's look around, without being called
constexpr double kAcceptS = 0.1;
constexpr auto kLook = std::chrono::milliseconds(50);  // run()'s looks at is_stopped

std::span<char> bytes_of(std::span<float> values) {
  return {reinterpret_cast<char*>(values.data()), values.size_bytes()};
}

// A round's model, and the strategy's vector behind it, in the file of the server's state. The file
// stays readable after it was removed.
class ModelFile {
 public:
  static Result<std::shared_ptr<const ModelFile>> open(const std::string& path) {
    const Result<records::StateReader> reader = records::StateReader::open(path);
    if (!reader.ok()) return reader.status();
    auto file = std::make_shared<ModelFile>();
    file->path_ = path;
    file->descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file->descriptor_ < 0) return unavailable("{}: {}", path, std::strerror(errno));
    for (const records::StateEntry& entry : reader->entries()) {
      if (entry.name == "model") file->model_ = entry;
      if (entry.name == "broadcast") file->broadcast_ = entry;
    }
    if (file->model_.count == 0) return data_loss("{}: no model in it", path);
    return std::shared_ptr<const ModelFile>(std::move(file));
  }
  ModelFile() = default;
  ModelFile(const ModelFile&) = delete;
  ModelFile& operator=(const ModelFile&) = delete;
  ~ModelFile() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }

  uint64_t hash() const { return model_.hash; }
  int64_t num_values() const { return static_cast<int64_t>(model_.count); }
  int64_t num_broadcast() const { return static_cast<int64_t>(broadcast_.count); }

  // Bytes of the values from `offset` on, of the model or of the vector behind it.
  Status read(bool is_model, int64_t offset, std::span<char> bytes) const {
    const records::StateEntry& entry = is_model ? model_ : broadcast_;
    auto at = static_cast<off_t>(entry.offset) + 4 * offset;
    for (size_t done = 0; done < bytes.size();) {
      const ssize_t count = pread(descriptor_, bytes.data() + done, bytes.size() - done, at);
      if (count <= 0) {
        return data_loss("{}: {}", path_, count == 0 ? "cut off" : std::strerror(errno));
      }
      done += static_cast<size_t>(count);
      at += count;
    }
    return {};
  }

 private:
  std::string path_;
  int descriptor_ = -1;
  records::StateEntry model_, broadcast_;
};

// Where a client of the round stands.
enum class Standing { kAsked, kReported, kUploaded, kOut };

struct Member {
  Standing standing = Standing::kAsked;
  ClientReport report{};
  uint64_t nonce = 0;
  // Of the upload under way.
  size_t index = 0;    // in the plan
  int64_t offset = 0;  // values that are in the sums
  internal::Measurement measurement{};
  bool is_sending = false;
};

enum class Phase { kBetween, kReports, kUploads, kOver, kClosed };

std::string names_of(const std::vector<int64_t>& clients) {
  std::vector<std::string> names;
  for (const int64_t id : clients) names.push_back(std::to_string(id));
  return (names.size() == 1 ? "client " : "clients ") + join(names, ", ");
}

class Session;

}  // namespace

// A thread with a stack of kStackBytes. Joined by its owner.
class SmallThread {
 public:
  void start(std::function<void()> body) {
    body_ = std::move(body);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, kStackBytes);
    const int error = pthread_create(
        &thread_, &attributes,
        [](void* self) -> void* {
          static_cast<SmallThread*>(self)->body_();
          return nullptr;
        },
        this);
    pthread_attr_destroy(&attributes);
    GRADUS_CHECK(error == 0, fmt::format("no thread: {}", std::strerror(error)));
  }
  void join() { pthread_join(thread_, nullptr); }

 private:
  std::function<void()> body_;
  pthread_t thread_{};
};

struct DeploymentServer::State {
  State(const FederatedConfig& c, uint64_t s, const LocalTask& t) : config(c), seed(s), task(t) {}

  FederatedConfig config;
  uint64_t seed;
  const LocalTask& task;
  std::unique_ptr<Aggregator> aggregator;
  std::unique_ptr<SecureListener> listener;
  std::map<PublicKey, int64_t> clients;  // by key
  std::vector<std::pair<std::string, std::string>> settings;
  uint64_t run_id = 0;
  std::vector<double> cumulated_samples;
  std::function<void(const std::string&)> say;

  std::atomic<bool> is_closed = false;

  std::mutex mutex;                 // of what follows
  std::condition_variable changed;  // a member's standing, or who is there
  Phase phase = Phase::kBetween;
  int64_t round = 0;
  std::map<int64_t, Member> members;
  std::shared_ptr<const ModelFile> model;
  RoundOptions options;
  ReplayGuard guard{1};
  Refusals refusals;
  std::map<int64_t, Session*> sessions;  // the newest of each client
  std::set<int64_t> told;                // that the run is over
  int64_t num_transfers = 0;
  std::deque<Session*> waiting;  // for a transfer

  std::shared_mutex sums_gate;  // of what follows
  int64_t attempt = 0;
  std::unique_ptr<internal::UpdateSums> sums;

  int64_t update_size() const { return task.num_parameters() * aggregator->num_vectors(); }
  void call_all();
  void release_transfer();

  Status run_round(const ServerHooks& hooks);
  Result<bool> collect(const ServerHooks& hooks, RoundResult& result, int64_t& num_dropped,
                       int64_t& num_late);
  template <class IsDone>
  bool wait_until(const ServerHooks& hooks, Clock::time_point deadline, IsDone is_done);
  Status write(const std::string& path, std::span<const float> model_P) const;
  Status save(const ServerHooks& hooks, std::span<const float> model_P);
};

namespace {

// One connection of a client.
class Session {
 public:
  Session(DeploymentServer::State& server, SecureChannel& channel)
      : server_(server), channel_(channel), event_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    GRADUS_CHECK(event_ >= 0, "no eventfd");
  }
  ~Session() {
    leave();
    ::close(event_);
  }

  // Until the connection ends; the status says why, for people.
  Status serve() {
    GRADUS_RETURN_IF_ERROR(greet());
    for (;;) {
      if (channel_.wait(0)) {
        GRADUS_RETURN_IF_ERROR(answer());
        continue;
      }
      bool is_idle = false, is_over = false;
      GRADUS_RETURN_IF_ERROR(work(is_idle, is_over));
      if (is_over) return {};
      if (is_idle && !channel_.wait(kIdleS, event_)) clear_event();
    }
  }

  int64_t client_id() const { return id_; }
  void call() {
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = ::write(event_, &one, sizeof(one));
  }
  void shut_down() { channel_.shut_down(); }
  void grant() {
    has_transfer_ = true;
    call();
  }

 private:
  void clear_event() {
    uint64_t count = 0;
    [[maybe_unused]] const ssize_t taken = ::read(event_, &count, sizeof(count));
  }

  Status send(const wire::Message& message) {
    return internal::send_message(channel_, message, server_.config.deploy.io_timeout_s);
  }
  Status receive(wire::Message& message) {
    return internal::receive_message(channel_, message, server_.config.deploy.io_timeout_s);
  }
  Status refuse(const std::string& reason, bool is_final) {
    wire::Message message;
    message.mutable_refusal()->set_reason(reason);
    message.mutable_refusal()->set_is_final(is_final);
    const Status sent = send(message);
    return is_final ? invalid_argument("{}: refused: {}", channel_.peer_address(), reason) : sent;
  }

  // Who it is, and whether both sides do the same.
  Status greet() {
    const auto known = server_.clients.find(channel_.peer());
    if (known == server_.clients.end()) {
      return refuse(fmt::format("the key {} is not among those of the clients; add it to the "
                                "server's file of client keys",
                                to_text(channel_.peer())),
                    true);
    }
    wire::Message message;
    GRADUS_RETURN_IF_ERROR(receive(message));
    if (!message.has_hello()) {
      return data_loss("{}: a {} where a Hello was expected", channel_.peer_address(),
                       internal::kind_of(message));
    }
    const wire::Hello& hello = message.hello();
    if (hello.protocol() != internal::kProtocolVersion) {
      return refuse(fmt::format("the client speaks version {} of the protocol, the server {}; use "
                                "one version of gradus",
                                hello.protocol(), internal::kProtocolVersion),
                    true);
    }
    if (hello.client_id() != known->second) {
      return refuse(
          fmt::format("the key {} is that of client {}, but this is client {}; give "
                      "--client {}, or the other client's key",
                      to_text(channel_.peer()), known->second, hello.client_id(), known->second),
          true);
    }
    if (const Status same = internal::compare_settings(server_.settings, hello); !same.ok()) {
      return refuse(same.message(), true);
    }
    if (hello.num_parameters() != server_.task.num_parameters()) {
      return refuse(fmt::format("the client's model has {} weights, the server's {}; their data "
                                "differ in features or classes",
                                hello.num_parameters(), server_.task.num_parameters()),
                    true);
    }
    wire::Welcome& welcome = *message.mutable_welcome();
    {
      const std::lock_guard lock(server_.mutex);
      if (server_.phase == Phase::kClosed) return unavailable("the server ends");
      id_ = known->second;
      Session*& newest = server_.sessions[id_];
      // The client has come again, so the old connection is dead, whatever the network says.
      if (newest != nullptr) newest->shut_down();
      newest = this;
      welcome.set_round(server_.round);
      welcome.set_num_rounds(server_.config.num_rounds);
      welcome.set_run_id(server_.run_id);
    }
    server_.changed.notify_all();
    return send(message);
  }

  // What the client sent without being asked at this moment.
  Status answer() {
    wire::Message message;
    GRADUS_RETURN_IF_ERROR(receive(message));
    if (message.has_report()) return take_report(message.report());
    if (message.has_fetch() && told_model_) {
      wants_model_ = true;
      return {};
    }
    return data_loss("{}: a {} that was not expected here", channel_.peer_address(),
                     internal::kind_of(message));
  }

  Status take_report(const wire::Report& report) {
    std::string refusal;
    Refusal cause = Refusal::kReplay;
    bool is_in = false;
    {
      const std::lock_guard lock(server_.mutex);
      const auto found = server_.members.find(id_);
      const bool is_open = server_.phase == Phase::kReports || server_.phase == Phase::kUploads;
      if (report.round() != server_.round || !is_open || found == server_.members.end()) {
        refusal = fmt::format("client {}: an update of round {}; round {} is open; refused", id_,
                              report.round() + 1, server_.round + 1);
      } else {
        Member& member = found->second;
        if (member.standing == Standing::kOut) {
          refusal = fmt::format("client {}: round {} goes on without its update", id_,
                                report.round() + 1);
        } else if (member.standing == Standing::kAsked) {
          Status status = server_.guard.admit(report.round(), id_, report.nonce());
          const ClientReport taken = internal::report_of(report, id_);
          if (status.ok()) {
            status = internal::check_report(*server_.aggregator, server_.round, server_.options,
                                            taken, cause);
          }
          member.standing = status.ok() ? Standing::kReported : Standing::kOut;
          member.report = taken;
          member.nonce = report.nonce();
          refusal = status.message();
        } else if (member.nonce != report.nonce()) {
          refusal = server_.guard.admit(report.round(), id_, report.nonce()).message();
        } else {
          is_in = member.standing == Standing::kUploaded;  // said again after a new connection
        }
      }
      if (refusal.empty()) reported_round_ = report.round();
      if (!refusal.empty()) server_.refusals.add(cause);
    }
    server_.changed.notify_all();
    if (!refusal.empty()) {
      server_.say(refusal);
      return refuse(refusal, false);
    }
    if (!is_in) return {};
    wire::Message message;
    message.mutable_received()->set_round(report.round());
    return send(message);
  }

  // The next thing that the round wants of this client.
  Status work(bool& is_idle, bool& is_over) {
    wire::Message message;
    std::unique_lock lock(server_.mutex);
    if (server_.phase == Phase::kClosed) return unavailable("the server ends");
    if (server_.sessions[id_] != this) return unavailable("the client has come again");
    if (server_.phase == Phase::kOver) {
      message.mutable_finished()->set_num_rounds(server_.round);
      message.mutable_finished()->set_model_hash(server_.model->hash());
      lock.unlock();
      const Status sent = send(message);
      // The client goes when it has read this; what it was about to say does not matter any more.
      for (Status read = sent; read.ok();) read = receive(message);
      lock.lock();
      if (sent.ok()) server_.told.insert(id_);
      server_.changed.notify_all();
      is_over = true;
      return sent;
    }
    if (wants_model_) {
      if (!take_transfer()) {
        is_idle = true;
        return {};
      }
      lock.unlock();
      return send_model();
    }
    const auto found = server_.members.find(id_);
    const bool is_open = server_.phase == Phase::kReports || server_.phase == Phase::kUploads;
    if (!is_open || found == server_.members.end()) {
      drop_transfer();
      is_idle = true;
      return {};
    }
    Member& member = found->second;
    const bool is_wanted =
        member.standing == Standing::kAsked || member.standing == Standing::kReported;
    if (is_wanted && told_round_ != server_.round) {
      told_round_ = server_.round;
      told_model_ = server_.model;
      wire::Train& train = *message.mutable_train();
      train.set_round(server_.round);
      train.set_model_hash(told_model_->hash());
      train.set_num_values(told_model_->num_values());
      train.set_num_broadcast(told_model_->num_broadcast());
      lock.unlock();
      return send(message);
    }
    const bool may_upload = server_.phase == Phase::kUploads &&
                            member.standing == Standing::kReported &&
                            reported_round_ == server_.round && !member.is_sending;
    if (!may_upload) drop_transfer();
    if (!may_upload || !take_transfer()) {
      is_idle = true;
      return {};
    }
    member.is_sending = true;
    const int64_t round = server_.round;
    lock.unlock();
    const Status taken = take_update(round);
    lock.lock();
    if (const auto again = server_.members.find(id_);
        server_.round == round && again != server_.members.end()) {
      again->second.is_sending = false;
    }
    end_transfer();
    // A new connection of the client may wait for this one's end.
    if (Session* newest = server_.sessions[id_]; newest != nullptr) newest->call();
    lock.unlock();
    server_.changed.notify_all();
    return taken;
  }

  // With the mutex. Whether it is this session's turn to send or take a model; else it queues.
  bool take_transfer() {
    if (has_transfer_) return true;
    if (is_queued_) return false;
    if (server_.num_transfers < server_.config.deploy.max_transfers) {
      ++server_.num_transfers;
      has_transfer_ = true;
      return true;
    }
    server_.waiting.push_back(this);
    is_queued_ = true;
    return false;
  }
  void end_transfer() {
    if (!has_transfer_) return;
    has_transfer_ = is_queued_ = false;
    server_.release_transfer();
  }

  // Gives up what take_transfer() queued for or got: the round has gone on.
  void drop_transfer() {
    if (is_queued_ && !has_transfer_) {
      std::erase(server_.waiting, this);
      is_queued_ = false;
    }
    end_transfer();
  }

  Status send_model() {
    const std::shared_ptr<const ModelFile> model = told_model_;
    const auto all = [&]() -> Status {
      wire::Message message;
      const int64_t total = model->num_values() + model->num_broadcast();
      for (int64_t at = 0; at < total;) {
        const bool is_model = at < model->num_values();
        const int64_t begin = is_model ? 0 : model->num_values();
        const int64_t end = is_model ? model->num_values() : total;
        const int64_t count = std::min(internal::kTileValues, end - at);
        wire::Tile& tile = *message.mutable_tile();
        tile.set_offset(at);
        tile.set_count(count);
        // From the file into the message, raw floats.
        std::string& bytes = *tile.mutable_values();
        bytes.resize(static_cast<size_t>(count) * sizeof(float));
        GRADUS_RETURN_IF_ERROR(model->read(is_model, at - begin, bytes));
        GRADUS_RETURN_IF_ERROR(send(message));
        at += count;
      }
      return {};
    };
    const Status sent = all();
    wants_model_ = false;
    const std::lock_guard lock(server_.mutex);
    end_transfer();
    return sent;
  }

  // Has the client send its update from where it stopped, and adds it tile by tile.
  Status take_update(int64_t round) {
    const int64_t total = server_.update_size();
    wire::Message message;
    wire::Upload& order = *message.mutable_upload();
    {
      const std::shared_lock gate(server_.sums_gate);
      const std::lock_guard lock(server_.mutex);
      const auto found = server_.members.find(id_);
      if (server_.phase != Phase::kUploads || server_.round != round ||
          found == server_.members.end()) {
        return {};  // the round has gone on
      }
      order.set_round(round);
      order.set_attempt(server_.attempt);
      order.set_offset(found->second.offset);
    }
    const int64_t attempt = order.attempt();
    int64_t at = order.offset();
    GRADUS_RETURN_IF_ERROR(send(message));
    std::vector<float> values;
    bool is_wanted = true;
    while (at < total) {
      GRADUS_RETURN_IF_ERROR(receive(message));
      if (!message.has_tile()) {
        return data_loss("{}: a {} in the middle of an update", channel_.peer_address(),
                         internal::kind_of(message));
      }
      const wire::Tile& tile = message.tile();
      GRADUS_RETURN_IF_ERROR(internal::values_of(tile, values));
      const auto count = static_cast<int64_t>(values.size());
      if (tile.attempt() != attempt || tile.offset() != at ||
          count != std::min(internal::kTileValues, total - at)) {
        return data_loss("{}: a tile of {} values at {}; expected the one at {}",
                         channel_.peer_address(), count, tile.offset(), at);
      }
      // What is not wanted any more is read to its end, so that the next message is found.
      if (is_wanted) is_wanted = add_tile(attempt, at, values);
      at += count;
    }
    if (!is_wanted) return {};
    return end_update(attempt);
  }

  // False if the sums have begun again, or the values are not those of the report.
  bool add_tile(int64_t attempt, int64_t at, std::span<const float> values) {
    const std::shared_lock gate(server_.sums_gate);
    if (server_.attempt != attempt) return false;
    Member* member = nullptr;
    {
      const std::lock_guard lock(server_.mutex);
      member = &server_.members.at(id_);
      if (member->standing != Standing::kReported) return false;
    }
    // This session alone has it in hand.
    internal::Measurement& measured = member->measurement;
    measured.add(values);
    const bool is_finite = std::isfinite(measured.squared_norm());
    if (!is_finite || measured.max_abs() > member->report.max_abs) {
      give_up(
          fmt::format("client {}: a value of {:.4g} in its update, whose report says {:.4g} at "
                      "most; refused",
                      id_, is_finite ? measured.max_abs() : NAN, member->report.max_abs));
      return false;
    }
    server_.sums->add(member->index, at, values);
    const std::lock_guard lock(server_.mutex);
    member->offset = at + static_cast<int64_t>(values.size());
    return true;
  }

  Status end_update(int64_t attempt) {
    {
      const std::shared_lock gate(server_.sums_gate);
      if (server_.attempt != attempt) return {};
      const Member* member = nullptr;
      {
        const std::lock_guard lock(server_.mutex);
        member = &server_.members.at(id_);
      }
      if (member->measurement.squared_norm() != member->report.squared_norm) {
        give_up(fmt::format(
            "client {}: its update has norm {:.6g}, its report says {:.6g}; refused", id_,
            std::sqrt(member->measurement.squared_norm()), std::sqrt(member->report.squared_norm)));
        return {};
      }
      const std::lock_guard lock(server_.mutex);
      server_.members.at(id_).standing = Standing::kUploaded;
    }
    server_.changed.notify_all();
    wire::Message message;
    message.mutable_received()->set_round(reported_round_);
    return send(message);
  }

  // The round goes on without this client.
  void give_up(const std::string& reason) {
    {
      const std::lock_guard lock(server_.mutex);
      server_.members.at(id_).standing = Standing::kOut;
      server_.refusals.add(Refusal::kMismatch);
    }
    server_.say(reason);
    server_.changed.notify_all();
  }

  void leave() {
    {
      const std::lock_guard lock(server_.mutex);
      drop_transfer();
      const auto mine = server_.sessions.find(id_);
      if (mine != server_.sessions.end() && mine->second == this) server_.sessions.erase(mine);
    }
    server_.changed.notify_all();
  }

  DeploymentServer::State& server_;
  SecureChannel& channel_;
  int event_;
  int64_t id_ = -1;
  int64_t told_round_ = -1, reported_round_ = -1;
  std::shared_ptr<const ModelFile> told_model_;
  bool wants_model_ = false;
  bool has_transfer_ = false, is_queued_ = false;  // with the mutex
};

}  // namespace

void DeploymentServer::State::call_all() {
  const std::lock_guard lock(mutex);
  for (const auto& [id, session] : sessions) session->call();
}

// With the mutex.
void DeploymentServer::State::release_transfer() {
  if (waiting.empty()) {
    --num_transfers;
    return;
  }
  Session* next = waiting.front();
  waiting.pop_front();
  next->grant();
}

template <class IsDone>
bool DeploymentServer::State::wait_until(const ServerHooks& hooks, Clock::time_point deadline,
                                         IsDone is_done) {
  std::unique_lock lock(mutex);
  while (!is_done()) {
    if (Clock::now() >= deadline || hooks.is_stopped()) return false;
    changed.wait_for(lock, kLook);
  }
  return true;
}

// From the choice of clients to sums that are whole; false if there are too few updates for a step.
Result<bool> DeploymentServer::State::collect(const ServerHooks& hooks, RoundResult& result,
                                              int64_t& num_dropped, int64_t& num_late) {
  const auto patience = std::chrono::duration_cast<Clock::duration>(
      std::chrono::duration<double>(std::min(config.deploy.round_timeout_s, 1e6)));
  {
    const std::lock_guard lock(mutex);
    members.clear();
    for (const int64_t id : internal::choose_clients(config.clients, task.num_clients(),
                                                     cumulated_samples, seed, round)) {
      members[id];
    }
    guard.start_round(round);
    refusals = {};
    phase = Phase::kReports;
  }
  call_all();
  const auto none_is = [this](Standing standing) {
    return std::none_of(members.begin(), members.end(),
                        [&](const auto& member) { return member.second.standing == standing; });
  };
  wait_until(hooks, Clock::now() + patience, [&] { return none_is(Standing::kAsked); });
  if (hooks.is_stopped()) return false;
  // Those that stand at `standing` are out from now on.
  const auto leave_behind = [&](Standing standing, const char* what) {
    std::vector<int64_t> missing;
    {
      const std::lock_guard lock(mutex);
      for (auto& [id, member] : members) {
        if (member.standing != standing) continue;
        member.standing = Standing::kOut;
        missing.push_back(id);
      }
    }
    if (!missing.empty()) {
      say(fmt::format("round {} goes on without {}: no {} within {} s", round + 1,
                      names_of(missing), what, config.deploy.round_timeout_s));
    }
    return static_cast<int64_t>(missing.size());
  };
  num_dropped = leave_behind(Standing::kAsked, "report");
  for (;;) {
    {
      const std::unique_lock gate(sums_gate);  // nobody adds
      const std::lock_guard lock(mutex);
      result = RoundResult();
      for (const auto& [id, member] : members) {
        if (member.standing != Standing::kOut) result.reports_K.push_back(member.report);
      }
      const Status weighed = internal::weigh(*aggregator, round, options, result);
      if (!weighed.ok() && weighed.code() != StatusCode::kUnavailable) return weighed;
      ++attempt;
      sums.reset();
      if (!weighed.ok()) {
        log_warn("federated", "the model stays as it is: " + weighed.message(),
                 {{"round", round + 1}});
        return false;
      }
      sums = std::make_unique<internal::UpdateSums>(task.num_parameters(),
                                                    aggregator->num_vectors(), result);
      for (size_t k = 0; k < result.reports_K.size(); ++k) {
        Member& member = members.at(result.reports_K[k].client_id);
        member.standing = Standing::kReported;
        member.index = k;
        member.offset = 0;
        member.measurement = {};
      }
      phase = Phase::kUploads;
    }
    call_all();
    // Without one of them the weights are others, and the sums begin again.
    const auto has_lost = [&] {
      return std::any_of(result.reports_K.begin(), result.reports_K.end(), [&](const auto& report) {
        return members.at(report.client_id).standing == Standing::kOut;
      });
    };
    wait_until(hooks, Clock::now() + patience,
               [&] { return has_lost() || none_is(Standing::kReported); });
    if (hooks.is_stopped()) return false;
    bool is_whole = false, is_late = false;
    {
      const std::lock_guard lock(mutex);
      is_whole = !has_lost() && none_is(Standing::kReported);
      is_late = !has_lost() && !is_whole;
    }
    if (is_whole) return true;
    if (is_late) num_late += leave_behind(Standing::kReported, "whole update");
  }
}

Status DeploymentServer::State::run_round(const ServerHooks& hooks) {
  const auto started = Clock::now();
  RoundResult result;
  int64_t num_dropped = 0, num_late = 0;
  const Result<bool> collected = collect(hooks, result, num_dropped, num_late);
  if (!collected.ok()) return collected.status();
  if (hooks.is_stopped()) return {};
  Refusals refused;
  std::unique_ptr<internal::UpdateSums> step;
  {
    const std::unique_lock gate(sums_gate);
    const std::lock_guard lock(mutex);
    phase = Phase::kBetween;
    ++attempt;
    step = std::move(sums);
    refused = refusals;
  }
  Metrics metrics;
  std::vector<float> unchanged;
  std::span<float> next;
  if (*collected) {
    const std::span<double> delta = step->finish();
    aggregator->step(result.reports_K, result.weights_K, delta);
    internal::add_result_metrics(result, delta.first(static_cast<size_t>(task.num_parameters())),
                                 metrics);
    const Result<std::span<float>> made = step->become_model(
        [&](int64_t at, std::span<float> piece) { return model->read(true, at, bytes_of(piece)); });
    if (!made.ok()) return made.status();
    next = *made;
  } else {
    unchanged.resize(static_cast<size_t>(task.num_parameters()));
    GRADUS_RETURN_IF_ERROR(model->read(true, 0, bytes_of(unchanged)));
    next = unchanged;
  }
  const ClientTerms terms = aggregator->client_terms(round);
  {
    const std::lock_guard lock(mutex);
    members.clear();
    ++round;
  }
  metrics.set("training/global_step", static_cast<double>(round));
  metrics.set("federated/updates", *collected ? static_cast<double>(result.reports_K.size()) : 0.0);
  refused.set_metrics(metrics);
  metrics.set("federated/dropped", static_cast<double>(num_dropped));
  metrics.set("federated/late", static_cast<double>(num_late));
  metrics.set("federated/skipped_rounds", *collected ? 0 : 1);
  metrics.set("federated/client_lr", internal::client_lr(config.local, round - 1));
  if (terms.flood.is_on) metrics.set("federated/flood_weight", terms.flood.weight);
  const double seconds = std::chrono::duration<double>(Clock::now() - started).count();
  metrics.set("timing_s/step", seconds);
  metrics.set("federated/client_rounds_per_s",
              static_cast<double>(result.reports_K.size()) / seconds);
  GRADUS_RETURN_IF_ERROR(hooks.on_round(round, next, metrics));
  return save(hooks, next);
}

Status DeploymentServer::State::write(const std::string& path,
                                      std::span<const float> model_P) const {
  Result<records::StateWriter> writer = records::StateWriter::create(path);
  if (!writer.ok()) return writer.status();
  GRADUS_RETURN_IF_ERROR(writer->add("round", round));
  GRADUS_RETURN_IF_ERROR(writer->add("run_id", run_id));
  GRADUS_RETURN_IF_ERROR(writer->add("settings", internal::fingerprint_of(settings)));
  GRADUS_RETURN_IF_ERROR(writer->add_text("strategy", config.strategy.name));
  GRADUS_RETURN_IF_ERROR(writer->add("model", model_P));
  const std::span<const float> broadcast = aggregator->broadcast();
  if (!broadcast.empty()) GRADUS_RETURN_IF_ERROR(writer->add("broadcast", broadcast));
  Status status;
  aggregator->visit_state([&](const std::string& name, std::vector<float>& values) {
    if (status.ok()) status = writer->add("strategy/" + name, std::span<const float>(values));
  });
  GRADUS_RETURN_IF_ERROR(status);
  return writer->finish();
}

Status DeploymentServer::State::save(const ServerHooks& hooks, std::span<const float> model_P) {
  const Result<std::string> path =
      hooks.save(round, [&](const std::string& to) { return write(to, model_P); });
  if (!path.ok()) return path.status();
  Result<std::shared_ptr<const ModelFile>> file = ModelFile::open(*path);
  if (!file.ok()) return file.status();
  const std::lock_guard lock(mutex);
  model = std::move(*file);
  return {};
}

DeploymentServer::DeploymentServer(std::unique_ptr<State> state) : state_(std::move(state)) {}
DeploymentServer::~DeploymentServer() = default;
int DeploymentServer::port() const { return state_->listener->port(); }
int64_t DeploymentServer::round() const { return state_->round; }

Result<std::unique_ptr<DeploymentServer>> DeploymentServer::make(
    const FederatedConfig& config, uint64_t seed, const LocalTask& task, const Identity& identity,
    std::vector<PublicKey> client_keys, const std::string& address) {
  GRADUS_RETURN_IF_ERROR(validate_deployment(config));
  if (static_cast<int64_t>(client_keys.size()) != config.clients.num_clients) {
    return invalid_argument(
        "{} client keys, but federated.clients.num_clients is {}; give one a "
        "client, in their order",
        client_keys.size(), config.clients.num_clients);
  }
  auto state = std::make_unique<State>(config, seed, task);
  for (size_t k = 0; k < client_keys.size(); ++k) {
    state->clients[client_keys[k]] = static_cast<int64_t>(k);
  }
  Result<std::unique_ptr<Aggregator>> aggregator = internal::aggregator_of(config, task);
  if (!aggregator.ok()) return aggregator.status();
  state->aggregator = std::move(*aggregator);
  if (state->aggregator->needs_all_updates()) {
    return invalid_argument(
        "federated.strategy.name {} needs all updates at once, of which a deployment's server "
        "holds "
        "none; take a weighted sum such as fedavg or norm_clipping, or simulate it",
        config.strategy.name);
  }
  state->settings = internal::shared_settings(config, seed);
  state->cumulated_samples = internal::cumulated_samples(config.clients, task);
  state->options.max_norm = config.clients.max_norm;
  std::random_device entropy;
  state->run_id = (static_cast<uint64_t>(entropy()) << 32) | entropy() | 1;
  Result<std::unique_ptr<SecureListener>> listener = SecureListener::listen(address, identity);
  if (!listener.ok()) return listener.status();
  state->listener = std::move(*listener);
  return std::unique_ptr<DeploymentServer>(new DeploymentServer(std::move(state)));
}

Status DeploymentServer::load(const std::string& path) {
  State& state = *state_;
  const Result<records::StateReader> reader = records::StateReader::open(path);
  if (!reader.ok()) return reader.status();
  const Result<int64_t> round = reader->read_i64("round");
  const Result<uint64_t> run_id = reader->read_u64("run_id");
  const Result<uint64_t> settings = reader->read_u64("settings");
  for (const Status& status : {round.status(), run_id.status(), settings.status()}) {
    GRADUS_RETURN_IF_ERROR(status);
  }
  const uint64_t fingerprint = internal::fingerprint_of(state.settings);
  if (*settings != fingerprint) {
    return invalid_argument(
        "{}: written under configuration {:016x}, this is {:016x}; resume with "
        "the configuration that it began with",
        path, *settings, fingerprint);
  }
  Status status;
  state.aggregator->visit_state([&](const std::string& name, std::vector<float>& values) {
    for (const records::StateEntry& entry : reader->entries()) {
      if (entry.name == "strategy/" + name) values.resize(static_cast<size_t>(entry.count));
    }
    if (status.ok()) status = reader->read("strategy/" + name, std::span(values));
  });
  GRADUS_RETURN_IF_ERROR(status);
  Result<std::shared_ptr<const ModelFile>> model = ModelFile::open(path);
  if (!model.ok()) return model.status();
  if ((*model)->num_values() != state.task.num_parameters()) {
    return invalid_argument("{}: its model has {} weights, this one {}", path,
                            (*model)->num_values(), state.task.num_parameters());
  }
  state.model = std::move(*model);
  state.round = *round;
  state.run_id = *run_id;
  return {};
}

Status DeploymentServer::run(const ServerHooks& hooks) {
  // Without this each of 16 threads keeps a heap of its own, with holes of its own.
  mallopt(M_ARENA_MAX, 2);
  State& state = *state_;
  state.say = hooks.say;
  state.is_closed = false;
  if (!state.model) {
    std::vector<float> model(static_cast<size_t>(state.task.num_parameters()));
    state.task.initialize(internal::initial_seed(state.seed), model);
    GRADUS_RETURN_IF_ERROR(state.save(hooks, model));
  }
  struct Connection {
    SmallThread thread;
    std::atomic<bool> is_done = false;
  };
  const auto most = static_cast<size_t>(4 * state.config.clients.num_clients + 16);
  std::thread acceptor([&] {
    std::list<Connection> connections;
    while (!state.is_closed) {
      for (auto at = connections.begin(); at != connections.end();) {
        if (at->is_done) {
          at->thread.join();
          at = connections.erase(at);
        } else {
          ++at;
        }
      }
      const SecureListener::Handshake handshake = state.listener->accept(kAcceptS);
      if (!handshake || connections.size() >= most) continue;
      Connection& one = connections.emplace_back();
      one.thread.start([&state, &one, handshake] {
        const auto channel = handshake(state.config.deploy.io_timeout_s);
        Status status = channel.status();
        int64_t id = -1;
        if (channel.ok()) {
          Session session(state, **channel);
          status = session.serve();
          id = session.client_id();
        }
        if (!status.ok() && !state.is_closed) {
          state.say(id >= 0 ? fmt::format("client {} is gone: {}", id, status.message())
                            : status.message());
        }
        one.is_done = true;
      });
    }
    for (Connection& one : connections) one.thread.join();
  });
  Status status;
  while (status.ok() && state.round < state.config.num_rounds && !hooks.is_stopped()) {
    status = state.run_round(hooks);
  }
  if (status.ok() && state.round >= state.config.num_rounds) {
    {
      const std::lock_guard lock(state.mutex);
      state.phase = Phase::kOver;
    }
    state.call_all();
    const auto patience = std::chrono::duration_cast<Clock::duration>(
        std::chrono::duration<double>(std::min(state.config.deploy.linger_s, 1e6)));
    state.wait_until(hooks, Clock::now() + patience, [&] {
      return static_cast<int64_t>(state.told.size()) == state.config.clients.num_clients;
    });
  }
  {
    const std::lock_guard lock(state.mutex);
    state.phase = Phase::kClosed;
    state.is_closed = true;
    for (const auto& [id, session] : state.sessions) {
      session->call();
      session->shut_down();
    }
  }
  acceptor.join();
  return status;
}

}  // namespace gradus::federated
