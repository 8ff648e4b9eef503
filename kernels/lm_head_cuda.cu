// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime.h>

#include "kernels/internal/cuda_host.cuh"
#include "kernels/internal/hopper.cuh"
#include "kernels/internal/lm_head_args.h"
#include "kernels/internal/lm_head_filter.cuh"
#include "kernels/internal/lm_head_gradient.cuh"
#include "kernels/internal/lm_head_math.cuh"
#include "kernels/internal/lm_head_tiles.cuh"

// One persistent kernel. Warpgroup 0 copies boxes of W and h into a ring of stages; warpgroups 1
// and 2 multiply, each a tile of 128 vocabulary ids by kRows rows held in registers, and reduce it.
// At the end all blocks of threads meet once and share the rows out to merge the blocks of the
// vocabulary.
//
// Tiles: with few rows the two warpgroups take alternate blocks of the vocabulary, so that one
// reduces while the other multiplies; with many (kSplitRows) they take halves of the rows of one
// block.
namespace gradus::kernels::cuda {
namespace {

// What one consuming warpgroup reduces through.
template <int kRows>
struct GroupShared {
  static constexpr int kListEntries = kRows >= 64 ? 1024 : 256;
  Scale scale[kRows];
  uint4 noise[kRows];  // seed, position, kind
  float2 threshold[kRows];
  float max[kRows];
  unsigned long long best_key[kRows];
  float best_x[kRows];
  uint32_t approx[kRows];  // ordered bits of the best cheap score of the tile
  int32_t target[kRows];
  float above_cut[kRows];  // tokens_above_cut
  float local_cut[kRows];  // about as many x of the first block reach it
  float min_p[kRows];      // of rows with no other filter, else 0
  union {
    struct {
      float warp_max[4][kRows];
      float2 warp_sums[4][kRows];
    };
    // Tokens that may win: x, and the column and place in the block. Not in use at the same time.
    struct {
      float list_x[kListEntries];
      uint32_t list_place[kListEntries];
    };
  };
  uint32_t list_count;
  int is_new;  // a row drawn with noise has no score yet
};

// Stands for the logits of ids past the end: finite at every temperature, so that dividing it gives
// no NaN, and of probability 0 beside any logit.
constexpr float kNoLogit = -1e30f;

// Kinds of rows, bits of noise.w.
constexpr uint32_t kNoise = 1;    // drawn with noise from the whole vocabulary
constexpr uint32_t kGreedy = 2;   // the largest
constexpr uint32_t kCollect = 4;  // its candidates go to memory

template <int kRowsOfGroup, bool kSplit, int kClusterSize, bool kScoring, bool kStoring = false>
struct Shape {
  static constexpr int kRows = kRowsOfGroup;  // of a warpgroup's tile
  static constexpr bool kSplitRows = kSplit;
  static constexpr int kCluster = kClusterSize;
  static constexpr bool kScore = kScoring;
  static constexpr bool kStore = kStoring;  // of exponentials, by the scorer
  static constexpr int kTileRows = kSplit ? 2 * kRows : kRows;
  static constexpr int kWeightBytes = kHeadBlock * kDepth * 2;
  static constexpr int kHiddenBytes = kTileRows * kDepth * 2;
  static constexpr int kStageBytes = kWeightBytes + kHiddenBytes;
  // Shared memory: what the warpgroups reduce through, barriers, stages.
  static constexpr int kStagesAt = (2 * sizeof(GroupShared<kRows>) + 256 + 1023) / 1024 * 1024;
  static constexpr int kFit = (kSharedBytes - kStagesAt) / kStageBytes;
  static constexpr int kStages = kFit < 12 ? kFit : 12;
  static_assert(kStages >= 4);
  static_assert(kHeadCandidates * sizeof(Candidate) <= kStages * kStageBytes);
  static constexpr int kBytes = kStages * kStageBytes + kStagesAt;
};

__device__ bool is_filtered(const LmHeadRow& row) {
  return row.temperature != 0 && (row.top_k > 0 || row.top_p < 1 || row.min_p > 0);
}

// min_p of a row that has no other filter.
__device__ float lone_min_p(const LmHeadRow& row) {
  const bool alone = row.temperature != 0 && row.top_k == 0 && row.top_p >= 1;
  return alone ? static_cast<float>(row.min_p) : 0.0f;
}

// Candidates of rows with filters are the tokens above the x that about so many of the 128 tokens
// of a block reach, the first that each of 132 blocks of threads sees. Of those cuts the highest
// counts: it leaves out one of the top_k with a probability of some 1e-5.
__device__ float tokens_above_cut(const LmHeadRow& row) {
  return row.top_k == 0 ? 5 : row.top_k <= 64 ? 4 : row.top_k <= 512 ? 8 : 16;
}

// All blocks of threads meet; called by the consumers. Fits a launch whose blocks all run at once.
__device__ void grid_sync(uint32_t* control) {
  asm volatile("bar.sync 3, 256;" ::: "memory");
  if (threadIdx.x == kThreads - kConsumers) {
    volatile uint32_t* generation = control + 1;
    const uint32_t seen = *generation;
    __threadfence();
    if (atomicAdd(control, 1u) == gridDim.x - 1) {
      control[0] = 0;
      __threadfence();
      atomicAdd(control + 1, 1u);
    } else {
      while (*generation == seen) __nanosleep(64);
    }
    __threadfence();
  }
  asm volatile("bar.sync 3, 256;" ::: "memory");
}

// Adds (or takes the largest of) kCount columns over the eight lanes of a warp that share them.
// Lanes hand each other halves of their columns, so afterwards v[0] is the result of one column:
// which one, column_of_lane says. The tree over lanes is the same for every kCount.
template <int kCount, class Op>
__device__ void over_lanes(float (&v)[kCount], Op op) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int bit = 0; bit < 3; ++bit) {
    const int mask = 4 << bit;
    const int half = kCount >> (bit + 1);
    if (half > 0) {
      const bool upper = lane & mask;
#pragma unroll
      for (int i = 0; i < half; ++i) {
        const float sent = upper ? v[i] : v[i + half], kept = upper ? v[i + half] : v[i];
        v[i] = op(kept, __shfl_xor_sync(0xFFFFFFFFu, sent, mask));
      }
    } else {
      v[0] = op(v[0], __shfl_xor_sync(0xFFFFFFFFu, v[0], mask));
    }
  }
}
template <int kCount>
__device__ int column_of_lane() {
  const int g = threadIdx.x % 32 / 4;
  return kCount == 8   ? (g & 1) * 4 + (g & 2) + (g >> 2)
         : kCount == 4 ? (g & 1) * 2 + (g >> 1 & 1)
                       : g & 1;
}

