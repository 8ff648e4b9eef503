// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <optional>

#include "common/strings.h"
#include "rewards/internal/builtin.h"
#include "rewards/internal/number.h"
#include "rewards/internal/options.h"
#include "rewards/internal/text.h"

// `quantity`: a number with a unit equals the ground truth within a tolerance, whatever unit of the
// same dimension it is in: 1.5 km is 1500 m, 36 km/h is 10 m/s.
namespace gradus::rewards {
namespace {

// Exponents of metre, kilogram, second, ampere, kelvin, mole, currency by its letter.
using Dimension = std::array<int, 7>;

struct Unit {
  Dimension dimension{};
  double factor = 1;  // to SI
  double offset = 0;  // degrees Celsius and Fahrenheit
};

struct NamedUnit {
  std::string_view names;  // between spaces
  Dimension dimension;
  double factor;
  bool takes_prefix;
  double offset = 0;
};

constexpr Dimension kNone{}, kLength{1}, kMass{0, 1}, kTime{0, 0, 1};

const std::vector<NamedUnit>& units() {
  static const std::vector<NamedUnit> all = {
      {"m meter meters metre metres", kLength, 1, true},
      {"g gram grams", kMass, 1e-3, true},
      {"s sec second seconds", kTime, 1, true},
      {"A ampere amperes amp amps", {0, 0, 0, 1}, 1, true},
      {"K kelvin", {0, 0, 0, 0, 1}, 1, true},
      {"mol mole moles", {0, 0, 0, 0, 0, 1}, 1, true},
      {"N newton newtons", {1, 1, -2}, 1, true},
      {"J joule joules", {2, 1, -2}, 1, true},
      {"W watt watts", {2, 1, -3}, 1, true},
      {"Pa pascal pascals", {-1, 1, -2}, 1, true},
      {"Hz hertz", {0, 0, -1}, 1, true},
      {"C coulomb coulombs", {0, 0, 1, 1}, 1, true},
      {"V volt volts", {2, 1, -3, -1}, 1, true},
      {"ohm ohms \xce\xa9 \xe2\x84\xa6", {2, 1, -3, -2}, 1, true},
      {"F farad farads", {-2, -1, 4, 2}, 1, true},
      {"T tesla", {0, 1, -2, -1}, 1, true},
      {"Wb weber", {2, 1, -2, -1}, 1, true},
      {"H henry", {2, 1, -2, -2}, 1, true},
      {"eV", {2, 1, -2}, 1.602176634e-19, true},
      {"L l liter liters litre litres", {3}, 1e-3, true},
      {"bar", {-1, 1, -2}, 1e5, true},
      {"cal calorie calories", {2, 1, -2}, 4.184, true},
      {"min minute minutes", kTime, 60, false},
      {"h hr hrs hour hours", kTime, 3600, false},
      {"day days d", kTime, 86400, false},
      {"week weeks", kTime, 604800, false},
      {"in inch inches", kLength, 0.0254, false},
      {"ft foot feet", kLength, 0.3048, false},
      {"yd yard yards", kLength, 0.9144, false},
      {"mi mile miles", kLength, 1609.344, false},
      {"mph", {1, 0, -1}, 0.44704, false},
      {"kmh kph", {1, 0, -1}, 1 / 3.6, false},
      {"lb lbs pound pounds", kMass, 0.45359237, false},
      {"oz ounce ounces", kMass, 0.028349523125, false},
      {"t ton tons tonne tonnes", kMass, 1000, false},
      {"gal gallon gallons", {3}, 3.785411784e-3, false},
      {"ha hectare hectares", {2}, 1e4, false},
      {"acre acres", {2}, 4046.8564224, false},
      {"atm", {-1, 1, -2}, 101325, false},
      {"mmHg", {-1, 1, -2}, 133.322387415, false},
      {"rad radian radians", kNone, 1, false},
      {"deg degree degrees \xc2\xb0", kNone, 0.017453292519943295, false},
      {"% percent", kNone, 0.01, false},
      {"\xc2\xb0"
       "C degC",
       {0, 0, 0, 0, 1},
       1,
       false,
       273.15},
      {"\xc2\xb0"
       "F degF",
       {0, 0, 0, 0, 1},
       5.0 / 9,
       false,
       459.67 * 5 / 9},
      {"$ USD dollar dollars", {0, 0, 0, 0, 0, 0, 1}, 1, false},
      {"cent cents", {0, 0, 0, 0, 0, 0, 1}, 0.01, false},
      {"\xe2\x82\xac EUR euro euros", {0, 0, 0, 0, 0, 0, 2}, 1, false}};
  return all;
}

struct Prefix {
  std::string_view symbol, name;
  double factor;
};
constexpr std::array<Prefix, 13> kPrefixes = {{{"p", "pico", 1e-12},
                                               {"n", "nano", 1e-9},
                                               {"\xc2\xb5", "micro", 1e-6},
                                               {"\xce\xbc", "micro", 1e-6},
                                               {"u", "micro", 1e-6},
                                               {"m", "milli", 1e-3},
                                               {"c", "centi", 1e-2},
                                               {"d", "deci", 1e-1},
                                               {"h", "hecto", 1e2},
                                               {"k", "kilo", 1e3},
                                               {"M", "mega", 1e6},
                                               {"G", "giga", 1e9},
                                               {"T", "tera", 1e12}}};

std::optional<Unit> unit_named(std::string_view word) {
  static const std::map<std::string, Unit, std::less<>> table = [] {
    std::map<std::string, Unit, std::less<>> all;
    for (const NamedUnit& unit : units()) {
      for (const std::string_view name : fields_of(unit.names)) {
        all.emplace(name, Unit{unit.dimension, unit.factor, unit.offset});
      }
    }
    // After the plain names, which win: "min" is a minute and no milli-inch.
    for (const NamedUnit& unit : units()) {
      if (!unit.takes_prefix) continue;
      for (const std::string_view name : fields_of(unit.names)) {
        for (const Prefix& prefix : kPrefixes) {
          const Unit scaled{unit.dimension, unit.factor * prefix.factor, 0};
          const bool is_word = name.size() > 3;
          all.emplace(std::string(is_word ? prefix.name : prefix.symbol) + std::string(name),
                      scaled);
        }
      }
    }
    return all;
  }();
  const auto found = table.find(word);
  if (found == table.end()) return std::nullopt;
  return found->second;
}

// "m/s^2", "kg m s^-2", "N*m", "km per hour": symbols with exponents; all behind a slash or "per"
// up to the next product sign is below. Nothing when a word is no unit; the dimension of a number
// when there is no word.
std::optional<Unit> read_unit(std::string_view text) {
  Unit unit;
  int num_factors = 0, sign = 1;
  for (size_t at = 0; at < text.size();) {
    const char c = text[at];
    if (c == ' ' || c == '*' || c == '~') {
      ++at;
      continue;
    }
    if (text.substr(at).starts_with("\xc2\xb7")) {  // a middle dot
      at += 2;
      continue;
    }
    if (c == '/') {
      sign = -1;
      ++at;
      continue;
    }
    const size_t end = std::min(text.find_first_of(" */^0123456789-~", at), text.size());
    size_t stop = std::min(text.substr(0, end).find("\xc2\xb7", at), end);
    stop = std::min(stop, text.substr(0, stop).find("\xc2\xb2", at));  // superscripts two, three
    stop = std::min(stop, text.substr(0, stop).find("\xc2\xb3", at));
    if (stop == at) return std::nullopt;
    const std::string_view word = text.substr(at, stop - at);
    at = stop;
    if (word == "per") {
      sign = -1;
      continue;
    }
    const std::optional<Unit> factor = unit_named(word);
    if (!factor) return std::nullopt;
    int exponent = 1;
    if (text.substr(at).starts_with("\xc2\xb2") || text.substr(at).starts_with("\xc2\xb3")) {
      exponent = text[at + 1] == '\xb2' ? 2 : 3;
      at += 2;
    } else {
      size_t digit = at;
      if (digit < text.size() && text[digit] == '^') ++digit;
      const bool is_negative = digit < text.size() && text[digit] == '-';
      if (is_negative) ++digit;
      if (digit < text.size() && text[digit] >= '1' && text[digit] <= '9') {
        exponent = (text[digit] - '0') * (is_negative ? -1 : 1);
        at = digit + 1;
      } else if (digit != at) {
        return std::nullopt;
      }
    }
    ++num_factors;
    exponent *= sign;
    for (size_t i = 0; i < unit.dimension.size(); ++i) {
      unit.dimension[i] += exponent * factor->dimension[i];
    }
    unit.factor *= std::pow(factor->factor, exponent);
    unit.offset = num_factors == 1 && exponent == 1 ? factor->offset : 0;
  }
  return unit;
}

// Without TeX around numbers and units: \text{ cm}, \,, $, ^{2}.
std::string without_tex(std::string_view text) {
  std::string plain;
  // One dollar sign is the currency.
  const bool has_delimiters = std::count(text.begin(), text.end(), '$') >= 2;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '{' || c == '}') continue;
    if (c == '$' && has_delimiters) continue;
    if (c != '\\') {
      plain += c;
      continue;
    }
    const std::string_view rest = text.substr(i + 1);
    size_t length = 0;
    while (length < rest.size() && ((rest[length] | 32) >= 'a' && (rest[length] | 32) <= 'z'))
      ++length;
    const std::string_view command = rest.substr(0, length);
    if (command == "times") plain += "x";
    if (command == "cdot") plain += "*";
    if (command == "circ") plain += "\xc2\xb0";
    if (command == "Omega") plain += "\xce\xa9";
    if (command == "mu") plain += "\xc2\xb5";
    if (length == 0 && !rest.empty()) {
      if (rest[0] == '%' || rest[0] == '$') plain += rest[0];
      if (rest[0] == ' ' || rest[0] == ',' || rest[0] == ';') plain += ' ';
      length = 1;
    }
    i += length;
  }
  return plain;
}

