# cmake -DKIND=find_package|add_subdirectory -DSOURCE=<repository> -DBUILD=<its build> -DWORK=<scratch> -P run.cmake
# Builds and runs a consumer of the package. GENERATOR, CXX_COMPILER, CXX_FLAGS and LAUNCHER are those of BUILD.
function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE result)
  if(NOT result EQUAL 0)
    list(JOIN ARGN " " command)
    message(FATAL_ERROR "${command}: ${result}")
  endif()
endfunction()

set(settings -G "${GENERATOR}" "-DCMAKE_CXX_COMPILER=${CXX_COMPILER}" "-DCMAKE_CXX_FLAGS=${CXX_FLAGS}"
             "-DCMAKE_CXX_COMPILER_LAUNCHER=${LAUNCHER}")
if(KIND STREQUAL "find_package")
  file(REMOVE_RECURSE "${WORK}")
  run("${CMAKE_COMMAND}" --install "${BUILD}" --prefix "${WORK}/prefix")
  list(APPEND settings "-DCMAKE_PREFIX_PATH=${WORK}/prefix")
else()
  # Unoptimised and kept between runs: what is tested is the build, not the code.
  list(APPEND settings -DCMAKE_BUILD_TYPE=Debug "-DSSMJIT_SOURCE_DIR=${SOURCE}"
                       "-DSSMJIT_CUDA_INCLUDE_DIR=${CUDA_INCLUDE_DIR}")
endif()
run("${CMAKE_COMMAND}" -S "${SOURCE}/tests/package/${KIND}" -B "${WORK}/build" ${settings})
run("${CMAKE_COMMAND}" --build "${WORK}/build" --target consumer consumer_c)
run("${WORK}/build/consumer")
run("${WORK}/build/consumer_c")