struct Adder {
  __device__ float operator()(float a, float b) const { return a + b; }
};
struct Larger {
  __device__ float operator()(float a, float b) const { return max_or_nan(a, b); }
};

// Where a tile lies, and what is reduced through; passed by value, so that nothing points to
// registers.
template <int kRows>
struct Spot {
  const HeadArgs* args;
  int block;          // of the vocabulary, in this shard
  int first_row;      // of h
  int group;          // warpgroup, 0 or 1
  uint32_t first_id;  // of the block, in the whole vocabulary

  __device__ GroupShared<kRows>& shared() const {
    return at_shared<GroupShared<kRows>>(static_cast<uint32_t>(group) * sizeof(GroupShared<kRows>));
  }
  __device__ static int thread() { return threadIdx.x % 128; }
  __device__ static int lane_row() { return thread() / 32 * 16 + threadIdx.x % 32 / 4; }
  __device__ void sync() const { named_barrier(1 + group, 128); }
  __device__ int row(int column) const { return first_row + column; }
  __device__ int64_t record(int column) const {
    return static_cast<int64_t>(row(column)) * args->total_blocks + args->first_block + block;
  }
  __device__ uint32_t global_id(int place) const { return first_id + static_cast<uint32_t>(place); }
  __device__ NoiseKey noise_key(int n) const {
    const uint4 raw = shared().noise[n];
    return {raw.x, raw.y, raw.z};
  }
};

// Settings of the rows; a storing scorer has its reference in noise.x. Seen by the others after the
// next sync.
template <class S>
__device__ void prepare(const Spot<S::kRows>& spot) {
  const HeadArgs& args = *spot.args;
  GroupShared<S::kRows>& s = spot.shared();
  const int t = spot.thread();
  if (t < S::kRows) {
    const int row = spot.row(t);
    uint4 noise = {0, 0, 0, 0};
    float temperature = 1;
    int32_t target = -1;
    if (row < args.num_rows) {
      if constexpr (S::kScore) {
        temperature = args.temperatures[row];
        target = args.targets[row] - spot.block * kHeadBlock;
        if constexpr (S::kStore) noise.x = __float_as_uint(args.references[row]);
      } else {
        const LmHeadRow r = args.rows[row];
        const bool greedy = r.temperature == 0;
        const bool filtered = is_filtered(r);
        const bool collected = args.filters && (filtered || args.num_top > 0);
        noise = {static_cast<uint32_t>(r.seed), static_cast<uint32_t>(r.seed >> 32), r.position,
                 (collected ? kCollect : 0u) | (greedy     ? kGreedy
                                                : filtered ? 0u
                                                           : kNoise)};
        temperature = greedy ? 1.0f : r.temperature;
      }
    }
    if constexpr (!S::kScore) {
      s.min_p[t] = row < args.num_rows ? lone_min_p(args.rows[row]) : 0.0f;
      s.above_cut[t] = row < args.num_rows ? tokens_above_cut(args.rows[row]) : 0.0f;
    }
    s.scale[t] = scale_of(temperature);
    s.noise[t] = noise;
    s.target[t] = target;
  }
  if (t == 0) {
    s.list_count = 0;
    s.is_new = 0;
  }
}

// What a token's probability over its draw (see draw_columns) must exceed to be looked at: no other
// token can win against the best score so far. Where none is known, find_best has to look first.
template <int kRows>
__device__ void set_thresholds(const Spot<kRows>& spot, int t) {
  const HeadArgs& args = *spot.args;
  GroupShared<kRows>& s = spot.shared();
  const uint32_t kind = s.noise[t].w;
  const int row = spot.row(t);
  const float max = s.max[t];
  float2 threshold = {INFINITY, INFINITY};
  if (row < args.num_rows && max > -INFINITY) {
    if (kind & kCollect) {
      const uint32_t ours = ordered(max), before = atomicMax(args.running_max + row, ours);
      const float so_far = from_ordered(before > ours ? before : ours);
      // Any cut is allowed; the end knows whether it was low enough.
      const float cut = s.min_p[t] > 0 ? fmaxf(so_far + __logf(s.min_p[t]) - 1e-3f, so_far - 80)
                                       : fmaxf(s.local_cut[t], so_far - kHeadReach);
      atomicMax(args.cut + row, ordered(cut));
      threshold.y = exp2_fast((cut - max) * kLog2E) * 0.999f;
    }
    if (kind & (kNoise | kGreedy)) {
      const float best = key_score(__ldcg(args.best + row)) - max;
      threshold.x = exp2_fast(best * kLog2E) * 0.999f;
      if (kind & kGreedy) threshold.x = fmaxf(threshold.x, 0.999f);
      if (kind & kNoise) {
        threshold.x *= 0x1p-32f;
        if (best == -INFINITY) s.is_new = 1;
      }
    }
  }
  s.threshold[t] = threshold;
  s.best_key[t] = 0;
  s.best_x[t] = 0;
  s.approx[t] = 0;
}

// Adds a token to its row's candidates in memory.
template <int kRows>
__device__ void store_candidate(const Spot<kRows>& spot, int n, int place, float x) {
  const uint32_t slot = atomicAdd(spot.args->num_candidates + spot.row(n), 1u);
  if (slot >= kHeadCandidates) return;
  const int2 raw = {__float_as_int(x), static_cast<int>(spot.global_id(place))};
  __stcg(reinterpret_cast<int2*>(spot.args->candidates) +
             static_cast<int64_t>(spot.row(n)) * kHeadCandidates + slot,
         raw);
}

// Lists those of four tokens of column n that have a bit in `which`. Candidates for filters that
// the list has no room for go to memory at once; for others weigh_list sees that some are missing.
template <int kRows>
__device__ void push(const Spot<kRows>& spot, uint32_t flag, uint32_t which, int n,
                     const float (&x)[4]) {
  GroupShared<kRows>& s = spot.shared();
  uint32_t entry = atomicAdd(&s.list_count, static_cast<uint32_t>(__popc(which)));
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    if (!(which >> w & 1)) continue;
    const int place = spot.lane_row() + w / 2 * 64 + w % 2 * 8;
    if (entry < s.kListEntries) {
      s.list_x[entry] = x[w];
      s.list_place[entry] = flag | static_cast<uint32_t>(n) << 8 | static_cast<uint32_t>(place);
    } else if (flag != 0) {
      store_candidate(spot, n, place, x[w]);
    }
    ++entry;
  }
}
constexpr uint32_t kCollected = 1u << 31;

template <int kRows>
__device__ __noinline__ void collect(Spot<kRows> spot, int n, uint32_t which, float4 x4) {
  const float x[4] = {x4.x, x4.y, x4.z, x4.w};
  push(spot, kCollected, which, n, x);
}

