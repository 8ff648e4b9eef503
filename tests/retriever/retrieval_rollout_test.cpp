// SPDX-License-Identifier: Apache-2.0
#include "retriever/retrieval_rollout.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "retriever/policy.h"
#include "tests/support/files.h"

namespace gradus::retriever {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Three countries, each with one division, and a passage that says nothing.
struct Fact {
  const char *id, *title, *text, *relation, *subject, *value;
};
constexpr Fact kFacts[] = {
    {"c/PE/money", "Peru: currency", "People in Peru pay with the sol", "currency", "Peru", "sol"},
    {"c/CL/money", "Chile: currency", "Money of Chile: the peso", "currency", "Chile", "peso"},
    {"c/PE/people", "Peru: population", "About 31.9 million people", "population", "Peru",
     "31.9 million"},
    {"c/CL/people", "Chile: population", "About 900 thousand", "population", "Chile",
     "900 thousand"},
    {"d/Cusco", "Cusco: region", "Cusco belongs to Peru", "country", "Cusco", "Peru"},
    {"d/Maule", "Maule: region", "Maule is a region of Chile", "country", "Maule", "Chile"},
    {"t/run", "run (verb)", "run: to go fast", "", "", ""}};
enum { kPeruMoney, kChileMoney, kPeruPeople, kChilePeople, kCusco, kMaule, kRun };

data::Row row_of(const std::string& kind, const std::vector<data::MultihopSearch>& searches,
                 const std::string& question = "What is the currency of Cusco's country?") {
  return data::multihop_row({kind, question, searches, {"sol", "PEN"}},
                            data::MultihopSplit::kTrain);
}

const std::vector<data::MultihopSearch> kTwoHops = {
    {"Which country does Cusco belong to?", "Which country does Cusco belong to?", false, "d/Cusco",
     "Peru", "country", "Cusco", -1},
    {"What is the currency of Peru?", "What is the currency of Peru?", false, "c/PE/money", "sol",
     "currency", "Peru", 0}};

class RetrievalRollout : public ::testing::Test {
 protected:
  void SetUp() override {
    std::vector<std::string> texts = {"which country does belong to what is the currency of its ?"};
    std::string statements;
    for (const Fact& fact : kFacts) {
      texts.push_back(std::string(fact.title) + " " + fact.text);
      if (*fact.relation == '\0') continue;
      statements += nlohmann::json{{"passage", fact.id},
                                   {"relation", fact.relation},
                                   {"subject", fact.subject},
                                   {"value", fact.value}}
                        .dump() +
                    "\n";
    }
    test::write_file(path("statements.jsonl"), statements);
    std::filesystem::create_directories(path("encoder"));
    ASSERT_TRUE(Embedder::write_new(path("encoder"), texts, {.seed = 5}).ok());
    embedder_ = std::move(Embedder::load(path("encoder"))).value();
    const Status built =
        build_index_folder(path("index"),
                           [](const std::function<Status(const Passage&)>& take) -> Status {
                             for (const Fact& fact : kFacts) {
                               GRADUS_RETURN_IF_ERROR(take({fact.id, fact.title, fact.text}));
                             }
                             return {};
                           },
                           *embedder_, {.model_dir = path("encoder")});
    ASSERT_TRUE(built.ok()) << built.message();
    index_ = std::make_unique<IndexFolder>(std::move(IndexFolder::open(path("index"))).value());
    auto reader = ScriptedReader::load(path("statements.jsonl"), index_->corpus());
    ASSERT_TRUE(reader.ok()) << reader.status().message();
    reader_ = std::make_unique<ScriptedReader>(std::move(*reader));
  }
  std::string path(const std::string& name) const { return folder_.path() + "/" + name; }
  SearchQuestion question(const data::Row& row) const {
    return std::move(reader_->question(row)).value();
  }

