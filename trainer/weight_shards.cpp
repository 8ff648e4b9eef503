// SPDX-License-Identifier: Apache-2.0
#include "trainer/weight_shards.h"

#include <algorithm>
#include <cstring>

#include "common/check.h"
#include "common/parallel.h"
#include "common/residency.h"
#include "kernels/optimizer.h"

namespace gradus::trainer {
namespace {

constexpr char kGather[] = "weights of a layer";

// Where a unit may be cut: the first float of every block of squares, and the end.
std::vector<int64_t> cuts_of(const model::ParameterLayout& layout, int64_t begin, int64_t end) {
  std::vector<int64_t> cuts;
  for (const model::ParameterPlace& place : layout.places) {
    if (place.offset < begin || place.offset >= end) continue;
    for (int64_t i = 0; i < place.size; i += kernels::kSquaresBlock) {
      cuts.push_back(place.offset + i - begin);
    }
  }
  cuts.push_back(end - begin);
  return cuts;
}

// `count` slices of about equal size.
std::vector<int64_t> bounds_of(const std::vector<int64_t>& cuts, int64_t count) {
  std::vector<int64_t> bounds = {0};
  const int64_t size = cuts.back();
  for (int64_t i = 1; i < count; ++i) {
    const int64_t wanted = size * i / count;
    const auto above = std::lower_bound(cuts.begin(), cuts.end(), wanted);
    const bool is_below_nearer =
        above != cuts.begin() && wanted - *std::prev(above) < *above - wanted;
    bounds.push_back(std::max(bounds.back(), is_below_nearer ? *std::prev(above) : *above));
  }
  bounds.push_back(size);
  return bounds;
}

}  // namespace

std::vector<WeightPiece> whole_pieces(const model::WeightLayout& layout) {
  std::vector<WeightPiece> pieces;
  for (size_t i = 0; i < layout.places.size(); ++i) pieces.push_back({i, 0, layout.places[i].size});
  return pieces;
}

WeightShards::WeightShards(const model::ParameterLayout& layout, comm::Communicator& communicator)
    : layout_(layout),
      communicator_(communicator),
      is_tied_(layout.head == layout.embedding),
      slice_(comm::tree_slice(communicator.rank(), communicator.size())) {
  std::vector<int64_t> begins = {0};
  for (const model::LayerPlaces& layer : layout.layers) begins.push_back(layer.attention_norm);
  begins.push_back(layout.final_norm);
  begins.push_back(layout.size);
  for (size_t i = 0; i + 1 < begins.size(); ++i) {
    Unit unit{begins[i], begins[i + 1], {}};
    unit.bounds = bounds_of(cuts_of(layout, unit.begin, unit.end), communicator.size());
    units_.push_back(std::move(unit));
  }
  for (const Unit& unit : units_) {
    const int64_t begin = unit.begin + unit.bounds[static_cast<size_t>(slice_)];
    const int64_t end = unit.begin + unit.bounds[static_cast<size_t>(slice_) + 1];
    own_size_ += end - begin;
    for (size_t i = 0; i < layout.places.size(); ++i) {
      const model::ParameterPlace& place = layout.places[i];
      const int64_t first = std::max<int64_t>(0, begin - place.offset);
      const int64_t last = std::min(place.size, end - place.offset);
      if (first < last) own_pieces_.push_back({i, first, last});
    }
  }
}

std::span<float> WeightShards::values(float* buffer, int unit) const {
  const Unit& part = this->unit(unit);
  return {buffer + part.begin, static_cast<size_t>(part.end - part.begin)};
}

std::span<float> WeightShards::own_values(float* buffer, int unit) const {
  const std::vector<int64_t>& bounds = this->unit(unit).bounds;
  const size_t slice = static_cast<size_t>(slice_);
  return values(buffer, unit)
      .subspan(static_cast<size_t>(bounds[slice]),
               static_cast<size_t>(bounds[slice + 1] - bounds[slice]));
}

void WeightShards::start_gather(const float* buffer, int unit) {
  const std::span<const float> mine = own_values(const_cast<float*>(buffer), unit);
  if (mine.empty()) return;
  for (int i = 1; i < communicator_.size(); ++i) {
    // Each rank begins with another receiver.
    const int receiver = (communicator_.rank() + i) % communicator_.size();
    communicator_.post({reinterpret_cast<const char*>(mine.data()), mine.size_bytes()}, receiver,
                       comm::Tag::kTree);
  }
}

void WeightShards::finish_gather(float* buffer, int unit) {
  const std::vector<int64_t>& bounds = this->unit(unit).bounds;
  const std::span<float> all = values(buffer, unit);
  for (int i = 1; i < communicator_.size(); ++i) {
    const int sender = (communicator_.rank() + communicator_.size() - i) % communicator_.size();
    const size_t slice = static_cast<size_t>(comm::tree_slice(sender, communicator_.size()));
    const std::span<float> theirs = all.subspan(
        static_cast<size_t>(bounds[slice]), static_cast<size_t>(bounds[slice + 1] - bounds[slice]));
    if (theirs.empty()) continue;
    const Result<comm::Message> message = communicator_.wait(comm::Tag::kTree, sender, kGather);
    GRADUS_CHECK(message.ok(), message.status().message());
    GRADUS_CHECK(message->bytes.size() == theirs.size_bytes(),
                 fmt::format("a slice of {} bytes came from rank {}, expected {}",
                             message->bytes.size(), sender, theirs.size_bytes()));
    std::memcpy(theirs.data(), message->bytes.data(), theirs.size_bytes());
  }
}

void WeightShards::gather(float* buffer) {
  start_gather(buffer, 0);
  for (int i = 0; i < num_units(); ++i) {
    if (i + 1 < num_units()) start_gather(buffer, i + 1);
    finish_gather(buffer, i);
  }
}

void WeightShards::reduce_scatter(float* buffer, int unit, std::span<float> scratch) {
  comm::reduce_scatter_tree(communicator_, values(buffer, unit), this->unit(unit).bounds, scratch,
                            "sum of gradients");
}

// The parts of a unit before and behind this rank's slice.
std::vector<std::span<float>> WeightShards::others(float* buffer, int unit) const {
  const std::span<float> all = values(buffer, unit), mine = own_values(buffer, unit);
  const size_t before = static_cast<size_t>(mine.data() - all.data());
  return {all.first(before), all.subspan(before + mine.size())};
}

void WeightShards::release_others(float* buffer, int unit) const {
  for (const std::span<float> part : others(buffer, unit)) release_pages(part);
}

void WeightShards::lock_others(float* buffer, int unit) const {
  for (const std::span<float> part : others(buffer, unit)) release_and_lock_pages(part);
}

void WeightShards::unlock_others(float* buffer, int unit) const {
  for (const std::span<float> part : others(buffer, unit)) unlock_pages(part);
}

std::vector<double> WeightShards::sums_of_squares(const float* gradient) const {
  // Sums of this rank's blocks; the slices of a unit begin with blocks.
  std::vector<float> mine;
  for (const WeightPiece& piece : own_pieces_) {
    const float* values = gradient + layout_.places[piece.place].offset;
    const size_t first = mine.size();
    const int64_t num_blocks =
        (piece.end - piece.first + kernels::kSquaresBlock - 1) / kernels::kSquaresBlock;
    mine.resize(first + static_cast<size_t>(num_blocks));
    parallel_for(num_blocks, 16, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t at = piece.first + i * kernels::kSquaresBlock;
        mine[first + static_cast<size_t>(i)] = static_cast<float>(
            kernels::sum_of_squares(values + at, std::min(kernels::kSquaresBlock, piece.end - at)));
      }
    });
  }
  std::vector<std::vector<float>> by_slice(static_cast<size_t>(communicator_.size()));
  const std::vector<std::string> all = communicator_.all_gather(
      std::string(reinterpret_cast<const char*>(mine.data()), mine.size() * sizeof(float)),
      "norm of the gradient");
  for (int rank = 0; rank < communicator_.size(); ++rank) {
    const std::string& bytes = all[static_cast<size_t>(rank)];
    std::vector<float>& sums =
        by_slice[static_cast<size_t>(comm::tree_slice(rank, communicator_.size()))];
    sums.resize(bytes.size() / sizeof(float));
    if (!bytes.empty()) std::memcpy(sums.data(), bytes.data(), bytes.size());
  }
  // In the order of the buffer: unit by unit, slice by slice.
  std::vector<size_t> taken(by_slice.size(), 0);
  std::vector<double> sums(layout_.places.size(), 0.0);
  size_t place = 0;
  int64_t at = 0;  // in the place
  for (const Unit& unit : units_) {
    for (size_t slice = 0; slice < by_slice.size(); ++slice) {
      int64_t left = unit.bounds[slice + 1] - unit.bounds[slice];
      while (left > 0) {
        const int64_t size = std::min(kernels::kSquaresBlock, layout_.places[place].size - at);
        sums[place] += double{by_slice[slice][taken[slice]++]};
        left -= size;
        at += size;
        if (at == layout_.places[place].size) {
          ++place;
          at = 0;
        }
      }
    }
  }
  return sums;
}

}  // namespace gradus::trainer
