// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <vector>

#include "common/strings.h"
#include "rewards/math/parser.h"

namespace gradus::rewards::math {
namespace {

// Spellings of one unit; the first is its canonical name.
constexpr std::array<std::string_view, 47> kUnits = {"mm millimeter millimetre",
                                                     "cm centimeter centimetre",
                                                     "dm decimeter decimetre",
                                                     "m meter metre",
                                                     "km kilometer kilometre",
                                                     "in inch inches",
                                                     "ft foot feet",
                                                     "yd yard",
                                                     "mi mile",
                                                     "mg milligram",
                                                     "g gram gm",
                                                     "kg kilogram",
                                                     "lb pound lbs",
                                                     "oz ounce",
                                                     "s sec second",
                                                     "min minute mins",
                                                     "h hr hour hrs",
                                                     "day",
                                                     "week",
                                                     "month",
                                                     "year yr",
                                                     "mL ml milliliter millilitre",
                                                     "L l liter litre",
                                                     "gal gallon",
                                                     "degree deg",
                                                     "rad radian",
                                                     "USD dollar dollars",
                                                     "EUR euro",
                                                     "cent",
                                                     "unit",
                                                     "mph",
                                                     "km/h kmh kmph km/hr",
                                                     "m/s",
                                                     "N newton",
                                                     "J joule",
                                                     "W watt",
                                                     "V volt",
                                                     "A ampere amp",
                                                     "Hz hertz",
                                                     "K kelvin",
                                                     "Pa pascal",
                                                     "mol mole",
                                                     "ha hectare",
                                                     "acre",
                                                     "rupee Rs rs",
                                                     "yuan",
                                                     "C coulomb"};

// Words that change what the number before them means, so that they cannot be units.
constexpr std::array<std::string_view, 30> kNoUnits = {
    "not",  "no",    "is",   "are",    "if",    "or",      "and",   "wrong", "incorrect", "false",
    "but",  "then",  "else", "when",   "times", "plus",    "minus", "over",  "squared",   "half",
    "than", "never", "none", "except", "to",    "through", "per",   "mod",   "where",     "either"};

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  while (!text.empty()) {
    const size_t end = std::min(text.find(separator), text.size());
    if (end > 0) parts.push_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return parts;
}

std::string known_unit(std::string_view word) {
  for (const std::string_view spellings : kUnits) {
    const std::string_view name = spellings.substr(0, spellings.find(' '));
    for (const std::string_view spelling : split(spellings, ' ')) {
      if (word == spelling) return std::string(name);
      const bool is_plural = word.size() > 2 && word.size() == spelling.size() + 1 &&
                             word.back() == 's' && word.starts_with(spelling) &&
                             spelling.size() > 1;
      if (is_plural) return std::string(name);
    }
  }
  return "";
}

bool is_word(std::string_view word) {
  if (word.empty() || word.size() > 20) return false;
  for (const char c : word) {
    const bool is_letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-';
    if (!is_letter) return false;
  }
  for (const std::string_view no : kNoUnits) {
    if (word == no) return false;
  }
  return true;
}

}  // namespace

std::string canonical_unit(std::string_view text) {
  text = trim(text);
  while (!text.empty() && (text.back() == '.' || text.back() == ',')) text.remove_suffix(1);
  std::string power;
  if (const size_t caret = text.find('^'); caret != std::string_view::npos) {
    power = std::string(text.substr(caret));
    text = trim(text.substr(0, caret));
  }
  for (const auto& [prefix, exponent] :
       {std::pair<std::string_view, std::string_view>{"square ", "^2"},
        {"sq ", "^2"},
        {"sq. ", "^2"},
        {"cubic ", "^3"},
        {"cu ", "^3"}}) {
    if (text.starts_with(prefix) && power.empty()) {
      power = std::string(exponent);
      text = trim(text.substr(prefix.size()));
    }
  }
  if (const std::string name = known_unit(text); !name.empty()) {
    return name == "unit" ? "unit" : name + power;
  }
  // Up to three words that no number word or negation is among: apples, red balls.
  const auto words = split(text, ' ');
  if (words.empty() || words.size() > 3) return "";
  for (const std::string_view word : words) {
    if (!is_word(word)) return "";
  }
  return "?" + std::string(text) + power;
}

}  // namespace gradus::rewards::math
