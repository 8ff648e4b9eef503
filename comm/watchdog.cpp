// SPDX-License-Identifier: Apache-2.0
#include "comm/watchdog.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <random>
#include <sstream>
#include <thread>

namespace gradus::comm {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kPollMs = 100;
// A thread that comes so late to its next look was itself stopped: what it missed proves nothing,
// and for as long again it only listens.
constexpr double kStalledS = 2.0;
constexpr uint32_t kMagic = 0x67726432;
// Times that a rank says goodbye, since datagrams may be lost.
constexpr int kNumFarewells = 3;

struct Datagram {
  uint32_t magic = kMagic;
  uint32_t is_alarm = 0;  // the sender has found the run stuck
  uint64_t run_key = 0;   // of this run, so that strangers are not heard
  RankReport report;
};

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

std::string link_target(const char* path) {
  char target[128];
  const ssize_t length = readlink(path, target, sizeof(target));
  return length > 0 ? std::string(target, static_cast<size_t>(length)) : "none";
}

// Equal for processes that share a loopback device and process ids.
std::string place_of_this_process() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string boot;
  file >> boot;
  return boot + "/" + link_target("/proc/self/ns/net") + "/" + link_target("/proc/self/ns/pid");
}

std::string host_name() {
  char name[256] = "";
  gethostname(name, sizeof(name) - 1);
  return name[0] == '\0' ? "unknown" : name;
}

// IPv4 addresses that other hosts may reach this one by.
std::vector<std::string> own_addresses() {
  std::vector<std::string> addresses;
  ifaddrs* all = nullptr;
  if (getifaddrs(&all) != 0) return addresses;
  for (const ifaddrs* one = all; one != nullptr; one = one->ifa_next) {
    if (one->ifa_addr == nullptr || one->ifa_addr->sa_family != AF_INET) continue;
    if ((one->ifa_flags & IFF_LOOPBACK) != 0 || (one->ifa_flags & IFF_UP) == 0) continue;
    char text[INET_ADDRSTRLEN] = "";
    const auto* address = reinterpret_cast<const sockaddr_in*>(one->ifa_addr);
    inet_ntop(AF_INET, &address->sin_addr, text, sizeof(text));
    addresses.push_back(text);
  }
  freeifaddrs(all);
  return addresses;
}

sockaddr_in socket_address(const std::string& address, uint16_t port) {
  sockaddr_in result{};
  result.sin_family = AF_INET;
  result.sin_port = htons(port);
  inet_pton(AF_INET, address.c_str(), &result.sin_addr);
  return result;
}

}  // namespace

class Watchdog::Impl {
 public:
  Impl(Communicator& world, WatchdogOptions options, int socket)
      : watch_(world.watch()),
        rank_(world.rank()),
        options_(std::move(options)),
        socket_(socket),
        peers_(static_cast<size_t>(world.size())) {}
  ~Impl() {
    watch_.leave();
    is_ending_ = true;
    if (thread_.joinable()) thread_.join();
    for (int i = 0; i < kNumFarewells; ++i) tell_all(false);
    close(socket_);
  }

  // Learns the others' addresses and starts the thread.
  void meet(Communicator& world, uint16_t port) {
    std::ostringstream card;
    std::random_device random;
    card << (uint64_t{random()} << 32 | random()) << ' ' << getpid() << ' ' << port << ' '
         << place_of_this_process() << ' ' << host_name();
    for (const std::string& address : own_addresses()) card << ' ' << address;
    const std::vector<std::string> cards = world.all_gather(card.str(), "start of the watchdog");
    for (size_t rank = 0; rank < cards.size(); ++rank) {
      Peer& peer = peers_[rank];
      std::istringstream text(cards[rank]);
      uint64_t key = 0;
      uint16_t its_port = 0;
      std::string place, address;
      text >> key >> peer.sighting.report.process >> its_port >> place >> peer.sighting.host;
      if (rank == 0) run_key_ = key;
      peer.sighting.report.rank = static_cast<int32_t>(rank);
      peer.heard = Clock::now();
      peer.is_here = place == place_of_this_process();
      if (peer.is_here) {
        peer.addresses.push_back(socket_address("127.0.0.1", its_port));
      } else {
        while (text >> address) peer.addresses.push_back(socket_address(address, its_port));
      }
    }
    thread_ = std::thread([this] { run(); });
  }

 private:
  struct Peer {
    std::vector<sockaddr_in> addresses;
    bool is_here = false;      // a process that this one could signal
    bool was_missing = false;  // when last looked for
    Clock::time_point heard;
    Sighting sighting;
  };

  void run() {
    Clock::time_point told{}, looked = Clock::now();
    while (!is_ending_) {
      pollfd waiting{.fd = socket_, .events = POLLIN, .revents = 0};
      poll(&waiting, 1, kPollMs);
      if (seconds_since(looked) > kStalledS) woken_ = Clock::now();
      looked = Clock::now();
      hear_all();
      if (seconds_since(told) >= options_.beat_s) {
        told = Clock::now();
        tell_all(false);
        look();
      } else if (has_alarm_) {
        look();
      }
    }
  }

