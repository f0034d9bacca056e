# ssmjit_embed(target function header root patterns...): the files below `root` as `const EmbeddedFiles& function()`,
# declared in `header`. A file that is added or changed is taken at the next build.
function(ssmjit_embed target function header root)
  set(absolute_root "${PROJECT_SOURCE_DIR}/${root}")
  list(TRANSFORM ARGN PREPEND "${absolute_root}/" OUTPUT_VARIABLE patterns)
  file(GLOB_RECURSE files CONFIGURE_DEPENDS ${patterns})
  list(SORT files)
  set(output "${PROJECT_BINARY_DIR}/generated/${function}.cpp")
  set(files_list "${PROJECT_BINARY_DIR}/generated/${function}.txt")
  list(JOIN files "\n" lines)
  file(CONFIGURE OUTPUT "${files_list}" CONTENT "${lines}\n" @ONLY)
  add_custom_command(
    OUTPUT "${output}"
    COMMAND "${CMAKE_COMMAND}" "-DFUNCTION=${function}" "-DHEADER=${header}" "-DROOT=${absolute_root}"
            "-DOUTPUT=${output}" "-DFILES_LIST=${files_list}" -P "${PROJECT_SOURCE_DIR}/cmake/embed.cmake"
    DEPENDS ${files} "${files_list}" "${PROJECT_SOURCE_DIR}/cmake/embed.cmake"
    COMMENT "Embedding ${root}"
    VERBATIM)
  target_sources(${target} PRIVATE "${output}")
endfunction()
