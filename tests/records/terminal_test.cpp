// SPDX-License-Identifier: Apache-2.0
#include "records/terminal.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cmath>
#include <sstream>

#include "tests/support/files.h"

namespace gradus::records {
namespace {

using test::read_file;
using test::TemporaryFolder;

// A display that writes into a file, with a clock that the test moves.
class RunDisplayTest : public ::testing::Test {
 protected:
  RunDisplayTest()
      : descriptor_(::open((temp_.path() + "/out").c_str(), O_WRONLY | O_CREAT, 0644)) {}
  ~RunDisplayTest() override { ::close(descriptor_); }

  TerminalOptions options(bool is_terminal, int width = 80) {
    TerminalOptions options;
    options.descriptor = descriptor_;
    options.num_steps = 200;
    options.is_terminal = is_terminal;
    options.width = width;
    options.now_s = [this] { return time_s_; };
    return options;
  }

  std::string output() const { return read_file(temp_.path() + "/out"); }

  // What a screen shows: each line after its carriage returns and wipes.
  std::vector<std::string> screen() const {
    std::vector<std::string> lines(1);
    const std::string text = output();
    for (size_t i = 0; i < text.size(); ++i) {
      if (text[i] == '\n') {
        lines.emplace_back();
      } else if (text[i] == '\r') {
        lines.back().clear();
      } else if (text[i] == '\x1b') {
        while (!std::isalpha(static_cast<unsigned char>(text[++i]))) {
        }
      } else {
        lines.back() += text[i];
      }
    }
    return lines;
  }

