// SPDX-License-Identifier: Apache-2.0
#include "data/multihop.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string_view>
#include <unordered_set>

#include "common/rng.h"
#include "data/internal/json_rows.h"

namespace gradus::data {
namespace {

struct Country {
  std::string code, name, capital, currency, currency_code, language, language_code, part;
  std::vector<std::string> aliases;
  int64_t population = 0;
};

// Part of a country, with a capital if the facts have it.
struct Division {
  size_t country = 0;
  std::string type, name, capital;
  bool is_unique_name = true;     // no other country has a division or subdivision of this name
  bool is_unique_capital = true;  // no other division has a capital of this name
};

struct Airport {
  size_t country = 0;
  std::string code, name, city;
};

struct Element {
  size_t country = 0;
  std::string symbol, name, year;
};

// What a question may ask of a country.
enum class Relation { kCurrency, kCapital, kLanguage, kPart, kPopulation };
constexpr std::array<Relation, 5> kRelations = {Relation::kCurrency, Relation::kCapital,
                                                Relation::kLanguage, Relation::kPart,
                                                Relation::kPopulation};

std::string_view noun_of(Relation relation) {
  switch (relation) {
    case Relation::kCurrency:
      return "currency";
    case Relation::kCapital:
      return "capital";
    case Relation::kLanguage:
      return "official language";
    case Relation::kPart:
      return "region of the world";
    case Relation::kPopulation:
      return "population";
  }
  return "";
}

// "31.9 million", as a text would say it.
std::string people(int64_t population) {
  if (population >= 1'000'000'000) {
    return fmt::format("{:.2f} billion", static_cast<double>(population) / 1e9);
  }
  if (population >= 1'000'000) {
    return fmt::format("{:.1f} million", static_cast<double>(population) / 1e6);
  }
  return fmt::format("{} thousand", std::max<int64_t>(1, (population + 500) / 1000));
}

std::string answer_of(const Country& country, Relation relation) {
  switch (relation) {
    case Relation::kCurrency:
      return country.currency;
    case Relation::kCapital:
      return country.capital;
    case Relation::kLanguage:
      return country.language;
    case Relation::kPart:
      return country.part;
    case Relation::kPopulation:
      return people(country.population);
  }
  return "";
}

std::vector<std::string> answers_of(const Country& country, Relation relation) {
  std::vector<std::string> answers = {answer_of(country, relation)};
  if (relation == Relation::kCurrency) answers.push_back(country.currency_code);
  if (relation == Relation::kPopulation) answers.push_back(std::to_string(country.population));
  return answers;
}

std::string passage_id(const Country& country, Relation relation) {
  std::string word(noun_of(relation));
  word = word.substr(word.rfind(' ') == std::string::npos || relation == Relation::kPart
                         ? 0
                         : word.rfind(' ') + 1);
  return fmt::format("country/{}/{}", country.code,
                     relation == Relation::kPart ? "part" : std::string_view(word));
}

std::string with_article(std::string_view noun) {
  const bool is_vowel = noun.find_first_of("aeiou") == 0;
  return fmt::format("{} {}", is_vowel ? "an" : "a", noun);
}

// One of several wordings, by the passage's id.
template <size_t N>
std::string_view pick(const std::string& id, uint64_t seed,
                      const std::array<std::string, N>& texts) {
  return texts[hash64({seed, hash64(id)}) % N];
}

Passage country_passage(const Country& c, Relation relation, uint64_t seed) {
  Passage passage{passage_id(c, relation), fmt::format("{}: {}", c.name, noun_of(relation)), {}};
  const std::string& id = passage.id;
  const std::string value = answer_of(c, relation);
  switch (relation) {
    case Relation::kCurrency:
      passage.text = pick<3>(
          id, seed,
          {fmt::format("The currency of {} is the {}. Its code in international trade is {}, and "
                       "prices, wages and taxes in the country are stated in it.",
                       c.name, value, c.currency_code),
           fmt::format("People in {} pay with the {} ({}), the legal tender that the country's "
                       "central bank issues as notes and coins.",
                       c.name, value, c.currency_code),
           fmt::format("Money of {}: the {}. Banks that deal in foreign exchange list it under the "
                       "three letters {}.",
                       c.name, value, c.currency_code)});
      break;
    case Relation::kCapital:
      passage.text = pick<3>(
          id, seed,
          {fmt::format("The capital of {} is {}. The government of the country and most of "
                       "its ministries have their seat in the city.",
                       c.name, value),
           fmt::format("{1} is the capital city of {0}, where the country's parliament "
                       "meets and where foreign embassies are found.",
                       c.name, value),
           fmt::format("The seat of the government of {} is {}, the country's capital, from "
                       "which the state is administered.",
                       c.name, value)});
      break;
    case Relation::kLanguage:
      passage.text = pick<3>(
          id, seed,
          {fmt::format("The official language of {} with the most speakers is {}. Laws and school "
                       "books of the country are written in it.",
                       c.name, value),
           fmt::format("In {} the main official language is {}, which is used in court, in "
                       "schools and in public offices throughout the country.",
                       c.name, value),
           fmt::format("{1} is spoken in {0}, where it is the official language that most people "
                       "use when they deal with the state.",
                       c.name, value)});
      break;
    case Relation::kPart:
      passage.text = pick<2>(
          id, seed,
          {fmt::format("{} lies in {}, the region of the world to which statistics of trade and of "
                       "health assign the country.",
                       c.name, value),
           fmt::format("The region of the world in which {} is situated is {}; the country's "
                       "neighbours there share much of its climate and history.",
                       c.name, value)});
      break;
    case Relation::kPopulation:
      passage.text =
          pick<2>(id, seed,
                  {fmt::format("The population of {} is about {}. The number of people who live in "
                               "the country is estimated anew every year.",
                               c.name, value),
                   fmt::format("About {1} people live in {0}, as an estimate of the country's "
                               "population says that is based on its last census.",
                               c.name, value)});
      break;
  }
  return passage;
}

std::string division_id(const Country& country, const Division& division, std::string_view what) {
  return fmt::format("division/{}/{}/{}", country.code, division.name, what);
}

Passage location_passage(const Country& c, const Division& d, uint64_t seed) {
  Passage passage{division_id(c, d, "location"), fmt::format("{}: {}", d.name, d.type), {}};
  passage.text =
      pick<3>(passage.id, seed,
              {fmt::format("{} is {} of {}. It is one of the parts into which the country is "
                           "divided for administration.",
                           d.name, with_article(d.type), c.name),
               fmt::format("{1} belongs to {0}. As {2} it has offices of its own within the "
                           "country's administration.",
                           c.name, d.name, with_article(d.type)),
               fmt::format("Among the parts of {} there is {}, {} with borders set by the "
                           "country's laws.",
                           c.name, d.name, with_article(d.type))});
  return passage;
}

Passage capital_passage(const Country& c, const Division& d, uint64_t seed) {
  Passage passage{division_id(c, d, "capital"), fmt::format("{}: capital", d.name), {}};
  passage.text = pick<2>(
      passage.id, seed,
      {fmt::format("The capital of {} in {} is {}. The administration of the {} works from there.",
                   d.name, c.name, d.capital, d.type),
       fmt::format("{2} is the capital of {0}, {3} in {1}, and the seat of its administration.",
                   d.name, c.name, d.capital, with_article(d.type))});
  return passage;
}

std::string airport_id(const Airport& airport) { return "airport/" + airport.code; }
std::string element_id(const Element& element) { return "element/" + element.symbol; }

// What the passages say.
MultihopStatement country_statement(const Country& c, Relation relation) {
  return {passage_id(c, relation), std::string(noun_of(relation)), c.name, answer_of(c, relation)};
}
MultihopStatement location_statement(const Country& c, const Division& d) {
  return {division_id(c, d, "location"), "country", d.name, c.name};
}
MultihopStatement capital_statement(const Country& c, const Division& d) {
  return {division_id(c, d, "capital"), "capital", fmt::format("{} in {}", d.name, c.name),
          d.capital};
}
MultihopStatement division_statement(const Country& c, const Division& d) {
  return {division_id(c, d, "capital"), "division", d.capital, d.name};
}
MultihopStatement airport_statement(const Country& c, const Airport& a) {
  return {airport_id(a), "country", a.code, c.name};
}
MultihopStatement element_statement(const Country& c, const Element& e) {
  return {element_id(e), "country", e.symbol, c.name};
}

// How a question may be put together. Weights are shares of all questions, in percent.
struct Kind {
  std::string_view name;
  uint64_t weight;
};
constexpr std::array<Kind, 6> kKinds = {{{"division", 40},
                                         {"capital", 25},
                                         {"ambiguous", 8},
                                         {"element", 2},
                                         {"airport", 10},
                                         {"comparison", 15}}};

}  // namespace

const char* multihop_split_name(MultihopSplit split) {
  constexpr std::array<const char*, 4> kNames = {"train", "dev", "test", "unseen"};
  return kNames[static_cast<size_t>(split)];
}

struct MultihopFacts::Facts {
  std::vector<Country> countries;
  std::map<std::string, size_t> country_by_code;
  std::vector<Division> divisions;
  std::vector<Division> subdivisions;  // places without a capital: passages, no questions
  std::vector<Airport> airports;
  std::vector<Element> elements;
  std::vector<std::pair<std::string, std::string>> texts;  // title, text

