// SPDX-License-Identifier: Apache-2.0
#include "common/config/bind.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "common/config/rules.h"

namespace gradus {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;
using ::testing::UnorderedElementsAre;

enum class Color { kRed, kGreen };

struct Layer {
  std::string name;
  double scale = 1.0;

  void visit(FieldVisitor& v) {
    v.field("name", name, "What it is called.", non_empty());
    v.field("scale", scale, "How much | how little.", greater_than(0));
  }
};

struct Options {
  bool is_fast = false;
  int64_t count = 3;
  double top_p = 1.0;
  std::string title = "none";
  Color color = Color::kRed;
  std::optional<int64_t> limit;
  std::vector<std::string> words;
  std::vector<int64_t> sizes;
  std::map<std::string, double> dials;

  void visit(FieldVisitor& v) {
    v.field("is_fast", is_fast, "Whether it hurries.");
    v.field("count", count, "How many.", in_closed(1, 100));
    v.field("top_p", top_p, "Nucleus.", in_left_open(0, 1).with_remedy("use 1 to disable"));
    v.field("title", title, "What it is about.");
    v.field("color", color, "Its color.", one_of({"red", "green"}));
    v.field("limit", limit, "The most.", at_least(1));
    v.field("words", words, "Some words.");
    v.field("sizes", sizes, "Some sizes.", at_least(0));
    v.field("dials", dials, "Some numbers by name.");
  }
};

struct Config {
  Options options;
  std::optional<Layer> extra;
  struct Stack {
    std::vector<Layer> layers;
    void visit(FieldVisitor& v) { v.field("layers", layers, "From the bottom up."); }
  } stack;

  void visit(FieldVisitor& v) {
    v.field("options", options, "Simple things.");
    v.field("extra", extra, "One more layer.");
    v.field("stack", stack, "Layers.");
  }
};

class ConfigFiles : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() + "gradus_config_" + std::to_string(getpid()) + "/";
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_ + "sub");
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  void write(const std::string& name, const std::string& text) {
    std::ofstream(folder_ + name, std::ios::binary) << text;
  }

  Result<LoadedConfig<Config>> load(const std::string& name,
                                    const std::vector<std::string>& overrides = {}) {
    return load_config<Config>(folder_ + name, overrides);
  }

  // The message of loading `text` as c.yaml, the folder left out.
  std::string message_of(const std::string& text, const std::vector<std::string>& overrides = {}) {
    write("c.yaml", text);
    return message_of_file("c.yaml", overrides);
  }
  std::string message_of_file(const std::string& name,
                              const std::vector<std::string>& overrides = {}) {
    std::string message = load(name, overrides).status().message();
    for (size_t at = message.find(folder_); at != std::string::npos; at = message.find(folder_)) {
      message.erase(at, folder_.size());
    }
    return message;
  }

  std::string folder_;
};

TEST_F(ConfigFiles, EveryTypeIsRead) {
  write("c.yaml",
        "options:\n"
        "  is_fast: true\n"
        "  count: 7\n"
        "  top_p: 5e-1\n"
        "  title: 010\n"
        "  color: green\n"
        "  limit: 9\n"
        "  words: [a, \"~\", 'x: y']\n"
        "  sizes:\n    - 0\n    - -0\n"
        "  dials: {a: 1, b: -2.5}\n"
        "extra: {name: top}\n"
        "stack:\n"
        "  layers:\n"
        "    - name: one\n"
        "    - {name: two, scale: 2}\n");
  const auto loaded = load("c.yaml");
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  const Options& options = loaded->value.options;
  EXPECT_TRUE(options.is_fast);
  EXPECT_EQ(options.count, 7);
  EXPECT_EQ(options.top_p, 0.5);
  EXPECT_EQ(options.title, "010") << "a text keeps its letters";
  EXPECT_EQ(options.color, Color::kGreen);
  EXPECT_EQ(options.limit, 9);
  EXPECT_THAT(options.words, ElementsAre("a", "~", "x: y"));
  EXPECT_THAT(options.sizes, ElementsAre(0, 0));
  EXPECT_THAT(options.dials, ElementsAre(Pair("a", 1), Pair("b", -2.5)));
  ASSERT_TRUE(loaded->value.extra.has_value());
  EXPECT_EQ(loaded->value.extra->name, "top");
  ASSERT_EQ(loaded->value.stack.layers.size(), 2u);
  EXPECT_EQ(loaded->value.stack.layers[0].scale, 1.0);
  EXPECT_EQ(loaded->value.stack.layers[1].scale, 2.0);
  EXPECT_EQ(loaded->origins.at("options.count"), folder_ + "c.yaml:3:10");
  EXPECT_EQ(loaded->origins.at("stack.layers[1].scale"), folder_ + "c.yaml:17:26");
  EXPECT_EQ(loaded->origins.count("stack.layers[0].scale"), 0u) << "has its default";
}

