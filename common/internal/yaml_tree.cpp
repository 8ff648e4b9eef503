// SPDX-License-Identifier: Apache-2.0
#include "common/internal/yaml_tree.h"

#include <fmt/format.h>
#include <yaml-cpp/depthguard.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <sstream>

#include "common/strings.h"

namespace gradus::internal {
namespace {

constexpr size_t kMaxBytes = 1 << 20;

// Receives yaml-cpp's events. Its nodes are not used since they accept duplicate keys (the first
// wins), resolve aliases and say nothing of quotes.
class TreeBuilder : public YAML::EventHandler {
 public:
  TreeBuilder(const ConfigSource& source, std::vector<ConfigProblem>& problems)
      : source_(source), problems_(problems) {}

  std::optional<YamlNode>& root() { return root_; }

  void report(int line, int column, const std::string& what) {
    problems_.push_back(
        {source_.index, line, column, fmt::format("{}: {}", source_.place(line, column), what)});
  }

  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    refuse_anchor(mark, anchor);
    attach(node_at(mark, YamlNode::Kind::kNull));
  }

  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    report_at(mark, "aliases are not supported; write the value out, or share values by 'base:'");
    attach(node_at(mark, YamlNode::Kind::kNull));
  }

  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    refuse_anchor(mark, anchor);
    refuse_tag(mark, tag);
    YamlNode node = node_at(mark, YamlNode::Kind::kScalar);
    node.text = value;
    node.is_quoted = tag == "!";  // yaml-cpp's mark of quoted and block scalars
    attach(std::move(node));
  }

  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    refuse_anchor(mark, anchor);
    refuse_tag(mark, tag);
    open_.push_back({node_at(mark, YamlNode::Kind::kList), {}});
  }
  void OnSequenceEnd() override { close(); }

  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    refuse_anchor(mark, anchor);
    refuse_tag(mark, tag);
    open_.push_back({node_at(mark, YamlNode::Kind::kMap), {}});
  }
  void OnMapEnd() override { close(); }

 private:
  struct Open {
    YamlNode node;
    std::optional<YamlEntry> entry;  // of a map: the key that waits for its value
  };

  static YamlNode node_at(const YAML::Mark& mark, YamlNode::Kind kind) {
    YamlNode node;
    node.kind = kind;
    node.line = std::max(mark.line, 0) + 1;
    node.column = std::max(mark.column, 0) + 1;
    return node;
  }

  void report_at(const YAML::Mark& mark, const std::string& what) {
    report(mark.line + 1, mark.column + 1, what);
  }

  void refuse_anchor(const YAML::Mark& mark, YAML::anchor_t anchor) {
    if (anchor != 0) report_at(mark, "anchors are not supported; share values by 'base:'");
  }

  void refuse_tag(const YAML::Mark& mark, const std::string& tag) {
    if (!tag.empty() && tag != "?" && tag != "!") {
      report_at(mark, fmt::format("tags are not supported, got '{}'; remove it", tag));
    }
  }

  void close() {
    YamlNode node = std::move(open_.back().node);
    open_.pop_back();
    attach(std::move(node));
  }

  void attach(YamlNode node) {
    if (open_.empty()) {
      root_ = std::move(node);
      return;
    }
    Open& parent = open_.back();
    if (parent.node.kind == YamlNode::Kind::kList) {
      parent.node.elements.push_back(std::move(node));
    } else if (!parent.entry) {
      parent.entry = {node.text, node.line, node.column, {}};
      if (node.kind == YamlNode::Kind::kList || node.kind == YamlNode::Kind::kMap) {
        report(node.line, node.column, "a key must be a word, got a list or map");
      } else if (node.text.empty()) {
        report(node.line, node.column, "a key is missing before ':'");
      }
    } else {
      YamlEntry entry = std::move(*parent.entry);
      parent.entry.reset();
      entry.value = std::move(node);
      add(std::move(entry), parent.node);
    }
  }

  void add(YamlEntry entry, YamlNode& map) {
    if (entry.key == "<<") {
      report(entry.line, entry.column, "merge keys are not supported; share values by 'base:'");
      return;
    }
    if (entry.key.empty()) return;  // already reported
    if (const YamlEntry* first = map.find(entry.key)) {
      const std::string section = path_of_open();
      report(entry.line, entry.column,
             fmt::format("duplicate key '{}'{}; first set at line {}; remove one of them",
                         entry.key, section.empty() ? "" : " in '" + section + "'", first->line));
      return;
    }
    map.entries.push_back(std::move(entry));
  }

  // Full name of the innermost open map.
  std::string path_of_open() const {
    std::string path;
    for (size_t i = 0; i + 1 < open_.size(); ++i) {
      const Open& open = open_[i];
      if (open.node.kind == YamlNode::Kind::kList) {
        path += fmt::format("[{}]", open.node.elements.size());
      } else if (open.entry) {
        path += (path.empty() ? "" : ".") + open.entry->key;
      }
    }
    return path;
  }

  const ConfigSource& source_;
  std::vector<ConfigProblem>& problems_;
  std::vector<Open> open_;
  std::optional<YamlNode> root_;
};