  Status add(const Json& fact);
  void find_ambiguous();
};

namespace {

Result<std::string> text_of(const Json& fact, const char* key) {
  const auto it = fact.find(key);
  if (it == fact.end()) return invalid_argument("{}: missing; expected a text", key);
  if (!it->is_string()) return invalid_argument("{}: {}; expected a text", key, it->dump());
  return it->get<std::string>();
}

// Reads the texts of `keys` to `fields`; all but those in `may_be_empty` must say something.
Status read_texts(const Json& fact,
                  std::initializer_list<std::pair<const char*, std::string*>> to) {
  for (const auto& [key, field] : to) {
    Result<std::string> text = text_of(fact, key);
    GRADUS_RETURN_IF_ERROR(text.status());
    *field = std::move(*text);
  }
  return {};
}

// What the questions of one split are drawn from.
struct Pool {
  // By country, so that each country is drawn alike.
  std::map<size_t, std::vector<const Division*>> divisions, capitals, ambiguous;
  std::map<size_t, std::vector<const Airport*>> airports;
  std::map<size_t, std::vector<const Element*>> elements;
};

template <class T>
const T* draw(const std::map<size_t, std::vector<const T*>>& by_country, RngSequence& random) {
  if (by_country.empty()) return nullptr;
  const auto it =
      std::next(by_country.begin(), static_cast<int64_t>(random.below(by_country.size())));
  return it->second[random.below(it->second.size())];
}

// Puts questions together; the searches of one question share the dial's draws.
class QuestionMaker {
 public:
  QuestionMaker(const std::vector<Country>& countries, const Pool& pool, double alias,
                RngSequence& random)
      : countries_(countries), pool_(pool), alias_(alias), random_(random) {}

