// SPDX-License-Identifier: Apache-2.0
// Every rank runs these tests at the same time; CTest starts them on 1, 2 and 4 ranks.
#include <gtest/gtest.h>

#include <cstring>

#include "comm/communicator.h"
#include "tests/support/communicator_contract.h"
#include "tests/support/mpi_main.h"

namespace gradus::comm {
namespace {

Communicator* world = nullptr;  // set by main

std::string bytes(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

TEST(MpiCommunicator, StartsAsManyRanksAsWereAsked) {
  EXPECT_TRUE(is_launched_by_mpi());
  EXPECT_GE(world->rank(), 0);
  EXPECT_LT(world->rank(), world->size());
  EXPECT_EQ(world->local_size(), world->size());
  EXPECT_EQ(rank_for_messages(), world->rank());
}

class MpiContract : public ::testing::TestWithParam<testing::ContractCase> {};

TEST_P(MpiContract, Holds) { GetParam().body(*world); }
INSTANTIATE_TEST_SUITE_P(Communicator, MpiContract,
                         ::testing::ValuesIn(testing::communicator_contract()),
                         [](const auto& one) { return one.param.name; });

TEST(MpiCommunicator, TreeSumHasTheBitsOfTheTreeOverAllBlocks) {
  // Four values whose sum depends on the order: 1e8 + 1 loses the 1 in fp32. The tree is
  // (b0 + b1) + (b2 + b3), of which a rank holds whole subtrees.
  const float blocks[4] = {1e8f, 1.0f, -1e8f, 3.0f};
  const float expected = (blocks[0] + blocks[1]) + (blocks[2] + blocks[3]);
  const int num_ranks = world->size(), rank = world->rank();
  if (4 % num_ranks != 0) GTEST_SKIP() << "the tree has four leaves";
  float mine = 0;
  switch (num_ranks) {
    case 1:
      mine = expected;
      break;
    case 2:
      mine = blocks[2 * rank] + blocks[2 * rank + 1];
      break;
    default:
      mine = blocks[rank];
  }
  std::vector<float> values(257, mine), scratch(257);
  all_reduce_tree(*world, values, scratch);
  EXPECT_EQ(bytes(values), bytes(std::vector<float>(257, expected)));
  // The plain order gives other bits, so the comparison can fail.
  EXPECT_NE(((blocks[0] + blocks[1]) + blocks[2]) + blocks[3], expected);
}

TEST(MpiCommunicator, SumsDoublesInRankOrder) {
  const double mine[] = {1.0 + world->rank(), 0.5};
  const int n = world->size();
  EXPECT_EQ(all_reduce_sum(*world, mine), (std::vector<double>{n * (n + 1) / 2.0, 0.5 * n}));
}

TEST(MpiCommunicator, AgreesOnTheFirstFailureWithItsRank) {
  EXPECT_TRUE(agree(*world, Status()).ok());
  const int last = world->size() - 1;
  const Status mine = world->rank() == last ? not_found("model/: no such folder") : Status();
  const Status agreed = agree(*world, mine);
  EXPECT_EQ(agreed.code(), StatusCode::kNotFound);
  const std::string text = "model/: no such folder";
  EXPECT_EQ(agreed.message(), last == 0 ? text : fmt::format("rank {}: {}", last, text));
}

}  // namespace
}  // namespace gradus::comm

int main(int argc, char** argv) {
  return gradus::testing::run_tests_of_ranks(argc, argv, gradus::comm::world);
}
