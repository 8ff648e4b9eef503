// SPDX-License-Identifier: Apache-2.0
// Every rank runs these tests at the same time, rank r on device r: mpirun -np 2
// test_comm_nccl_gpu. Without mpirun there is one rank, and what needs a peer is skipped.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>

#include "comm/device_communicator.h"
#include "common/rng.h"
#include "kernels/cuda.h"
#include "tests/support/mpi_main.h"

extern char** environ;

namespace gradus::comm {
namespace {

using kernels::Cuda;
using kernels::CudaBuffer;
using kernels::CudaStream;
using kernels::Nccl;
using kernels::NcclId;
using std::chrono::seconds;
using std::chrono::steady_clock;
using ::testing::StartsWith;

Communicator* world = nullptr;  // set by main

// One value, an odd number, and what does not divide into the parts of any algorithm; 64 MiB.
const int64_t kCounts[] = {1, 3, 1000, (1 << 20) + 1, 1 << 24};

// Multiples of 2^-8 below 16: their sums are exact in fp32, in whatever order.
float exact_value(int rank, int64_t i) {
  return static_cast<float>(hash64({static_cast<uint64_t>(rank), static_cast<uint64_t>(i)}) %
                            8191) /
             256.0f -
         16.0f;
}
std::vector<float> exact_values(int rank, int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) values[static_cast<size_t>(i)] = exact_value(rank, i);
  return values;
}
std::vector<float> exact_sums(int64_t count) {
  std::vector<float> sums(static_cast<size_t>(count));
  for (int rank = 0; rank < world->size(); ++rank) {
    for (int64_t i = 0; i < count; ++i) sums[static_cast<size_t>(i)] += exact_value(rank, i);
  }
  return sums;
}

template <class T>
bool same_bytes(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

class NcclOnGpu : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    cuda_ = new Result<Cuda>(Cuda::open("", world->rank()));
    why_not_ = agree(*world, cuda_->status()).message();
    if (why_not_.empty()) stream_ = new Result<CudaStream>(CudaStream::create(**cuda_));
  }
  static void TearDownTestSuite() {
    delete stream_;
    delete cuda_;
  }
  void SetUp() override {
    if (!why_not_.empty()) {
      ASSERT_EQ(std::getenv("GRADUS_REQUIRE_GPU"), nullptr) << why_not_;
      GTEST_SKIP() << why_not_;
    }
    ASSERT_TRUE(stream_->ok()) << stream_->status().message();
    connect(60);
  }
  void connect(double deadline_s) {
    devices_ = nullptr;
    auto made = DeviceCommunicator::create(**cuda_, *world, {.deadline_s = deadline_s});
    ASSERT_TRUE(made.ok()) << made.status().message();
    devices_ = std::move(*made);
  }

  template <class T>
  CudaBuffer on_device(const std::vector<T>& values) {
    CudaBuffer buffer = CudaBuffer::allocate(**cuda_, values.size() * sizeof(T)).value();
    must(buffer.copy_from_host(values.data(), values.size() * sizeof(T)));
    return buffer;
  }
  template <class T>
  std::vector<T> on_host(const CudaBuffer& buffer) {
    std::vector<T> values(buffer.bytes() / sizeof(T));
    must(buffer.copy_to_host(values.data(), values.size() * sizeof(T)));
    return values;
  }
  static void must(const Status& status) { GRADUS_CHECK(status.ok(), status.message()); }
  void done(const Status& enqueued) {
    must(enqueued);
    must(devices_->wait());
  }
  kernels::Stream stream() const { return (*stream_)->get(); }

  static Result<Cuda>* cuda_;
  static Result<CudaStream>* stream_;
  static std::string why_not_;
  std::unique_ptr<DeviceCommunicator> devices_;
};
Result<Cuda>* NcclOnGpu::cuda_ = nullptr;
Result<CudaStream>* NcclOnGpu::stream_ = nullptr;
std::string NcclOnGpu::why_not_;

TEST_F(NcclOnGpu, AllReduceGivesAllRanksTheSum) {
  for (const int64_t count : kCounts) {
    const std::vector<float> mine = exact_values(world->rank(), count);
    const CudaBuffer from = on_device(mine), to = on_device(std::vector<float>(mine.size(), -1));
    done(devices_->all_reduce(from.as<float>(), to.as<float>(), count, stream()));
    EXPECT_TRUE(same_bytes(on_host<float>(to), exact_sums(count))) << count << " values";
    EXPECT_TRUE(same_bytes(on_host<float>(from), mine)) << count << " values";
    done(devices_->all_reduce(from.as<float>(), from.as<float>(), count, stream()));
    EXPECT_TRUE(same_bytes(on_host<float>(from), exact_sums(count))) << count << " in place";
  }
}