TEST_F(ConfigFiles, LaterSourcesWin) {
  write("sub/grand.yaml",
        "options: {count: 4, title: grand, words: [g, h], dials: {a: 1, b: 2}}\n"
        "stack: {layers: [{name: g, scale: 5}]}\n");
  write("sub/base.yaml", "base: grand.yaml\noptions:\n  title: base\n  limit: 5\n");
  write("c.yaml",
        "options: {words: [c], dials: {c: 3}, limit: ~}\nbase: sub/base.yaml\n"
        "stack: {layers: [{name: c}, {name: d}]}\n");
  const auto loaded =
      load("c.yaml", {"options.is_fast=true", "options.is_fast=false", "stack.layers.1.scale=4",
                      "options.dials.z=0.5", "extra={name: x}", "extra.scale=3"});
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  const Options& options = loaded->value.options;
  EXPECT_EQ(options.count, 4) << "from the base's base";
  EXPECT_EQ(options.title, "base");
  EXPECT_FALSE(options.limit.has_value());
  EXPECT_THAT(options.words, ElementsAre("c"));
  EXPECT_THAT(options.dials, ElementsAre(Pair("c", 3), Pair("z", 0.5)));
  EXPECT_FALSE(options.is_fast) << "the last --set wins";
  ASSERT_EQ(loaded->value.stack.layers.size(), 2u);
  EXPECT_EQ(loaded->value.stack.layers[0].scale, 1.0) << "entries start from their defaults";
  EXPECT_EQ(loaded->value.stack.layers[1].scale, 4.0);
  EXPECT_EQ(loaded->value.extra->name, "x");
  EXPECT_EQ(loaded->value.extra->scale, 3.0);
  EXPECT_EQ(loaded->origins.at("options.count"), folder_ + "sub/grand.yaml:1:18");
  EXPECT_EQ(loaded->origins.at("options.title"), folder_ + "sub/base.yaml:3:10");
  EXPECT_EQ(loaded->origins.at("options.dials.z"), "--set options.dials.z=0.5");
  EXPECT_EQ(loaded->origins.at("options.is_fast"), "--set options.is_fast=false");
  EXPECT_EQ(loaded->origins.count("stack.layers[0].scale"), 0u)
      << "the base's entry has left no trace";
  EXPECT_EQ(loaded->origins.count("options.dials.a"), 0u);
}

TEST_F(ConfigFiles, AllProblemsAreReportedInOrder) {
  write("base.yaml", "options:\n  count: 0\n");
  EXPECT_EQ(
      message_of("base: base.yaml\n"
                 "options:\n"
                 "  top_p: 1.4\n"
                 "  cuont: 3\n"
                 "  top_p: 1\n"
                 "layers: []\n",
                 {"options.top_p=0", "extra.scale=x"}),
      "base.yaml:2:10: 'options.count' must be in [1, 100], got '0'\n"
      "c.yaml:3:10: 'options.top_p' must be in (0, 1], got '1.4'; use 1 to disable\n"
      "c.yaml:4:3: unknown key 'cuont' in 'options'; did you mean 'count'?\n"
      "c.yaml:5:3: duplicate key 'top_p' in 'options'; first set at line 3; remove one of them\n"
      "c.yaml:6:1: unknown key 'layers' at the top level; did you mean 'stack.layers'?\n"
      "--set options.top_p=0: must be in (0, 1]; use 1 to disable\n"
      "--set extra.scale=x: missing 'name' in 'extra'; it must not be empty\n"
      "--set extra.scale=x: must be a number");
}

