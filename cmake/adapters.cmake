# What the tests and examples of the adapters need beside lagkv: lagkv_with_eigen, lagkv_with_mdspan and lagkv_with_dlpack are
# targets to link, each where its third party is found. The library itself needs none of them.
include_guard(GLOBAL)
include(CheckSourceCompiles)

find_package(Eigen3 QUIET NO_MODULE)
if(TARGET Eigen3::Eigen)
  add_library(lagkv_with_eigen INTERFACE)
  target_link_libraries(lagkv_with_eigen INTERFACE lagkv::kernels Eigen3::Eigen)
else()
  message(STATUS "lagkv: no Eigen (libeigen3-dev): its adapter's example is left out")
endif()

# The standard library's mdspan (C++23), the reference implementation's, or that of NVIDIA's CCCL, which needs no CUDA.
# LAGKV_MDSPAN is its namespace.
function(lagkv_with_mdspan header namespace)
  add_library(lagkv_with_mdspan INTERFACE)
  target_link_libraries(lagkv_with_mdspan INTERFACE lagkv::kernels)
  target_compile_definitions(lagkv_with_mdspan INTERFACE "LAGKV_MDSPAN_HEADER=<${header}>" "LAGKV_MDSPAN=${namespace}")
endfunction()

set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
set(CMAKE_REQUIRED_FLAGS "${CMAKE_CXX23_STANDARD_COMPILE_OPTION}")
check_source_compiles(CXX "#include <mdspan>
  std::mdspan<float, std::dextents<int, 3>> x;" LAGKV_STD_MDSPAN)
unset(CMAKE_REQUIRED_FLAGS)
unset(CMAKE_TRY_COMPILE_TARGET_TYPE)
if(LAGKV_STD_MDSPAN)
  lagkv_with_mdspan(mdspan std)
  target_compile_features(lagkv_with_mdspan INTERFACE cxx_std_23)
else()
  find_path(LAGKV_MDSPAN_INCLUDE NAMES mdspan/mdspan.hpp cuda/std/mdspan DOC "Has mdspan/mdspan.hpp or cuda/std/mdspan")
  if(EXISTS "${LAGKV_MDSPAN_INCLUDE}/mdspan/mdspan.hpp")
    lagkv_with_mdspan(mdspan/mdspan.hpp Kokkos)
  elseif(LAGKV_MDSPAN_INCLUDE)
    lagkv_with_mdspan(cuda/std/mdspan cuda::std)
  endif()
  if(TARGET lagkv_with_mdspan)
    target_include_directories(lagkv_with_mdspan SYSTEM INTERFACE "${LAGKV_MDSPAN_INCLUDE}")
  else()
    message(STATUS "lagkv: no mdspan (set LAGKV_MDSPAN_INCLUDE): its adapter's example is left out, "
                   "its test runs on a type with mdspan's members only")
  endif()
endif()

find_path(LAGKV_DLPACK_INCLUDE dlpack/dlpack.h DOC "Has dlpack/dlpack.h")
if(LAGKV_DLPACK_INCLUDE)
  add_library(lagkv_with_dlpack INTERFACE)
  target_link_libraries(lagkv_with_dlpack INTERFACE lagkv::kernels)
  target_include_directories(lagkv_with_dlpack SYSTEM INTERFACE "${LAGKV_DLPACK_INCLUDE}")
else()
  message(STATUS "lagkv: no DLPack (libdlpack-dev, or set LAGKV_DLPACK_INCLUDE): its adapter's test and example are left out")
endif()
