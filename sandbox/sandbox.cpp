// SPDX-License-Identifier: Apache-2.0
#include "sandbox/sandbox.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>

#include "common/strings.h"
#include "sandbox/internal/worker.h"

namespace gradus::sandbox {
namespace {

struct LayerName {
  const char* name;
  const char* without;  // what a program could do if it is missing
};

// In the order of wire::Layer.
constexpr LayerName kLayerNames[wire::kNumLayers] = {
    {"user_namespace", "programs start from the rights of root"},
    {"private_uid", "programs run as root"},
    {"mount_namespace", "programs see the machine's files"},
    {"pid_namespace", "programs see and outlive other processes"},
    {"network_namespace", "programs reach the network"},
    {"ipc_namespace", "programs reach shared memory of others"},
    {"seccomp", "programs reach every system call"},
    {"landlock", "the mount namespace alone keeps programs from files"},
    {"process_limit", "programs can fork without bound"},
    {"tree_watch", "memory and time are bounded per process only"},
};

constexpr uint32_t kIndispensable =
    wire::bit(wire::kMountNamespace) | wire::bit(wire::kPidNamespace);

Result<uint32_t> allowed_missing_bits(const SandboxOptions& options) {
  uint32_t bits = 0;
  std::vector<std::string> names;
  for (uint32_t i = 0; i < wire::kNumLayers; ++i) {
    if ((kIndispensable >> i & 1) == 0) names.emplace_back(kLayerNames[i].name);
  }
  for (const std::string& allowed : options.allow_missing) {
    const auto* found = std::find_if(std::begin(kLayerNames), std::end(kLayerNames),
                                     [&](const LayerName& layer) { return allowed == layer.name; });
    const auto index = static_cast<uint32_t>(found - kLayerNames);
    if (found == std::end(kLayerNames)) {
      return invalid_argument("sandbox: allow_missing: '{}' is no layer{}; known: {}", allowed,
                              did_you_mean(allowed, names), join(names, ", "));
    }
    if ((kIndispensable >> index & 1) != 0) {
      return invalid_argument("sandbox: allow_missing: nothing can be run without '{}'; known: {}",
                              allowed, join(names, ", "));
    }
    bits |= 1u << index;
  }
  return bits;
}

std::vector<Layer> layers_of(const Worker& worker) {
  const wire::StartReply& reply = worker.start_reply();
  std::vector<Layer> layers;
  for (uint32_t i = 0; i < wire::kNumLayers; ++i) {
    layers.push_back({kLayerNames[i].name, reply.layers[i].is_active != 0, reply.layers[i].detail});
  }
  layers.push_back(worker.control_group());
  return layers;
}

Status refusal(const wire::StartReply& reply, uint32_t allowed_missing) {
  std::vector<std::string> missing, names;
  for (uint32_t i = 0; i < wire::kNumLayers; ++i) {
    if (reply.layers[i].is_active != 0 || (allowed_missing >> i & 1) != 0) continue;
    missing.push_back(fmt::format("{} ({}): {}", kLayerNames[i].name, reply.layers[i].detail,
                                  kLayerNames[i].without));
    names.emplace_back(kLayerNames[i].name);
  }
  return unavailable(
      "sandbox: {} of {} layers missing, so nothing is run: {}; let the kernel give them, or name "
      "in allow_missing what you can do without",
      missing.size(), static_cast<uint32_t>(wire::kNumLayers), join(missing, "; "));
}

Status validate(const SandboxOptions& options) {
  if (options.num_workers < 1) {
    return invalid_argument("sandbox: num_workers is {}; expected at least 1", options.num_workers);
  }
  if (options.read_only.size() > 32) {
    return invalid_argument("sandbox: {} read_only paths; expected at most 32",
                            options.read_only.size());
  }
  for (const std::string& path : options.read_only) {
    if (!path.starts_with('/') || path.size() < 2) {
      return invalid_argument("sandbox: read_only: '{}' is no absolute path below /", path);
    }
    if (path == "/tmp" || path.starts_with("/tmp/")) {
      return invalid_argument(
          "sandbox: read_only: '{}' lies below /tmp, which every run has for itself; choose "
          "another "
          "place",
          path);
    }
  }
  return {};
}

}  // namespace

const char* run_end_name(RunEnd end) {
  switch (end) {
    case RunEnd::kExited:
      return "exited";
    case RunEnd::kSignalled:
      return "signalled";
    case RunEnd::kCpuLimit:
      return "cpu_limit";
    case RunEnd::kWallLimit:
      return "wall_limit";
    case RunEnd::kMemoryLimit:
      return "memory_limit";
    case RunEnd::kOutputLimit:
      return "output_limit";
    case RunEnd::kStarved:
      return "starved";
  }
  return "unknown";
}

struct Sandbox::Pool {
  uint32_t allowed_missing = 0;
  std::mutex mutex;
  std::condition_variable is_free;
  std::vector<std::unique_ptr<Worker>> idle;
  int num_started = 0;

