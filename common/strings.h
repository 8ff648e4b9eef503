// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace gradus {

// The name in `names` nearest to `name` by edit distance, or nothing when all are too far (more
// than a third of the length, at least 2) to be what was meant.
std::optional<std::string> nearest_name(std::string_view name, std::span<const std::string> names);

// "; did you mean 'x'?" for the nearest name, or an empty text.
std::string did_you_mean(std::string_view name, std::span<const std::string> names);

// Offset of the first byte that is not part of valid UTF-8 (surrogates and overlong forms are
// invalid too), or nothing if all of `text` is valid.
std::optional<size_t> first_invalid_utf8(std::string_view text);

// `parts` joined by `separator`.
std::string join(std::span<const std::string> parts, std::string_view separator);

// `text` without leading and trailing ASCII white space.
std::string_view trim(std::string_view text);

}  // namespace gradus
