# Libraries, public headers, the CMake package and the pkg-config file.
include(CMakePackageConfigHelpers)

set(ssmjit_package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/ssmjit")
install(TARGETS libssmjit libssmjit_c libssmjit_cpu libssmjit_autotune EXPORT ssmjitTargets)
install(DIRECTORY "${PROJECT_SOURCE_DIR}/include/ssmjit" DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT ssmjitTargets NAMESPACE ssmjit:: DESTINATION ${ssmjit_package_dir})

set(SSMJIT_CONFIG_FMT "")
set(ssmjit_pc_requires "")
if(NOT BUILD_SHARED_LIBS AND NOT SSMJIT_STATIC_DEPS)
  set(SSMJIT_CONFIG_FMT "find_dependency(fmt)")
  set(ssmjit_pc_requires "fmt")
endif()
configure_package_config_file("${PROJECT_SOURCE_DIR}/cmake/ssmjitConfig.cmake.in"
                              "${PROJECT_BINARY_DIR}/ssmjitConfig.cmake" INSTALL_DESTINATION ${ssmjit_package_dir})
write_basic_package_version_file("${PROJECT_BINARY_DIR}/ssmjitConfigVersion.cmake" COMPATIBILITY SameMinorVersion)
# From the file to the prefix, so that `cmake --install --prefix` may choose another.
file(RELATIVE_PATH ssmjit_pc_up "/prefix/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/prefix")
configure_file("${PROJECT_SOURCE_DIR}/cmake/ssmjit.pc.in" "${PROJECT_BINARY_DIR}/ssmjit.pc" @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/ssmjitConfig.cmake" "${PROJECT_BINARY_DIR}/ssmjitConfigVersion.cmake"
        DESTINATION ${ssmjit_package_dir})
install(FILES "${PROJECT_BINARY_DIR}/ssmjit.pc" DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