struct Case {
  std::string text;     // of c.yaml
  std::string message;  // whole
};
// CTest takes this into the test's name: a few plain words.
std::ostream& operator<<(std::ostream& out, const Case& c) {
  for (const char letter : c.message.substr(0, 60)) {
    out << (std::isalnum(static_cast<unsigned char>(letter)) ? letter : ' ');
  }
  return out;
}

class BadConfig : public ConfigFiles, public ::testing::WithParamInterface<Case> {};

TEST_P(BadConfig, HasItsMessage) {
  const auto& [text, message] = GetParam();
  write("c.yaml", text);
  std::string found = load("c.yaml").status().message();
  for (size_t at = found.find(folder_); at != std::string::npos; at = found.find(folder_)) {
    found.erase(at, folder_.size());
  }
  EXPECT_EQ(found, message);
}

std::string options(const std::string& entry) { return "options: {" + entry + "}\n"; }

INSTANTIATE_TEST_SUITE_P(
    Values, BadConfig,
    ::testing::Values(
        Case{options("count: 010"),
             "c.yaml:1:18: 'options.count' must be an integer without leading zeros, got '010'; "
             "write 10"},
        Case{options("count: 1e1"),
             "c.yaml:1:18: 'options.count' must be an integer, got '1e1'; write 10"},
        Case{options("count: 8.0"),
             "c.yaml:1:18: 'options.count' must be an integer, got '8.0'; write 8"},
        Case{options("count: 1_0"),
             "c.yaml:1:18: 'options.count' must be an integer, got '1_0'; write 10"},
        Case{options("count: 0x10"),
             "c.yaml:1:18: 'options.count' must be an integer, got '0x10'; write it in decimal"},
        Case{options("count: 8.5"), "c.yaml:1:18: 'options.count' must be an integer, got '8.5'"},
        Case{options("count: ~"), "c.yaml:1:18: 'options.count' must be an integer, got nothing"},
        Case{options("count: [8]"), "c.yaml:1:18: 'options.count' must be an integer, got a list"},
        Case{options("count: {a: 8}"),
             "c.yaml:1:18: 'options.count' must be an integer, got a map"},
        Case{options("count: '8'"),
             "c.yaml:1:18: 'options.count' must be an integer, got '8'; remove the quotes"},
        Case{options("count: 101"), "c.yaml:1:18: 'options.count' must be in [1, 100], got '101'"},
        Case{options("count: 9223372036854775808"),
             "c.yaml:1:18: 'options.count' must be an integer of at most 64 bits, got "
             "'9223372036854775808'"},
        Case{options("top_p: .nan"),
             "c.yaml:1:18: 'options.top_p' must be a finite number, got '.nan'"},
        Case{options("top_p: -.INF"),
             "c.yaml:1:18: 'options.top_p' must be a finite number, got '-.INF'"},
        Case{options("top_p: 1e-60"),
             "c.yaml:1:18: 'options.top_p' must be 0 or at least 1.2e-38 in size, got '1e-60'; "
             "smaller numbers are 0 in single precision"},
        Case{options("top_p: 1e-4000"),
             "c.yaml:1:18: 'options.top_p' must be 0 or at least 1.2e-38 in size, got '1e-4000'; "
             "smaller numbers are 0 in single precision"},
        Case{options("top_p: 1e39"),
             "c.yaml:1:18: 'options.top_p' must be a number of at most 3.4e38 in size, got '1e39'"},
        Case{options("top_p: 00.5"),
             "c.yaml:1:18: 'options.top_p' must be a number without leading zeros, got '00.5'; "
             "write 0.5"},
        Case{options("top_p: 0x1"), "c.yaml:1:18: 'options.top_p' must be a number, got '0x1'"},
        Case{options("top_p: 1e"), "c.yaml:1:18: 'options.top_p' must be a number, got '1e'"},
        Case{options("top_p: ."), "c.yaml:1:18: 'options.top_p' must be a number, got '.'"},
        Case{options("top_p: 50%"), "c.yaml:1:18: 'options.top_p' must be a number, got '50%'"},
        Case{options("is_fast: yes"),
             "c.yaml:1:20: 'options.is_fast' must be true or false, got 'yes'"},
        Case{options("title: ~"),
             "c.yaml:1:18: 'options.title' must be a text, got nothing; write \"\" for an empty "
             "text"},
        Case{options("title: [a]"), "c.yaml:1:18: 'options.title' must be a text, got a list"},
        Case{options("color: gren"),
             "c.yaml:1:18: 'options.color' must be one of red, green, got 'gren'; did you mean "
             "'green'?"},
        Case{options("color: ~"),
             "c.yaml:1:18: 'options.color' must be one of red, green, got nothing"},
        Case{options("limit: 0"), "c.yaml:1:18: 'options.limit' must be at least 1, got '0'"},
        Case{options("words: a"),
             "c.yaml:1:18: 'options.words' must be a list, got 'a'; write [] for an empty list, "
             "[a, b] for two entries"},
        Case{options("sizes: [1, -1, x]"),
             "c.yaml:1:22: 'options.sizes[1]' must be at least 0, got '-1'\n"
             "c.yaml:1:26: 'options.sizes[2]' must be an integer, got 'x'"},
        Case{options("dials: {a: b}"), "c.yaml:1:22: 'options.dials.a' must be a number, got 'b'"},
        Case{options("dials: [1]"),
             "c.yaml:1:18: 'options.dials' must be a map of names to values, got a list; write {} "
             "for an empty map"},
        Case{"options: 5\n", "c.yaml:1:10: 'options' must be a map of keys, got '5'"},
        Case{"extra: {scale: 0}\n",
             "c.yaml:1:8: missing 'name' in 'extra'; it must not be empty\n"
             "c.yaml:1:16: 'extra.scale' must be greater than 0, got '0'"},
        // An unknown key may be the missing one; a value that is wrong is not missing besides.
        Case{"extra: {nam: x}\n", "c.yaml:1:9: unknown key 'nam' in 'extra'; did you mean 'name'?"},
        Case{"extra: {name: [x]}\n", "c.yaml:1:15: 'extra.name' must be a text, got a list"},
        Case{"extra:\n  scale: 1\n", "c.yaml:2:3: missing 'name' in 'extra'; it must not be empty"},
        Case{"extra: {name: ''}\n", "c.yaml:1:15: 'extra.name' must not be empty, got ''"},
        Case{"stack:\n  layers:\n    - name: a\n    - scale: 1\n",
             "c.yaml:4:7: missing 'name' in 'stack.layers[1]'; it must not be empty"}));