// Four tokens x of column n with draws r, of which those with a bit in `wins` may win their row.
// Greedy rows are decided at once; others are listed for weigh_list, unless the cheap score is
// beaten already.
template <int kRows>
__device__ __noinline__ void contend(Spot<kRows> spot, int n, uint32_t wins, float4 x4, uint4 r4) {
  GroupShared<kRows>& s = spot.shared();
  const float x[4] = {x4.x, x4.y, x4.z, x4.w};
  const uint32_t r[4] = {r4.x, r4.y, r4.z, r4.w};
  if (s.noise[n].w & kGreedy) {
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      if (!(wins >> w & 1)) continue;
      const int place = spot.lane_row() + w / 2 * 64 + w % 2 * 8;
      const uint64_t key = score_key(x[w], static_cast<int32_t>(spot.global_id(place)));
      atomicMax(&s.best_key[n], static_cast<unsigned long long>(key));
    }
    return;
  }
  float score[4], best = -INFINITY;
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    const float g = gumbel_fast(r[w]);
    score[w] = wins >> w & 1 ? x[w] + g : -INFINITY;
    if (g < kGumbelUnknown) best = fmaxf(best, score[w]);
  }
  if (best > -INFINITY) {
    const uint32_t before = atomicMax(&s.approx[n], ordered(best));
    if (before != 0) best = fmaxf(best, from_ordered(before));
  }
  const float bar = best - kGumbelSlack - fabsf(best) * 0x1p-20f;
  uint32_t left = 0;
#pragma unroll
  for (int w = 0; w < 4; ++w) left |= (wins >> w & 1) && !(score[w] < bar) ? 1u << w : 0u;
  if (left != 0) push(spot, 0, left, n, x);
}

// Scores in double those of the list that are near their row's best. False if the list was too
// short: then thresholds are raised to what is known by now, and the tile is to be walked over
// again.
template <int kRows>
__device__ __noinline__ bool weigh_list(Spot<kRows> spot) {
  GroupShared<kRows>& s = spot.shared();
  const int wanted = static_cast<int>(s.list_count);
  const int count = wanted < s.kListEntries ? wanted : s.kListEntries;
  for (int entry = spot.thread(); entry < count; entry += 128) {
    const uint32_t packed = s.list_place[entry];
    const int place = static_cast<int>(packed & 255), n = static_cast<int>(packed >> 8 & 255);
    const float x = s.list_x[entry];
    if (packed & kCollected) {
      store_candidate(spot, n, place, x);
      continue;
    }
    const uint32_t id = spot.global_id(place);
    const float bar = s.approx[n] == 0 ? -INFINITY : from_ordered(s.approx[n]);
    const float g = gumbel_fast(noise_draw(spot.noise_key(n), id, kSamplingVersion));
    if (x + g < bar - kGumbelSlack - fabsf(bar) * 0x1p-20f) continue;
    const uint64_t key =
        score_key(double{x} + gumbel(spot.noise_key(n), id), static_cast<int32_t>(id));
    atomicMax(&s.best_key[n], static_cast<unsigned long long>(key));
  }
  spot.sync();
  for (int entry = spot.thread(); entry < count; entry += 128) {
    if (s.list_place[entry] & kCollected) continue;
    const int n = static_cast<int>(s.list_place[entry] >> 8);
    const auto id = static_cast<int32_t>(spot.global_id(s.list_place[entry] & 255));
    if (s.best_key[n] != 0 && key_token(s.best_key[n]) == id) s.best_x[n] = s.list_x[entry];
  }
  const int t = spot.thread();
  const bool again = wanted > count;
  if (again && t < kRows && s.noise[t].w & kNoise && s.best_key[t] != 0) {
    const float best = exp2_fast((key_score(s.best_key[t]) - s.max[t]) * kLog2E);
    s.threshold[t].x = fmaxf(s.threshold[t].x, best * (0.999f * 0x1p-32f));
  }
  if (t < kRows) s.threshold[t].y = INFINITY;  // candidates are collected by now
  spot.sync();
  if (t == 0) s.list_count = 0;
  spot.sync();
  return !again;
}

// The functions of column pair j take a thread's eight logits of it, those at rows 0 and 8 of both
// halves. They are not inlined: sixteen copies would not fit the instruction cache, and waiting for
// code took many times as long as running it.

// Sum and weighted sum of each of the two columns over the four tokens.
template <int kRows>
__device__ __noinline__ float4 sum_columns(Spot<kRows> spot, int j, float z0, float z1, float z2,
                                           float z3, float z4, float z5, float z6, float z7) {
  const GroupShared<kRows>& s = spot.shared();
  const float z[2][4] = {{z0, z2, z4, z6}, {z1, z3, z5, z7}};
  const int n = 8 * j + threadIdx.x % 4 * 2;
  float sum[2], weighted[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const Scale scale = s.scale[n + i];
    const float max = s.max[n + i];
    float d[4], e[4];
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      d[w] = max_or_nan(scaled(z[i][w], scale) - max, -1e4f);  // 0 times what follows is 0
      e[w] = exp_fast(d[w]);
    }
    sum[i] = (e[0] + e[1]) + (e[2] + e[3]);
    weighted[i] = __fmaf_rn(e[1], d[1], e[0] * d[0]) + __fmaf_rn(e[3], d[3], e[2] * d[2]);
  }
  return {sum[0], weighted[0], sum[1], weighted[1]};
}

// The best cheap score of each of the two columns over the four tokens, from below: draws count as
// one higher, which is below their noise however many bits it has.
template <int kRows>
__device__ __noinline__ float2 best_of_columns(Spot<kRows> spot, int j, float z0, float z1,
                                               float z2, float z3, float z4, float z5, float z6,
                                               float z7) {
  const GroupShared<kRows>& s = spot.shared();
  const float z[2][4] = {{z0, z2, z4, z6}, {z1, z3, z5, z7}};
  const int n = 8 * j + threadIdx.x % 4 * 2;
  const uint32_t counter = noise_counter(spot.global_id(spot.lane_row()));
  float best[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint4 noise = s.noise[n + i];
    const Scale scale = s.scale[n + i];
    const Words4 words = philox(noise.x, noise.y, counter, noise.z, kSamplingVersion);
    best[i] = -INFINITY;
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      best[i] =
          fmaxf(best[i], scaled(z[i][w], scale) +
                             gumbel_of_uniform((static_cast<float>(words.w[w]) + 1) * 0x1p-32f));
    }
  }
  return {best[0], best[1]};
}

