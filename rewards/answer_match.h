// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>
#include <vector>

// Answers in words against those that count as right, as the scripts of SQuAD (Rajpurkar et al.
// 2016, arXiv:1606.05250) and HotpotQA (Yang et al. 2018, arXiv:1809.09600) score them: both sides
// in lower case, without ASCII punctuation and the articles a, an, the, words one space apart. Pure
// functions; thread-safe.
namespace gradus::rewards {

// The answers of a ground truth, normalised: a JSON list of texts, else the text itself. Those that
// normalise to nothing are left out.
std::vector<std::string> normalised_golds(const std::string& ground_truth);

// `answer` and `golds` are normalised, see normalised_golds and normalised_answer.
bool exact_match(std::string_view answer, const std::vector<std::string>& golds);

// Harmonic mean of precision and recall of words, as multisets; the best over the golds. 0 without
// a common word.
double answer_f1(std::string_view answer, const std::vector<std::string>& golds);

// The same, but a gold or answer that is yes, no or noanswer matches itself alone: HotpotQA's F1.
double hotpot_f1(std::string_view answer, const std::vector<std::string>& golds);

// Of one answer as it was written.
struct AnswerScores {
  double em = 0;  // 0 or 1
  double f1 = 0;  // hotpot_f1
};
AnswerScores score_answer(std::string_view answer, const std::vector<std::string>& golds);

}  // namespace gradus::rewards
