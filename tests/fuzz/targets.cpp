// SPDX-License-Identifier: Apache-2.0
#include "tests/fuzz/targets.h"

#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/run_config.h"
#include "data/chat_template.h"
#include "data/dataset.h"
#include "data/tokenizer.h"
#include "model/gguf.h"
#include "model/safetensors.h"
#include "records/checkpoint_manifest.h"
#include "records/metrics_log.h"
#include "records/rollout_dump.h"
#include "records/rollout_messages.h"
#include "records/state_file.h"
#include "rewards/code/assert_tests.h"
#include "rewards/code/python_value.h"
#include "rewards/reward.h"
#include "trainer/rollout_work.h"

namespace gradus::fuzz {
namespace {

// A file in memory, for parsers that take a path.
class MemoryFile {
 public:
  explicit MemoryFile(std::string_view bytes) : descriptor_(::memfd_create("fuzz", MFD_CLOEXEC)) {
    while (!bytes.empty()) {
      const ssize_t written = ::write(descriptor_, bytes.data(), bytes.size());
      GRADUS_CHECK(written > 0, "cannot write a file in memory");
      bytes.remove_prefix(static_cast<size_t>(written));
    }
  }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;
  ~MemoryFile() { ::close(descriptor_); }
  std::string path() const { return "/proc/self/fd/" + std::to_string(descriptor_); }