INSTANTIATE_TEST_SUITE_P(
    Keys, BadConfig,
    ::testing::Values(
        Case{options("banana: 1"),
             "c.yaml:1:11: unknown key 'banana' in 'options'; known keys: is_fast, count, top_p, "
             "title, color, limit, words, sizes, dials"},
        Case{"scale: 1\n",
             "c.yaml:1:1: unknown key 'scale' at the top level; did you mean 'extra.scale' or "
             "'stack.layers[].scale'?"},
        Case{options("count: 1, count: 2"),
             "c.yaml:1:21: duplicate key 'count' in 'options'; first set at line 1; remove one of "
             "them"},
        Case{"extra:\n  name: a\nextra:\n  name: b\n",
             "c.yaml:3:1: duplicate key 'extra'; first set at line 1; remove one of them"},
        Case{"stack: {layers: [{name: a}, {name: b, name: c}]}\n",
             "c.yaml:1:39: duplicate key 'name' in 'stack.layers[1]'; first set at line 1; remove "
             "one of them"},
        Case{options("dials: {a: 1, a: 1}"),
             "c.yaml:1:25: duplicate key 'a' in 'options.dials'; first set at line 1; remove one "
             "of them"},
        Case{"? [a]\n: b\n", "c.yaml:1:3: a key must be a word, got a list or map"},
        Case{"\"\": b\n", "c.yaml:1:1: a key is missing before ':'"},
        Case{"options: &x {count: 1}\nextra: *x\n",
             "c.yaml:1:10: anchors are not supported; share values by 'base:'\n"
             "c.yaml:2:8: aliases are not supported; write the value out, or share values by "
             "'base:'"},
        Case{"options:\n  <<: {count: 1}\n",
             "c.yaml:2:3: merge keys are not supported; share values by 'base:'"},
        Case{options("title: !!str 5"),
             "c.yaml:1:18: tags are not supported, got 'tag:yaml.org,2002:str'; remove it"}));

