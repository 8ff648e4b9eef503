// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fmt/format.h>

#include <string>
#include <utility>
#include <variant>

#include "common/check.h"

namespace gradus {

// What kind of mistake a user, a file or the machine made. Bugs of ours are not statuses: they
// throw InternalError (common/check.h).
enum class StatusCode { kOk, kInvalidArgument, kNotFound, kDataLoss, kUnavailable, kInternal };

// Outcome of a call that a user or a file can make go wrong. The message reads
// `where: what is wrong (value seen); what was expected; remedy`, lower case, no full stop.
// Value type; const calls are thread-safe.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == StatusCode::kOk; }
  StatusCode code() const { return code_; }
  const std::string& message() const { return message_; }

  // The same status with `where: ` put before its message; ok stays ok.
  Status with_prefix(const std::string& where) const {
    return ok() ? *this : Status(code_, where + ": " + message_);
  }

 private:
  StatusCode code_ = StatusCode::kOk;
  std::string message_;
};

template <class... Args>
Status invalid_argument(fmt::format_string<Args...> format, Args&&... args) {
  return {StatusCode::kInvalidArgument, fmt::format(format, std::forward<Args>(args)...)};
}
template <class... Args>
Status not_found(fmt::format_string<Args...> format, Args&&... args) {
  return {StatusCode::kNotFound, fmt::format(format, std::forward<Args>(args)...)};
}
template <class... Args>
Status data_loss(fmt::format_string<Args...> format, Args&&... args) {
  return {StatusCode::kDataLoss, fmt::format(format, std::forward<Args>(args)...)};
}
template <class... Args>
Status unavailable(fmt::format_string<Args...> format, Args&&... args) {
  return {StatusCode::kUnavailable, fmt::format(format, std::forward<Args>(args)...)};
}

// A value of T or the Status that explains its absence. `value()` of a failed result is a bug and
// throws.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : content_(std::move(value)) {}        // NOLINT(google-explicit-constructor)
  Result(Status status) : content_(std::move(status)) {  // NOLINT(google-explicit-constructor)
    GRADUS_CHECK(!std::get<Status>(content_).ok(), "Result made from an ok status");
  }

  bool ok() const { return std::holds_alternative<T>(content_); }
  Status status() const { return ok() ? Status() : std::get<Status>(content_); }
  T& value() & {
    GRADUS_CHECK(ok(), std::get<Status>(content_).message());
    return std::get<T>(content_);
  }
  const T& value() const& {
    GRADUS_CHECK(ok(), std::get<Status>(content_).message());
    return std::get<T>(content_);
  }
  T&& value() && {
    GRADUS_CHECK(ok(), std::get<Status>(content_).message());
    return std::get<T>(std::move(content_));
  }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }

 private:
  std::variant<T, Status> content_;
};

}  // namespace gradus

// Returns the Status of `expression` from the enclosing function unless it is ok.
#define GRADUS_RETURN_IF_ERROR(expression)           \
  do {                                               \
    ::gradus::Status gradus_status_ = (expression);  \
    if (!gradus_status_.ok()) return gradus_status_; \
  } while (false)
