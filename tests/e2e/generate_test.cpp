// SPDX-License-Identifier: Apache-2.0
// `gradus generate` and `gradus logprobs` as their users run them, on the tiny golden models.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <map>
#include <numeric>
#include <set>

#include "tests/support/files.h"
#include "tests/support/json_rows.h"
#include "tests/support/run_gradus.h"

namespace gradus {
namespace {

using nlohmann::json;
using test::json_lines;
using test::json_rows;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

const std::string kModels = "tests/golden/tiny_models/";

class Generate : public ::testing::Test {
 protected:
  std::string path(const std::string& name) const { return folder_.path() + "/" + name; }

  std::string rows_file(const std::vector<json>& rows) {
    const std::string file = path("rows" + std::to_string(num_files_++) + ".jsonl");
    test::write_file(file, json_lines(rows));
    return file;
  }
  // Standard output of a call that must succeed.
  std::string generate_text(const std::string& model, const std::vector<json>& rows,
                            const std::string& options) {
    const test::Outcome outcome =
        test::run_gradus("generate --model " + model + " --prompts " + rows_file(rows) + " " +
                         options + " 2>" + path("messages"));
    EXPECT_EQ(outcome.exit_code, 0) << test::read_file(path("messages"));
    return outcome.output;
  }
  std::vector<json> generate(const std::string& model, const std::vector<json>& rows,
                             const std::string& options) {
    return json_rows(generate_text(model, rows, options));
  }
  std::vector<json> logprobs(const std::string& model, const std::vector<json>& rows,
                             const std::string& options = "") {
    const test::Outcome outcome = test::run_gradus("logprobs --model " + model + " --input " +
                                                   rows_file(rows) + " " + options);
    EXPECT_EQ(outcome.exit_code, 0);
    return json_rows(outcome.output);
  }
  // Standard error of a call that must end with exit code 2 and write nothing.
  std::string refusal(const std::string& arguments) {
    const test::Outcome outcome = test::run_gradus(arguments + " 2>" + path("messages"));
    EXPECT_EQ(outcome.exit_code, 2) << arguments;
    EXPECT_EQ(outcome.output, "") << arguments;
    return test::read_file(path("messages"));
  }
  // A model directory whose files may be changed.
  std::string copy_of(const std::string& model) {
    std::filesystem::copy(kModels + model, path(model));
    return path(model);
  }