 private:
  int descriptor_;
};

// Weights that a hostile header claims are not worth the fuzzer's memory.
constexpr int64_t kMaxValues = 1 << 20;

void run_config(std::string_view bytes) {
  // A base is another file of the same form; two rewards start programs that the file names.
  for (const std::string_view word : {"base", "process", "plugin", "\\"}) {
    if (bytes.find(word) != std::string_view::npos) return;
  }
  const MemoryFile file(bytes);
  const auto loaded = cli::load_run_config(file.path(), {}, cli::RunKind::kTrain, 2);
  if (loaded.ok()) static_cast<void>(cli::resolved_yaml(*loaded));
}

void run_json_lines(std::string_view bytes) {
  const MemoryFile file(bytes);
  const std::array<std::string, 1> files = {file.path()};
  data::DatasetOptions options;
  options.require_ground_truth = false;
  const auto rows = data::load_rows(files, options);
  if (rows.ok()) {
    for (const data::Row& row : *rows) static_cast<void>(data::row_to_json(row).dump());
  }
  static_cast<void>(records::read_metrics(file.path()));
  const auto rollouts = records::read_rollouts(file.path());
  if (rollouts.ok()) {
    for (const auto& record : *rollouts) static_cast<void>(records::rollout_line(record));
  }
}

void run_tokenizer(std::string_view bytes) {
  const auto tokenizer = data::Tokenizer::from_json(bytes, "fuzz");
  if (!tokenizer.ok()) return;
  for (const std::string_view text : {"", "2+3=5", " A\tb\n\xC3\xA9\xE2\x82\xAC <|end|>"}) {
    const auto ids = (*tokenizer)->encode(text);
    if (ids.ok()) static_cast<void>((*tokenizer)->decode(*ids));
  }
}

void run_safetensors(std::string_view bytes) {
  const MemoryFile file(bytes);
  const auto reader = model::SafetensorsReader::open(file.path());
  if (!reader.ok()) return;
  for (const model::SafetensorsTensor& tensor : reader->tensors()) {
    if (tensor.num_values() > kMaxValues) continue;
    std::vector<float> values(static_cast<size_t>(tensor.num_values()));
    static_cast<void>(model::convert_to_f32(tensor, values.data()).ok());
  }
}

void run_gguf(std::string_view bytes) {
  const MemoryFile file(bytes);
  const auto reader = model::GgufReader::open(file.path());
  if (!reader.ok()) return;
  for (const auto& [key, value] : reader->metadata()) {
    static_cast<void>(value.integer());
    static_cast<void>(value.number());
    static_cast<void>(value.text());
    static_cast<void>(value.integers());
    static_cast<void>(value.numbers());
  }
  for (const model::GgufTensor& tensor : reader->tensors()) {
    if (tensor.num_values() > kMaxValues) continue;
    std::vector<float> values(static_cast<size_t>(tensor.num_values()));
    model::GgufReader::read_f32(tensor, values.data());
  }
}

void run_chat_template(std::string_view bytes) {
  const auto parsed = data::ChatTemplate::parse(std::string(bytes), "fuzz");
  if (!parsed.ok()) return;
  const auto messages = nlohmann::ordered_json::array(
      {{{"role", "system"}, {"content", "be brief"}},
       {{"role", "user"}, {"content", "2+3?"}},
       {{"role", "assistant"}, {"content", "<think>easy</think>5"}, {"n", 2.5}}});
  data::RenderOptions options;
  options.limits = {.max_steps = 20000,
                    .max_output_bytes = 1 << 18,
                    .max_value_bytes = 1 << 22,
                    .max_depth = 100};
  options.now = std::tm{};
  static_cast<void>(parsed->render_chat(messages, true, nullptr, nullptr, nullptr, options).ok());
}

void run_state_file(std::string_view bytes) {
  const MemoryFile file(bytes);
  const auto reader = records::StateReader::open(file.path());
  if (!reader.ok()) return;
  for (const records::StateEntry& entry : reader->entries()) {
    static_cast<void>(reader->read_text(entry.name));
    static_cast<void>(reader->read_i64(entry.name));
  }
}

// What one rank sends to another.
void run_wire(std::string_view bytes) {
  const auto rollouts = records::decode_rollouts(bytes);
  if (rollouts.ok()) static_cast<void>(records::encode(*rollouts));
  const auto manifest = records::decode_manifest(bytes);
  if (manifest.ok()) static_cast<void>(records::to_json(*manifest));
  const auto work = trainer::decode_work(bytes);
  if (work.ok()) static_cast<void>(trainer::encode(*work));
  const auto answer = trainer::decode_answer(bytes);
  if (answer.ok()) static_cast<void>(trainer::encode(*answer));
}

// A ground truth, a line's end and a response, for each built-in reward.
void run_rewards(std::string_view bytes) {
  static const auto all = [] {
    std::map<std::string, std::unique_ptr<rewards::Reward>> made;
    rewards::RewardRegistry registry("reward");
    rewards::register_builtin_rewards(registry);
    for (const std::string& name : registry.names()) {
      rewards::RewardOptions options;
      if (name == "format") options = {{"pattern", "(a|b)*.*[0-9]+"}};
      if (name == "length") options = {{"max", "100"}, {"unit", "characters"}};
      auto reward = registry.create(name, options);
      if (reward.ok()) made[name] = std::move(*reward);  // not those that need a program
    }
    return made;
  }();
  data::Prompt prompt;
  data::Trajectory trajectory;
  const size_t end = std::min(bytes.find('\n'), bytes.size());
  prompt.answer = bytes.substr(0, end);
  trajectory.text = bytes.substr(std::min(end + 1, bytes.size()));
  const rewards::Group group{&prompt, {&trajectory, 1}};
  for (const auto& [name, reward] : all) {
    static_cast<void>(reward->check_ground_truth(prompt));
    GRADUS_CHECK(reward->score_batch({&group, 1}).size() == 1, name);
  }
}

// Assertions of a row of data, and what a program writes as its result.
void run_python_values(std::string_view bytes) {
  const auto tests = rewards::code::parse_asserts(bytes, "");
  // Rows of data come out of JSON, so their texts are UTF-8, which the wire needs.
  const std::string replaced = nlohmann::json(std::string(bytes))
                                   .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  const bool is_utf8 = nlohmann::json::parse(replaced) == std::string(bytes);
  if (tests.ok() && is_utf8) {
    for (const rewards::code::CodeTest& test : tests->tests) {
      const rewards::code::PythonValue& value = test.assertion->arguments;
      const auto back = rewards::code::from_wire(to_wire(value));
      GRADUS_CHECK(back.has_value() && (has_nan(value) || is_equal(*back, value, 0)),
                   to_python(value));
      static_cast<void>(to_json(value, true));
    }
  }
  const auto value = rewards::code::from_wire(bytes);
  if (value.has_value()) static_cast<void>(is_equal(*value, *value, 1e-6) || is_true(*value));
  static_cast<void>(rewards::code::from_json(bytes));
}

constexpr Target kTargets[] = {{"config", run_config},
                               {"rewards", run_rewards},
                               {"python_values", run_python_values},
                               {"json_lines", run_json_lines},
                               {"tokenizer", run_tokenizer},
                               {"safetensors", run_safetensors},
                               {"gguf", run_gguf},
                               {"chat_template", run_chat_template},
                               {"state_file", run_state_file},
                               {"wire", run_wire}};

}  // namespace

std::span<const Target> targets() { return kTargets; }

}  // namespace gradus::fuzz
