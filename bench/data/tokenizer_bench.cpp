// SPDX-License-Identifier: Apache-2.0
#include <benchmark/benchmark.h>

#include <cstdio>
#include <fstream>
#include <iterator>

#include "common/strings.h"
#include "data/tokenizer.h"

// bench_data_tokenizer MODEL_DIR TEXT_FILE [Google Benchmark flags]
//
// One core, the whole text in one call. "Cold": a tokenizer that has encoded nothing yet. The ids
// are those that tests/data/tokenizer_test.cpp compares with the peer; bench/data/tokenizer_peer.py
// times that peer on the same text and checks that the ids of this text agree too.
namespace gradus::data {
namespace {

std::unique_ptr<Tokenizer> load(const std::string& model_dir) {
  auto tokenizer = Tokenizer::load(model_dir);
  GRADUS_CHECK(tokenizer.ok(), tokenizer.status().message());
  return std::move(*tokenizer);
}

void encode(benchmark::State& state, const std::string& model_dir, const std::string& text,
            bool is_cold) {
  auto tokenizer = load(model_dir);
  int64_t num_ids = 0;
  for (auto _ : state) {
    if (is_cold) {
      state.PauseTiming();
      tokenizer = load(model_dir);
      state.ResumeTiming();
    }
    const auto ids = tokenizer->encode(text);
    GRADUS_CHECK(ids.ok(), ids.status().message());
    num_ids += static_cast<int64_t>(ids->size());
  }
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(text.size()));
  state.SetItemsProcessed(num_ids);
}

void decode(benchmark::State& state, const std::string& model_dir, const std::string& text) {
  const auto tokenizer = load(model_dir);
  const auto ids = tokenizer->encode(text);
  GRADUS_CHECK(ids.ok(), ids.status().message());
  for (auto _ : state) benchmark::DoNotOptimize(tokenizer->decode(*ids).ok());
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(text.size()));
}

void load_model(benchmark::State& state, const std::string& model_dir) {
  for (auto _ : state) benchmark::DoNotOptimize(load(model_dir));
}

}  // namespace
}  // namespace gradus::data

int main(int argc, char** argv) {
  using namespace gradus::data;
  benchmark::Initialize(&argc, argv);
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s MODEL_DIR TEXT_FILE [benchmark flags]\n", argv[0]);
    return 2;
  }
  const std::string model_dir = argv[1];
  std::ifstream file(argv[2], std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (text.empty() || gradus::first_invalid_utf8(text)) {
    std::fprintf(stderr, "%s: empty or not valid UTF-8\n", argv[2]);
    return 2;
  }
  const auto unit = benchmark::kMillisecond;
  benchmark::RegisterBenchmark("encode_cold", [&](auto& state) {
    encode(state, model_dir, text, true);
  })->Unit(unit);
  benchmark::RegisterBenchmark("encode_warm", [&](auto& state) {
    encode(state, model_dir, text, false);
  })->Unit(unit);
  benchmark::RegisterBenchmark("decode", [&](auto& state) {
    decode(state, model_dir, text);
  })->Unit(unit);
  benchmark::RegisterBenchmark("load", [&](auto& state) {
    load_model(state, model_dir);
  })->Unit(unit);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