  test::TemporaryFolder folder_;
  int num_files_ = 0;
};

std::vector<int> whole_sequence(const json& row) {
  std::vector<int> ids = row["prompt_ids"];
  ids.insert(ids.end(), row["ids"].begin(), row["ids"].end());
  return ids;
}

TEST_F(Generate, PrintsOneLinePerSampleInOrderForEveryKindOfRow) {
  const std::string model = kModels + "qwen2";
  const json messages = {{{"role", "user"}, {"content", "2 + 2?"}}};
  const std::vector<json> rows =
      generate(model, {{{"text", "hello"}}, {{"ids", {5, 6, 7}}}, {{"messages", messages}}},
               "--num-samples 3 --max-new-tokens 9 --seed 4");
  ASSERT_EQ(rows.size(), 9u);
  std::set<std::vector<int>> responses;
  for (size_t i = 0; i < rows.size(); ++i) {
    const json& row = rows[i];
    EXPECT_EQ(row["prompt_index"], i / 3);
    EXPECT_EQ(row["sample_index"], i % 3);
    const size_t length = row["ids"].size();
    EXPECT_TRUE(row["finish_reason"] == "stop" || (row["finish_reason"] == "length" && length == 9))
        << row;
    EXPECT_GE(length, 1u);
    EXPECT_EQ(row["logprobs"].size(), length);
    EXPECT_EQ(row["sampling_logprobs"], row["logprobs"]) << "nothing is filtered";
    EXPECT_EQ(row["prompt_ids"], rows[i / 3 * 3]["prompt_ids"]);
    responses.insert(row["ids"].get<std::vector<int>>());
  }
  EXPECT_EQ(responses.size(), 9u) << "each sample has a seed of its own";
  EXPECT_THAT(rows[3]["prompt_ids"].get<std::vector<int>>(), ElementsAre(5, 6, 7));
  // The text gets no template, the messages get it with the generation prompt.
  const auto ids_of = [&](const std::string& text) {
    const test::Outcome outcome =
        test::run_gradus("tokenize --model " + model + " --input " + rows_file({{{"text", text}}}));
    return json::parse(outcome.output)["ids"];
  };
  EXPECT_EQ(rows[0]["prompt_ids"], ids_of("hello"));
  EXPECT_EQ(rows[6]["prompt_ids"],
            ids_of("<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n"));
  // `text` is what the ids say that the tokenizer knows (the model's embedding has more rows).
  std::vector<int> known;
  for (const int id : rows[3]["ids"]) {
    if (id < 262) known.push_back(id);
  }
  const test::Outcome decoded = test::run_gradus("tokenize --decode --model " + model +
                                                 " --input " + rows_file({{{"ids", known}}}));
  EXPECT_EQ(json::parse(decoded.output)["text"], rows[3]["text"]);
}

TEST_F(Generate, TakesRowsOfADataSetAndPassesOnWhatRewardsNeed) {
  const std::string model = kModels + "qwen2";
  const json messages = {{{"role", "user"}, {"content", "2 + 2?"}}};
  const json extra = {{"index", 3}};
  const std::vector<json> rows = generate(
      model,
      {{{"messages", messages}},
       {{"prompt", "2 + 2?"}, {"reward_model", {{"ground_truth", "4"}}}, {"extra_info", extra}},
       {{"prompt", messages}, {"ground_truth", "4"}, {"data_source", "sums"}}},
      "--max-new-tokens 2");
  ASSERT_EQ(rows.size(), 3u);
  EXPECT_FALSE(rows[0].contains("ground_truth"));
  for (const size_t i : {1, 2}) {
    EXPECT_EQ(rows[i]["prompt_ids"], rows[0]["prompt_ids"]) << "the model has a chat template";
    EXPECT_EQ(rows[i].value("ground_truth", ""), "4");
  }
  EXPECT_EQ(rows[1]["prompt"], "2 + 2?");
  EXPECT_EQ(rows[1]["extra_info"], extra);
  EXPECT_EQ(rows[2]["data_source"], "sums");
}

TEST_F(Generate, LogprobsAreThoseOfTheScorerBitForBit) {
  for (const std::string name : {"qwen2", "qwen3", "llama3_rope", "llama_linear_rope"}) {
    for (const std::string temperature : {"1", "0.7"}) {
      const std::vector<json> rows =
          generate(kModels + name, {{{"ids", {3, 4, 5, 6}}}, {{"text", "a longer prompt, then"}}},
                   "--num-samples 4 --max-new-tokens 20 --top-k 20 --temperature " + temperature);
      std::vector<json> sequences;
      for (const json& row : rows) sequences.push_back({{"ids", whole_sequence(row)}});
      const std::vector<json> scored =
          logprobs(kModels + name, sequences, "--temperature " + temperature);
      ASSERT_EQ(scored.size(), rows.size());
      for (size_t i = 0; i < rows.size(); ++i) {
        const json& all = scored[i]["logprobs"];
        const size_t first = rows[i]["prompt_ids"].size() - 1;
        ASSERT_EQ(all.size(), first + rows[i]["ids"].size());
        // As texts: what is printed reads back to the same bits.
        EXPECT_EQ(json(std::vector<json>(all.begin() + static_cast<long>(first), all.end())).dump(),
                  rows[i]["logprobs"].dump())
            << name << ", temperature " << temperature << ", row " << i;
      }
    }
  }
}

TEST_F(Generate, BatchCacheAndChunksNeverChangeAByte) {
  const std::string model = kModels + "llama3_rope";
  std::vector<int> long_prompt(100);
  std::iota(long_prompt.begin(), long_prompt.end(), 10);
  const std::vector<json> prompts = {{{"ids", {8}}}, {{"ids", long_prompt}}, {{"text", "abc"}}};
  const std::string options = "--num-samples 30 --max-new-tokens 140 --temperature 0.9 ";
  const std::string expected = generate_text(model, prompts, options);
  EXPECT_EQ(json_rows(expected).size(), 90u);
  EXPECT_EQ(generate_text(model, prompts, options + "--max-batch 1"), expected);
  // One MiB holds fewer pages than 90 sequences need.
  EXPECT_EQ(generate_text(model, prompts,
                          options + "--kv-cache-mib 1 --max-batch 90 --prefill-chunk-tokens 7"),
            expected);
  // A sample depends neither on the other prompts of its place nor on how many are asked for.
  const std::vector<json> all = json_rows(expected);
  const std::vector<json> fewer = generate(
      model, prompts, "--num-samples 2 --max-new-tokens 140 --temperature 0.9 --max-batch 3");
  ASSERT_EQ(fewer.size(), 6u);
  for (size_t i = 0; i < fewer.size(); ++i) EXPECT_EQ(fewer[i], all[i / 2 * 30 + i % 2]);
  EXPECT_NE(generate_text(model, prompts, options + "--seed 1"), expected);
}

TEST_F(Generate, GreedyContinuesAsTransformersDoes) {
  for (const std::string name : {"qwen2", "qwen3", "llama3_rope", "llama_linear_rope"}) {
    const json golden = json::parse(test::read_file(kModels + name + "/expected.json"));
    const json& expected = golden["greedy_after_case_1"];
    const std::vector<json> rows =
        generate(kModels + name, {{{"ids", golden["cases"][1]["ids"]}}},
                 "--greedy --max-new-tokens " + std::to_string(expected.size()));
    ASSERT_EQ(rows.size(), 1u);
    EXPECT_EQ(rows[0]["ids"], expected) << name;
  }
}

TEST_F(Generate, FiltersKeepTheRightTokensAndRenormalise) {
  // The whole distribution after the prompt, one scored row per token of the vocabulary.
  const std::string model = kModels + "qwen2";
  constexpr int kVocabulary = 301;
  std::vector<json> candidates;
  for (int token = 0; token < kVocabulary; ++token) candidates.push_back({{"ids", {9, 4, token}}});
  std::vector<double> logprob;
  for (const json& row : logprobs(model, candidates, "--temperature 2"))
    logprob.push_back(row["logprobs"][1]);
  double total = 0;
  for (const double value : logprob) total += std::exp(value);
  EXPECT_NEAR(total, 1.0, 1e-5);
  std::vector<int> order(kVocabulary);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int a, int b) {
    return logprob[static_cast<size_t>(a)] > logprob[static_cast<size_t>(b)];
  });
  // Temperature, then top-k, top-p of what is left (the crossing token stays), min-p against the
  // largest.
  const auto kept_by = [&](size_t top_k, double top_p, double min_p) {
    std::vector<int> kept(order.begin(), order.begin() + static_cast<long>(top_k));
    double mass = 0, sum = 0;
    for (const int token : kept) mass += std::exp(logprob[static_cast<size_t>(token)]);
    std::set<int> result;
    for (const int token : kept) {
      const double p = std::exp(logprob[static_cast<size_t>(token)]);
      const double largest = std::exp(logprob[static_cast<size_t>(order[0])]);
      if (sum < top_p * mass && p >= min_p * largest) result.insert(token);
      sum += p;
    }
    return result;
  };
  struct Case {
    std::string options;
    size_t top_k;
    double top_p, min_p;
  };
  const std::vector<Case> cases = {{"--top-k 3", 3, 1, 0},
                                   {"--top-p 0.6", kVocabulary, 0.6, 0},
                                   {"--min-p 0.3", kVocabulary, 1, 0.3},
                                   {"--top-k 12 --top-p 0.7 --min-p 0.2", 12, 0.7, 0.2}};
  for (const Case& c : cases) {
    const std::set<int> kept = kept_by(c.top_k, c.top_p, c.min_p);
    ASSERT_GE(kept.size(), 2u) << c.options;
    double mass = 0;
    for (const int token : kept) mass += std::exp(logprob[static_cast<size_t>(token)]);
    std::set<int> seen;
    for (const json& row :
         generate(model, {{{"ids", {9, 4}}}},
                  "--num-samples 400 --max-new-tokens 1 --temperature 2 " + c.options)) {
      const int token = row["ids"][0];
      seen.insert(token);
      ASSERT_TRUE(kept.contains(token)) << c.options << ": token " << token;
      EXPECT_EQ(row["logprobs"][0], logprob[static_cast<size_t>(token)]) << c.options;
      EXPECT_NEAR(row["sampling_logprobs"][0].get<double>(),
                  logprob[static_cast<size_t>(token)] - std::log(mass), 1e-5)
          << c.options;
    }
    // 400 samples miss a token only if it is rare.
    for (const int token : kept) {
      if (std::exp(logprob[static_cast<size_t>(token)]) / mass > 0.03) {
        EXPECT_TRUE(seen.contains(token)) << c.options << ": token " << token;
      }
    }
  }
  for (const json& row : generate(model, {{{"ids", {9, 4}}}}, "--greedy --max-new-tokens 6")) {
    for (const json& value : row["sampling_logprobs"]) EXPECT_EQ(value, 0.0);
    EXPECT_EQ(row["ids"][0], order[0]);
  }
}

