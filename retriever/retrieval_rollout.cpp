// SPDX-License-Identifier: Apache-2.0
#include "retriever/retrieval_rollout.h"

#include <algorithm>
#include <map>

#include "common/check.h"
#include "retriever/policy.h"

namespace gradus::retriever {
namespace {

// Ids of a text without [CLS] and [SEP], at most `most` of them.
Result<std::vector<int32_t>> pieces_of(const Embedder& embedder, const std::string& text,
                                       int64_t most) {
  Result<std::vector<int32_t>> ids = embedder.tokenize(text);
  if (!ids.ok()) return ids.status();
  ids->pop_back();
  ids->erase(ids->begin());
  ids->resize(std::min(ids->size(), static_cast<size_t>(most)));
  return ids;
}

}  // namespace

Result<std::vector<int32_t>> state_tokens(const Embedder& embedder, const std::string& query,
                                          std::span<const SearchTurn> turns,
                                          const std::string& question, bool with_history) {
  if (!with_history) return embedder.tokenize(query);
  const int64_t room = embedder.max_tokens() - 2;
  Result<std::vector<int32_t>> state = embedder.tokenize("");
  const Result<std::vector<int32_t>> bar = pieces_of(embedder, "|", 1);
  const Result<std::vector<int32_t>> asked = pieces_of(embedder, query, room * 3 / 8);
  const Result<std::vector<int32_t>> whole = pieces_of(embedder, question, room / 4);
  for (const Status& status : {state.status(), bar.status(), asked.status(), whole.status()}) {
    GRADUS_RETURN_IF_ERROR(status);
  }
  std::vector<int32_t> middle;
  for (size_t i = turns.size(); i-- > 0;) {
    const Result<std::vector<int32_t>> answer = pieces_of(embedder, turns[i].answer, room);
    if (!answer.ok()) return answer.status();
    // With the two bars that come before it and before the question.
    if (static_cast<int64_t>(asked->size() + middle.size() + answer->size() + 2 + whole->size()) >
        room) {
      break;
    }
    middle.insert(middle.end(), bar->begin(), bar->end());
    middle.insert(middle.end(), answer->begin(), answer->end());
  }
  middle.insert(middle.end(), bar->begin(), bar->end());
  middle.insert(middle.end(), whole->begin(), whole->end());
  middle.insert(middle.begin(), asked->begin(), asked->end());
  state->insert(state->begin() + 1, middle.begin(), middle.end());
  return state;
}

Result<std::vector<RetrievalTrajectory>> sample_retrievals(
    Embedder& embedder, const IndexFolder& index, const ScriptedReader& reader,
    std::span<const SearchQuestion* const> questions, int64_t num_samples,
    std::span<const uint64_t> seeds_R, const RetrievalOptions& options,
    const std::function<void(int64_t)>& progress) {
  std::vector<RetrievalTrajectory> all(questions.size() * static_cast<size_t>(num_samples));
  GRADUS_CHECK(seeds_R.size() == all.size(), "sample_retrievals: one seed per trajectory");
  const auto question_of = [&](size_t i) -> const SearchQuestion& {
    return *questions[i / static_cast<size_t>(num_samples)];
  };
  int64_t num_done = 0;
  for (size_t hop = 0;; ++hop) {
    std::vector<size_t> active;
    for (size_t i = 0; i < all.size(); ++i) {
      if (hop < question_of(i).searches.size()) active.push_back(i);
    }
    if (active.empty()) break;
    // Each state once.
    std::map<std::vector<int32_t>, int64_t> row_of;
    std::vector<std::vector<int32_t>> states;
    std::vector<int64_t> row(active.size());
    for (size_t n = 0; n < active.size(); ++n) {
      const size_t i = active[n];
      const SearchQuestion& question = question_of(i);
      SearchTurn turn;
      turn.query = reader.query(question, all[i].turns);
      Result<std::vector<int32_t>> state =
          state_tokens(embedder, turn.query, all[i].turns, question.text, options.with_history);
      if (!state.ok()) return state.status().with_prefix(question.text);
      const auto [place, is_new] =
          row_of.emplace(std::move(*state), static_cast<int64_t>(states.size()));
      if (is_new) states.push_back(place->first);
      row[n] = place->second;
      all[i].turns.push_back(std::move(turn));
    }
    const std::vector<float> vectors = embedder.embed_tokens(states);
    const Result<Hits> hits =
        index.search(vectors, options.greedy ? options.list_length : options.pool_size);
    if (!hits.ok()) return hits.status();
    for (size_t n = 0; n < active.size(); ++n) {
      RetrievalTrajectory& trajectory = all[active[n]];
      RetrievalStep step;
      step.token_ids = states[static_cast<size_t>(row[n])];
      step.temperature = options.temperature;
      std::vector<double> scores;
      for (int64_t t = row[n] * hits->top; t < (row[n] + 1) * hits->top; ++t) {
        if (hits->ids[static_cast<size_t>(t)] < 0) break;
        step.pool.push_back(hits->ids[static_cast<size_t>(t)]);
        scores.push_back(hits->scores[static_cast<size_t>(t)]);
      }
      const Result<Ranking> drawn = draw_ranking({.scores_K = scores,
                                                  .ids_K = step.pool,
                                                  .temperature = options.temperature,
                                                  .k = options.list_length,
                                                  .greedy = options.greedy,
                                                  .seed = seeds_R[active[n]],
                                                  .hop = static_cast<uint32_t>(hop)});
      if (!drawn.ok()) return drawn.status();
      step.places = drawn->places;
      step.logprob = drawn->logprob;
      SearchTurn& turn = trajectory.turns.back();
      for (const int32_t place : step.places) {
        turn.documents.push_back(step.pool[static_cast<size_t>(place)]);
      }
      turn.answer = reader.read(question_of(active[n]), std::span(trajectory.turns).first(hop),
                                turn.documents);
      trajectory.steps.push_back(std::move(step));
    }
    num_done += static_cast<int64_t>(active.size());
    if (progress) progress(num_done);
  }
  for (size_t i = 0; i < all.size(); ++i) {
    all[i].answer = reader.answer(question_of(i), all[i].turns);
  }
  return all;
}

}  // namespace gradus::retriever
