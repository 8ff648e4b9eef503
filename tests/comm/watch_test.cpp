// SPDX-License-Identifier: Apache-2.0
#include "comm/watch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "comm/communicator.h"

namespace gradus::comm {
namespace {

using ::testing::ElementsAre;

constexpr double kLimit = 8.0;

// Builds the world as a watchdog sees it; all ranks compute at first.
struct Picture {
  std::vector<Sighting> ranks;

  explicit Picture(int size) : ranks(static_cast<size_t>(size)) {
    for (int rank = 0; rank < size; ++rank) {
      RankReport& report = (*this)[rank].report;
      report.rank = rank;
      report.step = 3;
      report.process = 100 + rank;
      (*this)[rank].host = "node" + std::to_string(rank);
    }
  }
  Sighting& operator[](int rank) { return ranks[static_cast<size_t>(rank)]; }
  void waits(int rank, WaitKind kind, int first, int count, const char* name, double waiting_s = 9,
             Tag tag = Tag::kTree, uint64_t number = 0) {
    RankReport& report = (*this)[rank].report;
    report.kind = kind;
    report.first = first;
    report.count = count;
    report.tag = static_cast<int32_t>(tag);
    report.number = number;
    report.waiting_s = waiting_s;
    std::strncpy(report.name, name, sizeof(report.name) - 1);
  }
  std::optional<Diagnosis> diagnosis(const std::set<int>& lost = {}) const {
    return diagnose(ranks, kLimit, lost);
  }
};

TEST(Diagnose, ASilentRankIsNamedWithItsHost) {
  Picture world(3);
  world[1].silent_s = 8.25;
  world.waits(0, WaitKind::kReceive, 1, 1, "gradient sum", 8.4);
  world.waits(2, WaitKind::kCollective, 0, 3, "agree", 8.1, Tag::kTree, 16);
  ASSERT_TRUE(world.diagnosis().has_value());
  EXPECT_THAT(world.diagnosis()->culprits, ElementsAre(1));
  EXPECT_EQ(world.diagnosis()->headline,
            "rank 1 gave no sign of life for 8.2 s (process 101 on node1)");
  EXPECT_EQ(
      describe(world.ranks, 0, kLimit),
      "rank 0 waits for rank 1 in 'gradient sum' (receive, tag tree) at step 3, 8.4 s by now");
  EXPECT_EQ(describe(world.ranks, 1, kLimit),
            "rank 1 is silent; when last heard of it computed at step 3");
  EXPECT_EQ(describe(world.ranks, 2, kLimit),
            "rank 2 waits for ranks 0, 1 in 'agree' (collective 17 of ranks 0 to 2) at step 3, 8.1 "
            "s by now");
}

TEST(Diagnose, ASilentRankMayBeLostOrHaveEnded) {
  Picture world(2);
  world[1].silent_s = 100;
  EXPECT_FALSE(world.diagnosis({1}).has_value());
  world[1].report.kind = WaitKind::kLeft;
  EXPECT_FALSE(world.diagnosis().has_value());
  world[1].report.kind = WaitKind::kNone;
  world[1].silent_s = kLimit - 0.1;
  EXPECT_FALSE(world.diagnosis().has_value());
  world[1].is_gone = true;  // no need to wait for a process that does not exist
  EXPECT_EQ(world.diagnosis()->headline, "rank 1 ended without a word (process 101 on node1)");
}

TEST(Diagnose, WaitingForARankThatComputesIsNoMistake) {
  Picture world(4);
  for (const int rank : {0, 1, 3}) world.waits(rank, WaitKind::kCollective, 0, 4, "agree", 1000);
  EXPECT_FALSE(world.diagnosis().has_value());
  EXPECT_EQ(describe(world.ranks, 2, kLimit), "rank 2 computes at step 3");
}

TEST(Diagnose, RanksThatWaitForEachOtherAreStuck) {
  Picture world(4);
  world.waits(0, WaitKind::kReceive, 1, 1, "a");
  world.waits(1, WaitKind::kReceive, 2, 1, "b");
  world.waits(2, WaitKind::kReceive, 0, 1, "c");
  ASSERT_TRUE(world.diagnosis().has_value());
  EXPECT_THAT(world.diagnosis()->culprits, ElementsAre(0, 1, 2));
  EXPECT_EQ(world.diagnosis()->headline, "ranks 0, 1, 2 wait for each other");
  world.waits(2, WaitKind::kReceive, 0, 1, "c", kLimit - 1);  // it has only just come there
  EXPECT_FALSE(world.diagnosis().has_value());
  world.waits(2, WaitKind::kReceive, 3, 1, "c");  // rank 3 computes
  EXPECT_FALSE(world.diagnosis().has_value());
}

TEST(Diagnose, RanksInDifferentCollectivesAreStuck) {
  Picture world(3);
  world.waits(0, WaitKind::kCollective, 0, 3, "exchange", 9, Tag::kTree, 5);
  world.waits(1, WaitKind::kCollective, 0, 3, "exchange", 9, Tag::kTree, 5);
  world.waits(2, WaitKind::kCollective, 0, 3, "agree", 9, Tag::kTree, 5);
  ASSERT_TRUE(world.diagnosis().has_value());
  EXPECT_THAT(world.diagnosis()->culprits, ElementsAre(0, 1, 2));
  // All inside the same one: the library moves the bytes, however long it takes.
  world.waits(2, WaitKind::kCollective, 0, 3, "exchange", 9, Tag::kTree, 5);
  EXPECT_FALSE(world.diagnosis().has_value());
  EXPECT_EQ(describe(world.ranks, 0, kLimit),
            "rank 0 waits for a transfer under way in 'exchange' (collective 6 of ranks 0 to 2) at "
            "step 3, 9.0 s by now");
  // One of them has left it already and waits for the others' next step.
  world.waits(2, WaitKind::kReceive, 1, 1, "gradient sum");
  EXPECT_TRUE(world.diagnosis().has_value());
}

TEST(Diagnose, ATransferUnderWayIsNoMistake) {
  Picture world(2);
  world.waits(0, WaitKind::kSend, 1, 1, "gradient sum");
  world.waits(1, WaitKind::kReceive, 0, 1, "gradient sum");
  EXPECT_FALSE(world.diagnosis().has_value());
  world.waits(1, WaitKind::kReceive, 0, 1, "gradient sum", 9, Tag::kWeights);  // another message
  EXPECT_TRUE(world.diagnosis().has_value());
}

TEST(Diagnose, ASwapIsATransferOnBothSides) {
  Picture world(2);
  world.waits(0, WaitKind::kSwap, 1, 1, "gradient sum");
  world.waits(1, WaitKind::kSwap, 0, 1, "gradient sum");
  EXPECT_FALSE(world.diagnosis().has_value());
  world.waits(1, WaitKind::kReceive, 0, 1, "something else");
  EXPECT_TRUE(world.diagnosis().has_value());
}

TEST(Diagnose, WhoTakesFromAnyoneIsStuckOnlyIfAllAre) {
  Picture world(3);
  world.waits(0, WaitKind::kReceiveAny, 1, 2, "rollouts", 9, Tag::kRollouts);
  world.waits(1, WaitKind::kReceive, 0, 1, "work", 9, Tag::kWork);
  EXPECT_FALSE(world.diagnosis().has_value()) << "rank 2 computes";
  world.waits(2, WaitKind::kReceive, 0, 1, "work", 9, Tag::kWork);
  EXPECT_THAT(world.diagnosis()->culprits, ElementsAre(0, 1, 2));
  EXPECT_FALSE(world.diagnosis({2}).has_value()) << "a lost rank is somebody else's business";
}

TEST(Diagnose, RanksLeftBehindAreStuck) {
  Picture world(2);
  world[1].report.kind = WaitKind::kLeft;
  world.waits(0, WaitKind::kCollective, 0, 2, "agree");
  ASSERT_TRUE(world.diagnosis().has_value());
  EXPECT_EQ(world.diagnosis()->headline, "rank 0 cannot go on: others have ended");
  EXPECT_EQ(describe(world.ranks, 1, kLimit), "rank 1 has ended");
}

TEST(Watch, ReportsTheOperationAndHowLongItHasNotMoved) {
  Watch watch(2);
  EXPECT_EQ(watch.report().kind, WaitKind::kNone);
  {
    const WaitScope scope(watch,
                          {.kind = WaitKind::kSend,
                           .name = "a name that is longer than there is room for in a report",
                           .first = 1,
                           .count = 1});
    watch.set_step(5);
    const RankReport report = watch.report();
    EXPECT_EQ(report.kind, WaitKind::kSend);
    EXPECT_EQ(report.step, 5);
    EXPECT_EQ(report.rank, 2);
    EXPECT_EQ(std::string(report.name), "a name that is longer than there is room for in");
    EXPECT_GE(report.waiting_s, 0);
    EXPECT_LT(report.waiting_s, 5);
  }
  EXPECT_EQ(watch.report().kind, WaitKind::kNone);
  watch.leave();
  EXPECT_EQ(watch.report().kind, WaitKind::kLeft);
}

}  // namespace
}  // namespace gradus::comm
