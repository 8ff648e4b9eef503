// SPDX-License-Identifier: Apache-2.0
#include "kernels/nccl.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <vector>

#include "kernels/internal/cuda_table.h"

namespace gradus::kernels {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

// NCCL whose operations end, are never done or fail, as the test says. Its memory is the host's.
struct FakeNccl {
  bool is_loaded = true;
  bool comes_to_connect = true;
  int num_undone = 0;       // operations at the queue's end that are never done
  std::string async_error;  // what state() reports
  int num_operations = 0, num_destroyed = 0, num_aborted = 0, num_events = 0;
};
FakeNccl fake;

cuda::CudaCode fail(const char* text, cuda::CudaErrorText* error) {
  std::snprintf(error->text, sizeof(error->text), "%s", text);
  return cuda::CudaCode::kUnavailable;
}

cuda::CudaTable fake_table() {
  using Error = cuda::CudaErrorText;
  constexpr auto ok = cuda::CudaCode::kOk;
  cuda::CudaTable table = {};
  table.nccl.load = [](const char*, Error* e) {
    return fake.is_loaded ? ok : fail("NCCL is not on this machine", e);
  };
  table.nccl.make_id = [](void* id, Error*) {
    std::memset(id, 'i', 128);
    return ok;
  };
  table.nccl.create = [](const void*, int32_t, int32_t, void** communicator, Error*) {
    *communicator = &fake;
    return ok;
  };
  table.nccl.all_reduce = [](void*, const float*, float*, int64_t, void*, Error*) {
    ++fake.num_operations;
    return ok;
  };
  table.nccl.reduce_scatter = table.nccl.all_reduce;
  table.nccl.all_gather = [](void*, const void*, void*, int64_t, void*, Error*) {
    ++fake.num_operations;
    return ok;
  };
  table.nccl.broadcast = [](void*, void*, int64_t, int32_t, void*, Error*) {
    ++fake.num_operations;
    return ok;
  };
  table.nccl.state = [](void*, int32_t* is_busy, Error* e) {
    *is_busy = fake.comes_to_connect ? 0 : 1;
    return fake.async_error.empty() ? ok : fail(fake.async_error.c_str(), e);
  };
  table.nccl.is_done = [](void* event, int32_t* is_done, Error*) {
    const auto number = reinterpret_cast<intptr_t>(event);
    *is_done = number <= fake.num_operations - fake.num_undone ? 1 : 0;
    return ok;
  };
  table.nccl.finalize = [](void*, Error*) { return ok; };
  table.nccl.destroy = [](void*, Error*) { return ++fake.num_destroyed, ok; };
  table.nccl.abort = [](void*, Error*) { return ++fake.num_aborted, ok; };
  table.device.copy = [](void* to, const void* from, size_t bytes, void*, Error*) {
    std::memcpy(to, from, bytes);
    return ok;
  };
  table.device.event_create = [](void** event, Error*) {
    *event = reinterpret_cast<void*>(static_cast<intptr_t>(++fake.num_events));
    return ok;
  };
  table.device.event_record = [](void*, void*, Error*) { return ok; };
  table.stream.event_destroy = [](void*, Error*) { return --fake.num_events, ok; };
  return table;
}

class NcclTest : public ::testing::Test {
 protected:
  void SetUp() override { fake = {}; }
  Result<Nccl> connect(int size = 2) {
    return Nccl::connect(cuda_, NcclId{}, 0, size, {.deadline_s = 0.05});
  }
  cuda::CudaTable table_ = fake_table();
  Cuda cuda_ = Cuda::over_table(table_);
  std::vector<float> x_ = {1, 2, 3}, y_ = {0, 0, 0};
};

TEST_F(NcclTest, OfOneRankIsTheIdentityWithoutTheLibrary) {
  fake.is_loaded = false;
  Result<Nccl> one = connect(1);
  ASSERT_TRUE(one.ok());
  ASSERT_TRUE(one->all_reduce(x_.data(), y_.data(), 3, nullptr).ok());
  EXPECT_EQ(y_, x_);
  y_ = {0, 0, 0};
  ASSERT_TRUE(one->reduce_scatter(x_.data(), y_.data(), 2, nullptr).ok());
  EXPECT_EQ(y_, (std::vector<float>{1, 2, 0}));
  ASSERT_TRUE(one->all_gather(x_.data() + 2, y_.data(), 4, nullptr).ok());
  EXPECT_EQ(y_, (std::vector<float>{3, 2, 0}));
  ASSERT_TRUE(one->broadcast(x_.data(), 12, 0, nullptr).ok());
  EXPECT_TRUE(one->wait().ok());
  EXPECT_EQ(fake.num_operations, 0);
}

TEST_F(NcclTest, ThatIsMissingIsSaidOnceTwoRanksNeedIt) {
  fake.is_loaded = false;
  EXPECT_EQ(connect().status().message(), "nccl: NCCL is not on this machine");
  EXPECT_EQ(make_nccl_id(cuda_).status().message(), "nccl: NCCL is not on this machine");
}

TEST_F(NcclTest, WaitsForWhatWasEnqueuedAndEndsItsCommunicator) {
  {
    Result<Nccl> nccl = connect();
    ASSERT_TRUE(nccl.ok()) << nccl.status().message();
    ASSERT_TRUE(nccl->all_reduce(x_.data(), x_.data(), 3, nullptr).ok());
    ASSERT_TRUE(nccl->reduce_scatter(x_.data(), y_.data(), 1, nullptr).ok());
    ASSERT_TRUE(nccl->all_gather(y_.data(), x_.data(), 4, nullptr).ok());
    ASSERT_TRUE(nccl->broadcast(x_.data(), 12, 1, nullptr).ok());
    // Nothing to move is no call: NCCL would be asked for an empty operation.
    ASSERT_TRUE(nccl->all_reduce(nullptr, nullptr, 0, nullptr).ok());
    EXPECT_EQ(fake.num_operations, 4);
    EXPECT_TRUE(nccl->wait().ok());
    EXPECT_EQ(fake.num_events, 4);
  }
  EXPECT_EQ(fake.num_destroyed, 1);
  EXPECT_EQ(fake.num_aborted, 0);
  EXPECT_EQ(fake.num_events, 0);
}

TEST_F(NcclTest, APeerThatNeverComesEndsWithTheDeadline) {
  fake.comes_to_connect = false;
  EXPECT_EQ(connect().status().message(),
            "nccl: connect, rank 0 of 2: not begun after 0.1 s; a peer is lost, or its calls are "
            "others");
  EXPECT_EQ(fake.num_aborted, 1);
}

TEST_F(NcclTest, APeerThatIsLostEndsWithOperationBytesAndRankForGood) {
  Result<Nccl> nccl = connect();
  ASSERT_TRUE(nccl.ok());
  ASSERT_TRUE(nccl->broadcast(x_.data(), 12, 0, nullptr).ok());
  ASSERT_TRUE(nccl->reduce_scatter(x_.data(), y_.data(), 1, nullptr).ok());
  ASSERT_TRUE(nccl->all_gather(y_.data(), x_.data(), 4, nullptr).ok());
  fake.num_undone = 2;
  const auto begin = std::chrono::steady_clock::now();
  const Status status = nccl->wait();
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(5));
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_EQ(status.message(),
            "nccl: reduce_scatter of 8 bytes, rank 0 of 2: not done after 0.1 s; a peer is lost, "
            "or its calls are others");
  EXPECT_EQ(fake.num_aborted, 1);
  EXPECT_EQ(nccl->all_reduce(x_.data(), x_.data(), 3, nullptr).message(), status.message());
  EXPECT_EQ(nccl->wait().message(), status.message());
  EXPECT_EQ(fake.num_operations, 3);
}