  void tell_all(bool is_alarm) {
    Datagram datagram;
    datagram.is_alarm = is_alarm ? 1 : 0;
    datagram.run_key = run_key_;
    datagram.report = watch_.report();
    for (size_t rank = 0; rank < peers_.size(); ++rank) {
      if (static_cast<int>(rank) == rank_) continue;
      for (const sockaddr_in& address : peers_[rank].addresses) {
        // What does not get through is missed by the other side, which is the point.
        (void)!sendto(socket_, &datagram, sizeof(datagram), MSG_DONTWAIT,
                      reinterpret_cast<const sockaddr*>(&address), sizeof(address));
      }
    }
  }

  void hear_all() {
    Datagram datagram;
    while (recv(socket_, &datagram, sizeof(datagram), MSG_DONTWAIT) == sizeof(datagram)) {
      const int32_t rank = datagram.report.rank;
      if (datagram.magic != kMagic || datagram.run_key != run_key_ || rank < 0 ||
          rank >= static_cast<int32_t>(peers_.size())) {
        continue;
      }
      Peer& peer = peers_[static_cast<size_t>(rank)];
      datagram.report.name[sizeof(datagram.report.name) - 1] = '\0';
      peer.sighting.report = datagram.report;
      peer.heard = Clock::now();
      has_alarm_ |= datagram.is_alarm != 0;
    }
  }

  void look() {
    if (woken_) {
      if (seconds_since(*woken_) < kStalledS) return;
      for (Peer& peer : peers_) peer.heard = std::max(peer.heard, *woken_);
      woken_.reset();
    }
    std::vector<Sighting> ranks;
    std::set<int> lost;
    for (size_t rank = 0; rank < peers_.size(); ++rank) {
      Peer& peer = peers_[rank];
      const bool is_self = static_cast<int>(rank) == rank_;
      if (is_self) peer.sighting.report = watch_.report();
      peer.sighting.silent_s = is_self ? 0.0 : seconds_since(peer.heard);
      peer.sighting.is_gone =
          !is_self && peer.is_here && kill(peer.sighting.report.process, 0) != 0 && errno == ESRCH;
      ranks.push_back(peer.sighting);
      if (watch_.is_lost(static_cast<int>(rank))) lost.insert(static_cast<int>(rank));
    }
    // One that others have found stuck is given no more time, or they would be gone before this
    // rank has said what it waits for.
    const double limit_s =
        has_alarm_ ? std::min(options_.stuck_after_s, kStalledS) : options_.stuck_after_s;
    const std::optional<Diagnosis> diagnosis = diagnose(ranks, limit_s, lost);
    if (!diagnosis || is_ending_) return;
    const bool all_may_be_lost =
        std::all_of(diagnosis->culprits.begin(), diagnosis->culprits.end(), [&](int rank) {
          return rank != rank_ && is_silent_or_gone(ranks[static_cast<size_t>(rank)], limit_s) &&
                 options_.may_lose && options_.may_lose(rank);
        });
    if (all_may_be_lost) {
      for (const int rank : diagnosis->culprits) watch_.set_lost(rank);
      return;
    }
    tell_all(true);
    std::string report = diagnosis->headline;
    report += "\n" + describe(ranks, rank_, limit_s);
    for (const int culprit : diagnosis->culprits) {
      if (culprit != rank_) report += "\n" + describe(ranks, culprit, limit_s);
    }
    if (options_.on_stuck) options_.on_stuck(report);
    is_ending_ = true;
  }

  static bool is_silent_or_gone(const Sighting& sighting, double limit_s) {
    return sighting.is_gone || sighting.silent_s > limit_s;
  }

  Watch& watch_;
  const int rank_;
  const WatchdogOptions options_;
  const int socket_;
  uint64_t run_key_ = 0;
  std::vector<Peer> peers_;  // by rank; the watchdog's thread alone, once it runs
  bool has_alarm_ = false;
  std::optional<Clock::time_point> woken_;
  std::atomic<bool> is_ending_{false};
  std::thread thread_;
};

Watchdog::Watchdog(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Watchdog::~Watchdog() = default;

Result<std::unique_ptr<Watchdog>> Watchdog::start(Communicator& world, WatchdogOptions options) {
  const int socket = ::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_ANY);
  socklen_t length = sizeof(address);
  Status status;
  if (socket < 0 || bind(socket, reinterpret_cast<const sockaddr*>(&address), length) != 0 ||
      getsockname(socket, reinterpret_cast<sockaddr*>(&address), &length) != 0) {
    status = unavailable("the watchdog gets no UDP socket ({}); it needs one to tell a stuck rank",
                         std::strerror(errno));
  }
  status = agree(world, status, "start of the watchdog");
  if (!status.ok()) {
    if (socket >= 0) close(socket);
    return status;
  }
  auto impl = std::make_unique<Impl>(world, std::move(options), socket);
  impl->meet(world, ntohs(address.sin_port));
  return std::unique_ptr<Watchdog>(new Watchdog(std::move(impl)));
}

}  // namespace gradus::comm
