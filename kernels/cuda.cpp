// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda.h"

#include <dlfcn.h>

#include <filesystem>
#include <utility>
#include <vector>

#include "kernels/internal/cuda_call.h"
#include "kernels/internal/cuda_table.h"

namespace gradus::kernels {
namespace {

constexpr const char* kLibrary = "libgradus_cuda.so";
constexpr double kGib = 1024.0 * 1024 * 1024;

}  // namespace

// Beside the binary, or in lib/ beside it, as tools/bundle lays them out.
Result<std::string> find_cuda_library(const std::string& folder) {
  std::error_code ignored;
  for (const std::string& place :
       {fmt::format("{}/{}", folder, kLibrary), fmt::format("{}/lib/{}", folder, kLibrary)}) {
    if (std::filesystem::exists(place, ignored)) return place;
  }
  return not_found(
      "cuda: {} is neither in {} nor in its lib/; run tools/setup --cuda and tools/build, or take "
      "it from a bundle",
      kLibrary, folder);
}

Result<const cuda::CudaTable*> load_cuda_library(const std::string& path) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return unavailable("cuda: cannot load {}: {}", path, dlerror());
  using GetTable = const cuda::CudaTable* (*)();
  const auto get_table = reinterpret_cast<GetTable>(dlsym(library, cuda::kCudaTableSymbol));
  if (get_table == nullptr) {
    dlclose(library);
    return unavailable("cuda: {} is not Gradus' CUDA library: it has no {}", path,
                       cuda::kCudaTableSymbol);
  }
  return get_table();
}

Status check_cuda_table(const cuda::CudaTable& table, const std::string& path) {
  if (table.version == cuda::kCudaTableVersion && table.bytes == sizeof(cuda::CudaTable)) return {};
  return unavailable(
      "cuda: {} is of another build (table version {}, {} bytes; expected {}, {}); build the "
      "binary and the library together",
      path, table.version, table.bytes, cuda::kCudaTableVersion, sizeof(cuda::CudaTable));
}

Status check_cuda_device(const cuda::CudaDevice& device) {
  if (device.major == 9 && device.minor == 0) return {};
  return unavailable(
      "cuda: {} has compute capability {}.{}; the kernels are built for 9.0 alone (H100, H200)",
      device.name, device.major, device.minor);
}

Result<Cuda> Cuda::open(const std::string& library, int32_t device) {
  std::string path = library;
  if (path.empty()) {
    std::error_code ignored;
    Result<std::string> found = find_cuda_library(
        std::filesystem::read_symlink("/proc/self/exe", ignored).parent_path().string());
    if (!found.ok()) return found.status();
    path = *found;
  }
  const Result<const cuda::CudaTable*> loaded = load_cuda_library(path);
  if (!loaded.ok()) return loaded.status();
  const cuda::CudaTable* table = *loaded;
  GRADUS_RETURN_IF_ERROR(check_cuda_table(*table, path));
  int32_t count = 0;
  const Status counted = cuda_call("cuda: no device is usable", table->device.count, &count);
  if (!counted.ok()) {
    return unavailable(
        "{}; an H100 or H200 and an NVIDIA driver for CUDA 13 (580 or newer) are "
        "needed",
        counted.message());
  }
  if (device < 0 || device >= count) {
    return invalid_argument("cuda: there is no device {}; this machine has {}, numbered from 0",
                            device, count);
  }
  cuda::CudaDevice facts;
  GRADUS_RETURN_IF_ERROR(cuda_call("cuda: device", table->device.describe, device, &facts));
  GRADUS_RETURN_IF_ERROR(check_cuda_device(facts));
  GRADUS_RETURN_IF_ERROR(cuda_call("cuda: device", table->device.select, device));
  return Cuda(table, device,
              fmt::format("{}, {:.0f} GiB ({:.0f} free), {} processors, driver for CUDA {}.{}, "
                          "runtime {}.{}",
                          facts.name, static_cast<double>(facts.memory_bytes) / kGib,
                          static_cast<double>(facts.free_bytes) / kGib, facts.num_processors,
                          facts.driver_version / 1000, facts.driver_version % 1000 / 10,
                          facts.runtime_version / 1000, facts.runtime_version % 1000 / 10));
}