struct Quantity {
  double value = 0;  // in SI
  Unit unit;
  bool has_unit = false;
};

double to_double(const Number& number) {
  const std::string text = fmt::format(
      "{}{}e{}", number.numerator.is_negative ? "-" : "",
      number.numerator.digits.empty() ? "0" : number.numerator.digits, number.numerator.exponent);
  return std::strtod(text.c_str(), nullptr) / static_cast<double>(number.denominator);
}

// A number, "x 10^n" behind it perhaps, and a unit that ends where the text does.
std::optional<Quantity> read_quantity(std::string_view text) {
  text = trim(text);
  if (text.ends_with('.')) text = trim(text.substr(0, text.size() - 1));
  Quantity quantity;
  std::optional<Unit> currency;
  for (const std::string_view sign : {"$", "\xe2\x82\xac"}) {
    if (!text.starts_with(sign)) continue;
    currency = unit_named(sign);
    text = trim(text.substr(sign.size()));
  }
  const auto found = find_number(text, 0);
  if (!found || found->begin != 0 || !found->problem.empty()) return std::nullopt;
  double value = to_double(found->value);
  std::string_view rest = trim(text.substr(found->end));
  for (const std::string_view times : {"x", "*", "\xc3\x97"}) {
    if (!rest.starts_with(times)) continue;
    const std::string_view power = trim(rest.substr(times.size()));
    if (!power.starts_with("10^")) continue;
    const auto exponent = find_number(power.substr(3), 0);
    if (!exponent || exponent->begin != 0 || !exponent->problem.empty()) return std::nullopt;
    value *= std::pow(10.0, to_double(exponent->value));
    rest = trim(power.substr(3 + exponent->end));
    break;
  }
  if (found->has_percent) {
    if (!rest.empty()) return std::nullopt;
    quantity.has_unit = true;
    quantity.value = value / 100;
    return quantity;
  }
  const std::optional<Unit> unit = rest.empty() && currency ? currency : read_unit(rest);
  if (!unit || (currency && !rest.empty() && unit->dimension != currency->dimension)) {
    return std::nullopt;
  }
  quantity.unit = *unit;
  quantity.has_unit = !rest.empty() || currency;
  quantity.value = value * unit->factor + unit->offset;
  return std::isfinite(quantity.value) ? std::optional(quantity) : std::nullopt;
}