  TemporaryFolder temp_;
  int descriptor_;
  double time_s_ = 100;
};

const MetricRow kRow = {{"critic/rewards/mean", 0.625}, {"response_length/mean", 41.25},
                        {"actor/pg_loss", 0.25},        {"actor/entropy", 1.5},
                        {"actor/grad_norm", 0.75},      {"mismatch/max_abs_logprob", 0},
                        {"perf/throughput", 12345},     {"timing_s/step", 10}};

TEST_F(RunDisplayTest, PrintsOneLinePerStepIntoAPipe) {
  {
    RunDisplay display(options(false));
    display.begin_phase("rollout", 64, "samples");
    time_s_ += 10;
    display.finish_step(1, kRow);
    time_s_ += 20;
    display.finish_step(2, {{"critic/rewards/mean", std::nan("")}});
  }
  EXPECT_EQ(output(),
            "step 1/200  reward 0.6250  length 41.25  loss 0.2500  entropy 1.5000  grad 0.7500  "
            "mismatch 0  tok/s 12.3k  s/step 10.00  left 33 min\n"
            "step 2/200  reward nan  length -  loss -  entropy -  grad -  mismatch -  tok/s -  "
            "s/step -  left 49 min\n");  // 199 x 10 s; 198 x 15 s
}

TEST_F(RunDisplayTest, PrintsALongPhaseEveryHalfMinuteIntoAPipe) {
  RunDisplay display(options(false));
  display.begin_phase("rollout", 64, "samples");
  for (int i = 0; i < 64; ++i) {
    time_s_ += 1;
    display.advance_phase(i);
  }
  display.end_phase();
  time_s_ += 100;
  display.advance_phase(64);  // no phase any more
  EXPECT_EQ(output(),
            "step 1/200: rollout 29/64 samples, 30 s\n"
            "step 1/200: rollout 59/64 samples, 1 min 00 s\n");
}

TEST_F(RunDisplayTest, PaintsABarThatKeepsTheLastColumnFree) {
  for (const int width : {120, 80, 50, 30, 10}) {
    ASSERT_EQ(::ftruncate(descriptor_, 0), 0);
    ::lseek(descriptor_, 0, SEEK_SET);
    RunDisplay display(options(true, width));
    time_s_ += 10;
    display.finish_step(1, {});
    display.begin_phase("rollout", 64, "samples");
    time_s_ += 3;
    display.advance_phase(37);
    const auto lines = screen();
    for (const std::string& line : lines)
      EXPECT_LT(line.size(), static_cast<size_t>(width)) << line;
    if (width == 80) {
      EXPECT_EQ(lines.back(),
                "step 2/200  rollout [==============>          ] 37/64 samples  3 s  left 33 min");
    }
    if (width == 50) {
      EXPECT_EQ(lines.back(), "step 2/200  rollout  37/64 samples  3 s  left 33 ");
    }
  }
}

TEST_F(RunDisplayTest, RepaintsAtMostTenTimesASecond) {
  RunDisplay display(options(true));
  display.begin_phase("rollout", 100000, "tokens");
  for (int i = 0; i < 10000; ++i) {
    time_s_ += 0.0001;  // one second in all
    display.advance_phase(i);
  }
  const std::string text = output();
  const auto repaints = std::count(text.begin(), text.end(), '\r');
  EXPECT_LE(repaints, 11);
  EXPECT_GE(repaints, 9);
}

TEST_F(RunDisplayTest, KeepsATableAboveTheLiveLineAndWipesThatAtTheEnd) {
  {
    RunDisplay display(options(true));
    display.begin_phase("rollout", 64, "samples");
    time_s_ += 10;
    display.finish_step(1, kRow);
    display.begin_phase("update", 8, "batches");
    time_s_ += 1;
    display.advance_phase(2);
    display.print("warn: something");
    EXPECT_EQ(screen().back().substr(0, 18), "step 2/200  update");
  }
  const auto lines = screen();
  ASSERT_EQ(lines.size(), 4u);
  EXPECT_EQ(lines[0],
            "   step   reward   length     loss  entropy     grad mismatch    tok/s   s/step");
  EXPECT_EQ(lines[1],
            "  1/200   0.6250    41.25   0.2500   1.5000   0.7500        0    12.3k    10.00");
  EXPECT_EQ(lines[2], "warn: something");
  EXPECT_EQ(lines[3], "");
  EXPECT_EQ(output().find("\x1b[?25l"), std::string::npos) << "the cursor is never hidden";
}

TEST_F(RunDisplayTest, ExplainsOnceThatALossNearZeroIsExpected) {
  RunDisplay display(options(false));
  display.finish_step(1, {{"actor/pg_loss", 0.5}});
  EXPECT_EQ(output().find("note:"), std::string::npos);
  display.finish_step(2, {{"actor/pg_loss", -1e-9}});
  display.finish_step(3, {{"actor/pg_loss", 0}});
  const std::string text = output();
  const size_t at = text.find("note: a policy-gradient loss near 0 is as it should be: ");
  ASSERT_NE(at, std::string::npos);
  EXPECT_EQ(text.find("note:", at + 1), std::string::npos);
}

TEST_F(RunDisplayTest, IsSilentOnOtherRanks) {
  TerminalOptions quiet = options(true);
  quiet.is_quiet = true;
  {
    RunDisplay display(quiet);
    display.begin_phase("rollout", 64, "samples");
    time_s_ += 60;
    display.advance_phase(3);
    display.finish_step(1, kRow);
    display.print("x");
  }
  EXPECT_EQ(output(), "");
}

TEST_F(RunDisplayTest, AsksARealTerminalForItsWidth) {
  const int controller = ::posix_openpt(O_RDWR | O_NOCTTY);
  ASSERT_GE(controller, 0);
  ASSERT_EQ(::grantpt(controller), 0);
  ASSERT_EQ(::unlockpt(controller), 0);
  const int terminal = ::open(::ptsname(controller), O_RDWR | O_NOCTTY);
  ASSERT_GE(terminal, 0);
  struct winsize size {};
  size.ws_col = 40;
  size.ws_row = 10;
  ASSERT_EQ(::ioctl(terminal, TIOCSWINSZ, &size), 0);
  ::setenv("TERM", "xterm", 1);
  TerminalOptions live = options(true, 0);
  live.is_terminal.reset();
  live.descriptor = terminal;
  {
    RunDisplay display(live);
    display.begin_phase("rollout", 64, "samples");
    time_s_ += 3;
    display.advance_phase(37);
  }
  char buffer[4096];
  const ssize_t got = ::read(controller, buffer, sizeof(buffer));
  ASSERT_GT(got, 0);
  const std::string text(buffer, static_cast<size_t>(got));
  EXPECT_EQ(text.substr(0, text.find("\x1b[K")), "\rstep 1/200  rollout  0/64 samples  0 s");
  EXPECT_TRUE(text.ends_with("\r\x1b[K")) << text;
  ::close(terminal);
  ::close(controller);
}

TEST(FormatDuration, HasTwoLeadingUnits) {
  EXPECT_EQ(format_duration(0.4), "0 s");
  EXPECT_EQ(format_duration(59.6), "1 min 00 s");
  EXPECT_EQ(format_duration(599), "9 min 59 s");
  EXPECT_EQ(format_duration(600), "10 min");
  EXPECT_EQ(format_duration(3 * 3600 + 5 * 60), "3 h 05 min");
  EXPECT_EQ(format_duration(52 * 3600), "2 d 4 h");
  EXPECT_EQ(format_duration(NAN), "?");
}

TEST(FormatMetric, IsAtMostEightCharacters) {
  EXPECT_EQ(format_metric(-1.25e-7), "-1.2e-07");
  EXPECT_EQ(format_metric(0.001), "0.0010");
  EXPECT_EQ(format_metric(4.56e6), "4.6M");
  for (double value = 1e-300; value < 1e300; value *= 1.37) {
    ASSERT_LE(format_metric(-value).size(), 9u) << value;
    ASSERT_LE(format_metric(value).size(), 8u) << value;
  }
}

}  // namespace
}  // namespace gradus::records
