// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda.h>

#include <cstdint>

// The instructions of sm_90a that have no name in CUDA C++: barriers in shared memory, the tensor
// copy engine, clusters, warpgroups.
namespace gradus::kernels::cuda {

__device__ inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// --- mbarrier ---

__device__ inline void barrier_init(uint64_t* barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals));
}
__device__ inline void barrier_expect_bytes(uint64_t* barrier, uint32_t bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}
__device__ inline void barrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
               : "memory");
}
// On the barrier at the same place in another block of the cluster. Orders nothing but the copies
// and products that the barrier is for: a release at cluster scope would flush to L2, a
// microsecond.
__device__ inline void barrier_arrive_at(uint64_t* barrier, uint32_t block) {
  asm volatile(
      "{\n.reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n}\n" ::"r"(shared_address(barrier)),
      "r"(block)
      : "memory");
}
// Waits until the phase with this parity has ended.
__device__ inline void barrier_wait(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra finished;\n"
      "bra again;\n"
      "finished:\n}\n" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// --- tensor copies, global to shared ---

// What L2 keeps: weights pass once, hidden rows come again for every block of the vocabulary.
inline constexpr uint64_t kEvictFirst = 0x12F0000000000000ull;
inline constexpr uint64_t kEvictNormal = 0x1000000000000000ull;
inline constexpr uint64_t kEvictLast = 0x14F0000000000000ull;

__device__ inline void prefetch_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
// The box at column x, row y.
__device__ inline void copy_box(void* to, const CUtensorMap* map, uint64_t* barrier, int x, int y,
                                uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y), "l"(policy)
      : "memory");
}
// The box at column x, row y, plane z.
__device__ inline void copy_box_3d(void* to, const CUtensorMap* map, uint64_t* barrier, int x,
                                   int y, int z, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z), "l"(policy)
      : "memory");
}
// Two dimensions, into the same place of every block of the cluster in `blocks`, one bit each.
__device__ inline void copy_box_to_blocks(void* to, const CUtensorMap* map, uint64_t* barrier,
                                          int x, int y, uint16_t blocks, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".multicast::cluster.L2::cache_hint [%0], [%1, {%3, %4}], [%2], %5, %6;" ::"r"(
          shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y), "h"(blocks), "l"(policy)
      : "memory");
}

// Orders this thread's ordinary accesses of shared memory before later copies into it.
__device__ inline void fence_async_copies() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// --- clusters ---

__device__ inline uint32_t block_in_cluster() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ inline void cluster_sync() {
  asm volatile(
      "barrier.cluster.arrive.release.aligned;\n"
      "barrier.cluster.wait.acquire.aligned;\n" ::
          : "memory");
}
// The number at this place of another block's shared memory.
__device__ inline float2 read_at(const float2* place, uint32_t block) {
  float2 value;
  asm volatile(
      "{\n.reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %2, %3;\n"
      "ld.shared::cluster.v2.f32 {%0, %1}, [remote];\n}\n"
      : "=f"(value.x), "=f"(value.y)
      : "r"(shared_address(place)), "r"(block)
      : "memory");
  return value;
}
__device__ inline void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// --- warpgroups ---

template <int kRegisters>
__device__ inline void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Keeps the compiler from moving reads or writes of an accumulator across this point.
template <int kCount>
__device__ inline void pin_registers(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
// One of the 16 barriers of a block, among `threads` threads.
__device__ inline void named_barrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
// Counts for it without waiting.
__device__ inline void named_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Rows of 64 bf16 (128 bytes) in the order that copies with 128-byte swizzle write: eight rows are
// 1,024 bytes. Sixteen steps of k further is 32 bytes, so + 2.
__device__ inline uint64_t descriptor_k_major(const void* p) {
  const uint64_t address = (shared_address(p) & 0x3FFFF) >> 4;
  return address | uint64_t{1} << 16 | uint64_t{64} << 32 | uint64_t{1} << 62;
}

// The same memory read the other way: 64 (or several times 64, `plane_bytes` apart) numbers of a
// row are b's columns, its rows the steps of k. Sixteen steps further is 2,048 bytes, so + 128.
__device__ inline uint64_t descriptor_of_rows(const void* p, uint32_t plane_bytes) {
  const uint64_t address = (shared_address(p) & 0x3FFFF) >> 4;
  return address | uint64_t{plane_bytes >> 4} << 16 | uint64_t{64} << 32 | uint64_t{1} << 62;
}

}  // namespace gradus::kernels::cuda