INSTANTIATE_TEST_SUITE_P(
    Texts, BadConfig,
    ::testing::Values(
        Case{"", "c.yaml:1:1: is empty; an empty configuration is written {}"},
        Case{"# nothing\n", "c.yaml:1:1: is empty; an empty configuration is written {}"},
        Case{"~\n", "c.yaml:1:1: is empty; an empty configuration is written {}"},
        Case{"- a\n", "c.yaml:1:1: must be a map of keys at the top level, got a list"},
        Case{"a\n", "c.yaml:1:1: must be a map of keys at the top level, got 'a'"},
        Case{"options: {count: 1}\n---\nextra: ~\n",
             "c.yaml:3:1: a second document starts here; a configuration is one document"},
        Case{"options:\n\tcount: 1\n", "c.yaml:2:1: a line starts with a tab; indent with spaces"},
        Case{"options: [a\n", "c.yaml:2:1: not valid YAML: end of sequence flow not found"},
        Case{"options:\n    count: 3\n  title: 1\n",
             "c.yaml:3:3: not valid YAML: end of map not found"},
        Case{"options: {title: a\x04}\n", "c.yaml:1:19: control character 0x04; remove it"},
        Case{"options:\n  title: \xff\n", "c.yaml:2:10: not valid UTF-8; save the text as UTF-8"},
        Case{"a: " + std::string(1 << 20, 'x'),
             "c.yaml:1:1: is 1048579 bytes long; a configuration has at most 1048576"}));

INSTANTIATE_TEST_SUITE_P(
    Bases, BadConfig,
    ::testing::Values(
        Case{"base: c.yaml\n", "c.yaml:1:7: base 'c.yaml' leads back to itself (c.yaml -> c.yaml)"},
        Case{"base: x.yaml\n",
             "c.yaml:1:7: base 'x.yaml' cannot be read (x.yaml: cannot open: No such file or "
             "directory); the path is relative to this file"},
        Case{"base: sub\n",
             "c.yaml:1:7: base 'sub' cannot be read (sub: is a folder; name a YAML file); the path "
             "is relative to this file"},
        Case{"base: [x.yaml]\n", "c.yaml:1:7: 'base' must be the path of one file, got a list"}));

TEST_F(ConfigFiles, WhatCouldBeReadIsThereBesideTheProblems) {
  write("c.yaml",
        "options: {count: 0, title: kept, dials: {a: b, c: 2}}\n"
        "stack: {layers: [{scale: 3}, {name: [b], scale: 4}]}\n");
  const auto read = read_config<Config>(folder_ + "c.yaml");
  EXPECT_FALSE(read.status.ok());
  EXPECT_EQ(read.loaded.value.options.title, "kept");
  EXPECT_EQ(read.loaded.value.stack.layers.at(1).scale, 4.0);
  EXPECT_THAT(read.unread, ElementsAre("options.count", "options.dials.a", "stack.layers[0].name",
                                       "stack.layers[1].name"));
  EXPECT_TRUE(is_unread(read.unread, "options.count"));
  EXPECT_FALSE(is_unread(read.unread, "options.counts"));
  EXPECT_FALSE(is_unread(read.unread, "stack.layers[1]"));
  EXPECT_TRUE(is_unread({"stack.layers"}, "stack.layers[1].scale"));
  write("c.yaml", "[");
  EXPECT_THAT(read_config<Config>(folder_ + "c.yaml").unread, ElementsAre(""));
  EXPECT_THAT(read_config<Config>(folder_ + "none.yaml").unread, ElementsAre(""));
  EXPECT_TRUE(is_unread({""}, "options.count"));
}

TEST_F(ConfigFiles, StatusesAreJoinedInTheOrderOfTheFile) {
  const Status one = invalid_argument("a.yaml:2:10: x\na.yaml:10:1: y");
  const Status other = invalid_argument("a.yaml:2:9: z\nwithout a place");
  EXPECT_EQ(in_order_of_lines(one, other).message(),
            "without a place\na.yaml:2:9: z\na.yaml:2:10: x\na.yaml:10:1: y");
  EXPECT_EQ(in_order_of_lines({}, other).message(), other.message());
  EXPECT_EQ(in_order_of_lines(one, {}).message(), one.message());
  EXPECT_TRUE(in_order_of_lines({}, {}).ok());
}

