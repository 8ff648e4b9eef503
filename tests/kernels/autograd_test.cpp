// SPDX-License-Identifier: Apache-2.0
// Forward and hand-written backward of the elementwise and row kernels, attention and log-probs
// against torch's autograd in double precision.
#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/mean.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/tril.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <numeric>
#include <tuple>
#include <vector>

#include "common/rng.h"
#include "kernels/activation.h"
#include "kernels/attention.h"
#include "kernels/logprob.h"
#include "kernels/norm.h"
#include "kernels/rope.h"
#include "tests/support/aligned.h"
#include "tests/support/tolerances.h"

namespace gradus::kernels {
namespace {

using testing::AlignedFloats;
using testing::reduction_tolerance;

constexpr uint64_t kSeed = 11;

AlignedFloats random_floats(int64_t count, uint64_t key, double scale = 1.0) {
  RngSequence rng(kSeed + key, RngStream::kInit);
  AlignedFloats values(static_cast<size_t>(count));
  for (float& value : values) value = static_cast<float>(scale * rng.normal());
  return values;
}

// A leaf in double precision with the same values.
at::Tensor leaf(const AlignedFloats& values, at::IntArrayRef shape) {
  const at::Tensor floats = at::from_blob(const_cast<float*>(values.data()), shape, at::kFloat);
  return floats.to(at::kDouble).clone().requires_grad_(true);
}

void expect_near(const AlignedFloats& actual, const at::Tensor& expected, double tolerance,
                 const std::string& what) {
  const at::Tensor flat = expected.detach().contiguous().reshape({-1});
  ASSERT_EQ(static_cast<int64_t>(actual.size()), flat.numel()) << what;
  const double* values = flat.data_ptr<double>();
  for (size_t i = 0; i < actual.size(); ++i) {
    ASSERT_NEAR(actual[i], values[i], tolerance * std::max(1.0, std::abs(values[i])))
        << what << " element " << i << ", seed " << kSeed;
  }
}

// Gradients of sum(y * dy) with respect to `leaves`.
std::vector<at::Tensor> gradients(const at::Tensor& y, const at::Tensor& dy,
                                  const std::vector<at::Tensor>& leaves) {
  return torch::autograd::grad({y}, leaves, {dy.detach()});
}

class RowSizes : public ::testing::TestWithParam<std::tuple<int64_t, int64_t>> {};

TEST_P(RowSizes, RmsNormAgreesWithAutograd) {
  const auto [m, d] = GetParam();
  const std::string sizes = "m " + std::to_string(m) + " d " + std::to_string(d);
  const AlignedFloats x = random_floats(m * d, 1), weight = random_floats(d, 2);
  const AlignedFloats dy = random_floats(m * d, 3);
  AlignedFloats y(x.size()), rstd(static_cast<size_t>(m)), dx(x.size()), dweight(weight.size());
  rms_norm({.x_MD = x.data(),
            .x_stride = d,
            .weight_D = weight.data(),
            .y_MD = y.data(),
            .y_stride = d,
            .rstd_M = rstd.data(),
            .m = m,
            .d = d,
            .eps = 1e-5f});
  rms_norm_backward({.dy_MD = dy.data(),
                     .dy_stride = d,
                     .x_MD = x.data(),
                     .x_stride = d,
                     .weight_D = weight.data(),
                     .rstd_M = rstd.data(),
                     .dx_MD = dx.data(),
                     .dx_stride = d,
                     .dweight_D = dweight.data(),
                     .m = m,
                     .d = d});

  const at::Tensor tx = leaf(x, {m, d}), tw = leaf(weight, {d});
  const at::Tensor ty = tx * at::rsqrt((tx * tx).mean(1, true) + double{1e-5f}) * tw;
  const auto grads = gradients(ty, leaf(dy, {m, d}), {tx, tw});
  expect_near(y, ty, reduction_tolerance(d), "y " + sizes);
  expect_near(dx, grads[0], reduction_tolerance(d, 4), "dx " + sizes);
  expect_near(dweight, grads[1], reduction_tolerance(m, 4), "dweight " + sizes);
}

TEST_P(RowSizes, SwigluAgreesWithAutograd) {
  const auto [m, i] = GetParam();
  const int64_t up_offset = i + 3;
  const int64_t stride = up_offset + i;
  const std::string sizes = "m " + std::to_string(m) + " i " + std::to_string(i);
  AlignedFloats gate_up = random_floats(m * stride, 4, 3.0);
  const AlignedFloats dy = random_floats(m * i, 5);
  const at::Tensor leaf_gate_up = leaf(gate_up, {m, stride});
  const at::Tensor ty =
      at::silu(leaf_gate_up.slice(1, 0, i)) * leaf_gate_up.slice(1, up_offset, stride);
  const auto grads = gradients(ty, leaf(dy, {m, i}), {leaf_gate_up});

  AlignedFloats y(dy.size());
  swiglu({.gate_up = gate_up.data(),
          .gate_up_stride = stride,
          .up_offset = up_offset,
          .y_MI = y.data(),
          .y_stride = i,
          .m = m,
          .i = i});
  expect_near(y, ty, reduction_tolerance(8), "y " + sizes);
  swiglu_backward({.gate_up = gate_up.data(),
                   .gate_up_stride = stride,
                   .up_offset = up_offset,
                   .dy_MI = dy.data(),
                   .dy_stride = i,
                   .m = m,
                   .i = i});
  // The gap between gates and ups has no gradient and is not touched.
  for (int64_t row = 0; row < m; ++row) {
    AlignedFloats gate(gate_up.begin() + row * stride, gate_up.begin() + row * stride + i);
    AlignedFloats up(gate_up.begin() + row * stride + up_offset,
                     gate_up.begin() + (row + 1) * stride);
    expect_near(gate, grads[0][row].slice(0, 0, i), reduction_tolerance(16, 3), "gate " + sizes);
    expect_near(up, grads[0][row].slice(0, up_offset, stride), reduction_tolerance(16, 3),
                "up " + sizes);
  }
}

TEST_P(RowSizes, LogprobAndEntropyAgreeWithAutograd) {
  const auto [m, v] = GetParam();
  const float temperature = 0.7f;
  const int64_t padded_v = (v + 15) / 16 * 16;
  for (int64_t row = 0; row < m; ++row) {
    const AlignedFloats z = random_floats(v, 100 + static_cast<uint64_t>(row), 3.0);
    const auto token = static_cast<int32_t>((7 * row) % v);
    const at::Tensor tz = leaf(z, {v});
    const at::Tensor logprobs = at::log_softmax(tz / double{temperature}, 0);
    const at::Tensor entropy_of_row = -(at::exp(logprobs) * logprobs).sum();
    const float dlogprob = 1.5f, dentropy = -0.5f;
    const at::Tensor loss = logprobs[token] * dlogprob + entropy_of_row * dentropy;
    const auto grads = torch::autograd::grad({loss}, {tz});

    AlignedFloats logits(z);
    logits.resize(static_cast<size_t>(padded_v), 1.0f);
    const LogitStats stats = logit_stats(logits.data(), v, temperature);
    EXPECT_NEAR(token_logprob(stats, z[static_cast<size_t>(token)], temperature),
                logprobs[token].item<double>(), testing::kLogprob);
    EXPECT_NEAR(entropy(stats), entropy_of_row.item<double>(), testing::kLogprob);
    logprob_backward({.logits_V = logits.data(),
                      .v = v,
                      .padded_v = padded_v,
                      .stats = stats,
                      .temperature = temperature,
                      .token = token,
                      .dlogprob = dlogprob,
                      .dentropy = dentropy});
    logits.resize(static_cast<size_t>(v));
    expect_near(logits, grads[0], testing::kLogprobGradient, "row " + std::to_string(row));
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, RowSizes,
                         ::testing::Combine(::testing::Values(1, 2, 7),
                                            ::testing::Values(1, 15, 16, 33, 576)));

// Pairs (i, i + K/2) turned by position * frequency.
at::Tensor rotated(const at::Tensor& x_THK, const std::vector<int32_t>& positions,
                   const std::vector<double>& frequencies) {
  const int64_t half = x_THK.size(2) / 2;
  at::Tensor angles = at::ones({x_THK.size(0), 1, half}, at::kDouble);
  for (int64_t t = 0; t < x_THK.size(0); ++t) {
    for (int64_t i = 0; i < half; ++i) {
      angles[t][0][i] = positions[static_cast<size_t>(t)] * frequencies[static_cast<size_t>(i)];
    }
  }
  const at::Tensor a = x_THK.slice(2, 0, half), b = x_THK.slice(2, half, 2 * half);
  return at::cat({a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()}, 2);
}

TEST(RopeKernel, AgreesWithAutogradAtNearAndFarPositions) {
  const int64_t num_heads = 3, width = 18, stride = num_heads * width + 5;
  std::vector<double> frequencies;
  for (int64_t i = 0; i < width / 2; ++i) {
    frequencies.push_back(std::pow(10000.0, -2.0 * static_cast<double>(i) / width));
  }
  RopeTable table(frequencies);
  table.reserve(9000);
  const std::vector<int32_t> positions = {0, 1, 2, 77, 8191};
  const auto t = static_cast<int64_t>(positions.size());
  AlignedFloats x = random_floats(t * stride, 6), dy = random_floats(t * stride, 7);
  const at::Tensor tx = leaf(x, {t, stride});
  const at::Tensor ty = at::cat(
      {rotated(tx.slice(1, 0, stride - 5).reshape({t, num_heads, width}), positions, frequencies)
           .reshape({t, stride - 5}),
       tx.slice(1, stride - 5, stride)},
      1);
  const auto grads = gradients(ty, leaf(dy, {t, stride}), {tx});

  RopeParams params{.x_THK = x.data(),
                    .x_stride = stride,
                    .positions_T = positions.data(),
                    .t = t,
                    .num_heads = num_heads,
                    .head_width = width,
                    .cosines = table.cosines(),
                    .sines = table.sines()};
  rope(params);
  expect_near(x, ty, reduction_tolerance(2), "forward");
  params.x_THK = dy.data();
  params.inverse = true;
  rope(params);
  expect_near(dy, grads[0], reduction_tolerance(2), "backward");
}

// One sequence of `t` rows, all in one call, keys before values in pages of 64.
void check_attention(int64_t t, int64_t num_heads, int64_t num_kv_heads, int64_t width) {
  const std::string sizes = "t " + std::to_string(t) + " heads " + std::to_string(num_heads) + "/" +
                            std::to_string(num_kv_heads) + " width " + std::to_string(width);
  const float scale = 1.0f / std::sqrt(static_cast<float>(width));
  const int64_t q_stride = num_heads * width, kv_stride = num_kv_heads * width;
  const AlignedFloats q = random_floats(t * q_stride, 8), k = random_floats(t * kv_stride, 9);
  const AlignedFloats v = random_floats(t * kv_stride, 10), dout = random_floats(t * q_stride, 12);

  const KvPageLayout layout{.num_kv_heads = num_kv_heads, .head_width = width};
  std::vector<int32_t> page_ids(static_cast<size_t>((t + kPageTokens - 1) / kPageTokens));
  std::iota(page_ids.begin(), page_ids.end(), 0);
  AlignedFloats pages(page_ids.size() * static_cast<size_t>(layout.page_size()), 0.0f);
  const AttentionRun run{
      .row_begin = 0, .num_rows = t, .first_position = 0, .page_ids = page_ids.data()};
  kv_write({.layout = layout,
            .pages = pages.data(),
            .k_TGK = k.data(),
            .v_TGK = v.data(),
            .kv_stride = kv_stride,
            .runs = &run,
            .num_runs = 1});
  AlignedFloats out(q.size()), lse(static_cast<size_t>(t * num_heads));
  attention_forward({.layout = layout,
                     .pages = pages.data(),
                     .q_THK = q.data(),
                     .q_stride = q_stride,
                     .out_THK = out.data(),
                     .out_stride = q_stride,
                     .lse_TH = lse.data(),
                     .num_heads = num_heads,
                     .scale = scale,
                     .runs = &run,
                     .num_runs = 1});

  // dq, dk and dv share one row stride, as they do in the fused projection's gradient.
  const int64_t dq_stride = q_stride + 2 * kv_stride;
  AlignedFloats dqkv(static_cast<size_t>(t * dq_stride), 0.0f);
  const KeyRows keys{.first_position = 0, .row_begin = 0, .num_rows = t};
  const AttentionBackwardRun backward_run{.run = run, .keys = &keys, .num_keys = 1};
  const int64_t group_begin[] = {0, 1};
  attention_backward({.layout = layout,
                      .pages = pages.data(),
                      .q_THK = q.data(),
                      .q_stride = q_stride,
                      .out_THK = out.data(),
                      .dout_THK = dout.data(),
                      .out_stride = q_stride,
                      .lse_TH = lse.data(),
                      .num_heads = num_heads,
                      .scale = scale,
                      .dq_THK = dqkv.data(),
                      .dk_TGK = dqkv.data() + q_stride,
                      .dv_TGK = dqkv.data() + q_stride + kv_stride,
                      .dq_stride = dq_stride,
                      .runs = &backward_run,
                      .group_begin = group_begin,
                      .num_groups = 1});

  const at::Tensor tq = leaf(q, {t, num_heads, width});
  const at::Tensor tk = leaf(k, {t, num_kv_heads, width}), tv = leaf(v, {t, num_kv_heads, width});
  const int64_t repeat = num_heads / num_kv_heads;
  const auto heads = [&](const at::Tensor& x) {  // [T, G, K] -> [H, T, K]
    return x.transpose(0, 1).repeat_interleave(repeat, 0);
  };
  const at::Tensor future = at::ones({t, t}, at::kBool).triu(1);
  const at::Tensor scores =
      (at::matmul(tq.transpose(0, 1), heads(tk).transpose(1, 2)) * double{scale})
          .masked_fill(future, -std::numeric_limits<double>::infinity());
  const at::Tensor ty = at::matmul(at::softmax(scores, 2), heads(tv)).transpose(0, 1);
  const auto grads = gradients(ty, leaf(dout, {t, num_heads, width}), {tq, tk, tv});
  expect_near(out, ty, testing::kAttention, "out " + sizes);
  const at::Tensor expected =
      at::cat({grads[0].reshape({t, q_stride}), grads[1].reshape({t, kv_stride}),
               grads[2].reshape({t, kv_stride})},
              1);
  expect_near(dqkv, expected, testing::kAttentionGradient, "gradients " + sizes);
}

TEST(AttentionKernel, AgreesWithAutograd) {
  check_attention(1, 1, 1, 2);
  check_attention(7, 2, 1, 16);
  check_attention(65, 6, 3, 20);
  check_attention(130, 4, 2, 64);
  check_attention(530, 3, 1, 8);  // into a second chunk of 512 keys
}

}  // namespace
}  // namespace gradus::kernels
