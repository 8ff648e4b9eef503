// SPDX-License-Identifier: Apache-2.0
#include <mpi.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "comm/communicator.h"

namespace gradus::comm {
namespace {

// MPI counts are ints: longer messages go in parts of this many floats.
constexpr size_t kMaxCount = size_t{1} << 28;

bool is_mpi_up() {
  int is_up = 0, is_down = 0;
  MPI_Initialized(&is_up);
  MPI_Finalized(&is_down);
  return is_up != 0 && is_down == 0;
}

class MpiCommunicator : public Communicator {
 public:
  MpiCommunicator() {
    MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
    MPI_Comm_size(MPI_COMM_WORLD, &size_);
    MPI_Comm host;
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &host);
    MPI_Comm_size(host, &local_size_);
    MPI_Comm_free(&host);
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  int local_size() const override { return local_size_; }
  void barrier() override { MPI_Barrier(MPI_COMM_WORLD); }

  std::vector<std::string> all_gather(const std::string& text) override {
    const size_t count = static_cast<size_t>(size_);
    const int length = static_cast<int>(text.size());
    std::vector<int> lengths(count), offsets(count);
    MPI_Allgather(&length, 1, MPI_INT, lengths.data(), 1, MPI_INT, MPI_COMM_WORLD);
    int total = 0;
    for (size_t i = 0; i < count; ++i) {
      offsets[i] = total;
      total += lengths[i];
    }
    std::string joined(static_cast<size_t>(total), '\0');
    MPI_Allgatherv(text.data(), length, MPI_CHAR, joined.data(), lengths.data(), offsets.data(),
                   MPI_CHAR, MPI_COMM_WORLD);
    std::vector<std::string> texts;
    for (size_t i = 0; i < count; ++i) {
      texts.push_back(
          joined.substr(static_cast<size_t>(offsets[i]), static_cast<size_t>(lengths[i])));
    }
    return texts;
  }

  void broadcast(std::span<float> values, int root) override {
    for (size_t i = 0; i < values.size(); i += kMaxCount) {
      const std::span<float> part = values.subspan(i, std::min(kMaxCount, values.size() - i));
      MPI_Bcast(part.data(), static_cast<int>(part.size()), MPI_FLOAT, root, MPI_COMM_WORLD);
    }
  }
  void send(std::span<const float> values, int to) override {
    for (size_t i = 0; i < values.size(); i += kMaxCount) {
      const std::span<const float> part = values.subspan(i, std::min(kMaxCount, values.size() - i));
      MPI_Send(part.data(), static_cast<int>(part.size()), MPI_FLOAT, to, 0, MPI_COMM_WORLD);
    }
  }
  void receive(std::span<float> values, int from) override {
    for (size_t i = 0; i < values.size(); i += kMaxCount) {
      const std::span<float> part = values.subspan(i, std::min(kMaxCount, values.size() - i));
      MPI_Recv(part.data(), static_cast<int>(part.size()), MPI_FLOAT, from, 0, MPI_COMM_WORLD,
               MPI_STATUS_IGNORE);
    }
  }

 private:
  int rank_ = 0, size_ = 1, local_size_ = 1;
};

class SingleCommunicator : public Communicator {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  int local_size() const override { return 1; }
  void barrier() override {}
  std::vector<std::string> all_gather(const std::string& text) override { return {text}; }
  void broadcast(std::span<float>, int) override {}
  void send(std::span<const float>, int) override {
    GRADUS_CHECK(false, "one rank has nobody to send to");
  }
  void receive(std::span<float>, int) override {
    GRADUS_CHECK(false, "one rank has nobody to hear from");
  }
};

}  // namespace

bool is_launched_by_mpi() {
  // What Open MPI's mpirun, PMIx launchers (srun) and PMI ones set for the processes that they
  // start.
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK"}) {
    if (std::getenv(name) != nullptr) return true;
  }
  return false;
}

Result<std::unique_ptr<Communicator>> make_communicator() {
  if (!is_launched_by_mpi()) return std::unique_ptr<Communicator>(new SingleCommunicator());
  int provided = 0;
  if (MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided) != MPI_SUCCESS) {
    return unavailable("MPI does not start; run the same command without mpirun to use one rank");
  }
  return std::unique_ptr<Communicator>(new MpiCommunicator());
}

void finalize() {
  if (is_mpi_up()) MPI_Finalize();
}

void abort_all_ranks(int exit_code) {
  if (is_mpi_up()) MPI_Abort(MPI_COMM_WORLD, exit_code);
}

int rank_for_messages() {
  int rank = 0;
  if (is_mpi_up()) MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  return rank;
}

}  // namespace gradus::comm
