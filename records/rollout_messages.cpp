// SPDX-License-Identifier: Apache-2.0
#include "records/rollout_messages.h"

#include <limits>

#include "data/wire/flow.pb.h"
#include "data/wire/flow_messages.h"

namespace gradus::records {

void to_message(const RolloutRecord& record, wire::RolloutRecord& message) {
  message.set_step(record.step);
  message.set_data_position(record.data_position);
  data::to_message(record.trajectory, *message.mutable_trajectory());
  message.set_prompt(record.prompt);
  message.set_task(record.task);
  message.set_answer(record.answer);
  message.set_reward(record.reward);
  message.set_advantage(record.advantage);
  message.mutable_values()->Add(record.values.begin(), record.values.end());
  for (const RewardPartRecord& part : record.parts) {
    wire::RewardPartRecord& added = *message.add_parts();
    added.set_name(part.name);
    added.set_raw(part.raw);
    added.set_weight(part.weight);
    added.set_weighted(part.weighted);
    added.set_status(part.status);
    added.set_detail(part.detail);
  }
}

Result<RolloutRecord> from_message(const wire::RolloutRecord& message) {
  RolloutRecord record;
  record.step = message.step();
  record.data_position = message.data_position();
  Result<data::Trajectory> trajectory = data::from_message(message.trajectory());
  if (!trajectory.ok()) return trajectory.status();
  record.trajectory = std::move(*trajectory);
  record.prompt = message.prompt();
  record.task = message.task();
  record.answer = message.answer();
  record.reward = message.reward();
  record.advantage = message.advantage();
  record.values.assign(message.values().begin(), message.values().end());
  for (const wire::RewardPartRecord& part : message.parts()) {
    record.parts.push_back(
        {part.name(), part.raw(), part.weight(), part.weighted(), part.status(), part.detail()});
  }
  return record;
}

std::string encode(std::span<const RolloutRecord> records) {
  wire::RolloutRecords message;
  for (const RolloutRecord& record : records) to_message(record, *message.add_records());
  return message.SerializeAsString();
}

Result<std::vector<RolloutRecord>> decode_rollouts(std::string_view bytes) {
  wire::RolloutRecords message;
  const bool fits = bytes.size() <= static_cast<size_t>(std::numeric_limits<int>::max());
  if (!fits || !message.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    return data_loss(
        "a message of {} bytes is no list of rollouts; it was cut or damaged on its way",
        bytes.size());
  }
  std::vector<RolloutRecord> records;
  for (const wire::RolloutRecord& one : message.records()) {
    Result<RolloutRecord> record = from_message(one);
    if (!record.ok()) return record.status();
    records.push_back(std::move(*record));
  }
  return records;
}

}  // namespace gradus::records
