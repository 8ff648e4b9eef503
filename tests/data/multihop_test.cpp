// SPDX-License-Identifier: Apache-2.0
#include "data/multihop.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "tests/support/files.h"

namespace gradus::data {
namespace {

using ::testing::HasSubstr;

constexpr int kNumCountries = 40;

// 40 countries; country i has 8 divisions, but country 0 has 200; "Central" is in every fourth.
std::string facts_text() {
  std::string text;
  for (int i = 0; i < kNumCountries; ++i) {
    text += fmt::format(
        R"({{"kind":"country","code":"C{0}","name":"Land {0}","aliases":["L{0}"],"capital":"Town {0}","currency":"Coin {0}","currency_code":"K{0}","language":"Tongue {0}","language_code":"t{0}","part":"Part {1}","population":{2}}})"
        "\n",
        i, i % 4, 1000000 + 250000 * i);
  }
  for (int i = 0; i < kNumCountries; ++i) {
    for (int d = 0; d < (i == 0 ? 200 : 8); ++d) {
      text += fmt::format(
          R"({{"kind":"division","country":"C{0}","type":"oblast","name":"Shire {0}.{1}","capital":"Burgh {0}.{1}"}})"
          "\n",
          i, d);
    }
    if (i % 4 == 0) {
      text += fmt::format(
          R"({{"kind":"division","country":"C{0}","type":"region","name":"Central","capital":"Middle {0}"}})"
          "\n",
          i);
    }
    text += fmt::format(
        R"({{"kind":"airport","code":"A{0}","name":"Field {0}","country":"C{0}","city":"Town {0}"}})"
        "\n"
        R"({{"kind":"element","symbol":"E{0}","name":"Metal {0}","country":"C{0}","year":"1800"}})"
        "\n",
        i);
  }
  return text + R"({"kind":"text","title":"run","text":"run: to go fast"})" + "\n";
}

class Multihop : public ::testing::Test {
 protected:
  void SetUp() override {
    std::ofstream(path()) << facts_text();
    auto facts = MultihopFacts::load(path());
    ASSERT_TRUE(facts.ok()) << facts.status().message();
    facts_ = std::move(*facts);
  }
  std::string path() const { return folder_.path() + "/facts.jsonl"; }
  std::vector<MultihopQuestion> questions(MultihopSplit split, double alias = 0.5) const {
    auto made = facts_->questions({.alias = alias,
                                   .seed = 3,
                                   .num_train = 1000,
                                   .num_dev = 100,
                                   .num_test = 100,
                                   .num_unseen = 100},
                                  split);
    EXPECT_TRUE(made.ok()) << made.status().message();
    return made.ok() ? std::move(*made) : std::vector<MultihopQuestion>{};
  }

