// SPDX-License-Identifier: Apache-2.0
// Exact search among 100,000 vectors of width 384, lists of 30: the index kind flat, FAISS's flat
// index on OpenBLAS (faiss_flat), and the roofs take turns in one run. Counters are of medians:
//   qps, faiss_qps, of_faiss (FAISS's time / ours), of_read (bytes of the vectors / read roof),
//   of_peak (multiply-adds / FMA roof)
// and the re-scoring of a pool of 30 at random places of the same vectors. --isa=avx2 forces AVX2.
#include <benchmark/benchmark.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "bench/kernels/roof.h"
#include "common/check.h"
#include "common/parallel.h"
#include "common/rng.h"
#include "kernels/isa.h"
#include "retriever/index.h"
#include "retriever/rescore.h"

namespace gradus::bench {
namespace {

constexpr int64_t kDocuments = 100000, kWidth = 384, kTop = 30;

std::vector<float> unit_vectors(int64_t count, uint64_t seed) {
  std::vector<float> rows(static_cast<size_t>(count * kWidth));
  RngSequence rng(seed, RngStream::kTask);
  for (int64_t i = 0; i < count; ++i) {
    double squares = 0;
    for (int64_t c = 0; c < kWidth; ++c) {
      const double value = rng.uniform() - 0.5;
      rows[i * kWidth + c] = static_cast<float>(value);
      squares += value * value;
    }
    for (int64_t c = 0; c < kWidth; ++c) {
      rows[i * kWidth + c] /= static_cast<float>(std::sqrt(squares));
    }
  }
  return rows;
}

const std::vector<float>& documents() {
  static const std::vector<float> all = unit_vectors(kDocuments, 1);
  return all;
}

std::unique_ptr<retriever::VectorIndex> make(const std::string& kind) {
  retriever::IndexOptions options;
  options.width = kWidth;
  auto index = std::move(retriever::make_index(kind, options)).value();
  std::vector<int64_t> ids(kDocuments);
  for (int64_t i = 0; i < kDocuments; ++i) ids[i] = i;
  const Status status = index->add(ids, documents());
  GRADUS_CHECK(status.ok(), status.message());
  return index;
}

double seconds_of(const retriever::VectorIndex& index, const std::vector<float>& queries,
                  retriever::Hits& hits) {
  const double start = seconds();
  hits = std::move(index.search(queries, kTop)).value();
  return seconds() - start;
}

void search(benchmark::State& state) {
  static const auto flat = make("flat"), faiss = make("faiss_flat");
  static const float* const read_by_the_roof = make_floats(kDocuments * kWidth);
  const int64_t m = state.range(0);
  const std::vector<float> queries = unit_vectors(m, 2);
  retriever::Hits hits, faiss_hits;
  seconds_of(*flat, queries, hits);
  seconds_of(*faiss, queries, faiss_hits);
  GRADUS_CHECK(hits.ids[0] == faiss_hits.ids[0], "the two indexes disagree");
  Samples ours, theirs, peak, read;
  for (auto _ : state) {
    peak.add(fma_gflops());
    read.add(read_gb_per_s(read_by_the_roof, kDocuments * kWidth));
    ours.add(seconds_of(*flat, queries, hits));
    theirs.add(seconds_of(*faiss, queries, faiss_hits));
    state.SetIterationTime(ours.values.back());
  }
  const double rows = static_cast<double>(kDocuments * kWidth);
  state.counters["qps"] = static_cast<double>(m) / ours.median();
  state.counters["faiss_qps"] = static_cast<double>(m) / theirs.median();
  state.counters["of_faiss"] = theirs.median() / ours.median();
  state.counters["of_read"] = 4 * rows / ours.median() * 1e-9 / read.median();
  state.counters["of_peak"] =
      2 * rows * static_cast<double>(m) / ours.median() * 1e-9 / peak.median();
}

// A pool of its own each time, so that its rows come from memory.
void score_pool(benchmark::State& state) {
  RngSequence rng(3, RngStream::kTask);
  const std::vector<float> query = unit_vectors(1, 2);
  std::vector<int64_t> places(kTop);
  std::vector<float> scores(kTop);
  for (auto _ : state) {
    for (int64_t& place : places) place = static_cast<int64_t>(rng.below(kDocuments));
    const double start = seconds();
    retriever::score_pool(query.data(), documents().data(), kWidth, places, scores);
    state.SetIterationTime(seconds() - start);
    benchmark::DoNotOptimize(scores.data());
  }
}

}  // namespace
}  // namespace gradus::bench

int main(int argc, char** argv) {
  int kept = 1;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--isa=avx2") == 0) {
      gradus::kernels::set_isa(gradus::kernels::Isa::kAvx2);
    } else {
      argv[kept++] = argv[i];
    }
  }
  argc = kept;
  benchmark::RegisterBenchmark("search", gradus::bench::search)
      ->Arg(1)
      ->Arg(16)
      ->Arg(64)
      ->Arg(256)
      ->ArgName("batch")
      ->UseManualTime()
      ->Unit(benchmark::kMillisecond);
  benchmark::RegisterBenchmark("score_pool", gradus::bench::score_pool)
      ->UseManualTime()
      ->Unit(benchmark::kMicrosecond);
  benchmark::Initialize(&argc, argv);
  benchmark::AddCustomContext("threads", std::to_string(gradus::num_threads()));
  benchmark::AddCustomContext(
      "isa", gradus::kernels::isa() == gradus::kernels::Isa::kAvx512 ? "avx512" : "avx2");
  benchmark::RunSpecifiedBenchmarks();
}
