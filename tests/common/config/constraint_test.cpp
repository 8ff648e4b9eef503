// SPDX-License-Identifier: Apache-2.0
#include "common/config/constraint.h"

#include <gtest/gtest.h>

namespace gradus {
namespace {

TEST(Constraint, EndsBelongToTheRangeAsDescribed) {
  struct Case {
    Constraint constraint;
    std::string description;
    bool allows_below, allows_low, allows_inside, allows_high, allows_above;  // -1, 0, 0.5, 1, 2
  };
  const std::vector<Case> cases = {
      {{}, "", true, true, true, true, true},
      {in_open(0, 1), "in (0, 1)", false, false, true, false, false},
      {in_closed(0, 1), "in [0, 1]", false, true, true, true, false},
      {in_half_open(0, 1), "in [0, 1)", false, true, true, false, false},
      {in_left_open(0, 1), "in (0, 1]", false, false, true, true, false},
      {at_least(0), "at least 0", false, true, true, true, true},
      {greater_than(0), "greater than 0", false, false, true, true, true},
      {at_most(1), "at most 1", true, true, true, true, false},
  };
  for (const Case& c : cases) {
    EXPECT_EQ(c.constraint.describe(), c.description);
    const auto allows = [&](double value) { return c.constraint.problem_with(value).empty(); };
    EXPECT_EQ(allows(-1), c.allows_below) << c.description;
    EXPECT_EQ(allows(0), c.allows_low) << c.description;
    EXPECT_EQ(allows(0.5), c.allows_inside) << c.description;
    EXPECT_EQ(allows(1), c.allows_high) << c.description;
    EXPECT_EQ(allows(2), c.allows_above) << c.description;
  }
  EXPECT_EQ(in_open(0, 1).problem_with(int64_t{1}), "must be in (0, 1)");
}

TEST(Constraint, OfTextsAndSizes) {
  const Constraint choice = one_of({"a", "b"});
  EXPECT_EQ(choice.problem_with(std::string("b")), "");
  EXPECT_EQ(choice.problem_with(std::string("c")), "must be one of a, b");
  EXPECT_EQ(non_empty().problem_with(std::string()), "must not be empty");
  EXPECT_EQ(non_empty().problem_with(std::string("x")), "");
  EXPECT_EQ(non_empty().problem_with_size(0), "must not be empty");
  EXPECT_EQ(Constraint{}.problem_with(std::string()), "");
  EXPECT_EQ(at_least(1).with_remedy("use 2").remedy, "use 2");
}

}  // namespace
}  // namespace gradus
