# What the CPU executor is made of: LLVM and clang 19, and Boost.Context; shared libraries, or with SSMJIT_STATIC_DEPS
# archives. Sets SSMJIT_LLVM_LIBRARIES, all that is to be linked, SSMJIT_LLVM_INCLUDE_DIR and SSMJIT_BOOST_INCLUDE_DIR.
function(ssmjit_find_llvm)
  # Paths, not the imported targets of LLVMConfig.cmake: an installed package would need those again.
  set(roots "$ENV{LLVM_ROOT}" /usr/lib/llvm-19)
  find_path(SSMJIT_LLVM_INCLUDE_DIR NAMES llvm/ExecutionEngine/Orc/LLJIT.h HINTS ${roots} PATH_SUFFIXES include)
  find_path(SSMJIT_CLANG_INCLUDE_DIR NAMES clang/CodeGen/CodeGenAction.h HINTS "${SSMJIT_LLVM_INCLUDE_DIR}")
  find_path(SSMJIT_BOOST_INCLUDE_DIR NAMES boost/context/detail/fcontext.hpp)
  if(SSMJIT_STATIC_DEPS)
    # Each before those that it needs, as linkers want archives.
    set(archives clangCodeGen clangFrontend clangDriver clangParse clangSerialization clangSema clangAPINotes clangEdit
                 clangAnalysis clangASTMatchers clangAST clangLex clangSupport clangBasic)
    find_program(SSMJIT_LLVM_CONFIG NAMES llvm-config llvm-config-19 HINTS ${roots} PATH_SUFFIXES bin)
    if(SSMJIT_LLVM_CONFIG)
      execute_process(COMMAND "${SSMJIT_LLVM_CONFIG}" --link-static --libnames coverage frontenddriver frontendhlsl lto
                              native orcjit passes
                      OUTPUT_VARIABLE llvm_archives OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
      separate_arguments(llvm_archives)
      list(FILTER llvm_archives EXCLUDE REGEX Polly)  # jit/cpu/compiler.cpp stands in for it
      list(TRANSFORM llvm_archives REPLACE "^lib(.*)[.]a$" "\\1")
    endif()
    list(APPEND archives ${llvm_archives} boost_context z zstd)
    set(parts LLVM_CONFIG)
    set(libraries "")
    foreach(archive IN LISTS archives)
      find_library(SSMJIT_${archive}_ARCHIVE NAMES "lib${archive}.a" HINTS ${roots} PATH_SUFFIXES lib)
      mark_as_advanced(SSMJIT_${archive}_ARCHIVE)
      list(APPEND parts ${archive}_ARCHIVE)
      list(APPEND libraries "${SSMJIT_${archive}_ARCHIVE}")
    endforeach()
    set(way_out "run make deps, install libzstd-dev")
  else()
    find_library(SSMJIT_LLVM_LIBRARY NAMES LLVM-19 HINTS ${roots} PATH_SUFFIXES lib)
    find_library(SSMJIT_CLANG_LIBRARY NAMES clang-cpp19 clang-cpp HINTS ${roots} PATH_SUFFIXES lib)
    find_library(SSMJIT_BOOST_CONTEXT_LIBRARY NAMES boost_context)
    set(parts CLANG_LIBRARY LLVM_LIBRARY BOOST_CONTEXT_LIBRARY)
    set(libraries "${SSMJIT_CLANG_LIBRARY}" "${SSMJIT_LLVM_LIBRARY}" "${SSMJIT_BOOST_CONTEXT_LIBRARY}")
    set(way_out "run make deps")
  endif()
  foreach(part IN LISTS parts ITEMS LLVM_INCLUDE_DIR CLANG_INCLUDE_DIR BOOST_INCLUDE_DIR)
    if(NOT SSMJIT_${part})
      message(FATAL_ERROR "The CPU executor needs LLVM and clang 19 and Boost.Context, and SSMJIT_${part} was not found: "
                          "${way_out}, or configure with -DSSMJIT_CPU_EXECUTOR=OFF")
    endif()
  endforeach()
  if(EXISTS "${SSMJIT_LLVM_INCLUDE_DIR}/llvm/Config/llvm-config.h")
    file(STRINGS "${SSMJIT_LLVM_INCLUDE_DIR}/llvm/Config/llvm-config.h" major REGEX "LLVM_VERSION_MAJOR [0-9]+")
    if(NOT major MATCHES "LLVM_VERSION_MAJOR 19")
      message(FATAL_ERROR "The CPU executor needs LLVM 19; ${SSMJIT_LLVM_INCLUDE_DIR} has ${major}. Set "
                          "SSMJIT_LLVM_INCLUDE_DIR, or configure with -DSSMJIT_CPU_EXECUTOR=OFF")
    endif()
  endif()
  set(SSMJIT_LLVM_LIBRARIES ${libraries} PARENT_SCOPE)
endfunction()
