// SPDX-License-Identifier: Apache-2.0
#include "retriever/scripted_reader.h"

#include <fstream>
#include <nlohmann/json.hpp>

#include "common/check.h"

namespace gradus::retriever {
namespace {

using nlohmann::json;

// `text` with the last `from` in it replaced.
std::string replace_last(std::string text, const std::string& from, const std::string& to) {
  const size_t at = from.empty() ? std::string::npos : text.rfind(from);
  if (at != std::string::npos) text.replace(at, from.size(), to);
  return text;
}

// `text` of a search, which has the right answer of an earlier one in it, with what the reader took
// instead.
std::string as_believed(const std::string& text, const SearchQuestion& question,
                        const data::MultihopSearch& search, std::span<const SearchTurn> turns) {
  if (search.from < 0) return text;
  const auto from = static_cast<size_t>(search.from);
  return replace_last(text, question.searches[from].answer, turns[from].answer);
}

// "31.9 million" as a number; 0 if it is none.
double people(const std::string& text) {
  double number = 0;
  size_t used = 0;
  try {
    number = std::stod(text, &used);
  } catch (const std::exception&) {
    return 0;
  }
  const std::string unit = text.substr(used);
  return number * (unit == " billion" ? 1e9 : unit == " million" ? 1e6 : 1e3);
}

Result<std::string> text_of(const json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_string()) {
    return invalid_argument("'{}' is {}; expected a text", key,
                            found == object.end() ? "missing" : found->dump());
  }
  return found->get<std::string>();
}

Status read_texts(const json& object,
                  std::initializer_list<std::pair<const char*, std::string*>> to) {
  for (const auto& [key, field] : to) {
    Result<std::string> text = text_of(object, key);
    if (!text.ok()) return text.status();
    *field = std::move(*text);
  }
  return {};
}

}  // namespace

Result<ScriptedReader> ScriptedReader::load(const std::string& statements_path,
                                            const Corpus& corpus) {
  ScriptedReader reader;
  reader.statements_.resize(static_cast<size_t>(corpus.size()));
  reader.titles_.reserve(static_cast<size_t>(corpus.size()));
  for (int64_t i = 0; i < corpus.size(); ++i) {
    const Result<Passage> passage = corpus.passage(i);
    if (!passage.ok()) return passage.status();
    reader.document_of_.emplace(passage->id, i);
    const std::string_view title = passage->title;
    reader.titles_.emplace_back(title.substr(0, std::min(title.find(": "), title.find(" ("))));
  }
  std::ifstream file(statements_path);
  if (!file) {
    return not_found(
        "{}: cannot be opened; expected the statements.jsonl that `gradus data make "
        "multihop` writes",
        statements_path);
  }
  int64_t number = 0;
  for (std::string line; std::getline(file, line);) {
    ++number;
    const json row = json::parse(line, nullptr, false);
    Status status = row.is_object() ? Status() : invalid_argument("not a JSON object");
    std::string passage;
    Statement statement;
    if (status.ok()) {
      status = read_texts(row, {{"passage", &passage},
                                {"relation", &statement.relation},
                                {"subject", &statement.subject},
                                {"value", &statement.value}});
    }
    const auto document = reader.document_of_.find(passage);
    if (status.ok() && document == reader.document_of_.end()) {
      status = invalid_argument(
          "passage '{}' is not in the corpus; build the index of the corpus that was made with "
          "these statements",
          passage);
    }
    if (!status.ok()) return status.with_prefix(fmt::format("{}:{}", statements_path, number));
    reader.statements_[static_cast<size_t>(document->second)].push_back(std::move(statement));
  }
  return reader;
}

Result<SearchQuestion> ScriptedReader::question(const data::Row& row) const {
  const json extra = json::parse(row.extra_info, nullptr, false);
  const auto read = [&]() -> Result<SearchQuestion> {
    SearchQuestion question;
    GRADUS_RETURN_IF_ERROR(read_texts(extra, {{"kind", &question.kind}}));
    question.ground_truth = row.ground_truth;
    question.text = row.messages.empty() ? row.text : row.messages.back().content;
    const auto searches = extra.find("searches");
    if (searches == extra.end() || !searches->is_array() || searches->empty()) {
      return invalid_argument("'searches' is missing; expected a list of searches");
    }
    for (const json& entry : *searches) {
      data::MultihopSearch search;
      GRADUS_RETURN_IF_ERROR(read_texts(entry, {{"query", &search.query},
                                                {"explicit_query", &search.explicit_query},
                                                {"passage", &search.passage_id},
                                                {"answer", &search.answer},
                                                {"relation", &search.relation},
                                                {"subject", &search.subject}}));
      search.is_elliptical = search.query != search.explicit_query;
      const auto from = entry.find("from");
      if (from == entry.end() || !from->is_number_integer() || from->get<int64_t>() < -1 ||
          from->get<int64_t>() >= static_cast<int64_t>(question.searches.size())) {
        return invalid_argument("'from' is {}; expected the number of an earlier search, or -1",
                                from == entry.end() ? "missing" : from->dump());
      }
      search.from = from->get<int64_t>();
      const auto document = document_of_.find(search.passage_id);
      if (document == document_of_.end()) {
        return invalid_argument("passage '{}' is not in the corpus of the index",
                                search.passage_id);
      }
      question.passages.push_back(document->second);
      question.searches.push_back(std::move(search));
    }
    if (question.kind == "comparison" && question.searches.size() != 4) {
      return invalid_argument("a comparison has {} searches; expected 4", question.searches.size());
    }
    return question;
  };
  if (!extra.is_object()) return invalid_argument("{}: extra_info is no object", place_of(row));
  Result<SearchQuestion> question = read();
  if (!question.ok()) return question.status().with_prefix(place_of(row) + ": extra_info");
  return question;
}

std::string ScriptedReader::query(const SearchQuestion& question,
                                  std::span<const SearchTurn> turns) const {
  GRADUS_CHECK(turns.size() < question.searches.size(), "ScriptedReader: no search is left");
  const data::MultihopSearch& search = question.searches[turns.size()];
  return search.is_elliptical ? search.query
                              : as_believed(search.explicit_query, question, search, turns);
}

std::string ScriptedReader::read(const SearchQuestion& question, std::span<const SearchTurn> turns,
                                 std::span<const int64_t> documents) const {
  if (documents.empty()) return "";
  const data::MultihopSearch& search = question.searches[turns.size()];
  const std::string subject = as_believed(search.subject, question, search, turns);
  for (const int64_t document : documents) {
    for (const Statement& statement : statements_[static_cast<size_t>(document)]) {
      if (statement.relation == search.relation && statement.subject == subject) {
        return statement.value;
      }
    }
  }
  const auto first = static_cast<size_t>(documents[0]);
  for (const Statement& statement : statements_[first]) {
    if (statement.relation == search.relation) return statement.value;
  }
  return titles_[first];
}

std::string ScriptedReader::answer(const SearchQuestion& question,
                                   std::span<const SearchTurn> turns) const {
  if (question.kind != "comparison") return turns.back().answer;
  return people(turns[1].answer) > people(turns[3].answer) ? turns[0].answer : turns[2].answer;
}

}  // namespace gradus::retriever
