// SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>
#include <algorithm>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>

#include "cli/command.h"
#include "cli/json_lines.h"
#include "cli/model_rows.h"
#include "model/device_transformer.h"
#include "model/training_pass.h"
#include "records/signals.h"
#include "records/terminal.h"
#include "rollout/cpu_engine.h"
#include "rollout/device_engine.h"
#include "trainer/device_parts.h"

namespace gradus::cli {
namespace {

struct GenerateArguments {
  std::string model, adapter, prompts = "-", out = "-";
  int64_t num_samples = 1;
  data::SamplingParams sampling;
  uint64_t seed = 0;
  int64_t max_batch = 64;
  int64_t kv_cache_mib = 2048;
  std::optional<int64_t> prefill_chunk_tokens;
  std::string device = "cpu";
};

// Rows of a data set, as gradus data make writes them, have a `prompt`: text or messages. A text is
// the user's message where the model has a chat template, as in training by default.
nlohmann::ordered_json with_prompt_as_input(nlohmann::ordered_json row, bool has_chat_template) {
  const bool has_input = row.contains("ids") || row.contains("text") || row.contains("messages");
  if (has_input || !row.contains("prompt")) return row;
  const nlohmann::ordered_json& prompt = row["prompt"];
  if (!prompt.is_string()) {
    row["messages"] = prompt;
  } else if (has_chat_template) {
    row["messages"] = {{{"role", "user"}, {"content", prompt}}};
  } else {
    row["text"] = prompt;
  }
  return row;
}

// What rewards need to know of a row, under the names that the reward commands read.
nlohmann::ordered_json facts_of(const nlohmann::ordered_json& row) {
  nlohmann::ordered_json facts = nlohmann::ordered_json::object();
  for (const char* name : {"prompt", "data_source", "extra_info", "ground_truth"}) {
    if (row.contains(name)) facts[name] = row[name];
  }
  const auto rule = row.find("reward_model");
  if (!facts.contains("ground_truth") && rule != row.end() && rule->is_object() &&
      rule->contains("ground_truth")) {
    facts["ground_truth"] = (*rule)["ground_truth"];
  }
  if (!facts.contains("prompt") && row.contains("text")) facts["prompt"] = row["text"];
  return facts;
}

// Writes trajectories in the order of the requests, each as soon as those before it are out, with
// the facts of their rows.
class OrderedWriter : public rollout::TrajectorySink {
 public:
  OrderedWriter(JsonLinesWriter& writer, std::span<const nlohmann::ordered_json> facts,
                std::atomic<bool>& cancel)
      : writer_(writer), facts_(facts), cancel_(cancel) {}

  void finished(size_t request_index, data::Trajectory trajectory) override {
    waiting_.emplace(request_index, std::move(trajectory));
    while (!waiting_.empty() && waiting_.begin()->first == next_) {
      if (status_.ok()) status_ = writer_.write(line(waiting_.begin()->second));
      if (!status_.ok()) cancel_ = true;
      waiting_.erase(waiting_.begin());
      ++next_;
    }
  }
  const Status& status() const { return status_; }

 private:
  nlohmann::ordered_json line(const data::Trajectory& trajectory) const {
    const auto split = trajectory.token_ids.begin() + trajectory.prompt_length;
    nlohmann::ordered_json logprobs = nlohmann::ordered_json::array(), sampling = logprobs;
    for (const float value : trajectory.behavior_logprobs) logprobs.push_back(exact_number(value));
    for (const float value : trajectory.sampling_logprobs) sampling.push_back(exact_number(value));
    nlohmann::ordered_json line = {
        {"prompt_index", trajectory.id.prompt_id},
        {"sample_index", trajectory.id.sample_index},
        {"prompt_ids", std::vector<int32_t>(trajectory.token_ids.begin(), split)},
        {"ids", std::vector<int32_t>(split, trajectory.token_ids.end())},
        {"text", trajectory.text},
        {"logprobs", std::move(logprobs)},
        {"sampling_logprobs", std::move(sampling)},
        {"finish_reason", data::finish_reason_name(trajectory.finish_reason)}};
    line.update(facts_[trajectory.id.prompt_id]);
    return line;
  }

