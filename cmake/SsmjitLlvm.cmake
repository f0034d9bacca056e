# What the CPU executor is made of: LLVM and clang 19 as shared libraries, and Boost.Context. Sets SSMJIT_LLVM_LIBRARY,
# SSMJIT_CLANG_LIBRARY, SSMJIT_LLVM_INCLUDE_DIR, SSMJIT_BOOST_CONTEXT_LIBRARY and SSMJIT_BOOST_INCLUDE_DIR.
function(ssmjit_find_llvm)
  # Paths, not the imported targets of LLVMConfig.cmake: an installed package would need those again.
  set(roots "$ENV{LLVM_ROOT}" /usr/lib/llvm-19)
  find_library(SSMJIT_LLVM_LIBRARY NAMES LLVM-19 HINTS ${roots} PATH_SUFFIXES lib)
  find_library(SSMJIT_CLANG_LIBRARY NAMES clang-cpp19 clang-cpp HINTS ${roots} PATH_SUFFIXES lib)
  find_path(SSMJIT_LLVM_INCLUDE_DIR NAMES llvm/ExecutionEngine/Orc/LLJIT.h HINTS ${roots} PATH_SUFFIXES include)
  find_path(SSMJIT_CLANG_INCLUDE_DIR NAMES clang/CodeGen/CodeGenAction.h HINTS "${SSMJIT_LLVM_INCLUDE_DIR}")
  find_library(SSMJIT_BOOST_CONTEXT_LIBRARY NAMES boost_context)
  find_path(SSMJIT_BOOST_INCLUDE_DIR NAMES boost/context/detail/fcontext.hpp)
  foreach(part IN ITEMS LLVM_LIBRARY CLANG_LIBRARY LLVM_INCLUDE_DIR CLANG_INCLUDE_DIR BOOST_CONTEXT_LIBRARY
                        BOOST_INCLUDE_DIR)
    if(NOT SSMJIT_${part})
      message(FATAL_ERROR "The CPU executor needs LLVM and clang 19 and Boost.Context, and SSMJIT_${part} was not found: "
                          "run make deps, or configure with -DSSMJIT_CPU_EXECUTOR=OFF")
    endif()
  endforeach()
  if(EXISTS "${SSMJIT_LLVM_INCLUDE_DIR}/llvm/Config/llvm-config.h")
    file(STRINGS "${SSMJIT_LLVM_INCLUDE_DIR}/llvm/Config/llvm-config.h" major REGEX "LLVM_VERSION_MAJOR [0-9]+")
    if(NOT major MATCHES "LLVM_VERSION_MAJOR 19")
      message(FATAL_ERROR "The CPU executor needs LLVM 19; ${SSMJIT_LLVM_INCLUDE_DIR} has ${major}. Set "
                          "SSMJIT_LLVM_INCLUDE_DIR, or configure with -DSSMJIT_CPU_EXECUTOR=OFF")
    endif()
  endif()
endfunction()
