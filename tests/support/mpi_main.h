// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include "comm/communicator.h"

namespace gradus::testing {

// main() of a test program that mpirun starts: `world` is the communicator of all ranks while the
// tests run. A rank that fails ends all, since the others may wait for it.
inline int run_tests_of_ranks(int argc, char** argv, comm::Communicator*& world) {
  ::testing::InitGoogleTest(&argc, argv);
  auto communicator = comm::make_communicator();
  if (!communicator.ok()) {
    fmt::print(stderr, "{}\n", communicator.status().message());
    return 1;
  }
  world = communicator->get();
  const int failed = RUN_ALL_TESTS();
  if (failed != 0) comm::abort_all_ranks(1);
  comm::finalize();
  return failed;
}

}  // namespace gradus::testing