class QuantityReward : public Reward {
 public:
  std::string marker;
  double relative = 1e-6, absolute = 0;
  bool needs_unit = true;

  Status check_ground_truth(const data::Prompt& prompt) const override {
    if (read_quantity(without_tex(prompt.answer))) return {};
    return invalid_argument(
        "the ground truth is '{}'; expected a number and a unit, such as 9.81 m/s^2",
        excerpt(prompt.answer));
  }

  std::vector<RewardPart> score_batch(std::span<const Group> groups) const override {
    return score_each(groups, [&](const data::Prompt& prompt, std::string_view response) {
      RewardPart part;
      const auto gold = read_quantity(without_tex(tail(prompt.answer)));
      if (!gold) {
        part.status = RewardStatus::kInvalidGold;
        part.detail = check_ground_truth(prompt).message();
        return part;
      }
      const auto visible = visible_part(response);
      const auto text =
          visible ? answer_part(tail(*visible), marker, /*skips_lines=*/true) : visible;
      if (!text) {
        part.detail = visible ? fmt::format("no '{}' in the response", marker)
                              : std::string("<think> does not end");
        return part;
      }
      const auto answer = read_quantity(without_tex(*text));
      if (!answer) {
        part.detail = fmt::format("'{}' is no quantity", excerpt(*text));
        return part;
      }
      const bool lacks_unit = gold->has_unit && !answer->has_unit && !needs_unit;
      if (lacks_unit) {
        const double value = (gold->value - gold->unit.offset) / gold->unit.factor;
        part.score = is_close(answer->value, value) ? 1 : 0;
      } else if (answer->unit.dimension != gold->unit.dimension ||
                 answer->has_unit != gold->has_unit) {
        part.detail = "the unit is missing or of another dimension";
        return part;
      } else {
        part.score = is_close(answer->value, gold->value) ? 1 : 0;
      }
      part.answer = fmt::format("{:.9g}", answer->value);
      if (part.score == 0) part.detail = fmt::format("is not {}", excerpt(prompt.answer));
      return part;
    });
  }

 private:
  bool is_close(double a, double b) const {
    return std::abs(a - b) <= std::max(absolute, relative * std::abs(b));
  }
};

}  // namespace

Result<std::unique_ptr<Reward>> make_quantity_reward(const RewardOptions& options) {
  auto reward = std::make_unique<QuantityReward>();
  int unit = 0;
  reward->marker = "Answer:";
  OptionReader reader("quantity", options);
  reader.text("marker", reward->marker);
  reader.number("relative", 0, 1, reward->relative);
  reader.number("absolute", 0, 1e300, reward->absolute);
  reader.choice("unit", {"required", "optional"}, unit);
  GRADUS_RETURN_IF_ERROR(reader.finish());
  reward->needs_unit = unit == 0;
  return std::unique_ptr<Reward>(std::move(reward));
}

}  // namespace gradus::rewards
