# neuscale_torch: the headers and libraries of the torch that this Python imports.
find_package(Python 3.11 REQUIRED COMPONENTS Interpreter)
execute_process(
  COMMAND "${Python_EXECUTABLE}" -c
    "import importlib.util as u, pathlib; s = u.find_spec('torch'); print(pathlib.Path(s.origin).parent if s else '', end='')"
  OUTPUT_VARIABLE NEUSCALE_TORCH COMMAND_ERROR_IS_FATAL ANY)
if(NOT NEUSCALE_TORCH)
  message(FATAL_ERROR "neuscale_ops: ${Python_EXECUTABLE} has no torch. Install torch 2.11 or later beside it.")
endif()
if(NOT EXISTS "${NEUSCALE_TORCH}/include/torch/csrc/stable/accelerator.h")
  message(FATAL_ERROR "neuscale_ops: the torch in ${NEUSCALE_TORCH} is too old: 2.11 or later is needed.")
endif()

add_library(neuscale_torch INTERFACE)
target_include_directories(neuscale_torch SYSTEM INTERFACE "${NEUSCALE_TORCH}/include")
target_link_directories(neuscale_torch INTERFACE "${NEUSCALE_TORCH}/lib")
target_compile_features(neuscale_torch INTERFACE cxx_std_17)
# Use only the part of the stable ABI that torch 2.11 has, also with newer headers.
target_compile_definitions(neuscale_torch INTERFACE TORCH_TARGET_VERSION=0x020b000000000000 TORCH_STABLE_ONLY)
# Failed checks report file and line: map paths of the build machine to neuscale_ops/… and torch/….
include(CheckCXXCompilerFlag)
foreach(map "${CMAKE_SOURCE_DIR}=neuscale_ops" "${NEUSCALE_TORCH}=torch")
  check_cxx_compiler_flag("-fmacro-prefix-map=${map}" NEUSCALE_HAS_PREFIX_MAP)
  if(NEUSCALE_HAS_PREFIX_MAP)
    target_compile_options(neuscale_torch INTERFACE
      "$<$<COMPILE_LANGUAGE:CXX>:-fmacro-prefix-map=${map}>"
      "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-fmacro-prefix-map=${map}>")
  endif()
endforeach()
if(UNIX AND NOT APPLE)
  # Torch provides the symbols at run time: link its libraries even if none is used directly.
  target_link_options(neuscale_torch INTERFACE "LINKER:--no-as-needed")
endif()

# Build without file name prefix, with suffix .so on every platform, hidden symbols, and no RPATH of
# the build machine: torch's libraries are already loaded when these are.
function(neuscale_module name)
  set_target_properties(${name} PROPERTIES
    PREFIX "" SUFFIX ".so" CXX_VISIBILITY_PRESET hidden CUDA_VISIBILITY_PRESET hidden
    VISIBILITY_INLINES_HIDDEN ON BUILD_WITH_INSTALL_RPATH ON INSTALL_RPATH "")
  install(TARGETS ${name} LIBRARY DESTINATION neuscale_ops)
endfunction()