// Draws for the eight tokens. p / e, with e = -ln(1 - u) a token's draw of an exponential, is what
// the Gumbel score orders; e >= u >= r / 2^32, so p <= threshold r rules a token out by one
// multiplication.
template <int kRows>
__device__ __noinline__ void draw_columns(Spot<kRows> spot, int j, float z0, float z1, float z2,
                                          float z3, float z4, float z5, float z6, float z7) {
  const GroupShared<kRows>& s = spot.shared();
  const float z[2][4] = {{z0, z2, z4, z6}, {z1, z3, z5, z7}};  // [column][word of the noise]
  const int n = 8 * j + threadIdx.x % 4 * 2;
  const uint32_t counter = noise_counter(spot.global_id(spot.lane_row()));
  Words4 words[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint4 noise = s.noise[n + i];
    words[i] = philox(noise.x, noise.y, counter, noise.z, kSamplingVersion);
    if (!(noise.w & kNoise)) words[i] = {{1, 1, 1, 1}};
  }
  float x[2][4];
  uint32_t wins = 0, collected = 0;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float2 threshold = s.threshold[n + i];
    const Scale scale = s.scale[n + i];
    const float max = s.max[n + i];
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      x[i][w] = scaled(z[i][w], scale);
      const float p = exp_fast(x[i][w] - max);
      wins |= p > threshold.x * __uint2float_rn(words[i].w[w]) ? 1u << (4 * i + w) : 0u;
      collected |= p > threshold.y ? 1u << (4 * i + w) : 0u;
    }
  }
  // All lanes or none: lanes that return early would walk over the rest of the tile on their own.
  if (__ballot_sync(0xFFFFFFFFu, wins | collected) == 0) return;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const auto& r = words[i].w;
    if (wins >> (4 * i) & 15) {
      contend(spot, n + i, wins >> (4 * i) & 15, float4{x[i][0], x[i][1], x[i][2], x[i][3]},
              uint4{r[0], r[1], r[2], r[3]});
    }
    if (collected >> (4 * i) & 15) {
      collect(spot, n + i, collected >> (4 * i) & 15, float4{x[i][0], x[i][1], x[i][2], x[i][3]});
    }
  }
  __syncwarp();
}

// One tile in registers.
template <class S>
struct Tile {
  static constexpr int kRows = S::kRows;
  // Columns (rows of h) are reduced so many at a time; a thread holds two for each j of 8.
  static constexpr int kJs = kRows / 8 < 4 ? kRows / 8 : 4;
  static constexpr int kColumns = 2 * kJs;

  float (&acc)[2][kRows / 2];
  const Spot<kRows> spot;

  __device__ static int column(int j, int i) { return 8 * j + threadIdx.x % 4 * 2 + i; }
  // In the block, of element e of a half.
  __device__ static int place(int half, int e) { return 64 * half + spot_row() + (e & 2) * 4; }
  __device__ static int spot_row() { return Spot<kRows>::lane_row(); }