  JsonLinesWriter& writer_;
  std::span<const nlohmann::ordered_json> facts_;  // by prompt_index
  std::atomic<bool>& cancel_;
  std::map<size_t, data::Trajectory> waiting_;
  size_t next_ = 0;
  Status status_;
};

Status check_sampling(const GenerateArguments& arguments) {
  const data::SamplingParams& sampling = arguments.sampling;
  if (!(sampling.temperature >= 1e-4 && sampling.temperature <= 1e4)) {
    return invalid_argument(
        "--temperature {}: must be in [0.0001, 10000]; use --greedy for the most "
        "likely token",
        sampling.temperature);
  }
  if (sampling.top_k < 0)
    return invalid_argument("--top-k {}: must be at least 0; 0 keeps all tokens", sampling.top_k);
  if (!(sampling.top_p > 0 && sampling.top_p <= 1)) {
    return invalid_argument("--top-p {}: must be in (0, 1]; use 1 to disable", sampling.top_p);
  }
  if (!(sampling.min_p >= 0 && sampling.min_p <= 1)) {
    return invalid_argument("--min-p {}: must be in [0, 1]; use 0 to disable", sampling.min_p);
  }
  const auto at_least_one = [](const char* name, int64_t value) {
    return value >= 1 ? Status() : invalid_argument("{} {}: must be at least 1", name, value);
  };
  GRADUS_RETURN_IF_ERROR(at_least_one("--num-samples", arguments.num_samples));
  GRADUS_RETURN_IF_ERROR(at_least_one("--max-new-tokens", sampling.max_new_tokens));
  GRADUS_RETURN_IF_ERROR(at_least_one("--max-batch", arguments.max_batch));
  GRADUS_RETURN_IF_ERROR(
      at_least_one("--prefill-chunk-tokens", arguments.prefill_chunk_tokens.value_or(1)));
  return at_least_one("--kv-cache-mib", arguments.kv_cache_mib);
}

// The model's weights on the device.
Result<std::unique_ptr<model::DeviceTransformer>> to_device(const model::Transformer& transformer) {
  GRADUS_RETURN_IF_ERROR(model::DeviceTransformer::check_supported(transformer.config()));
  const Result<kernels::Cuda> cuda = kernels::Cuda::open();
  if (!cuda.ok()) return cuda.status();
  return trainer::to_device(*cuda, transformer);
}

CLI::Option* add_device_option(CLI::App& command, std::string& device) {
  return command.add_option("--device", device, "Where the model runs: cpu or cuda")
      ->check(CLI::IsMember({"cpu", "cuda"}));
}

// Runs all requests on an engine and says how fast.
Status run_requests(rollout::Engine& engine, std::span<const data::RolloutRequest> requests,
                    std::span<const nlohmann::ordered_json> facts, JsonLinesWriter& writer) {
  records::install_stop_signals();
  std::atomic<bool> cancel{false};
  OrderedWriter sink(writer, facts, cancel);
  {
    records::RunDisplay display({});
    display.begin_phase("generate", static_cast<int64_t>(requests.size()), "responses");
    GRADUS_RETURN_IF_ERROR(
        engine.run(requests, 0, 0, sink, &cancel, [&](int64_t finished, int64_t) {
          display.advance_phase(finished);
          if (records::stop_requested()) cancel = true;
        }));
    display.end_phase();
  }
  GRADUS_RETURN_IF_ERROR(sink.status());
  GRADUS_RETURN_IF_ERROR(writer.finish());
  const rollout::EngineStats& stats = engine.stats();
  fmt::print(stderr,
             "{} responses, {} tokens in {:.2f} s ({:.1f} tokens/s), first token after {:.3f} s\n",
             requests.size(), stats.num_sampled_tokens, stats.seconds,
             static_cast<double>(stats.num_sampled_tokens) / std::max(stats.seconds, 1e-9),
             stats.first_token_seconds);
  return {};
}

Status generate(const GenerateArguments& arguments) {
  GRADUS_RETURN_IF_ERROR(check_sampling(arguments));
  Result<ModelForRows> loaded =
      load_model_for_rows(arguments.model, model::Head::kLanguage, arguments.adapter);
  if (!loaded.ok()) return loaded.status();
  const model::ModelConfig& config = loaded->transformer->config();
  std::vector<data::RolloutRequest> requests;
  std::vector<nlohmann::ordered_json> facts;  // by prompt
  data::SamplingParams sampling = arguments.sampling;
  sampling.stop_ids = config.eos_ids;
  GRADUS_RETURN_IF_ERROR(for_each_json_line(
      arguments.prompts, [&](const nlohmann::ordered_json& row, int64_t) -> Status {
        Result<std::vector<int32_t>> ids =
            row_ids(with_prompt_as_input(row, loaded->chat_template.has_value()), *loaded,
                    /*allow_messages=*/true);
        if (!ids.ok()) return ids.status();
        if (static_cast<int64_t>(ids->size()) >= config.max_position_embeddings) {
          return invalid_argument(
              "the prompt has {} tokens and leaves no room for a response in the model's context "
              "of "
              "{}; shorten it",
              ids->size(), config.max_position_embeddings);
        }
        for (int32_t i = 0; i < arguments.num_samples; ++i) {
          requests.push_back({{facts.size(), i},
                              *ids,
                              sampling,
                              rollout::request_seed(arguments.seed, 0, facts.size(), i)});
        }
        facts.push_back(facts_of(row));
        return {};
      }));
  Result<std::unique_ptr<JsonLinesWriter>> writer = JsonLinesWriter::open(arguments.out);
  if (!writer.ok()) return writer.status();
  const bool on_device = arguments.device == "cuda";
  const rollout::EngineOptions options = {
      arguments.max_batch, arguments.kv_cache_mib << 20,
      arguments.prefill_chunk_tokens.value_or(on_device ? 8192 : 512)};
  if (on_device) {
    const Result<std::unique_ptr<model::DeviceTransformer>> transformer =
        to_device(*loaded->transformer);
    GRADUS_RETURN_IF_ERROR(transformer.status());
    const Result<std::unique_ptr<rollout::DeviceEngine>> engine =
        rollout::DeviceEngine::create(**transformer, loaded->tokenizer.get(), options);
    GRADUS_RETURN_IF_ERROR(engine.status());
    return run_requests(**engine, requests, facts, **writer);
  }
  rollout::CpuEngine engine(*loaded->transformer, loaded->tokenizer.get(), options);
  return run_requests(engine, requests, facts, **writer);
}

struct LogprobsArguments {
  std::string model, adapter, input = "-", out = "-";
  double temperature = 1.0;
  std::string device = "cpu";
};

Status logprobs(const LogprobsArguments& arguments) {
  if (!(arguments.temperature >= 1e-4 && arguments.temperature <= 1e4)) {
    return invalid_argument("--temperature {}: must be in [0.0001, 10000]", arguments.temperature);
  }
  Result<ModelForRows> loaded =
      load_model_for_rows(arguments.model, model::Head::kLanguage, arguments.adapter);
  if (!loaded.ok()) return loaded.status();
  const model::ModelConfig& config = loaded->transformer->config();
  Result<std::unique_ptr<JsonLinesWriter>> writer = JsonLinesWriter::open(arguments.out);
  if (!writer.ok()) return writer.status();
  const float temperature = static_cast<float>(arguments.temperature);
  std::unique_ptr<model::DeviceTransformer> on_device;
  std::optional<model::DeviceScorer> scorer;
  std::optional<model::TrainingPass> pass;
  if (arguments.device == "cuda") {
    Result<std::unique_ptr<model::DeviceTransformer>> transformer = to_device(*loaded->transformer);
    GRADUS_RETURN_IF_ERROR(transformer.status());
    on_device = std::move(*transformer);
    scorer.emplace(*on_device, 8192);
  } else {
    pass.emplace(*loaded->transformer, false);
  }
  // Rows are scored in packs of about this many tokens, which does not change a bit.
  const int64_t pack_tokens = scorer ? 8192 : 2048;
  std::vector<std::vector<int32_t>> waiting;
  int64_t num_waiting_tokens = 0;
  // Log-probs of the waiting rows, one after the other.
  const auto score_on_cpu = [&] {
    std::vector<data::PackGroup> groups;
    for (const std::vector<int32_t>& ids : waiting) {
      if (ids.size() >= 2) groups.push_back({{ids[0]}, {{ids.begin() + 1, ids.end()}}});
    }
    const data::Pack pack = data::make_pack(groups);
    pass->forward(pack, temperature, false);
    return std::vector<float>(pass->logprobs().begin(), pass->logprobs().end());
  };
  const auto score_on_device = [&]() -> Result<std::vector<float>> {
    const Result<std::vector<std::vector<float>>> rows = scorer->score(waiting, temperature);
    if (!rows.ok()) return rows.status();
    std::vector<float> all;
    for (const std::vector<float>& row : *rows) all.insert(all.end(), row.begin(), row.end());
    return all;
  };
  const auto score_waiting = [&]() -> Status {
    if (waiting.empty()) return {};
    const Result<std::vector<float>> scored =
        scorer ? score_on_device() : Result<std::vector<float>>(score_on_cpu());
    if (!scored.ok()) return scored.status();
    size_t next = 0;
    for (const std::vector<int32_t>& ids : waiting) {
      nlohmann::ordered_json values = nlohmann::ordered_json::array();
      for (size_t i = 1; i < ids.size(); ++i) {
        const float value = (*scored)[next++];
        if (std::isnan(value)) {
          return data_loss(
              "the model's log-prob of token {} of a row is not a number; its weights are broken",
              i);
        }
        values.push_back(exact_number(value));
      }
      GRADUS_RETURN_IF_ERROR((*writer)->write({{"logprobs", std::move(values)}}));
    }
    waiting.clear();
    num_waiting_tokens = 0;
    return {};
  };
  GRADUS_RETURN_IF_ERROR(for_each_json_line(
      arguments.input, [&](const nlohmann::ordered_json& row, int64_t) -> Status {
        Result<std::vector<int32_t>> ids = row_ids(row, *loaded, /*allow_messages=*/false);
        if (!ids.ok()) return ids.status();
        if (static_cast<int64_t>(ids->size()) > config.max_position_embeddings) {
          return invalid_argument("the row has {} tokens, the model's context {}; shorten it",
                                  ids->size(), config.max_position_embeddings);
        }
        num_waiting_tokens += static_cast<int64_t>(ids->size());
        waiting.push_back(std::move(*ids));
        return num_waiting_tokens >= pack_tokens ? score_waiting() : Status();
      }));
  GRADUS_RETURN_IF_ERROR(score_waiting());
  return (*writer)->finish();
}

}  // namespace

void add_generate_command(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("generate",
                                         "Sample responses: JSON lines {\"text\"}, {\"ids\"} or "
                                         "{\"messages\"} in, one per sample out");
  auto arguments = std::make_shared<GenerateArguments>();
  data::SamplingParams& sampling = arguments->sampling;
  command->add_option("--model", arguments->model, "Hugging Face model directory")->required();
  command->add_option("--adapter", arguments->adapter, "LoRA adapter of it (PEFT's format)");
  command->add_option(
      "--prompts,--input", arguments->prompts,
      "JSON lines to read: {\"text\"}, {\"ids\"}, {\"messages\"}, or rows of a data set; - is "
      "standard input");
  command->add_option("--out", arguments->out, "JSON lines to write; - is standard output");
  command->add_option("--num-samples", arguments->num_samples, "Responses per prompt");
  command->add_option("--max-new-tokens", sampling.max_new_tokens, "Most tokens of a response");
  command->add_option("--temperature", sampling.temperature, "Divides the logits");
  command->add_option("--top-k", sampling.top_k, "Keep the k most likely tokens; 0 keeps all");
  command->add_option("--top-p", sampling.top_p,
                      "Keep the smallest set of this probability; 1 keeps all");
  command->add_option("--min-p", sampling.min_p,
                      "Drop tokens below this share of the largest probability");
  command->add_flag("--greedy", sampling.greedy, "Take the most likely token");
  command->add_option("--stop", sampling.stop_texts, "End a response at this text; repeatable")
      ->allow_extra_args(false);
  command->add_option("--seed", arguments->seed, "Seed of the sampling");
  command->add_option("--max-batch", arguments->max_batch, "Sequences decoded together");
  command->add_option("--kv-cache-mib", arguments->kv_cache_mib, "Size of the key-value cache");
  command->add_option("--prefill-chunk-tokens", arguments->prefill_chunk_tokens,
                      "Prompt tokens computed in one pass (default: 512, with cuda 8192)");
  add_device_option(*command, arguments->device);
  command->callback(
      [&action, arguments] { action = [arguments] { return generate(*arguments); }; });
}

void add_logprobs_command(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand(
      "logprobs", "Score given tokens: JSON lines {\"ids\"} or {\"text\"} in, {\"logprobs\"} out");
  auto arguments = std::make_shared<LogprobsArguments>();
  command->add_option("--model", arguments->model, "Hugging Face model directory")->required();
  command->add_option("--adapter", arguments->adapter, "LoRA adapter of it (PEFT's format)");
  command->add_option("--input", arguments->input, "JSON lines to read; - is standard input");
  command->add_option("--out", arguments->out, "JSON lines to write; - is standard output");
  command->add_option("--temperature", arguments->temperature, "Divides the logits");
  add_device_option(*command, arguments->device);
  command->callback(
      [&action, arguments] { action = [arguments] { return logprobs(*arguments); }; });
}

}  // namespace gradus::cli