  // Nothing where the pool has nothing for a question of this kind.
  std::optional<MultihopQuestion> make(std::string_view kind) {
    MultihopQuestion question;
    question.kind = kind;
    const bool is_made = kind == "division"    ? about_division(question)
                         : kind == "capital"   ? about_capital(question)
                         : kind == "ambiguous" ? about_ambiguous(question)
                         : kind == "element"   ? about_element(question)
                         : kind == "airport"   ? about_airport(question)
                                               : comparison(question);
    if (!is_made) return std::nullopt;
    return question;
  }

 private:
  const Country& country(size_t index) const { return countries_[index]; }
  Relation relation() { return kRelations[random_.below(kRelations.size())]; }

  // `said` is the statement that answers it, `from` the search whose answer its subject has.
  MultihopSearch search(std::string explicit_query, std::string elliptical, MultihopStatement said,
                        int64_t from = -1) {
    const bool is_elliptical = !elliptical.empty() && random_.uniform() <= alias_;
    std::string query = is_elliptical ? std::move(elliptical) : explicit_query;
    return {std::move(query),        std::move(explicit_query),
            is_elliptical,           std::move(said.passage_id),
            std::move(said.value),   std::move(said.relation),
            std::move(said.subject), from};
  }
  MultihopSearch country_of(const Division& d) {
    return search(fmt::format("Which country does {} belong to?", d.name), "",
                  location_statement(country(d.country), d));
  }
  MultihopSearch about_country(const Country& c, Relation relation, int64_t from) {
    return search(fmt::format("What is the {} of {}?", noun_of(relation), c.name),
                  fmt::format("What is its {}?", noun_of(relation)), country_statement(c, relation),
                  from);
  }
  // Asks of the country that the last search found.
  void ask_of_country(MultihopQuestion& question, const Country& c, Relation relation) {
    question.searches.push_back(
        about_country(c, relation, static_cast<int64_t>(question.searches.size()) - 1));
    question.answers = answers_of(c, relation);
  }

