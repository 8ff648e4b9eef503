// SPDX-License-Identifier: Apache-2.0
#include "cli/inspect_privacy.h"

#include <nlohmann/json.hpp>

namespace gradus::cli {

using Json = nlohmann::ordered_json;

Result<std::string> inspect_privacy(const PrivacyQuestion& question) {
  const auto& run = question.run;
  Json answer;
  if (question.epsilon) {
    Json& found = answer["noise_multiplier"];
    const Result<double> rdp = privacy::noise_multiplier_for(*question.epsilon, question.delta, run,
                                                             privacy::Accountant::kRdp);
    if (!rdp.ok()) return rdp.status();
    found["rdp"] = *rdp;
    const Result<double> prv = privacy::noise_multiplier_for(*question.epsilon, question.delta, run,
                                                             privacy::Accountant::kPrv);
    found["prv"] = prv.ok() ? Json(*prv) : Json{{"error", prv.status().message()}};
    return answer.dump();
  }
  const Result<privacy::RdpCost> rdp = privacy::rdp_cost({&run, 1}, question.delta);
  if (!rdp.ok()) return rdp.status();
  answer["rdp"] = {{"epsilon", rdp->epsilon}, {"order", rdp->order}};
  const Result<privacy::PrvCost> prv = privacy::prv_cost({&run, 1}, question.delta);
  answer["prv"] =
      prv.ok() ? Json{{"lower", prv->lower}, {"estimate", prv->estimate}, {"upper", prv->upper}}
               : Json{{"error", prv.status().message()}};
  return answer.dump();
}

}  // namespace gradus::cli
