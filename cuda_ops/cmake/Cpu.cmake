include(CheckCXXSourceCompiles)

add_library(neuscale_ops_cpu MODULE
  csrc/schema.cpp csrc/cpu/gelu_rows.cpp csrc/cpu/bias_gelu.cpp csrc/cpu/crop_flip_normalize.cpp)
target_link_libraries(neuscale_ops_cpu PRIVATE neuscale_torch torch_cpu)
# Neither -fno-math-errno nor -fno-trapping-math changes a result: this code reads neither errno nor
# the floating-point status flags. Loops with conditionals vectorise only with these options.
target_compile_options(neuscale_ops_cpu PRIVATE -O3 -Wall -Wextra -fno-math-errno -fno-trapping-math)

check_cxx_source_compiles("
  __attribute__((target_clones(\"arch=x86-64-v4\", \"arch=x86-64-v3\", \"default\"))) int f() { return 0; }
  int main() { return f(); }" NEUSCALE_HAS_TARGET_CLONES)
if(NEUSCALE_HAS_TARGET_CLONES)
  target_compile_definitions(neuscale_ops_cpu PRIVATE NEUSCALE_TARGET_CLONES)
endif()
neuscale_module(neuscale_ops_cpu)