TEST_F(NcclOnGpu, ReduceScatterGivesEachRankItsSlice) {
  const int64_t size = world->size(), rank = world->rank();
  for (const int64_t count : kCounts) {
    const std::vector<float> sums = exact_sums(count * size);
    const std::vector<float> slice(sums.begin() + rank * count, sums.begin() + (rank + 1) * count);
    const CudaBuffer from = on_device(exact_values(world->rank(), count * size));
    const CudaBuffer to = on_device(std::vector<float>(static_cast<size_t>(count), -1));
    done(devices_->reduce_scatter(from.as<float>(), to.as<float>(), count, stream()));
    EXPECT_TRUE(same_bytes(on_host<float>(to), slice)) << count << " values a rank";
    float* const place = from.as<float>() + rank * count;
    done(devices_->reduce_scatter(from.as<float>(), place, count, stream()));
    const std::vector<float> all = on_host<float>(from);
    EXPECT_TRUE(same_bytes({all.begin() + rank * count, all.begin() + (rank + 1) * count}, slice))
        << count << " in place";
  }
}

// Every pattern of 16 bits is among them: whatever the type, bytes stay bytes.
TEST_F(NcclOnGpu, AllGatherKeepsTheBitsOfAnyType) {
  const int64_t size = world->size(), rank = world->rank();
  const auto pattern = [](int64_t r, int64_t i) {
    return static_cast<uint16_t>(static_cast<uint64_t>(i * (2 * r + 1) + r));
  };
  for (const int64_t count : kCounts) {  // of bf16 numbers
    std::vector<uint16_t> mine(static_cast<size_t>(count)), all;
    for (int64_t i = 0; i < count; ++i) mine[static_cast<size_t>(i)] = pattern(rank, i);
    for (int64_t r = 0; r < size; ++r) {
      for (int64_t i = 0; i < count; ++i) all.push_back(pattern(r, i));
    }
    const CudaBuffer from = on_device(mine), to = on_device(std::vector<uint16_t>(all.size()));
    done(devices_->all_gather(from.data(), to.data(), count * 2, stream()));
    EXPECT_TRUE(same_bytes(on_host<uint16_t>(to), all)) << count << " bf16 numbers a rank";
    std::vector<uint16_t> own(all.size());
    std::copy(mine.begin(), mine.end(), own.begin() + rank * count);
    const CudaBuffer in_place = on_device(own);
    done(devices_->all_gather(in_place.as<uint16_t>() + rank * count, in_place.data(), count * 2,
                              stream()));
    EXPECT_TRUE(same_bytes(on_host<uint16_t>(in_place), all)) << count << " in place";
  }
}

TEST_F(NcclOnGpu, BroadcastGivesAllRanksTheBytesOfAnyRoot) {
  for (int root = 0; root < world->size(); ++root) {
    for (const int64_t count : kCounts) {
      const CudaBuffer values = on_device(exact_values(world->rank(), count));
      done(devices_->broadcast(values.data(), count * 4, root, stream()));
      EXPECT_TRUE(same_bytes(on_host<float>(values), exact_values(root, count)))
          << count << " values of rank " << root;
    }
  }
}

TEST_F(NcclOnGpu, TheSameSumHasTheSameBitsAgainOnAllRanks) {
  constexpr int64_t kCount = (1 << 22) + 5;
  std::vector<float> mine(kCount);
  for (int64_t i = 0; i < kCount; ++i) {  // fifteen orders of magnitude: each order has its bits
    const uint64_t h = hash64({static_cast<uint64_t>(world->rank()), static_cast<uint64_t>(i), 7});
    mine[static_cast<size_t>(i)] =
        std::ldexp(static_cast<float>(h % 100003) - 5e4f, static_cast<int>(h >> 32) % 50 - 25);
  }
  const CudaBuffer from = on_device(mine), to = on_device(mine);
  std::vector<float> first;
  for (int i = 0; i < 20; ++i) {
    done(devices_->all_reduce(from.as<float>(), to.as<float>(), kCount, stream()));
    const std::vector<float> sum = on_host<float>(to);
    if (i == 0) first = sum;
    ASSERT_TRUE(same_bytes(sum, first)) << "repetition " << i;
  }
  uint64_t hash = 0;
  for (const float x : first) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof(bits));
    hash = hash64({hash, bits});
  }
  for (const uint64_t other : all_gather_values(*world, std::vector<uint64_t>{hash})) {
    EXPECT_EQ(other, hash);
  }
}

TEST_F(NcclOnGpu, AnOperationComesAfterTheWorkBeforeItOnItsStream) {
  constexpr int64_t kCount = 1 << 22;
  const CudaBuffer from = on_device(exact_values(world->rank(), kCount));
  const CudaBuffer to = on_device(std::vector<float>(kCount, -1));
  const CudaBuffer copy = on_device(std::vector<float>(kCount, -1));
  must((*stream_)->copy(to.data(), from.data(), kCount * 4));
  must(devices_->all_reduce(to.as<float>(), to.as<float>(), kCount, stream()));
  must((*stream_)->copy(copy.data(), to.data(), kCount * 4));
  must(devices_->wait());
  must((*stream_)->synchronize());
  EXPECT_TRUE(same_bytes(on_host<float>(copy), exact_sums(kCount)));
}

