# cuda.h and nvrtc.h, 12.8 or later, for jit/ alone: from a toolkit or from the wheels that `make deps` unpacks.
# No CUDA library is linked.
function(ssmjit_find_cuda_headers)
  file(GLOB wheels "${PROJECT_SOURCE_DIR}/.venv/lib/python3*/site-packages/nvidia/cu13/include")
  foreach(dir IN ITEMS "${SSMJIT_CUDA_INCLUDE_DIR}" "$ENV{CUDA_HOME}/include" "$ENV{CUDA_PATH}/include"
                       /usr/local/cuda/include ${wheels} /usr/include)
    if(EXISTS "${dir}/cuda.h" AND EXISTS "${dir}/nvrtc.h")
      file(STRINGS "${dir}/cuda.h" version REGEX "^#define CUDA_VERSION [0-9]+")
      if(version MATCHES "([0-9]+)$" AND CMAKE_MATCH_1 GREATER_EQUAL 12080)
        set(SSMJIT_CUDA_INCLUDE_DIR "${dir}" CACHE PATH "Folder of cuda.h and nvrtc.h" FORCE)
        return()
      endif()
    endif()
  endforeach()
  message(FATAL_ERROR "ssmjit needs cuda.h and nvrtc.h and found no folder with both (a CUDA toolkit 12.8 or later "
                      "under CUDA_HOME or /usr/local/cuda, or the wheels in .venv): run make deps, or set "
                      "SSMJIT_CUDA_INCLUDE_DIR")
endfunction()
