// SPDX-License-Identifier: Apache-2.0
// Choices, matches, quantities, patterns, JSON, instructions, tags, shaping.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>

#include "rewards/internal/ifeval.h"
#include "rewards/internal/language.h"
#include "rewards/reward.h"

namespace gradus::rewards {
namespace {

RewardPart judge(const std::string& name, const RewardOptions& options, const std::string& gold,
                 const std::string& response) {
  RewardRegistry registry("reward");
  register_builtin_rewards(registry);
  const auto reward = registry.create(name, options);
  EXPECT_TRUE(reward.ok()) << reward.status().message();
  data::Prompt prompt;
  prompt.answer = gold;
  data::Trajectory trajectory;
  trajectory.text = response;
  const Group group{&prompt, std::span(&trajectory, 1)};
  return (*reward)->score_batch(std::span(&group, 1))[0];
}

std::string refusal(const std::string& name, const RewardOptions& options) {
  RewardRegistry registry("reward");
  register_builtin_rewards(registry);
  return registry.create(name, options).status().message();
}

struct Row {
  std::string gold, response;
  double score;
};

void expect_scores(const std::string& name, const RewardOptions& options,
                   const std::vector<Row>& rows) {
  for (const Row& row : rows) {
    const RewardPart part = judge(name, options, row.gold, row.response);
    EXPECT_EQ(part.status, RewardStatus::kOk) << row.gold << " | " << row.response;
    EXPECT_NEAR(part.score, row.score, 1e-12)
        << row.gold << " | " << row.response << " | " << part.detail;
  }
}

TEST(ChoiceReward, TakesTheOneLetterThatAResponseSettlesOn) {
  expect_scores("choice", {},
                {{"B", "The answer is (B).", 1},
                 {"(B)", "**B**", 1},
                 {"B", "\\boxed{B. 42}", 1},
                 {"B", "The answer is A or B.", 0},
                 {"B", "<think>The answer is A.</think>The answer is B.", 1},
                 {"B", "<think>The answer is B.</think>", 0},
                 {"B", "<think>The answer is B.", 0},
                 {"B", "", 0}});
}

TEST(ChoiceReward, CallsAGroundTruthWithoutALetterInvalid) {
  const RewardPart part = judge("choice", {}, "42", "B");
  EXPECT_EQ(part.status, RewardStatus::kInvalidGold);
  EXPECT_EQ(part.detail, "the ground truth is '42'; expected a letter from A to J");
}

TEST(MatchReward, ComparesWordsAsSquadDoes) {
  expect_scores("match", {},
                {{"The Eiffel Tower", "eiffel  tower!", 1},
                 {R"(["Paris", "City of Light"])", "the city of light", 1},
                 {R"(["Paris", "City of Light"])", "London", 0},
                 {"Paris", "<think>Paris</think>", 0},
                 {"\xc3\x89t\xc3\xa9", "\xc3\xa9t\xc3\xa9", 1}});
  expect_scores("match", {{"marker", "Answer:"}},
                {{"cat", "dog\nAnswer: a cat", 1}, {"cat", "cat", 0}});
}

TEST(MatchReward, SharesWordsAsF1) {
  // Common 2, gold 3, answer 4: precision 2/4, recall 2/3, F1 = 2 * 2 / 7.
  expect_scores("match", {{"metric", "f1"}},
                {{"red green blue", "red green red yellow", 4.0 / 7},
                 {"red green blue", "yellow", 0},
                 {"red green blue", "blue green red", 1},
                 {R"(["x y", "red"])", "red", 1}});
}

// What the rules of hotpot_evaluate_v1.py give.
TEST(MatchReward, SharesWordsAsHotpotQaHasIt) {
  expect_scores("match", {{"metric", "hotpot_f1"}},
                {{"yes", "Yes.", 1},
                 {"yes", "yes it is", 0},
                 {"no way", "no", 0},
                 {"noanswer", "no answer", 0},
                 {R"(["no", "no way"])", "no", 1},
                 {"red green blue", "red green red yellow", 4.0 / 7},
                 {"York, England", "in York England, the old", 2.0 / 3}});
  expect_scores("match", {{"metric", "f1"}}, {{"yes", "yes it is", 0.5}});
}

TEST(QuantityReward, ComparesAcrossUnitsOfOneDimension) {
  expect_scores("quantity", {},
                {{"1.5 km", "Answer: 1500 m", 1},
                 {"1.5 km", "Answer: 1500", 0},
                 {"1.5 km", "Answer: 1500 s", 0},
                 {"1.5 km", "Answer: 1501 m", 0},
                 {"10 m/s", "Answer: 36 km/h", 1},
                 {"10 m/s", "Answer: 36 km per hour.", 1},
                 {"9.81 m/s^2", "Answer: $9.81 \\text{ m}/\\text{s}^{2}$", 1},
                 {"9.81 m/s\xc2\xb2", "Answer: 9.81 m s^-2", 1},
                 {"5 N", "Answer: 5 kg m/s^2", 1},
                 {"5 N m", "Answer: 5 J", 1},
                 {"3 kW", "Answer: 3000 joules/second", 1},
                 {"3.0 x 10^8 m/s", "Answer: 3\\times 10^{8} m/s", 1},
                 {"25 \xc2\xb0"
                  "C",
                  "Answer: 298.15 K", 1},
                 {"$12", "Answer: 12 dollars", 1},
                 {"$12", "Answer: $12.50", 0},
                 {"50%", "Answer: 0.5", 0},
                 {"7", "Answer: 7", 1},
                 {"7", "Answer: 7 m", 0},
                 {"7 m", "Answer: 7 or 8 m", 0},
                 {"7 m", "", 0}});
  expect_scores("quantity", {{"unit", "optional"}, {"relative", "0.01"}},
                {{"1.5 km", "Answer: 1.51", 1},
                 {"1.5 km", "Answer: 1.52", 0},
                 {"1.5 km", "Answer: 1510 m", 1}});
}

TEST(QuantityReward, NamesAGroundTruthThatIsNoQuantity) {
  const RewardPart part = judge("quantity", {}, "7 flurbs", "7 m");
  EXPECT_EQ(part.status, RewardStatus::kInvalidGold);
  EXPECT_EQ(part.detail,
            "the ground truth is '7 flurbs'; expected a number and a unit, such as 9.81 m/s^2");
}

TEST(RegexReward, MatchesThePatternOfTheRow) {
  expect_scores("regex", {},
                {{"a+b", "aaab", 1}, {"a+b", "xaaab", 0}, {"a+b", "<think>no</think> ab", 1}});
  expect_scores("regex", {{"match", "partial"}}, {{"a+b", "xaaaby", 1}});
  EXPECT_EQ(judge("regex", {}, "(", "a").detail,
            "the ground truth '(' is no regular expression of RE2: missing ): (");
  EXPECT_EQ(judge("regex", {}, "", "a").status, RewardStatus::kInvalidGold);
}

TEST(JsonSchemaReward, ChecksTheKeywordsOfTheDraft) {
  struct Case {
    std::string schema, right, wrong;
  };
  const std::vector<Case> cases = {
      {R"({"type": "integer"})", "3.0", "3.5"},
      {R"({"type": ["null", "string"]})", "null", "1"},
      {R"({"type": "object", "required": ["a"]})", R"({"a": 1})", R"({"b": 1})"},
      {R"({"properties": {"a": {"type": "string"}}})", R"({"a": "x"})", R"({"a": 1})"},
      {R"({"properties": {"a": true}, "additionalProperties": false})", R"({"a": 1})",
       R"({"b": 1})"},
      {R"({"patternProperties": {"^n_": {"type": "number"}}})", R"({"n_a": 1})", R"({"n_a": "1"})"},
      {R"({"propertyNames": {"maxLength": 2}})", R"({"ab": 1})", R"({"abc": 1})"},
      {R"({"minProperties": 1, "maxProperties": 2})", R"({"a": 1})", "{}"},
      {R"({"dependentRequired": {"a": ["b"]}})", R"({"a": 1, "b": 1})", R"({"a": 1})"},
      {R"({"dependentSchemas": {"a": {"required": ["b"]}}})", R"({"b": 1})", R"({"a": 1})"},
      {R"({"items": {"type": "number"}, "minItems": 1, "maxItems": 2})", "[1, 2]", "[1, 2, 3]"},
      {R"({"prefixItems": [{"type": "string"}], "items": {"type": "number"}})", R"(["a", 1])",
       R"(["a", "b"])"},
      {R"({"uniqueItems": true})", "[1, 2]", "[1, 2, 1.0]"},
      {R"({"contains": {"const": 7}, "maxContains": 1})", "[1, 7]", "[7, 7]"},
      {R"({"enum": [1, "a"]})", R"("a")", R"("b")"},
      {R"({"const": {"a": [1]}})", R"({"a": [1]})", R"({"a": [2]})"},
      {R"({"minimum": 1, "exclusiveMaximum": 2})", "1", "2"},
      {R"({"exclusiveMinimum": 1, "maximum": 2})", "2", "1"},
      {R"({"multipleOf": 0.1})", "0.3", "0.35"},
      {R"({"minLength": 2, "maxLength": 2})", "\"\xc3\xa9\xc3\xa9\"", "\"\xc3\xa9\""},
      {R"({"pattern": "^[a-z]+$"})", R"("abc")", R"("aBc")"},
      {R"({"allOf": [{"minimum": 1}, {"maximum": 3}]})", "2", "4"},
      {R"({"anyOf": [{"maximum": 1}, {"minimum": 3}]})", "4", "2"},
      {R"({"oneOf": [{"maximum": 3}, {"minimum": 2}]})", "1", "2"},
      {R"({"not": {"type": "string"}})", "1", R"("a")"},
      {R"({"if": {"required": ["a"]}, "then": {"required": ["b"]}, "else": {"required": ["c"]}})",
       R"({"c": 1})", R"({"a": 1})"},
      {R"({"$defs": {"p": {"type": "number"}}, "items": {"$ref": "#/$defs/p"}})", "[1]",
       R"(["1"])"},
      {R"({"properties": {"next": {"$ref": "#"}}, "additionalProperties": false})",
       R"({"next": {"next": {}}})", R"({"next": {"nxt": {}}})"}};
  for (const Case& c : cases) {
    EXPECT_EQ(judge("json_schema", {}, c.schema, c.right).detail, "") << c.schema;
    EXPECT_EQ(judge("json_schema", {}, c.schema, c.wrong).score, 0) << c.schema;
    EXPECT_EQ(judge("json_schema", {}, c.schema, c.wrong).status, RewardStatus::kOk) << c.schema;
  }
}

TEST(JsonSchemaReward, ReadsCodeBlocksAndSaysWhatIsWrong) {
  const RewardOptions options = {{"schema", R"({"type": "object", "required": ["a"]})"}};
  EXPECT_EQ(judge("json_schema", options, "", "```json\n{\"a\": 1}\n```").score, 1);
  EXPECT_EQ(judge("json_schema", options, "", "{\"a\": 1} trailing").detail,
            "the answer is no JSON");
  EXPECT_EQ(judge("json_schema", options, "", "[1]").detail, "/: is array; expected \"object\"");
  EXPECT_EQ(judge("json_schema", options, "", "{}").detail, "/: has no 'a'");
  EXPECT_EQ(judge("json_schema", options, "", std::string(300, '[')).detail,
            "the answer is nested deeper than 200");
  EXPECT_EQ(refusal("json_schema", {{"schema", R"({"items": {"minimum": "1"}})"}}),
            "reward json_schema: schema: /items/minimum: is \"1\"; expected a number");
  EXPECT_EQ(refusal("json_schema", {{"schema", R"({"$ref": "#/nowhere"})"}}),
            "reward json_schema: schema: /$ref: \"#/nowhere\" leads nowhere; expected a place in "
            "this schema, #/...");
  EXPECT_EQ(
      refusal("json_schema", {{"schema", R"({"unevaluatedItems": false})"}}),
      "reward json_schema: schema: /unevaluatedItems: this keyword cannot be checked; leave it "
      "out");
  EXPECT_EQ(judge("json_schema", {}, R"({"$ref": "#"})", "1").detail,
            "/: the schema refers to itself without end");
}

struct Instruction {
  std::string kind, parameters;
  std::vector<std::string> followed, not_followed;
};

const std::vector<Instruction> kInstructions = {
    {"keywords:existence", R"({"keywords": ["Cat", "dog"]})", {"A dog and a CAT."}, {"A dog."}},
    {"keywords:frequency",
     R"({"keyword": "cat", "frequency": 2, "relation": "at least"})",
     {"cat, Cat", "concatenate cat"},
     {"cat"}},
    {"keywords:frequency",
     R"({"keyword": "cat", "frequency": 2, "relation": "less than"})",
     {"cat", "dog"},
     {"cat cat"}},
    {"keywords:forbidden_words",
     R"({"forbidden_words": ["cat"]})",
     {"concatenate", "dog"},
     {"A Cat.", "cat"}},
    {"keywords:letter_frequency",
     R"({"letter": "q", "let_frequency": 2, "let_relation": "at least"})",
     {"Quiet queen"},
     {"queen"}},
    {"language:response_language",
     R"({"language": "de"})",
     {"Das ist nicht der Weg, den wir mit dem Hund gehen."},
     {"This is not the way that we go with the dog."}},
    {"length_constraints:number_sentences",
     R"({"num_sentences": 3, "relation": "at least"})",
     {"One. Two! Three?", "Dr. Smith came. He left at 3.5 p.m. today. Why?"},
     {"One. Two.", "Mr. and Mrs. Smith met J. Doe. They left."}},
    {"length_constraints:number_paragraphs",
     R"({"num_paragraphs": 2})",
     {"one\n***\ntwo", "one *** two ***"},
     {"one", "one *** *** two", "one***two***three"}},
    {"length_constraints:number_words",
     R"({"num_words": 3, "relation": "less than"})",
     {"one two."},
     {"one, two-three"}},
    {"length_constraints:nth_paragraph_first_word",
     R"({"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Weekend"})",
     {"One here.\n\n\"weekend, then\""},
     {"Weekend.\n\nOne.", "weekend", "a\n\nweekends"}},
    {"detectable_content:number_placeholders",
     R"({"num_placeholders": 2})",
     {"[name] at [address]"},
     {"[name]", "[one\ntwo] [three]"}},
    {"detectable_content:postscript",
     R"({"postscript_marker": "P.P.S"})",
     {"Bye.\nP. P. S. More"},
     {"Bye.\nP.S. More"}},
    {"detectable_format:number_bullet_lists",
     R"({"num_bullets": 2})",
     {"* one\n* two", "- one\n  - two", "* a\n**bold**\n- b"},
     {"* one", "* one\n* two\n* three"}},
    {"detectable_format:constrained_response", "{}", {"Hm. My answer is maybe."}, {"Maybe."}},
    {"detectable_format:number_highlighted_sections",
     R"({"num_highlights": 2})",
     {"*one* and *two*", "**one** *two*"},
     {"*one*", "** ** *one*"}},
    {"detectable_format:multiple_sections",
     R"({"section_spliter": "SECTION", "num_sections": 2})",
     {"SECTION 1\na\nSECTION 2\nb"},
     {"SECTION 1", "SECTION one SECTION two"}},
    {"detectable_format:json_format",
     "{}",
     {"{\"a\": 1}", "```json\n[1]\n```"},
     {"a: 1", "{\"a\": }"}},
    {"detectable_format:title", "{}", {"<<A poem>>\nText"}, {"<A poem>", "<<>>", "<< >>"}},
    {"combination:two_responses",
     "{}",
     {"one ****** two"},
     {"one", "one ****** one", "a ****** b ****** c"}},
    {"combination:repeat_prompt",
     R"({"prompt_to_repeat": "Say why."})",
     {"say WHY. Because."},
     {"Because. Say why."}},
    {"startend:end_checker",
     R"({"end_phrase": "That is all."})",
     {"Well. That is ALL.\n", "\"Well. That is all.\""},
     {"That is all. Bye."}},
    {"change_case:capital_word_frequency",
     R"({"capital_frequency": 2, "capital_relation": "less than"})",
     {"One BIG word", "none"},
     {"TWO BIG words"}},
    {"change_case:english_capital",
     "{}",
     {"THE CAT IS ON THE MAT."},
     {"The CAT.", "123", "DER HUND IST NICHT DAS."}},
    {"change_case:english_lowercase",
     "{}",
     {"the cat is on the mat."},
     {"The cat.", "der hund ist nicht das."}},
    {"punctuation:no_comma", "{}", {"no comma here"}, {"a, b"}},
    {"startend:quotation", "{}", {"\"quoted\"\n"}, {"\"half", "\""}}};

TEST(Ifeval, JudgesEveryKind) {
  std::set<std::string> seen;
  for (const Instruction& one : kInstructions) {
    seen.insert(one.kind);
    const auto parameters = nlohmann::json::parse(one.parameters);
    ASSERT_TRUE(check_instruction(one.kind, parameters).ok()) << one.kind;
    for (const std::string& text : one.followed) {
      EXPECT_TRUE(follows_instruction(one.kind, parameters, text)) << one.kind << ": " << text;
    }
    for (const std::string& text : one.not_followed) {
      EXPECT_FALSE(follows_instruction(one.kind, parameters, text)) << one.kind << ": " << text;
    }
    EXPECT_FALSE(follows_instruction(one.kind, parameters, " \n")) << one.kind;
  }
  EXPECT_EQ(std::vector<std::string>(seen.begin(), seen.end()), ifeval_kinds());
  EXPECT_EQ(seen.size(), 25u);
}

TEST(Ifeval, ReadsRowsOfTheDataSet) {
  const std::string gold =
      R"({"instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
          "kwargs": [{"num_words": null}, {"num_words": 3, "relation": "at least", "letter": null}]})";
  expect_scores("ifeval", {}, {{gold, "one two three", 1}, {gold, "one two", 0}});
  expect_scores("ifeval", {{"score", "each"}}, {{gold, "one two", 0.5}, {gold, "a, b", 0}});
  // Loose: the first line may be an introduction.
  expect_scores("ifeval", {{"reading", "loose"}}, {{gold, "Sure, here:\none two three", 1}});
  expect_scores("ifeval", {}, {{gold, "Sure, here:\none two three", 0}});
  EXPECT_EQ(judge("ifeval", {}, gold, "a").detail, "not followed: length_constraints:number_words");
}

TEST(Ifeval, NamesWhatIsWrongWithARow) {
  const auto detail = [](const std::string& gold) { return judge("ifeval", {}, gold, "x").detail; };
  EXPECT_EQ(
      detail("5"),
      "no instruction_id_list in the ground truth or in extra_info; expected a list of names");
  EXPECT_TRUE(detail(R"({"instruction_id_list": ["punctuation:no_coma"]})")
                  .starts_with("'punctuation:no_coma' is no instruction of IFEval; did you mean "
                               "'punctuation:no_comma'?; known: "));
  EXPECT_EQ(detail(R"({"instruction_id_list": ["startend:end_checker"], "kwargs": [{}]})"),
            "startend:end_checker: end_phrase is missing; expected a text");
  EXPECT_EQ(detail(R"({"instruction_id_list": ["startend:quotation"], "kwargs": [{}, {}]})"),
            "instruction_id_list has 1 entries and kwargs 2; expected as many");
}

TEST(Language, TellsLanguagesApart) {
  const std::vector<std::pair<std::string, std::string>> texts = {
      {"en", "The quick brown fox jumps over the lazy dog and it was not for you."},
      {"es", "El perro no est\xc3\xa1 en la casa porque los ni\xc3\xb1os juegan con \xc3\xa9l."},
      {"pt",
       "O cachorro n\xc3\xa3o est\xc3\xa1 em casa porque as crian\xc3\xa7"
       "as brincam com ele."},
      {"fr", "Le chien n'est pas dans la maison et les enfants jouent avec lui."},
      {"de", "Der Hund ist nicht im Haus, und die Kinder spielen mit ihm."},
      {"it", "Il cane non \xc3\xa8 nella casa e i bambini giocano con lui."},
      {"fi", "Koira ei ole talossa, ja lapset leikkiv\xc3\xa4t, mutta se on hyv\xc3\xa4."},
      {"sw", "Mbwa na watoto ni katika nyumba ya baba kwa sababu hii ni siku kuu."},
      {"ru",
       "\xd0\xad\xd1\x82\xd0\xbe \xd0\xbd\xd0\xb5 \xd0\xbc\xd1\x8b, \xd0\xb0 \xd0\xb2\xd1\x8b."},
      {"uk",
       "\xd0\xa6\xd0\xb5 \xd0\xbd\xd0\xb5 \xd0\xbc\xd0\xb8, \xd0\xb0\xd0\xbb\xd0\xb5 \xd1\x96 "
       "\xd0\xb2\xd0\xb8."},
      {"ja",
       "\xe3\x81\x93\xe3\x82\x8c\xe3\x81\xaf\xe6\x9c\xac\xe3\x81\xa7\xe3\x81\x99\xe3\x80\x82"},
      {"zh", "\xe8\xbf\x99\xe6\x98\xaf\xe4\xb8\x80\xe6\x9c\xac\xe4\xb9\xa6\xe3\x80\x82"},
      {"ko", "\xec\x95\x88\xeb\x85\x95\xed\x95\x98\xec\x84\xb8\xec\x9a\x94"},
      {"hi", "\xe0\xa4\xaf\xe0\xa4\xb9 \xe0\xa4\x98\xe0\xa4\xb0 \xe0\xa4\xb9\xe0\xa5\x88"},
      {"", "12345 67"}};
  for (const auto& [language, text] : texts) EXPECT_EQ(language_of(text), language) << text;
}

TEST(TagsReward, WantsEachTagOnceInOrder) {
  expect_scores("tags", {},
                {{"", "<think>a</think>\n<answer>b</answer>", 1},
                 {"", "<think>a</think><answer>b</answer> c", 0},
                 {"", "<answer>b</answer><think>a</think>", 0},
                 {"", "<think><answer>b</answer></think>", 0},
                 {"", "<think>a</think><think>a</think><answer>b</answer>", 0},
                 {"", "<think>a<answer>b</answer>", 0},
                 {"", "", 0}});
  expect_scores("tags", {{"tags", "think"}, {"outside", "after"}},
                {{"", "<think>a</think> b", 1}, {"", "x<think>a</think> b", 0}});
  expect_scores("tags", {{"score", "each"}}, {{"", "hm <think>a</think> b", 0.5}});
  EXPECT_EQ(judge("tags", {}, "", "<think>a").detail, "no <think>...</think>");
  EXPECT_EQ(refusal("tags", {{"tags", "a,,b"}}),
            "reward tags: tags: is 'a,,b'; expected names between commas, e.g. think,answer");
}

TEST(LengthReward, FollowsItsShapes) {
  const auto score = [](RewardOptions options, size_t length) {
    options["unit"] = "characters";
    return judge("length", options, "", std::string(length, 'x')).score;
  };
  // DAPO: max 20, buffer 8: 0 up to 12, -1/2 at 16, -1 from 20 on.
  const RewardOptions overlong = {{"max", "20"}, {"buffer", "8"}};
  EXPECT_EQ(score(overlong, 12), 0);
  EXPECT_EQ(score(overlong, 16), -0.5);
  EXPECT_EQ(score(overlong, 40), -1);
  // Half a cosine from 1 to 0.5: in the middle 0.75, and flat beyond the end.
  const RewardOptions cosine = {{"shape", "cosine"}, {"max", "10"}};
  EXPECT_NEAR(score(cosine, 5), 0.75, 1e-12);
  EXPECT_NEAR(score(cosine, 10), 0.5, 1e-12);
  EXPECT_NEAR(score(cosine, 15), 0.5, 1e-12);
  EXPECT_EQ(judge("length", {{"max", "5"}}, "", "x").detail,
            "the response has no tokens to count; use unit: characters");
  EXPECT_EQ(refusal("length", {}),
            "reward length: max: is missing; expected the length to stay below");
  EXPECT_EQ(refusal("length", {{"max", "5"}, {"buffer", "6"}}),
            "reward length: buffer: is 6; expected at most max, 5");
}

TEST(LengthReward, ComparesSiblings) {
  RewardRegistry registry("reward");
  register_builtin_rewards(registry);
  const auto reward = registry.create("length", {{"shape", "group"}, {"unit", "characters"}});
  ASSERT_TRUE((*reward)->compares_siblings());
  data::Prompt prompt;
  std::vector<data::Trajectory> trajectories(3);
  trajectories[0].text = "12";
  trajectories[1].text = "1234";
  trajectories[2].text = "123456";
  const Group group{&prompt, trajectories};
  const auto parts = (*reward)->score_batch({&group, 1});
  EXPECT_EQ(parts[0].score, 0.5);
  EXPECT_EQ(parts[1].score, 0);
  EXPECT_EQ(parts[2].score, -0.5);
}

TEST(RepetitionReward, CountsNgramsThatCameBefore) {
  // a b c a b c a: abc bca cab abc bca, 3 of 5 different.
  expect_scores("repetition", {},
                {{"", "a b c a b c a", -0.4}, {"", "a b", 0}, {"", "a b c d", 0}});
  expect_scores("repetition", {{"n", "1"}}, {{"", "a a a a", -0.75}});
}

}  // namespace
}  // namespace gradus::rewards
