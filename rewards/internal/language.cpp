// SPDX-License-Identifier: Apache-2.0
#include "rewards/internal/language.h"

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "rewards/internal/text.h"

namespace gradus::rewards {
namespace {

struct Script {
  int32_t first, last;
  std::string_view name;
};

// Unicode blocks; "" marks those that more than one language of ours uses.
constexpr std::array<Script, 24> kScripts = {
    {{'A', 'Z', "latin"},        {'a', 'z', "latin"},          {0xC0, 0x24F, "latin"},
     {0x1E00, 0x1EFF, "latin"},  {0x400, 0x52F, "cyrillic"},   {0x590, 0x5FF, "he"},
     {0x600, 0x6FF, "arabic"},   {0x750, 0x77F, "arabic"},     {0xFB50, 0xFDFF, "arabic"},
     {0xFE70, 0xFEFF, "arabic"}, {0x900, 0x97F, "devanagari"}, {0x980, 0x9FF, "bn"},
     {0xA00, 0xA7F, "pa"},       {0xA80, 0xAFF, "gu"},         {0xB80, 0xBFF, "ta"},
     {0xC00, 0xC7F, "te"},       {0xC80, 0xCFF, "kn"},         {0xD00, 0xD7F, "ml"},
     {0xE00, 0xE7F, "th"},       {0x3040, 0x30FF, "ja"},       {0xAC00, 0xD7AF, "ko"},
     {0x1100, 0x11FF, "ko"},     {0x3400, 0x9FFF, "han"},      {0xF900, 0xFAFF, "han"}}};

struct Sign {
  std::string_view language;
  std::string_view words;    // frequent, between spaces
  std::string_view letters;  // that its neighbours lack
};

const std::vector<Sign> kLatin = {
    {"en",
     "the a i of and to in is that it was for on are with as be this you have not by from or "
     "they his her she he at we an your can will which their if about all there what",
     ""},
    {"es",
     "el la de que y en un una los las del se por con para es no su al lo como m\u00e1s "
     "pero sus le ha este si o porque esta son entre est\u00e1 cuando muy sin sobre",
     "\u00f1\u00bf\u00a1"},
    {"pt",
     "o a de que e do da em um para \u00e9 com n\u00e3o uma os no se na por mais as dos como mas "
     "foi ao ele das tem seu sua ou ser quando muito h\u00e1 nos j\u00e1 est\u00e1 voc\u00ea",
     "\u00e3\u00f5"},
    {"fr",
     "le la les de des et un une du en que est pour qui dans ce il elle pas sur plus par "
     "je ne se son avec au sont nous vous mais ou cette ont aux leur",
     "\u0153\u00e8\u00ea"},
    {"de",
     "der die und das ist in den von zu mit nicht ein eine auf dem sich des auch es an "
     "werden aus er hat dass sie nach wird bei einer um am sind noch wie",
     "\u00df"},
    {"it",
     "il di che e la un una in per non sono si con del della le da come ma i al ha anche "
     "pi\u00f9 lo gli nel alla dei questo delle \u00e8 essere",
     "\u00ec\u00f2"},
    {"pl",
     "i w na nie z si\u0119 do jest to \u017ce o jak ale po co tak za od by\u0107 przez dla "
     "s\u0105 oraz jego kt\u00f3ry kt\u00f3re",
     "\u0142\u0105\u0119\u017c\u015b\u0107\u017a"},
    {"vi",
     "v\u00e0 c\u1ee7a c\u00f3 l\u00e0 m\u1ed9t cho kh\u00f4ng c\u00e1c \u0111\u01b0\u1ee3c trong "
     "ng\u01b0\u1eddi "
     "nh\u1eefng v\u1edbi n\u00e0y \u0111\u1ec3 \u0111\u00e3 t\u00f4i b\u1ea1n",
     "\u0111\u01b0\u01a1\u1ea1\u1ea3\u1ea5\u1ea7\u1ebf\u1ec7\u1ed9\u1edd\u1ee3\u1eef"},
    {"sw",
     "na ya wa kwa ni katika la za kuwa hii yake cha kama wake hiyo huu ambayo au watu "
     "lakini sana pia si mimi hivyo wao kwamba",
     ""},
    {"fi",
     "ja on ei se ett\u00e4 oli h\u00e4n mutta ovat tai kun niin my\u00f6s ole joka sen mit\u00e4 "
     "t\u00e4m\u00e4 voi kuin sit\u00e4 min\u00e4 olen",
     ""}};

const std::vector<Sign> kCyrillic = {
    {"ru",
     "\u0438 \u0432 \u043d\u0435 \u043d\u0430 \u0447\u0442\u043e \u044f \u0441 \u044d\u0442\u043e "
     "\u043a\u0430\u043a \u043f\u043e \u043d\u043e \u043e\u043d \u043a "
     "\u0438\u0437 \u0432\u044b \u0442\u0430\u043a \u0435\u0433\u043e",
     "\u044b\u044d\u0451"},
    {"uk",
     "\u0456 \u0432 \u043d\u0435 \u043d\u0430 \u0449\u043e \u0437 \u0442\u0430 \u0434\u043e "
     "\u0446\u0435 \u044f\u043a \u0430\u043b\u0435 \u0432\u0456\u043d \u0454 "
     "\u0432\u0456\u0434 \u0439\u043e\u0433\u043e",
     "\u0456\u0457\u0454\u0491"},
    {"bg",
     "\u0438 \u0432 \u043d\u0430 \u0434\u0430 \u043d\u0435 \u0441\u0435 \u0435 \u0437\u0430 "
     "\u043e\u0442 \u0447\u0435 \u0441 \u0441\u0430 \u043f\u043e \u0442\u043e\u0432\u0430 "
     "\u043a\u043e\u0435\u0442\u043e \u0449\u0435",
     ""}};

const std::vector<Sign> kArabic = {
    {"ar",
     "\u0641\u064a \u0645\u0646 \u0639\u0644\u0649 \u0623\u0646 \u0625\u0644\u0649 "
     "\u0647\u0630\u0627 \u0647\u0630\u0647 \u0627\u0644\u062a\u064a "
     "\u0639\u0646 \u0645\u0639 \u0643\u0627\u0646 \u0648",
     "\u0629\u0649\u064a\u0643\u0625\u0623"},
    {"fa",
     "\u0648 \u062f\u0631 \u0628\u0647 \u0627\u0632 \u06a9\u0647 \u0627\u06cc\u0646 \u0631\u0627 "
     "\u0628\u0627 \u0627\u0633\u062a \u0628\u0631\u0627\u06cc \u0622\u0646 "
     "\u0645\u06cc",
     "\u067e\u0686\u0698\u06af"},
    {"ur",
     "\u06a9\u06d2 \u0645\u06cc\u06ba \u06a9\u06cc \u06c1\u06d2 \u06a9\u0627 \u0627\u0648\u0631 "
     "\u0633\u06d2 \u06a9\u0648 \u06c1\u06cc\u06ba \u0646\u06d2 \u067e\u0631 "
     "\u06cc\u06c1",
     "\u0679\u0688\u0691\u06ba\u06d2\u06c1\u06be"}};

const std::vector<Sign> kDevanagari = {
    {"hi",
     "\u0939\u0948 \u0915\u0947 \u092e\u0947\u0902 \u0915\u0940 \u0938\u0947 \u0915\u093e "
     "\u0914\u0930 \u0915\u094b \u0939\u0948\u0902 \u092a\u0930 \u0928\u0947 "
     "\u092f\u0939 \u0928\u0939\u0940\u0902",
     ""},
    {"mr",
     "\u0906\u0939\u0947 \u0906\u0923\u093f \u092f\u093e \u0928\u093e\u0939\u0940 \u0939\u0947 "
     "\u0939\u094b\u0924\u0947 \u0924\u0947 \u0906\u0939\u0947\u0924 "
     "\u0924\u0930 \u092e\u094d\u0939\u0923\u0942\u0928 \u0915\u0930\u0942\u0928",
     "\u0933"},
    {"ne",
     "\u091b \u0930 \u0915\u094b \u092e\u093e \u092f\u094b \u091b\u0928\u094d \u0932\u093e\u0908 "
     "\u0939\u094b \u092a\u0928\u093f \u0917\u0930\u094d\u0928 "
     "\u0925\u093f\u092f\u094b \u092d\u090f\u0915\u094b \u0932\u0947",
     ""}};

std::set<std::string_view> word_set(std::string_view words) {
  const auto list = fields_of(words);
  return {list.begin(), list.end()};
}

// The language with most signs: a frequent word counts one, and two if no other language has it.
std::string by_signs(const std::vector<Sign>& signs, const std::string& text) {
  std::vector<double> scores(signs.size(), 0);
  std::map<std::string_view, std::vector<size_t>> languages_of;
  for (size_t i = 0; i < signs.size(); ++i) {
    for (const std::string_view word : word_set(signs[i].words)) languages_of[word].push_back(i);
  }
  for (std::string_view word : words_of(text)) {
    const auto found = languages_of.find(word);
    if (found == languages_of.end()) continue;
    for (const size_t i : found->second) scores[i] += found->second.size() == 1 ? 2 : 1;
  }
  std::map<int32_t, std::vector<size_t>> letters;
  for (size_t i = 0; i < signs.size(); ++i) {
    for (size_t at = 0; at < signs[i].letters.size();) {
      const Character c = character_at(signs[i].letters, at);
      letters[c.code].push_back(i);
      at += c.size;
    }
  }
  for (size_t at = 0; at < text.size();) {
    const Character c = character_at(text, at);
    at += c.size;
    if (c.code < 0x80) continue;
    const auto found = letters.find(c.code);
    if (found == letters.end()) continue;
    for (const size_t i : found->second) scores[i] += 0.5;
  }
  const auto best = std::max_element(scores.begin(), scores.end());
  if (*best == 0 || std::count(scores.begin(), scores.end(), *best) > 1) return "";
  return std::string(signs[static_cast<size_t>(best - scores.begin())].language);
}

}  // namespace

std::string language_of(std::string_view text) {
  const std::string lower = folded(text.substr(0, kMaxTailBytes));
  std::map<std::string_view, int64_t> counts;
  for (size_t at = 0; at < lower.size();) {
    const Character c = character_at(lower, at);
    at += c.size;
    for (const Script& script : kScripts) {
      if (c.code >= script.first && c.code <= script.last) ++counts[script.name];
    }
  }
  // Chinese characters are Japanese beside kana.
  if (counts["ja"] * 10 > counts["han"]) counts["ja"] += std::exchange(counts["han"], 0);
  std::string_view script;
  int64_t most = 0;
  for (const auto& [name, count] : counts) {
    if (count > most) {
      most = count;
      script = name;
    }
  }
  if (script == "latin") return by_signs(kLatin, lower);
  if (script == "cyrillic") return by_signs(kCyrillic, lower);
  if (script == "arabic") return by_signs(kArabic, lower);
  if (script == "devanagari") return by_signs(kDevanagari, lower);
  if (script == "han") return "zh";
  return std::string(script);
}

}  // namespace gradus::rewards