TEST_F(Generate, EndsAtStopTextsAndAtAnyOfTheModelsStopIds) {
  const std::string model = copy_of("qwen3");
  const std::vector<json> prompt = {{{"ids", {20, 21}}}};
  const json free = generate(model, prompt, "--max-new-tokens 30 --seed 2")[0];
  ASSERT_EQ(free["finish_reason"], "length") << "the seed must not meet the end for this test";
  // A stop id ends the ids and has its log-prob.
  const int stop = free["ids"][7];
  size_t first = 0;
  while (free["ids"][first] != stop) ++first;
  json config = json::parse(test::read_file(model + "/generation_config.json"));
  config["eos_token_id"] = {2, stop};
  test::write_file(model + "/generation_config.json", config.dump());
  const json stopped = generate(model, prompt, "--max-new-tokens 30 --seed 2")[0];
  EXPECT_EQ(stopped["finish_reason"], "stop");
  EXPECT_EQ(stopped["ids"].size(), first + 1);
  EXPECT_EQ(stopped["ids"].back(), stop);
  EXPECT_EQ(stopped["logprobs"].size(), first + 1);
  EXPECT_EQ(stopped["logprobs"].back(), free["logprobs"][first]);
  // A stop text: an ASCII character of the response that comes late in it.
  config["eos_token_id"] = 2;
  test::write_file(model + "/generation_config.json", config.dump());
  const std::string text = free["text"];
  size_t at = text.size();
  for (size_t i = text.size() / 3; i < text.size() && at == text.size(); ++i) {
    if (std::isalnum(static_cast<unsigned char>(text[i])) != 0 && text.find(text[i]) == i) at = i;
  }
  ASSERT_LT(at, text.size()) << text;
  const json by_text = generate(
      model, prompt, "--max-new-tokens 30 --seed 2 --stop nowhere --stop " + text.substr(at, 1))[0];
  EXPECT_EQ(by_text["finish_reason"], "stop");
  EXPECT_EQ(by_text["text"], text.substr(0, at));
  EXPECT_LT(by_text["ids"].size(), free["ids"].size());
}

