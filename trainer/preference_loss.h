// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "trainer/preference_config.h"

// Losses of one pair of responses, chosen c and rejected r, in double. A batch's loss is the mean
// over its pairs on all ranks.
namespace gradus::trainer {

// What the loss of a pair needs of its two responses.
struct PairValues {
  double chosen = 0, rejected = 0;
};

struct PairLoss {
  double loss = 0;
  PairValues slopes;   // of the loss by each value
  PairValues rewards;  // what each response is worth: the score, or the implicit reward of DPO
};

// Bradley-Terry (Bradley and Terry 1952; Ouyang et al. 2022, arXiv:2203.02155, Eq. 1) with the
// margin m of Llama 2 (Touvron et al. 2023, arXiv:2307.09288, Eq. 2) and the centring term of
// Eisenstein et al. 2023, arXiv:2312.09244:
//   -log sigmoid(s_c - s_r - m) + center_coef (s_c + s_r)^2
PairLoss bradley_terry_loss(const PairValues& scores, double margin, double center_coef);

// Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290, Eq. 7) of log-probs of
// whole responses under policy and reference, with log-ratios d = policy - reference and h = d_c -
// d_r; implicit rewards beta d.
//   sigmoid  -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h), e = label_smoothing
//            (conservative DPO, Mitchell 2023)
//   hinge    max(0, 1 - beta h) (Zhao et al. 2023, SLiC, arXiv:2305.10425)
//   ipo      (h - 1 / (2 beta))^2 (Azar et al. 2023, arXiv:2310.12036, Eq. 17), each d divided by
//            its response's tokens, as TRL has it
// To each, sft_coef times the chosen response's negative log-prob per token is added (Pang et al.
// 2024, arXiv:2404.19733, Eq. 3). `num_tokens` are the lengths of the responses.
PairLoss dpo_loss(const DpoConfig& config, const PairValues& policy, const PairValues& reference,
                  const PairValues& num_tokens);

}  // namespace gradus::trainer
