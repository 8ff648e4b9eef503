// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <filesystem>

#include "kernels/device_backward.h"
#include "kernels/device_forward.h"
#include "kernels/device_product.h"
#include "kernels/internal/cuda_table.h"
#include "kernels/lm_head.h"

namespace gradus::kernels {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

TEST(CudaLibrary, ThatIsNotThereIsSaidWithWhereItWasLookedForAndHowToGetIt) {
  const auto found = find_cuda_library("/nowhere");
  ASSERT_FALSE(found.ok());
  EXPECT_EQ(found.status().code(), StatusCode::kNotFound);
  EXPECT_EQ(
      found.status().message(),
      "cuda: libgradus_cuda.so is neither in /nowhere nor in its lib/; run tools/setup --cuda "
      "and tools/build, or take it from a bundle");
}

TEST(CudaLibrary, IsFoundInTheLibFolderOfABundle) {
  const std::filesystem::path folder = ::testing::TempDir() + "/cuda_library_test";
  std::filesystem::create_directories(folder / "lib");
  std::fclose(std::fopen((folder / "lib/libgradus_cuda.so").c_str(), "w"));
  const auto found = find_cuda_library(folder.string());
  ASSERT_TRUE(found.ok());
  EXPECT_EQ(*found, (folder / "lib/libgradus_cuda.so").string());
  std::filesystem::remove_all(folder);
}

TEST(CudaLibrary, ThatCannotBeLoadedOrIsAnotherOneIsSaidByName) {
  const auto missing = Cuda::open("/nowhere/libgradus_cuda.so");
  ASSERT_FALSE(missing.ok());
  EXPECT_THAT(missing.status().message(),
              StartsWith("cuda: cannot load /nowhere/libgradus_cuda.so: "));
  const auto other = Cuda::open("libm.so.6");
  ASSERT_FALSE(other.ok());
  EXPECT_EQ(other.status().message(),
            "cuda: libm.so.6 is not Gradus' CUDA library: it has no gradus_cuda_table");
}

TEST(CudaLibrary, OfAnotherBuildIsRefused) {
  const cuda::CudaTable table = {.version = 99, .bytes = 8};
  EXPECT_EQ(
      check_cuda_table(table, "x.so").message(),
      fmt::format("cuda: x.so is of another build (table version 99, 8 bytes; expected {}, {}); "
                  "build the binary and the library together",
                  cuda::kCudaTableVersion, sizeof(cuda::CudaTable)));
}

TEST(CudaDevice, OfAnotherComputeCapabilityIsRefused) {
  cuda::CudaDevice device = {};
  std::snprintf(device.name, sizeof(device.name), "NVIDIA A100");
  device.major = 8;
  EXPECT_EQ(check_cuda_device(device).message(),
            "cuda: NVIDIA A100 has compute capability 8.0; the kernels are built for 9.0 alone "
            "(H100, H200)");
  device.major = 9;
  EXPECT_TRUE(check_cuda_device(device).ok());
}

TEST(CudaDevice, ThatIsMissingIsSaidWithWhatIsNeeded) {
  std::string built = std::string(GRADUS_BINARY);
  built = built.substr(0, built.rfind('/')) + "/libgradus_cuda.so";
  if (!std::filesystem::exists(built)) GTEST_SKIP() << built << " is not built (GRADUS_CUDA)";
  if (std::filesystem::exists("/dev/nvidiactl")) GTEST_SKIP() << "there is a device here";
  const auto cuda = Cuda::open(built);
  ASSERT_FALSE(cuda.ok());
  EXPECT_THAT(cuda.status().message(), StartsWith("cuda: no device is usable: "));
  EXPECT_THAT(
      cuda.status().message(),
      HasSubstr("an H100 or H200 and an NVIDIA driver for CUDA 13 (580 or newer) are needed"));
}

// A table without a device: a megabyte of workspace is always enough, and every launch fails.
cuda::CudaTable fake_table() {
  cuda::CudaTable table = {};
  table.lm_head.sample_workspace_bytes = [](int64_t, int64_t) { return size_t{1} << 20; };
  table.lm_head.score_workspace_bytes = [](int64_t, int64_t) { return size_t{1} << 20; };
  table.lm_head.sample = [](const LmHeadSampleParams&, cuda::CudaErrorText* error) {
    std::snprintf(error->text, sizeof(error->text), "the launch failed");
    return cuda::CudaCode::kUnavailable;
  };
  return table;
}

struct Sizes {
  int64_t b = 4, v = 256, d = 64;
};
LmHeadSampleParams params_of(const Sizes& sizes) {
  static const LmHeadRow rows[4];
  alignas(256) static char memory[256];
  static int32_t token;
  static float logprob;
  return {.w_VD = memory,
          .h_BD = memory,
          .rows_B = rows,
          .b = sizes.b,
          .v = sizes.v,
          .d = sizes.d,
          .token_B = &token,
          .logprob_B = &logprob,
          .workspace = memory,
          .workspace_bytes = size_t{1} << 20};
}

TEST(LmHead, NamesTheParameterThatIsOutsideItsRange) {
  const cuda::CudaTable table = fake_table();
  const Cuda cuda = Cuda::over_table(table);
  const auto message = [&](const LmHeadSampleParams& p) {
    return lm_head_sample(cuda, p).message();
  };
  EXPECT_EQ(message(params_of({.d = 60})),
            "lm_head_sample: d must be a multiple of 8, at least 8, got 60");
  EXPECT_EQ(message(params_of({.b = 0})), "lm_head_sample: b must be in [1, 4096], got 0");
  EXPECT_EQ(message(params_of({.v = 0})), "lm_head_sample: v must be in [1, 2^23], got 0");
  LmHeadSampleParams p = params_of({});
  p.rows_B = nullptr;
  EXPECT_EQ(message(p), "lm_head_sample: rows_B is null");
  p = params_of({});
  p.h_BD = static_cast<const char*>(p.w_VD) + 2;
  EXPECT_THAT(message(p), StartsWith("lm_head_sample: h_BD must be 16-byte aligned, got 0x"));
  p = params_of({});
  p.vocab_size = 1000;
  EXPECT_EQ(message(p),
            "lm_head_sample: filters need the whole vocabulary in one call, got 256 of 1000");
  p.filters = false;
  p.vocab_begin = 100;
  EXPECT_EQ(message(p),
            "lm_head_sample: the shard [100, 356) must begin at a multiple of 128 and lie in the "
            "vocabulary of 1000");
  p = params_of({});
  p.workspace_bytes = 10;
  EXPECT_EQ(message(p), "lm_head_sample: workspace has 10 bytes, needs 1048576");
  p = params_of({});
  p.workspace_rows = 3;
  EXPECT_EQ(message(p), "lm_head_sample: workspace_rows must be 0 or at least b (4), got 3");
  p = params_of({});
  p.num_top = 21;
  EXPECT_EQ(message(p), "lm_head_sample: num_top must be in [0, 20], got 21");
}

TEST(LmHead, AFailedLaunchNamesOperationAndShapes) {
  const cuda::CudaTable table = fake_table();
  const Status status = lm_head_sample(Cuda::over_table(table), params_of({}));
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_EQ(status.message(), "lm_head_sample of 4 rows, 256 x 64: the launch failed");
}

TEST(DeviceForward, NamesTheParameterThatIsOutsideItsRange) {
  const cuda::CudaTable table = {};
  const Cuda cuda = Cuda::over_table(table);
  LinearParams linear{.t = 1, .n = 16, .k = 60, .y_stride = 16};
  EXPECT_EQ(device_linear(cuda, linear).message(),
            "device_linear: k must be a multiple of 8, got 60");
  linear = {.t = 0, .n = 16, .k = 64};
  EXPECT_EQ(device_linear(cuda, linear).message(), "device_linear: t must be at least 1, got 0");
  linear = {.t = 1, .n = 24, .k = 64, .output = LinearOutput::kSwiglu};
  EXPECT_EQ(device_linear(cuda, linear).message(),
            "device_linear: n must be a multiple of 16, got 24");
  linear = {.t = 1, .n = 24, .k = 64, .y_stride = 23};
  EXPECT_EQ(device_linear(cuda, linear).message(), "device_linear: y_stride must be even, got 23");
  DeviceAttentionParams attention{.num_heads = 8};
  attention.kv.num_kv_heads = 2;
  attention.kv.head_width = 80;
  EXPECT_EQ(device_attention(cuda, attention).message(),
            "device_attention: head width must be 64 or 128, got 80");
  attention.kv.head_width = 64;
  attention.kv.num_kv_heads = 3;
  EXPECT_EQ(device_attention(cuda, attention).message(),
            "device_attention: 8 heads must be a multiple of 3 key-value heads, at most 16 times");
  attention.kv.num_kv_heads = 2;
  attention.max_chunks = 2;
  EXPECT_EQ(device_attention(cuda, attention).message(),
            "device_attention: 2 chunks need arrivals and partial");
}

TEST(DeviceForward, AFailedLaunchNamesOperationAndShapes) {
  cuda::CudaTable table = {};
  table.forward.linear = [](const LinearParams&, cuda::CudaErrorText* error) {
    std::snprintf(error->text, sizeof(error->text), "the launch failed");
    return cuda::CudaCode::kUnavailable;
  };
  const Status status = device_linear(Cuda::over_table(table), {.t = 3, .n = 16, .k = 64});
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_EQ(status.message(), "device_linear of 3 rows, 16 x 64: the launch failed");
}

TEST(DeviceProduct, NamesTheParameterThatIsOutsideItsRange) {
  const cuda::CudaTable table = {};
  const Cuda cuda = Cuda::over_table(table);
  alignas(16) static char memory[64];
  const DeviceProductParams sound{.a = memory, .b = memory, .c = memory, .m = 8, .n = 16, .k = 24};
  DeviceProductParams p = sound;
  p.k = 0;
  EXPECT_EQ(device_product(cuda, p).message(), "device_product: k must be in [1, 2^31), got 0");
  p = sound;
  p.b = memory + 2;
  EXPECT_THAT(device_product(cuda, p).message(),
              StartsWith("device_product: b must be 16-byte aligned memory, got 0x"));
  p = sound;
  p.a_transposed = true;
  p.a_stride = 20;
  EXPECT_EQ(device_product(cuda, p).message(),
            "device_product: a_stride must be a multiple of 8 and at least the row's width 8, got "
            "20");
  p = sound;
  p.n = 17;
  EXPECT_EQ(device_product(cuda, p).message(),
            "device_product: b_stride must be a multiple of 8 and at least the row's width 17, got "
            "17");
  p = sound;
  p.c_bf16 = p.accumulate = true;
  EXPECT_EQ(device_product(cuda, p).message(),
            "device_product: accumulate needs c in fp32, not in bf16");
}

TEST(DeviceProduct, AFailedLaunchNamesOperationAndShapes) {
  cuda::CudaTable table = {};
  table.product.run = [](const DeviceProductParams&, cuda::CudaErrorText* error) {
    std::snprintf(error->text, sizeof(error->text), "cuBLAS of CUDA 13 is not on this machine");
    return cuda::CudaCode::kUnavailable;
  };
  alignas(16) static char memory[64];
  const Status status = device_product(
      Cuda::over_table(table), {.a = memory, .b = memory, .c = memory, .m = 8, .n = 16, .k = 24});
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_EQ(status.message(),
            "device_product of 8 x 16 x 24: cuBLAS of CUDA 13 is not on this machine");
}

TEST(DeviceBackward, RefusesWhatItsKernelsCannot) {
  const cuda::CudaTable none = {};
  const Cuda cuda = Cuda::over_table(none);
  EXPECT_EQ(device_swiglu_backward(cuda, {.t = 3, .f = 12}).message(),
            "device_swiglu_backward: f must be a multiple of 8, got 12");
  EXPECT_EQ(
      device_attention_backward(cuda, {.t = 3, .num_heads = 3, .num_kv_heads = 2, .head_width = 64})
          .message(),
      "device_attention_backward: 3 heads must be a multiple of 2 key-value heads");
  EXPECT_EQ(device_rotate_rows(cuda, {.t = 3, .num_heads = 2, .num_kv_heads = 2, .head_width = 96})
                .message(),
            "device_rotate_rows: head width must be 64 or 128, got 96");
}

TEST(LmHeadTraining, NamesTheParameterThatIsOutsideItsRange) {
  cuda::CudaTable table = {};
  table.lm_head.backward_workspace_bytes = [](int64_t rows, int64_t, int64_t, bool given) {
    return static_cast<size_t>(given ? 1000 + rows : rows);
  };
  table.lm_head.train_workspace_bytes = [](int64_t b, int64_t, int64_t) {
    return static_cast<size_t>(b);
  };
  const Cuda cuda = Cuda::over_table(table);
  alignas(256) static char memory[256];
  const auto* ids = reinterpret_cast<const int32_t*>(memory);
  auto* floats = reinterpret_cast<float*>(memory);
  const LmHeadBackwardParams sound{.w_VD = memory,
                                   .h_BD = memory,
                                   .token_B = ids,
                                   .lse_B = floats,
                                   .dlogprob_B = floats,
                                   .b = 4,
                                   .v = 100,
                                   .d = 64,
                                   .dh_BD = floats,
                                   .workspace = memory,
                                   .workspace_bytes = 4};
  const auto message = [&](const LmHeadBackwardParams& p) {
    return lm_head_backward(cuda, p).message();
  };
  LmHeadBackwardParams p = sound;
  p.d = 60;
  EXPECT_EQ(message(p), "lm_head_backward: d must be a multiple of 8, at least 8, got 60");
  p = sound;
  p.b = -1;
  EXPECT_EQ(message(p), "lm_head_backward: b must be at least 0, got -1");
  p = sound;
  p.r = 5;
  EXPECT_EQ(message(p), "lm_head_backward: r must be in [0, 4], and 0 without rows_R, got 5");
  p.rows_R = ids;
  EXPECT_EQ(message(p), "lm_head_backward: r must be in [0, 4], and 0 without rows_R, got 5");
  p = sound;
  p.dentropy_B = floats;
  EXPECT_EQ(message(p), "lm_head_backward: dentropy_B needs entropy_B");
  p = sound;
  p.temperature = 0;
  EXPECT_EQ(message(p), "lm_head_backward: temperature must be in [1e-4, 1e4], got 0");
  p = sound;
  p.dh_BD = nullptr;
  EXPECT_EQ(message(p), "lm_head_backward: dh_BD is null");
  p = sound;
  p.rows_R = ids;
  p.r = 2;
  EXPECT_EQ(message(p), "lm_head_backward: workspace has 4 bytes, needs 1002");
  EXPECT_TRUE(lm_head_backward(cuda, {.b = 0, .v = 100, .d = 64}).ok());

  LmHeadTrainParams train{.w_VD = memory,
                          .h_BD = memory,
                          .token_B = ids,
                          .dlogprob_B = floats,
                          .b = 4,
                          .v = 100,
                          .d = 64,
                          .dh_BD = floats,
                          .workspace = memory,
                          .workspace_bytes = 4};
  EXPECT_EQ(lm_head_train(cuda, train).message(), "lm_head_train: logprob_B must be given");
  train.logprob_B = floats;
  train.dw_VD = floats + 1;
  EXPECT_THAT(lm_head_train(cuda, train).message(),
              StartsWith("lm_head_train: dw_VD must be 16-byte aligned, got 0x"));
  table.lm_head.train = [](const LmHeadTrainParams&, cuda::CudaErrorText* error) {
    std::snprintf(error->text, sizeof(error->text), "the launch failed");
    return cuda::CudaCode::kUnavailable;
  };
  train.dw_VD = nullptr;
  EXPECT_EQ(lm_head_train(cuda, train).message(),
            "lm_head_train of 4 rows, 100 x 64: the launch failed");
}

}  // namespace
}  // namespace gradus::kernels