  // Ids past the end of the vocabulary.
  __device__ void mask_end() {
    const int valid = spot.args->v - spot.block * kHeadBlock;
    if (valid >= kHeadBlock) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int e = 0; e < kRows / 2; ++e) {
        if (place(half, e) >= valid) acc[half][e] = kNoLogit;
      }
    }
  }

  __device__ void find_max() {
    GroupShared<kRows>& s = spot.shared();
#pragma unroll
    for (int first = 0; first < kRows / 8; first += kJs) {
      float v[kColumns];
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const int e = 4 * (first + c / 2) + c % 2;
        v[c] =
            max_or_nan(max_or_nan(acc[0][e], acc[0][e + 2]), max_or_nan(acc[1][e], acc[1][e + 2]));
      }
      over_lanes(v, Larger());
      const int c = column_of_lane<kColumns>();
      s.warp_max[spot.thread() / 32][column(first + c / 2, c % 2)] = v[0];
    }
    spot.sync();
    const int t = spot.thread();
    if (t < kRows) {
      const float z = max_or_nan(max_or_nan(s.warp_max[0][t], s.warp_max[1][t]),
                                 max_or_nan(s.warp_max[2][t], s.warp_max[3][t]));
      s.max[t] = scaled(z, s.scale[t]);
    }
    spot.sync();
  }

  // Sum and weighted sum of each column to warp_sums.
  __device__ void add_up() {
    GroupShared<kRows>& s = spot.shared();
#pragma unroll
    for (int first = 0; first < kRows / 8; first += kJs) {
      float sum[kColumns], weighted[kColumns];
#pragma unroll
      for (int c = 0; c < kJs; ++c) {
        const int j = first + c;
        const float4 both = sum_columns<kRows>(
            spot, j, acc[0][4 * j], acc[0][4 * j + 1], acc[0][4 * j + 2], acc[0][4 * j + 3],
            acc[1][4 * j], acc[1][4 * j + 1], acc[1][4 * j + 2], acc[1][4 * j + 3]);
        sum[2 * c] = both.x;
        weighted[2 * c] = both.y;
        sum[2 * c + 1] = both.z;
        weighted[2 * c + 1] = both.w;
      }
      over_lanes(sum, Adder());
      over_lanes(weighted, Adder());
      const int c = column_of_lane<kColumns>();
      s.warp_sums[spot.thread() / 32][column(first + c / 2, c % 2)] = {sum[0], weighted[0]};
    }
  }

  __device__ float2 sums_of_column(int t) const {
    const auto& w = spot.shared().warp_sums;
    return {(w[0][t].x + w[1][t].x) + (w[2][t].x + w[3][t].x),
            (w[0][t].y + w[1][t].y) + (w[2][t].y + w[3][t].y)};
  }

  // The scorer's tokens: written by the thread that holds one.
  __device__ void pick_targets() {
#pragma unroll
    for (int j = 0; j < kRows / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int n = column(j, i), further = spot.shared().target[n] - spot_row();
        if ((further & ~72) != 0) continue;  // 0, 8, 64 or 72 ids further
        const float low = further & 8 ? acc[0][4 * j + i + 2] : acc[0][4 * j + i];
        const float high = further & 8 ? acc[1][4 * j + i + 2] : acc[1][4 * j + i];
        spot.args->target_x[spot.row(n)] =
            scaled(further & 64 ? high : low, spot.shared().scale[n]);
      }
    }
  }

  __device__ void store_exponentials() {
    const HeadArgs& args = *spot.args;
    const GroupShared<kRows>& s = spot.shared();
    store_gradients<kRows, false>(
        acc,
        {static_cast<__nv_bfloat16*>(args.exponentials), args.exponentials_stride, spot.first_row,
         spot.block * kHeadBlock, args.v},
        s.scale[0], spot_row(),
        [&](int n) {
          return RowGradient{__uint_as_float(s.noise[n].x), -1, 0, 0};
        },
        [](int) { return 0; });
  }

  // local_cut of each column, by bisection of z over 16 nats below its largest.
  __device__ void find_local_cut() {
    GroupShared<kRows>& s = spot.shared();
    const int t = spot.thread();
    float low = 0, high = 0;
    if (t < kRows) {
      high = s.max[t] * s.scale[t].temperature;
      low = high - 16 * s.scale[t].temperature;
    }
    for (int step = 0; step < 7; ++step) {
      if (t < kRows) s.local_cut[t] = 0.5f * (low + high);
      spot.sync();
#pragma unroll
      for (int first = 0; first < kRows / 8; first += kJs) {
        float count[kColumns];
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          const int e = 4 * (first + c / 2) + c % 2;
          const float cut = s.local_cut[column(first + c / 2, c % 2)];
          count[c] = (acc[0][e] >= cut ? 1.0f : 0.0f) + (acc[0][e + 2] >= cut ? 1.0f : 0.0f) +
                     (acc[1][e] >= cut ? 1.0f : 0.0f) + (acc[1][e + 2] >= cut ? 1.0f : 0.0f);
        }
        over_lanes(count, Adder());
        const int c = column_of_lane<kColumns>();
        s.warp_max[spot.thread() / 32][column(first + c / 2, c % 2)] = count[0];
      }
      spot.sync();
      if (t < kRows) {
        const float n = s.warp_max[0][t] + s.warp_max[1][t] + s.warp_max[2][t] + s.warp_max[3][t];
        (n >= s.above_cut[t] ? low : high) = s.local_cut[t];
      }
    }
    if (t < kRows) s.local_cut[t] = scaled(low, s.scale[t]);
  }

  // Thresholds from the best cheap scores of the tile itself.
  __device__ void find_best() {
    GroupShared<kRows>& s = spot.shared();
#pragma unroll
    for (int first = 0; first < kRows / 8; first += kJs) {
      float best[kColumns];
#pragma unroll
      for (int c = 0; c < kJs; ++c) {
        const int j = first + c;
        const float2 both = best_of_columns<kRows>(
            spot, j, acc[0][4 * j], acc[0][4 * j + 1], acc[0][4 * j + 2], acc[0][4 * j + 3],
            acc[1][4 * j], acc[1][4 * j + 1], acc[1][4 * j + 2], acc[1][4 * j + 3]);
        best[2 * c] = both.x;
        best[2 * c + 1] = both.y;
      }
      over_lanes(best, Larger());
      const int c = column_of_lane<kColumns>();
      s.warp_max[spot.thread() / 32][column(first + c / 2, c % 2)] = best[0];
    }
    spot.sync();
    const int t = spot.thread();
    if (t < kRows && s.noise[t].w & kNoise && spot.row(t) < spot.args->num_rows) {
      const float best = fmaxf(fmaxf(s.warp_max[0][t], s.warp_max[1][t]),
                               fmaxf(s.warp_max[2][t], s.warp_max[3][t]));
      const float sure = best - kGumbelSlack - fabsf(best) * 0x1p-20f - s.max[t];
      s.threshold[t].x = fmaxf(s.threshold[t].x, exp2_fast(sure * kLog2E) * (0.999f * 0x1p-32f));
    }
    spot.sync();
  }

  // Walks over the tile with the noise of every token.
  __device__ void draw() {
#pragma unroll
    for (int j = 0; j < kRows / 8; ++j) {
      draw_columns<kRows>(spot, j, acc[0][4 * j], acc[0][4 * j + 1], acc[0][4 * j + 2],
                          acc[0][4 * j + 3], acc[1][4 * j], acc[1][4 * j + 1], acc[1][4 * j + 2],
                          acc[1][4 * j + 3]);
    }
    spot.sync();
  }

  // first_of_rows: no tile of these rows came before.
  __device__ void reduce(bool first_of_rows) {
    GroupShared<kRows>& s = spot.shared();
    const HeadArgs& args = *spot.args;
    mask_end();
    find_max();
    add_up();
    if constexpr (S::kScore) pick_targets();
    if constexpr (S::kStore) store_exponentials();
    spot.sync();
    const int t = spot.thread();
    const float2 sums = t < kRows ? sums_of_column(t) : float2{0, 0};
    if constexpr (!S::kScore) {
      if (args.filters && first_of_rows) find_local_cut();
    }
    if (t < kRows) {
      if constexpr (!S::kScore) set_thresholds(spot, t);
    }
    if constexpr (!S::kScore) {
      spot.sync();
      if (s.is_new) find_best();
      do {
        draw();
      } while (!weigh_list(spot));
    }
    if (t < kRows && spot.row(t) < args.num_rows) {
      BlockStats stats = {s.max[t], sums.x, sums.y, 0};
      if constexpr (!S::kScore) {
        const uint64_t key = s.best_key[t];
        // A greedy score is x itself.
        stats.x = s.noise[t].w & kGreedy ? key_score(key) : s.best_x[t];
        args.keys[spot.record(t)] = key;
        if (key != 0) {
          atomicMax(reinterpret_cast<unsigned long long*>(args.best) + spot.row(t),
                    static_cast<unsigned long long>(key));
        }
      }
      args.stats[spot.record(t)] = stats;
    }
    spot.sync();
  }

  // A further pass: x of the rows listed from first_slot on, kHeadDenseRows of them, to memory.
  __device__ void write_dense(int first_slot) {
    const HeadArgs& args = *spot.args;
    mask_end();
#pragma unroll
    for (int j = 0; j < kRows / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int n = column(j, i), row = spot.row(n);
        if (row >= args.num_rows) continue;
        const int slot = __ldcg(args.dense_slot + row) - 1 - first_slot;
        if (slot < 0 || slot >= kHeadDenseRows) continue;
        float* x = args.dense + static_cast<int64_t>(slot) * args.total_blocks * kHeadBlock;
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          const int e = 4 * j + i + w % 2 * 2;
          const float z = acc[w / 2][e];
          x[spot.global_id(place(w / 2, e))] =
              z == kNoLogit ? -INFINITY : scaled(z, spot.shared().scale[n]);
        }
      }
    }
  }
};

