// SPDX-License-Identifier: Apache-2.0
#include "federated/client_data.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstring>
#include <fstream>
#include <map>
#include <numeric>

#include "common/rng.h"

namespace gradus::federated {
namespace {

constexpr int64_t kMaxDraws = 10000;  // of a partition in which somebody gets too little

template <class T>
void shuffle(std::vector<T>& values, RngSequence& random) {
  for (size_t i = values.size(); i > 1; --i) std::swap(values[i - 1], values[random.below(i)]);
}

// Marsaglia and Tsang 2000; shapes below 1 by a power of a uniform.
double gamma_draw(double shape, RngSequence& random) {
  if (shape < 1) {
    const double log_u = std::log(random.uniform());
    return gamma_draw(shape + 1, random) * std::exp(log_u / shape);
  }
  const double d = shape - 1.0 / 3, c = 1 / std::sqrt(9 * d);
  for (;;) {
    const double x = random.normal();
    const double v = std::pow(1 + c * x, 3);
    if (v > 0 && std::log(random.uniform()) < 0.5 * x * x + d - d * v + d * std::log(v)) {
      return d * v;
    }
  }
}

// Shares of `count` clients; all equal if every draw has underflowed.
std::vector<double> dirichlet_draw(double beta, size_t count, RngSequence& random) {
  std::vector<double> shares(count);
  double sum = 0;
  for (double& share : shares) sum += share = gamma_draw(beta, random);
  for (double& share : shares) share = sum > 0 ? share / sum : 1 / static_cast<double>(count);
  return shares;
}

using Parts = std::vector<std::vector<int32_t>>;

// `rows` cut at the cumulated shares.
void deal_out(std::span<const int32_t> rows, std::span<const double> shares, Parts& parts) {
  double cumulated = 0;
  size_t begin = 0;
  for (size_t k = 0; k < parts.size(); ++k) {
    cumulated += shares[k];
    const size_t end =
        k + 1 == parts.size()
            ? rows.size()
            : std::min(rows.size(), static_cast<size_t>(
                                        std::floor(cumulated * static_cast<double>(rows.size()))));
    parts[k].insert(parts[k].end(), rows.begin() + static_cast<std::ptrdiff_t>(begin),
                    rows.begin() + static_cast<std::ptrdiff_t>(std::max(begin, end)));
    begin = std::max(begin, end);
  }
}

size_t smallest(const Parts& parts) {
  size_t least = parts[0].size();
  for (const auto& part : parts) least = std::min(least, part.size());
  return least;
}

Parts dirichlet_parts(const PartitionConfig& config, std::span<const int32_t> labels,
                      int64_t num_classes, size_t num_clients, RngSequence& random) {
  std::vector<std::vector<int32_t>> by_class(static_cast<size_t>(num_classes));
  for (size_t i = 0; i < labels.size(); ++i) {
    by_class[static_cast<size_t>(labels[i])].push_back(static_cast<int32_t>(i));
  }
  Parts parts(num_clients);
  const double even = static_cast<double>(labels.size()) / static_cast<double>(num_clients);
  for (std::vector<int32_t>& rows : by_class) {
    shuffle(rows, random);
    std::vector<double> shares = dirichlet_draw(config.beta, num_clients, random);
    if (config.is_balanced) {
      double sum = 0;
      for (size_t k = 0; k < num_clients; ++k) {
        if (static_cast<double>(parts[k].size()) >= even) shares[k] = 0;
        sum += shares[k];
      }
      for (double& share : shares)
        share = sum > 0 ? share / sum : 1 / static_cast<double>(num_clients);
    }
    deal_out(rows, shares, parts);
  }
  return parts;
}

Parts shard_parts(const PartitionConfig& config, std::span<const int32_t> labels,
                  size_t num_clients, RngSequence& random) {
  std::vector<int32_t> rows(labels.size());
  std::iota(rows.begin(), rows.end(), 0);
  shuffle(rows, random);
  std::stable_sort(rows.begin(), rows.end(), [&](int32_t a, int32_t b) {
    return labels[static_cast<size_t>(a)] < labels[static_cast<size_t>(b)];
  });
  const size_t num_shards = num_clients * static_cast<size_t>(config.shards_per_client);
  std::vector<size_t> order(num_shards);
  std::iota(order.begin(), order.end(), size_t{0});
  shuffle(order, random);
  Parts parts(num_clients);
  for (size_t s = 0; s < num_shards; ++s) {
    const size_t begin = order[s] * rows.size() / num_shards;
    const size_t end = (order[s] + 1) * rows.size() / num_shards;
    std::vector<int32_t>& part = parts[s % num_clients];
    part.insert(part.end(), rows.begin() + static_cast<std::ptrdiff_t>(begin),
                rows.begin() + static_cast<std::ptrdiff_t>(end));
  }
  return parts;
}

// A table of rows with the clients' row numbers, and what a client does to its features.
class TableData final : public ClientData {
 public:
  TableData(LabelledRows train, LabelledRows test, Parts parts, double shift, uint64_t seed)
      : train_(std::move(train)), test_(std::move(test)), shift_(shift), seed_(seed) {
    begins_.push_back(0);
    for (const auto& part : parts) {
      rows_.insert(rows_.end(), part.begin(), part.end());
      begins_.push_back(static_cast<int64_t>(rows_.size()));
    }
  }
  int64_t num_clients() const override { return static_cast<int64_t>(begins_.size()) - 1; }
  int64_t num_samples(int64_t client) const override {
    return begins_[static_cast<size_t>(client) + 1] - begins_[static_cast<size_t>(client)];
  }
  void load(int64_t client, ClientRows& rows) const override {
    const auto begin = static_cast<size_t>(begins_[static_cast<size_t>(client)]);
    const auto count = static_cast<size_t>(num_samples(client));
    const auto width = static_cast<size_t>(train_.num_features);
    rows.labels_N.resize(count);
    rows.features_NF.resize(count * width);
    for (size_t i = 0; i < count; ++i) {
      const auto row = static_cast<size_t>(rows_[begin + i]);
      rows.labels_N[i] = train_.labels_M[row];
      std::copy_n(train_.features_MF.begin() + static_cast<std::ptrdiff_t>(row * width), width,
                  rows.features_NF.begin() + static_cast<std::ptrdiff_t>(i * width));
    }
    if (shift_ == 0) return;
    // A gain and an offset for each feature, the client's own.
    RngSequence random(hash64({seed_, static_cast<uint64_t>(client), 0x5117}), RngStream::kTask);
    for (size_t j = 0; j < width; ++j) {
      const auto gain = static_cast<float>(1 + shift_ * random.normal());
      const auto offset = static_cast<float>(shift_ * random.normal());
      for (size_t i = 0; i < count; ++i) {
        float& x = rows.features_NF[i * width + j];
        x = x * gain + offset;
      }
    }
  }
  const LabelledRows& test_rows() const override { return test_; }

