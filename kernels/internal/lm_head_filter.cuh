// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/internal/lm_head_math.cuh"

// Top-k, top-p and min-p of one row by one block of threads, over candidates or over a whole row of
// x. Nothing is sorted: the last token that stays is found digit by digit in the order (x
// descending, id ascending), with integer masses, so that the result does not depend on how many
// tokens that cannot stay are looked at besides.
namespace gradus::kernels::cuda {

inline constexpr int kFilterThreads = 256;
inline constexpr int kFilterBarrier = 3;
__device__ inline void filter_sync() { asm volatile("bar.sync 3, 256;" ::: "memory"); }

// Tokens to choose from: candidates in shared memory, or a row of x in memory where the place is
// the id.
struct FilterSource {
  const float* x;      // null: candidates
  uint32_t shared_at;  // where those lie
  int count;
  float lowest;  // tokens below do not count

  __device__ bool at(int i, Candidate& c) const {
    if (x == nullptr) {
      c = at_shared<Candidate>(shared_at + static_cast<uint32_t>(i) * sizeof(Candidate));
    } else {
      c = {__ldcg(x + i), i};
    }
    return c.x >= lowest && c.x > -INFINITY;
  }
};

// Ascending in the order of the filters.
__device__ inline uint64_t filter_key(float x, int32_t id) {
  return uint64_t{~ordered(x)} << 32 | static_cast<uint32_t>(id);
}

struct FilterShared {
  unsigned long long mass[256];
  uint32_t count[256];
  unsigned long long prefix, before_mass, key, total_mass;
  uint32_t before_count, total_count, approx, num_top;
  int done, num_few;
  unsigned long long few[32];
  float winner_x;
  Candidate top[32];
};
// At the beginning of shared memory, while no tiles are reduced.
__device__ inline FilterShared& filter_shared() { return at_shared<FilterShared>(0); }

__device__ inline uint64_t mass_of(float x, float max) {
  return static_cast<uint64_t>(static_cast<double>(exp_fast(x - max)) * 0x1p40);
}

// One addition for all lanes here that hold the same bin: the first digits of a row are nearly
// alike.
__device__ inline void add_to_bin(int bin, uint64_t mass) {
  FilterShared& s = filter_shared();
  const uint32_t here = __activemask();
  const uint32_t same = __match_any_sync(here, bin);
  const uint32_t low = __reduce_add_sync(same, static_cast<uint32_t>(mass & 0xFFFFF));
  const uint32_t high = __reduce_add_sync(same, static_cast<uint32_t>(mass >> 20));
  if (static_cast<int>(threadIdx.x % 32) == __ffs(static_cast<int>(same)) - 1) {
    atomicAdd(&s.count[bin], static_cast<uint32_t>(__popc(same)));
    atomicAdd(&s.mass[bin], (static_cast<unsigned long long>(high) << 20) + low);
  }
}

// last_key when at most 32 tokens share the digits found so far, down to `shift`: one warp compares
// them all.
__device__ inline uint64_t last_of_few(const FilterSource& source, float max, uint64_t bound,
                                       bool by_mass, uint64_t want, int shift) {
  FilterShared& s = filter_shared();
  const int t = threadIdx.x % kFilterThreads;
  const uint64_t prefix = s.prefix;
  for (int i = t; i < source.count; i += kFilterThreads) {
    Candidate c;
    if (!source.at(i, c)) continue;
    const uint64_t key = filter_key(c.x, c.id);
    if (key > bound || (key ^ prefix) >> shift != 0) continue;
    const int place = atomicAdd(&s.num_few, 1);
    s.few[place] = key;
    s.mass[place] = mass_of(c.x, max);
  }
  filter_sync();
  if (t < 32) {
    const bool there = t < s.num_few;
    const uint64_t key = there ? s.few[t] : ~uint64_t{0};
    uint64_t count = s.before_count, mass = s.before_mass;
    for (int i = 0; i < s.num_few; ++i) {
      count += s.few[i] <= key;
      mass += s.few[i] <= key ? s.mass[i] : 0;
    }
    const bool enough = there && (by_mass ? mass : count) >= want;
    // The first in order of those at which enough is reached; the last of all if rounding left too
    // little.
    uint64_t first = enough ? key : ~uint64_t{0};
    for (int step = 16; step > 0; step /= 2) {
      const uint64_t other = __shfl_xor_sync(0xFFFFFFFFu, first, step);
      first = other < first ? other : first;
    }
    __syncwarp();
    if (t == 0 && first == ~uint64_t{0}) s.key = bound;
    if (there && key == first) {
      s.key = key;
      s.before_count = static_cast<uint32_t>(count);
      s.before_mass = mass;
    }
  }
  filter_sync();
  const uint64_t found = s.key;
  filter_sync();
  return found;
}

// Finds the shortest prefix of the order, among keys <= bound, that holds `want` tokens (mass
// wanted if by_mass), which must exist, and returns its last key (any number between that and the
// next token's). Leaves the prefix's count and mass in before_count and before_mass.
static __device__ __noinline__ uint64_t last_key(const FilterSource& source, float max,
                                                 uint64_t bound, bool by_mass, uint64_t want) {
  FilterShared& s = filter_shared();
  const int t = threadIdx.x % kFilterThreads;
  if (t == 0) {
    s.prefix = 0;
    s.before_mass = 0;
    s.before_count = 0;
    s.done = 0;
  }
  int shift = 56;
  for (;; shift -= 8) {
    s.mass[t] = 0;
    s.count[t] = 0;
    filter_sync();
    const uint64_t prefix = s.prefix;
    for (int i = t; i < source.count; i += kFilterThreads) {
      Candidate c;
      if (!source.at(i, c)) continue;
      const uint64_t key = filter_key(c.x, c.id);
      if (key > bound || (shift < 56 && (key ^ prefix) >> (shift + 8) != 0)) continue;
      add_to_bin(static_cast<int>(key >> shift & 255), mass_of(c.x, max));
    }
    filter_sync();
    if (t < 32) {
      // Eight bins a lane, then where the running sum reaches the wanted one.
      uint64_t mine = 0;
      for (int j = 0; j < 8; ++j) mine += by_mass ? s.mass[8 * t + j] : s.count[8 * t + j];
      uint64_t up_to = mine;
      for (int step = 1; step < 32; step *= 2) {
        const uint64_t other = __shfl_up_sync(0xFFFFFFFFu, up_to, step);
        if (t >= step) up_to += other;
      }
      const uint64_t before = by_mass ? s.before_mass : s.before_count;
      const uint32_t reached = __ballot_sync(0xFFFFFFFFu, before + up_to >= want);
      const int lane = reached == 0 ? 31 : __ffs(static_cast<int>(reached)) - 1;
      if (t == lane) {
        uint64_t sum = before + up_to - mine;
        int bin = 8 * t;
        for (; bin < 8 * t + 7; ++bin) {
          const uint64_t next = sum + (by_mass ? s.mass[bin] : s.count[bin]);
          if (next >= want) break;
          sum = next;
        }
        s.key = static_cast<unsigned>(bin);
        // All of the bin stays if it ends exactly where wanted, or holds one token.
        s.done = s.count[bin] <= 1 || (!by_mass && sum + s.count[bin] == want);
        s.num_few = s.count[bin] <= 32 && !s.done ? 0 : -1;
      }
    }
    filter_sync();
    const int bin = static_cast<int>(s.key);
    if (t < 32) {
      // Counts and masses of the bins before, and of this one if it is the last step.
      const bool whole = s.done || (shift == 0 && s.num_few < 0);
      uint64_t mass = 0;
      uint32_t count = 0;
      for (int j = t; j < bin + whole; j += 32) {
        mass += s.mass[j];
        count += s.count[j];
      }
      for (int step = 16; step > 0; step /= 2) {
        mass += __shfl_xor_sync(0xFFFFFFFFu, mass, step);
        count += __shfl_xor_sync(0xFFFFFFFFu, count, step);
      }
      if (t == 0) {
        s.before_mass += mass;
        s.before_count += count;
        s.prefix |= static_cast<unsigned long long>(bin) << shift;
      }
    }
    filter_sync();
    if (s.num_few == 0) return last_of_few(source, max, bound, by_mass, want, shift);
    if (s.done || shift == 0) break;
  }
  const uint64_t rest = shift == 0 ? 0 : (uint64_t{1} << shift) - 1;
  const uint64_t found = s.prefix | rest;
  return found < bound ? found : bound;
}

struct FilterResult {
  bool certified;  // false: tokens outside the source might stay
  int32_t token;
  float token_x;
  int32_t num_kept;
  float log_mass;  // ln of the mass kept, relative to e^max
};

// Counts what stays, keys up to `bound`, and draws from it: all tokens within the slack of the best
// cheap score are scored in double.
static __device__ __noinline__ FilterResult draw_kept(const FilterSource& source, uint64_t bound,
                                                      const LmHeadRow& row, float max) {
  FilterShared& s = filter_shared();
  const int t = threadIdx.x % kFilterThreads;
  filter_sync();
  if (t == 0) {
    s.total_mass = 0;
    s.total_count = 0;
    s.key = 0;
    s.approx = 0;
  }
  filter_sync();
  const NoiseKey noise = {static_cast<uint32_t>(row.seed), static_cast<uint32_t>(row.seed >> 32),
                          row.position};
  uint64_t mass = 0;
  uint32_t count = 0;
  float approx = -INFINITY;
  for (int i = t; i < source.count; i += kFilterThreads) {
    Candidate c;
    if (!source.at(i, c) || filter_key(c.x, c.id) > bound) continue;
    mass += mass_of(c.x, max);
    ++count;
    const float g = gumbel_fast(noise_draw(noise, static_cast<uint32_t>(c.id), kSamplingVersion));
    if (g < kGumbelUnknown) approx = fmaxf(approx, c.x + g);
  }
  atomicMax(&s.approx, ordered(approx));
  atomicAdd(&s.total_mass, static_cast<unsigned long long>(mass));
  atomicAdd(&s.total_count, count);
  filter_sync();
  const float best = from_ordered(s.approx);
  const float bar = best - kGumbelSlack - fabsf(best) * 0x1p-20f;
  for (int i = t; i < source.count; i += kFilterThreads) {
    Candidate c;
    if (!source.at(i, c) || filter_key(c.x, c.id) > bound) continue;
    const auto id = static_cast<uint32_t>(c.id);
    if (c.x + gumbel_fast(noise_draw(noise, id, kSamplingVersion)) < bar) continue;
    const uint64_t key = score_key(double{c.x} + gumbel(noise, id), c.id);
    atomicMax(&s.key, static_cast<unsigned long long>(key));
  }
  filter_sync();
  FilterResult result = {true, key_token(s.key), 0, static_cast<int32_t>(s.total_count),
                         static_cast<float>(log(static_cast<double>(s.total_mass) * 0x1p-40))};
  for (int i = t; i < source.count; i += kFilterThreads) {
    Candidate c;
    if (source.at(i, c) && c.id == result.token) s.winner_x = c.x;
  }
  filter_sync();
  result.token_x = s.winner_x;
  return result;
}

// The row's filters and draw. `sum` is that of the whole row relative to e^max; `complete` says
// that the source holds every token.
static __device__ __noinline__ FilterResult filter_row(const FilterSource& source, bool complete,
                                                       const LmHeadRow& row, int vocab_size,
                                                       float max, float sum, bool draw,
                                                       int num_top) {
  FilterShared& s = filter_shared();
  const int t = threadIdx.x % kFilterThreads;
  if (t == 0) {
    s.total_mass = 0;
    s.total_count = 0;
    s.num_top = 0;
  }
  filter_sync();
  {
    uint64_t mass = 0;
    uint32_t count = 0;
    for (int i = t; i < source.count; i += kFilterThreads) {
      Candidate c;
      if (!source.at(i, c)) continue;
      mass += mass_of(c.x, max);
      ++count;
    }
    for (int step = 16; step > 0; step /= 2) {
      mass += __shfl_xor_sync(0xFFFFFFFFu, mass, step);
      count += __shfl_xor_sync(0xFFFFFFFFu, count, step);
    }
    if (t % 32 == 0) {
      atomicAdd(&s.total_mass, static_cast<unsigned long long>(mass));
      atomicAdd(&s.total_count, count);
    }
  }
  filter_sync();
  const uint32_t total_count = s.total_count;
  const uint64_t total_mass = s.total_mass;
  FilterResult result = {true, -1, 0, 0, 0};
  const bool greedy = row.temperature == 0;
  const bool has_top_k = !greedy && row.top_k > 0 && row.top_k < vocab_size;
  const bool has_top_p = !greedy && row.top_p < 1;
  const bool has_min_p = !greedy && row.min_p > 0;
  const double lowest_min_p = has_min_p ? max + log(row.min_p) : -INFINITY;

  // Is every token that may stay here?
  const uint64_t all = static_cast<uint64_t>(static_cast<double>(sum) * 0x1p40);
  const uint64_t top_p_mass = static_cast<uint64_t>(row.top_p * static_cast<double>(all));
  if (!complete) {
    bool enough = !draw;  // top_k >= V filters nothing, and all tokens may stay
    if (has_top_k) {
      enough = total_count >= static_cast<uint32_t>(row.top_k);
    } else if (has_top_p) {
      enough = total_mass >= top_p_mass;
    } else if (has_min_p) {
      enough = lowest_min_p >= source.lowest;
    }
    const int top = num_top < vocab_size ? num_top : vocab_size;
    if (!enough || total_count < static_cast<uint32_t>(top)) {
      result.certified = false;
      return result;
    }
  }

  uint64_t bound = ~uint64_t{0};
  if (has_top_k && static_cast<uint32_t>(row.top_k) < total_count) {
    bound = last_key(source, max, bound, false, static_cast<uint64_t>(row.top_k));
  }
  if (has_top_p) {
    const uint64_t survivors =
        has_top_k ? (static_cast<uint32_t>(row.top_k) < total_count ? s.before_mass : total_mass)
                  : all;
    uint64_t want = static_cast<uint64_t>(row.top_p * static_cast<double>(survivors));
    if (want == 0) want = 1;
    filter_sync();
    bound = last_key(source, max, bound, true, want);
  }
  if (has_min_p) {
    float lowest = __double2float_ru(lowest_min_p);
    lowest = lowest < max ? lowest : max;
    const uint64_t key = filter_key(lowest, -1);
    bound = key < bound ? key : bound;
  }

  if (draw) {
    const FilterResult drawn = draw_kept(source, bound, row, max);
    result = {true, drawn.token, drawn.token_x, drawn.num_kept, drawn.log_mass};
  }
  if (num_top > 0) {
    const uint32_t n =
        static_cast<uint32_t>(num_top) < total_count ? static_cast<uint32_t>(num_top) : total_count;
    const uint64_t last =
        n < total_count ? last_key(source, max, ~uint64_t{0}, false, n) : ~uint64_t{0};
    for (int i = t; i < source.count; i += kFilterThreads) {
      Candidate c;
      if (!source.at(i, c) || filter_key(c.x, c.id) > last) continue;
      const uint32_t place = atomicAdd(&s.num_top, 1u);
      if (place < 32) s.top[place] = c;
    }
    filter_sync();
  }
  return result;
}

}  // namespace gradus::kernels::cuda
