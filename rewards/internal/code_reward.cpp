// SPDX-License-Identifier: Apache-2.0
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <optional>
#include <thread>

#include "common/strings.h"
#include "rewards/code/code_tests.h"
#include "rewards/code/compare_output.h"
#include "rewards/code/extract_code.h"
#include "rewards/internal/builtin.h"
#include "rewards/internal/options.h"
#include "sandbox/programs.h"
#include "sandbox/sandbox.h"

// `code`: the program in the response passes the tests of the row (docs/rewards.md).
namespace gradus::rewards {
namespace {

using code::CodeTest;
using code::CodeTests;
using code::Language;
using sandbox::RunEnd;
using sandbox::RunResult;

constexpr const char* kCompiler = "/usr/bin/g++";

struct CodeOptions {
  Language language = Language::kPython;
  bool takes_fraction = false;  // else all tests or nothing
  std::string tests_key;        // of the metadata; empty: the ground truth
  code::OutputForm form = code::OutputForm::kTokens;
  double tolerance = 0;
  double sample_cpu_s = 60;
  sandbox::RunLimits limits;
};

// What one test says of a program.
struct TestOutcome {
  bool is_passed = false;
  RewardStatus status = RewardStatus::kOk;  // else the test could not be made
  std::string detail{};
  double cpu_ms = 0;
};

TestOutcome failed_test(std::string detail) {
  TestOutcome outcome;
  outcome.detail = std::move(detail);
  return outcome;
}

TestOutcome unmade_test(RewardStatus status, std::string detail) {
  TestOutcome outcome = failed_test(std::move(detail));
  outcome.status = status;
  return outcome;
}

std::string last_line(std::string_view text) {
  text = trim(text);
  const size_t at = text.rfind('\n');
  return std::string(excerpt(at == std::string_view::npos ? text : text.substr(at + 1)));
}

// Why a run that should have ended with exit code 0 did not, or nothing.
std::optional<std::string> run_failure(const RunResult& result) {
  switch (result.end) {
    case RunEnd::kExited:
      if (result.exit_code == 0) return std::nullopt;
      return fmt::format("runtime error: exit code {}{}{}", result.exit_code,
                         result.stderr_text.empty() ? "" : ": ", last_line(result.stderr_text));
    case RunEnd::kSignalled:
      return fmt::format("runtime error: ended by signal {} ({})", result.signal,
                         strsignal(result.signal));
    case RunEnd::kCpuLimit:
      return "timeout: over its limit of a core's time";
    case RunEnd::kWallLimit:
      return "timeout: waited until its time was over";
    case RunEnd::kMemoryLimit:
      return "memory limit";
    case RunEnd::kOutputLimit:
      return "output limit";
    case RunEnd::kStarved:
      break;
  }
  return "the machine was too busy";
}

// Counts of one kind of tests.
struct Tally {
  int64_t num_passed = 0;
  int64_t num_tests = 0;
};

class CodeReward : public Reward {
 public:
  CodeReward(CodeOptions options, std::unique_ptr<sandbox::Sandbox> sandbox)
      : options_(std::move(options)), sandbox_(std::move(sandbox)) {}

  Status check_ground_truth(const data::Prompt& prompt) const override {
    return parse(prompt).status();
  }

  // Programs may ask for the time, and run at the limits of theirs.
  bool is_deterministic() const override { return false; }

  std::vector<RewardPart> score_batch(std::span<const Group> groups) const override {
    struct Sample {
      const Result<CodeTests>* tests;
      std::string_view response;
    };
    std::vector<Result<CodeTests>> tests;
    std::vector<Sample> samples;
    tests.reserve(groups.size());
    for (const Group& group : groups) {
      tests.push_back(parse(*group.prompt));
      for (const data::Trajectory& trajectory : group.trajectories) {
        samples.push_back({&tests.back(), trajectory.text});
      }
    }
    std::vector<RewardPart> parts(samples.size());
    std::atomic<size_t> next = 0;
    std::exception_ptr error;
    std::atomic<bool> has_failed = false;
    const auto work = [&] {
      try {
        for (size_t i; !has_failed && (i = next++) < samples.size();) {
          parts[i] = score(*samples[i].tests, samples[i].response);
        }
      } catch (...) {
        if (!has_failed.exchange(true)) error = std::current_exception();
      }
    };
    // The waiting is for other processes, so these threads are beside the compute threads.
    std::vector<std::thread> threads;
    const auto num_threads =
        std::min<size_t>(static_cast<size_t>(sandbox_->num_workers()), samples.size());
    for (size_t i = 1; i < num_threads; ++i) threads.emplace_back(work);
    work();
    for (std::thread& thread : threads) thread.join();
    if (error) std::rethrow_exception(error);
    return parts;
  }

