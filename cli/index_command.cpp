// SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "cli/command.h"
#include "cli/json_lines.h"
#include "cli/partial_directory.h"
#include "comm/communicator.h"
#include "common/http_server.h"
#include "records/signals.h"
#include "records/terminal.h"
#include "retriever/index_folder.h"

namespace gradus::cli {
namespace {

using Json = nlohmann::ordered_json;

// A row of a corpus: {"text", "title"?, "id"?}; also Search-R1's {"id", "contents"}, whose contents
// begin with the title in quotes on a line of its own.
Status read_passage(const Json& row, int64_t number,
                    const std::function<Status(const retriever::Passage&)>& take) {
  std::string id = std::to_string(number), title, text;
  if (const auto found = row.find("id"); found != row.end()) {
    id = found->is_string() ? found->get<std::string>() : found->dump();
  }
  const auto read = [&row](const char* key, std::string& value) -> Status {
    const auto found = row.find(key);
    if (found == row.end() || found->is_null()) return {};
    if (!found->is_string()) {
      return invalid_argument("'{}' is {}; it must be a text", key, found->type_name());
    }
    value = found->get<std::string>();
    return {};
  };
  GRADUS_RETURN_IF_ERROR(read("title", title));
  GRADUS_RETURN_IF_ERROR(read("text", text));
  if (!row.contains("text")) {
    if (!row.contains("contents")) {
      return invalid_argument("neither 'text' nor 'contents'; expected {{\"text\": \"...\"}}");
    }
    GRADUS_RETURN_IF_ERROR(read("contents", text));
    const size_t end = text.find("\"\n");
    if (title.empty() && text.starts_with('"') && end != std::string::npos && end > 0) {
      title = text.substr(1, end - 1);
      text = text.substr(end + 2);
    }
  }
  return take({id, title, text});
}

retriever::PassageSource passages_of(const std::string& path) {
  return [path](const std::function<Status(const retriever::Passage&)>& take) {
    int64_t number = 0;
    return for_each_json_line(
        path, [&](const Json& row, int64_t) { return read_passage(row, number++, take); });
  };
}

struct IndexBuildOptions {
  std::string corpus, out;
  retriever::BuildOptions build;
};

Status build(const IndexBuildOptions& options) {
  const auto ranks = comm::make_communicator();
  if (!ranks.ok()) return ranks.status();
  if ((*ranks)->size() > 1) {
    return invalid_argument(
        "gradus index build: {} ranks; it runs in one process, start it without "
        "mpirun",
        (*ranks)->size());
  }
  auto embedder = retriever::Embedder::load(options.build.model_dir);
  if (!embedder.ok()) return embedder.status();
  records::install_stop_signals();
  records::RunDisplay display({.columns = {}});
  std::string current;
  retriever::BuildOptions build = options.build;
  build.progress = [&](const char* stage, int64_t done, int64_t total) {
    if (current != stage) {
      if (!current.empty()) display.end_phase();
      current = stage;
      display.begin_phase(current, total, "passages");
    }
    display.advance_phase(done);
    return !records::stop_requested();
  };
  const Status status =
      retriever::build_index_folder(options.out, passages_of(options.corpus), **embedder, build);
  if (!current.empty()) display.end_phase();
  return status;
}

struct IndexSearchOptions {
  std::string dir, model_dir, input, output = "-";
  std::vector<std::string> queries;
  int64_t top = 5;
};

Result<std::vector<std::string>> read_queries(const IndexSearchOptions& options) {
  std::vector<std::string> queries = options.queries;
  if (!options.input.empty()) {
    GRADUS_RETURN_IF_ERROR(
        for_each_json_line(options.input, [&](const Json& row, int64_t) -> Status {
          const auto query = row.find("query");
          if (query == row.end() || !query->is_string()) {
            return invalid_argument("no 'query'; expected {{\"query\": \"...\"}}");
          }
          queries.push_back(query->get<std::string>());
          return {};
        }));
  }
  if (queries.empty()) {
    return invalid_argument("gradus index search: no query; give --query TEXT or --queries FILE");
  }
  return queries;
}

Result<Json> found_passages(const retriever::IndexFolder& folder, const retriever::Hits& hits,
                            int64_t query) {
  Json found = Json::array();
  for (int64_t t = query * hits.top; t < (query + 1) * hits.top && hits.ids[t] >= 0; ++t) {
    const Result<retriever::Passage> passage = folder.corpus().passage(hits.ids[t]);
    if (!passage.ok()) return passage.status();
    found.push_back({{"document", hits.ids[t]},
                     {"score", exact_number(hits.scores[t])},
                     {"id", passage->id},
                     {"title", passage->title},
                     {"text", passage->text}});
  }
  return found;
}

// The encoder that the vectors of an index were made with.
Result<std::unique_ptr<retriever::Embedder>> load_encoder_of(const std::string& dir,
                                                             const retriever::IndexFolderInfo& info,
                                                             const std::string& model) {
  auto embedder = retriever::Embedder::load(model);
  if (!embedder.ok()) return embedder;
  if ((*embedder)->hash() != info.encoder_hash) {
    return invalid_argument(
        "{}: built by another encoder than {} (hash {:016x}, this one {:016x}); give --model its "
        "directory, or build the index again",
        dir, model, info.encoder_hash, (*embedder)->hash());
  }
  return embedder;
}

// Under mpirun each rank searches a part of the documents of a flat index, and rank 0 answers.
Status search_on(comm::Communicator& ranks, const IndexSearchOptions& options) {
  const Result<std::vector<std::string>> queries = read_queries(options);
  if (!queries.ok()) return queries.status();
  const Result<retriever::IndexFolder> folder =
      retriever::IndexFolder::open(options.dir, ranks.rank(), ranks.size());
  if (!folder.ok()) return folder.status();
  const std::string model =
      options.model_dir.empty() ? folder->info().model_dir : options.model_dir;
  const auto embedder = load_encoder_of(options.dir, folder->info(), model);
  if (!embedder.ok()) return embedder.status();
  const Result<std::vector<float>> vectors = (*embedder)->embed(*queries);
  if (!vectors.ok()) return vectors.status().with_prefix("queries");
  const Result<retriever::Hits> hits =
      folder->index().is_exact()
          ? retriever::search_all_ranks(ranks, folder->index(), *vectors, options.top)
          : folder->search(*vectors, options.top);
  if (!hits.ok()) return hits.status();
  if (ranks.rank() != 0) return {};
  auto writer = JsonLinesWriter::open(options.output);
  if (!writer.ok()) return writer.status();
  for (size_t q = 0; q < queries->size(); ++q) {
    const Result<Json> found = found_passages(*folder, *hits, static_cast<int64_t>(q));
    if (!found.ok()) return found.status();
    GRADUS_RETURN_IF_ERROR((*writer)->write({{"query", (*queries)[q]}, {"passages", *found}}));
  }
  return (*writer)->finish();
}

Status search(const IndexSearchOptions& options) {
  const auto ranks = comm::make_communicator();
  if (!ranks.ok()) return ranks.status();
  return search_on(**ranks, options);
}

struct ServeOptions {
  std::string dir, model_dir, host = "127.0.0.1";
  int64_t port = 8000, top = 3;
};

// A POST to /retrieve, as Search-R1's server takes it: {"queries": [...], "topk": k,
// "return_scores": bool}; the last two may be missing.
struct RetrieveRequest {
  std::vector<std::string> queries;
  int64_t top = 0;
  bool return_scores = false;
};

Result<RetrieveRequest> parse_retrieve(const std::string& body, int64_t default_top) {
  const Json json = Json::parse(body, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) {
    return invalid_argument("the body is no JSON object; expected {{\"queries\": [\"...\"]}}");
  }
  RetrieveRequest request{.top = default_top};
  const auto queries = json.find("queries");
  const auto is_text = [](const Json& value) { return value.is_string(); };
  if (queries == json.end() || !queries->is_array() || queries->empty() ||
      !std::all_of(queries->begin(), queries->end(), is_text)) {
    return invalid_argument("'queries' is {}; expected a list of texts",
                            queries == json.end() ? "missing" : queries->dump().substr(0, 100));
  }
  request.queries = queries->get<std::vector<std::string>>();
  if (const auto top = json.find("topk"); top != json.end() && !top->is_null()) {
    if (!top->is_number_integer() || top->get<int64_t>() < 1 || top->get<int64_t>() > 1000) {
      return invalid_argument("'topk' is {}; expected a whole number from 1 to 1000", top->dump());
    }
    request.top = top->get<int64_t>();
  }
  if (const auto scores = json.find("return_scores"); scores != json.end() && !scores->is_null()) {
    if (!scores->is_boolean()) {
      return invalid_argument("'return_scores' is {}; expected true or false", scores->dump());
    }
    request.return_scores = scores->get<bool>();
  }
  return request;
}

// What answers queries: the embedder takes one batch at a time, the index any number.
class Retrieval {
 public:
  Retrieval(retriever::IndexFolder folder, std::unique_ptr<retriever::Embedder> embedder)
      : folder_(std::move(folder)), embedder_(std::move(embedder)) {}

