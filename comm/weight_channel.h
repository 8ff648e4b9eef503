// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "comm/communicator.h"

namespace gradus::comm {

// Which weights these are: the number of updates they have seen, and a hash of their bits.
struct WeightStamp {
  uint64_t version = 0;
  uint64_t hash = 0;
  bool operator==(const WeightStamp&) const = default;
};

// A tensor inside the flat buffer of all weights.
struct TensorRange {
  int64_t offset = 0, size = 0;  // floats
};

struct WeightChannelOptions {
  int64_t bucket_bytes = int64_t{16} << 20;  // of one message
  bool only_changed = false;                 // leave tensors out that the receiver already has
};

using WeightHash = std::function<uint64_t(std::span<const float>)>;

// The way of weights from a trainer to ranks that only sample. Ranks that share a buffer with the
// trainer need none: there is nothing to copy. Messages are posted (Communicator::post) to each
// receiver by itself, so that a dead one holds nobody up. Not thread-safe.
class WeightSender {
 public:
  // `tensors` cover what is sent, ascending.
  WeightSender(Communicator& communicator, std::vector<TensorRange> tensors,
               WeightChannelOptions options);

  // Starts to send `weights` to `receivers`; the bytes are copied. With `only_changed` a copy of
  // the last weights is kept, and a receiver that had those gets what differs from them.
  void send(std::span<const float> weights, WeightStamp stamp, std::span<const int> receivers);

  int64_t num_bytes_sent() const { return num_bytes_sent_; }  // in the last call, to all receivers

 private:
  Communicator& communicator_;
  std::vector<TensorRange> tensors_;
  WeightChannelOptions options_;
  std::vector<float> last_;
  WeightStamp last_stamp_;
  std::vector<int> has_last_;  // receivers that were sent `last_`
  int64_t num_bytes_sent_ = 0;
};

class WeightReceiver {
 public:
  WeightReceiver(Communicator& communicator, int sender, WeightHash hash);

  // Waits for the next weights and writes them over `weights`, which hold those of the call before.
  // DataLoss, naming both hashes, if what came is not what was sent; Unavailable if the sender
  // died.
  Result<WeightStamp> receive(std::span<float> weights);

 private:
  Communicator& communicator_;
  const int sender_;
  WeightHash hash_;
  WeightStamp last_;
};

}  // namespace gradus::comm
