// SPDX-License-Identifier: Apache-2.0
// Of comm, but over a fake of the CUDA library's table, which only tests of kernels see.
#include "comm/device_communicator.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <set>
#include <string>

#include "kernels/internal/cuda_table.h"
#include "tests/support/in_process_communicator.h"

namespace gradus::comm {
namespace {

using kernels::Cuda;
using kernels::cuda::CudaCode;
using kernels::cuda::CudaErrorText;
using kernels::cuda::CudaTable;

// NCCL that notes who connects with what.
struct FakeNccl {
  std::atomic<int> num_ids = 0;
  bool is_missing = false;
  int cannot_connect = -1;  // this rank
  std::mutex mutex;
  std::set<std::string> ids;
  std::set<int> ranks;
};
FakeNccl* fake = nullptr;

CudaTable fake_table() {
  CudaTable table = {};
  table.nccl.load = [](const char*, CudaErrorText* error) {
    if (!fake->is_missing) return CudaCode::kOk;
    std::snprintf(error->text, sizeof(error->text), "NCCL is not on this machine");
    return CudaCode::kUnavailable;
  };
  table.nccl.make_id = [](void* id, CudaErrorText*) {
    std::memset(id, 'a' + fake->num_ids++, 128);
    return CudaCode::kOk;
  };
  table.nccl.create = [](const void* id, int32_t rank, int32_t, void** communicator,
                         CudaErrorText* error) {
    const std::lock_guard lock(fake->mutex);
    fake->ids.insert(std::string(static_cast<const char*>(id), 128));
    fake->ranks.insert(rank);
    *communicator = fake;
    std::snprintf(error->text, sizeof(error->text), "Duplicate GPU detected");
    return rank == fake->cannot_connect ? CudaCode::kUnavailable : CudaCode::kOk;
  };
  table.nccl.state = [](void*, int32_t* is_busy, CudaErrorText*) {
    *is_busy = 0;
    return CudaCode::kOk;
  };
  table.nccl.finalize = [](void*, CudaErrorText*) { return CudaCode::kOk; };
  table.nccl.destroy = table.nccl.finalize;
  table.nccl.abort = table.nccl.finalize;
  return table;
}

// The message of each rank of `size`.
std::vector<std::string> create_on(int size) {
  const CudaTable table = fake_table();
  std::vector<std::string> messages(static_cast<size_t>(size));
  run_ranks(size, [&](Communicator& host) {
    const auto made = DeviceCommunicator::create(Cuda::over_table(table), host);
    messages[static_cast<size_t>(host.rank())] = made.status().message();
    if (!made.ok()) return;
    EXPECT_EQ((*made)->rank(), host.rank());
    EXPECT_EQ((*made)->size(), size);
    EXPECT_TRUE((*made)->wait().ok());
  });
  return messages;
}

TEST(DeviceCommunicator, ConnectsAllRanksByTheIdOfRankZero) {
  FakeNccl nccl;
  fake = &nccl;
  EXPECT_EQ(create_on(3), std::vector<std::string>(3));
  EXPECT_EQ(nccl.num_ids, 1);
  EXPECT_EQ(nccl.ids, std::set<std::string>{std::string(128, 'a')});
  EXPECT_EQ(nccl.ranks, (std::set<int>{0, 1, 2}));
}

TEST(DeviceCommunicator, OfOneRankNeedsNoNccl) {
  FakeNccl nccl;
  nccl.is_missing = true;
  fake = &nccl;
  EXPECT_EQ(create_on(1), std::vector<std::string>(1));
}

TEST(DeviceCommunicator, AMissingLibraryIsSaidOnAllRanks) {
  FakeNccl nccl;
  nccl.is_missing = true;
  fake = &nccl;
  EXPECT_EQ(create_on(2), std::vector<std::string>(2, "rank 0: nccl: NCCL is not on this machine"));
}

TEST(DeviceCommunicator, ARankThatCannotConnectIsNamedOnAllRanks) {
  FakeNccl nccl;
  nccl.cannot_connect = 1;
  fake = &nccl;
  EXPECT_EQ(create_on(2),
            std::vector<std::string>(2,
                                     "rank 1: nccl: connect, rank 1 of 2: Duplicate GPU detected; "
                                     "the devices are given up"));
}

}  // namespace
}  // namespace gradus::comm