template <class S>
__device__ void multiply_tiles(const HeadArgs& args, const uint8_t* stages, uint64_t* full,
                               uint64_t* empty, int group, Ring& ring, int dense_slot,
                               uint64_t* turn_done, int& turn) {
  const int rank = S::kCluster == 1 ? 0 : static_cast<int>(block_in_cluster());
  const int depth_steps = (args.d + kDepth - 1) / kDepth;
  int last_row = -1;
  for (Work<S> work(args); work.step < work.end; work.step += work.stride, ++turn) {
    if (!S::kSplitRows && turn % 2 != group) {
      for (int k = 0; k < depth_steps; ++k) ring.advance<S::kStages>();
      continue;
    }
    float acc[2][S::kRows / 2];
    const Spot<S::kRows> spot = {
        &args, work.block(rank),
        work.row_tile() * S::kTileRows + (S::kSplitRows ? group * S::kRows : 0), group,
        static_cast<uint32_t>((args.first_block + work.block(rank)) * kHeadBlock)};
    prepare<S>(spot);
    if constexpr (!S::kSplitRows) {
      // The stages' barriers tell phases apart by parity alone, so turns are taken in order.
      if (turn > 0) barrier_wait(turn_done + (turn - 1) % 2, (turn - 1) / 2 % 2);
    }
    multiply<S>(acc, depth_steps, group, stages, full, empty, ring, turn == 0);
    if constexpr (!S::kSplitRows) {
      if (threadIdx.x % 32 == 0) barrier_arrive(turn_done + group);
    }
    if (spot.block >= args.num_blocks) continue;  // the odd one of the last pair
    Tile<S> tile{acc, spot};
    if (dense_slot >= 0) {
      spot.sync();
      tile.write_dense(dense_slot);
      spot.sync();
    } else {
      tile.reduce(spot.first_row != last_row);
      last_row = spot.first_row;
    }
  }
}

// --- after the last block of the vocabulary ---

struct RowShared {
  FilterShared filter;  // first: see filter_shared
  Sums sums[8];
  uint64_t key[8];
  float x[8];
  Sums all;
  uint64_t best;
  float best_x;
};
__device__ RowShared& row_shared() { return at_shared<RowShared>(0); }

// Merges the blocks of a row: thread t those at t, t + 256, ... in order, then a tree over threads.
__device__ __noinline__ void merge_row(const HeadArgs& args, int row, bool with_keys) {
  RowShared& s = row_shared();
  const int t = threadIdx.x % kConsumers;
  Sums sums = {-INFINITY, 0, 0};
  uint64_t best = 0;
  float best_x = 0;
  const int64_t first = static_cast<int64_t>(row) * args.total_blocks;
#pragma unroll 4
  for (int i = t; i < args.total_blocks; i += kConsumers) {
    const float4 part = __ldcg(reinterpret_cast<const float4*>(args.stats) + first + i);
    const uint64_t key = with_keys ? __ldcg(args.keys + first + i) : 0;
    sums = merge(sums, {part.x, part.y, part.z});
    if (key > best) {
      best = key;
      best_x = part.w;
    }
  }
  for (int mask = 1; mask < 32; mask *= 2) {
    const Sums other = {__shfl_xor_sync(0xFFFFFFFFu, sums.max, mask),
                        __shfl_xor_sync(0xFFFFFFFFu, sums.sum, mask),
                        __shfl_xor_sync(0xFFFFFFFFu, sums.weighted, mask)};
    sums = merge(sums, other);
    const uint64_t key = __shfl_xor_sync(0xFFFFFFFFu, best, mask);
    const float x = __shfl_xor_sync(0xFFFFFFFFu, best_x, mask);
    if (key > best) {
      best = key;
      best_x = x;
    }
  }
  if (t % 32 == 0) {
    s.sums[t / 32] = sums;
    s.key[t / 32] = best;
    s.x[t / 32] = best_x;
  }
  filter_sync();
  if (t == 0) {
    for (int i = 1; i < 8; ++i) {
      sums = merge(sums, s.sums[i]);
      if (s.key[i] > best) {
        best = s.key[i];
        best_x = s.x[i];
      }
    }
    s.all = sums;
    s.best = best;
    s.best_x = best_x;
  }
  filter_sync();
}

__device__ bool is_sound(Sums sums) {
  return sums.sum > 0 && sums.sum < INFINITY && isfinite(sums.max);
}
__device__ float log_prob(float x, Sums sums) { return (x - sums.max) - logf(sums.sum); }

__device__ void write_common(const HeadArgs& args, int row, Sums sums) {
  const bool sound = is_sound(sums);
  if (args.lse != nullptr) args.lse[row] = sound ? sums.max + logf(sums.sum) : NAN;
  if (args.entropy != nullptr) {
    args.entropy[row] = sound ? logf(sums.sum) - sums.weighted / sums.sum : NAN;
  }
}

// The likeliest tokens, in order.
__device__ void write_top(const HeadArgs& args, int row, Sums sums, const FilterShared& s) {
  const int t = threadIdx.x % kConsumers;
  const int found = s.num_top < 32 ? static_cast<int>(s.num_top) : 32;
  int32_t* ids = args.top_ids + static_cast<int64_t>(row) * args.num_top;
  float* logprobs = args.top_logprobs + static_cast<int64_t>(row) * args.num_top;
  if (t >= found && t < args.num_top) {
    ids[t] = -1;
    logprobs[t] = -INFINITY;
  }
  if (t >= found) return;
  const Candidate mine = s.top[t];
  int place = 0;
  for (int i = 0; i < found; ++i) {
    place += filter_key(s.top[i].x, s.top[i].id) < filter_key(mine.x, mine.id);
  }
  ids[place] = mine.id;
  logprobs[place] = log_prob(mine.x, sums);
}

// Writes the row's results, or lists it for the next pass.
__device__ __noinline__ void finish_row(const HeadArgs& args, int row, int dense_slot,
                                        uint32_t stages_at) {
  RowShared& s = row_shared();
  const int t = threadIdx.x % kConsumers;
  const bool first_pass = dense_slot < 0;
  merge_row(args, row, true);
  const Sums sums = s.all;
  const LmHeadRow settings = args.rows[row];
  const bool filtered = is_filtered(settings), sound = is_sound(sums);
  int32_t token = sound && s.best != 0 ? key_token(s.best) : -1;
  float x = s.best_x;
  float sampling_logprob = settings.temperature == 0 ? 0.0f : log_prob(x, sums);
  int32_t num_kept = settings.temperature == 0 ? 1 : args.vocab_size;
  if (sound && args.filters && (filtered || args.num_top > 0)) {
    FilterSource source = {nullptr, stages_at, 0, -INFINITY};
    bool fits = true;
    if (first_pass) {
      const uint32_t count = __ldcg(args.num_candidates + row);
      fits = count <= kHeadCandidates;
      source.count = fits ? static_cast<int>(count) : 0;
      // The stages are idle now, so the candidates come to shared memory, where they are read many
      // times.
      const auto* from = reinterpret_cast<const int2*>(args.candidates) +
                         static_cast<int64_t>(row) * kHeadCandidates;
      for (int i = t; i < source.count; i += kConsumers) {
        at_shared<int2>(stages_at + i * sizeof(int2)) = __ldcg(from + i);
      }
      filter_sync();
      source.lowest = from_ordered(__ldcg(args.cut + row));
    } else {
      source.count = args.total_blocks * kHeadBlock;
      source.x = args.dense + static_cast<int64_t>(dense_slot) * source.count;
    }
    FilterResult result = {false, -1, 0, 0, 0};
    if (fits) {
      result = filter_row(source, !first_pass, settings, args.vocab_size, sums.max, sums.sum,
                          filtered, args.num_top);
    }
    if (!result.certified) {
      if (t == 0) {
        const uint32_t slot = atomicAdd(args.control + 2, 1u);
        args.dense_rows[slot] = row;
        args.dense_slot[row] = static_cast<int32_t>(slot) + 1;
      }
      filter_sync();
      return;
    }
    if (filtered) {
      token = result.token;
      x = result.token_x;
      num_kept = result.num_kept;
      sampling_logprob = (x - sums.max) - result.log_mass;
    }
    if (args.num_top > 0) write_top(args, row, sums, s.filter);
  }
  if (t == 0) {
    args.token[row] = token;
    args.logprob[row] = token < 0 ? NAN : log_prob(x, sums);
    if (args.sampling_logprob != nullptr) {
      args.sampling_logprob[row] = token < 0 ? NAN : sampling_logprob;
    }
    if (args.num_kept != nullptr) args.num_kept[row] = token < 0 ? 0 : num_kept;
    write_common(args, row, sums);
    args.best[row] = 0;
    args.running_max[row] = 0;
    args.cut[row] = 0;
    args.num_candidates[row] = 0;
    args.dense_slot[row] = 0;
  }
  filter_sync();
}

