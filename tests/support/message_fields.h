// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include <cstddef>
#include <string>

#include "common/check.h"

// Whether a struct and its Protobuf message say the same: as many fields each, and every field
// comes back.
namespace gradus::testing {

struct AnyValue {
  template <class T>
  operator T() const;  // NOLINT(google-explicit-constructor): it is for initialising anything
};

// Fields of an aggregate: the most values that it can be initialised with.
template <class T, class... Values>
constexpr size_t num_fields() {
  if constexpr (requires { T{Values{}..., AnyValue{}}; }) {
    return num_fields<T, Values..., AnyValue>();
  } else {
    return sizeof...(Values);
  }
}

// Gives every field of the message, and of the messages in it, a value that is not its default and
// differs from the others'; repeated ones get two. `set_known` then sets what must make sense.
inline void fill(google::protobuf::Message& message, int& counter) {
  using google::protobuf::FieldDescriptor;
  const google::protobuf::Reflection& access = *message.GetReflection();
  for (int i = 0; i < message.GetDescriptor()->field_count(); ++i) {
    const FieldDescriptor* field = message.GetDescriptor()->field(i);
    for (int copy = 0; copy < (field->is_repeated() ? 2 : 1); ++copy) {
      const int value = ++counter;
      switch (field->cpp_type()) {
#define GRADUS_FILL(TYPE, Name, expression)                               \
  case FieldDescriptor::TYPE:                                             \
    field->is_repeated() ? access.Add##Name(&message, field, expression)  \
                         : access.Set##Name(&message, field, expression); \
    break;
        GRADUS_FILL(CPPTYPE_INT32, Int32, value)
        GRADUS_FILL(CPPTYPE_INT64, Int64, value)
        GRADUS_FILL(CPPTYPE_UINT64, UInt64, static_cast<uint64_t>(value) << 40)
        GRADUS_FILL(CPPTYPE_DOUBLE, Double, value + 0.1)
        GRADUS_FILL(CPPTYPE_FLOAT, Float, static_cast<float>(value) + 0.1f)
        GRADUS_FILL(CPPTYPE_BOOL, Bool, true)
        GRADUS_FILL(CPPTYPE_ENUM, EnumValue, 1)
        GRADUS_FILL(CPPTYPE_STRING, String, "\xFF text " + std::to_string(value))
#undef GRADUS_FILL
        case FieldDescriptor::CPPTYPE_MESSAGE:
          fill(field->is_repeated() ? *access.AddMessage(&message, field)
                                    : *access.MutableMessage(&message, field),
               counter);
          break;
        default:
          GRADUS_CHECK(false, "a message has a field of a type that fill() does not know");
      }
    }
  }
}

}  // namespace gradus::testing