TEST_F(NcclTest, AnErrorThatComesLaterNamesTheOperation) {
  Result<Nccl> nccl = connect();
  ASSERT_TRUE(nccl.ok());
  ASSERT_TRUE(nccl->all_reduce(x_.data(), x_.data(), 3, nullptr).ok());
  fake.num_undone = 1;
  fake.async_error = "NCCL: remote process exited or there was a network error";
  EXPECT_EQ(nccl->wait().message(),
            "nccl: all_reduce of 12 bytes, rank 0 of 2: NCCL: remote process exited or there was a "
            "network error; the devices are given up");
  EXPECT_EQ(fake.num_aborted, 1);
}

TEST_F(NcclTest, RefusesWhatIsOutsideItsRange) {
  Result<Nccl> nccl = connect();
  ASSERT_TRUE(nccl.ok());
  EXPECT_EQ(nccl->all_reduce(x_.data(), x_.data(), -1, nullptr).message(),
            "nccl: all_reduce: a count of -1 is negative");
  EXPECT_EQ(nccl->broadcast(nullptr, 8, 0, nullptr).message(),
            "nccl: broadcast: a pointer is null");
  EXPECT_THROW((void)nccl->broadcast(x_.data(), 4, 2, nullptr), InternalError);
  EXPECT_EQ(Nccl::connect(cuda_, {}, 0, 2, {.deadline_s = 0}).status().message(),
            "nccl: deadline_s must be positive, got 0");
  EXPECT_EQ(fake.num_operations, 0);
}

// The library's own half, as far as it goes without a device.
TEST(NcclLibrary, ThatIsMissingOrIsAnotherOneIsSaidWithWhatToInstall) {
  std::string built = std::string(GRADUS_BINARY);
  built = built.substr(0, built.rfind('/')) + "/libgradus_cuda.so";
  if (!std::filesystem::exists(built)) GTEST_SKIP() << built << " is not built (GRADUS_CUDA)";
  const auto table = load_cuda_library(built);
  ASSERT_TRUE(table.ok()) << table.status().message();
  const Cuda cuda = Cuda::over_table(**table);
  const std::string missing =
      make_nccl_id(cuda, {.library = "/nowhere/libnccl.so.2"}).status().message();
  EXPECT_THAT(missing, StartsWith("nccl: NCCL is not on this machine (/nowhere/libnccl.so.2: "));
  EXPECT_THAT(missing, HasSubstr("install libnccl2 or PyPI's nvidia-nccl-cu13 and name the folder "
                                 "of libnccl.so.2 in LD_LIBRARY_PATH"));
  EXPECT_EQ(make_nccl_id(cuda, {.library = "libm.so.6"}).status().message(),
            "nccl: libm.so.6 lacks a function of NCCL 2.14 or newer; is it another library?");
}

}  // namespace
}  // namespace gradus::kernels
