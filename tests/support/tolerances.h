// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

// Every tolerance of the test suite, each with where it comes from.
namespace gradus::testing {

// fp32 against double over a reduction of `length` terms of size about `scale`: rounding errors of
// a chain add up like a random walk, eps * sqrt(length), with a factor 4 for the tail of many
// elements.
inline double reduction_tolerance(int64_t length, double scale = 1.0) {
  return 4.0 * std::numeric_limits<float>::epsilon() * std::sqrt(static_cast<double>(length)) *
             scale +
         1e-7;
}

// A strict bound for `count` roundings one after the other, each off by at most eps / 2 of
// `magnitude`, the sum of the absolute values that meet in the formula. Sums over 16 lanes of a row
// of D round D / 16 + 5 times. Cannot fail by chance.
inline double rounding_bound(double count, double magnitude) {
  return count * 0.5 * std::numeric_limits<float>::epsilon() * magnitude;
}

// exp and log of kernels/internal/vec.h promise 2 ulp: four roundings of eps / 2, one more where
// the result is just above a power of two.
inline constexpr double kExpRoundings = 4;
inline constexpr double kVecUlps = 2;

// Weights of about 1 after ten steps of AdamW with rate 0.01: two roundings of eps / 2 at magnitude
// up to 4 in each step, and the steps themselves, off by some eps of 0.01.
inline constexpr double kAdamWTenSteps = 20 * 2.4e-7;

// One step of AdamW in parts of the learning rate: 1 - 0.999f is off by 1.3e-5, seen through a root
// at the first step; the rest is a dozen roundings and clipping by a norm good to 1e-6.
inline constexpr double kAdamWStep = 2e-5;

// Muon in parts of its largest element: five quintic steps magnify rounding errors of eps sqrt(C)
// in directions that the gradient hardly has, by up to 3.4445 each. One step too few is off by 0.3.
inline constexpr double kMuonStep = 1e-4;
// The double loops of the reference against torch in double, through the same magnification.
inline constexpr double kMuonReference = 1e-11;

// Central differences with step 1e-4 of a formula in double (truncation step^2 / 6 = 2e-9 times a
// third derivative of order 10) against an fp32 gradient of about 20 roundings at magnitude 10.
inline constexpr double kRowGradient = 1.5e-5;

// Attention of unit normal q, k, v: scores carry an error of eps * sqrt(K) relative to 1, seen
// through the softmax, so 4 eps sqrt(K) with K up to 128. The shapes of the test pass at half of it
// and fail at 1e-6.
inline constexpr double kAttention = 6e-6;

// Gradients of the same for unit normal upstream gradients: a key's gradient sums over the queries
// that see it, up to 530 of them, each off by about kAttention / sqrt(530) of it.
inline constexpr double kAttentionGradient = 2e-5;

// Central differences with step 0.02 of an fp32 forward: truncation of order step^2 and rounding of
// order eps * |loss| / step.
inline constexpr double kFiniteDifference = 4e-3;

// Log-probabilities and entropies of up to 152,000 logits of standard deviation 3, in nats: x - max
// and the log-sum-exp each round at magnitude 16 to 32 (eps * 16 = 1.9e-6), the sums add about
// 1e-6. Measured largest 1.9e-6.
inline constexpr double kLogprob = 4e-6;
// Their gradients for upstream gradients of at most 2: p is off by kLogprob relatively.
inline constexpr double kLogprobGradient = 4e-6;
// Central differences with step 0.01 of a double-precision log-probability: step^2 / 6 times a
// third derivative of order 1.
inline constexpr double kLogprobDifference = 1e-4;

// Decisions of the sampler may differ from those in double where they hang by less than this: x = z
// / T in fp32 is off by eps / 2 * |x|, about 1e-6 for |x| < 20; sums of probabilities by as much.
inline constexpr double kSamplingDecision = 5e-6;

// Central differences with step 1e-6 of a loss in double: rounding of order 1e-16 / step times a
// loss of at most 100, truncation of order step^2. A factor or sign that is wrong is off by 1e-2.
inline constexpr double kLossDifference = 1e-6;

// Algorithms against float64 of another program, relative: the fixture has nine digits.
inline constexpr double kAlgorithmReference = 1e-8;
// Losses of pairs and their slopes against torch in double, relative: a dozen roundings, doubled by
// log and exp. The product promises 1e-6.
inline constexpr double kLossOfPair = 1e-12;

// Logits and log-probs of a whole model against transformers, as the product promises. The tiny
// models fail at 1e-5.
inline constexpr double kLogits = 1e-4;

// A weight's gradient against float64, relative to its norm. The tiny models pass at 1e-5 and fail
// at 3e-6.
inline constexpr double kGradientOfNorm = 2e-5;

// Log-probs of ranked lists in double against 60-digit decimals, relative: a dozen roundings per
// document of a pool of 30. The cancelling form of the log-sum-exps is off by more than 1e-9.
inline constexpr double kRankingReference = 2e-13;

// Components of a unit vector from a whole encoder against sentence-transformers, as the product
// promises. Another GELU, pooling or tokenizer is off by 1e-3 and more.
inline constexpr double kEmbedding = 1e-5;

// erf of kernels/activation.h, a fit in fp32; the tanh form of GELU is off by 4e-4.
inline constexpr double kErf = 3e-7;

// Products of bf16 on the GPU with sums in fp32, relative to the norm: measured by the tensor
// cores' own additions, which keep a bit less than fp32 does. An operand transposed is off by
// about 1.
inline constexpr double kDeviceProduct = 1e-5;
// One rounding to bf16: 8 bits are kept, so at most 2^-8 of each element.
inline constexpr double kRoundedToBf16 = 0.00391;
// bf16 results of sums of products with bf16 numbers in between (the backward on the GPU), relative
// to the norm: two roundings. A missing factor, mask or term is off by 0.1 and more.
inline constexpr double kBackwardInBf16 = 0.0079;

// A weight's gradient with bf16 activations against fp32, relative to its norm: dozens of roundings
// of 2^-9 each on the way through a few layers of large weights; at most 0.041 was seen on an H100.
inline constexpr double kDeviceGradient = 0.06;
// Sums of some thousand fp32 products, relative to the norm.
inline constexpr double kSumsOfF32 = 1e-5;

// The policy over a whole corpus, scores and softmax in fp32, against double: cosines are off by
// eps sqrt(D) and divided by a temperature of at least 0.05; slopes come with another 1 / a.
inline constexpr double kCorpusPolicy = 2e-5;

}  // namespace gradus::testing
