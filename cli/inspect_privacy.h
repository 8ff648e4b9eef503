// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>

#include "common/status.h"
#include "privacy/accounting.h"

// `gradus inspect privacy`: what a run costs, or the noise for a cost (docs/privacy.md).
namespace gradus::cli {

struct PrivacyQuestion {
  privacy::SampledGaussian run{};
  double delta = 0;
  std::optional<double> epsilon{};  // asks for the noise multiplier; `run` then has none
};

// {"rdp": {"epsilon", "order"}, "prv": {"lower", "estimate", "upper"}}, or with an epsilon
// {"noise_multiplier": {"rdp", "prv"}}. What the PRV accountant cannot say is {"error": why} there;
// the RDP accountant's error is the answer's.
Result<std::string> inspect_privacy(const PrivacyQuestion& question);

}  // namespace gradus::cli