TEST_F(Generate, StopsAtTheEndOfTheModelsContext) {
  const std::vector<json> rows = generate(kModels + "qwen2", {{{"ids", std::vector<int>(505, 5)}}},
                                          "--max-new-tokens 50 --greedy");
  EXPECT_EQ(rows[0]["finish_reason"], "length");
  EXPECT_EQ(rows[0]["ids"].size(), 7u);  // a context of 512
}

TEST_F(Generate, NamesTheLineOfABadRowAndWritesNothing) {
  const std::string good = "{\"text\": \"a\"}\n\n";
  const auto message = [&](const std::string& row) {
    test::write_file(path("bad.jsonl"), good + row + "\n" + good);
    return refusal("generate --model " + kModels + "qwen2 --max-new-tokens 2 --prompts " +
                   path("bad.jsonl"));
  };
  const std::string place = "gradus: error: " + path("bad.jsonl") + ":3: ";
  EXPECT_THAT(message("{\"text\": "), HasSubstr(place + "not valid JSON: "));
  EXPECT_EQ(message("[1]"), place + "a row must be a JSON object, got array\n");
  EXPECT_EQ(message("{\"answer\": \"a\"}"),
            place + "a row needs exactly one of 'ids', 'text' and 'messages', this one has 0\n");
  EXPECT_EQ(message(R"({"text": "a", "ids": [4]})"),
            place + "a row needs exactly one of 'ids', 'text' and 'messages', this one has 2\n");
  EXPECT_EQ(message(R"({"text": 3})"), place + "'text' must be a string, got number\n");
  EXPECT_EQ(message(R"({"ids": [4, 301]})"),
            place + "token id 301 is not in the model's vocabulary [0, 301)\n");
  EXPECT_EQ(message(R"({"ids": [4, 18446744073709551615]})"),
            place + "token id 18446744073709551615 is not in the model's vocabulary [0, 301)\n");
  EXPECT_EQ(message(R"({"ids": [4, "5"]})"),
            place + "'ids' must be a list of token ids, found \"5\"\n");
  EXPECT_EQ(message(R"({"ids": []})"), place + "the row has no tokens; give at least one\n");
  EXPECT_EQ(message("{\"text\": \"\xFF\"}"),
            place + "invalid UTF-8 at byte 10; rows are JSON in UTF-8\n");
  EXPECT_THAT(message(R"({"text": "\ud800"})"), HasSubstr(place));
  EXPECT_EQ(message(R"({"messages": "hi"})"),
            place +
                "no 'messages'; expected {\"messages\": [{\"role\": \"...\", \"content\": "
                "\"...\"}], ...}\n");
  EXPECT_THAT(message(R"({"messages": [{"role": "user"}]})"), HasSubstr(place));
  const json too_long = {{"ids", std::vector<int>(512, 5)}};
  EXPECT_EQ(message(too_long.dump()),
            place +
                "the prompt has 512 tokens and leaves no room for a response in the model's "
                "context of 512; shorten it\n");
  EXPECT_THAT(refusal("generate --model " + kModels + "qwen2 --prompts nowhere.jsonl"),
              HasSubstr("nowhere.jsonl: cannot open: No such file or directory"));
  test::write_file(path("bad.jsonl"), good + "{\"messages\": []}\n");
  EXPECT_EQ(refusal("logprobs --model " + kModels + "qwen2 --input " + path("bad.jsonl")),
            place + "a row needs exactly one of 'ids' and 'text', this one has 0\n");
}

