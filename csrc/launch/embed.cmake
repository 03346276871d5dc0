# Compiled kernels of `python -m segmenter_kernels.aot --out FOLDER` into libraries that launch them, by embed.py. The
# project has the language ASM enabled.
find_package(Python 3.8 REQUIRED COMPONENTS Interpreter)
set(segmenter_trt_launch "${CMAKE_CURRENT_LIST_DIR}")

# Ends the configuration where the folder is none.
function(segmenter_trt_require_cubins)
  get_filename_component(cubins "${SEGMENTER_TRT_CUBINS}" ABSOLUTE BASE_DIR "${CMAKE_BINARY_DIR}")
  if(NOT EXISTS "${cubins}/manifest.json")
    message(FATAL_ERROR "SEGMENTER_TRT_CUBINS: ${cubins} holds no manifest.json; fill a folder with"
      " python -m segmenter_kernels.aot --out FOLDER and name that, or leave the variable out")
  endif()
endfunction()

# Whether the folder holds a kernel of one of some ops.
function(segmenter_trt_has_cubins result)
  get_filename_component(cubins "${SEGMENTER_TRT_CUBINS}" ABSOLUTE BASE_DIR "${CMAKE_BINARY_DIR}")
  set(patterns "")
  foreach(op ${ARGN})
    list(APPEND patterns "${cubins}/${op}_*.fatbin")
  endforeach()
  file(GLOB found ${patterns})
  list(LENGTH found count)
  set(${result} ${count} PARENT_SCOPE)
endfunction()

# Adds the kernels of some ops, and the table of them, to a target of this folder.
function(segmenter_trt_embed target)
  get_filename_component(cubins "${SEGMENTER_TRT_CUBINS}" ABSOLUTE BASE_DIR "${CMAKE_BINARY_DIR}")
  set(generated "${CMAKE_CURRENT_BINARY_DIR}/generated_${target}")
  file(GLOB fatbins CONFIGURE_DEPENDS "${cubins}/*.fatbin")
  add_custom_command(
    OUTPUT "${generated}/kernels.cc" "${generated}/fatbins.S"
    COMMAND "${Python_EXECUTABLE}" "${segmenter_trt_launch}/embed.py" "${cubins}" "${generated}" ${ARGN}
    DEPENDS "${segmenter_trt_launch}/embed.py" "${cubins}/manifest.json"
    VERBATIM)
  set_source_files_properties("${generated}/fatbins.S" PROPERTIES OBJECT_DEPENDS "${fatbins}")
  # so that a unity build's other sources can be read, by clang-tidy say, before anything is built
  set_source_files_properties("${generated}/kernels.cc" PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
  target_sources(${target} PRIVATE "${generated}/kernels.cc" "${generated}/fatbins.S")
endfunction()
