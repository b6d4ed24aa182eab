# Build the CUDA library if a CUDA build of torch, nvcc and cuBLASLt are found. No GPU is required,
# because images are built on machines without one.
include(CheckLanguage)

if(NEUSCALE_OPS_CUDA STREQUAL "OFF")
  set(NEUSCALE_NO_CUDA_BECAUSE "NEUSCALE_OPS_CUDA is OFF")
elseif(NOT EXISTS "${NEUSCALE_TORCH}/lib/libtorch_cuda.so")
  set(NEUSCALE_NO_CUDA_BECAUSE "the torch in ${NEUSCALE_TORCH} is not a build for CUDA")
else()
  find_path(NEUSCALE_CUBLAS_INCLUDE cublasLt.h HINTS "${NEUSCALE_TORCH}/../nvidia/cu13/include" /usr/local/cuda/include)
  find_library(NEUSCALE_CUBLASLT NAMES libcublasLt.so.13 cublasLt
    HINTS "${NEUSCALE_TORCH}/../nvidia/cu13/lib" /usr/local/cuda/lib64)
  if(NOT DEFINED CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
    # nvcc's usual folder is often not on PATH.
    find_program(NEUSCALE_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin)
    if(NEUSCALE_NVCC)
      set(CMAKE_CUDA_COMPILER "${NEUSCALE_NVCC}")
    endif()
  endif()
  set(CMAKE_CUDA_ARCHITECTURES "${NEUSCALE_OPS_ARCHITECTURES}")
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    set(NEUSCALE_NO_CUDA_BECAUSE "nvcc was not found on PATH, in CUDA_HOME or in /usr/local/cuda")
  elseif(NOT NEUSCALE_CUBLAS_INCLUDE OR NOT NEUSCALE_CUBLASLT)
    set(NEUSCALE_NO_CUDA_BECAUSE "cuBLASLt 13 is neither beside ${NEUSCALE_TORCH} nor in the CUDA toolkit")
  else()
    set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
    enable_language(CUDA)
    add_library(neuscale_ops_cuda MODULE
      csrc/cuda/bias_gelu.cu csrc/cuda/crop_flip_normalize.cu csrc/cuda/linear_gelu.cpp csrc/cuda/epilogue_gemm.cpp)
    target_compile_features(neuscale_ops_cuda PRIVATE cuda_std_17)
    string(REPLACE ";" " " NEUSCALE_ARCHITECTURE_WORDS "${NEUSCALE_OPS_ARCHITECTURES}")
    target_compile_definitions(neuscale_ops_cuda PRIVATE USE_CUDA
      "NEUSCALE_ARCHITECTURES=\"${NEUSCALE_ARCHITECTURE_WORDS}\"")
    target_compile_options(neuscale_ops_cuda PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:-t0>")
    # Reproducible builds: by default nvcc gives symbols random names, and puts its process id into
    # the names of temporary files.
    foreach(source csrc/cuda/bias_gelu.cu csrc/cuda/crop_flip_normalize.cu)
      set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "-frandom-seed=${source}")
    endforeach()
    target_link_options(neuscale_ops_cuda PRIVATE LINKER:-s)
    # The cuBLASLt that torch ships and loads, because a toolkit may lack it. Only the two plain C++
    # files see its headers, and search them after the toolkit's own.
    set_source_files_properties(csrc/cuda/linear_gelu.cpp csrc/cuda/epilogue_gemm.cpp PROPERTIES
      INCLUDE_DIRECTORIES "${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES}"
      COMPILE_OPTIONS "-isystem;${NEUSCALE_CUBLAS_INCLUDE};-Wall;-Wextra")
    target_link_libraries(neuscale_ops_cuda PRIVATE neuscale_torch torch_cpu torch_cuda "${NEUSCALE_CUBLASLT}")
    neuscale_module(neuscale_ops_cuda)
  endif()
endif()

if(NEUSCALE_OPS_CUDA STREQUAL "ON" AND NOT TARGET neuscale_ops_cuda)
  message(FATAL_ERROR "neuscale_ops: the CUDA library was asked for, but ${NEUSCALE_NO_CUDA_BECAUSE}.")
endif()
