// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <dirent.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

// What a sandbox could leave behind: processes, descriptors, threads, mounts, segments, files.
namespace gradus::test {

// Empty where there is none: processes come and go.
// A process may end while its file is read, which is an error of the stream: it is not there then.
inline std::string read_if_there(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text ? text.str() : "";
}

inline std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

inline int count_entries(const std::string& folder) {
  DIR* entries = opendir(folder.c_str());
  if (entries == nullptr) return -1;
  int count = 0;
  while (readdir(entries) != nullptr) ++count;
  closedir(entries);
  return count;
}

// Process ids below this process.
inline std::vector<int> descendants() {
  std::multimap<int, int> children;
  DIR* entries = opendir("/proc");
  while (const dirent* entry = readdir(entries)) {
    const int pid = std::atoi(entry->d_name);
    const std::string stat = pid > 0 ? read_if_there(fmt::format("/proc/{}/stat", pid)) : "";
    const size_t name_end = stat.rfind(')');
    if (name_end == std::string::npos) continue;
    int parent = 0;
    char state = 0;
    std::istringstream(stat.substr(name_end + 1)) >> state >> parent;
    children.emplace(parent, pid);
  }
  closedir(entries);
  std::vector<int> found, open = {getpid()};
  while (!open.empty()) {
    const int pid = open.back();
    open.pop_back();
    const auto [begin, end] = children.equal_range(pid);
    for (auto child = begin; child != end; ++child) {
      found.push_back(child->second);
      open.push_back(child->second);
    }
  }
  return found;
}

// What could be left behind, on the machine and in the worker.
inline std::string machine_state() {
  std::string state;
  std::vector<int> pids = descendants();
  state += fmt::format("{} processes", pids.size());
  std::multiset<std::string> parts;
  for (const int pid : pids) {
    const std::string folder = fmt::format("/proc/{}", pid);
    parts.insert(fmt::format("{} mounts, {} threads, {} descriptors",
                             lines_of(read_if_there(folder + "/mountinfo")).size(),
                             count_entries(folder + "/task"), count_entries(folder + "/fd")));
  }
  for (const std::string& part : parts) state += "; " + part;
  state += fmt::format("; {} mounts", lines_of(read_if_there("/proc/self/mountinfo")).size());
  for (const char* kind : {"shm", "sem", "msg"}) {
    state += fmt::format(
        "; {} {}", lines_of(read_if_there(std::string("/proc/sysvipc/") + kind)).size(), kind);
  }
  for (const char* place : {"/", "/usr/bin/", "/usr/", "/etc/", "/dev/", "/root/", "/var/tmp/",
                            "/home/", "/tmp/", "/dev/shm/"}) {
    for (const char* name : {"escape", "left", "evil.so", "libevil.so", "big"}) {
      if (access((std::string(place) + name).c_str(), F_OK) == 0) {
        state += fmt::format("; {}{}", place, name);
      }
    }
  }
  return state;
}

}  // namespace gradus::test
