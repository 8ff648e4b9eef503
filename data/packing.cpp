// SPDX-License-Identifier: Apache-2.0
#include "data/packing.h"

#include "common/check.h"

namespace gradus::data {
namespace {

void append_run(Pack& pack, std::span<const int32_t> tokens, int64_t first_position,
                int64_t prompt_run) {
  const PackRun run{pack.num_rows(), static_cast<int64_t>(tokens.size()), first_position,
                    prompt_run};
  for (int64_t i = 0; i < run.num_rows; ++i) {
    pack.token_ids.push_back(tokens[static_cast<size_t>(i)]);
    pack.positions.push_back(static_cast<int32_t>(first_position + i));
  }
  pack.runs.push_back(run);
}

}  // namespace

int64_t num_pack_rows(const PackGroup& group) {
  int64_t rows = static_cast<int64_t>(group.prompt.size());
  for (const auto& response : group.responses) rows += static_cast<int64_t>(response.size()) - 1;
  return rows;
}

int64_t num_pack_targets(const PackGroup& group, size_t response) {
  int64_t count = static_cast<int64_t>(group.responses[response].size());
  if (group.observations.empty()) return count;
  for (const Observation& observation : group.observations[response]) {
    count -= observation.end - observation.begin;
  }
  return count;
}

Pack make_pack(std::span<const PackGroup> groups) {
  Pack pack;
  pack.group_begin.push_back(0);
  for (const PackGroup& group : groups) {
    GRADUS_CHECK(!group.prompt.empty(), "a group's prompt has no tokens");
    const int64_t prompt_length = static_cast<int64_t>(group.prompt.size());
    const int64_t prompt_run = static_cast<int64_t>(pack.runs.size());
    append_run(pack, group.prompt, 0, -1);
    const int64_t last_prompt_row = pack.num_rows() - 1;
    for (size_t r = 0; r < group.responses.size(); ++r) {
      const std::vector<int32_t>& response = group.responses[r];
      GRADUS_CHECK(!response.empty(), "a response has no tokens");
      const int64_t first_row = pack.num_rows();
      if (response.size() > 1) {
        append_run(pack, std::span(response).first(response.size() - 1), prompt_length, prompt_run);
      }
      int64_t begin = 0;  // of the predicted tokens up to the next observation
      const auto predict_until = [&](int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          pack.targets.push_back(
              {i == 0 ? last_prompt_row : first_row + i - 1, response[static_cast<size_t>(i)]});
        }
      };
      if (!group.observations.empty()) {
        for (const Observation& observation : group.observations[r]) {
          predict_until(observation.begin);
          begin = observation.end;
        }
      }
      predict_until(static_cast<int64_t>(response.size()));
    }
    pack.group_begin.push_back(static_cast<int64_t>(pack.runs.size()));
  }
  return pack;
}

std::vector<int64_t> cut_micro_batches(std::span<const int64_t> rows_per_group, int64_t max_rows) {
  std::vector<int64_t> cuts = {0};
  int64_t rows = 0;
  for (size_t i = 0; i < rows_per_group.size(); ++i) {
    if (rows > 0 && rows + rows_per_group[i] > max_rows) {
      cuts.push_back(static_cast<int64_t>(i));
      rows = 0;
    }
    rows += rows_per_group[i];
  }
  if (!rows_per_group.empty()) cuts.push_back(static_cast<int64_t>(rows_per_group.size()));
  return cuts;
}

}  // namespace gradus::data