  test::TemporaryFolder folder_;
  std::unique_ptr<MultihopFacts> facts_;
};

// "C7" of "country/C7/part", "division/C7/..."; of airports and elements by their number.
std::string country_of(const std::string& passage_id) {
  if (passage_id.starts_with("airport/A")) return "C" + passage_id.substr(9);
  if (passage_id.starts_with("element/E")) return "C" + passage_id.substr(9);
  const size_t begin = passage_id.find('/') + 1;
  return passage_id.substr(begin, passage_id.find('/', begin) - begin);
}

TEST_F(Multihop, EverySearchIsAnsweredByItsPassage) {
  std::map<std::string, std::string> text_of;
  for (const Passage& passage : facts_->passages(3)) {
    EXPECT_TRUE(text_of.emplace(passage.id, passage.text).second) << passage.id;
    EXPECT_FALSE(passage.title.empty());
  }
  // 5 of each country, 2 of each division, one of each airport, element and text.
  EXPECT_EQ(text_of.size(), 40 * 5 + 2 * (200 + 39 * 8 + 10) + 40 + 40 + 1);
  std::set<std::string> kinds;
  for (const MultihopSplit split : kMultihopSplits) {
    for (const MultihopQuestion& question : questions(split)) {
      kinds.insert(question.kind);
      ASSERT_FALSE(question.answers.empty());
      for (const MultihopSearch& search : question.searches) {
        ASSERT_TRUE(text_of.contains(search.passage_id)) << search.passage_id;
        EXPECT_THAT(text_of[search.passage_id], HasSubstr(search.answer)) << search.passage_id;
        EXPECT_EQ(search.is_elliptical, search.query != search.explicit_query);
      }
      // What is asked for is what the last search finds, but for a comparison.
      if (question.kind != "comparison") {
        EXPECT_EQ(question.answers[0], question.searches.back().answer) << question.text;
      }
    }
  }
  EXPECT_EQ(kinds.size(), 6u);
}

TEST_F(Multihop, ComparisonAnswersWithTheCountryOfMorePeople) {
  int num_comparisons = 0;
  for (const MultihopQuestion& question : questions(MultihopSplit::kTrain)) {
    if (question.kind != "comparison") continue;
    ++num_comparisons;
    ASSERT_EQ(question.searches.size(), 4u);
    // Country i has a population that grows with i.
    const int left = std::stoi(country_of(question.searches[1].passage_id).substr(1));
    const int right = std::stoi(country_of(question.searches[3].passage_id).substr(1));
    EXPECT_EQ(question.answers[0], fmt::format("Land {}", std::max(left, right)));
    EXPECT_EQ(question.answers[1], fmt::format("L{}", std::max(left, right)));
  }
  EXPECT_GT(num_comparisons, 50);
}

TEST_F(Multihop, SplitsShareNoEntityAndUnseenCountriesAreInNoOther) {
  std::map<std::string, std::set<std::string>> countries, entities;
  for (const MultihopSplit split : kMultihopSplits) {
    const std::string name = multihop_split_name(split);
    for (const MultihopQuestion& question : questions(split)) {
      for (const MultihopSearch& search : question.searches) {
        countries[name].insert(country_of(search.passage_id));
        if (!search.passage_id.starts_with("country/")) entities[name].insert(search.passage_id);
      }
    }
  }
  EXPECT_EQ(countries["unseen"].size(), 6u);  // 15 % of 40
  const auto expect_disjoint = [](const std::set<std::string>& a, const std::set<std::string>& b) {
    for (const std::string& name : a) EXPECT_FALSE(b.contains(name)) << name;
  };
  for (const char* other : {"train", "dev", "test"}) {
    expect_disjoint(countries["unseen"], countries[other]);
  }
  expect_disjoint(entities["train"], entities["dev"]);
  expect_disjoint(entities["train"], entities["test"]);
  expect_disjoint(entities["dev"], entities["test"]);
}

TEST_F(Multihop, DialSaysHowOftenASearchIsElliptical) {
  const auto fraction = [&](double alias) {
    int num_open = 0, num_elliptical = 0;
    for (const MultihopQuestion& question : questions(MultihopSplit::kTrain, alias)) {
      for (const MultihopSearch& search : question.searches) {
        const bool can_be = search.passage_id.starts_with("country/");
        num_open += can_be ? 1 : 0;
        num_elliptical += can_be && search.is_elliptical ? 1 : 0;
        // An elliptical search must not name the country.
        EXPECT_FALSE(search.is_elliptical && search.query.find("Land") != std::string::npos);
      }
    }
    return static_cast<double>(num_elliptical) / num_open;
  };
  EXPECT_EQ(fraction(0), 0);
  EXPECT_EQ(fraction(1), 1);
  EXPECT_NEAR(fraction(0.25), 0.25, 0.05);  // about 1,000 draws: 3.6 standard deviations
}

TEST_F(Multihop, CountriesAreDrawnAlikeWhateverTheirSize) {
  std::map<std::string, int> count;
  int total = 0;
  for (const MultihopQuestion& question : questions(MultihopSplit::kTrain)) {
    if (question.kind != "division") continue;
    ++count[country_of(question.searches[0].passage_id)];
    ++total;
  }
  // Country 0 has 200 of 512 divisions; by divisions it would have two fifths of the questions.
  EXPECT_LT(count["C0"], total / 8);
  EXPECT_GT(count.size(), 30u);
}

TEST_F(Multihop, QuestionsAreAFunctionOfTheSeedAndDiffer) {
  const auto texts = [&](uint64_t seed) {
    std::vector<std::string> all;
    const auto made = facts_->questions({.seed = seed, .num_train = 300}, MultihopSplit::kTrain);
    for (const MultihopQuestion& question : *made) all.push_back(question.text);
    return all;
  };
  EXPECT_EQ(texts(1), texts(1));
  EXPECT_NE(texts(1), texts(2));
  const auto once = texts(1);
  EXPECT_EQ(std::set(once.begin(), once.end()).size(), once.size());
}

// Two queries: one always of passage a, one of a, b, b, c, d (the mass of three is 4 of 5).
TEST(MultihopCeilings, AreThoseOfAListPerQuery) {
  std::vector<MultihopQuestion> questions(1);
  for (const char* passage : {"a", "b", "b", "c", "d"}) {
    questions[0].searches.push_back({"What is its x?", "What is the x of y?", true, passage, ""});
  }
  questions.push_back(questions[0]);
  questions[1].searches = {{"q", "q", false, "a", ""}, {"q", "q", false, "a", ""}};
  const MultihopCeilings ceilings = multihop_ceilings(questions);
  EXPECT_EQ(ceilings.num_searches, 7);
  EXPECT_DOUBLE_EQ(ceilings.elliptical_fraction, 5.0 / 7);
  EXPECT_DOUBLE_EQ(ceilings.query_only_recall_at_1, (2 + 2) / 7.0);
  EXPECT_DOUBLE_EQ(ceilings.query_only_recall_at_3, (4 + 2) / 7.0);
  const double entropy = -(0.4 * std::log2(0.4) + 3 * 0.2 * std::log2(0.2));
  EXPECT_DOUBLE_EQ(ceilings.history_bits, 5 * entropy / 7);
}

TEST_F(Multihop, RowHoldsTheSearchesAndEveryRightAnswer) {
  const MultihopQuestion question{
      "division",
      "What is the currency of the country in which the oblast Shire 1.2 lies?",
      {{"Which country does Shire 1.2 belong to?", "Which country does Shire 1.2 belong to?", false,
        "division/C1/Shire 1.2/location", "Land 1"}},
      {"Coin 1", "K1"}};
  const Row row = multihop_row(question, MultihopSplit::kDev);
  EXPECT_EQ(row.data_source, "multihop");
  EXPECT_EQ(row.ground_truth, R"(["Coin 1","K1"])");
  const auto extra = nlohmann::json::parse(row.extra_info);
  EXPECT_EQ(extra["split"], "dev");
  EXPECT_EQ(extra["searches"][0]["passage"], "division/C1/Shire 1.2/location");
}

TEST_F(Multihop, BadFactsAreNamedByTheirLine) {
  const auto message = [&](const std::string& line) {
    std::ofstream(path()) << facts_text().substr(0, facts_text().find('\n') + 1) << line << "\n";
    const auto facts = MultihopFacts::load(path());
    EXPECT_FALSE(facts.ok());
    return facts.status().message().substr(path().size());
  };
  EXPECT_EQ(message(R"({"kind":"river"})"), ":2: country: missing; expected a text");
  EXPECT_EQ(message(R"({"kind":"airport","country":"C9"})"),
            ":2: country: 'C9' is the code of no country above");
  EXPECT_EQ(message(R"({"kind":"river","country":"C0"})"),
            ":2: kind: 'river'; expected country, division, subdivision, airport, element or text");
  EXPECT_EQ(message(R"({"kind":"text","title":7,"text":"x"})"), ":2: title: 7; expected a text");
  EXPECT_THAT(message("{"), HasSubstr(":2"));
}

TEST_F(Multihop, TooFewFactsAreAnErrorNotARepetition) {
  std::ofstream(path()) << facts_text().substr(0, facts_text().find('\n') + 1)
                        << R"({"kind":"division","country":"C0","type":"shire","name":"S",)"
                        << R"("capital":"B"})"
                        << "\n";
  const auto facts = MultihopFacts::load(path());
  ASSERT_TRUE(facts.ok()) << facts.status().message();
  // Five relations, each asked of the division and of its capital; in another split there is none.
  int64_t num_questions = 0;
  for (const MultihopSplit split : kMultihopSplits) {
    if ((*facts)
            ->questions({.num_train = 10, .num_dev = 10, .num_test = 10, .num_unseen = 10}, split)
            .ok()) {
      num_questions += 10;
      continue;
    }
    const auto made =
        (*facts)->questions({.num_train = 1, .num_dev = 1, .num_test = 1, .num_unseen = 1}, split);
    EXPECT_THAT(made.status().message(), HasSubstr("only 0 different questions for"));
  }
  EXPECT_EQ(num_questions, 10);
  for (const MultihopSplit split : kMultihopSplits) {
    const auto made = (*facts)->questions(
        {.num_train = 11, .num_dev = 11, .num_test = 11, .num_unseen = 11}, split);
    EXPECT_THAT(made.status().message(), HasSubstr("expected 11: ask for fewer"));
  }
}

}  // namespace
}  // namespace gradus::data
