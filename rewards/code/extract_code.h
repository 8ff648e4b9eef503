// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string_view>

namespace gradus::rewards::code {

enum class Language { kPython, kCpp };

// The last fenced block (``` or ~~~ at the start of a line, closed by as many) of the language, by
// its name behind the fence; without such a block the last one without a name. Only what follows
// the last </think> counts, nothing where a <think> does not end. Time is linear in the text.
std::optional<std::string_view> last_code_block(std::string_view response, Language language);

}  // namespace gradus::rewards::code
