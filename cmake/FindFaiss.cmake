# SPDX-License-Identifier: Apache-2.0
# FAISS with the BLAS and LAPACK that it calls as the target Faiss::faiss, from static archives so that a built
# tree travels. OpenBLAS in its serial form: the threads are ours, and FAISS gets one in each.
find_path(Faiss_INCLUDE_DIR faiss/IndexFlat.h)
find_library(Faiss_LIBRARY NAMES libfaiss.a)
find_library(Faiss_BLAS_LIBRARY NAMES libopenblas.a PATH_SUFFIXES openblas-serial)
find_package(OpenMP QUIET COMPONENTS CXX)

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(Faiss REQUIRED_VARS Faiss_LIBRARY Faiss_BLAS_LIBRARY Faiss_INCLUDE_DIR
  OpenMP_CXX_FOUND REASON_FAILURE_MESSAGE "run tools/setup, which installs libfaiss-dev and libopenblas-serial-dev")

if(Faiss_FOUND AND NOT TARGET Faiss::faiss)
  add_library(Faiss::faiss STATIC IMPORTED)
  set_target_properties(Faiss::faiss PROPERTIES IMPORTED_LOCATION "${Faiss_LIBRARY}"
    INTERFACE_INCLUDE_DIRECTORIES "${Faiss_INCLUDE_DIR}")
  # Not OpenMP::OpenMP_CXX, whose compile option would reach all that links this. clang's libomp has gomp's functions.
  set(Faiss_OPENMP_LIBRARY "${OpenMP_gomp_LIBRARY}")
  if(NOT Faiss_OPENMP_LIBRARY)
    set(Faiss_OPENMP_LIBRARY "${OpenMP_omp_LIBRARY}")
  endif()
  target_link_libraries(Faiss::faiss INTERFACE "${Faiss_BLAS_LIBRARY}" "${Faiss_OPENMP_LIBRARY}"
    -l:libgfortran.a -l:libquadmath.a)
endif()