  Result<Json> retrieve(const RetrieveRequest& request) {
    const Result<std::vector<float>> vectors = [&] {
      const std::lock_guard lock(mutex_);
      return embedder_->embed(request.queries);
    }();
    if (!vectors.ok()) return vectors.status().with_prefix("queries");
    const Result<retriever::Hits> hits = folder_.search(*vectors, request.top);
    if (!hits.ok()) return hits.status();
    Json result = Json::array();
    for (size_t q = 0; q < request.queries.size(); ++q) {
      Json list = Json::array();
      const size_t first = q * static_cast<size_t>(hits->top);
      for (size_t t = first; t < first + static_cast<size_t>(hits->top) && hits->ids[t] >= 0; ++t) {
        const Result<retriever::Passage> passage = folder_.corpus().passage(hits->ids[t]);
        if (!passage.ok()) return passage.status();
        const Json document = {
            {"id", passage->id},
            {"contents", fmt::format("\"{}\"\n{}", passage->title, passage->text)}};
        if (request.return_scores) {
          list.push_back({{"document", document}, {"score", exact_number(hits->scores[t])}});
        } else {
          list.push_back(document);
        }
      }
      result.push_back(std::move(list));
    }
    return Json{{"result", std::move(result)}};
  }

 private:
  retriever::IndexFolder folder_;
  std::unique_ptr<retriever::Embedder> embedder_;
  std::mutex mutex_;
};

HttpServer::Reply error_reply(int status, const std::string& what) {
  return {status, Json{{"error", what}}.dump(-1, ' ', false, Json::error_handler_t::replace)};
}

Status serve(const ServeOptions& options) {
  Result<retriever::IndexFolder> folder = retriever::IndexFolder::open(options.dir);
  if (!folder.ok()) return folder.status();
  const std::string model =
      options.model_dir.empty() ? folder->info().model_dir : options.model_dir;
  auto embedder = load_encoder_of(options.dir, folder->info(), model);
  if (!embedder.ok()) return embedder.status();
  const auto server = HttpServer::listen(options.host, static_cast<int>(options.port));
  if (!server.ok()) return server.status().with_prefix("gradus index serve");
  const int64_t num_documents = folder->info().num_documents;
  Retrieval retrieval(std::move(*folder), std::move(*embedder));
  records::install_stop_signals();
  fmt::print("serving {} passages of {} at http://{}:{}/retrieve\n", num_documents, options.dir,
             options.host, (*server)->port());
  std::fflush(stdout);
  (*server)->serve(
      [&](const HttpServer::Request& request) -> HttpServer::Reply {
        if (request.path != "/retrieve") {
          return error_reply(404, fmt::format("no such path; POST to /retrieve"));
        }
        if (request.method != "POST") return error_reply(405, "expected POST");
        const Result<RetrieveRequest> wanted = parse_retrieve(request.body, options.top);
        if (!wanted.ok()) return error_reply(400, wanted.status().message());
        const Result<Json> found = retrieval.retrieve(*wanted);
        if (!found.ok()) {
          const bool is_theirs = found.status().code() == StatusCode::kInvalidArgument;
          return error_reply(is_theirs ? 400 : 500, found.status().message());
        }
        return {200, found->dump(-1, ' ', false, Json::error_handler_t::replace)};
      },
      [] { return records::stop_requested(); });
  return {};
}

struct EmbedOptions {
  std::string model_dir, input = "-", output = "-";
  bool times = false;
};

Status embed(const EmbedOptions& options) {
  auto embedder = retriever::Embedder::load(options.model_dir);
  if (!embedder.ok()) return embedder.status();
  std::vector<std::string> texts;
  GRADUS_RETURN_IF_ERROR(for_each_json_line(options.input, [&](const Json& row, int64_t) -> Status {
    const auto text = row.find("text");
    if (text == row.end() || !text->is_string()) {
      return invalid_argument("no 'text'; expected {{\"text\": \"...\"}}");
    }
    texts.push_back(text->get<std::string>());
    return {};
  }));
  const auto start = std::chrono::steady_clock::now();
  const Result<std::vector<float>> vectors = (*embedder)->embed(texts);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  if (!vectors.ok()) return vectors.status().with_prefix(options.input);
  auto writer = JsonLinesWriter::open(options.output);
  if (!writer.ok()) return writer.status();
  if (options.times) {
    GRADUS_RETURN_IF_ERROR(
        (*writer)->write({{"texts", texts.size()}, {"seconds", seconds.count()}}));
    return (*writer)->finish();
  }
  const size_t width = static_cast<size_t>((*embedder)->width());
  for (size_t i = 0; i < texts.size(); ++i) {
    Json vector = Json::array();
    for (size_t c = 0; c < width; ++c) vector.push_back(exact_number((*vectors)[i * width + c]));
    GRADUS_RETURN_IF_ERROR((*writer)->write({{"vector", vector}}));
  }
  return (*writer)->finish();
}

struct NewEncoderOptions {
  std::vector<std::string> texts;
  std::string out;
  retriever::Embedder::NewEncoder encoder;
};

// Every text in a value, whatever holds it.
void collect_texts(const Json& value, std::vector<std::string>& texts) {
  if (value.is_string()) texts.push_back(value.get<std::string>());
  if (!value.is_structured()) return;
  for (const Json& entry : value) collect_texts(entry, texts);
}

Status new_encoder(const NewEncoderOptions& options) {
  const std::string folder = without_trailing_slashes(options.out);
  GRADUS_RETURN_IF_ERROR(check_new_directory(folder));
  std::vector<std::string> texts;
  for (const std::string& file : options.texts) {
    GRADUS_RETURN_IF_ERROR(for_each_json_line(file, [&](const Json& row, int64_t) -> Status {
      collect_texts(row, texts);
      return {};
    }));
  }
  PartialDirectory partial(folder);
  std::error_code error;
  std::filesystem::create_directories(partial.path(), error);
  if (error) return unavailable("{}: cannot create: {}", partial.path(), error.message());
  GRADUS_RETURN_IF_ERROR(retriever::Embedder::write_new(partial.path(), texts, options.encoder));
  return partial.commit();
}

void add_new_encoder(CLI::App& index, Action& action) {
  CLI::App* command = index.add_subcommand(
      "new-encoder", "A small sentence encoder with new weights and the words of some texts");
  auto options = std::make_shared<NewEncoderOptions>();
  command
      ->add_option("--texts", options->texts,
                   "JSON lines; the words of all their texts are its vocabulary")
      ->required();
  command->add_option("--out", options->out, "Directory to make")->required();
  retriever::Embedder::NewEncoder& encoder = options->encoder;
  const auto at_least_one = CLI::Range(int64_t{1}, int64_t{1} << 20);
  command->add_option("--width", encoder.width, "Of its vectors, a multiple of 16")
      ->check(at_least_one)
      ->capture_default_str();
  command->add_option("--inner-width", encoder.inner_width, "Of its layers, a multiple of 16")
      ->check(at_least_one)
      ->capture_default_str();
  command->add_option("--layers", encoder.num_layers, "Layers")
      ->check(at_least_one)
      ->capture_default_str();
  command->add_option("--heads", encoder.num_heads, "Attention heads")
      ->check(at_least_one)
      ->capture_default_str();
  command->add_option("--max-tokens", encoder.max_tokens, "Longest text")
      ->check(CLI::Range(int64_t{8}, int64_t{1} << 20))
      ->capture_default_str();
  command->add_option("--seed", encoder.seed, "Of the weights")->capture_default_str();
  command->callback([options, &action] { action = [options] { return new_encoder(*options); }; });
}

void add_build(CLI::App& index, Action& action) {
  CLI::App* command = index.add_subcommand(
      "build", "Embed the passages of a corpus and index them; goes on where it was stopped");
  auto options = std::make_shared<IndexBuildOptions>();
  retriever::BuildOptions& build_options = options->build;
  command
      ->add_option("--corpus", options->corpus,
                   R"(JSON lines {"text", "title"?, "id"?} or {"contents", "id"?})")
      ->required();
  command->add_option("--model", build_options.model_dir, "Directory of the sentence encoder")
      ->required();
  command->add_option("--out", options->out, "Folder to make")->required();
  command->add_option("--kind", build_options.kind, "Index kind (docs/retrieval.md)")
      ->capture_default_str();
  retriever::IndexOptions& kind = build_options.index;
  command->add_option("--links", kind.links, "hnsw: links of a node")->capture_default_str();
  command->add_option("--build-depth", kind.build_depth, "hnsw: candidates while building")
      ->capture_default_str();
  command->add_option("--search-depth", kind.search_depth, "hnsw: candidates while searching")
      ->capture_default_str();
  command->add_option("--lists", kind.num_lists, "ivf: cells; 0 chooses")->capture_default_str();
  command->add_option("--probes", kind.num_probes, "ivf: cells searched")->capture_default_str();
  command->add_option("--code-bytes", kind.code_bytes, "ivf_pq: bytes of a vector")
      ->capture_default_str();
  command->callback([options, &action] { action = [options] { return build(*options); }; });
}

void add_search(CLI::App& index, Action& action) {
  CLI::App* command = index.add_subcommand("search", "The passages nearest to a query");
  auto options = std::make_shared<IndexSearchOptions>();
  command->add_option("--index", options->dir, "Folder of gradus index build")->required();
  command->add_option("--query", options->queries, "Query; repeatable")->allow_extra_args(false);
  command->add_option("--queries", options->input, R"(JSON lines {"query"}; - is standard input)");
  command->add_option("--k", options->top, "Passages per query")->capture_default_str();
  command->add_option("--model", options->model_dir,
                      "Directory of the encoder, if it is not where it was");
  command->add_option("--output", options->output, "JSON lines; - is standard output")
      ->capture_default_str();
  command->callback([options, &action] { action = [options] { return search(*options); }; });
}

void add_serve(CLI::App& index, Action& action) {
  CLI::App* command = index.add_subcommand(
      "serve", "Answer queries over HTTP, as Search-R1's retrieval server does");
  auto options = std::make_shared<ServeOptions>();
  command->add_option("--index", options->dir, "Folder of gradus index build")->required();
  command->add_option("--port", options->port, "Port; 0 takes a free one")
      ->check(CLI::Range(int64_t{0}, int64_t{65535}))
      ->capture_default_str();
  command->add_option("--host", options->host, "IPv4 address to listen on; 0.0.0.0 for all")
      ->capture_default_str();
  command->add_option("--k", options->top, "Passages per query, where a request does not say")
      ->check(CLI::Range(int64_t{1}, int64_t{1000}))
      ->capture_default_str();
  command->add_option("--model", options->model_dir,
                      "Directory of the encoder, if it is not where it was");
  command->callback([options, &action] { action = [options] { return serve(*options); }; });
}

void add_embed(CLI::App& index, Action& action) {
  CLI::App* command = index.add_subcommand("embed", "Vectors of texts");
  auto options = std::make_shared<EmbedOptions>();
  command->add_option("--model", options->model_dir, "Directory of the sentence encoder")
      ->required();
  command->add_option("--input", options->input, R"(JSON lines {"text"}; - is standard input)")
      ->capture_default_str();
  command->add_option("--output", options->output, "JSON lines; - is standard output")
      ->capture_default_str();
  command->add_flag("--time", options->times, "Print the seconds that it took instead");
  command->callback([options, &action] { action = [options] { return embed(*options); }; });
}

}  // namespace

void add_index_command(CLI::App& app, Action& action) {
  CLI::App* index = app.add_subcommand("index", "Passages by meaning: build and search an index");
  index->require_subcommand(1);
  add_build(*index, action);
  add_search(*index, action);
  add_serve(*index, action);
  add_embed(*index, action);
  add_new_encoder(*index, action);
}

}  // namespace gradus::cli
