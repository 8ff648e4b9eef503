// SPDX-License-Identifier: Apache-2.0
#include "common/strings.h"
#include "rewards/internal/builtin.h"
#include "rewards/internal/ifeval.h"
#include "rewards/internal/options.h"
#include "rewards/internal/text.h"

// `ifeval`: the response follows the instructions of its prompt. They stand in the row's ground
// truth or its extra_info, under the names of the IFEval data set: instruction_id_list and kwargs.
namespace gradus::rewards {
namespace {

using nlohmann::json;

struct Instructions {
  std::vector<std::string> kinds;
  std::vector<json> parameters;
};

Result<Instructions> read(const data::Prompt& prompt) {
  json source = json::parse(prompt.answer, nullptr, /*allow_exceptions=*/false);
  if (!source.is_object()) {
    source = json::object();
    for (const char* key : {"instruction_id_list", "kwargs"}) {
      const auto found = prompt.metadata.find(key);
      if (found == prompt.metadata.end()) continue;
      source[key] = json::parse(found->second, nullptr, /*allow_exceptions=*/false);
    }
  }
  const auto is_list = [&](const char* key) {
    return source.contains(key) && source[key].is_array();
  };
  if (!is_list("instruction_id_list") || source["instruction_id_list"].empty()) {
    return invalid_argument(
        "no instruction_id_list in the ground truth or in extra_info; expected a list of names");
  }
  const json& kinds = source["instruction_id_list"];
  const json kwargs = is_list("kwargs") ? source["kwargs"] : json::array();
  if (!kwargs.empty() && kwargs.size() != kinds.size()) {
    return invalid_argument("instruction_id_list has {} entries and kwargs {}; expected as many",
                            kinds.size(), kwargs.size());
  }
  Instructions instructions;
  for (size_t i = 0; i < kinds.size(); ++i) {
    if (!kinds[i].is_string()) {
      return invalid_argument("instruction_id_list[{}] is {}; expected a text", i, kinds[i].dump());
    }
    instructions.kinds.push_back(kinds[i].get<std::string>());
    instructions.parameters.push_back(kwargs.empty() ? json::object() : kwargs[i]);
    GRADUS_RETURN_IF_ERROR(
        check_instruction(instructions.kinds.back(), instructions.parameters.back()));
  }
  return instructions;
}

// IFEval's "loose" reading: also without the first line, the last line, both, and stars.
std::vector<std::string> loose_variants(std::string_view response) {
  std::string_view no_first = response, no_last = response;
  const size_t first = response.find('\n'), last = response.rfind('\n');
  no_first = first == std::string_view::npos ? "" : trim(response.substr(first + 1));
  no_last = last == std::string_view::npos ? "" : trim(response.substr(0, last));
  const std::string_view neither =
      first == last ? "" : trim(response.substr(first + 1, last - first - 1));
  std::vector<std::string> variants;
  for (const std::string_view text : {response, no_first, no_last, neither}) {
    variants.emplace_back(text);
    std::string plain(text);
    std::erase(plain, '*');
    variants.push_back(std::move(plain));
  }
  return variants;
}

class IfevalReward : public Reward {
 public:
  bool is_loose = false;
  bool counts_each = false;

  Status check_ground_truth(const data::Prompt& prompt) const override {
    return read(prompt).status();
  }

  std::vector<RewardPart> score_batch(std::span<const Group> groups) const override {
    return score_each(groups, [&](const data::Prompt& prompt, std::string_view response) {
      RewardPart part;
      const Result<Instructions> instructions = read(prompt);
      if (!instructions.ok()) {
        part.status = RewardStatus::kInvalidGold;
        part.detail = instructions.status().message();
        return part;
      }
      const auto visible = visible_part(response);
      const std::vector<std::string> variants =
          !visible   ? std::vector<std::string>()
          : is_loose ? loose_variants(*visible)
                     : std::vector<std::string>{std::string(*visible)};
      double num_followed = 0;
      for (size_t i = 0; i < instructions->kinds.size(); ++i) {
        const std::string& kind = instructions->kinds[i];
        const bool follows = std::any_of(variants.begin(), variants.end(), [&](const auto& text) {
          return follows_instruction(kind, instructions->parameters[i], text);
        });
        if (follows) {
          ++num_followed;
        } else {
          part.detail += (part.detail.empty() ? "not followed: " : ", ") + kind;
        }
      }
      const double num_all = static_cast<double>(instructions->kinds.size());
      part.score = counts_each ? num_followed / num_all : num_followed == num_all ? 1 : 0;
      return part;
    });
  }
};

}  // namespace

Result<std::unique_ptr<Reward>> make_ifeval_reward(const RewardOptions& options) {
  auto reward = std::make_unique<IfevalReward>();
  int reading = 0, score = 0;
  OptionReader reader("ifeval", options);
  reader.choice("reading", {"strict", "loose"}, reading);
  reader.choice("score", {"all", "each"}, score);
  GRADUS_RETURN_IF_ERROR(reader.finish());
  reward->is_loose = reading == 1;
  reward->counts_each = score == 1;
  return std::unique_ptr<Reward>(std::move(reward));
}

}  // namespace gradus::rewards