 private:
  Result<CodeTests> parse(const data::Prompt& prompt) const {
    const std::string* text = &prompt.answer;
    if (!options_.tests_key.empty()) {
      const auto found = prompt.metadata.find(options_.tests_key);
      if (found == prompt.metadata.end()) {
        return invalid_argument("tests: the row has no '{}'", options_.tests_key);
      }
      text = &found->second;
    }
    auto tests = code::parse_code_tests(*text);
    if (tests.ok() && options_.language == Language::kCpp) {
      GRADUS_RETURN_IF_ERROR(code::check_cpp_tests(*tests));
    }
    return tests;
  }

  RewardPart score(const Result<CodeTests>& tests, std::string_view response) const {
    RewardPart part;
    if (!tests.ok()) {
      part.status = RewardStatus::kInvalidGold;
      part.detail = tests.status().message();
      return part;
    }
    const bool is_python = options_.language == Language::kPython;
    const auto source = code::last_code_block(response, options_.language);
    if (!source.has_value()) {
      part.detail =
          fmt::format("no closed block of {} in the response", is_python ? "Python" : "C++");
      return part;
    }
    if (source->size() > kMaxSourceBytes) {
      part.detail =
          fmt::format("the program has {} bytes; at most {}", source->size(), kMaxSourceBytes);
      return part;
    }
    std::string program(*source);
    if (!is_python) {
      const TestOutcome compiled = compile(*tests, program);
      if (!compiled.is_passed) {
        part.status = compiled.status;
        part.detail = compiled.detail;
        return part;
      }
    }
    return run_tests(*tests, program);
  }

  // Replaces the source by the program. Tests of one row are all calls or all not: see make_run.
  TestOutcome compile(const CodeTests& tests, std::string& program) const {
    const auto result = sandbox_->run(tests.function.empty()
                                          ? sandbox::cpp_compilation(program)
                                          : sandbox::cpp_call_compilation(program, tests.function));
    if (!result.ok()) return unmade_test(RewardStatus::kError, result.status().message());
    if (result->end == RunEnd::kStarved) {
      return unmade_test(RewardStatus::kTimeout, "compilation: the machine was too busy");
    }
    if (result->end != RunEnd::kExited || result->exit_code != 0 || result->kept.empty()) {
      constexpr std::string_view kError = "error: ";
      const std::string_view text = result->stderr_text;
      const size_t at = text.find(kError);
      const std::string message =
          at == std::string_view::npos
              ? run_failure(*result).value_or("no program")
              : std::string(
                    text.substr(at + kError.size(), text.find('\n', at) - at - kError.size()));
      return failed_test(fmt::format("compile error: {}", excerpt(message)));
    }
    program = result->kept;
    TestOutcome outcome;
    outcome.is_passed = true;
    return outcome;
  }

  sandbox::Run make_run(const CodeTests& tests, const CodeTest& test,
                        const std::string& program) const {
    const bool is_python = options_.language == Language::kPython;
    sandbox::Run run;
    if (!test.is_call) {
      run = is_python ? sandbox::python_program(program, test.input)
                      : sandbox::cpp_program(program, test.input);
    } else if (!is_python) {
      run = sandbox::cpp_call(program, test.assertion.has_value()
                                           ? *code::to_json(test.assertion->arguments, true)
                                           : test.input);
    } else if (test.assertion.has_value()) {
      run = sandbox::python_value_call(program, tests.function,
                                       code::to_wire(test.assertion->arguments));
    } else {
      run = sandbox::python_call(program, tests.function, test.input);
    }
    run.limits = options_.limits;
    return run;
  }

