// SPDX-License-Identifier: Apache-2.0
#include "records/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "common/strings.h"
#include "records/checkpoint_store.h"
#include "records/internal/report_data.h"
#include "records/internal/report_html.h"
#include "records/metrics_log.h"
#include "records/rollout_dump.h"
#include "records/run_folder.h"
#include "tests/support/files.h"

namespace gradus::records {
namespace {

namespace fs = std::filesystem;
using test::read_file;
using test::TemporaryFolder;
using test::write_file;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

size_t count(const std::string& text, const std::string& part) {
  size_t number = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++number;
  return number;
}

RolloutRecord rollout(int64_t step, uint64_t prompt_id, int32_t sample, double reward) {
  RolloutRecord record;
  record.step = step;
  record.trajectory.id = {prompt_id, sample};
  record.trajectory.token_ids = {1, 2};
  record.trajectory.prompt_length = 2;
  record.trajectory.text = fmt::format("response {}/{}", prompt_id, sample);
  record.prompt = "prompt";
  record.task = "sums";
  record.reward = reward;
  data::append_token(record.trajectory, 3, -0.5f, -0.5f);
  return record;
}

// A run of 20 steps with two evaluations, rollouts and a checkpoint.
std::string write_run(const std::string& path) {
  Result<RunFolder> run = RunFolder::open(path, RunStart::kFresh);
  EXPECT_TRUE(run.ok());
  EXPECT_TRUE(run->write_config("trainer:\n  num_steps: 20  # a.yaml:3\n").ok());
  Result<MetricsLog> log = MetricsLog::open(run->paths(), {});
  const auto eval = [](double value, double half) {
    return MetricRow{{"val-core/sums/acc/mean@4", value},
                     {"val-core/sums/acc/mean@4/low", value - half},
                     {"val-core/sums/acc/mean@4/high", value + half},
                     {"val-aux/sums/num_problems", 200}};
  };
  EXPECT_TRUE(log->write(0, eval(0.25, 0.05)).ok());
  for (int64_t step = 1; step <= 20; ++step) {
    MetricRow row{{"critic/rewards/mean", static_cast<double>(step) / 20},
                  {"mismatch/max_abs_logprob", 0},
                  {"timing_s/step", 6},
                  {"timing_s/gen", 2}};
    if (step == 20) row.merge(eval(0.75, 0.1));
    EXPECT_TRUE(log->write(step, row).ok());
  }
  std::vector<RolloutRecord> records;
  for (int32_t i = 0; i < 4; ++i) records.push_back(rollout(20, 7, i, i == 2 ? 1 : 0));
  EXPECT_TRUE(write_rollouts(run->paths().rollouts(20), records).ok());
  CheckpointStore store(run->paths().checkpoints(), {.best_metric = "m"}, [](const auto&) {});
  Result<CheckpointDraft> draft = store.begin(20);
  write_file(draft->folder() + "/weights", "w");
  EXPECT_TRUE(store.commit(std::move(*draft), 0.75).ok());
  return path;
}

TEST(Report, ShowsARun) {
  const TemporaryFolder temp;
  const std::string run = write_run(temp.path() + "/my_run"), out = temp.path() + "/r.html";
  const Result<ReportSummary> summary = write_report(run, out);
  ASSERT_TRUE(summary.ok()) << summary.status().message();
  EXPECT_THAT(summary->warnings, IsEmpty());
  EXPECT_EQ(summary->num_steps, 21);
  EXPECT_EQ(summary->num_rollouts, 4);
  const std::string page = read_file(out);
  EXPECT_THAT(page, HasSubstr("<h1>my_run</h1>"));
  // First and last tenth of 1/20, 2/20, ... 20/20: means 0.075 and 0.975.
  EXPECT_THAT(page, HasSubstr("0.075 <span class=\"arrow\">\xE2\x86\x92</span> 0.975"));
  EXPECT_THAT(page, HasSubstr("25.0&nbsp;% <span class=\"muted\">[20.0, 30.0]</span>"));
  EXPECT_THAT(page, HasSubstr("75.0&nbsp;% <span class=\"muted\">[65.0, 85.0]</span>"));
  EXPECT_THAT(page, HasSubstr("+50.0 points"));
  EXPECT_THAT(page, HasSubstr("0 \xE2\x9C\x93"));
  EXPECT_THAT(page, HasSubstr("num_steps: 20  # a.yaml:3"));
  EXPECT_THAT(page, HasSubstr("response 7/2"));
  EXPECT_THAT(page, HasSubstr("checkpoints/step_20 <span class=\"badge best\">best</span>"));
  EXPECT_THAT(page, HasSubstr("\"steps\":[0,1,2,"));
  EXPECT_THAT(page,
              HasSubstr("\"timing_s/gen\":{\"unit\":\"s\",\"about\":\"sampling of responses\","
                        "\"values\":[null,2,2,"));
  EXPECT_EQ(first_invalid_utf8(page), std::nullopt);
}

TEST(Report, NeedsNothingFromOutside) {
  const TemporaryFolder temp;
  ASSERT_TRUE(write_report(write_run(temp.path() + "/run"), temp.path() + "/r.html").ok());
  std::string page = read_file(temp.path() + "/r.html");
  // The name of SVG's elements, which nobody fetches.
  for (const std::string name = "http://www.w3.org/2000/svg";
       page.find(name) != std::string::npos;) {
    page.erase(page.find(name), name.size());
  }
  for (const char* outside : {"http:", "https:", "src=\"", "href=", "@import", "url("}) {
    EXPECT_THAT(page, Not(HasSubstr(outside)));
  }
  EXPECT_THAT(page, HasSubstr("default-src 'none'"));
}

TEST(Report, ShowsHostileTextAsText) {
  const TemporaryFolder temp;
  const std::string run = write_run(temp.path() + "/run");
  const std::string evil =
      "</script></pre><script>alert('x')</script><img src=x onerror=\"y\">&amp;";
  RolloutRecord record = rollout(20, 7, 0, 1);
  record.prompt = record.task = record.answer = record.trajectory.text = evil;
  record.trajectory.text += "\x1b[31m \xFF";
  record.parts = {{evil, 1, 1, 1, "ok", evil}, {"p", NAN, 1, NAN, "error", evil}};
  ASSERT_TRUE(write_rollouts(run + "/rollouts/step_20.jsonl", {record}).ok());
  write_file(run + "/config.resolved.yaml", evil + "\xC3");
  write_file(run + "/metrics.jsonl",
             "{\"step\": 1, \"</script><b>\": 1, \"val-core/<i>/acc/mean@1\": 1}\n");
  ASSERT_TRUE(write_report(run, temp.path() + "/r.html").ok());
  const std::string page = read_file(temp.path() + "/r.html");
  EXPECT_THAT(page, Not(HasSubstr("alert('x')")));
  EXPECT_THAT(page, Not(HasSubstr("<img")));
  EXPECT_THAT(page, Not(HasSubstr("<i>")));
  EXPECT_EQ(count(page, "<script"), 2u) << "the data and the program";
  EXPECT_EQ(count(page, "</script>"), 2u);
  EXPECT_THAT(page, HasSubstr("&lt;/script&gt;&lt;/pre&gt;&lt;script&gt;alert(&#39;x&#39;)"));
  EXPECT_THAT(page, HasSubstr("\xE2\x90\x9B[31m \xEF\xBF\xBD</pre>"));
  EXPECT_THAT(page, HasSubstr("\"\\u003c/script\\u003e\\u003cb\\u003e\":{"));
  EXPECT_EQ(first_invalid_utf8(page), std::nullopt);
}

TEST(Report, WorksOnWhatIsThere) {
  const TemporaryFolder temp;
  const std::string run = temp.path() + "/run", out = temp.path() + "/r.html";
  fs::create_directory(run);
  write_file(run + "/config.resolved.yaml", "a: 1\n");
  Result<ReportSummary> summary = write_report(run, out);
  ASSERT_TRUE(summary.ok()) << summary.status().message();
  EXPECT_THAT(summary->warnings,
              ElementsAre(run + "/metrics.jsonl: cannot open: No such file or directory; check the "
                                "path and its permissions"));
  EXPECT_THAT(read_file(out), HasSubstr("No step has been recorded yet."));
  EXPECT_THAT(read_file(out), HasSubstr("No rollouts were dumped (run.dump_rollouts)."));

  // Killed in the middle of everything.
  write_file(run + "/metrics.jsonl",
             "{\"step\": 1, \"actor/grad_norm\": \"NaN\", \"actor/loss\": "
             "\"Infinity\"}\n{\"step\": 2, \"ac");
  fs::create_directories(run + "/rollouts");
  fs::create_directories(run + "/checkpoints/step_1");
  write_file(run + "/rollouts/step_1.jsonl", rollout_line(rollout(1, 0, 0, NAN)) + "\n{\"step\"");
  fs::remove(run + "/config.resolved.yaml");
  summary = write_report(run, out);
  ASSERT_TRUE(summary.ok()) << summary.status().message();
  EXPECT_EQ(summary->num_rollouts, 1);
  EXPECT_THAT(
      summary->warnings,
      ElementsAre(run + "/metrics.jsonl: 1 unreadable lines",
                  run + "/config.resolved.yaml: cannot open: No such file or directory; check "
                        "the path and its permissions",
                  run + "/rollouts/step_1.jsonl: 1 unreadable lines",
                  run + "/checkpoints/step_1: no manifest.json; writing or copying it did not "
                        "finish; the checkpoint is not used"));
  EXPECT_THAT(read_file(out), HasSubstr("\"values\":[\"NaN\"]"));
  EXPECT_THAT(read_file(out), HasSubstr("\"values\":[\"Infinity\"]"));
  EXPECT_THAT(read_file(out), HasSubstr("step_1.jsonl: 1 unreadable lines</li>"));
}

TEST(Report, RefusesWhatIsNoRun) {
  const TemporaryFolder temp;
  EXPECT_EQ(write_report(temp.path() + "/none", temp.path() + "/r.html").status().message(),
            temp.path() + "/none: no such folder; give the folder of a run, e.g. runs/NAME");
  EXPECT_EQ(
      write_report(temp.path(), temp.path() + "/r.html").status().message(),
      temp.path() + ": not a run folder: no metrics.jsonl, config.resolved.yaml or rollouts in it");
  EXPECT_FALSE(fs::exists(temp.path() + "/r.html"));
  const std::string run = write_run(temp.path() + "/run");
  const Status status = write_report(run, temp.path() + "/no/r.html").status();
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_EQ(status.message(), temp.path() + "/no/r.html: cannot create: No such file or directory");
}

TEST(ReportData, MeansStandForSeveralStepsWhenThereAreManyOfThem) {
  internal::MetricTable table;
  const double none = internal::absent_value();
  table.steps_N = {1, 2, 3, 4, 5};
  table.times_N = {10, 20, 30, 40, 50};
  table.columns["a"] = {1, 3, 5, none, 7};
  table.columns["b"] = {none, none, 1, NAN, none};
  const internal::MetricTable thin = internal::thin_out(table, 3);
  EXPECT_EQ(thin.steps_per_row, 2);
  EXPECT_THAT(thin.steps_N, ElementsAre(2, 4, 5));
  EXPECT_THAT(thin.times_N, ElementsAre(20, 40, 50));
  EXPECT_THAT(thin.columns.at("a"), ElementsAre(2, 5, 7));
  EXPECT_TRUE(internal::is_absent(thin.columns.at("b")[0]));
  EXPECT_TRUE(std::isnan(thin.columns.at("b")[1]));
  EXPECT_FALSE(internal::is_absent(thin.columns.at("b")[1])) << "a NaN that was written stays one";
  EXPECT_EQ(internal::thin_out(table, 5).steps_per_row, 1);
}

TEST(ReportData, FindsEvaluationsWithTheirIntervals) {
  internal::MetricTable table;
  const double none = internal::absent_value();
  table.steps_N = {0, 1, 2};
  table.columns["val-core/a/acc/b/acc/maj@8"] = {0.5, none, none};
  table.columns["val-core/t/acc/best@4"] = {none, 0.9, none};
  table.columns["val-core/t/acc/mean@4"] = {0.25, none, 0.5};
  table.columns["val-core/t/acc/mean@4/high"] = {0.3, none, none};
  table.columns["val-core/t/acc/mean@4/low"] = {0.2, none, none};
  table.columns["val-aux/t/num_problems"] = {100, none, 100};
  const auto evals = internal::find_evals(table);
  ASSERT_EQ(evals.size(), 3u);
  EXPECT_EQ(evals[0].task, "a/acc/b");
  EXPECT_EQ(evals[0].metric, "maj@8");
  EXPECT_EQ(evals[0].num_problems, 0);
  EXPECT_EQ(evals[1].metric, "mean@4");
  EXPECT_EQ(evals[1].num_problems, 100);
  ASSERT_EQ(evals[1].points.size(), 2u);
  EXPECT_EQ(evals[1].points[0].low, 0.2);
  EXPECT_EQ(evals[1].points[0].high, 0.3);
  EXPECT_EQ(evals[1].points[1].step, 2);
  EXPECT_TRUE(std::isnan(evals[1].points[1].low));
  EXPECT_EQ(evals[2].metric, "best@4");
}

TEST(ReportData, PicksBestWorstAndTheGroupsThatDiffer) {
  std::vector<RolloutRecord> records;
  // Prompt 0: all right; 1: all wrong; 2: differs by 1; 3: by 0.5; 4: by 0.1.
  const double rewards[5][4] = {
      {2, 2, 2, 2}, {-1, -1, -1, -1}, {0, 1, 0.5, 0.5}, {0.5, 0.5, 0.5, 0}, {0.3, 0.4, 0.3, 0.3}};
  for (uint64_t prompt = 0; prompt < 5; ++prompt) {
    for (int32_t i = 0; i < 4; ++i) records.push_back(rollout(1, prompt, i, rewards[prompt][i]));
  }
  records.push_back(rollout(1, 9, 0, NAN));
  std::vector<std::string> seen;
  for (const internal::PickedRollout& picked : internal::pick_rollouts(records)) {
    const data::RequestId id = picked.record.trajectory.id;
    seen.push_back(fmt::format("{}/{}{}{}{}", id.prompt_id, id.sample_index,
                               picked.is_best ? " best" : "", picked.is_worst ? " worst" : "",
                               picked.is_informative ? " informative" : ""));
  }
  EXPECT_THAT(seen, ElementsAre("0/0 best", "0/1 best", "0/2 best", "2/0 informative",
                                "2/1 informative", "3/0 informative", "3/3 informative",
                                "1/1 worst", "1/2 worst", "1/3 worst"));
  EXPECT_THAT(internal::pick_rollouts({}), IsEmpty());
}

TEST(EscapeHtml, EscapesMarkupControlsAndBrokenBytes) {
  EXPECT_EQ(internal::escape_html("a<b>&\"'\n\t"), "a&lt;b&gt;&amp;&quot;&#39;\n\t");
  EXPECT_EQ(internal::escape_html(std::string("\0\x7F\r", 3)),
            "\xE2\x90\x80\xE2\x90\xA1\xE2\x90\x8D");
  EXPECT_EQ(internal::escape_html("\xC3(\xE2\x82\xAC"), "\xEF\xBF\xBD(\xE2\x82\xAC");
}

}  // namespace
}  // namespace gradus::records
