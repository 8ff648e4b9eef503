// SPDX-License-Identifier: Apache-2.0
#include "kernels/lm_head.h"

#include <algorithm>

#include "kernels/internal/cuda_call.h"
#include "kernels/internal/cuda_table.h"

namespace gradus::kernels {
namespace {

constexpr int64_t kMaxVocabulary = int64_t{1} << 23;
constexpr int64_t kBlock = 128;

bool aligned(const void* p, uintptr_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

Status check_sizes(std::string_view where, int64_t v, int64_t d) {
  if (v < 1 || v > kMaxVocabulary) {
    return invalid_argument("{}: v must be in [1, 2^23], got {}", where, v);
  }
  if (d < 8 || d % 8 != 0) {
    return invalid_argument("{}: d must be a multiple of 8, at least 8, got {}", where, d);
  }
  return {};
}

Status check_matrix(std::string_view where, std::string_view name, const void* p) {
  if (p == nullptr) return invalid_argument("{}: {} is null", where, name);
  if (aligned(p, 16)) return {};
  return invalid_argument("{}: {} must be 16-byte aligned, got {}", where, name, p);
}

Status check_workspace(std::string_view where, const void* p, size_t bytes, size_t wanted) {
  if (p == nullptr || !aligned(p, 256)) {
    return invalid_argument("{}: workspace must be 256-byte aligned memory, got {}", where, p);
  }
  if (bytes >= wanted) return {};
  return invalid_argument("{}: workspace has {} bytes, needs {}", where, bytes, wanted);
}

Status check(const Cuda& cuda, const LmHeadSampleParams& p) {
  constexpr std::string_view kWhere = "lm_head_sample";
  GRADUS_RETURN_IF_ERROR(check_sizes(kWhere, p.v, p.d));
  GRADUS_RETURN_IF_ERROR(check_matrix(kWhere, "w_VD", p.w_VD));
  GRADUS_RETURN_IF_ERROR(check_matrix(kWhere, "h_BD", p.h_BD));
  if (p.b < 1 || p.b > kLmHeadMaxRows) {
    return invalid_argument("{}: b must be in [1, {}], got {}", kWhere, kLmHeadMaxRows, p.b);
  }
  const int64_t whole = p.vocab_size == 0 ? p.v : p.vocab_size;
  if (whole > kMaxVocabulary) {
    return invalid_argument("{}: vocab_size must be at most 2^23, got {}", kWhere, whole);
  }
  if (p.vocab_begin < 0 || p.vocab_begin % kBlock != 0 || p.vocab_begin + p.v > whole) {
    return invalid_argument(
        "{}: the shard [{}, {}) must begin at a multiple of {} and lie in the vocabulary of {}",
        kWhere, p.vocab_begin, p.vocab_begin + p.v, kBlock, whole);
  }
  if (p.filters && p.v != whole) {
    return invalid_argument("{}: filters need the whole vocabulary in one call, got {} of {}",
                            kWhere, p.v, whole);
  }
  if (p.num_top < 0 || p.num_top > kLmHeadMaxTop) {
    return invalid_argument("{}: num_top must be in [0, {}], got {}", kWhere, kLmHeadMaxTop,
                            p.num_top);
  }
  if (p.num_top > 0 && (!p.filters || p.top_ids_BN == nullptr || p.top_logprobs_BN == nullptr)) {
    return invalid_argument("{}: num_top needs filters, top_ids_BN and top_logprobs_BN", kWhere);
  }
  if (p.rows_B == nullptr) return invalid_argument("{}: rows_B is null", kWhere);
  if (p.token_B == nullptr || p.logprob_B == nullptr) {
    return invalid_argument("{}: token_B and logprob_B must be given", kWhere);
  }
  if (p.workspace_rows != 0 && p.workspace_rows < p.b) {
    return invalid_argument("{}: workspace_rows must be 0 or at least b ({}), got {}", kWhere, p.b,
                            p.workspace_rows);
  }
  return check_workspace(
      kWhere, p.workspace, p.workspace_bytes,
      lm_head_sample_workspace_bytes(cuda, std::max(p.b, p.workspace_rows), whole));
}

Status check(const Cuda& cuda, const LmHeadScoreParams& p) {
  constexpr std::string_view kWhere = "lm_head_score";
  GRADUS_RETURN_IF_ERROR(check_sizes(kWhere, p.v, p.d));
  if (p.b < 0) return invalid_argument("{}: b must be at least 0, got {}", kWhere, p.b);
  if (p.b == 0) return {};
  GRADUS_RETURN_IF_ERROR(check_matrix(kWhere, "w_VD", p.w_VD));
  GRADUS_RETURN_IF_ERROR(check_matrix(kWhere, "h_BD", p.h_BD));
  if (p.temperature_B == nullptr || p.token_B == nullptr || p.logprob_B == nullptr) {
    return invalid_argument("{}: temperature_B, token_B and logprob_B must be given", kWhere);
  }
  return check_workspace(kWhere, p.workspace, p.workspace_bytes,
                         lm_head_score_workspace_bytes(cuda, p.b, p.v));
}

// What backward and train have in common.
template <class Params>
Status check_training(std::string_view where, const Params& p, size_t wanted) {
  GRADUS_RETURN_IF_ERROR(check_matrix(where, "w_VD", p.w_VD));
  GRADUS_RETURN_IF_ERROR(check_matrix(where, "h_BD", p.h_BD));
  GRADUS_RETURN_IF_ERROR(check_matrix(where, "dh_BD", p.dh_BD));
  if (p.dw_VD != nullptr) GRADUS_RETURN_IF_ERROR(check_matrix(where, "dw_VD", p.dw_VD));
  if (p.token_B == nullptr || p.dlogprob_B == nullptr) {
    return invalid_argument("{}: token_B and dlogprob_B must be given", where);
  }
  if (!(p.temperature >= 1e-4f && p.temperature <= 1e4f)) {
    return invalid_argument("{}: temperature must be in [1e-4, 1e4], got {}", where, p.temperature);
  }
  return check_workspace(where, p.workspace, p.workspace_bytes, wanted);
}

Status check(const Cuda& cuda, const LmHeadBackwardParams& p) {
  constexpr std::string_view kWhere = "lm_head_backward";
  GRADUS_RETURN_IF_ERROR(check_sizes(kWhere, p.v, p.d));
  if (p.b < 0) return invalid_argument("{}: b must be at least 0, got {}", kWhere, p.b);
  if (p.b == 0) return {};
  if (p.r < 0 || p.r > p.b || (p.r > 0 && p.rows_R == nullptr)) {
    return invalid_argument("{}: r must be in [0, {}], and 0 without rows_R, got {}", kWhere, p.b,
                            p.r);
  }
  if (p.lse_B == nullptr) return invalid_argument("{}: lse_B must be given", kWhere);
  if (p.dentropy_B != nullptr && p.entropy_B == nullptr) {
    return invalid_argument("{}: dentropy_B needs entropy_B", kWhere);
  }
  const bool given = p.rows_R != nullptr;
  return check_training(kWhere, p,
                        lm_head_backward_workspace_bytes(cuda, given ? p.r : p.b, p.v, p.d, given));
}

Status check(const Cuda& cuda, const LmHeadTrainParams& p) {
  constexpr std::string_view kWhere = "lm_head_train";
  GRADUS_RETURN_IF_ERROR(check_sizes(kWhere, p.v, p.d));
  if (p.b < 0) return invalid_argument("{}: b must be at least 0, got {}", kWhere, p.b);
  if (p.b == 0) return {};
  if (p.logprob_B == nullptr) return invalid_argument("{}: logprob_B must be given", kWhere);
  return check_training(kWhere, p, lm_head_train_workspace_bytes(cuda, p.b, p.v, p.d));
}

}  // namespace

size_t lm_head_sample_workspace_bytes(const Cuda& cuda, int64_t b, int64_t v) {
  return cuda.table().lm_head.sample_workspace_bytes(b, v);
}
size_t lm_head_score_workspace_bytes(const Cuda& cuda, int64_t b, int64_t v) {
  return cuda.table().lm_head.score_workspace_bytes(b, v);
}

Status lm_head_sample(const Cuda& cuda, const LmHeadSampleParams& params) {
  GRADUS_RETURN_IF_ERROR(check(cuda, params));
  return cuda_call(fmt::format("lm_head_sample of {} rows, {} x {}", params.b, params.v, params.d),
                   cuda.table().lm_head.sample, params);
}

Status lm_head_score(const Cuda& cuda, const LmHeadScoreParams& params) {
  GRADUS_RETURN_IF_ERROR(check(cuda, params));
  if (params.b == 0) return {};
  return cuda_call(fmt::format("lm_head_score of {} rows, {} x {}", params.b, params.v, params.d),
                   cuda.table().lm_head.score, params);
}

size_t lm_head_backward_workspace_bytes(const Cuda& cuda, int64_t rows, int64_t v, int64_t d,
                                        bool rows_given) {
  return cuda.table().lm_head.backward_workspace_bytes(rows, v, d, rows_given);
}
size_t lm_head_train_workspace_bytes(const Cuda& cuda, int64_t b, int64_t v, int64_t d) {
  return cuda.table().lm_head.train_workspace_bytes(b, v, d);
}

Status lm_head_backward(const Cuda& cuda, const LmHeadBackwardParams& params) {
  GRADUS_RETURN_IF_ERROR(check(cuda, params));
  if (params.b == 0) return {};
  return cuda_call(
      fmt::format("lm_head_backward of {} rows, {} x {}", params.b, params.v, params.d),
      cuda.table().lm_head.backward, params);
}

Status lm_head_train(const Cuda& cuda, const LmHeadTrainParams& params) {
  GRADUS_RETURN_IF_ERROR(check(cuda, params));
  if (params.b == 0) return {};
  return cuda_call(fmt::format("lm_head_train of {} rows, {} x {}", params.b, params.v, params.d),
                   cuda.table().lm_head.train, params);
}

}  // namespace gradus::kernels