  TestOutcome run_test(const CodeTests& tests, const CodeTest& test,
                       const std::string& program) const {
    const auto result = sandbox_->run(make_run(tests, test, program));
    if (!result.ok()) return unmade_test(RewardStatus::kError, result.status().message());
    if (result->end == RunEnd::kStarved) {
      return unmade_test(RewardStatus::kTimeout, *run_failure(*result));
    }
    TestOutcome outcome;
    outcome.cpu_ms = result->cpu_ms;
    if (const auto failure = run_failure(*result)) {
      outcome.detail = *failure;
    } else if (test.is_call && result->result.empty()) {
      outcome.detail = "wrong answer: the function did not return";
    } else if (test.assertion.has_value()) {
      check_assertion(*test.assertion, *result, outcome);
    } else {
      outcome.is_passed = is_right(test, *result);
      if (!outcome.is_passed) {
        outcome.detail =
            wrong_answer(test.is_call ? result->result : result->stdout_text, test.expected);
      }
    }
    return outcome;
  }

  static std::string wrong_answer(std::string_view answer, std::string_view expected) {
    return fmt::format("wrong answer: '{}'; expected '{}'", excerpt(trim(answer)),
                       excerpt(trim(expected)));
  }

  void check_assertion(const code::AssertTest& test, const RunResult& result,
                       TestOutcome& outcome) const {
    const bool is_python = options_.language == Language::kPython;
    const auto returned =
        is_python ? code::from_wire(result.result) : code::from_json(result.result);
    code::AssertTest wanted = test;
    if (!is_python) wanted.expected = *code::to_json_value(test.expected, false);
    outcome.is_passed = returned.has_value() && code::holds(wanted, *returned, options_.tolerance);
    if (outcome.is_passed) return;
    outcome.detail = wrong_answer(returned ? code::to_python(*returned) : result.result,
                                  code::expectation_text(wanted));
  }

  bool is_right(const CodeTest& test, const RunResult& result) const {
    if (!test.is_call) {
      return code::is_same_output(result.stdout_text, test.expected, options_.form,
                                  options_.tolerance);
    }
    return code::is_same_json(result.result, test.expected, options_.tolerance) ||
           (test.may_be_unwrapped &&
            code::is_same_json(result.result, code::only_element(test.expected),
                               options_.tolerance));
  }

  RewardPart run_tests(const CodeTests& tests, const std::string& program) const {
    RewardPart part;
    Tally shown, hidden;
    double cpu_ms = 0;
    std::string first_failure;
    for (size_t i = 0; i < tests.tests.size(); ++i) {
      const CodeTest& test = tests.tests[i];
      Tally& tally = test.is_visible ? shown : hidden;
      ++tally.num_tests;
      if (!options_.takes_fraction && !first_failure.empty()) continue;
      const TestOutcome outcome = cpu_ms > 1000 * options_.sample_cpu_s
                                      ? failed_test("timeout: all tests together took too long")
                                      : run_test(tests, test, program);
      if (outcome.status != RewardStatus::kOk) {
        part.status = outcome.status;
        part.detail = fmt::format("test {}: {}", i + 1, outcome.detail);
        return part;
      }
      cpu_ms += outcome.cpu_ms;
      if (outcome.is_passed) {
        ++tally.num_passed;
      } else if (first_failure.empty()) {
        first_failure = fmt::format("test {}: {}", i + 1, outcome.detail);
      }
    }
    set_score(shown, hidden, first_failure, part);
    return part;
  }

  // Where there are hidden tests only they make the fraction: a program can have the answers of
  // those in the prompt by heart.
  void set_score(const Tally& shown, const Tally& hidden, const std::string& failure,
                 RewardPart& part) const {
    const Tally& counted = hidden.num_tests > 0 ? hidden : shown;
    part.score = options_.takes_fraction ? static_cast<double>(counted.num_passed) /
                                               static_cast<double>(counted.num_tests)
                                         : (failure.empty() ? 1 : 0);
    if (failure.empty()) return;
    part.detail = failure;
    if (!options_.takes_fraction) return;
    part.detail +=
        fmt::format("; passed {} of {} hidden and {} of {} shown tests", hidden.num_passed,
                    hidden.num_tests, shown.num_passed, shown.num_tests);
    if (shown.num_tests > 0 && shown.num_passed == shown.num_tests && hidden.num_tests > 0 &&
        hidden.num_passed == 0) {
      part.detail += ": only those shown";
    }
  }

