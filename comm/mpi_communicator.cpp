// SPDX-License-Identifier: Apache-2.0
#include <mpi.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <utility>

#include "comm/communicator.h"

namespace gradus::comm {
namespace {

bool is_mpi_up() {
  int is_up = 0, is_down = 0;
  MPI_Initialized(&is_up);
  MPI_Finalized(&is_down);
  return is_up != 0 && is_down == 0;
}

// Errors of blocking operations. Those of posted messages have no echo here: a peer that died is
// found by the watchdog, and the run may go on without it.
void must(int code) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(code, text, &length);
  GRADUS_CHECK(false, kTransportFailed + std::string(text));
}

// Bytes of a posted message that go at once; also the unit in which they count as moving.
constexpr size_t kPartBytes = size_t{16} << 20;
// Floats in one part of a blocking transfer.
constexpr size_t kPartFloats = kPartBytes / sizeof(float);
// Gathered texts longer than this go rank by rank, since MPI counts their sum in an int.
constexpr int64_t kMaxGatheredBytes = int64_t{1} << 30;

// Posted messages and sized ones do not mix.
int sized_tag(Tag tag) { return 2 * static_cast<int>(tag); }
int posted_tag(Tag tag) { return 2 * static_cast<int>(tag) + 1; }

class MpiCommunicator : public Communicator {
 public:
  // Takes `comm` over, unless it is the world.
  MpiCommunicator(MPI_Comm comm, int first_world_rank, int local_size, std::shared_ptr<Watch> watch)
      : Communicator(std::move(watch)),
        comm_(comm),
        first_world_rank_(first_world_rank),
        local_size_(local_size) {
    MPI_Comm_rank(comm_, &rank_);
    MPI_Comm_size(comm_, &size_);
  }
  ~MpiCommunicator() override {
    // A lost rank would be waited for.
    if (comm_ != MPI_COMM_WORLD && is_mpi_up() && watch().num_lost() == 0) MPI_Comm_free(&comm_);
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  int local_size() const override { return local_size_; }
  int first_world_rank() const override { return first_world_rank_; }

 private:
  struct Outgoing {
    int to;
    MPI_Request request;
    std::shared_ptr<const std::string> bytes;
  };
  struct Part {
    std::string bytes;
    MPI_Request request = MPI_REQUEST_NULL;
  };
  // A posted message of which some parts have come, and those on their way.
  struct Incoming {
    std::string bytes;
    uint64_t num_missing = 0;
    std::deque<std::unique_ptr<Part>> parts;
  };

  void do_barrier() override { must(MPI_Barrier(comm_)); }

  std::vector<std::string> do_all_gather(const std::string& text) override {
    const size_t count = static_cast<size_t>(size_);
    const int64_t length = static_cast<int64_t>(text.size());
    std::vector<int64_t> lengths(count);
    must(MPI_Allgather(&length, 1, MPI_INT64_T, lengths.data(), 1, MPI_INT64_T, comm_));
    int64_t total = 0;
    for (const int64_t one : lengths) total += one;
    return total <= kMaxGatheredBytes ? gather_at_once(text, lengths, total)
                                      : gather_by_rank(text, lengths);
  }
  std::vector<std::string> gather_at_once(const std::string& text,
                                          const std::vector<int64_t>& lengths, int64_t total) {
    std::vector<int> counts(lengths.begin(), lengths.end()), offsets(lengths.size());
    for (size_t i = 1; i < counts.size(); ++i) offsets[i] = offsets[i - 1] + counts[i - 1];
    std::string joined(static_cast<size_t>(total), '\0');
    must(MPI_Allgatherv(text.data(), static_cast<int>(text.size()), MPI_CHAR, joined.data(),
                        counts.data(), offsets.data(), MPI_CHAR, comm_));
    std::vector<std::string> texts;
    for (size_t i = 0; i < counts.size(); ++i) {
      texts.push_back(
          joined.substr(static_cast<size_t>(offsets[i]), static_cast<size_t>(counts[i])));
    }
    return texts;
  }
  std::vector<std::string> gather_by_rank(const std::string& text,
                                          const std::vector<int64_t>& lengths) {
    std::vector<std::string> texts;
    for (int root = 0; root < size_; ++root) {
      texts.push_back(root == rank_ ? text : std::string());
      std::string& one = texts.back();
      one.resize(static_cast<size_t>(lengths[static_cast<size_t>(root)]));
      for (size_t i = 0; i < one.size(); i += kPartBytes) {
        must(MPI_Bcast(one.data() + i, static_cast<int>(std::min(kPartBytes, one.size() - i)),
                       MPI_CHAR, root, comm_));
        watch().moved();
      }
    }
    return texts;
  }

  // Calls `transfer(data, count)` for one part after the other.
  template <class Float, class Transfer>
  void in_parts(std::span<Float> values, const Transfer& transfer) {
    for (size_t i = 0; i < values.size(); i += kPartFloats) {
      const std::span<Float> part = values.subspan(i, std::min(kPartFloats, values.size() - i));
      transfer(part.data(), static_cast<int>(part.size()));
      watch().moved();
    }
  }
  void do_broadcast(std::span<float> values, int root) override {
    in_parts(values,
             [&](float* data, int count) { must(MPI_Bcast(data, count, MPI_FLOAT, root, comm_)); });
  }
  void do_send(std::span<const float> values, int to, Tag tag) override {
    in_parts(values, [&](const float* data, int count) {
      must(MPI_Send(data, count, MPI_FLOAT, to, sized_tag(tag), comm_));
    });
  }
  void do_receive(std::span<float> values, int from, Tag tag) override {
    in_parts(values, [&](float* data, int count) {
      must(MPI_Recv(data, count, MPI_FLOAT, from, sized_tag(tag), comm_, MPI_STATUS_IGNORE));
    });
  }

  void do_swap(std::span<const float> mine, std::span<float> theirs, int peer, Tag tag) override {
    const auto part = [](size_t size, size_t begin) {
      return std::min(kPartFloats, size - std::min(size, begin));
    };
    for (size_t i = 0; i < std::max(mine.size(), theirs.size()); i += kPartFloats) {
      const size_t num_sent = part(mine.size(), i), num_received = part(theirs.size(), i);
      must(MPI_Sendrecv(mine.data() + std::min(i, mine.size()), static_cast<int>(num_sent),
                        MPI_FLOAT, peer, sized_tag(tag), theirs.data() + std::min(i, theirs.size()),
                        static_cast<int>(num_received), MPI_FLOAT, peer, sized_tag(tag), comm_,
                        MPI_STATUS_IGNORE));
      watch().moved();
    }
  }

  // A posted message is its length, in 8 bytes, and then its parts.
  void do_post(std::string bytes, int to, Tag tag) override {
    const uint64_t length = bytes.size();
    post_part(
        std::make_shared<const std::string>(reinterpret_cast<const char*>(&length), sizeof(length)),
        0, sizeof(length), to, tag);
    const auto shared = std::make_shared<const std::string>(std::move(bytes));
    for (size_t i = 0; i < shared->size(); i += kPartBytes) {
      post_part(shared, i, std::min(kPartBytes, shared->size() - i), to, tag);
    }
  }
  void post_part(const std::shared_ptr<const std::string>& bytes, size_t offset, size_t count,
                 int to, Tag tag) {
    Outgoing& part = outgoing_.emplace_back(Outgoing{to, MPI_REQUEST_NULL, bytes});
    MPI_Isend(bytes->data() + offset, static_cast<int>(count), MPI_CHAR, to, posted_tag(tag), comm_,
              &part.request);
  }
  // Parts for lost ranks are kept for good: the library may still read them.
  bool do_is_flushed() override {
    const auto is_gone = [](Outgoing& part) {
      int is_done = 0;
      MPI_Test(&part.request, &is_done, MPI_STATUS_IGNORE);
      return is_done != 0;
    };
    const size_t before = outgoing_.size();
    outgoing_.erase(std::remove_if(outgoing_.begin(), outgoing_.end(), is_gone), outgoing_.end());
    if (outgoing_.size() < before) watch().moved();
    return std::all_of(outgoing_.begin(), outgoing_.end(),
                       [&](const Outgoing& part) { return is_lost(part.to); });
  }

  // Never blocks, not even for a part whose sender is away: a receive is begun and looked at again.
  std::optional<Message> do_poll(Tag tag, int from) override {
    do_is_flushed();
    for (;;) {
      for (auto& [key, incoming] : incoming_) {
        const auto& [sender, its_tag] = key;
        if (its_tag != tag || (from != kAnyRank && from != sender)) continue;
        if (std::optional<std::string> whole = finish_part(incoming)) {
          return Message{sender, std::move(*whole)};
        }
      }
      if (!begin_part(tag, from)) return std::nullopt;
    }
  }
  // Takes the next part that has come from a sender whose last one is done; false if there is none.
  bool begin_part(Tag tag, int from) {
    int has_come = 0, count = 0;
    MPI_Status status;
    MPI_Message message;
    MPI_Improbe(from == kAnyRank ? MPI_ANY_SOURCE : from, posted_tag(tag), comm_, &has_come,
                &message, &status);
    if (has_come == 0) return false;
    MPI_Get_count(&status, MPI_CHAR, &count);
    Incoming& incoming = incoming_[{status.MPI_SOURCE, tag}];
    incoming.parts.emplace_back(std::make_unique<Part>());
    Part& part = *incoming.parts.back();
    part.bytes.resize(static_cast<size_t>(count));
    MPI_Imrecv(part.bytes.data(), count, MPI_CHAR, &message, &part.request);
    return true;
  }
  // Appends the parts that are whole; the message if it is.
  std::optional<std::string> finish_part(Incoming& incoming) {
    while (!incoming.parts.empty()) {
      Part& part = *incoming.parts.front();
      int is_done = 0;
      MPI_Test(&part.request, &is_done, MPI_STATUS_IGNORE);
      if (is_done == 0) return std::nullopt;
      watch().moved();
      if (incoming.num_missing == 0) {
        GRADUS_CHECK(part.bytes.size() == sizeof(uint64_t), "a message begins with its length");
        std::memcpy(&incoming.num_missing, part.bytes.data(), sizeof(uint64_t));
        incoming.bytes.clear();
      } else {
        GRADUS_CHECK(part.bytes.size() <= incoming.num_missing, "a message is too long");
        incoming.num_missing -= part.bytes.size();
        incoming.bytes += part.bytes;
      }
      incoming.parts.pop_front();
      if (incoming.num_missing == 0) return std::move(incoming.bytes);
    }
    return std::nullopt;
  }

  std::unique_ptr<Communicator> do_subset(int first, int count) const override {
    MPI_Group all, some;
    MPI_Comm_group(comm_, &all);
    int range[1][3] = {{first, first + count - 1, 1}};
    MPI_Group_range_incl(all, 1, range, &some);
    MPI_Comm comm = MPI_COMM_NULL;
    must(MPI_Comm_create_group(comm_, some, 0, &comm));
    MPI_Group_free(&some);
    MPI_Group_free(&all);
    return std::make_unique<MpiCommunicator>(comm, first_world_rank_ + first, local_size_,
                                             shared_watch());
  }

  MPI_Comm comm_;
  const int first_world_rank_, local_size_;
  int rank_ = 0, size_ = 1;
  std::vector<Outgoing> outgoing_;
  std::map<std::pair<int, Tag>, Incoming> incoming_;
};

std::unique_ptr<Communicator> world() {
  MPI_Comm host;
  int rank = 0, local_size = 1;
  MPI_Comm_set_errhandler(MPI_COMM_WORLD,
                          MPI_ERRORS_RETURN);  // communicators made of it inherit it
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &host);
  MPI_Comm_size(host, &local_size);
  MPI_Comm_free(&host);
  return std::make_unique<MpiCommunicator>(MPI_COMM_WORLD, 0, local_size,
                                           std::make_shared<Watch>(rank));
}

class SingleCommunicator : public Communicator {
 public:
  SingleCommunicator() : Communicator(std::make_shared<Watch>(0)) {}
  int rank() const override { return 0; }
  int size() const override { return 1; }
  int local_size() const override { return 1; }
  int first_world_rank() const override { return 0; }

