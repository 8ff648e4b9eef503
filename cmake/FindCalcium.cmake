# SPDX-License-Identifier: Apache-2.0
# Calcium with what it stands on (Arb, FLINT, Antic, MPFR, GMP) as the target Calcium::calcium: exact numbers,
# all under the LGPL, linked as shared libraries.
find_path(Calcium_INCLUDE_DIR calcium/ca.h)
find_path(Calcium_FLINT_DIR flint/flint.h)
set(Calcium_libraries)
foreach(name calcium antic flint-arb flint mpfr gmp)
  find_library(Calcium_${name}_LIBRARY NAMES ${name})
  list(APPEND Calcium_libraries Calcium_${name}_LIBRARY)
endforeach()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(Calcium REQUIRED_VARS ${Calcium_libraries} Calcium_INCLUDE_DIR
  Calcium_FLINT_DIR REASON_FAILURE_MESSAGE "run tools/setup, which installs libcalcium-dev, libantic-dev and libflint-arb-dev")

if(Calcium_FOUND AND NOT TARGET Calcium::calcium)
  add_library(Calcium::calcium INTERFACE IMPORTED)
  set_target_properties(Calcium::calcium PROPERTIES INTERFACE_INCLUDE_DIRECTORIES
    "${Calcium_INCLUDE_DIR};${Calcium_INCLUDE_DIR}/calcium")
  foreach(variable IN LISTS Calcium_libraries)
    target_link_libraries(Calcium::calcium INTERFACE "${${variable}}")
  endforeach()
endif()