  bool about_division(MultihopQuestion& question) {
    const Division* d = draw(pool_.divisions, random_);
    if (d == nullptr) return false;
    const Relation what = relation();
    question.text = fmt::format("What is the {} of the country in which the {} {} lies?",
                                noun_of(what), d->type, d->name);
    question.searches = {country_of(*d)};
    ask_of_country(question, country(d->country), what);
    return true;
  }

  bool about_capital(MultihopQuestion& question) {
    const Division* d = draw(pool_.capitals, random_);
    if (d == nullptr) return false;
    const Country& c = country(d->country);
    const Relation what = relation();
    question.text =
        fmt::format("{} is the capital of a {}. What is the {} of the country that it is in?",
                    d->capital, d->type, noun_of(what));
    question.searches = {search(fmt::format("Which {} is {} the capital of?", d->type, d->capital),
                                "", division_statement(c, *d)),
                         search(fmt::format("Which country does {} belong to?", d->name),
                                "Which country does it belong to?", location_statement(c, *d), 0)};
    ask_of_country(question, c, what);
    return true;
  }

  bool about_ambiguous(MultihopQuestion& question) {
    const Division* d = draw(pool_.ambiguous, random_);
    if (d == nullptr) return false;
    const auto anchors = pool_.divisions.find(d->country);
    if (anchors == pool_.divisions.end()) return false;
    const Division* anchor = anchors->second[random_.below(anchors->second.size())];
    const Country& c = country(d->country);
    question.text =
        fmt::format("What is the capital of {}, in the same country as {}?", d->name, anchor->name);
    question.searches = {
        country_of(*anchor),
        search(fmt::format("What is the capital of {} in {}?", d->name, c.name),
               fmt::format("What is the capital of {}?", d->name), capital_statement(c, *d), 0)};
    question.answers = {d->capital};
    return true;
  }

  bool about_element(MultihopQuestion& question) {
    const Element* e = draw(pool_.elements, random_);
    if (e == nullptr) return false;
    const Country& c = country(e->country);
    const Relation what = relation();
    question.text = fmt::format(
        "What is the {} of the country where the element with the symbol {} was discovered?",
        noun_of(what), e->symbol);
    question.searches = {search(
        fmt::format("In which country was the element with the symbol {} discovered?", e->symbol),
        "", element_statement(c, *e))};
    ask_of_country(question, c, what);
    return true;
  }

  bool about_airport(MultihopQuestion& question) {
    const Airport* a = draw(pool_.airports, random_);
    if (a == nullptr) return false;
    const Country& c = country(a->country);
    const Relation what = relation();
    question.text = fmt::format("What is the {} of the country that the airport {} serves?",
                                noun_of(what), a->code);
    question.searches = {search(fmt::format("Which country does the airport {} serve?", a->code),
                                "", airport_statement(c, *a))};
    ask_of_country(question, c, what);
    return true;
  }

  bool comparison(MultihopQuestion& question) {
    const Division *a = draw(pool_.divisions, random_), *b = draw(pool_.divisions, random_);
    if (a == nullptr || b == nullptr) return false;
    const Country &left = country(a->country), &right = country(b->country);
    if (people(left.population) == people(right.population)) return false;
    question.text = fmt::format("Which has more people, the country of {} or the country of {}?",
                                a->name, b->name);
    question.searches = {country_of(*a), about_country(left, Relation::kPopulation, 0),
                         country_of(*b), about_country(right, Relation::kPopulation, 2)};
    const Country& larger = left.population > right.population ? left : right;
    question.answers = {larger.name};
    question.answers.insert(question.answers.end(), larger.aliases.begin(), larger.aliases.end());
    return true;
  }

