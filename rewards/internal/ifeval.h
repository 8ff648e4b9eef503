// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"

// The 25 kinds of verifiable instructions of IFEval (Zhou et al. 2023, arXiv:2311.07911, Table 1),
// with the names and parameters of its data set. Written from the paper and the data set; sentences
// and the language are found by rules of our own.
namespace gradus::rewards {

const std::vector<std::string>& ifeval_kinds();  // "keywords:existence", ..., sorted

// InvalidArgument for an unknown kind, with the nearest one, or a parameter that is missing or of
// the wrong type. Parameters of other kinds, and those that are null, are ignored: rows of the data
// set carry all names.
Status check_instruction(const std::string& kind, const nlohmann::json& parameters);

// Whether a response follows an instruction that check_instruction() accepts; an empty response
// follows none. Time linear in the response.
bool follows_instruction(const std::string& kind, const nlohmann::json& parameters,
                         std::string_view response);

int64_t num_sentences(std::string_view text);

}  // namespace gradus::rewards
