// SPDX-License-Identifier: Apache-2.0
#include "kernels/device_product.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <vector>

#include "tests/kernels/head_case.h"
#include "tests/support/tolerances.h"

namespace gradus::kernels {
namespace {

using gradus::testing::DeviceArray;
using gradus::testing::must;

double from_bf16(uint16_t x) { return std::bit_cast<float>(uint32_t{x} << 16); }

// A random matrix of bf16 with rows `stride` apart, on both sides.
struct Matrix {
  int64_t rows, columns, stride;
  DeviceArray<uint16_t> device;
  std::vector<uint16_t> host;

  Matrix(const Cuda& cuda, int64_t rows_, int64_t columns_, int64_t padding, uint64_t seed)
      : rows(rows_),
        columns(columns_),
        stride((columns_ + 7) / 8 * 8 + padding),
        device(cuda, static_cast<size_t>(rows * stride)) {
    must(check_random_bf16(cuda, device.data(), rows * stride, 1, seed));
    host = device.download();
  }
  double at(int64_t row, int64_t column) const {
    return from_bf16(host[static_cast<size_t>(row * stride + column)]);
  }
};

struct Product {
  int64_t m, n, k;
  bool a_transposed, b_transposed;
  int64_t padding;  // elements more from row to row
};

struct Case {
  Product shape;
  Matrix a, b;
  std::vector<double> exact;  // [M, N]

