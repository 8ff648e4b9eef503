// SPDX-License-Identifier: Apache-2.0
#include "comm/weight_channel.h"

#include <algorithm>
#include <cstring>

namespace gradus::comm {
namespace {

// Goes before the buckets of one version.
struct Announcement {
  WeightStamp stamp;
  WeightStamp base;  // what the receiver must hold already; unused without has_base
  uint64_t has_base = 0;
  uint64_t num_floats = 0;  // of the whole buffer
  uint64_t num_buckets = 0;
};

// Before the floats of a bucket.
struct BucketPlace {
  uint64_t offset = 0;
};

template <class Plain>
std::string bytes_of(const Plain& plain) {
  return {reinterpret_cast<const char*>(&plain), sizeof(Plain)};
}

// Neighbouring tensors in pieces of at most `max_floats`.
std::vector<TensorRange> buckets_of(const std::vector<TensorRange>& tensors, int64_t max_floats) {
  std::vector<TensorRange> buckets;
  for (const TensorRange& tensor : tensors) {
    for (int64_t done = 0; done < tensor.size;) {
      const int64_t begin = tensor.offset + done;
      const bool continues = !buckets.empty() &&
                             buckets.back().offset + buckets.back().size == begin &&
                             buckets.back().size < max_floats;
      if (!continues) buckets.push_back({begin, 0});
      const int64_t count = std::min(tensor.size - done, max_floats - buckets.back().size);
      buckets.back().size += count;
      done += count;
    }
  }
  return buckets;
}

}  // namespace

WeightSender::WeightSender(Communicator& communicator, std::vector<TensorRange> tensors,
                           WeightChannelOptions options)
    : communicator_(communicator), tensors_(std::move(tensors)), options_(options) {
  GRADUS_CHECK(options_.bucket_bytes >= static_cast<int64_t>(sizeof(float)), "bucket_bytes");
}

void WeightSender::send(std::span<const float> weights, WeightStamp stamp,
                        std::span<const int> receivers) {
  num_bytes_sent_ = 0;
  std::vector<TensorRange> changed;
  for (const TensorRange& tensor : tensors_) {
    const size_t offset = static_cast<size_t>(tensor.offset);
    const size_t num_bytes = static_cast<size_t>(tensor.size) * sizeof(float);
    GRADUS_CHECK(offset + static_cast<size_t>(tensor.size) <= weights.size(),
                 "a tensor lies outside the weights");
    const bool is_new =
        last_.empty() || std::memcmp(&weights[offset], &last_[offset], num_bytes) != 0;
    if (is_new) changed.push_back(tensor);
  }
  const int64_t max_floats = options_.bucket_bytes / static_cast<int64_t>(sizeof(float));
  for (const int receiver : receivers) {
    const bool has_last =
        std::find(has_last_.begin(), has_last_.end(), receiver) != has_last_.end();
    const std::vector<TensorRange> buckets = buckets_of(has_last ? changed : tensors_, max_floats);
    communicator_.post(bytes_of(Announcement{stamp, last_stamp_, has_last ? 1u : 0u, weights.size(),
                                             buckets.size()}),
                       receiver, Tag::kWeights);
    for (const TensorRange& bucket : buckets) {
      std::string bytes = bytes_of(BucketPlace{static_cast<uint64_t>(bucket.offset)});
      bytes.append(reinterpret_cast<const char*>(&weights[static_cast<size_t>(bucket.offset)]),
                   static_cast<size_t>(bucket.size) * sizeof(float));
      num_bytes_sent_ += static_cast<int64_t>(bytes.size());
      communicator_.post(std::move(bytes), receiver, Tag::kWeights);
    }
  }
  if (options_.only_changed) {
    last_.assign(weights.begin(), weights.end());
    last_stamp_ = stamp;
    has_last_.assign(receivers.begin(), receivers.end());
  }
}

WeightReceiver::WeightReceiver(Communicator& communicator, int sender, WeightHash hash)
    : communicator_(communicator), sender_(sender), hash_(std::move(hash)) {}

Result<WeightStamp> WeightReceiver::receive(std::span<float> weights) {
  Result<Message> first = communicator_.wait(Tag::kWeights, sender_, "weights of the trainer");
  if (!first.ok()) return first.status();
  Announcement announcement;
  if (first->bytes.size() != sizeof(announcement)) {
    return data_loss("weights are announced by {} bytes, expected {}", first->bytes.size(),
                     sizeof(announcement));
  }
  std::memcpy(&announcement, first->bytes.data(), sizeof(announcement));
  const WeightStamp& stamp = announcement.stamp;
  if (announcement.num_floats != weights.size()) {
    return data_loss("weights of version {} are {} floats, this rank's model has {}", stamp.version,
                     announcement.num_floats, weights.size());
  }
  if (announcement.has_base != 0 && !(announcement.base == last_)) {
    return data_loss(
        "the changes to version {} are against version {} (hash {:016x}), this rank holds version "
        "{} (hash {:016x})",
        stamp.version, announcement.base.version, announcement.base.hash, last_.version,
        last_.hash);
  }
  for (uint64_t i = 0; i < announcement.num_buckets; ++i) {
    Result<Message> bucket = communicator_.wait(Tag::kWeights, sender_, "weights of the trainer");
    if (!bucket.ok()) return bucket.status();
    BucketPlace place;
    if (bucket->bytes.size() < sizeof(place)) return data_loss("a bucket of weights has no place");
    std::memcpy(&place, bucket->bytes.data(), sizeof(place));
    const size_t num_bytes = bucket->bytes.size() - sizeof(place);
    if (place.offset > weights.size() ||
        num_bytes / sizeof(float) > weights.size() - place.offset) {
      return data_loss("a bucket of weights goes to {} of {} floats", place.offset, weights.size());
    }
    std::memcpy(&weights[place.offset], bucket->bytes.data() + sizeof(place), num_bytes);
  }
  const uint64_t hash = hash_(weights);
  if (hash != stamp.hash) {
    return data_loss(
        "weights of version {} arrived with hash {:016x}, rank {} sent hash {:016x}; they were "
        "changed on the way, or the ranks do not run the same binary",
        stamp.version, hash, communicator_.first_world_rank() + sender_, stamp.hash);
  }
  last_ = stamp;
  return stamp;
}

}  // namespace gradus::comm
