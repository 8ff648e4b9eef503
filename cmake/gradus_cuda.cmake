# SPDX-License-Identifier: Apache-2.0
# libgradus_cuda.so: everything that is compiled by nvcc, behind one C symbol. The binary loads it when a
# device is asked for and links nothing of it, so a tree without CUDA gives the same binary.
#
# nvcc is that of .deps/cuda (tools/setup --cuda) or of the machine, version 13. Commands instead of
# CMake's CUDA language: the wheels have no layout that its compiler check knows.
set(GRADUS_CUDA AUTO CACHE STRING "libgradus_cuda.so, the GPU's part: AUTO (if nvcc is found), ON or OFF")
set_property(CACHE GRADUS_CUDA PROPERTY STRINGS AUTO ON OFF)

if(GRADUS_CUDA)
  find_program(GRADUS_NVCC nvcc HINTS "${CMAKE_SOURCE_DIR}/.deps/cuda/bin" NO_CACHE NO_DEFAULT_PATH)
  find_program(GRADUS_NVCC nvcc PATHS /usr/local/cuda/bin NO_CACHE)
  if(GRADUS_NVCC)
    execute_process(COMMAND "${GRADUS_NVCC}" --version OUTPUT_VARIABLE version ERROR_QUIET)
    string(REGEX MATCH "release ([0-9]+)\\.[0-9]+, V([0-9.]+)" matched "${version}")
    set(GRADUS_NVCC_VERSION "${CMAKE_MATCH_2}")
    if(NOT CMAKE_MATCH_1 EQUAL 13)
      set(GRADUS_NVCC)
    endif()
  endif()
  if(NOT GRADUS_NVCC AND NOT GRADUS_CUDA STREQUAL "AUTO")
    message(FATAL_ERROR "GRADUS_CUDA is ON, but there is no nvcc 13; run tools/setup --cuda")
  endif()
endif()

# gradus_cuda_library(SRCS a.cu b.cu): the sources of the library, named in the module that holds them.
function(gradus_cuda_library)
  if(NOT GRADUS_CUDA OR NOT GRADUS_NVCC)
    return()
  endif()
  cmake_parse_arguments(ARG "" "" "SRCS" ${ARGN})
  get_filename_component(toolkit "${GRADUS_NVCC}" DIRECTORY)
  get_filename_component(toolkit "${toolkit}" DIRECTORY)
  find_library(cudart libcudart_static.a PATHS "${toolkit}/lib" "${toolkit}/lib64" NO_DEFAULT_PATH NO_CACHE
               REQUIRED)
  set(objects)
  foreach(source IN LISTS ARG_SRCS)
    set(object "${CMAKE_CURRENT_BINARY_DIR}/${source}.o")
    add_custom_command(
      OUTPUT "${object}"
      COMMAND ${GRADUS_CCACHE} "${GRADUS_NVCC}" -std=c++20 -O3 -gencode=arch=compute_90a,code=sm_90a
              -Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-ffp-contract=off -Werror all-warnings
              -I "${CMAKE_SOURCE_DIR}" -MD -MF "${object}.d" -MT "${object}"
              -c "${CMAKE_CURRENT_SOURCE_DIR}/${source}" -o "${object}"
      DEPENDS "${source}"
      DEPFILE "${object}.d"
      COMMENT "Building CUDA object ${source}"
      VERBATIM)
    list(APPEND objects "${object}")
  endforeach()
  # The runtime is linked statically and loads the driver by itself; no symbol but the table is seen.
  add_library(gradus_cuda SHARED ${objects})
  set_target_properties(gradus_cuda PROPERTIES LINKER_LANGUAGE CXX
                        LIBRARY_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}")
  target_link_libraries(gradus_cuda PRIVATE "${cudart}" rt dl Threads::Threads)
  target_link_options(gradus_cuda PRIVATE -Wl,--exclude-libs,ALL -Wl,--no-undefined)
endfunction()