__device__ void finish_scored_row(const HeadArgs& args, int row) {
  RowShared& s = row_shared();
  merge_row(args, row, false);
  if (threadIdx.x % kConsumers == 0) {
    const Sums sums = s.all;
    args.logprob[row] = is_sound(sums) ? log_prob(__ldcg(args.target_x + row), sums) : NAN;
    write_common(args, row, sums);
  }
  filter_sync();
}

template <class S>
__global__ __launch_bounds__(kThreads,
                             1) void lm_head_kernel(const __grid_constant__ CUtensorMap w_map,
                                                    const __grid_constant__ CUtensorMap h_map,
                                                    const __grid_constant__ HeadArgs args) {
  uint64_t* full = &at_shared<uint64_t>(2 * sizeof(GroupShared<S::kRows>));
  uint64_t* empty = full + S::kStages;
  uint8_t* stages = &at_shared<uint8_t>(S::kStagesAt);
  uint64_t* turn_done = empty + S::kStages;
  // Rows of the further passes. Read by consumers between two meetings of all blocks alone: after
  // the last, the first block sets it to 0.
  const auto num_dense = [&] { return static_cast<int>(__ldcg(args.control + 2)); };
  static_assert(sizeof(RowShared) <= 2 * sizeof(GroupShared<S::kRows>));

  if (threadIdx.x == 0) {
    prefetch_map(&w_map);
    prefetch_map(&h_map);
    for (int i = 0; i < S::kStages; ++i) {
      barrier_init(full + i, 1);
      barrier_init(empty + i, (S::kSplitRows ? 8 : 4) * S::kCluster);
    }
    barrier_init(turn_done, 4);
    barrier_init(turn_done + 1, 4);
    fence_barrier_init();
  }
  if constexpr (S::kCluster > 1) {
    cluster_sync();
  } else {
    __syncthreads();
  }

  const int warpgroup = static_cast<int>(threadIdx.x) / 128;
  Ring ring;
  if (warpgroup == 0) {
    give_registers<40>();
    for (;;) {
      if (threadIdx.x == 0) copy_tiles<S>(w_map, h_map, args, stages, full, empty, ring);
      if (S::kScore || !args.filters || !args.finalise) break;
      __syncwarp();
      if (!__syncthreads_or(0)) break;  // one of the consumers says whether there is another pass
    }
  } else {
    take_registers<232>();
    const int group = warpgroup - 1;
    int turn = 0;
    for (int slot = -1;;) {
      multiply_tiles<S>(args, stages, full, empty, group, ring, slot, turn_done, turn);
      if (!args.finalise) break;
      grid_sync(args.control);
      if constexpr (S::kScore) {
        for (int row = blockIdx.x; row < args.num_rows; row += gridDim.x) {
          finish_scored_row(args, row);
        }
        break;
      } else {
        if (slot < 0) {
          for (int row = blockIdx.x; row < args.num_rows; row += gridDim.x) {
            finish_row(args, row, -1, S::kStagesAt);
          }
          if (!args.filters) break;
          grid_sync(args.control);
          slot = 0;
        } else {
          const int end = min(num_dense(), slot + kHeadDenseRows);
          for (int i = slot + blockIdx.x; i < end; i += gridDim.x) {
            finish_row(args, __ldcg(args.dense_rows + i), i - slot, S::kStagesAt);
          }
          grid_sync(args.control);
          slot += kHeadDenseRows;
        }
        fence_async_copies();  // what was written to stages, before copies into them
        const bool speaks = threadIdx.x == kThreads - kConsumers;
        if (!__syncthreads_or(speaks && slot < num_dense())) {
          if (slot > 0 && blockIdx.x == 0 && speaks) args.control[2] = 0;
          break;
        }
      }
    }
  }
  if constexpr (S::kCluster > 1) cluster_sync();
}

// --- launching ---

template <class S>
CudaCode launch(const HeadArgs& args, const void* w, const void* h, cudaStream_t stream,
                CudaErrorText* error) {
  CUtensorMap w_map, h_map;
  HeadArgs filled = args;
  filled.row_tiles = (args.num_rows + S::kTileRows - 1) / S::kTileRows;
  GRADUS_CUDA_RETURN(encode_rows(&w_map, w, args.v, args.d, kHeadBlock, kDepth, error));
  GRADUS_CUDA_RETURN(
      encode_rows(&h_map, h, args.num_rows, args.d, S::kTileRows / S::kCluster, kDepth, error));
  auto kernel = lm_head_kernel<S>;
  GRADUS_CUDA_CALL(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, S::kBytes));
  const int pairs = (args.num_blocks + S::kCluster - 1) / S::kCluster;
  const int wanted = pairs * filled.row_tiles * S::kCluster;
  const int processors = num_processors() / S::kCluster * S::kCluster;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(wanted < processors ? wanted : processors));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = S::kBytes;
  config.stream = stream;
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeCooperative;
  attributes[0].val.cooperative = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {S::kCluster, 1, 1};
  config.attrs = attributes;
  config.numAttrs = S::kCluster > 1 ? 2 : 1;
  GRADUS_CUDA_CALL(cudaLaunchKernelEx(&config, kernel, w_map, h_map, filled));
  return CudaCode::kOk;
}

int blocks_of(int64_t v) { return static_cast<int>((v + kHeadBlock - 1) / kHeadBlock); }