TEST_F(ConfigFiles, ACycleIsNamedLinkByLink) {
  write("sub/b.yaml", "base: ../c.yaml\n");
  EXPECT_EQ(
      message_of("base: sub/b.yaml\n"),
      "sub/b.yaml:1:7: base '../c.yaml' leads back to itself (c.yaml -> sub/b.yaml -> c.yaml)");
}

TEST_F(ConfigFiles, AMissingFileIsAnErrorOfItsOwn) {
  const Status status = load("none.yaml").status();
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_EQ(message_of_file("none.yaml"), "none.yaml: cannot open: No such file or directory");
}

TEST_F(ConfigFiles, DeepNestingIsRefusedAndManyProblemsAreCut) {
  EXPECT_THAT(message_of("a: " + std::string(100000, '[')), HasSubstr("c.yaml:"));
  std::string text;
  for (int i = 0; i < 60; ++i) text += "k" + std::to_string(i) + ": 1\n";
  EXPECT_THAT(message_of(text), HasSubstr("c.yaml:50:1: unknown key 'k49'"));
  EXPECT_THAT(message_of(text), HasSubstr("\nand 10 more problems"));
}

TEST_F(ConfigFiles, OverridesHaveMessagesOfTheirOwn) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"options.top_p=1.4", "must be in (0, 1]; use 1 to disable"},
      {"options.count=1e1", "must be an integer; write 10"},
      {"options.count=", "must be an integer"},
      {"options.title=", "must be a text; write \"\" for an empty text"},
      {"options.conut=1", "unknown key 'conut' in 'options'; did you mean 'count'?"},
      {"opsions.count=1", "unknown key 'opsions' at the top level; did you mean 'options'?"},
      {"options.count.x=1", "'options.count' must be an integer, got a map"},
      {"options={count: x}", "'options.count' must be an integer, got 'x'"},
      {"options.words=[a", "not valid YAML: end of sequence flow not found"},
      {"stack.layers.2.scale=1", "'stack.layers' has 2 entries, counted from 0; got '2'"},
      {"stack.layers.x.scale=1", "'stack.layers' has 2 entries, counted from 0; got 'x'"},
      {"stack.layers.0.scale=0", "'stack.layers[0].scale' must be greater than 0, got '0'"},
      {"base=x.yaml", "unknown key 'base' at the top level; known keys: options, extra, stack"},
      {"options.count", "must be a key and a value, as in --set trainer.num_steps=10"},
      {"=1", "must be a key and a value, as in --set trainer.num_steps=10"},
      {"options..count=1", "must be a key and a value, as in --set trainer.num_steps=10"},
  };
  for (const auto& [text, message] : cases) {
    EXPECT_EQ(message_of("stack: {layers: [{name: a}, {name: b}]}\n", {text}),
              "--set " + text + ": " + message);
  }
}

TEST_F(ConfigFiles, WindowsLineEndsAndAByteOrderMarkAreHarmless) {
  write("c.yaml", "\xEF\xBB\xBFoptions:\r\n  title: a b\r\n  count: 5\r\n");
  const auto loaded = load("c.yaml");
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  EXPECT_EQ(loaded->value.options.title, "a b");
  EXPECT_EQ(loaded->value.options.count, 5);
}

TEST_F(ConfigFiles, AnEmptySectionKeepsTheDefaults) {
  write("c.yaml", "options:\n");
  const auto loaded = load("c.yaml");
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  EXPECT_EQ(loaded->value.options.count, 3);
}

std::string print(Config config, const ConfigOrigins& origins) {
  return config_yaml([&](FieldVisitor& v) { config.visit(v); }, origins);
}

TEST_F(ConfigFiles, TheResolvedDumpShowsOrigins) {
  write("c.yaml",
        "options:\n  dials: {a: 0.1}\n  words: [x, \"y: z\"]\nstack: {layers: [{name: low}]}\n");
  const auto loaded = load("c.yaml", {"options.count=5"});
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  std::string text = print(loaded->value, loaded->origins);
  for (size_t at = text.find(folder_); at != std::string::npos; at = text.find(folder_)) {
    text.erase(at, folder_.size());
  }
  EXPECT_EQ(text,
            "options:\n"
            "  is_fast: false  # default\n"
            "  count: 5  # --set options.count=5\n"
            "  top_p: 1  # default\n"
            "  title: none  # default\n"
            "  color: red  # default\n"
            "  limit: ~  # default\n"
            "  words: [x, \"y: z\"]  # c.yaml:3:10\n"
            "  sizes: []  # default\n"
            "  dials:\n"
            "    a: 0.1  # c.yaml:2:14\n"
            "extra: ~  # default\n"
            "stack:\n"
            "  layers:\n"
            "    - name: low  # c.yaml:4:25\n"
            "      scale: 1  # default\n");
}

