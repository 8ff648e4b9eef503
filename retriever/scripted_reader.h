// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/status.h"
#include "data/dataset.h"
#include "data/multihop.h"
#include "retriever/corpus.h"

namespace gradus::retriever {

// A question that takes several searches (docs/multihop.md), to be answered over a corpus.
struct SearchQuestion {
  std::string text;
  std::string kind;
  std::vector<data::MultihopSearch> searches;
  std::vector<int64_t> passages;  // document of each search's passage
  std::string ground_truth;       // as in the row: a text, or a JSON list of texts
};

// One search of a trajectory: what was asked, what came, and what the reader took from it.
struct SearchTurn {
  std::string query;
  std::vector<int64_t> documents;  // best first
  std::string answer;
};

// Stands for the language model around a retriever (the environment of HARR, arXiv:2602.03645,
// section 3.1): asks the question's searches one after the other, each about what it took from the
// earlier ones, and answers with what it found. Deterministic, so that nothing but the retrieval
// decides the reward. It knows what each passage says (statements.jsonl of `gradus data make
// multihop`), and of a search what it looks for, but not where that stands. Immutable;
// thread-safe.
class ScriptedReader {
 public:
  // NotFound for a file that cannot be opened; InvalidArgument naming the line that is no
  // statement, or the passage that the corpus lacks. `corpus` is read through once.
  static Result<ScriptedReader> load(const std::string& statements_path, const Corpus& corpus);

  // A row of data source multihop. InvalidArgument with the row's place if it has no searches, or
  // one whose passage is not in the corpus.
  Result<SearchQuestion> question(const data::Row& row) const;

  // What is asked after `turns`; there is a search left. An explicit query names what earlier turns
  // took, right or wrong; an elliptical one is the same whatever they took.
  std::string query(const SearchQuestion& question, std::span<const SearchTurn> turns) const;

  // What it takes from the documents of the search after `turns`: the value that the first document
  // states of what is looked for, whichever it is of them; without one, what the first document
  // states of something else (a wrong answer of the right kind), or its title.
  std::string read(const SearchQuestion& question, std::span<const SearchTurn> turns,
                   std::span<const int64_t> documents) const;

  // The answer to the question, all searches done.
  std::string answer(const SearchQuestion& question, std::span<const SearchTurn> turns) const;

 private:
  struct Statement {
    std::string relation, subject, value;
  };
  std::map<std::string, int64_t, std::less<>> document_of_;  // by the passage's id
  std::vector<std::vector<Statement>> statements_;           // by document
  std::vector<std::string> titles_;
};

}  // namespace gradus::retriever
