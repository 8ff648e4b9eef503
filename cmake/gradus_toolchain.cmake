# SPDX-License-Identifier: Apache-2.0
# Compiler, linker and third-party packages: everything that is the same for all modules.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}")
set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O2 -g1")

# The numerics contract (docs/numerics.md) allows a fused multiply-add only where it is written, and no
# re-association: both flags hold for the whole tree. AVX2 and FMA are the least processor served.
add_compile_options(-march=x86-64-v3 -ffp-contract=off)

find_program(GRADUS_CCACHE ccache)
if(GRADUS_CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER "${GRADUS_CCACHE}")
  set(CMAKE_C_COMPILER_LAUNCHER "${GRADUS_CCACHE}")
endif()
find_program(GRADUS_MOLD mold)
if(GRADUS_MOLD)
  add_link_options(-B/usr/libexec/mold)
endif()

find_package(Threads REQUIRED)
find_package(fmt REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(spdlog REQUIRED)
find_package(yaml-cpp REQUIRED)
find_package(MPI REQUIRED COMPONENTS C)
find_package(PkgConfig REQUIRED)
pkg_check_modules(RE2 REQUIRED IMPORTED_TARGET re2)
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(UTF8PROC REQUIRED IMPORTED_TARGET libutf8proc)