TEST_F(ConfigFiles, TheResolvedDumpReadsBackToTheSameValues) {
  Config config;
  config.options.top_p = 0.1 + 0.2;
  config.options.dials = {{"small", 1.5e-30}, {"a key: with colon", -3.25}, {"true", 1}};
  config.options.words = {"",    "~",       "null",        "true", "010", "1e5",  "-",
                          "- a", "a\nb\tc", "\"\\",        "#x",   " a ", "x: y", "[a",
                          "@",   "\x01",    "caf\xC3\xA9", "yes",  "*a",  "&b",   "!c",
                          "%d",  "a,b",     "{",           "|",    ">",   "'"};
  config.options.title = "line one\nline two\n";
  config.options.limit = 12;
  config.options.sizes = {1, 2, 3};
  config.extra = Layer{"e", 0.3};
  config.stack.layers = {{"a", 1e-7}, {"b", 1e20}};
  const std::string first = print(config, {});
  EXPECT_THAT(first, HasSubstr("\"~\", \"null\", \"true\", \"010\", \"1e5\""))
      << "quoted, so that other YAML readers see a text too";
  // A control character is refused in files as such, but may be written as an escape.
  write("c.yaml", first);
  const auto loaded = load("c.yaml");
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  EXPECT_EQ(print(loaded->value, {}), first);
  EXPECT_EQ(loaded->value.options.words, config.options.words);
  EXPECT_EQ(loaded->value.options.top_p, config.options.top_p);
  EXPECT_EQ(loaded->value.options.dials, config.options.dials);
  EXPECT_EQ(loaded->value.options.title, config.options.title);
}

TEST(ConfigMarkdown, HasATableForEachSection) {
  Config config;
  config.options.limit = 4;
  const std::string text = config_markdown([&](FieldVisitor& v) { config.visit(v); });
  for (const std::string part :
       {"## `options`\n\nSimple things.\n\n| key | type | default | range | meaning |\n",
        "| `is_fast` | bool | `false` |  | Whether it hurries. |\n",
        "| `count` | integer | `3` | in [1, 100] | How many. |\n",
        "| `color` | choice | `red` | one of red, green | Its color. |\n",
        "| `limit` | integer or unset | `4` | at least 1 | The most. |\n",
        "| `words` | list of text | `[]` |  | Some words. |\n",
        "| `dials` | map to number | `{}` |  | Some numbers by name. |\n",
        "## `extra`\n\nOne more layer.\n",
        "| `layers` | list of section | `[]` |  | From the bottom up. |\n",
        "## `stack.layers[]`\n\nFrom the bottom up.\n",
        "| `scale` | number | `1` | greater than 0 | How much \\| how little. |\n"}) {
    EXPECT_THAT(text, HasSubstr(part));
  }
}

TEST(ConfigRules, PlacesPointAtTheFirstKeyThatWasSet) {
  ConfigRules rules;
  rules.require(true, "never shown");
  rules.require(false, "a.x ({}) must be less than a.y ({})", 3, 2);
  rules.require(false, "neither b.x nor b.y is set");
  rules.add(invalid_argument("c[0].z is wrong"));
  const Status status = with_places(rules.status(), "run.yaml",
                                    {{"a.y", "run.yaml:4:2"}, {"c[0].z", "--set c.0.z=1"}});
  EXPECT_EQ(status.message(),
            "run.yaml:4:2: a.x (3) must be less than a.y (2)\n"
            "run.yaml: neither b.x nor b.y is set\n"
            "--set c.0.z=1: c[0].z is wrong");
  EXPECT_TRUE(with_places({}, "run.yaml", {}).ok());
}

}  // namespace
}  // namespace gradus
