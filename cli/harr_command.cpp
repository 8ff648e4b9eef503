// SPDX-License-Identifier: Apache-2.0
#include "cli/run_command.h"
#include "data/row_source.h"
#include "trainer/harr_trainer.h"

namespace gradus::cli {
namespace {

// What a run of HARR works with.
struct Retriever {
  std::unique_ptr<retriever::IndexFolder> index;
  std::unique_ptr<retriever::Embedder> embedder;
  std::unique_ptr<retriever::ScriptedReader> reader;
};

Result<Retriever> load_retriever(const trainer::HarrConfig& config) {
  Retriever all;
  Result<retriever::IndexFolder> index = retriever::IndexFolder::open(config.index);
  if (!index.ok()) return index.status().with_prefix("harr.index");
  all.index = std::make_unique<retriever::IndexFolder>(std::move(*index));
  const std::string dir = config.encoder.empty() ? all.index->info().model_dir : config.encoder;
  Result<std::unique_ptr<retriever::Embedder>> embedder = retriever::Embedder::load(dir);
  if (!embedder.ok()) return embedder.status().with_prefix("harr.encoder");
  all.embedder = std::move(*embedder);
  if (all.embedder->hash() != all.index->info().encoder_hash) {
    return invalid_argument(
        "harr.encoder: {} is not the encoder that {} was built with (hash {:016x}, expected "
        "{:016x}); name its directory, or build the index again",
        dir, config.index, all.embedder->hash(), all.index->info().encoder_hash);
  }
  Result<retriever::ScriptedReader> reader =
      retriever::ScriptedReader::load(config.statements, all.index->corpus());
  if (!reader.ok()) return reader.status().with_prefix("harr.statements");
  all.reader = std::make_unique<retriever::ScriptedReader>(std::move(*reader));
  return all;
}

Result<std::vector<retriever::SearchQuestion>> load_questions(
    const data::SourceConfig& source, const retriever::ScriptedReader& reader, int64_t max_rows) {
  const Result<std::vector<data::Row>> rows = data::load_source(source, {}, max_rows);
  if (!rows.ok()) return rows.status();
  std::vector<retriever::SearchQuestion> questions;
  for (const data::Row& row : *rows) {
    Result<retriever::SearchQuestion> question = reader.question(row);
    if (!question.ok()) return question.status();
    questions.push_back(std::move(*question));
  }
  return questions;
}

Status load_all(const RunConfig& config, const retriever::ScriptedReader& reader, int64_t max_rows,
                trainer::HarrSetup& setup) {
  Result<std::vector<retriever::SearchQuestion>> train =
      load_questions(config.data.train, reader, max_rows);
  if (!train.ok()) return train.status();
  setup.train_questions = std::move(*train);
  if (!config.data.eval.is_given() || !config.eval.is_asked_for()) return {};
  Result<std::vector<retriever::SearchQuestion>> eval =
      load_questions(config.data.eval, reader, max_rows);
  if (!eval.ok()) return eval.status();
  setup.eval_questions = std::move(*eval);
  return {};
}

int64_t num_weights(retriever::Embedder& embedder) {
  int64_t count = 0;
  embedder.encoder().weights().for_each([&count](float*, int64_t size, bool) { count += size; });
  return count;
}

int64_t num_factors(const RunConfig& config, const Retriever& retriever) {
  const model::BertConfig& model = retriever.embedder->encoder().config();
  // Query, key, value and output of attention; inner and outer.
  return config.lora.rank * model.num_layers *
         (8 * model.width + 2 * (model.width + model.inner_width));
}

// Trained weights with gradients, moments and what waits in the tree of sums; mapped files are not
// counted, the index's copy of the vectors is.
std::vector<MemoryPart> plan(const RunConfig& config, const Retriever& retriever, int num_ranks) {
  constexpr int64_t kFloat = sizeof(float);
  const int64_t weights = num_weights(*retriever.embedder) * kFloat;
  int64_t num_sums = 1;
  while ((int64_t{1} << num_sums) <= retriever::kReductionBlocks / num_ranks) ++num_sums;
  // Of an adapter the factors, with a copy of the matrices under it.
  const int64_t trained = config.lora.rank > 0 ? num_factors(config, retriever) * kFloat : weights;
  const retriever::IndexFolderInfo& info = retriever.index->info();
  std::vector<MemoryPart> parts = {{"program and data", int64_t{32} << 20},
                                   {"encoder", weights},
                                   {"AdamW moments", 2 * trained},
                                   {"gradients", num_sums * weights},
                                   {"checkpoint being written", weights + 2 * trained},
                                   {"index", info.num_documents * info.width * kFloat}};
  if (config.lora.rank > 0) parts.push_back({"matrices under the adapter", weights});
  return parts;
}

void print_retriever(const RunConfig& config, const Retriever& retriever) {
  const model::BertConfig& model = retriever.embedder->encoder().config();
  fmt::print("encoder    {:.2f}M weights, {} layers of width {}, vocabulary {}\n",
             static_cast<double>(num_weights(*retriever.embedder)) / 1e6, model.num_layers,
             model.width, model.vocab_size);
  fmt::print("index      {} passages, {}, in {}\n", retriever.index->info().num_documents,
             retriever.index->info().kind, config.harr->index);
}

}  // namespace

Status train_retriever(const RunArguments& arguments, const LoadedConfig<RunConfig>& loaded,
                       comm::Communicator& ranks) {
  const RunConfig& config = loaded.value;
  const trainer::HarrConfig& harr = *config.harr;
  if (!arguments.load_rollouts.empty() || !arguments.dump_rollouts.empty()) {
    return invalid_argument(
        "--load-rollouts, --dump-rollouts: the configuration has a section harr, and a retriever "
        "is trained on fresh searches alone; drop the option");
  }
  const auto watchdog = watch_ranks(ranks, config.cluster, ranks.size());
  if (!watchdog.ok()) return watchdog.status();
  if (arguments.dry_run && ranks.rank() != 0) return {};
  Result<Retriever> retriever = load_retriever(harr);
  if (!retriever.ok()) return retriever.status();
  trainer::HarrSetup setup;
  setup.harr = harr;
  setup.lora = config.lora;
  setup.eval = config.eval;
  setup.run = config.run;
  setup.shuffle = config.data.shuffle;
  setup.data_seed = static_cast<uint64_t>(config.data.seed);
  GRADUS_RETURN_IF_ERROR(
      load_all(config, *retriever->reader, arguments.dry_run ? kDryRunRows : 0, setup));
  const std::vector<MemoryPart> memory = plan(config, *retriever, ranks.size());
  const size_t num_train = setup.train_questions.size();
  if (arguments.dry_run) {
    print_retriever(config, *retriever);
    fmt::print("data       {} questions looked at, {} for evaluation\n", num_train,
               setup.eval_questions.size());
    fmt::print("run        {} steps of {} questions x {} trajectories into {}\nmemory\n",
               harr.num_steps, harr.questions_per_step, harr.group_size, run_folder_of(config));
    print_memory(memory);
    fmt::print("the configuration is sound; nothing was trained (--dry-run)\n");
    return {};
  }
  Result<OpenedRun> run = open_run(loaded, arguments.resume, ranks);
  if (!run.ok()) return run.status();
  records::RunDisplay display({.num_steps = harr.num_steps,
                               .first_step = run->resume_step + 1,
                               .columns = records::harr_columns(),
                               .is_quiet = ranks.rank() != 0});
  display.print(fmt::format(
      "{}: encoder of {:.2f}M weights, {} passages, {} questions, {}, planned peak memory {} per "
      "rank",
      config.run.name, static_cast<double>(num_weights(*retriever->embedder)) / 1e6,
      retriever->index->info().num_documents, num_train, ranks_text(ranks),
      mebibytes(total_bytes(memory))));
  trainer::HarrTrainer trainer(std::move(setup), *retriever->embedder, *retriever->index,
                               *retriever->reader, ranks, run->records(), run->checkpoints.get(),
                               display);
  if (!run->resume_from.empty()) {
    GRADUS_RETURN_IF_ERROR(trainer.resume(run->resume_from));
    display.print(
        fmt::format("resumed from {} after step {}", run->resume_from, trainer.position().step));
  }
  GRADUS_RETURN_IF_ERROR(trainer.run());
  display.print(peak_text(total_bytes(memory)));
  display.print(fmt::format("{0}{1}, its encoder in {1}/checkpoints/latest", kEndMessage,
                            run_folder_of(config)));
  return {};
}

}  // namespace gradus::cli