  // A worker that is nobody else's, or null: the caller may start one.
  std::unique_ptr<Worker> take(int num_workers) {
    std::unique_lock lock(mutex);
    is_free.wait(lock, [&] { return !idle.empty() || num_started < num_workers; });
    if (idle.empty()) {
      ++num_started;
      return nullptr;
    }
    std::unique_ptr<Worker> worker = std::move(idle.back());
    idle.pop_back();
    return worker;
  }

  // `worker` null: there is one less.
  void give(std::unique_ptr<Worker> worker) {
    {
      const std::lock_guard lock(mutex);
      if (worker == nullptr) {
        --num_started;
      } else {
        idle.push_back(std::move(worker));
      }
    }
    is_free.notify_one();
  }
};

Sandbox::Sandbox(const SandboxOptions& options)
    : options_(options), pool_(std::make_unique<Pool>()) {}

Sandbox::~Sandbox() = default;

Result<std::unique_ptr<Sandbox>> Sandbox::create(const SandboxOptions& options) {
  GRADUS_RETURN_IF_ERROR(validate(options));
  const auto allowed_missing = allowed_missing_bits(options);
  GRADUS_RETURN_IF_ERROR(allowed_missing.status());
  auto worker = Worker::start(options, *allowed_missing);
  GRADUS_RETURN_IF_ERROR(worker.status());
  const wire::StartReply& reply = (*worker)->start_reply();
  if (!(*worker)->is_ready()) return refusal(reply, *allowed_missing);

  auto sandbox = std::unique_ptr<Sandbox>(new Sandbox(options));
  sandbox->layers_ = layers_of(**worker);
  sandbox->pool_->allowed_missing = *allowed_missing;
  // The layers are there one by one; that they work together is shown by a run.
  const auto result = (*worker)->run({.arguments = {"/bin/true"}});
  GRADUS_RETURN_IF_ERROR(result.status());
  if (result->end != RunEnd::kExited || result->exit_code != 0) {
    return unavailable("sandbox: /bin/true ended with {} {}; expected exit code 0",
                       run_end_name(result->end), result->exit_code + result->signal);
  }
  sandbox->pool_->num_started = 1;
  sandbox->pool_->idle.push_back(std::move(*worker));
  return sandbox;
}

Result<RunResult> Sandbox::run(const Run& run) {
  GRADUS_CHECK(run.arguments.size() <= 64 && run.files.size() <= 16, "run is too large");
  std::unique_ptr<Worker> worker = pool_->take(options_.num_workers);
  if (worker == nullptr) {
    auto started = Worker::start(options_, pool_->allowed_missing);
    if (!started.ok() || !(*started)->is_ready()) {
      pool_->give(nullptr);
      return started.ok() ? refusal((*started)->start_reply(), pool_->allowed_missing)
                          : started.status();
    }
    worker = std::move(*started);
  }
  auto result = worker->run(run);
  pool_->give(worker->is_broken() ? nullptr : std::move(worker));
  return result;
}

Result<std::vector<Layer>> probe_layers(const SandboxOptions& options) {
  GRADUS_RETURN_IF_ERROR(validate(options));
  auto worker = Worker::start(options, 0);
  GRADUS_RETURN_IF_ERROR(worker.status());
  return layers_of(**worker);
}

}  // namespace gradus::sandbox
