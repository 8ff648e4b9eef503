// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "common/config/constraint.h"

namespace gradus {

// A configuration struct lists its fields once, in `void visit(FieldVisitor& v)`, one
// `v.field("name", member, "help", constraint)` for each. Reading YAML, `--set`, defaults, the
// resolved dump and docs/config.md all come from that list.
//
// Members may be bool, int64_t, double, std::string; an enum, whose names are given by `one_of` in
// the order of its values 0, 1, ...; a struct with a visit() of its own (a section); and
// std::vector, std::optional and std::map<std::string, ...> of those. A vector hands a range or
// one_of to its elements, while non_empty is about the vector itself. A struct may list the fields
// of a member as its own by calling `member.visit(v)`.
class FieldVisitor {
 public:
  struct Field {
    std::string name;
    std::string help;
    Constraint constraint;
  };

  virtual ~FieldVisitor() = default;

  template <class T>
  void field(const std::string& name, T& value, const std::string& help,
             Constraint constraint = {}) {
    visit_value(Field{name, help, std::move(constraint)}, value);
  }

 protected:
  // Type-erased access to a member that holds others. Elements are visited through the same
  // visitor, as fields named as the caller likes. `visit_prototype` shows a default-constructed
  // element.
  class Container {
   public:
    virtual ~Container() = default;
    virtual void visit_prototype(FieldVisitor& v, const Field& field) = 0;
  };
  class List : public Container {
   public:
    virtual size_t size() const = 0;
    virtual void resize(size_t size) = 0;
    virtual void visit_element(FieldVisitor& v, size_t index, const Field& field) = 0;
  };
  class Optional : public Container {
   public:
    virtual bool has_value() const = 0;
    virtual void set_presence(bool is_present) = 0;
    virtual void visit_content(FieldVisitor& v, const Field& field) = 0;  // has_value()
  };
  class Map : public Container {
   public:
    virtual std::vector<std::string> keys() const = 0;
    virtual void clear() = 0;
    // Adds the entry if it is missing.
    virtual void visit_entry(FieldVisitor& v, const std::string& key, const Field& field) = 0;
  };

  virtual void on_bool(const Field& field, bool& value) = 0;
  virtual void on_integer(const Field& field, int64_t& value) = 0;
  virtual void on_number(const Field& field, double& value) = 0;
  virtual void on_text(const Field& field, std::string& value) = 0;
  virtual void on_choice(const Field& field, int64_t& index) = 0;  // into field.constraint.choices
  virtual void on_section(const Field& field, const std::function<void()>& visit_fields) = 0;
  virtual void on_list(const Field& field, List& list) = 0;
  virtual void on_optional(const Field& field, Optional& optional) = 0;
  virtual void on_map(const Field& field, Map& map) = 0;

 private:
  template <class T>
  struct VectorList final : List {
    static_assert(!std::is_same_v<T, bool>, "std::vector<bool> has no elements to visit");
    std::vector<T>& values;
    explicit VectorList(std::vector<T>& v) : values(v) {}
    size_t size() const override { return values.size(); }
    void resize(size_t size) override { values.resize(size); }
    void visit_element(FieldVisitor& v, size_t index, const Field& field) override {
      v.visit_value(field, values.at(index));
    }
    void visit_prototype(FieldVisitor& v, const Field& field) override {
      T prototype{};
      v.visit_value(field, prototype);
    }
  };
  template <class T>
  struct OptionalContent final : Optional {
    std::optional<T>& content;
    explicit OptionalContent(std::optional<T>& c) : content(c) {}
    bool has_value() const override { return content.has_value(); }
    void set_presence(bool is_present) override {
      if (!is_present) {
        content.reset();
      } else if (!content) {
        content.emplace();
      }
    }
    void visit_content(FieldVisitor& v, const Field& field) override {
      v.visit_value(field, content.value());
    }
    void visit_prototype(FieldVisitor& v, const Field& field) override {
      T prototype{};
      v.visit_value(field, prototype);
    }
  };
  template <class T>
  struct MapEntries final : Map {
    std::map<std::string, T>& entries;
    explicit MapEntries(std::map<std::string, T>& e) : entries(e) {}
    std::vector<std::string> keys() const override {
      std::vector<std::string> keys;
      for (const auto& [key, value] : entries) keys.push_back(key);
      return keys;
    }
    void clear() override { entries.clear(); }
    void visit_entry(FieldVisitor& v, const std::string& key, const Field& field) override {
      v.visit_value(field, entries[key]);
    }
    void visit_prototype(FieldVisitor& v, const Field& field) override {
      T prototype{};
      v.visit_value(field, prototype);
    }
  };

  void visit_value(const Field& field, bool& value) { on_bool(field, value); }
  void visit_value(const Field& field, int64_t& value) { on_integer(field, value); }
  void visit_value(const Field& field, double& value) { on_number(field, value); }
  void visit_value(const Field& field, std::string& value) { on_text(field, value); }
  template <class T>
  void visit_value(const Field& field, std::vector<T>& values) {
    VectorList<T> list(values);
    on_list(field, list);
  }
  template <class T>
  void visit_value(const Field& field, std::optional<T>& content) {
    OptionalContent<T> optional(content);
    on_optional(field, optional);
  }
  template <class T>
  void visit_value(const Field& field, std::map<std::string, T>& entries) {
    MapEntries<T> map(entries);
    on_map(field, map);
  }
  template <class T>
  void visit_value(const Field& field, T& value) {
    if constexpr (std::is_enum_v<T>) {
      int64_t index = static_cast<int64_t>(value);
      on_choice(field, index);
      value = static_cast<T>(index);
    } else {
      on_section(field, [&] { value.visit(*this); });
    }
  }
};

}  // namespace gradus
