# segmenter_trt_json: the headers of nlohmann/json, for this library's sources alone. From CMake's package of it, the
# folder SEGMENTER_TRT_JSON, a system's include folders, or the PyPI wheel nlohmann-json of the Python found.
add_library(segmenter_trt_json INTERFACE)
find_package(nlohmann_json 3.9 CONFIG QUIET)
if(nlohmann_json_FOUND)
  target_link_libraries(segmenter_trt_json INTERFACE nlohmann_json::nlohmann_json)
else()
  find_path(SEGMENTER_TRT_JSON nlohmann/json.hpp DOC "Folder that holds nlohmann/json.hpp")
  if(NOT SEGMENTER_TRT_JSON)
    find_package(Python COMPONENTS Interpreter QUIET)
    if(Python_FOUND)
      # found, not imported: the wheel's own module imports another package
      execute_process(
        COMMAND "${Python_EXECUTABLE}" -c
          "from importlib.util import find_spec; s = find_spec('nlohmann_json'); print(s.submodule_search_locations[0] if s else '')"
        OUTPUT_VARIABLE wheel OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
      find_path(SEGMENTER_TRT_JSON nlohmann/json.hpp HINTS "${wheel}/include" NO_DEFAULT_PATH)
    endif()
  endif()
  if(NOT SEGMENTER_TRT_JSON)
    message(FATAL_ERROR "nlohmann/json.hpp: not found; pip install nlohmann-json (or your system's nlohmann-json3-dev), "
      "or set SEGMENTER_TRT_JSON to the folder that holds nlohmann/")
  endif()
  target_include_directories(segmenter_trt_json SYSTEM INTERFACE "${SEGMENTER_TRT_JSON}")
endif()
