// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/status.h"
#include "data/dataset.h"

// Questions whose answer takes several searches, over a corpus of real facts (docs/multihop.md).
// The second search may be elliptical, "What is its currency?": the same words for every question,
// so that only the history of the search tells which passage is wanted. How often it is, is the
// aliasing dial, and bounds what a retriever that sees the query alone can find.
namespace gradus::data {

struct Passage {
  std::string id;  // "division/PE/Cusco/capital"
  std::string title;
  std::string text;
};

// One search of a question.
struct MultihopSearch {
  std::string query;           // what the search asks: one of the two forms
  std::string explicit_query;  // the form that names what is looked for
  bool is_elliptical = false;
  std::string passage_id;  // the passage that answers it
  std::string answer;      // what it says
  // What it looks for, as the passage's statement has it: "currency" of "Peru". The subject has the
  // answer of search `from` in it; -1: the question names it.
  std::string relation = {}, subject = {};
  int64_t from = -1;
};

// What a passage says, for a reader that is a script: `relation` of `subject` is `value`.
struct MultihopStatement {
  std::string passage_id;
  std::string relation;
  std::string subject;
  std::string value;
};

struct MultihopQuestion {
  std::string kind;  // division, capital, ambiguous, element, airport, comparison
  std::string text;
  std::vector<MultihopSearch> searches;  // in order
  std::vector<std::string> answers;      // the name that passages use first, then aliases
};

struct MultihopOptions {
  double alias = 0.5;  // chance in [0, 1] that a search that can be elliptical is
  uint64_t seed = 0;
  int64_t num_train = 20000;
  int64_t num_dev = 2500;
  int64_t num_test = 2500;
  int64_t num_unseen = 3000;  // of countries that no other question touches
};

enum class MultihopSplit { kTrain, kDev, kTest, kUnseen };
inline constexpr std::array<MultihopSplit, 4> kMultihopSplits = {
    MultihopSplit::kTrain, MultihopSplit::kDev, MultihopSplit::kTest, MultihopSplit::kUnseen};
const char* multihop_split_name(MultihopSplit split);  // "train", "dev", "test", "unseen"

// What a retriever can reach at the most on a list of questions: all searches of all questions
// count alike.
struct MultihopCeilings {
  int64_t num_searches = 0;
  double elliptical_fraction = 0;
  double query_only_recall_at_1 = 0;  // of a ranking that is a function of the query's text
  double query_only_recall_at_3 = 0;
  double history_bits = 0;  // I(passage; history | query): what the history adds, in bits
};
MultihopCeilings multihop_ceilings(const std::vector<MultihopQuestion>& questions);

// The facts, read and joined. Immutable; thread-safe.
class MultihopFacts {
 public:
  // JSON lines as tools/fetch_facts writes them. NotFound for a file that cannot be opened,
  // InvalidArgument with its place for a line that is no fact, or that names an unknown country.
  static Result<std::unique_ptr<MultihopFacts>> load(const std::string& path);
  ~MultihopFacts();

  // All passages; ids are unique. Which wording a passage has depends on its id and `seed`.
  std::vector<Passage> passages(uint64_t seed) const;

  // What those passages say that answer searches; some say two things.
  std::vector<MultihopStatement> statements() const;

  // The questions of a split, no two alike, a function of (facts, options, split). Countries are
  // drawn alike, whatever the number of their divisions. InvalidArgument if the facts hold too few.
  Result<std::vector<MultihopQuestion>> questions(const MultihopOptions& options,
                                                  MultihopSplit split) const;

 private:
  struct Facts;
  explicit MultihopFacts(std::unique_ptr<const Facts> facts);
  std::unique_ptr<const Facts> facts_;
};

// A row of data source "multihop": the searches stand in `extra_info`. The ground truth is the
// answer, or, where there are aliases, the JSON list of all that count as right.
Row multihop_row(const MultihopQuestion& question, MultihopSplit split);

}  // namespace gradus::data
