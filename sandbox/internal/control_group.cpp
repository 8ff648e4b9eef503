// SPDX-License-Identifier: Apache-2.0
#include "sandbox/internal/control_group.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>
#include <thread>

namespace gradus::sandbox {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "gradus-sandbox-";  // then a process id, a dash, a number

// A hierarchy of groups as it is mounted here.
struct Hierarchy {
  std::string mount_point, root;
  bool is_version_2 = false;
  std::string options;  // of version 1: its controllers, with commas between
};

bool has_item(std::string_view list, std::string_view item, char separator) {
  for (size_t begin = 0; begin <= list.size();) {
    const size_t end = std::min(list.find(separator, begin), list.size());
    if (list.substr(begin, end - begin) == item) return true;
    begin = end + 1;
  }
  return false;
}

std::vector<Hierarchy> read_hierarchies(const std::string& proc) {
  std::vector<Hierarchy> found;
  std::ifstream file(proc + "/mountinfo");
  for (std::string line; std::getline(file, line);) {
    // id parent device root mount_point options optional.. - type source options
    std::istringstream fields(line);
    std::string skipped, root, mount_point, type;
    fields >> skipped >> skipped >> skipped >> root >> mount_point;
    while (fields >> skipped && skipped != "-") {
    }
    Hierarchy one{mount_point, root, false, ""};
    fields >> type >> skipped >> one.options;
    one.is_version_2 = type == "cgroup2";
    if (type == "cgroup" || one.is_version_2) found.push_back(std::move(one));
  }
  return found;
}

// The folder of the group that this process is in; empty if there is none.
std::string own_folder(const std::string& proc, const Hierarchy& hierarchy,
                       std::string_view controller) {
  std::ifstream file(proc + "/cgroup");
  for (std::string line; std::getline(file, line);) {
    const size_t first = line.find(':');
    const size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string names = line.substr(first + 1, second - first - 1);
    const bool is_it =
        hierarchy.is_version_2 ? line.starts_with("0::") : has_item(names, controller, ',');
    if (!is_it) continue;
    std::string path = line.substr(second + 1);
    if (hierarchy.root != "/" && path.starts_with(hierarchy.root)) {
      path.erase(0, hierarchy.root.size());
    }
    return hierarchy.mount_point + (path == "/" ? "" : path);
  }
  return "";
}

std::string read_text(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// Groups of processes that are no more.
void remove_abandoned(const std::string& parent) {
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(parent, error)) {
    const std::string name = entry.path().filename();
    if (!name.starts_with(kPrefix)) continue;
    long pid = 0;
    const char* const begin = name.data() + kPrefix.size();
    const auto read = std::from_chars(begin, name.data() + name.size(), pid);
    if (read.ec != std::errc() || *read.ptr != '-') continue;
    if (access(fmt::format("/proc/{}", pid).c_str(), F_OK) != 0) rmdir(entry.path().c_str());
  }
}

Status make_folder(const std::string& parent, const std::string& name, std::string& made) {
  remove_abandoned(parent);
  made = parent + "/" + name;
  if (mkdir(made.c_str(), 0755) == 0) return {};
  return unavailable("mkdir {}: {}", made, std::strerror(errno));
}

// The processes are being killed, or have been waited for: it is a matter of milliseconds.
void remove_folder(const std::string& folder) {
  for (int i = 0; i < 200 && rmdir(folder.c_str()) != 0 && errno == EBUSY; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

std::string fresh_name() {
  static std::atomic<uint64_t> next = 0;
  return fmt::format("{}{}-{}", kPrefix, getpid(), next++);
}

// In version 2 a group with processes in it hands no controllers down, but its parent may.
Status make_version_2(const std::string& own, const std::string& mount_point,
                      const std::string& name, std::string& made) {
  std::vector<std::string> parents = {own};
  if (own != mount_point) parents.push_back(fs::path(own).parent_path());
  Status last;
  for (const std::string& parent : parents) {
    std::istringstream words(read_text(parent + "/cgroup.subtree_control"));
    bool has_memory = false, has_pids = false;
    for (std::string word; words >> word;) {
      has_memory |= word == "memory";
      has_pids |= word == "pids";
    }
    last = has_memory && has_pids
               ? make_folder(parent, name, made)
               : unavailable("{} hands down no controllers memory and pids", parent);
    if (last.ok()) return {};
  }
  return last;
}

}  // namespace

ControlGroup::ControlGroup(Folders folders) : folders_(std::move(folders)) {
  description_ = folders_.is_version_2 ? "version 2: " + folders_.memory
                                       : "version 1: " + folders_.memory + ", " + folders_.pids;
}

ControlGroup::~ControlGroup() {
  remove_folder(folders_.memory);
  if (!folders_.is_version_2) remove_folder(folders_.pids);
}

Result<std::unique_ptr<ControlGroup>> ControlGroup::create(const std::string& proc) {
  const std::vector<Hierarchy> hierarchies = read_hierarchies(proc);
  const std::string name = fresh_name();
  // Version 1 where it has the controllers: they are then not version 2's.
  std::string memory_parent, pids_parent, version_2, mount_point;
  for (const Hierarchy& one : hierarchies) {
    if (one.is_version_2) {
      version_2 = own_folder(proc, one, "");
      mount_point = one.mount_point;
      continue;
    }
    if (has_item(one.options, "memory", ',')) memory_parent = own_folder(proc, one, "memory");
    if (has_item(one.options, "pids", ',')) pids_parent = own_folder(proc, one, "pids");
  }
  Folders folders;
  if (!memory_parent.empty() && !pids_parent.empty()) {
    GRADUS_RETURN_IF_ERROR(make_folder(memory_parent, name, folders.memory));
    const Status status = make_folder(pids_parent, name, folders.pids);
    if (!status.ok()) {
      remove_folder(folders.memory);
      return status;
    }
  } else if (!version_2.empty()) {
    GRADUS_RETURN_IF_ERROR(make_version_2(version_2, mount_point, name, folders.memory));
    folders.pids = folders.memory;
    folders.is_version_2 = true;
  } else {
    return unavailable("no hierarchy with the controllers memory and pids is mounted");
  }
  return std::unique_ptr<ControlGroup>(new ControlGroup(std::move(folders)));
}

Status ControlGroup::write(const std::string& folder, const char* file, uint64_t value) const {
  const std::string path = folder + "/" + file;
  const int descriptor = open(path.c_str(), O_WRONLY | O_CLOEXEC);
  const std::string text = std::to_string(value);
  const bool is_written = descriptor >= 0 && ::write(descriptor, text.data(), text.size()) ==
                                                 static_cast<ssize_t>(text.size());
  const int error = errno;
  if (descriptor >= 0) close(descriptor);
  if (is_written) return {};
  return unavailable("control group: {} to {}: {}", value, path, std::strerror(error));
}

Status ControlGroup::add(pid_t pid) {
  GRADUS_RETURN_IF_ERROR(write(folders_.memory, "cgroup.procs", static_cast<uint64_t>(pid)));
  if (folders_.is_version_2) return {};
  return write(folders_.pids, "cgroup.procs", static_cast<uint64_t>(pid));
}

Status ControlGroup::set_limits(uint64_t memory_bytes, uint64_t num_processes) {
  if (memory_bytes != memory_bytes_) {
    const char* const file = folders_.is_version_2 ? "memory.max" : "memory.limit_in_bytes";
    GRADUS_RETURN_IF_ERROR(write(folders_.memory, file, memory_bytes));
    memory_bytes_ = memory_bytes;
  }
  if (num_processes != num_processes_) {
    GRADUS_RETURN_IF_ERROR(write(folders_.pids, "pids.max", num_processes));
    num_processes_ = num_processes;
  }
  return {};
}

uint64_t ControlGroup::num_memory_kills() const {
  std::istringstream text(read_text(
      folders_.memory + (folders_.is_version_2 ? "/memory.events" : "/memory.oom_control")));
  std::string word;
  uint64_t count = 0;
  while (text >> word) {
    if (word == "oom_kill" && text >> count) return count;
  }
  return 0;
}

}  // namespace gradus::sandbox