  test::TemporaryFolder folder_;
  std::unique_ptr<Embedder> embedder_;
  std::unique_ptr<IndexFolder> index_;
  std::unique_ptr<ScriptedReader> reader_;
};

TEST_F(RetrievalRollout, ReaderFindsTheSentenceWhereverItIsInTheList) {
  const SearchQuestion asked = question(row_of("division", kTwoHops));
  EXPECT_THAT(asked.passages, ElementsAre(kCusco, kPeruMoney));
  EXPECT_EQ(asked.ground_truth, R"(["sol","PEN"])");
  EXPECT_EQ(reader_->query(asked, {}), "Which country does Cusco belong to?");
  EXPECT_EQ(reader_->read(asked, {}, std::vector<int64_t>{kRun, kMaule, kCusco}), "Peru");
  std::vector<SearchTurn> turns = {{"", {kCusco}, "Peru"}};
  EXPECT_EQ(reader_->query(asked, turns), "What is the currency of Peru?");
  turns.push_back({"", {kPeruMoney}, "sol"});
  EXPECT_EQ(reader_->answer(asked, turns), "sol");
}

TEST_F(RetrievalRollout, ReaderIsMisledByTheFirstDocument) {
  const SearchQuestion asked = question(row_of("division", kTwoHops));
  // Another's country, a title without its kind, nothing.
  EXPECT_EQ(reader_->read(asked, {}, std::vector<int64_t>{kMaule, kPeruMoney}), "Chile");
  EXPECT_EQ(reader_->read(asked, {}, std::vector<int64_t>{kPeruMoney, kMaule}), "Peru");
  EXPECT_EQ(reader_->read(asked, {}, std::vector<int64_t>{kRun}), "run");
  EXPECT_EQ(reader_->read(asked, {}, {}), "");
  // From then on it asks about Chile and takes what is said of Chile, right for it, wrong for us.
  const std::vector<SearchTurn> turns = {{"", {kMaule}, "Chile"}};
  EXPECT_EQ(reader_->query(asked, turns), "What is the currency of Chile?");
  EXPECT_EQ(reader_->read(asked, turns, std::vector<int64_t>{kPeruMoney, kChileMoney}), "peso");
}

TEST_F(RetrievalRollout, EllipticalQueryNamesNothing) {
  std::vector<data::MultihopSearch> searches = kTwoHops;
  searches[1].query = "What is its currency?";
  const SearchQuestion asked = question(row_of("division", searches));
  EXPECT_TRUE(asked.searches[1].is_elliptical);
  const std::vector<SearchTurn> right = {{"", {}, "Peru"}}, wrong = {{"", {}, "Chile"}};
  EXPECT_EQ(reader_->query(asked, right), "What is its currency?");
  EXPECT_EQ(reader_->query(asked, wrong), "What is its currency?");
  EXPECT_EQ(reader_->read(asked, right, std::vector<int64_t>{kChileMoney, kPeruMoney}), "sol");
}

TEST_F(RetrievalRollout, ReaderComparesWhatItFound) {
  std::vector<data::MultihopSearch> searches = {kTwoHops[0], kTwoHops[1], kTwoHops[0], kTwoHops[1]};
  searches[1].relation = searches[3].relation = "population";
  searches[3].from = 2;
  const SearchQuestion asked = question(row_of("comparison", searches));
  const auto answer = [&](const std::string& left, const std::string& right) {
    const std::vector<SearchTurn> turns = {
        {"", {}, "Peru"}, {"", {}, left}, {"", {}, "Chile"}, {"", {}, right}};
    return reader_->answer(asked, turns);
  };
  EXPECT_EQ(answer("31.9 million", "900 thousand"), "Peru");
  EXPECT_EQ(answer("900 thousand", "31.9 million"), "Chile");
  EXPECT_EQ(answer("1.41 billion", "950.0 million"), "Peru");
  EXPECT_EQ(answer("Cusco", "900 thousand"), "Chile") << "no number is no people";
}

TEST_F(RetrievalRollout, BadRowsAndStatementsAreNamed) {
  const auto message = [&](const data::Row& row) {
    return reader_->question(row).status().message();
  };
  data::Row row = row_of("division", kTwoHops);
  row.source_file = "train.jsonl";
  row.line = 4;
  row.extra_info = R"({"kind":"division"})";
  EXPECT_EQ(message(row),
            "train.jsonl:4: extra_info: 'searches' is missing; expected a list of searches");
  std::vector<data::MultihopSearch> searches = kTwoHops;
  searches[1].from = 1;
  EXPECT_THAT(message(row_of("division", searches)),
              HasSubstr("'from' is 1; expected the number of an earlier search, or -1"));
  searches = kTwoHops;
  searches[0].passage_id = "d/Lima";
  EXPECT_THAT(message(row_of("division", searches)),
              HasSubstr("passage 'd/Lima' is not in the corpus of the index"));
  EXPECT_THAT(message(row_of("comparison", kTwoHops)),
              HasSubstr("a comparison has 2 searches; expected 4"));
  test::write_file(path("bad.jsonl"), R"({"passage":"c/PE/money","relation":"currency"})");
  EXPECT_EQ(ScriptedReader::load(path("bad.jsonl"), index_->corpus()).status().message(),
            path("bad.jsonl") + ":1: 'subject' is missing; expected a text");
  test::write_file(path("bad.jsonl"),
                   R"({"passage":"x","relation":"currency","subject":"a","value":"b"})");
  EXPECT_EQ(ScriptedReader::load(path("bad.jsonl"), index_->corpus()).status().message(),
            path("bad.jsonl") +
                ":1: passage 'x' is not in the corpus; build the index of the corpus that was "
                "made with these statements");
  EXPECT_EQ(ScriptedReader::load(path("none"), index_->corpus()).status().message(),
            path("none") +
                ": cannot be opened; expected the statements.jsonl that `gradus data make "
                "multihop` writes");
}

TEST_F(RetrievalRollout, StateHoldsQueryAnswersAndQuestion) {
  const std::vector<SearchTurn> turns = {{"", {}, "Peru"}, {"", {}, "sol"}};
  const auto state = [&](bool with_history) {
    return *state_tokens(*embedder_, "What is its currency?", turns, "Cusco belongs", with_history);
  };
  EXPECT_EQ(state(true),
            *embedder_->tokenize("What is its currency? | sol | Peru | Cusco belongs"));
  EXPECT_EQ(state(false), *embedder_->tokenize("What is its currency?"));
  EXPECT_EQ(*state_tokens(*embedder_, "currency", {}, "Cusco", true),
            *embedder_->tokenize("currency | Cusco"));
}

// The encoder takes 96 tokens: 35 of the query, 23 of the question, and of the answers the oldest
// go.
TEST_F(RetrievalRollout, TooLongAStateKeepsQueryQuestionAndTheNewestAnswers) {
  const auto repeated = [](const std::string& word, int count) {
    std::string text = word;
    for (int i = 1; i < count; ++i) text += " " + word;
    return text;
  };
  std::vector<SearchTurn> turns = {{"", {}, repeated("chile", 20)}};
  for (int i = 0; i < 3; ++i) turns.push_back({"", {}, repeated("peru", 9)});
  const std::vector<int32_t> state =
      *state_tokens(*embedder_, repeated("currency", 500), turns, repeated("cusco", 500), true);
  EXPECT_LE(static_cast<int64_t>(state.size()), embedder_->max_tokens());
  const auto count = [&](const std::string& word) {
    return std::ranges::count(state, (*embedder_->tokenize(word))[1]);
  };
  EXPECT_EQ(count("currency"), 35);
  EXPECT_EQ(count("cusco"), 23);
  EXPECT_EQ(count("peru"), 27);
  EXPECT_EQ(count("chile"), 0);
}

// A trajectory is a function of its seed, its question and the weights: not of its company.
TEST_F(RetrievalRollout, TrajectoriesDoNotDependOnTheBatchAndReplayToTheBit) {
  std::vector<data::MultihopSearch> searches = kTwoHops;
  searches[1].query = "What is its currency?";
  const SearchQuestion a = question(row_of("division", kTwoHops)),
                       b = question(row_of("division", searches, "And its money?"));
  const std::vector<const SearchQuestion*> both = {&a, &b};
  const std::vector<uint64_t> seeds = {1, 2, 3, 4, 5, 6, 7, 8};
  const RetrievalOptions options = {.pool_size = 5, .list_length = 2};
  const auto all = *sample_retrievals(*embedder_, *index_, *reader_, both, 4, seeds, options);
  ASSERT_EQ(all.size(), 8u);
  std::set<std::vector<int64_t>> lists;
  for (size_t i = 0; i < all.size(); ++i) {
    const std::vector<const SearchQuestion*> one = {both[i / 4]};
    const auto alone =
        *sample_retrievals(*embedder_, *index_, *reader_, one, 1, {&seeds[i], 1}, options);
    ASSERT_EQ(alone[0].turns.size(), 2u);
    for (size_t h = 0; h < 2; ++h) {
      EXPECT_EQ(alone[0].turns[h].documents, all[i].turns[h].documents);
      EXPECT_EQ(alone[0].steps[h].pool, all[i].steps[h].pool);
      EXPECT_EQ(alone[0].steps[h].logprob, all[i].steps[h].logprob);
      lists.insert(all[i].turns[h].documents);
    }
  }
  EXPECT_GT(lists.size(), 4u) << "draws differ";
  // What was recorded is what the trainer makes of it.
  std::vector<RetrievalStep> steps;
  for (const RetrievalTrajectory& trajectory : all) {
    for (const RetrievalStep& step : trajectory.steps) {
      steps.push_back(step);
      steps.back().advantage = static_cast<double>(steps.size());
    }
  }
  QueryTrainer trainer(*embedder_, {});
  const QueryUpdate update = *trainer.update(steps, index_->vectors());
  EXPECT_EQ(update.max_abs_log_ratio, 0);
  EXPECT_EQ(update.num_steps, 16);
  EXPECT_GT(update.grad_norm, 0);
}

TEST_F(RetrievalRollout, GreedyTakesTheNearestAndDrawsNothing) {
  const SearchQuestion asked = question(row_of("division", kTwoHops));
  const std::vector<const SearchQuestion*> one = {&asked};
  const auto of_seed = [&](uint64_t seed) {
    return (*sample_retrievals(*embedder_, *index_, *reader_, one, 1, {&seed, 1},
                               {.list_length = 2, .greedy = true}))[0];
  };
  const RetrievalTrajectory trajectory = of_seed(1);
  const auto query = embedder_->embed_tokens({&trajectory.steps[0].token_ids, 1});
  EXPECT_EQ(trajectory.turns[0].documents, index_->search(query, 2)->ids);
  EXPECT_EQ(of_seed(2).turns[0].documents, trajectory.turns[0].documents);
}

TEST_F(RetrievalRollout, SavedEncoderGivesTheSameVectors) {
  std::filesystem::create_directories(path("copy"));
  ASSERT_TRUE(embedder_->save(path("copy")).ok());
  const auto copy = std::move(Embedder::load(path("copy"))).value();
  const std::vector<std::string> texts = {"Peru: currency", "Zürich"};
  EXPECT_EQ(*copy->embed(texts), *embedder_->embed(texts));
  EXPECT_EQ(copy->hash(), embedder_->hash());
}

}  // namespace
}  // namespace gradus::retriever
