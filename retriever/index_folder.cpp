// SPDX-License-Identifier: Apache-2.0
#include "retriever/index_folder.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "common/atomic_file.h"
#include "common/rng.h"
#include "retriever/rescore.h"

namespace gradus::retriever {
namespace {

using nlohmann::json;

// Passages between two savings: half a minute of a small encoder on two cores.
constexpr int64_t kBlock = 1024;

std::string hex(uint64_t value) { return fmt::format("{:016x}", value); }

uint64_t hash_of(std::span<const std::byte> bytes) {
  return hash64(std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
}

json options_json(const IndexOptions& options) {
  return {{"links", options.links},
          {"build_depth", options.build_depth},
          {"search_depth", options.search_depth},
          {"num_lists", options.num_lists},
          {"num_probes", options.num_probes},
          {"code_bytes", options.code_bytes}};
}

// Reads a JSON object that this program wrote.
Result<json> read_object(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return not_found("{}: cannot open: {}", path, std::strerror(errno));
  json object = json::parse(file, nullptr, false);
  if (!object.is_object()) return data_loss("{}: not a JSON object; build the index again", path);
  return object;
}

class Builder {
 public:
  Builder(const std::string& dir, Embedder& embedder, const BuildOptions& options)
      : dir_(dir), embedder_(embedder), options_(options) {
    options_.index.width = embedder.width();
  }

  Status build(const PassageSource& source) {
    // Wrong options are found before hours of embedding.
    const auto tried = make_index(options_.kind, options_.index);
    GRADUS_RETURN_IF_ERROR(tried.status());
    std::error_code error;
    std::filesystem::create_directories(dir_, error);
    if (error) return unavailable("{}: cannot be made: {}", dir_, error.message());
    GRADUS_RETURN_IF_ERROR(write_corpus(source));
    const Result<Corpus> corpus = Corpus::open(dir_ + "/corpus.bin");
    if (!corpus.ok()) return corpus.status();
    const json wanted = description(*corpus);
    if (std::filesystem::exists(dir_ + "/index.json")) {
      const Result<json> found = read_object(dir_ + "/index.json");
      if (!found.ok()) return found.status();
      return compare("index.json", *found, wanted,
                     {"format", "kind", "options", "encoder_hash", "corpus_hash"});
    }
    GRADUS_RETURN_IF_ERROR(begin_or_go_on(wanted));
    GRADUS_RETURN_IF_ERROR(embed_all(*corpus));
    return finish(wanted, *corpus);
  }

 private:
  Status tell(const char* stage, int64_t done, int64_t total) const {
    if (!options_.progress || options_.progress(stage, done, total)) return {};
    return unavailable("stopped; the same command goes on with it");
  }

  // The corpus is written anew each time, to know whether it is the same: cheap beside embedding.
  Status write_corpus(const PassageSource& source) const {
    const std::string path = dir_ + "/corpus.bin", next = path + ".next";
    Result<CorpusWriter> writer = CorpusWriter::create(next);
    if (!writer.ok()) return writer.status();
    int64_t count = 0;
    const Status status = source([&](const Passage& passage) -> Status {
      const Status appended = writer->append(passage);
      if (!appended.ok()) return appended;
      return ++count % 4096 == 0 ? tell("passages", count, 0) : Status();
    });
    if (!status.ok()) return status;
    if (count == 0) return invalid_argument("{}: the corpus has no passages", dir_);
    GRADUS_RETURN_IF_ERROR(writer->finish());
    const Result<Corpus> corpus = Corpus::open(next);
    if (!corpus.ok()) return corpus.status();
    const Result<Corpus> before = Corpus::open(path);
    if (before.ok() && before->hash() != corpus->hash()) {
      std::filesystem::remove(next);
      return invalid_argument(
          "{}: holds {} passages of another corpus, this one has {}; choose another folder or "
          "remove this one",
          dir_, before->size(), corpus->size());
    }
    std::filesystem::rename(next, path);
    return {};
  }

  json description(const Corpus& corpus) const {
    return {{"format", 1},
            {"kind", options_.kind},
            {"options", options_json(options_.index)},
            {"model", options_.model_dir},
            {"encoder_hash", hex(embedder_.hash())},
            {"corpus_hash", hex(corpus.hash())},
            {"num_documents", corpus.size()},
            {"width", embedder_.width()}};
  }

  // Names the first of `keys` in which a description of the folder differs from this build's.
  Status compare(const char* file, const json& found, const json& wanted,
                 std::initializer_list<const char*> keys) const {
    for (const char* key : keys) {
      const json value = found.value(key, json());
      if (value == wanted[key]) continue;
      return invalid_argument(
          "{}/{}: {} is {}, this build has {}; choose another folder or remove this one", dir_,
          file, key, value.dump(), wanted[key].dump());
    }
    return {};
  }

  Status begin_or_go_on(const json& wanted) const {
    const std::string path = dir_ + "/build.json";
    if (!std::filesystem::exists(path)) {
      std::filesystem::remove(part());
      return write_file_atomically(path, wanted.dump(1) + "\n");
    }
    const Result<json> found = read_object(path);
    if (!found.ok()) return found.status();
    // Another kind may go on with the vectors; another encoder or corpus may not.
    GRADUS_RETURN_IF_ERROR(compare("build.json", *found, wanted, {"encoder_hash", "corpus_hash"}));
    // Stopped between the last two steps of finish().
    if (std::filesystem::exists(dir_ + "/vectors.bin")) {
      std::filesystem::rename(dir_ + "/vectors.bin", part());
    }
    return write_file_atomically(path, wanted.dump(1) + "\n");
  }

  std::string part() const { return dir_ + "/vectors.part"; }

  Status embed_all(const Corpus& corpus) {
    const size_t row = static_cast<size_t>(embedder_.width()) * sizeof(float);
    const int descriptor = ::open(part().c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (descriptor < 0) return unavailable("{}: cannot open: {}", part(), std::strerror(errno));
    const Status status = embed_into(descriptor, corpus, row);
    ::close(descriptor);
    return status;
  }

  // Whole blocks are kept; what a kill left of a block is written over.
  Status embed_into(int descriptor, const Corpus& corpus, size_t row) {
    const off_t found = ::lseek(descriptor, 0, SEEK_END);
    int64_t done =
        std::min<int64_t>(static_cast<int64_t>(found) / static_cast<int64_t>(row), corpus.size());
    if (done < corpus.size()) done = done / kBlock * kBlock;
    if (::ftruncate(descriptor, static_cast<off_t>(done) * static_cast<off_t>(row)) != 0 ||
        ::lseek(descriptor, 0, SEEK_END) < 0) {
      return unavailable("{}: cannot be cut to its whole blocks: {}", part(), std::strerror(errno));
    }
    GRADUS_RETURN_IF_ERROR(tell("embedding", done, corpus.size()));
    std::vector<std::string> texts;
    while (done < corpus.size()) {
      texts.clear();
      for (int64_t i = done; i < std::min(done + kBlock, corpus.size()); ++i) {
        const Result<Passage> passage = corpus.passage(i);
        if (!passage.ok()) return passage.status();
        texts.push_back(embedded_text(*passage));
      }
      const Result<std::vector<float>> vectors = embedder_.embed(texts);
      if (!vectors.ok()) return vectors.status().with_prefix(fmt::format("passages from {}", done));
      const char* bytes = reinterpret_cast<const char*>(vectors->data());
      for (size_t left = vectors->size() * sizeof(float); left > 0;) {
        const ssize_t written = ::write(descriptor, bytes, left);
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0) return unavailable("{}: cannot write: {}", part(), std::strerror(errno));
        bytes += written;
        left -= static_cast<size_t>(written);
      }
      done += static_cast<int64_t>(texts.size());
      GRADUS_RETURN_IF_ERROR(tell("embedding", done, corpus.size()));
    }
    if (::fsync(descriptor) != 0) return unavailable("{}: {}", part(), std::strerror(errno));
    return {};
  }

  static std::string embedded_text(const Passage& passage) {
    return passage.title.empty() ? std::string(passage.text)
                                 : fmt::format("{}\n{}", passage.title, passage.text);
  }

  Status finish(json description, const Corpus& corpus) const {
    const Result<MappedFile> vectors = MappedFile::open(part());
    if (!vectors.ok()) return vectors.status();
    GRADUS_RETURN_IF_ERROR(tell("index", 0, corpus.size()));
    if (options_.kind != "flat") {
      auto index = make_index(options_.kind, options_.index);
      GRADUS_RETURN_IF_ERROR(index.status());
      std::vector<int64_t> ids(static_cast<size_t>(corpus.size()));
      for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int64_t>(i);
      const std::span<const float> rows(reinterpret_cast<const float*>(vectors->bytes().data()),
                                        vectors->bytes().size() / sizeof(float));
      GRADUS_RETURN_IF_ERROR((*index)->add(ids, rows));
      GRADUS_RETURN_IF_ERROR((*index)->save(dir_ + "/index.bin"));
    }
    description["vectors_hash"] = hex(hash_of(vectors->bytes()));
    std::error_code error;
    std::filesystem::rename(part(), dir_ + "/vectors.bin", error);
    if (error) return unavailable("{}: cannot be renamed: {}", part(), error.message());
    GRADUS_RETURN_IF_ERROR(write_file_atomically(dir_ + "/index.json", description.dump(1) + "\n"));
    std::filesystem::remove(dir_ + "/build.json", error);
    return tell("index", corpus.size(), corpus.size());
  }

  std::string dir_;
  Embedder& embedder_;
  BuildOptions options_;
};

Status read_info(const std::string& path, IndexFolderInfo& info) {
  const Result<json> object = read_object(path);
  if (!object.ok()) return object.status();
  try {
    info.kind = object->at("kind").get<std::string>();
    info.model_dir = object->at("model").get<std::string>();
    info.num_documents = object->at("num_documents").get<int64_t>();
    info.width = object->at("width").get<int64_t>();
    const std::pair<const char*, uint64_t*> hashes[] = {{"encoder_hash", &info.encoder_hash},
                                                        {"corpus_hash", &info.corpus_hash},
                                                        {"vectors_hash", &info.vectors_hash}};
    for (const auto& [key, value] : hashes) {
      *value = std::stoull(object->at(key).get<std::string>(), nullptr, 16);
    }
  } catch (const std::exception& error) {
    return data_loss("{}: damaged: {}; build the index again", path, error.what());
  }
  if (info.width < 1 || info.num_documents < 1) {
    return data_loss("{}: damaged: {} documents of width {}; build the index again", path,
                     info.num_documents, info.width);
  }
  return {};
}

}  // namespace

Status build_index_folder(const std::string& dir, const PassageSource& corpus, Embedder& embedder,
                          const BuildOptions& options) {
  return Builder(dir, embedder, options).build(corpus);
}

Result<IndexFolder> IndexFolder::open(const std::string& dir, int64_t part, int64_t num_parts) {
  IndexFolder folder;
  if (!std::filesystem::exists(dir + "/index.json")) {
    return not_found(
        "{}: no index.json, so no index, or one whose build was stopped; run gradus "
        "index build",
        dir);
  }
  GRADUS_RETURN_IF_ERROR(read_info(dir + "/index.json", folder.info_));
  const IndexFolderInfo& info = folder.info_;
  Result<Corpus> corpus = Corpus::open(dir + "/corpus.bin");
  if (!corpus.ok()) return corpus.status();
  if (corpus->size() != info.num_documents || corpus->hash() != info.corpus_hash) {
    return data_loss("{}/corpus.bin: not the corpus that index.json names; build the index again",
                     dir);
  }
  folder.corpus_ = std::make_unique<Corpus>(std::move(*corpus));
  Result<MappedFile> vectors = MappedFile::open(dir + "/vectors.bin");
  if (!vectors.ok()) return vectors.status();
  if (vectors->bytes().size() !=
          static_cast<size_t>(info.num_documents * info.width) * sizeof(float) ||
      hash_of(vectors->bytes()) != info.vectors_hash) {
    return data_loss(
        "{}/vectors.bin: damaged: not the {} vectors that index.json names; build the "
        "index again",
        dir, info.num_documents);
  }
  folder.vectors_ = std::make_unique<MappedFile>(std::move(*vectors));
  if (info.kind == "flat") {
    IndexOptions options;
    options.width = info.width;
    auto index = make_index("flat", options);
    GRADUS_RETURN_IF_ERROR(index.status());
    const int64_t from = info.num_documents * part / num_parts;
    const int64_t to = info.num_documents * (part + 1) / num_parts;
    std::vector<int64_t> ids;
    for (int64_t i = from; i < to; ++i) ids.push_back(i);
    GRADUS_RETURN_IF_ERROR((*index)->add(ids, {folder.vectors() + from * info.width,
                                               static_cast<size_t>((to - from) * info.width)}));
    folder.index_ = std::move(*index);
  } else {
    auto index = load_index(dir + "/index.bin");
    GRADUS_RETURN_IF_ERROR(index.status());
    if ((*index)->size() != info.num_documents || (*index)->width() != info.width) {
      return data_loss(
          "{}/index.bin: {} documents of width {}, index.json names {} of width {}; "
          "build the index again",
          dir, (*index)->size(), (*index)->width(), info.num_documents, info.width);
    }
    folder.index_ = std::move(*index);
  }
  return folder;
}

Result<Hits> IndexFolder::search(std::span<const float> queries_MD, int64_t top) const {
  Result<Hits> hits = index_->search(queries_MD, top);
  if (!hits.ok() || index_->is_exact()) return hits;
  for (int64_t q = 0; q < hits->m; ++q) {
    const auto from = hits->ids.begin() + q * top;
    const std::vector<int64_t> found(from, std::find(from, from + top, -1));
    std::vector<float> scores(found.size());
    score_pool(queries_MD.data() + q * info_.width, vectors(), info_.width, found, scores);
    std::vector<std::pair<float, int64_t>> list;
    for (size_t i = 0; i < found.size(); ++i) list.emplace_back(-scores[i], found[i]);
    std::sort(list.begin(), list.end());
    for (size_t i = 0; i < list.size(); ++i) {
      hits->scores[q * top + static_cast<int64_t>(i)] = -list[i].first;
      hits->ids[q * top + static_cast<int64_t>(i)] = list[i].second;
    }
  }
  return hits;
}

}  // namespace gradus::retriever
