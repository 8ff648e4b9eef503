// SPDX-License-Identifier: Apache-2.0
#include "trainer/rollout_work.h"

#include <limits>

#include "data/wire/flow.pb.h"
#include "data/wire/flow_messages.h"
#include "records/rollout_messages.h"

namespace gradus::trainer {
namespace {

template <class Message>
Status parse(std::string_view bytes, const char* what, Message& message) {
  // Protobuf counts bytes in an int.
  const bool fits = bytes.size() <= static_cast<size_t>(std::numeric_limits<int>::max());
  if (fits && message.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) return {};
  return data_loss("a message of {} bytes is no {}; it was cut or damaged on its way", bytes.size(),
                   what);
}

}  // namespace

std::string encode(const RolloutWork& work) {
  wire::RolloutWork message;
  message.set_number(work.number);
  message.set_share(work.share);
  message.set_step(work.step);
  message.mutable_weights()->set_version(work.weights.version);
  message.mutable_weights()->set_hash(work.weights.hash);
  message.set_brings_weights(work.brings_weights);
  message.set_is_end(work.is_end);
  for (const data::RolloutRequest& request : work.requests) {
    data::to_message(request, *message.add_requests());
  }
  return message.SerializeAsString();
}

Result<RolloutWork> decode_work(std::string_view bytes) {
  wire::RolloutWork message;
  GRADUS_RETURN_IF_ERROR(parse(bytes, "work for a rollout rank", message));
  RolloutWork work = {
      message.number(),         message.share(),
      message.step(),           {message.weights().version(), message.weights().hash()},
      message.brings_weights(), message.is_end()};
  for (const wire::RolloutRequest& one : message.requests()) {
    Result<data::RolloutRequest> request = data::from_message(one);
    if (!request.ok()) return request.status();
    work.requests.push_back(std::move(*request));
  }
  return work;
}

std::string encode(const RolloutAnswer& answer) {
  wire::RolloutAnswer message;
  message.set_number(answer.number);
  message.set_share(answer.share);
  for (const records::RolloutRecord& record : answer.records) {
    records::to_message(record, *message.add_records());
  }
  message.set_metrics(data::encode(answer.metrics));
  message.set_error_code(answer.error_code);
  message.set_error(answer.error);
  return message.SerializeAsString();
}

Result<RolloutAnswer> decode_answer(std::string_view bytes) {
  wire::RolloutAnswer message;
  GRADUS_RETURN_IF_ERROR(parse(bytes, "answer of a rollout rank", message));
  RolloutAnswer answer;
  answer.number = message.number();
  answer.share = message.share();
  for (const wire::RolloutRecord& one : message.records()) {
    Result<records::RolloutRecord> record = records::from_message(one);
    if (!record.ok()) return record.status();
    answer.records.push_back(std::move(*record));
  }
  Result<Metrics> metrics = data::decode_metrics(message.metrics());
  if (!metrics.ok()) return metrics.status();
  answer.metrics = std::move(*metrics);
  answer.error_code = message.error_code();
  answer.error = message.error();
  return answer;
}

}  // namespace gradus::trainer