 private:
  LabelledRows train_, test_;
  std::vector<int64_t> begins_;
  std::vector<int32_t> rows_;
  double shift_;
  uint64_t seed_;
};

// Clients whose rows are drawn with replacement when they are wanted: any number of them, no
// memory.
class ResampledData final : public ClientData {
 public:
  ResampledData(LabelledRows train, LabelledRows test, int64_t num_clients, int64_t num_samples,
                uint64_t seed)
      : train_(std::move(train)),
        test_(std::move(test)),
        num_clients_(num_clients),
        num_samples_(num_samples),
        seed_(seed) {}
  int64_t num_clients() const override { return num_clients_; }
  int64_t num_samples(int64_t) const override { return num_samples_; }
  void load(int64_t client, ClientRows& rows) const override {
    RngSequence random(hash64({seed_, static_cast<uint64_t>(client)}), RngStream::kTask);
    const auto width = static_cast<size_t>(train_.num_features);
    const auto count = static_cast<size_t>(num_samples_);
    rows.labels_N.resize(count);
    rows.features_NF.resize(count * width);
    for (size_t i = 0; i < count; ++i) {
      const auto row = static_cast<size_t>(random.below(static_cast<uint64_t>(train_.num_rows())));
      rows.labels_N[i] = train_.labels_M[row];
      std::copy_n(train_.features_MF.begin() + static_cast<std::ptrdiff_t>(row * width), width,
                  rows.features_NF.begin() + static_cast<std::ptrdiff_t>(i * width));
    }
  }
  const LabelledRows& test_rows() const override { return test_; }