TEST_F(Generate, RefusesOptionsOutOfRangeByName) {
  const auto message = [&](const std::string& options) {
    return refusal("generate --model " + kModels + "qwen2 " + options + " </dev/null");
  };
  EXPECT_EQ(message("--temperature 0"),
            "gradus: error: --temperature 0: must be in [0.0001, 10000]; use --greedy for the most "
            "likely token\n");
  EXPECT_THAT(message("--top-p 0"), HasSubstr("--top-p 0: must be in (0, 1]; use 1 to disable"));
  EXPECT_THAT(message("--min-p 2"), HasSubstr("--min-p 2: must be in [0, 1]; use 0 to disable"));
  EXPECT_THAT(message("--top-k -1"), HasSubstr("--top-k -1: must be at least 0"));
  EXPECT_THAT(message("--num-samples 0"), HasSubstr("--num-samples 0: must be at least 1"));
  EXPECT_THAT(message("--max-batch 0"), HasSubstr("--max-batch 0: must be at least 1"));
  EXPECT_THAT(refusal("logprobs --model " + kModels + "qwen2 --temperature nan </dev/null"),
              HasSubstr("--temperature nan: must be in [0.0001, 10000]"));
}

TEST_F(Generate, NoRowsGiveNoLines) {
  EXPECT_EQ(generate_text(kModels + "qwen2", {}, ""), "");
  EXPECT_TRUE(logprobs(kModels + "qwen2", {}).empty());
}

