// SPDX-License-Identifier: Apache-2.0
#include "common/internal/config_paths.h"

#include <fmt/format.h>

namespace gradus::internal {
namespace {

// Walks over all fields and knows the full name of each; changes nothing.
class PathVisitor : public FieldVisitor {
 protected:
  virtual void enter(const Field& field, const std::string& path) = 0;
  virtual void check_size(const Field& field, const std::string& path, size_t size) = 0;
  virtual bool wants_prototypes() const = 0;

 private:
  std::string take(const Field& field) {
    if (!element_.empty()) return std::exchange(element_, {});
    std::string path = child_path(section_, field.name);
    enter(field, path);
    return path;
  }

  void on_bool(const Field& field, bool&) override { take(field); }
  void on_integer(const Field& field, int64_t&) override { take(field); }
  void on_number(const Field& field, double&) override { take(field); }
  void on_text(const Field& field, std::string& value) override {
    const std::string path = take(field);
    check_size(field, path, value.size());
  }
  void on_choice(const Field& field, int64_t&) override { take(field); }
  void on_section(const Field& field, const std::function<void()>& visit_fields) override {
    const std::string outer = std::exchange(section_, take(field));
    visit_fields();
    section_ = outer;
  }
  void on_optional(const Field& field, Optional& optional) override {
    element_ = take(field);
    if (wants_prototypes()) {
      optional.visit_prototype(*this, field);
    } else if (optional.has_value()) {
      optional.visit_content(*this, field);
    }
    element_.clear();
  }
  void on_list(const Field& field, List& list) override {
    const std::string path = take(field);
    check_size(field, path, list.size());
    Field element = field;
    element.constraint.must_be_given = false;
    if (wants_prototypes()) {
      element_ = path + "[]";
      list.visit_prototype(*this, element);
    } else {
      for (size_t i = 0; i < list.size(); ++i) {
        element_ = fmt::format("{}[{}]", path, i);
        list.visit_element(*this, i, element);
      }
    }
    element_.clear();
  }
  void on_map(const Field& field, Map& map) override {
    const std::string path = take(field);
    check_size(field, path, map.keys().size());
    Field element = field;
    element.constraint.must_be_given = false;
    if (wants_prototypes()) {
      element_ = path + "[]";
      map.visit_prototype(*this, element);
    } else {
      for (const std::string& key : map.keys()) {
        element_ = child_path(path, key);
        map.visit_entry(*this, key, element);
      }
    }
    element_.clear();
  }

  std::string section_;
  std::string element_;  // full name of the element that is visited next
};

class PathCollector final : public PathVisitor {
 public:
  std::vector<std::string> paths;

 private:
  void enter(const Field&, const std::string& path) override { paths.push_back(path); }
  void check_size(const Field&, const std::string&, size_t) override {}
  bool wants_prototypes() const override { return true; }
};

class MissingFinder final : public PathVisitor {
 public:
  MissingFinder(const std::string& file, const ConfigOrigins& origins,
                std::vector<ConfigProblem>& problems)
      : file_(file), origins_(origins), problems_(problems) {}

 private:
  void enter(const Field&, const std::string&) override {}
  bool wants_prototypes() const override { return false; }

  void check_size(const Field& field, const std::string& path, size_t size) override {
    if (field.constraint.problem_with_size(size).empty()) return;
    const size_t dot = path.rfind('.');
    const std::string section = dot == std::string::npos ? "" : path.substr(0, dot);
    const auto origin = origins_.find(section);
    std::string place = origin == origins_.end() ? file_ : origin->second;
    if (!place.empty()) place += ": ";
    problems_.push_back(
        {0, 0, 0,
         fmt::format("{}missing '{}'{}; it must not be empty", place, field.name,
                     section.empty() ? " at the top level" : " in '" + section + "'"),
         path});
  }

  const std::string& file_;
  const ConfigOrigins& origins_;
  std::vector<ConfigProblem>& problems_;
};

}  // namespace

std::string child_path(const std::string& section, const std::string& name) {
  return section.empty() ? name : section + "." + name;
}

void report_missing(const VisitFields& visit, const std::string& path, const ConfigOrigins& origins,
                    std::vector<ConfigProblem>& problems) {
  MissingFinder finder(path, origins, problems);
  visit(finder);
}

}  // namespace gradus::internal

namespace gradus {

std::vector<std::string> config_paths(const VisitFields& visit) {
  internal::PathCollector collector;
  visit(collector);
  return collector.paths;
}

}  // namespace gradus