TEST_F(NcclOnGpu, APeerThatDoesNotCallEndsTheOthersWithTheDeadline) {
  if (world->size() == 1) GTEST_SKIP() << "needs a peer: mpirun -np 2";
  connect(10);
  const CudaBuffer values = on_device(exact_values(world->rank(), 1 << 20));
  done(devices_->all_reduce(values.as<float>(), values.as<float>(), 1 << 20, stream()));
  if (world->rank() + 1 < world->size()) {
    const auto begin = steady_clock::now();
    Status status = devices_->all_reduce(values.as<float>(), values.as<float>(), 1 << 20, stream());
    if (status.ok()) status = devices_->wait();
    EXPECT_LT(steady_clock::now() - begin, seconds(15));
    EXPECT_EQ(status.code(), StatusCode::kUnavailable);
    EXPECT_THAT(status.message(), StartsWith(fmt::format("nccl: all_reduce of 4194304 bytes, rank "
                                                         "{} of {}: ",
                                                         world->rank(), world->size())));
  }
  world->barrier();
  devices_ = nullptr;  // the last rank's, of which the others have taken leave
  world->barrier();
  // The device is as good as before.
  connect(60);
  const CudaBuffer fresh = on_device(exact_values(world->rank(), 1000));
  done(devices_->all_reduce(fresh.as<float>(), fresh.as<float>(), 1000, stream()));
  EXPECT_TRUE(same_bytes(on_host<float>(fresh), exact_sums(1000)));
}

// Two processes without MPI, which would end the one with the other. Of rank 0's this file gets the
// message, of rank 1's nothing: it is gone in the middle.
constexpr double kPeerDeadlineS = 15;

int run_peer(int rank, const std::string& folder) {
  const Result<Cuda> cuda = Cuda::open("", rank);
  if (!cuda.ok()) return 2;
  NcclId id;
  if (rank == 0) {
    const Result<NcclId> made = make_nccl_id(*cuda);
    if (!made.ok()) return 3;
    id = *made;
    std::ofstream(folder + "/part").write(id.bytes, sizeof(id.bytes));
    std::filesystem::rename(folder + "/part", folder + "/id");
  } else {
    for (int i = 0; i < 6000 && !std::filesystem::exists(folder + "/id"); ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    std::ifstream(folder + "/id").read(id.bytes, sizeof(id.bytes));
  }
  Result<Nccl> nccl = Nccl::connect(*cuda, id, rank, 2, {.deadline_s = kPeerDeadlineS});
  const Result<CudaBuffer> memory = CudaBuffer::allocate(*cuda, 4 << 20);
  if (!nccl.ok() || !memory.ok()) return 4;
  const auto sum = [&] {
    const Status status =
        nccl->all_reduce(memory->as<float>(), memory->as<float>(), 1 << 20, nullptr);
    return status.ok() ? nccl->wait() : status;
  };
  if (!sum().ok()) return 5;
  if (rank == 1) _exit(0);
  const auto begin = steady_clock::now();
  const Status status = sum();
  const double waited_s = std::chrono::duration<double>(steady_clock::now() - begin).count();
  std::ofstream(folder + "/message") << fmt::format("{:.1f} s\n{}\n", waited_s, status.message());
  _exit(waited_s < kPeerDeadlineS + 5 ? 0 : 6);
}

TEST_F(NcclOnGpu, APeerThatExitsEndsTheOtherWithinTheDeadline) {
  if (world->size() == 1) GTEST_SKIP() << "needs a second device: mpirun -np 2";
  if (world->rank() == 0) {
    std::string folder = ::testing::TempDir() + "/nccl_peers_XXXXXX";
    ASSERT_NE(mkdtemp(folder.data()), nullptr);
    const std::string self = std::filesystem::read_symlink("/proc/self/exe").string();
    pid_t processes[2];
    for (int rank = 0; rank < 2; ++rank) {
      std::string peer = "--peer", number = std::to_string(rank);
      char* arguments[] = {const_cast<char*>(self.c_str()), peer.data(), number.data(),
                           folder.data(), nullptr};
      ASSERT_EQ(posix_spawn(&processes[rank], self.c_str(), nullptr, nullptr, arguments, environ),
                0);
    }
    for (const pid_t process : processes) {
      int status = 0;
      ASSERT_EQ(waitpid(process, &status, 0), process);
      EXPECT_TRUE(WIFEXITED(status)) << status;
      EXPECT_EQ(WEXITSTATUS(status), 0);
    }
    std::ifstream file(folder + "/message");
    std::string waited, message;
    std::getline(file, waited);
    std::getline(file, message);
    fmt::print("after {}: {}\n", waited, message);
    EXPECT_THAT(message, StartsWith("nccl: all_reduce of 4194304 bytes, rank 0 of 2: "));
    std::filesystem::remove_all(folder);
  }
  world->barrier();
}

}  // namespace
}  // namespace gradus::comm

int main(int argc, char** argv) {
  if (argc == 4 && std::strcmp(argv[1], "--peer") == 0) {
    return gradus::comm::run_peer(std::atoi(argv[2]), argv[3]);
  }
  return gradus::testing::run_tests_of_ranks(argc, argv, gradus::comm::world);
}
