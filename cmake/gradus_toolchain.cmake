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
  # mold 1.10 begins the read-only-after-relocation segment at a thread-local of one byte, wherever that lies;
  # off a page's start the loader then refuses the program ("cannot apply additional memory protection").
  # Without that segment it may lay parts out for ever where segments share a page, so they share none.
  add_link_options(-B/usr/libexec/mold -Wl,-z,norelro -Wl,-z,separate-loadable-segments)
endif()

# gradus_link_statically(target [archive]): makes an imported target stand for the static archive beside its
# shared library (`archive` names it where the target does not), if the distribution ships one. Sonames
# differ between distributions; what is linked statically travels with the binary.
function(gradus_link_statically target)
  get_target_property(libraries ${target} INTERFACE_LINK_LIBRARIES)
  if(ARGC GREATER 1)
    find_library(GRADUS_ARCHIVE_${ARGV1} lib${ARGV1}.a)
    if(GRADUS_ARCHIVE_${ARGV1})
      foreach(config "" _NONE _RELEASE _DEBUG _RELWITHDEBINFO)
        set_target_properties(${target} PROPERTIES IMPORTED_LOCATION${config} "${GRADUS_ARCHIVE_${ARGV1}}")
      endforeach()
    endif()
  elseif(libraries)
    set(replaced)
    foreach(library IN LISTS libraries)
      string(REGEX REPLACE "\\.so$" ".a" archive "${library}")
      if(EXISTS "${archive}")
        set(library "${archive}")
      endif()
      list(APPEND replaced "${library}")
    endforeach()
    set_target_properties(${target} PROPERTIES INTERFACE_LINK_LIBRARIES "${replaced}")
  endif()
endfunction()

find_package(Threads REQUIRED)
find_package(fmt REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(spdlog REQUIRED)
find_package(yaml-cpp REQUIRED)
find_library(GRADUS_YAML_CPP NAMES libyaml-cpp.a yaml-cpp REQUIRED)  # the archive, so that a build travels
gradus_link_statically(yaml-cpp yaml-cpp)
set(Protobuf_USE_STATIC_LIBS ON)
find_package(Protobuf REQUIRED)
find_package(MPI REQUIRED COMPONENTS C)
find_package(PkgConfig REQUIRED)
pkg_check_modules(RE2 REQUIRED IMPORTED_TARGET re2)
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(UTF8PROC REQUIRED IMPORTED_TARGET libutf8proc)
pkg_check_modules(SODIUM REQUIRED IMPORTED_TARGET libsodium)
pkg_check_modules(OPENSSL REQUIRED IMPORTED_TARGET libssl libcrypto)
pkg_check_modules(SQLITE3 REQUIRED IMPORTED_TARGET sqlite3)
foreach(target IN ITEMS RE2 OPENSSL PCRE2 SODIUM SQLITE3 UTF8PROC)
  gradus_link_statically(PkgConfig::${target})
endforeach()

# Of libcurl only the headers: rewards/judge loads the library when a judge is asked for.
pkg_check_modules(CURL REQUIRED libcurl)

# Exact arithmetic of the math reward. LGPL: shared, and tools/bundle copies them.
find_package(Calcium REQUIRED)

# Approximate indexes of the retriever.
find_package(Faiss REQUIRED)

if(GRADUS_TESTS)
  find_package(GTest REQUIRED)
endif()
if(GRADUS_BENCH)
  find_package(benchmark REQUIRED)
endif()
# AUTO: without torch the tests that compare with it are left out and the summary says so.
if((GRADUS_TESTS OR GRADUS_BENCH) AND GRADUS_TORCH)
  if(GRADUS_TORCH STREQUAL "AUTO")
    find_package(TorchCpu QUIET)
  else()
    find_package(TorchCpu 2.11 REQUIRED)
  endif()
endif()