  static constexpr size_t kMaxSourceBytes = 1 << 20;

  CodeOptions options_;
  std::unique_ptr<sandbox::Sandbox> sandbox_;
};

std::vector<std::string> split_list(const std::string& text) {
  std::vector<std::string> items;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    const std::string_view item = trim(std::string_view(text).substr(begin, end - begin));
    if (!item.empty()) items.emplace_back(item);
    begin = end + 1;
  }
  return items;
}

// What the language needs is there, said before training rather than in its first step.
Status check_language(Language language, sandbox::Sandbox& sandbox) {
  if (language == Language::kCpp) {
    if (access(kCompiler, X_OK) == 0) return {};
    return unavailable("reward code: {} is not there, which C++ programs need; install g++",
                       kCompiler);
  }
  const auto result = sandbox.run(sandbox::python_program("print('ready')", ""));
  if (!result.ok()) {
    return unavailable(
        "reward code: {}; Python programs need an interpreter below /usr, or one named by the "
        "options "
        "python and read_only",
        result.status().message());
  }
  if (result->stdout_text == "ready\n") return {};
  return unavailable("reward code: a Python program for trial ended with: {}",
                     run_failure(*result).value_or("no output"));
}

}  // namespace

Result<std::unique_ptr<Reward>> make_code_reward(const RewardOptions& options) {
  CodeOptions code;
  sandbox::SandboxOptions sandbox;
  OptionReader reader("code", options);
  int language = 0, score = 0, form = 0;
  std::string read_only, allow_missing;
  double workers = 2, cpu_s = 5, wall_s = 10, memory_mib = 512, disk_mib = 16, output_kib = 1024,
         processes = 64;
  reader.choice("language", {"python", "cpp"}, language);
  reader.choice("score", {"all", "fraction"}, score);
  reader.choice("compare", {"tokens", "exact", "lines"}, form);
  reader.number("tolerance", 0, 1, code.tolerance);
  reader.text("tests", code.tests_key);
  reader.number("cpu_s", 0.01, 3600, cpu_s);
  reader.number("wall_s", 0.01, 3600, wall_s);
  reader.number("sample_cpu_s", 0.01, 36000, code.sample_cpu_s);
  reader.number("memory_mib", 64, 1 << 20, memory_mib);
  reader.number("disk_mib", 1, 1 << 20, disk_mib);
  reader.number("output_kib", 1, 1 << 18, output_kib);
  reader.number("processes", 1, 4096, processes);
  reader.number("workers", 1, 1024, workers);
  reader.text("python", sandbox.python);
  reader.text("read_only", read_only);
  reader.text("allow_missing", allow_missing);
  GRADUS_RETURN_IF_ERROR(reader.finish());
  code.language = language == 0 ? Language::kPython : Language::kCpp;
  code.takes_fraction = score == 1;
  code.form = form == 0   ? code::OutputForm::kTokens
              : form == 1 ? code::OutputForm::kExact
                          : code::OutputForm::kLines;
  code.limits = {.cpu_ms = static_cast<int64_t>(1000 * cpu_s),
                 .wall_ms = static_cast<int64_t>(1000 * wall_s),
                 .memory_mib = static_cast<int64_t>(memory_mib),
                 .num_processes = static_cast<int64_t>(processes),
                 .output_kib = static_cast<int64_t>(output_kib),
                 .disk_mib = static_cast<int64_t>(disk_mib)};
  sandbox.num_workers = static_cast<int>(workers);
  sandbox.read_only = split_list(read_only);
  sandbox.allow_missing = split_list(allow_missing);
  auto made = sandbox::Sandbox::create(sandbox);
  if (!made.ok()) return made.status().with_prefix("reward code");
  GRADUS_RETURN_IF_ERROR(check_language(code.language, **made));
  return std::unique_ptr<Reward>(std::make_unique<CodeReward>(std::move(code), std::move(*made)));
}

}  // namespace gradus::rewards
