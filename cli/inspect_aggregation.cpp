// SPDX-License-Identifier: Apache-2.0
#include "cli/inspect_aggregation.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "cli/json_input.h"
#include "cli/json_lines.h"
#include "common/config/bind.h"
#include "common/strings.h"
#include "federated/round.h"

namespace gradus::cli {
namespace {

using Json = nlohmann::ordered_json;
using federated::ClientReport;

struct InputClient {
  ClientReport report;
  int64_t staleness = 0;
  std::vector<float> values;  // update, then what the strategy asks for beyond it
};

struct Input {
  std::vector<InputClient> clients;
  std::vector<federated::TensorSlice> tensors;
  std::map<std::string, std::vector<float>> server_state;
  int64_t num_parameters = 0;
};

Status check_keys(const Json& object, const std::string& where,
                  const std::vector<std::string>& known) {
  if (!object.is_object()) return invalid_argument("{}: must be an object of keys", where);
  for (const auto& [key, value] : object.items()) {
    if (std::find(known.begin(), known.end(), key) == known.end()) {
      return invalid_argument("{}: unknown key '{}'{}", where, key, did_you_mean(key, known));
    }
  }
  return {};
}

bool has(const Json& object, const char* key) {
  return object.contains(key) && !object.at(key).is_null();
}

Status read_integer(const Json& value, const std::string& where, int64_t& into) {
  const Result<double> number = finite_number(value, where);
  if (!number.ok()) return number.status();
  if (!value.is_number_integer() || *number < 0) {
    return invalid_argument("{} is {}; it must be an integer of at least 0", where, shown(value));
  }
  into = value.get<int64_t>();
  return {};
}

Status read_floats(const Json& array, const std::string& where, std::vector<float>& into) {
  if (!array.is_array()) {
    return invalid_argument("{} is {}; it must be a list of numbers", where, shown(array));
  }
  for (size_t j = 0; j < array.size(); ++j) {
    const Result<double> number = finite_number(array[j], fmt::format("{}[{}]", where, j));
    if (!number.ok()) return number.status();
    into.push_back(static_cast<float>(*number));
  }
  return {};
}

Result<InputClient> read_client(const Json& row, const std::string& where) {
  GRADUS_RETURN_IF_ERROR(check_keys(row, where,
                                    {"num_samples", "score", "num_steps", "loss", "staleness",
                                     "label_counts", "delta", "control_delta"}));
  if (!has(row, "num_samples")) return invalid_argument("{}: missing 'num_samples'", where);
  InputClient client;
  const auto place = [&](const char* key) { return fmt::format("{}.{}", where, key); };
  GRADUS_RETURN_IF_ERROR(
      read_integer(row["num_samples"], place("num_samples"), client.report.num_samples));
  if (has(row, "num_steps")) {
    GRADUS_RETURN_IF_ERROR(
        read_integer(row["num_steps"], place("num_steps"), client.report.num_steps.emplace()));
  }
  if (has(row, "staleness")) {
    GRADUS_RETURN_IF_ERROR(read_integer(row["staleness"], place("staleness"), client.staleness));
  }
  for (const char* key : {"score", "loss"}) {
    if (!has(row, key)) continue;
    const Result<double> number = finite_number(row[key], place(key));
    if (!number.ok()) return number.status();
    (key == std::string("score") ? client.report.score : client.report.loss) = *number;
  }
  if (has(row, "label_counts")) {
    if (!row["label_counts"].is_array()) {
      return invalid_argument("{} is {}; it must be a list of numbers", place("label_counts"),
                              shown(row["label_counts"]));
    }
    for (size_t c = 0; c < row["label_counts"].size(); ++c) {
      GRADUS_RETURN_IF_ERROR(read_integer(row["label_counts"][c],
                                          fmt::format("{}.label_counts[{}]", where, c),
                                          client.report.label_counts.emplace_back()));
    }
  }
  for (const char* key : {"delta", "control_delta"}) {
    if (has(row, key)) {
      GRADUS_RETURN_IF_ERROR(read_floats(row[key], place(key), client.values));
    }
  }
  return client;
}

Status read_tensors(const Json& rows, const std::string& where, Input& input) {
  int64_t begin = 0;
  for (const Json& row : rows) {
    if (!row.is_object() || !row.contains("name") || !row["name"].is_string() ||
        !row.contains("size") || !row["size"].is_number_unsigned()) {
      return invalid_argument("{}: tensors must be objects of \"name\" and \"size\"", where);
    }
    input.tensors.push_back({row["name"], begin, row["size"].get<int64_t>()});
    begin += row["size"].get<int64_t>();
  }
  if (begin != input.num_parameters) {
    return invalid_argument("{}: tensors have {} values together; the deltas have {}", where, begin,
                            input.num_parameters);
  }
  return {};
}

Result<Input> read_clients(const std::string& text, const std::string& where) {
  const Result<Json> parsed = parse_input(text, where);
  if (!parsed.ok()) return parsed.status();
  const Json& root = *parsed;
  if (!root.is_object() || !root.contains("clients") || !root["clients"].is_array() ||
      root["clients"].empty()) {
    return invalid_argument("{}: must be an object with \"clients\", a list of at least one client",
                            where);
  }
  GRADUS_RETURN_IF_ERROR(check_keys(root, where, {"clients", "server_state", "tensors"}));
  Input input;
  size_t with_delta = 0;
  for (size_t k = 0; k < root["clients"].size(); ++k) {
    const Json& row = root["clients"][k];
    const std::string place = fmt::format("{}: clients[{}]", where, k);
    Result<InputClient> client = read_client(row, place);
    if (!client.ok()) return client.status();
    client->report.client_id = static_cast<int64_t>(k);
    if (has(row, "delta")) {
      const auto size = static_cast<int64_t>(row["delta"].size());
      if (with_delta++ == 0) input.num_parameters = size;
      if (size != input.num_parameters) {
        return invalid_argument(
            "{}.delta has {} values, the first delta has {}; they must be of "
            "equal length",
            place, size, input.num_parameters);
      }
    }
    input.clients.push_back(std::move(*client));
  }
  if (with_delta != 0 && with_delta != input.clients.size()) {
    return invalid_argument("{}: {} of {} clients have a delta; all or none must", where,
                            with_delta, input.clients.size());
  }
  if (has(root, "tensors")) GRADUS_RETURN_IF_ERROR(read_tensors(root["tensors"], where, input));
  if (!has(root, "server_state")) return input;
  if (!root["server_state"].is_object()) {
    return invalid_argument("{}: server_state must be an object of lists", where);
  }
  for (const auto& [name, values] : root["server_state"].items()) {
    GRADUS_RETURN_IF_ERROR(read_floats(values, fmt::format("{}: server_state.{}", where, name),
                                       input.server_state[name]));
  }
  return input;
}

Status set_state(const Input& input, const std::string& where, federated::Aggregator& aggregator) {
  std::vector<std::string> known;
  Status status;
  aggregator.visit_state([&](const std::string& name, std::vector<float>& values) {
    known.push_back(name);
    const auto found = input.server_state.find(name);
    if (found == input.server_state.end()) return;
    const size_t size = values.empty() ? static_cast<size_t>(input.num_parameters) : values.size();
    if (found->second.size() != size) {
      status = invalid_argument("{}: server_state.{} has {} values; it must have {}", where, name,
                                found->second.size(), size);
      return;
    }
    values = found->second;
  });
  for (const auto& [name, values] : input.server_state) {
    if (std::find(known.begin(), known.end(), name) != known.end()) continue;
    return invalid_argument(
        "{}: server_state.{}: strategy {} keeps {}{}", where, name, aggregator.config().name,
        known.empty() ? "no state" : join(known, " and "), did_you_mean(name, known));
  }
  return status;
}

// Adds the clients to a round of the model version that makes their staleness what it says.
Status add_clients(std::vector<InputClient>& clients, const federated::Aggregator& aggregator,
                   int64_t version, const std::string& where, federated::Round& round) {
  for (InputClient& client : clients) {
    const std::string place = fmt::format("{}: clients[{}]", where, client.report.client_id);
    if (client.staleness > 0 && aggregator.config().staleness_exponent == 0) {
      return invalid_argument(
          "{}.staleness is {}, but strategy {} takes updates of the current model alone; set "
          "staleness_exponent above 0, or take fedbuff",
          place, client.staleness, aggregator.config().name);
    }
    client.report.base_version = version - client.staleness;
    const auto size =
        static_cast<size_t>(aggregator.context().num_parameters * aggregator.num_vectors());
    if (client.values.size() > size) {
      return invalid_argument("{}.control_delta: strategy {} has no control; leave it out", place,
                              aggregator.config().name);
    }
    client.values.resize(size);
    GRADUS_RETURN_IF_ERROR(round.add({client.report, client.values}).with_prefix(place));
  }
  return {};
}

}  // namespace

void InspectedAggregation::visit(FieldVisitor& v) {
  strategy.visit(v);
  v.field("client_lr", client_lr, "Learning rate of the clients (qfedavg).", greater_than(0));
  v.field("client_momentum", client_momentum, "Momentum of the clients (fednova).",
          in_half_open(0, 1));
  v.field("num_clients", num_clients, "Clients of the whole run (scaffold, feddyn, afl).",
          at_least(0));
}

Result<InspectedAggregation> inspected_aggregation(const std::string& strategy,
                                                   std::span<const std::string> overrides) {
  InspectedAggregation defaults;
  defaults.strategy = federated::strategy_preset(strategy);
  Result<LoadedConfig<InspectedAggregation>> loaded =
      load_config<InspectedAggregation>("", overrides, defaults);
  if (!loaded.ok()) return loaded.status();
  const federated::AggregatorConfig chosen = loaded->value.strategy;
  if (chosen.name != strategy || chosen.base != defaults.strategy.base) {
    defaults.strategy = federated::strategy_preset(chosen.name, chosen.base);
    loaded = load_config<InspectedAggregation>("", overrides, defaults);
    if (!loaded.ok()) return loaded.status();
  }
  return loaded->value;
}

Result<std::string> inspect_aggregation(const InspectedAggregation& config,
                                        const std::string& clients, const std::string& where) {
  Result<Input> input = read_clients(clients, where);
  if (!input.ok()) return input.status();
  const auto present = static_cast<int64_t>(input->clients.size());
  if (config.num_clients != 0 && config.num_clients < present) {
    return invalid_argument("num_clients is {}, but {} has {} clients", config.num_clients, where,
                            present);
  }
  Result<std::unique_ptr<federated::Aggregator>> aggregator = federated::make_aggregator(
      config.strategy, {.num_parameters = input->num_parameters,
                        .num_clients = std::max(config.num_clients, present),
                        .client_lr = config.client_lr,
                        .client_momentum = config.client_momentum,
                        .tensors = input->tensors});
  if (!aggregator.ok()) return aggregator.status().with_prefix("--strategy");
  GRADUS_RETURN_IF_ERROR(set_state(*input, where, **aggregator));
  int64_t version = 0;
  for (const InputClient& client : input->clients) version = std::max(version, client.staleness);
  federated::Round round(**aggregator, version);
  GRADUS_RETURN_IF_ERROR(add_clients(input->clients, **aggregator, version, where, round));
  const Result<federated::RoundResult> result = round.finish();
  if (!result.ok()) return result.status().with_prefix(where);
  Json answer;
  answer["weights"] = result->weights_K;
  answer["delta"] = result->delta_P;
  (*aggregator)->visit_state([&](const std::string& name, std::vector<float>& values) {
    Json& list = answer["server_state"][name] = Json::array();
    for (const float value : values) list.push_back(exact_number(value));
  });
  return answer.dump();
}

}  // namespace gradus::cli