 private:
  void do_barrier() override {}
  std::vector<std::string> do_all_gather(const std::string& text) override { return {text}; }
  void do_broadcast(std::span<float>, int) override {}
  // The callers above refuse any rank but another one.
  void do_send(std::span<const float>, int, Tag) override {}
  void do_receive(std::span<float>, int, Tag) override {}
  void do_swap(std::span<const float>, std::span<float>, int, Tag) override {}
  void do_post(std::string, int, Tag) override {}
  std::optional<Message> do_poll(Tag, int) override { return std::nullopt; }
  bool do_is_flushed() override { return true; }
  std::unique_ptr<Communicator> do_subset(int, int) const override {
    return std::make_unique<SingleCommunicator>();
  }
};

}  // namespace

bool is_launched_by_mpi() {
  // What Open MPI's mpirun, PMIx launchers (srun) and PMI ones set for the processes that they
  // start.
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK"}) {
    if (std::getenv(name) != nullptr) return true;
  }
  return false;
}

Result<std::unique_ptr<Communicator>> make_communicator() {
  if (!is_launched_by_mpi()) return std::unique_ptr<Communicator>(new SingleCommunicator());
  int provided = 0;
  if (MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided) != MPI_SUCCESS) {
    return unavailable("MPI does not start; run the same command without mpirun to use one rank");
  }
  return world();
}

void finalize() {
  if (is_mpi_up()) MPI_Finalize();
}

void abort_all_ranks(int exit_code) {
  if (is_mpi_up()) MPI_Abort(MPI_COMM_WORLD, exit_code);
}

int rank_for_messages() {
  int rank = 0;
  if (is_mpi_up()) MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  return rank;
}

}  // namespace gradus::comm
