// SPDX-License-Identifier: Apache-2.0
#include "trainer/reference_model.h"

#include <algorithm>

namespace gradus::trainer {

CpuReferenceModel::CpuReferenceModel(const model::Transformer& policy)
    : transformer_(policy.config()), pass_(transformer_, false) {
  std::copy_n(policy.parameters(), policy.layout().size, transformer_.parameters());
}

Status CpuReferenceModel::forward(const data::Pack& pack, float temperature) {
  pass_.forward(pack, temperature, false);
  return {};
}

}  // namespace gradus::trainer