 private:
  LabelledRows train_, test_;
  int64_t num_clients_, num_samples_;
  uint64_t seed_;
};

// FedProx's synthetic(alpha, beta) (Li et al. 2020, arXiv:1812.06127, Section 5.1): client k has a
// linear model W, b ~ N(u, 1), u ~ N(0, alpha), and inputs x ~ N(v, diag(j^-1.2)), v ~ N(B, 1), B ~
// N(0, beta); 50 rows and more, log-normal. Rows are made when they are wanted.
class SyntheticData final : public ClientData {
 public:
  SyntheticData(const FederatedDataConfig& config, int64_t num_clients, uint64_t seed)
      : alpha_(config.alpha), beta_(config.beta), num_clients_(num_clients), seed_(seed) {
    test_ = {.num_features = kWidth, .num_classes = kClasses};
    // Held out: a few further rows of the first clients.
    for (int64_t k = 0; k < std::min<int64_t>(num_clients, kTestClients); ++k) {
      ClientRows rows;
      make(k, kTestRows, 1, rows);
      test_.features_MF.insert(test_.features_MF.end(), rows.features_NF.begin(),
                               rows.features_NF.end());
      test_.labels_M.insert(test_.labels_M.end(), rows.labels_N.begin(), rows.labels_N.end());
    }
  }
  int64_t num_clients() const override { return num_clients_; }
  int64_t num_samples(int64_t client) const override {
    RngSequence random(hash64({seed_, static_cast<uint64_t>(client), 2}), RngStream::kTask);
    return 50 + static_cast<int64_t>(std::min(std::exp(4 + random.normal()), 1000.0));
  }
  void load(int64_t client, ClientRows& rows) const override {
    make(client, num_samples(client), 0, rows);
  }
  const LabelledRows& test_rows() const override { return test_; }

 private:
  static constexpr int64_t kWidth = 60, kClasses = 10, kTestClients = 100, kTestRows = 10;

  void make(int64_t client, int64_t count, uint64_t part, ClientRows& rows) const {
    RngSequence model(hash64({seed_, static_cast<uint64_t>(client), 3}), RngStream::kTask);
    RngSequence noise(hash64({seed_, static_cast<uint64_t>(client), 4, part}), RngStream::kTask);
    const double u = std::sqrt(alpha_) * model.normal(), center = std::sqrt(beta_) * model.normal();
    std::vector<double> w(static_cast<size_t>(kWidth * kClasses)), b(kClasses), v(kWidth);
    for (double& x : w) x = u + model.normal();
    for (double& x : b) x = u + model.normal();
    for (double& x : v) x = center + model.normal();
    rows.features_NF.clear();
    rows.labels_N.clear();
    for (int64_t i = 0; i < count; ++i) {
      std::vector<double> scores = b;
      for (int64_t j = 0; j < kWidth; ++j) {
        const double x =
            v[static_cast<size_t>(j)] + noise.normal() * std::pow(static_cast<double>(j + 1), -0.6);
        rows.features_NF.push_back(static_cast<float>(x));
        for (int64_t c = 0; c < kClasses; ++c) {
          scores[static_cast<size_t>(c)] += x * w[static_cast<size_t>(c * kWidth + j)];
        }
      }
      rows.labels_N.push_back(
          static_cast<int32_t>(std::max_element(scores.begin(), scores.end()) - scores.begin()));
    }
  }

