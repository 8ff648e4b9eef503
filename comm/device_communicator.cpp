// SPDX-License-Identifier: Apache-2.0
#include "comm/device_communicator.h"

#include <cstring>
#include <string>
#include <utility>

namespace gradus::comm {
namespace {

// Rank 0's, on all ranks.
Result<kernels::NcclId> share_id(const kernels::Cuda& cuda, Communicator& host,
                                 const kernels::NcclOptions& options) {
  kernels::NcclId id;
  Status made;
  if (host.rank() == 0 && host.size() > 1) {
    const Result<kernels::NcclId> fresh = make_nccl_id(cuda, options);
    made = fresh.status();
    if (fresh.ok()) id = *fresh;
  }
  GRADUS_RETURN_IF_ERROR(agree(host, made, "NCCL's id"));
  const std::string mine(id.bytes, host.rank() == 0 ? sizeof(id.bytes) : 0);
  const std::string shared = host.all_gather(mine, "NCCL's id")[0];
  std::memcpy(id.bytes, shared.data(), sizeof(id.bytes));
  return id;
}

}  // namespace

Result<std::unique_ptr<DeviceCommunicator>> DeviceCommunicator::create(
    const kernels::Cuda& cuda, Communicator& host, const kernels::NcclOptions& options) {
  const Result<kernels::NcclId> id = share_id(cuda, host, options);
  GRADUS_RETURN_IF_ERROR(id.status());
  const Wait wait = host.begin_elsewhere("connect devices");
  Result<kernels::Nccl> nccl = [&] {
    const WaitScope scope(host.watch(), wait);
    return kernels::Nccl::connect(cuda, *id, host.rank(), host.size(), options);
  }();
  GRADUS_RETURN_IF_ERROR(agree(host, nccl.status(), "connect devices"));
  return std::unique_ptr<DeviceCommunicator>(new DeviceCommunicator(std::move(nccl).value(), host));
}

Status DeviceCommunicator::wait(const char* name) {
  const WaitScope scope(host_.watch(), host_.begin_elsewhere(name));
  return nccl_.wait();
}

}  // namespace gradus::comm