  const std::vector<Country>& countries_;
  const Pool& pool_;
  double alias_;
  RngSequence& random_;
};

}  // namespace

Status MultihopFacts::Facts::add(const Json& fact) {
  Result<std::string> kind = text_of(fact, "kind");
  GRADUS_RETURN_IF_ERROR(kind.status());
  if (*kind == "country") {
    Country c;
    GRADUS_RETURN_IF_ERROR(read_texts(fact, {{"code", &c.code},
                                             {"name", &c.name},
                                             {"capital", &c.capital},
                                             {"currency", &c.currency},
                                             {"currency_code", &c.currency_code},
                                             {"language", &c.language},
                                             {"language_code", &c.language_code},
                                             {"part", &c.part}}));
    const auto population = fact.find("population");
    if (population == fact.end() || !population->is_number_integer() ||
        population->get<int64_t>() < 1) {
      return invalid_argument("population: {}; expected a number of people",
                              population == fact.end() ? "missing" : population->dump());
    }
    c.population = population->get<int64_t>();
    if (const auto aliases = fact.find("aliases"); aliases != fact.end() && aliases->is_array()) {
      for (const Json& alias : *aliases) {
        if (alias.is_string()) c.aliases.push_back(alias.get<std::string>());
      }
    }
    if (!country_by_code.emplace(c.code, countries.size()).second) {
      return invalid_argument("code: '{}' came before; expected each country once", c.code);
    }
    countries.push_back(std::move(c));
    return {};
  }
  if (*kind == "text") {
    auto& text = texts.emplace_back();
    return read_texts(fact, {{"title", &text.first}, {"text", &text.second}});
  }
  std::string code;
  GRADUS_RETURN_IF_ERROR(read_texts(fact, {{"country", &code}}));
  const auto country = country_by_code.find(code);
  if (country == country_by_code.end()) {
    return invalid_argument("country: '{}' is the code of no country above", code);
  }
  if (*kind == "division" || *kind == "subdivision") {
    Division d{.country = country->second, .type = {}, .name = {}, .capital = {}};
    GRADUS_RETURN_IF_ERROR(read_texts(fact, {{"type", &d.type}, {"name", &d.name}}));
    if (*kind == "subdivision") {
      subdivisions.push_back(std::move(d));
      return {};
    }
    GRADUS_RETURN_IF_ERROR(read_texts(fact, {{"capital", &d.capital}}));
    divisions.push_back(std::move(d));
    return {};
  }
  if (*kind == "airport") {
    Airport& a = airports.emplace_back(
        Airport{.country = country->second, .code = {}, .name = {}, .city = {}});
    return read_texts(fact, {{"code", &a.code}, {"name", &a.name}, {"city", &a.city}});
  }
  if (*kind == "element") {
    Element& e = elements.emplace_back(
        Element{.country = country->second, .symbol = {}, .name = {}, .year = {}});
    return read_texts(fact, {{"symbol", &e.symbol}, {"name", &e.name}, {"year", &e.year}});
  }
  return invalid_argument(
      "kind: '{}'; expected country, division, subdivision, airport, element or text", *kind);
}

void MultihopFacts::Facts::find_ambiguous() {
  std::map<std::string, std::set<size_t>> countries_of_name;
  std::map<std::string, int> num_capitals;
  for (const Division& d : divisions) {
    countries_of_name[d.name].insert(d.country);
    ++num_capitals[d.capital];
  }
  for (const Division& d : subdivisions) countries_of_name[d.name].insert(d.country);
  for (Division& d : divisions) {
    d.is_unique_name = countries_of_name[d.name].size() == 1;
    d.is_unique_capital = num_capitals[d.capital] == 1;
  }
}

MultihopFacts::MultihopFacts(std::unique_ptr<const Facts> facts) : facts_(std::move(facts)) {}
MultihopFacts::~MultihopFacts() = default;

Result<std::unique_ptr<MultihopFacts>> MultihopFacts::load(const std::string& path) {
  // Lines are parsed by several threads and joined in their order.
  std::vector<Json> lines;
  std::vector<int64_t> numbers;
  const std::vector<std::string> files = {path};
  GRADUS_RETURN_IF_ERROR(read_json_rows(
      files, 0,
      [&](int64_t count) {
        lines.resize(static_cast<size_t>(count));
        numbers.resize(static_cast<size_t>(count));
      },
      [&](int64_t index, Json object, const std::string&, int64_t line) -> Status {
        lines[static_cast<size_t>(index)] = std::move(object);
        numbers[static_cast<size_t>(index)] = line;
        return {};
      }));
  auto facts = std::make_unique<Facts>();
  for (size_t i = 0; i < lines.size(); ++i) {
    if (const Status status = facts->add(lines[i]); !status.ok()) {
      return invalid_argument("{}:{}: {}", path, numbers[i], status.message());
    }
  }
  facts->find_ambiguous();
  return std::unique_ptr<MultihopFacts>(new MultihopFacts(std::move(facts)));
}

std::vector<Passage> MultihopFacts::passages(uint64_t seed) const {
  const Facts& facts = *facts_;
  std::vector<Passage> passages;
  std::unordered_set<std::string> ids;
  const auto add = [&](Passage passage) {
    if (ids.insert(passage.id).second) passages.push_back(std::move(passage));
  };
  for (const Country& c : facts.countries) {
    for (const Relation relation : kRelations) add(country_passage(c, relation, seed));
  }
  for (const Division& d : facts.divisions) {
    const Country& c = facts.countries[d.country];
    add(location_passage(c, d, seed));
    add(capital_passage(c, d, seed));
  }
  for (const Division& d : facts.subdivisions) {
    add(location_passage(facts.countries[d.country], d, seed));
  }
  for (const Airport& a : facts.airports) {
    const std::string& country = facts.countries[a.country].name;
    const std::string id = airport_id(a);
    add({id, fmt::format("{} (airport)", a.code),
         std::string(pick<2>(
             id, seed,
             {fmt::format("{} is the code of the airport {} in {}. The city that it mainly serves "
                          "is {}.",
                          a.code, a.name, country, a.city.empty() ? a.name : a.city),
              fmt::format("The airport {1} serves {3} in {2}; airlines print its code, {0}, on "
                          "tickets and luggage tags.",
                          a.code, a.name, country, a.city.empty() ? a.name : a.city)}))});
  }
  for (const Element& e : facts.elements) {
    const std::string& country = facts.countries[e.country].name;
    const std::string id = element_id(e);
    add({id, fmt::format("{} (chemical element)", e.name),
         fmt::format("{} is a chemical element with the symbol {}. It was discovered in {}{}.",
                     e.name, e.symbol, country, e.year.empty() ? "" : " in the year " + e.year)});
  }
  for (size_t i = 0; i < facts.texts.size(); ++i) {
    add({fmt::format("text/{}", i), facts.texts[i].first, facts.texts[i].second});
  }
  return passages;
}

std::vector<MultihopStatement> MultihopFacts::statements() const {
  const Facts& facts = *facts_;
  std::vector<MultihopStatement> all;
  for (const Country& c : facts.countries) {
    for (const Relation relation : kRelations) all.push_back(country_statement(c, relation));
  }
  for (const Division& d : facts.divisions) {
    const Country& c = facts.countries[d.country];
    all.push_back(location_statement(c, d));
    all.push_back(capital_statement(c, d));
    all.push_back(division_statement(c, d));
  }
  for (const Division& d : facts.subdivisions) {
    all.push_back(location_statement(facts.countries[d.country], d));
  }
  for (const Airport& a : facts.airports) {
    all.push_back(airport_statement(facts.countries[a.country], a));
  }
  for (const Element& e : facts.elements) {
    all.push_back(element_statement(facts.countries[e.country], e));
  }
  return all;
}

Result<std::vector<MultihopQuestion>> MultihopFacts::questions(const MultihopOptions& options,
                                                               MultihopSplit split) const {
  if (!(options.alias >= 0 && options.alias <= 1)) {
    return invalid_argument("alias: is {}; expected a chance in [0, 1]", options.alias);
  }
  const Facts& facts = *facts_;
  // 15 % of the countries that have divisions are unseen: those whose hashes come first.
  std::set<size_t> with_divisions;
  for (const Division& d : facts.divisions) with_divisions.insert(d.country);
  const auto key = [&](std::string_view name) { return hash64({options.seed, hash64(name)}); };
  std::vector<size_t> order(with_divisions.begin(), with_divisions.end());
  std::ranges::sort(order, {}, [&](size_t c) { return key(facts.countries[c].code); });
  const size_t num_unseen = (order.size() * 15 + 50) / 100;
  const std::set<size_t> unseen(order.begin(), order.begin() + static_cast<int64_t>(num_unseen));
  const auto is_of_split = [&](size_t country, const std::string& name) {
    if (unseen.contains(country)) return split == MultihopSplit::kUnseen;
    const uint64_t tenth = key(facts.countries[country].code + "/" + name) % 10;
    return split == (tenth < 8    ? MultihopSplit::kTrain
                     : tenth == 8 ? MultihopSplit::kDev
                                  : MultihopSplit::kTest);
  };
  Pool pool;
  for (const Division& d : facts.divisions) {
    if (!is_of_split(d.country, d.name)) continue;
    (d.is_unique_name ? pool.divisions : pool.ambiguous)[d.country].push_back(&d);
    if (d.is_unique_name && d.is_unique_capital) pool.capitals[d.country].push_back(&d);
  }
  for (const Airport& a : facts.airports) {
    if (is_of_split(a.country, airport_id(a))) pool.airports[a.country].push_back(&a);
  }
  for (const Element& e : facts.elements) {
    if (is_of_split(e.country, element_id(e))) pool.elements[e.country].push_back(&e);
  }

  const std::array<int64_t, 4> sizes = {options.num_train, options.num_dev, options.num_test,
                                        options.num_unseen};
  const int64_t wanted = sizes[static_cast<size_t>(split)];
  constexpr int kMaxTries = 2000;
  std::vector<MultihopQuestion> questions;
  std::unordered_set<std::string> taken;
  for (int64_t i = 0; i < wanted; ++i) {
    RngSequence random(
        hash64({options.seed, static_cast<uint64_t>(split), static_cast<uint64_t>(i)}),
        RngStream::kTask);
    QuestionMaker maker(facts.countries, pool, options.alias, random);
    std::optional<MultihopQuestion> question;
    for (int t = 0; t < kMaxTries && !question.has_value(); ++t) {
      uint64_t share = random.below(100);
      const Kind* kind = kKinds.data();
      while (share >= kind->weight) share -= (kind++)->weight;
      question = maker.make(kind->name);
      if (question.has_value() && !taken.insert(question->text).second) question.reset();
    }
    if (!question.has_value()) {
      return invalid_argument(
          "multihop: the facts give only {} different questions for {}; expected {}: ask for fewer",
          questions.size(), multihop_split_name(split), wanted);
    }
    questions.push_back(std::move(*question));
  }
  return questions;
}

MultihopCeilings multihop_ceilings(const std::vector<MultihopQuestion>& questions) {
  std::map<std::string, std::map<std::string, int64_t>> passages_of_query;
  MultihopCeilings ceilings;
  int64_t num_elliptical = 0;
  for (const MultihopQuestion& question : questions) {
    for (const MultihopSearch& search : question.searches) {
      ++passages_of_query[search.query][search.passage_id];
      ++ceilings.num_searches;
      num_elliptical += search.is_elliptical ? 1 : 0;
    }
  }
  if (ceilings.num_searches == 0) return ceilings;
  int64_t at_1 = 0, at_3 = 0;
  double bits = 0;
  for (const auto& [query, passages] : passages_of_query) {
    std::vector<int64_t> counts;
    int64_t total = 0;
    for (const auto& [passage, count] : passages) {
      counts.push_back(count);
      total += count;
    }
    std::ranges::sort(counts, std::greater<>());
    at_1 += counts[0];
    for (size_t i = 0; i < std::min<size_t>(3, counts.size()); ++i) at_3 += counts[i];
    // The history names the passage, so what it adds is the entropy that the query leaves.
    for (const int64_t count : counts) {
      const double share = static_cast<double>(count) / static_cast<double>(total);
      bits -= static_cast<double>(count) * std::log2(share);
    }
  }
  const auto n = static_cast<double>(ceilings.num_searches);
  ceilings.elliptical_fraction = static_cast<double>(num_elliptical) / n;
  ceilings.query_only_recall_at_1 = static_cast<double>(at_1) / n;
  ceilings.query_only_recall_at_3 = static_cast<double>(at_3) / n;
  ceilings.history_bits = bits / n;
  return ceilings;
}

Row multihop_row(const MultihopQuestion& question, MultihopSplit split) {
  Row row;
  row.data_source = "multihop";
  row.messages = {{"user", question.text}};
  row.ability = "search";
  row.reward_style = "rule";
  row.ground_truth =
      question.answers.size() == 1 ? question.answers[0] : Json(question.answers).dump();
  Json searches = Json::array();
  for (const MultihopSearch& search : question.searches) {
    searches.push_back({{"query", search.query},
                        {"explicit_query", search.explicit_query},
                        {"is_elliptical", search.is_elliptical},
                        {"passage", search.passage_id},
                        {"answer", search.answer},
                        {"relation", search.relation},
                        {"subject", search.subject},
                        {"from", search.from}});
  }
  row.extra_info = Json{{"split", multihop_split_name(split)},
                        {"kind", question.kind},
                        {"searches", std::move(searches)}}
                       .dump();
  return row;
}

}  // namespace gradus::data