  double alpha_, beta_;
  int64_t num_clients_;
  uint64_t seed_;
  LabelledRows test_;
};

LabelledRows picked(const LabelledRows& all, std::span<const int32_t> rows) {
  LabelledRows part{.num_features = all.num_features, .num_classes = all.num_classes};
  for (const int32_t row : rows) {
    const auto begin = all.features_MF.begin() + row * all.num_features;
    part.features_MF.insert(part.features_MF.end(), begin, begin + all.num_features);
    part.labels_M.push_back(all.labels_M[static_cast<size_t>(row)]);
    if (!all.owners_M.empty()) part.owners_M.push_back(all.owners_M[static_cast<size_t>(row)]);
  }
  return part;
}

Result<LabelledRows> make_rows(const FederatedDataConfig& data, bool has_owners, uint64_t seed) {
  switch (data.kind) {
    case DataKind::kDigits:
      return read_csv(data.path.empty() ? ".deps/data/digits.csv" : data.path, 16, false);
    case DataKind::kMnist1d:
      return make_mnist1d(data.num_samples, seed);
    case DataKind::kCsv:
      return read_csv(data.path, 1, has_owners);
    case DataKind::kSynthetic:
      break;
  }
  GRADUS_CHECK(false, "synthetic data makes its own rows");
}

// Clients of the data by the order of their ids; exactly num_clients of them must be there.
Result<Parts> owner_parts(const LabelledRows& rows, int64_t num_clients) {
  std::map<int64_t, std::vector<int32_t>> by_owner;
  for (size_t i = 0; i < rows.owners_M.size(); ++i) {
    by_owner[rows.owners_M[i]].push_back(static_cast<int32_t>(i));
  }
  if (static_cast<int64_t>(by_owner.size()) != num_clients) {
    return invalid_argument(
        "federated.clients.num_clients is {}, but the training rows have {} clients; set it to "
        "that",
        num_clients, by_owner.size());
  }
  Parts parts;
  for (auto& [owner, part] : by_owner) parts.push_back(std::move(part));
  return parts;
}

}  // namespace

Result<LabelledRows> read_csv(const std::string& path, double scale, bool has_owners) {
  std::ifstream file(path);
  if (!file) {
    return not_found("{}: cannot open: {}{}", path, std::strerror(errno),
                     path == ".deps/data/digits.csv" ? "; run tools/fetch_digits" : "");
  }
  LabelledRows rows;
  int64_t line_number = 0;
  for (std::string line; std::getline(file, line);) {
    ++line_number;
    if (line.empty()) continue;
    std::vector<double> values;
    for (const char* at = line.data(); at < line.data() + line.size();) {
      double value = 0;
      const auto [end, error] = std::from_chars(at, line.data() + line.size(), value);
      if (error != std::errc() || !std::isfinite(value) ||
          (end < line.data() + line.size() && *end != ',' && *end != '\r')) {
        return invalid_argument("{}:{}: '{}' is no number", path, line_number,
                                line.substr(static_cast<size_t>(at - line.data()), 20));
      }
      values.push_back(value);
      at = end + 1;
    }
    const size_t begin = has_owners ? 1 : 0;
    if (values.size() < begin + 2) {
      return invalid_argument("{}:{}: {} columns; there must be features and a label", path,
                              line_number, values.size());
    }
    const auto width = static_cast<int64_t>(values.size() - begin - 1);
    if (rows.num_features == 0) rows.num_features = width;
    if (width != rows.num_features) {
      return invalid_argument("{}:{}: {} features; the first row has {}", path, line_number, width,
                              rows.num_features);
    }
    const double label = values.back();
    if (label < 0 || label != std::floor(label) || label > 1e6) {
      return invalid_argument("{}:{}: the label is {}; it must be an integer of at least 0", path,
                              line_number, label);
    }
    if (has_owners) rows.owners_M.push_back(static_cast<int64_t>(values[0]));
    for (size_t j = begin; j + 1 < values.size(); ++j) {
      rows.features_MF.push_back(static_cast<float>(values[j] / scale));
    }
    rows.labels_M.push_back(static_cast<int32_t>(label));
    rows.num_classes = std::max(rows.num_classes, static_cast<int64_t>(label) + 1);
  }
  if (rows.num_rows() < 2) return invalid_argument("{}: no rows", path);
  return rows;
}

Result<Parts> partition_rows(const PartitionConfig& config, std::span<const int32_t> labels,
                             int64_t num_classes, int64_t num_clients, uint64_t seed) {
  const auto count = static_cast<size_t>(num_clients);
  if (labels.size() < count) {
    return invalid_argument("federated.clients.num_clients is {}, but there are {} training rows",
                            num_clients, labels.size());
  }
  RngSequence random(hash64({seed, 0xD17}), RngStream::kShuffle);
  std::vector<int32_t> rows(labels.size());
  std::iota(rows.begin(), rows.end(), 0);
  switch (config.kind) {
    case PartitionKind::kIid:
    case PartitionKind::kFeatureShift: {
      shuffle(rows, random);
      Parts parts(count);
      for (size_t i = 0; i < rows.size(); ++i) parts[i % count].push_back(rows[i]);
      return parts;
    }
    case PartitionKind::kShards:
      return shard_parts(config, labels, count, random);
    case PartitionKind::kDirichlet:
    case PartitionKind::kQuantity:
      for (int64_t draw = 0; draw < kMaxDraws; ++draw) {
        Parts parts(count);
        if (config.kind == PartitionKind::kDirichlet) {
          parts = dirichlet_parts(config, labels, num_classes, count, random);
        } else {
          shuffle(rows, random);
          deal_out(rows, dirichlet_draw(config.beta, count, random), parts);
        }
        if (smallest(parts) >= static_cast<size_t>(config.min_samples)) return parts;
      }
      return invalid_argument(
          "federated.task.partition: {} draws with beta {} left a client below min_samples ({}) of "
          "{} rows for {} clients; take a larger beta, fewer clients or a smaller min_samples",
          kMaxDraws, config.beta, config.min_samples, labels.size(), num_clients);
    case PartitionKind::kNatural:
    case PartitionKind::kResampled:
      break;
  }
  GRADUS_CHECK(false, "this partition is not made of labels");
}

Result<std::unique_ptr<ClientData>> make_client_data(const FederatedDataConfig& data,
                                                     const PartitionConfig& partition,
                                                     int64_t num_clients, uint64_t seed) {
  if (data.kind == DataKind::kSynthetic) {
    return std::unique_ptr<ClientData>(std::make_unique<SyntheticData>(data, num_clients, seed));
  }
  const bool is_natural = partition.kind == PartitionKind::kNatural;
  const Result<LabelledRows> all = make_rows(data, is_natural, seed);
  if (!all.ok()) return all.status();
  std::vector<int32_t> order(static_cast<size_t>(all->num_rows()));
  std::iota(order.begin(), order.end(), 0);
  RngSequence random(hash64({seed, 0x5E7}), RngStream::kShuffle);
  shuffle(order, random);
  const auto num_test = static_cast<size_t>(
      std::max(1.0, std::floor(data.test_fraction * static_cast<double>(order.size()))));
  LabelledRows test = picked(*all, std::span(order).subspan(0, num_test));
  LabelledRows train = picked(*all, std::span(order).subspan(num_test));
  if (partition.kind == PartitionKind::kResampled) {
    return std::unique_ptr<ClientData>(std::make_unique<ResampledData>(
        std::move(train), std::move(test), num_clients, partition.samples_per_client, seed));
  }
  Result<Parts> parts =
      is_natural ? owner_parts(train, num_clients)
                 : partition_rows(partition, train.labels_M, train.num_classes, num_clients, seed);
  if (!parts.ok()) return parts.status();
  const double shift = partition.kind == PartitionKind::kFeatureShift ? partition.shift : 0;
  return std::unique_ptr<ClientData>(std::make_unique<TableData>(std::move(train), std::move(test),
                                                                 std::move(*parts), shift, seed));
}

}  // namespace gradus::federated
