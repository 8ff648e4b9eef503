// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <string_view>

#include "data/tasks/internal/generator.h"

// Tasks about the letters of words.
namespace gradus::data {
namespace {

constexpr auto kWords = std::to_array<std::string_view>(
    {"anchor",   "apple",    "autumn",   "balloon",  "banana",   "barrel",  "basket",   "beetle",
     "blanket",  "blossom",  "bottle",   "branch",   "bridge",   "bubble",  "butter",   "button",
     "cabbage",  "camera",   "candle",   "canyon",   "carpet",   "castle",  "cellar",   "cheese",
     "cherry",   "chimney",  "cinnamon", "circle",   "coffee",   "copper",  "corner",   "cotton",
     "cricket",  "crystal",  "curtain",  "daffodil", "desert",   "dinner",  "dolphin",  "donkey",
     "dragon",   "drawer",   "eagle",    "elephant", "engine",   "evening", "fabric",   "feather",
     "fiddle",   "finger",   "flower",   "forest",   "fountain", "fossil",  "garden",   "ginger",
     "glacier",  "goblet",   "grammar",  "granite",  "guitar",   "hammer",  "harbour",  "harvest",
     "hazelnut", "helmet",   "hollow",   "honey",    "horizon",  "iceberg", "island",   "ivory",
     "jacket",   "jasmine",  "journey",  "jungle",   "kettle",   "kitchen", "kitten",   "ladder",
     "lantern",  "lavender", "leather",  "lemon",    "lentil",   "letter",  "library",  "lizard",
     "magnet",   "mammoth",  "marble",   "meadow",   "melody",   "minute",  "mirror",   "monsoon",
     "mountain", "museum",   "mustard",  "napkin",   "needle",   "nettle",  "notebook", "nutmeg",
     "ocean",    "olive",    "orange",   "orchard",  "otter",    "oyster",  "paddle",   "palace",
     "parrot",   "pebble",   "pepper",   "piano",    "pillow",   "planet",  "pocket",   "potato",
     "pottery",  "pumpkin",  "puzzle",   "quarry",   "quilt",    "rabbit",  "raccoon",  "rainbow",
     "ribbon",   "river",    "rocket",   "saddle",   "sailor",   "salmon",  "sandal",   "satellite",
     "scissors", "season",   "shadow",   "silver",   "sparrow",  "spinach", "squirrel", "stream",
     "summer",   "sunset",   "tablet",   "teapot",   "temple",   "thimble", "thunder",  "tomato",
     "trumpet",  "tunnel",   "turtle",   "umbrella", "valley",   "vanilla", "velvet",   "village",
     "violin",   "volcano",  "waffle",   "wagon",    "walnut",   "weather", "whistle",  "willow",
     "window",   "winter",   "wisdom",   "yellow",   "yoghurt",  "zebra"});

std::vector<std::string_view> draw_words(int64_t count, RngSequence& random) {
  std::vector<std::string_view> words;
  for (int64_t i = 0; i < count; ++i) words.push_back(kWords[random.below(kWords.size())]);
  return words;
}

std::string join_words(std::span<const std::string_view> words) {
  return fmt::format("{}", fmt::join(words, " "));
}

std::optional<Problem> make_letter_counting(std::span<const int64_t> dials, RngSequence& random) {
  const int64_t num_words = dials[0], max_count = dials[1];
  // The count is drawn first and words are then looked for: of random words and letters, most
  // counts would be 0 or 1, and a constant answer would look like skill.
  constexpr std::string_view kLetters = "aeionrtl";
  constexpr int kTriesPerCount = 500;
  const int64_t wanted = random.between(0, max_count);
  const char letter = kLetters[random.below(kLetters.size())];
  std::vector<std::string_view> words;
  std::vector<int64_t> counts;
  for (int i = 0; i < kTriesPerCount; ++i) {
    words = draw_words(num_words, random);
    counts.clear();
    for (const std::string_view word : words) {
      counts.push_back(std::count(word.begin(), word.end(), letter));
    }
    if (std::accumulate(counts.begin(), counts.end(), int64_t{0}) == wanted) break;
    words.clear();
  }
  if (words.empty()) return std::nullopt;
  Problem problem;
  problem.question =
      fmt::format("How many times does the letter '{}' occur in '{}'?", letter, join_words(words));
  problem.compact = fmt::format("{}:{}=", letter, join_words(words));
  problem.answer = std::to_string(wanted);
  for (size_t i = 0; i < words.size(); ++i) {
    if (i > 0) problem.steps += '\n';
    problem.steps += fmt::format("{}: {}", words[i], counts[i]);
  }
  if (words.size() > 1) {
    problem.steps += fmt::format("\n{} = {}", join_numbers(counts, " + "), wanted);
    problem.compact_steps = fmt::format("{}={}", join_numbers(counts, "+"), wanted);
  } else {
    problem.compact_steps = problem.answer;
  }
  return problem;
}

std::string letter_counting_contradiction(std::span<const int64_t> dials) {
  // Two of a letter in each word is about what the word list can give.
  if (dials[1] <= 2 * dials[0]) return "";
  return fmt::format("max_count: is {}; with {} words at most {} is possible", dials[1], dials[0],
                     2 * dials[0]);
}

std::optional<Problem> make_spell_backward(std::span<const int64_t> dials, RngSequence& random) {
  const int64_t num_words = dials[0], length = dials[1];
  std::string text;
  if (length == 0) {
    text = join_words(draw_words(num_words, random));
  } else {
    for (int64_t word = 0; word < num_words; ++word) {
      if (word > 0) text += ' ';
      for (int64_t i = 0; i < length; ++i) text += static_cast<char>('a' + random.below(26));
    }
  }
  const std::string reversed(text.rbegin(), text.rend());
  if (reversed == text) return std::nullopt;
  Problem problem;
  problem.question = fmt::format("Spell '{}' backward.", text);
  problem.compact = fmt::format("rev {}=", text);
  problem.answer = reversed;
  problem.steps = fmt::format("The letters are {}.\nFrom the last to the first: {}.",
                              fmt::join(text, " "), fmt::join(reversed, " "));
  problem.compact_steps = fmt::format("{};{}", fmt::join(text, " "), reversed);
  return problem;
}

}  // namespace

std::vector<Generator> word_generators() {
  return {
      {"letter_counting",
       "how often a letter occurs in words",
       "text",
       "N",
       "number",
       "marker=Answer:",
       {{"words", 3, 1, 20, "how many words"},
        {"max_count", 5, 2, 20, "the count is uniform in 0..max_count, as far as words allow"}},
       make_letter_counting,
       letter_counting_contradiction},
      {"spell_backward",
       "words with their letters in reverse",
       "text",
       "the reversed text",
       "exact",
       "marker=Answer:",
       {{"words", 1, 1, 10, "how many words"},
        {"length", 0, 0, 30, "0: English words; else random letters, this many a word"}},
       make_spell_backward},
  };
}

}  // namespace gradus::data
