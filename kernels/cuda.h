// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "common/status.h"
#include "kernels/stream.h"

namespace gradus::kernels {

namespace cuda {
struct CudaTable;
struct CudaDevice;
}  // namespace cuda

// The GPU, through libgradus_cuda.so, which the binary loads when a device is asked for: neither
// the library nor CUDA is needed to start. A handle to share by copy; the library stays loaded.
// Thread-safe as CUDA's own calls are.
class Cuda {
 public:
  // Loads the library, from `library` or, if that is empty, from beside the binary, and chooses a
  // device. NotFound or Unavailable says what is missing and how to get it: the library, the
  // driver, a device, one of compute capability 9.0 (H100, H200).
  static Result<Cuda> open(const std::string& library = "", int32_t device = 0);

  // For tests: a table that lives as long as the object, without a library or a device.
  static Cuda over_table(const cuda::CudaTable& table) { return Cuda(&table, 0, "no device"); }

  const cuda::CudaTable& table() const { return *table_; }
  int32_t device() const { return device_; }
  // One line: name, memory, versions.
  const std::string& description() const { return description_; }

 private:
  Cuda(const cuda::CudaTable* table, int32_t device, std::string description)
      : table_(table), device_(device), description_(std::move(description)) {}
  const cuda::CudaTable* table_;
  int32_t device_;
  std::string description_;
};

// The steps of open() that can say no, each its own function so that tests reach every message.
// `folder` is the binary's.
Result<std::string> find_cuda_library(const std::string& folder);
Result<const cuda::CudaTable*> load_cuda_library(const std::string& path);
Status check_cuda_table(const cuda::CudaTable& table, const std::string& path);
Status check_cuda_device(const cuda::CudaDevice& device);

// Memory on the device; released with the object. Move only.
class CudaBuffer {
 public:
  // Unavailable names the size asked for and what is free.
  static Result<CudaBuffer> allocate(const Cuda& cuda, size_t bytes);

  void* data() const { return data_.get(); }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_.get());
  }
  size_t bytes() const { return bytes_; }

  // Whole buffer or its first `bytes`; ordered on the default stream, done when they return.
  Status copy_from_host(const void* p, size_t bytes);
  Status copy_to_host(void* p, size_t bytes) const;
  Status fill(uint8_t byte);
  // The same without waiting, ordered on the default stream.
  Status enqueue_fill(uint8_t byte);

 private:
  struct Releaser {
    const cuda::CudaTable* table;
    void operator()(void* p) const;
  };
  CudaBuffer(std::unique_ptr<void, Releaser> data, size_t bytes)
      : data_(std::move(data)), bytes_(bytes) {}
  std::unique_ptr<void, Releaser> data_;
  size_t bytes_;
};

// Time on the device between two points of the default stream. Move only.
class CudaTimer {
 public:
  static Result<CudaTimer> create(const Cuda& cuda);
  Status begin();
  // Waits for the work enqueued since begin().
  Result<double> end_us();

 private:
  CudaTimer(const cuda::CudaTable* table, void* first, void* last)
      : table_(table), first_(first), last_(last) {}
  const cuda::CudaTable* table_;
  void* first_;  // events live as long as the process
  void* last_;
};

// A stream of its own, not ordered with the default one. Move only.
class CudaStream {
 public:
  static Result<CudaStream> create(const Cuda& cuda);

  Stream get() const { return stream_.get(); }
  Status synchronize() const;
  // Enqueues a copy between device memory and pinned host memory, either way.
  Status copy(void* to, const void* from, size_t bytes) const;

 private:
  struct Releaser {
    const cuda::CudaTable* table;
    void operator()(void* p) const;
  };
  explicit CudaStream(std::unique_ptr<void, Releaser> stream) : stream_(std::move(stream)) {}
  std::unique_ptr<void, Releaser> stream_;
};

// Work that was enqueued on a stream once, to be launched as one. Move only.
class CudaGraph {
 public:
  // Records what `enqueue` puts on the stream, without running it.
  static Result<CudaGraph> record(const Cuda& cuda, const CudaStream& stream,
                                  const std::function<Status()>& enqueue);
  Status launch(const CudaStream& stream) const;

 private:
  struct Releaser {
    const cuda::CudaTable* table;
    void operator()(void* p) const;
  };
  explicit CudaGraph(std::unique_ptr<void, Releaser> graph) : graph_(std::move(graph)) {}
  std::unique_ptr<void, Releaser> graph_;
};

// A point of a stream to wait for. Move only.
class CudaEvent {
 public:
  static Result<CudaEvent> create(const Cuda& cuda);
  Status record(const CudaStream& stream);
  Status wait() const;  // for the last record()

 private:
  struct Releaser {
    const cuda::CudaTable* table;
    void operator()(void* p) const;
  };
  explicit CudaEvent(std::unique_ptr<void, Releaser> event) : event_(std::move(event)) {}
  std::unique_ptr<void, Releaser> event_;
};

// Host memory that copies run from and to without waiting. Move only.
class PinnedBuffer {
 public:
  static Result<PinnedBuffer> allocate(const Cuda& cuda, size_t bytes);
  template <class T>
  T* as() const {
    return static_cast<T*>(data_.get());
  }
  size_t bytes() const { return bytes_; }

 private:
  struct Releaser {
    const cuda::CudaTable* table;
    void operator()(void* p) const;
  };
  PinnedBuffer(std::unique_ptr<void, Releaser> data, size_t bytes)
      : data_(std::move(data)), bytes_(bytes) {}
  std::unique_ptr<void, Releaser> data_;
  size_t bytes_;
};

// Copies to or from plain device memory, done when they return.
Status copy_to_device(const Cuda& cuda, void* to, const void* from, size_t bytes);
Status copy_to_host(const Cuda& cuda, void* to, const void* from, size_t bytes);

// Copies between device memory, or fills with zeros, on a stream, without waiting.
Status device_copy(const Cuda& cuda, void* to, const void* from, int64_t bytes, Stream stream);
Status device_zero(const Cuda& cuda, void* p, int64_t bytes, Stream stream);

// Memory of the device in bytes, whoever has taken it.
struct CudaMemory {
  int64_t total = 0, free = 0;
};
Result<CudaMemory> device_memory(const Cuda& cuda);

// Waits for all work; Unavailable carries the error of a kernel that failed.
Status synchronize(const Cuda& cuda);

}  // namespace gradus::kernels
