// SPDX-License-Identifier: Apache-2.0
#include "data/internal/tokenizer_json.h"

#include <cstdint>
#include <limits>

namespace gradus::data::internal {
namespace {

using Json = nlohmann::json;

// Receives the parser's events: entries of model.vocab and model.merges go to their lists, all else
// into a tree.
class Reader : public nlohmann::json_sax<Json> {
 public:
  Reader(TokenizerJson& result, std::string where) : result_(result), where_(std::move(where)) {}
  Status status() const { return status_; }

  bool null() override { return add(nullptr); }
  bool boolean(bool value) override { return add(value); }
  bool number_integer(number_integer_t value) override { return add(value); }
  bool number_unsigned(number_unsigned_t value) override {
    if (list_ != List::kVocab) return add(value);
    if (value > std::numeric_limits<int32_t>::max() / 4) {
      return fail(fmt::format("model.vocab: id {} of token '{}' is too large; expected at most {}",
                              value, key_, std::numeric_limits<int32_t>::max() / 4));
    }
    result_.vocab.emplace_back(std::move(key_), static_cast<int32_t>(value));
    return true;
  }
  bool number_float(number_float_t value, const string_t&) override { return add(value); }
  bool string(string_t& value) override {
    if (list_ == List::kMergePair) {
      pair_.push_back(std::move(value));
      return true;
    }
    if (list_ != List::kMerges) return add(std::move(value));
    if (value.starts_with("#version")) return true;
    const size_t space = value.find(' ');
    if (space == string_t::npos || value.find(' ', space + 1) != string_t::npos) {
      return fail(
          fmt::format("model.merges: entry {} ('{}') is not two parts with one space between them",
                      result_.merges.size(), value));
    }
    result_.merges.emplace_back(value.substr(0, space), value.substr(space + 1));
    return true;
  }
  bool binary(binary_t&) override { return fail("binary data in JSON"); }

  bool key(string_t& value) override {
    key_ = std::move(value);
    return true;
  }
  bool start_object(std::size_t) override {
    if (list_ == List::kNone && is_in_model() && key_ == "vocab") {
      list_ = List::kVocab;
      result_.has_vocab = true;
      return true;
    }
    return open(Json::object());
  }
  bool end_object() override {
    if (list_ == List::kVocab) {
      list_ = List::kNone;
      return true;
    }
    return close();
  }
  bool start_array(std::size_t) override {
    if (list_ == List::kMerges) {
      list_ = List::kMergePair;
      pair_.clear();
      return true;
    }
    if (list_ == List::kNone && is_in_model() && key_ == "merges") {
      list_ = List::kMerges;
      return true;
    }
    return open(Json::array());
  }
  bool end_array() override {
    if (list_ == List::kMergePair) {
      list_ = List::kMerges;
      if (pair_.size() != 2) {
        return fail(fmt::format("model.merges: entry {} has {} parts; expected 2",
                                result_.merges.size(), pair_.size()));
      }
      result_.merges.emplace_back(std::move(pair_[0]), std::move(pair_[1]));
      return true;
    }
    if (list_ == List::kMerges) {
      list_ = List::kNone;
      return true;
    }
    return close();
  }
  bool parse_error(std::size_t, const std::string&,
                   const nlohmann::detail::exception& error) override {
    return fail(fmt::format("not valid JSON: {}", error.what()));
  }

 private:
  enum class List { kNone, kVocab, kMerges, kMergePair };

  bool fail(const std::string& what) {
    status_ = invalid_argument("{}: {}", where_, what);
    return false;
  }
  bool is_in_model() const { return stack_.size() == 2 && is_model_; }

  Json* place(Json value) {
    if (stack_.empty()) {
      result_.root = std::move(value);
      return &result_.root;
    }
    Json& parent = *stack_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(value));
      return &parent.back();
    }
    return &(parent[key_] = std::move(value));
  }
  bool add(Json value) {
    if (list_ == List::kVocab)
      return fail(fmt::format("model.vocab: the id of token '{}' is not a number >= 0", key_));
    if (list_ != List::kNone) {
      return fail(fmt::format("model.merges: entry {} is neither a text nor a pair of texts",
                              result_.merges.size()));
    }
    place(std::move(value));
    return true;
  }
  bool open(Json value) {
    if (list_ != List::kNone) return add(std::move(value));
    if (stack_.size() == 1) is_model_ = key_ == "model";
    if (stack_.size() > kMaxDepth) return fail("nested too deeply");
    stack_.push_back(place(std::move(value)));
    return true;
  }
  bool close() {
    stack_.pop_back();
    return true;
  }

  static constexpr size_t kMaxDepth = 64;
  TokenizerJson& result_;
  std::string where_;
  Status status_;
  std::vector<Json*>
      stack_;  // open objects and arrays; a parent does not grow while a child is open
  std::string key_;
  std::vector<std::string> pair_;
  List list_ = List::kNone;
  bool is_model_ = false;
};

}  // namespace

Result<TokenizerJson> read_tokenizer_json(std::string_view text, const std::string& where) {
  TokenizerJson result;
  Reader reader(result, where);
  if (!Json::sax_parse(text.begin(), text.end(), &reader)) return reader.status();
  if (!result.root.is_object()) return invalid_argument("{}: not a JSON object", where);
  return result;
}

}  // namespace gradus::data::internal