  Case(const Cuda& cuda, const Product& s)
      : shape(s),
        a(cuda, s.a_transposed ? s.k : s.m, s.a_transposed ? s.m : s.k, s.padding, 1),
        b(cuda, s.b_transposed ? s.n : s.k, s.b_transposed ? s.k : s.n, s.padding, 2),
        exact(static_cast<size_t>(s.m * s.n)) {
    for (int64_t i = 0; i < s.m; ++i) {
      for (int64_t j = 0; j < s.n; ++j) {
        double sum = 0;
        for (int64_t l = 0; l < s.k; ++l) {
          sum += (s.a_transposed ? a.at(l, i) : a.at(i, l)) *
                 (s.b_transposed ? b.at(j, l) : b.at(l, j));
        }
        exact[static_cast<size_t>(i * s.n + j)] = sum;
      }
    }
  }
  int64_t c_stride() const { return (shape.n + 7) / 8 * 8 + shape.padding; }
  DeviceProductParams params(void* c) const {
    return {.a = a.device.data(),
            .b = b.device.data(),
            .c = c,
            .m = shape.m,
            .n = shape.n,
            .k = shape.k,
            .a_stride = a.stride,
            .b_stride = b.stride,
            .c_stride = c_stride(),
            .a_transposed = shape.a_transposed,
            .b_transposed = shape.b_transposed};
  }
  std::string describe() const {
    return fmt::format("{} x {} x {}, a {} b {}, padding {}", shape.m, shape.n, shape.k,
                       shape.a_transposed ? "transposed" : "plain",
                       shape.b_transposed ? "transposed" : "plain", shape.padding);
  }
};

// || got - expected || / || expected || over the elements of C; the padding must be untouched.
template <class Value>
double error_of(const Case& c, const std::vector<double>& expected, Value value) {
  double off = 0, size = 0;
  for (int64_t i = 0; i < c.shape.m; ++i) {
    for (int64_t j = 0; j < c.shape.n; ++j) {
      const double want = expected[static_cast<size_t>(i * c.shape.n + j)];
      const double difference = value(static_cast<size_t>(i * c.c_stride() + j)) - want;
      off += difference * difference;
      size += want * want;
    }
  }
  return std::sqrt(off / size);
}

const Product kProducts[] = {{1, 8, 8, false, false, 0},        {1, 1, 1, false, false, 0},
                             {8, 16, 8, true, true, 0},         {63, 136, 72, false, true, 8},
                             {63, 136, 72, true, false, 8},     {64, 72, 200, true, true, 24},
                             {129, 264, 1000, false, false, 0}, {200, 96, 61, true, false, 0},
                             {5, 896, 328, false, false, 16},   {896, 40, 7, true, false, 0},
                             {33, 48, 4096, false, true, 0},    {24, 200, 2048, true, true, 8}};

TEST(DeviceProductSmall, IsThatOfDoubles) {
  GRADUS_NEEDS_GPU(cuda);
  for (const Product& shape : kProducts) {
    const Case c(*cuda, shape);
    const auto size = static_cast<size_t>(shape.m * c.c_stride());
    DeviceArray<float> out(*cuda, size);
    out.fill(0xFF);  // NaN
    must(device_product(*cuda, c.params(out.data())));
    const std::vector<float> got = out.download();
    const auto number = [&](size_t i) { return double{got[i]}; };
    EXPECT_LE(error_of(c, c.exact, number), testing::kDeviceProduct) << c.describe();
    for (int64_t i = 0; i < shape.m * c.c_stride(); ++i) {
      ASSERT_EQ(i % c.c_stride() < shape.n, !std::isnan(got[static_cast<size_t>(i)]))
          << c.describe() << " at " << i;
    }

    DeviceArray<uint16_t> rounded(*cuda, size);
    rounded.fill(0xFF);
    DeviceProductParams p = c.params(rounded.data());
    p.c_bf16 = true;
    must(device_product(*cuda, p));
    const std::vector<uint16_t> halves = rounded.download();
    EXPECT_LE(error_of(c, c.exact, [&](size_t i) { return from_bf16(halves[i]); }),
              testing::kRoundedToBf16)
        << c.describe();

    // Added to what is there; one addend of an exact number, so that a factor would be seen.
    std::vector<float> before(size);
    std::vector<double> sum = c.exact;
    for (int64_t i = 0; i < shape.m; ++i) {
      for (int64_t j = 0; j < c.c_stride(); ++j) {
        const float addend = static_cast<float>((i * 7 + j) % 23) - 11;
        before[static_cast<size_t>(i * c.c_stride() + j)] = addend;
        if (j < shape.n) sum[static_cast<size_t>(i * shape.n + j)] += addend;
      }
    }
    out.upload(before);
    p = c.params(out.data());
    p.accumulate = true;
    must(device_product(*cuda, p));
    const std::vector<float> added = out.download();
    EXPECT_LE(error_of(c, sum, [&](size_t i) { return double{added[i]}; }), testing::kDeviceProduct)
        << c.describe();
    if (shape.m * shape.n > 1) {
      EXPECT_GT(error_of(c, c.exact, [&](size_t i) { return double{added[i]}; }), 0.01)
          << c.describe();
    }
  }
}

// The head's and a layer's gradients: large enough for every kernel that cuBLAS may choose, some
// with sums that it cuts.
TEST(DeviceProductOnGpu, GivesTheSameBitsAgain) {
  GRADUS_NEEDS_GPU(cuda);
  for (const Product& s : {Product{8192, 896, 4864, false, false, 0},
                           {4864, 896, 8192, true, false, 0},
                           {896, 1152, 8192, true, false, 0},
                           {64, 896, 151936, false, false, 0},
                           {16896, 896, 1000, true, false, 0},
                           {1, 4096, 4096, false, false, 0}}) {
    const Matrix a(*cuda, s.a_transposed ? s.k : s.m, s.a_transposed ? s.m : s.k, 0, 3);
    const Matrix b(*cuda, s.k, s.n, 0, 4);
    std::vector<float> first;
    for (int round = 0; round < 5; ++round) {
      DeviceArray<float> c(*cuda, static_cast<size_t>(s.m * s.n));
      c.fill(0);
      must(device_product(*cuda, {.a = a.device.data(),
                                  .b = b.device.data(),
                                  .c = c.data(),
                                  .m = s.m,
                                  .n = s.n,
                                  .k = s.k,
                                  .a_stride = a.stride,
                                  .b_stride = b.stride,
                                  .a_transposed = s.a_transposed,
                                  .accumulate = true}));
      const std::vector<float> got = c.download();
      if (first.empty()) first = got;
      ASSERT_EQ(std::memcmp(got.data(), first.data(), got.size() * sizeof(float)), 0)
          << s.m << " x " << s.n << " x " << s.k << ", round " << round;
    }
  }
}

TEST(DeviceProductSmall, RunsOnAStreamOfItsOwnAndInAGraph) {
  GRADUS_NEEDS_GPU(cuda);
  const Case c(*cuda, {64, 72, 200, false, false, 0});
  DeviceArray<float> out(*cuda, static_cast<size_t>(64 * c.c_stride()));
  auto stream = CudaStream::create(*cuda);
  ASSERT_TRUE(stream.ok());
  must(device_product(*cuda, c.params(out.data())));  // allocates
  must(synchronize(*cuda));
  DeviceProductParams p = c.params(out.data());
  p.stream = stream->get();
  const auto graph = CudaGraph::record(*cuda, *stream, [&] { return device_product(*cuda, p); });
  ASSERT_TRUE(graph.ok()) << graph.status().message();
  for (int round = 0; round < 2; ++round) {
    out.fill(0xFF);
    must(graph->launch(*stream));
    must(stream->synchronize());
    const std::vector<float> got = out.download();
    EXPECT_LE(error_of(c, c.exact, [&](size_t i) { return double{got[i]}; }),
              testing::kDeviceProduct);
  }
}

}  // namespace
}  // namespace gradus::kernels