Result<CudaMemory> device_memory(const Cuda& cuda) {
  cuda::CudaDevice facts;
  GRADUS_RETURN_IF_ERROR(
      cuda_call("cuda: device", cuda.table().device.describe, cuda.device(), &facts));
  return CudaMemory{static_cast<int64_t>(facts.memory_bytes),
                    static_cast<int64_t>(facts.free_bytes)};
}

void CudaBuffer::Releaser::operator()(void* p) const {
  cuda::CudaErrorText ignored;
  if (p != nullptr) table->device.release(p, &ignored);
}

Result<CudaBuffer> CudaBuffer::allocate(const Cuda& cuda, size_t bytes) {
  void* p = nullptr;
  const Status status = cuda_call("cuda", cuda.table().device.allocate, &p, bytes > 0 ? bytes : 1);
  if (!status.ok()) {
    return unavailable("{}; {:.2f} GiB were asked for on {}", status.message(),
                       static_cast<double>(bytes) / kGib, cuda.description());
  }
  return CudaBuffer(std::unique_ptr<void, Releaser>(p, Releaser{&cuda.table()}), bytes);
}

Status CudaBuffer::copy_from_host(const void* p, size_t bytes) {
  GRADUS_CHECK(bytes <= bytes_, fmt::format("{} of {}", bytes, bytes_));
  const cuda::DeviceFunctions& device = data_.get_deleter().table->device;
  GRADUS_RETURN_IF_ERROR(
      cuda_call("cuda: copy to the device", device.copy, data(), p, bytes, nullptr));
  return cuda_call("cuda: copy to the device", device.synchronize);
}

Status CudaBuffer::copy_to_host(void* p, size_t bytes) const {
  GRADUS_CHECK(bytes <= bytes_, fmt::format("{} of {}", bytes, bytes_));
  const cuda::DeviceFunctions& device = data_.get_deleter().table->device;
  GRADUS_RETURN_IF_ERROR(
      cuda_call("cuda: copy from the device", device.copy, p, data(), bytes, nullptr));
  return cuda_call("cuda: copy from the device", device.synchronize);
}

Status CudaBuffer::enqueue_fill(uint8_t byte) {
  const cuda::DeviceFunctions& device = data_.get_deleter().table->device;
  return cuda_call("cuda: fill", device.fill, data(), byte, bytes_, nullptr);
}

Status CudaBuffer::fill(uint8_t byte) {
  GRADUS_RETURN_IF_ERROR(enqueue_fill(byte));
  return cuda_call("cuda: fill", data_.get_deleter().table->device.synchronize);
}

Result<CudaTimer> CudaTimer::create(const Cuda& cuda) {
  void *first = nullptr, *last = nullptr;
  const cuda::DeviceFunctions& device = cuda.table().device;
  GRADUS_RETURN_IF_ERROR(cuda_call("cuda: timer", device.event_create, &first));
  GRADUS_RETURN_IF_ERROR(cuda_call("cuda: timer", device.event_create, &last));
  return CudaTimer(&cuda.table(), first, last);
}

Status CudaTimer::begin() {
  return cuda_call("cuda: timer", table_->device.event_record, first_, nullptr);
}

Result<double> CudaTimer::end_us() {
  float ms = 0;
  GRADUS_RETURN_IF_ERROR(cuda_call("cuda: timer", table_->device.event_record, last_, nullptr));
  GRADUS_RETURN_IF_ERROR(
      cuda_call("cuda: timer", table_->device.event_elapsed_ms, first_, last_, &ms));
  return double{ms} * 1000;
}

void CudaStream::Releaser::operator()(void* p) const {
  cuda::CudaErrorText ignored;
  if (p != nullptr) table->stream.destroy(p, &ignored);
}

Result<CudaStream> CudaStream::create(const Cuda& cuda) {
  void* stream = nullptr;
  GRADUS_RETURN_IF_ERROR(cuda_call("cuda: stream", cuda.table().stream.create, &stream));
  return CudaStream(std::unique_ptr<void, Releaser>(stream, Releaser{&cuda.table()}));
}

