// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

// Writing JSON without a document in memory: metrics and rollouts are long and flat.
namespace gradus::records::internal {

// Where the text will stand: inside an HTML <script> no '<', '>' or '&' may appear, or a rollout
// that says
// "</script>" would end it.
enum class JsonContext { kFile, kHtmlScript };

// Appends `text` as a JSON string. Invalid UTF-8 becomes U+FFFD, since a policy may sample half a
// code point and one bad byte would make the whole line unreadable.
void append_json_string(std::string& out, std::string_view text,
                        JsonContext context = JsonContext::kFile);

// Shortest text that reads back to the same bits. JSON has no word for non-finite numbers: they
// become the strings "NaN", "Infinity" and "-Infinity", which Python's float() and JavaScript's
// Number() read.
void append_json_number(std::string& out, double value);
void append_json_number(std::string& out, float value);

}  // namespace gradus::records::internal