TEST_F(Generate, AFullDiskIsAnError) {
  const std::string rows = rows_file({{{"text", "a"}}});
  const std::string full =
      "cannot write: No space left on device; free some space or choose "
      "another place";
  for (const std::string command :
       {"generate --max-new-tokens 3 --prompts ", "logprobs --input "}) {
    const std::string call = command + rows + " --model " + kModels + "qwen2 ";
    test::Outcome outcome = test::run_gradus(call + "--out /dev/full 2>&1");
    EXPECT_EQ(outcome.exit_code, 2);
    EXPECT_THAT(outcome.output, HasSubstr("gradus: error: /dev/full: " + full));
    outcome = test::run_gradus(call + "2>&1 >/dev/full");
    EXPECT_EQ(outcome.exit_code, 2);
    EXPECT_THAT(outcome.output, HasSubstr("gradus: error: standard output: " + full));
  }
}

TEST_F(Generate, AnInterruptStillWritesEveryRow) {
  const std::string rows = rows_file(std::vector<json>(300, {{"ids", {8, 9}}}));
  const std::string out = path("out.jsonl");
  // The interrupt comes when the first rows are in the file.
  const test::Outcome outcome = test::run_gradus(
      "generate --model " + kModels + "qwen2 --max-batch 1 --max-new-tokens 500 --prompts " + rows +
      " --out " + out + " 2>" + path("messages") +
      " & pid=$!; while kill -0 $pid 2>/dev/null && ! [ -s " + out +
      " ]; do sleep 0.02; done; kill -INT $pid; wait $pid");
  EXPECT_EQ(outcome.exit_code, 0) << test::read_file(path("messages"));
  const std::vector<json> written = json_rows(test::read_file(out));
  ASSERT_EQ(written.size(), 300u);
  EXPECT_NE(written.front()["finish_reason"], "cancelled");
  EXPECT_EQ(written.back()["finish_reason"], "cancelled");
  for (size_t i = 0; i < written.size(); ++i) {
    EXPECT_EQ(written[i]["prompt_index"], i);
    EXPECT_EQ(written[i]["ids"].size(), written[i]["logprobs"].size());
  }
}

TEST_F(Generate, NamesWhatIsWrongWithAModel) {
  EXPECT_THAT(refusal("generate --model nowhere </dev/null"), HasSubstr("nowhere/config.json"));
  const std::string model = copy_of("qwen3");
  const std::string weights = test::read_file(model + "/model.safetensors");
  const std::string rows = rows_file({{{"ids", {8, 9}}}});
  const std::string arguments = "--model " + model + " < " + rows;

  test::write_file(model + "/model.safetensors", weights.substr(0, weights.size() - 100));
  EXPECT_THAT(refusal("generate " + arguments), HasSubstr(model + "/model.safetensors: "));

  // All weights of the last quarter are not a number.
  std::string broken = weights;
  std::fill(broken.end() - static_cast<long>(weights.size() / 4) / 4 * 4, broken.end(), '\xFF');
  test::write_file(model + "/model.safetensors", broken);
  for (const std::string command : {"generate ", "logprobs "}) {
    EXPECT_THAT(refusal(command + arguments),
                HasSubstr(model + "/model.safetensors: tensor 'model.layers.1.self_attn.q_proj."
                                  "weight': 3072 of 3072 values are NaN or infinite; the weights "
                                  "are broken\n"));
  }

  test::write_file(model + "/model.safetensors", weights);
  std::filesystem::remove(model + "/tokenizer.json");
  EXPECT_EQ(refusal("generate --model " + model + " < " + rows_file({{{"text", "a"}}})),
            "gradus: error: standard input:1: " + model +
                "/tokenizer.json: not found; it is needed for 'text' and 'messages' (rows of "
                "'ids' need none)\n");
}

}  // namespace
}  // namespace gradus
