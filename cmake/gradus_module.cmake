# SPDX-License-Identifier: Apache-2.0

# GCC 12 warns of every member that a designated initialiser leaves at its default, which is what it is for.
set(GRADUS_WARNINGS -Wall -Wextra -Wshadow -Wno-missing-field-initializers)
if(GRADUS_WERROR)
  list(APPEND GRADUS_WARNINGS -Werror)
endif()

# gradus_module(NAME rewards DEPS common data SRCS a.cpp HDRS a.h [LIBS fmt::fmt] [ISA_SRCS k_cpu.cpp])
#
# Makes the static library gradus_<name> with the alias gradus::<name>. DEPS are the other modules whose
# public headers this one may include: tools/check_includes.py reads this call and holds the sources to it.
# LIBS are third-party targets. ISA_SRCS are compiled twice, for AVX2 and for AVX-512 (see kernels/isa.h).
function(gradus_module)
  cmake_parse_arguments(ARG "" "NAME" "DEPS;SRCS;HDRS;LIBS;ISA_SRCS" ${ARGN})
  if(NOT ARG_NAME)
    message(FATAL_ERROR "gradus_module: NAME is missing")
  endif()
  set(target gradus_${ARG_NAME})
  add_library(${target} STATIC ${ARG_SRCS} ${ARG_HDRS})
  add_library(gradus::${ARG_NAME} ALIAS ${target})
  target_include_directories(${target} PUBLIC "${CMAKE_SOURCE_DIR}")
  target_compile_options(${target} PRIVATE ${GRADUS_WARNINGS})
  foreach(dep IN LISTS ARG_DEPS)
    target_link_libraries(${target} PUBLIC gradus::${dep})
  endforeach()
  target_link_libraries(${target} PUBLIC ${ARG_LIBS})
  if(ARG_ISA_SRCS)
    foreach(isa avx2 avx512)
      set(objects ${target}_${isa})
      add_library(${objects} OBJECT ${ARG_ISA_SRCS})
      target_include_directories(${objects} PRIVATE "${CMAKE_SOURCE_DIR}")
      target_compile_definitions(${objects} PRIVATE GRADUS_ISA=${isa} GRADUS_ISA_${isa}=1)
      target_compile_options(${objects} PRIVATE ${GRADUS_WARNINGS} -O3)
      if(isa STREQUAL "avx512")
        # g++ 12 takes the undefined operand inside its own AVX-512 intrinsics for a mistake of ours.
        target_compile_options(${objects} PRIVATE -march=x86-64-v4 -mprefer-vector-width=512
                               -Wno-maybe-uninitialized -Wno-uninitialized)
      endif()
      target_link_libraries(${objects} PRIVATE fmt::fmt)
      target_sources(${target} PRIVATE $<TARGET_OBJECTS:${objects}>)
    endforeach()
  endif()
endfunction()

# gradus_test(data/tokenizer [MODULES data model] [LABELS golden slow] [LIBS ...] [SRCS extra.cpp])
#
# Builds tests/<path>_test.cpp against the modules and registers each of its tests with CTest.
# The first folder of the path is always linked. Tests run in the source root, so that fixtures are found
# at tests/golden/..., and see the built binary as GRADUS_BINARY; both that and GRADUS_SOURCE_DIR are
# relative, so that ccache serves the next clone too.
function(gradus_test path)
  cmake_parse_arguments(ARG "" "TIMEOUT" "MODULES;LABELS;LIBS;SRCS" ${ARGN})
  gradus_test_executable(target ${path} MODULES ${ARG_MODULES} LIBS ${ARG_LIBS} GTest::gtest_main
                         SRCS ${ARG_SRCS})
  if(NOT ARG_LABELS)
    set(ARG_LABELS cpu)
  endif()
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  # gtest_discover_tests unpacks lists at each of its three stages; so many escapes keep one whole.
  string(REPLACE ";" "\\\\\\\\\\\\\\;" labels "${ARG_LABELS}")
  string(REPLACE ";" "\\\\\\\\\\\\\\;" environment "${GRADUS_TEST_ENVIRONMENT}")
  gtest_discover_tests(${target} WORKING_DIRECTORY "${CMAKE_SOURCE_DIR}" DISCOVERY_MODE PRE_TEST
                       PROPERTIES LABELS "${labels}" TIMEOUT ${ARG_TIMEOUT} ENVIRONMENT "${environment}")
endfunction()

# gradus_mpi_test(comm/mpi RANKS 1 2 [MODULES ...] [LABELS ...] [LIBS ...] [SRCS ...])
#
# The same for a test whose processes are MPI ranks: the file brings its own main, which starts MPI around
# the tests. The whole executable is one CTest entry for each number of ranks, named MPI.<path>.<ranks>.
function(gradus_mpi_test path)
  cmake_parse_arguments(ARG "" "TIMEOUT" "RANKS;MODULES;LABELS;LIBS;SRCS" ${ARGN})
  gradus_test_executable(target ${path} MODULES ${ARG_MODULES} LIBS ${ARG_LIBS} SRCS ${ARG_SRCS})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  foreach(ranks IN LISTS ARG_RANKS)
    set(name "MPI.${path}.${ranks}")
    add_test(NAME "${name}" WORKING_DIRECTORY "${CMAKE_SOURCE_DIR}"
             COMMAND ${MPIEXEC_EXECUTABLE} ${MPIEXEC_NUMPROC_FLAG} ${ranks} $<TARGET_FILE:${target}>)
    set_tests_properties("${name}" PROPERTIES LABELS "mpi;${ARG_LABELS}" PROCESSORS ${ranks}
                         TIMEOUT ${ARG_TIMEOUT} ENVIRONMENT "${GRADUS_TEST_ENVIRONMENT}")
  endforeach()
endfunction()

# What a test's process finds set: Open MPI refuses root and more ranks than cores unless told, and would
# pin all ranks of two tests that run side by side to the same core.
set(GRADUS_TEST_ENVIRONMENT OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none)

# The executable of one test file; sets `target_variable` to its target.
function(gradus_test_executable target_variable path)
  cmake_parse_arguments(ARG "" "" "MODULES;LIBS;SRCS" ${ARGN})
  string(REPLACE "/" "_" target "test_${path}")
  add_executable(${target} "${CMAKE_SOURCE_DIR}/tests/${path}_test.cpp" ${ARG_SRCS})
  string(REGEX REPLACE "/.*" "" module "${path}")
  if(TARGET gradus_${module})
    target_link_libraries(${target} PRIVATE gradus::${module})
  endif()
  foreach(dep IN LISTS ARG_MODULES)
    target_link_libraries(${target} PRIVATE gradus::${dep})
  endforeach()
  target_link_libraries(${target} PRIVATE ${ARG_LIBS} GTest::gtest GTest::gmock)
  target_include_directories(${target} PRIVATE "${CMAKE_SOURCE_DIR}")
  target_compile_options(${target} PRIVATE ${GRADUS_WARNINGS} -O1)
  file(RELATIVE_PATH binary "${CMAKE_SOURCE_DIR}" "${CMAKE_BINARY_DIR}/gradus")
  target_compile_definitions(${target} PRIVATE GRADUS_BINARY="${binary}" GRADUS_SOURCE_DIR=".")
  set(${target_variable} ${target} PARENT_SCOPE)
endfunction()