// Offset of a control character other than tab and line ends, or npos. yaml-cpp takes 0x04 for the
// end of the file and would drop what follows without a word.
size_t find_control_character(const std::string& text) {
  for (size_t i = 0; i < text.size(); ++i) {
    const unsigned char c = static_cast<unsigned char>(text[i]);
    if ((c < 0x20 && c != '\t' && c != '\n' && c != '\r') || c == 0x7F) return i;
  }
  return std::string::npos;
}

// Reports a byte that no text should hold; returns whether there was one.
bool report_bad_bytes(const std::string& text, TreeBuilder& builder) {
  if (text.size() > kMaxBytes) {
    builder.report(
        1, 1,
        fmt::format("is {} bytes long; a configuration has at most {}", text.size(), kMaxBytes));
    return true;
  }
  const auto report_byte = [&](size_t offset, const std::string& what) {
    const auto begin = text.begin();
    const auto end = begin + static_cast<std::ptrdiff_t>(offset);
    const size_t newline = offset == 0 ? std::string::npos : text.rfind('\n', offset - 1);
    const size_t line_start = newline == std::string::npos ? 0 : newline + 1;
    builder.report(static_cast<int>(std::count(begin, end, '\n')) + 1,
                   static_cast<int>(offset - line_start) + 1, what);
  };
  if (const std::optional<size_t> offset = first_invalid_utf8(text)) {
    report_byte(*offset, "not valid UTF-8; save the text as UTF-8");
    return true;
  }
  const size_t control = find_control_character(text);
  if (control != std::string::npos) {
    report_byte(control, fmt::format("control character 0x{:02x}; remove it",
                                     static_cast<unsigned char>(text[control])));
    return true;
  }
  for (size_t start = 0; start < text.size(); start = text.find('\n', start) + 1) {
    if (text[start] == '\t') {
      report_byte(start, "a line starts with a tab; indent with spaces");
      return true;
    }
    if (text.find('\n', start) == std::string::npos) break;
  }
  return false;
}

}  // namespace

std::string ConfigSource::place(int line, int column) const {
  return is_override() ? name : fmt::format("{}:{}:{}", name, line, column);
}

const YamlEntry* YamlNode::find(std::string_view key) const {
  for (const YamlEntry& entry : entries) {
    if (entry.key == key) return &entry;
  }
  return nullptr;
}

YamlNode map_of(std::string key, YamlNode value) {
  YamlNode map;
  map.kind = YamlNode::Kind::kMap;
  map.line = value.line;
  map.column = value.column;
  map.entries.push_back({std::move(key), value.line, value.column, std::move(value)});
  return map;
}

std::optional<YamlNode> parse_yaml(const std::string& text, const ConfigSource& source,
                                   std::vector<ConfigProblem>& problems) {
  TreeBuilder builder(source, problems);
  if (report_bad_bytes(text, builder)) return std::nullopt;
  try {
    std::istringstream stream(text);
    YAML::Parser parser(stream);
    if (!parser.HandleNextDocument(builder)) return std::nullopt;
    std::optional<YamlNode> root = std::move(builder.root());
    // What is left over, e.g. a line with less indentation than the map it should end, counts as a
    // document of its own.
    std::vector<ConfigProblem> ignored;
    TreeBuilder rest(source, ignored);
    if (parser.HandleNextDocument(rest)) {
      const int line = rest.root() ? rest.root()->line : 1;
      const int column = rest.root() ? rest.root()->column : 1;
      builder.report(line, column,
                     "a second document starts here; a configuration is one document");
    }
    return root;
  } catch (const YAML::DeepRecursion& error) {
    builder.report(1, 1, fmt::format("is nested more than {} levels deep", error.depth()));
    return std::nullopt;
  } catch (const YAML::Exception& error) {
    builder.report(error.mark.line + 1, error.mark.column + 1, "not valid YAML: " + error.msg);
    return std::nullopt;
  }
}

}  // namespace gradus::internal
