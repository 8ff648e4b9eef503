# SPDX-License-Identifier: Apache-2.0
# Finds the CPU part of the PyTorch wheel that `tools/setup --tests` unpacks into .deps/torch, and makes
# the target Torch::cpu of it. Tests use it as the oracle and benchmarks as the rival; no module of the
# product links it (docs/decisions/0001-no-torch-in-the-binary.md).
#
# The wheel's own CMake package asks for a whole CUDA toolkit. libtorch_cpu itself needs two CUDA libraries to
# load, libcudart and libcupti, which come from wheels of their own; the rest of its undefined symbols
# live in libraries that are never called on the CPU, hence --allow-shlib-undefined.
# Headers come last in the search order, since the wheel brings its own fmt and protobuf headers.
set(TorchCpu_ROOT_DIR "${CMAKE_SOURCE_DIR}/.deps/torch" CACHE PATH "Where tools/setup --tests put torch")

find_path(TorchCpu_INCLUDE_DIR ATen/ATen.h PATHS "${TorchCpu_ROOT_DIR}/torch/include" NO_DEFAULT_PATH)
set(TorchCpu_libraries)
foreach(file torch/lib/libtorch_cpu.so torch/lib/libc10.so nvidia/cu13/lib/libcudart.so.13
             nvidia/cu13/lib/libcupti.so.13)
  list(APPEND TorchCpu_libraries "${TorchCpu_ROOT_DIR}/${file}")
  if(NOT EXISTS "${TorchCpu_ROOT_DIR}/${file}")
    set(TorchCpu_missing "${TorchCpu_ROOT_DIR}/${file}")
  endif()
endforeach()
if(TorchCpu_INCLUDE_DIR)
  file(READ "${TorchCpu_INCLUDE_DIR}/torch/headeronly/version.h" TorchCpu_header)
  string(REGEX REPLACE ".*define TORCH_VERSION [^\"]*\"([^\"]*)\".*" "\\1" TorchCpu_VERSION
         "${TorchCpu_header}")
endif()

include(FindPackageHandleStandardArgs)
if(NOT TorchCpu_missing)
  set(TorchCpu_LIBRARY "${TorchCpu_ROOT_DIR}/torch/lib/libtorch_cpu.so")
endif()
find_package_handle_standard_args(TorchCpu REQUIRED_VARS TorchCpu_LIBRARY TorchCpu_INCLUDE_DIR
  VERSION_VAR TorchCpu_VERSION REASON_FAILURE_MESSAGE "run tools/setup --tests")

if(TorchCpu_FOUND AND NOT TARGET Torch::cpu)
  add_library(Torch::cpu INTERFACE IMPORTED)
  target_compile_options(Torch::cpu INTERFACE
    "SHELL:-idirafter ${TorchCpu_INCLUDE_DIR}"
    "SHELL:-idirafter ${TorchCpu_INCLUDE_DIR}/torch/csrc/api/include")
  target_link_libraries(Torch::cpu INTERFACE ${TorchCpu_libraries} -Wl,--allow-shlib-undefined)
endif()