Status CudaStream::synchronize() const {
  return cuda_call("cuda", stream_.get_deleter().table->stream.synchronize, get());
}

Status CudaStream::copy(void* to, const void* from, size_t bytes) const {
  return cuda_call("cuda: copy", stream_.get_deleter().table->device.copy, to, from, bytes, get());
}

void CudaGraph::Releaser::operator()(void* p) const {
  cuda::CudaErrorText ignored;
  if (p != nullptr) table->stream.destroy_graph(p, &ignored);
}

Result<CudaGraph> CudaGraph::record(const Cuda& cuda, const CudaStream& stream,
                                    const std::function<Status()>& enqueue) {
  const cuda::StreamFunctions& functions = cuda.table().stream;
  GRADUS_RETURN_IF_ERROR(cuda_call("cuda: record", functions.begin_recording, stream.get()));
  const Status enqueued = enqueue();
  void* graph = nullptr;
  const Status ended = cuda_call("cuda: record", functions.end_recording, stream.get(), &graph);
  GRADUS_RETURN_IF_ERROR(enqueued);
  GRADUS_RETURN_IF_ERROR(ended);
  return CudaGraph(std::unique_ptr<void, Releaser>(graph, Releaser{&cuda.table()}));
}

Status CudaGraph::launch(const CudaStream& stream) const {
  return cuda_call("cuda: launch", graph_.get_deleter().table->stream.launch_graph, graph_.get(),
                   stream.get());
}

void CudaEvent::Releaser::operator()(void* p) const {
  cuda::CudaErrorText ignored;
  if (p != nullptr) table->stream.event_destroy(p, &ignored);
}

Result<CudaEvent> CudaEvent::create(const Cuda& cuda) {
  void* event = nullptr;
  GRADUS_RETURN_IF_ERROR(cuda_call("cuda: event", cuda.table().device.event_create, &event));
  return CudaEvent(std::unique_ptr<void, Releaser>(event, Releaser{&cuda.table()}));
}

Status CudaEvent::record(const CudaStream& stream) {
  return cuda_call("cuda: event", event_.get_deleter().table->device.event_record, event_.get(),
                   stream.get());
}

Status CudaEvent::wait() const {
  return cuda_call("cuda", event_.get_deleter().table->stream.event_synchronize, event_.get());
}

void PinnedBuffer::Releaser::operator()(void* p) const {
  cuda::CudaErrorText ignored;
  if (p != nullptr) table->stream.release_pinned(p, &ignored);
}

Result<PinnedBuffer> PinnedBuffer::allocate(const Cuda& cuda, size_t bytes) {
  void* p = nullptr;
  GRADUS_RETURN_IF_ERROR(cuda_call("cuda: pinned memory", cuda.table().stream.allocate_pinned, &p,
                                   bytes > 0 ? bytes : 1));
  return PinnedBuffer(std::unique_ptr<void, Releaser>(p, Releaser{&cuda.table()}), bytes);
}

Status copy_to_device(const Cuda& cuda, void* to, const void* from, size_t bytes) {
  GRADUS_RETURN_IF_ERROR(
      cuda_call("cuda: copy to the device", cuda.table().device.copy, to, from, bytes, nullptr));
  return synchronize(cuda);
}

Status copy_to_host(const Cuda& cuda, void* to, const void* from, size_t bytes) {
  GRADUS_RETURN_IF_ERROR(
      cuda_call("cuda: copy to the host", cuda.table().device.copy, to, from, bytes, nullptr));
  return synchronize(cuda);
}

Status device_copy(const Cuda& cuda, void* to, const void* from, int64_t bytes, Stream stream) {
  return cuda_call("cuda: copy on the device", cuda.table().device.copy, to, from,
                   static_cast<size_t>(bytes), stream);
}

Status device_zero(const Cuda& cuda, void* p, int64_t bytes, Stream stream) {
  return cuda_call("cuda: zeros", cuda.table().device.fill, p, 0, static_cast<size_t>(bytes),
                   stream);
}

Status synchronize(const Cuda& cuda) { return cuda_call("cuda", cuda.table().device.synchronize); }

}  // namespace gradus::kernels
