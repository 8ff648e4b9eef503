// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "common/status.h"

// `gradus inspect retrieval`: what the retrieval policy makes of one pool given as JSON, by the
// code that trains.
namespace gradus::cli {

// `text`: {"scores", "k", "temperature", "selected"?, "num_draws"?, "seed"?}, documents numbered by
// their place in "scores". With "selected", an ordered list of k places, the answer has {"logprob",
// "grad"}: its log-probability and the derivative by each score. With "num_draws" it has "counts":
// how often each ordered list, "2,0,1", was drawn. `where` names the text in messages.
Result<std::string> inspect_retrieval(const std::string& text, const std::string& where);

}  // namespace gradus::cli
