// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

namespace gradus::rewards {

// The language that a text is mostly written in, as ISO 639-1: by script, and within a script by
// letters and frequent words of its own. Empty: no letters, or too few signs to tell. Knows the
// languages that IFEval asks for: ar bg bn de en es fa fi fr gu he hi it ja kn ko ml mr ne pa pl pt
// ru sw ta te th uk ur vi, and zh. Looks at the first 64 KiB. Thread-safe.
std::string language_of(std::string_view text);

}  // namespace gradus::rewards
