// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "comm/communicator.h"
#include "model/parameters.h"

namespace gradus::trainer {

// Floats [first, end) of one weight of a layout.
struct WeightPiece {
  size_t place = 0;  // index in WeightLayout::places
  int64_t first = 0, end = 0;
};

// Every weight of a layout in one piece.
std::vector<WeightPiece> whole_pieces(const model::WeightLayout& layout);

// How the flat buffers of a model, weights, gradients and moments, are shared out over the ranks of
// a run (ZeRO: Rajbhandari et al. 2020, arXiv:1910.02054; here each buffer keeps its layout and
// takes memory for what a rank holds, docs/decisions/0009-zero-by-pages.md). The buffer is cut into
// units: the embedding, each layer, and the final norm with an untied head. Of every unit each rank
// has a slice, cut where the sums of squares of a weight are (kernels::kSquaresBlock), so that the
// norm of a gradient has the bits of one rank. Not thread-safe.
class WeightShards {
 public:
  struct Unit {
    int64_t begin = 0, end = 0;   // floats of the buffer
    std::vector<int64_t> bounds;  // of the ranks' slices, from `begin`: [ranks + 1]
  };

  WeightShards(const model::ParameterLayout& layout, comm::Communicator& communicator);

  int num_units() const { return static_cast<int>(units_.size()); }
  const Unit& unit(int index) const { return units_[static_cast<size_t>(index)]; }
  static constexpr int kEmbedding = 0;
  int layer(int64_t index) const { return static_cast<int>(index) + 1; }
  int tail() const { return num_units() - 1; }  // the final norm, and the head unless tied
  bool is_tied() const { return is_tied_; }

  // This rank's slices, as pieces of weights, in the order of the buffer.
  const std::vector<WeightPiece>& own_pieces() const { return own_pieces_; }
  int64_t own_size() const { return own_size_; }  // floats

  // A unit, and this rank's slice of it, of a buffer of the layout.
  std::span<float> values(float* buffer, int unit) const;
  std::span<float> own_values(float* buffer, int unit) const;

  // Brings the slices of a unit together on all ranks: start_gather() posts this rank's, so that
  // they travel while the layer before is computed; finish_gather() takes those of the others. Both
  // are collective, in the same order of units on all ranks.
  void start_gather(const float* buffer, int unit);
  void finish_gather(float* buffer, int unit);
  // Of all units.
  void gather(float* buffer);

  // Sums a unit over ranks along the tree (comm::reduce_scatter_tree); what is valid afterwards is
  // this rank's slice. `scratch` has the size of the unit.
  void reduce_scatter(float* buffer, int unit, std::span<float> scratch);

  // Gives the memory of the other ranks' slices back, to be zeros when next touched; or, locked,
  // not to be touched until unlock_others().
  void release_others(float* buffer, int unit) const;
  void lock_others(float* buffer, int unit) const;
  void unlock_others(float* buffer, int unit) const;

  // Squares of the gradient by weight, from its slices on all ranks: the sums that
  // kernels::sum_of_squares gives of whole weights. The same on all ranks.
  std::vector<double> sums_of_squares(const float* gradient) const;

 private:
  std::vector<std::span<float>> others(float* buffer, int unit) const;

  const model::ParameterLayout& layout_;
  comm::Communicator& communicator_;
  bool is_tied_;
  int slice_;  // of this rank in every unit
  std::vector<Unit> units_;
  std::vector<WeightPiece> own_pieces_;
  int64_t own_size_ = 0;
};

}  // namespace gradus::trainer
