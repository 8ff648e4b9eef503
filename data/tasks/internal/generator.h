// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/rng.h"

// How the built-in tasks look inside: a table of generators, each a function from dials and random
// numbers to a problem. Everything is integer arithmetic, so rows are the same on every host.
namespace gradus::data {

struct Problem {
  std::string question;       // in words, without the instruction how to answer
  std::string compact;        // the same for a character model, ending in "="
  std::string answer;         // what a right response ends in
  std::string ground_truth;   // what the verifier needs; empty: the answer
  std::string steps;          // worked steps in lines, without the answer line
  std::string compact_steps;  // worked steps parted by ";", ending in the answer
  std::string key;  // identity, equal for problems that differ in order only; empty: compact
};

// A whole-number option.
struct Dial {
  const char* name;
  int64_t default_value;
  int64_t low;
  int64_t high;
  const char* help;
};

struct Generator {
  const char* name;
  const char* summary;
  const char* ability;
  const char* answer_form;  // stands after "Answer:" in the instruction
  const char* reward;
  const char* reward_options;
  std::vector<Dial> dials;
  // Nothing when the draw led to no problem; the caller draws again with other numbers.
  std::optional<Problem> (*make)(std::span<const int64_t> dials, RngSequence& random);
  // What is wrong with dials that are each in range, or an empty text; may be null.
  std::string (*contradiction)(std::span<const int64_t> dials) = nullptr;
};

std::vector<Generator> arithmetic_generators();
std::vector<Generator> number_list_generators();
std::vector<Generator> word_generators();
Generator countdown_generator();

int64_t power_of_10(int64_t exponent);  // exponent in [0, 18]

// "3, 4, 5" and so on.
std::string join_numbers(std::span<const int64_t> numbers, const char* separator);

template <class T>
void shuffle(std::vector<T>& items, RngSequence& random) {
  for (size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[random.below(i)]);
}

}  // namespace gradus::data
