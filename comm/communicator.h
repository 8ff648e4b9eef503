// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/status.h"

namespace gradus::comm {

// How the ranks of one run talk. World size 1 is the identity, not a special case. Calls are
// collective: every rank makes the same calls in the same order; they return when this rank's part
// is done. A failure of the transport ends the job (MPI's own handler), so there is no status to
// look at. Not thread-safe.
class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual int local_size() const = 0;  // ranks on this host

  virtual void barrier() = 0;
  // `text` of every rank, by rank.
  virtual std::vector<std::string> all_gather(const std::string& text) = 0;
  // Replaces `values` by those of rank `root`.
  virtual void broadcast(std::span<float> values, int root) = 0;
  virtual void send(std::span<const float> values, int to) = 0;
  virtual void receive(std::span<float> values, int from) = 0;
};

// True under mpirun (or another launcher that Open MPI knows).
bool is_launched_by_mpi();

// MPI under mpirun, else one rank. Call once, from the main thread; MPI is finalised when it is
// destroyed. Unavailable if MPI does not start.
Result<std::unique_ptr<Communicator>> make_communicator();

// Takes leave of MPI, if it is up: the last call of a process that ends well.
void finalize();
// Ends all ranks at once with `exit_code`, if MPI is up; returns otherwise.
void abort_all_ranks(int exit_code);
// Rank of this process for messages: 0 without MPI.
int rank_for_messages();

// Adds the buffers of all ranks, each holding the sum of its own consecutive blocks, along one
// binary tree: neighbours first, the lower rank's value on the left. With a power of two of ranks
// the result has the bits of the tree over all blocks, however they are shared out. Every rank gets
// the sum; `scratch` has the size of `values`.
void all_reduce_tree(Communicator& communicator, std::span<float> values, std::span<float> scratch);

// Sum over ranks of each value, in rank order.
std::vector<double> all_reduce_sum(Communicator& communicator, std::span<const double> values);

// The first failure by rank, with its rank, on all ranks; ok if all are.
Status agree(Communicator& communicator, const Status& status);

}  // namespace gradus::comm
