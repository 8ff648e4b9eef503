// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "comm/in_process.h"

namespace gradus::testing {

using comm::run_ranks;

}  // namespace gradus::testing