size_t carve_sampler(HeadArgs& args, void* workspace, int64_t b, int64_t v) {
  const int64_t blocks = blocks_of(v);
  Carver carver{static_cast<uint8_t*>(workspace)};
  args.control = carver.take<uint32_t>(4);
  args.best = carver.take<uint64_t>(b);
  args.running_max = carver.take<uint32_t>(b);
  args.cut = carver.take<uint32_t>(b);
  args.num_candidates = carver.take<uint32_t>(b);
  args.dense_slot = carver.take<int32_t>(b);
  args.dense_rows = carver.take<int32_t>(b);
  args.stats = carver.take<BlockStats>(b * blocks);
  args.keys = carver.take<uint64_t>(b * blocks);
  args.candidates = carver.take<Candidate>(b * kHeadCandidates);
  args.dense = carver.take<float>(kHeadDenseRows * blocks * kHeadBlock);
  return carver.used;
}

size_t carve_scorer(HeadArgs& args, void* workspace, int64_t b, int64_t v) {
  const int64_t rows = b < kScoreRows ? b : kScoreRows;
  Carver carver{static_cast<uint8_t*>(workspace)};
  args.control = carver.take<uint32_t>(4);
  args.target_x = carver.take<float>(rows);
  args.stats = carver.take<BlockStats>(rows * blocks_of(v));
  return carver.used;
}

CudaCode sample(const LmHeadSampleParams& p, CudaErrorText* error) {
  HeadArgs args = {};
  const int64_t vocab_size = p.vocab_size == 0 ? p.v : p.vocab_size;
  carve_sampler(args, p.workspace, p.workspace_rows == 0 ? p.b : p.workspace_rows, vocab_size);
  args.rows = p.rows_B;
  args.num_rows = static_cast<int>(p.b);
  args.v = static_cast<int>(p.v);
  args.d = static_cast<int>(p.d);
  args.num_blocks = blocks_of(p.v);
  args.first_block = static_cast<int>(p.vocab_begin / kHeadBlock);
  args.total_blocks = blocks_of(vocab_size);
  args.vocab_size = static_cast<int>(vocab_size);
  args.finalise = p.vocab_begin + p.v == vocab_size;
  args.filters = p.filters;
  args.token = p.token_B;
  args.logprob = p.logprob_B;
  args.sampling_logprob = p.sampling_logprob_B;
  args.lse = p.lse_B;
  args.entropy = p.entropy_B;
  args.num_kept = p.num_kept_B;
  args.num_top = static_cast<int>(p.num_top);
  args.top_ids = p.top_ids_BN;
  args.top_logprobs = p.top_logprobs_BN;
  const auto stream = static_cast<cudaStream_t>(p.stream);
  if (p.b <= 8) return launch<Shape<8, false, 1, false>>(args, p.w_VD, p.h_BD, stream, error);
  if (p.b <= 16) return launch<Shape<16, false, 1, false>>(args, p.w_VD, p.h_BD, stream, error);
  if (p.b <= 32) return launch<Shape<32, false, 2, false>>(args, p.w_VD, p.h_BD, stream, error);
  if (p.b <= 64) return launch<Shape<64, false, 2, false>>(args, p.w_VD, p.h_BD, stream, error);
  if (p.b <= 128) return launch<Shape<128, false, 2, false>>(args, p.w_VD, p.h_BD, stream, error);
  return launch<Shape<128, true, 2, false>>(args, p.w_VD, p.h_BD, stream, error);
}

// Whether the scorer's warpgroups share a tile of 256 rows, which reads the least, or take
// alternate tiles of 128, of which one is reduced while the next is multiplied: faster (by 14 % at
// 896, slower by 18 % at 4,096) where multiplying does not take much longer than reducing.
bool splits_rows(int64_t rows, int64_t d) { return rows > 128 && d > 1024; }

// Scores, and stores exponentials where `storing` has a place for them, of at most kScoreRows rows.
CudaCode score_rows(const LmHeadScoreParams& p, const StoredExponentials* storing,
                    CudaErrorText* error) {
  HeadArgs args = {};
  if (storing != nullptr) {
    args.references = storing->references_B;
    args.exponentials = storing->e_VB;
    args.exponentials_stride = storing->row_stride;
  }
  carve_scorer(args, p.workspace, p.b, p.v);
  args.v = static_cast<int>(p.v);
  args.d = static_cast<int>(p.d);
  args.num_blocks = args.total_blocks = blocks_of(p.v);
  args.finalise = true;
  for (int64_t first = 0; first < p.b; first += kScoreRows) {
    const int64_t rows = p.b - first < kScoreRows ? p.b - first : kScoreRows;
    args.num_rows = static_cast<int>(rows);
    args.temperatures = p.temperature_B + first;
    args.targets = p.token_B + first;
    args.logprob = p.logprob_B + first;
    args.lse = p.lse_B == nullptr ? nullptr : p.lse_B + first;
    args.entropy = p.entropy_B == nullptr ? nullptr : p.entropy_B + first;
    const void* h = static_cast<const uint16_t*>(p.h_BD) + first * p.d;
    const auto stream = static_cast<cudaStream_t>(p.stream);
    if (storing != nullptr) {
      GRADUS_CUDA_RETURN(
          splits_rows(rows, p.d)
              ? (launch<Shape<128, true, 2, true, true>>(args, p.w_VD, h, stream, error))
              : (launch<Shape<128, false, 2, true, true>>(args, p.w_VD, h, stream, error)));
      continue;
    }
    GRADUS_CUDA_RETURN(splits_rows(rows, p.d)
                           ? (launch<Shape<128, true, 2, true>>(args, p.w_VD, h, stream, error))
                           : (launch<Shape<128, false, 2, true>>(args, p.w_VD, h, stream, error)));
  }
  return CudaCode::kOk;
}

CudaCode score(const LmHeadScoreParams& p, CudaErrorText* error) {
  return score_rows(p, nullptr, error);
}

}  // namespace

CudaCode score_storing(const LmHeadScoreParams& p, const StoredExponentials& storing,
                       CudaErrorText* error) {
  return score_rows(p, &storing, error);
}

size_t score_workspace_bytes(int64_t b, int64_t v) {
  HeadArgs args = {};
  return carve_scorer(args, nullptr, b, v);
}

LmHeadFunctions lm_head_functions() {
  return {sample,
          score,
          [](int64_t b, int64_t v) {
            HeadArgs args = {};
            return carve_sampler(args, nullptr, b, v);
          },
          score_workspace_bytes,
          lm_head_backward,
          lm_head_train,
          lm_head_backward_workspace_bytes,
          lm_head_train_workspace_bytes};
}

}  // namespace gradus::kernels::cuda
