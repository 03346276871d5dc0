# segmenter_trt_json: the headers of nlohmann/json, for this library's sources alone. From the folder SEGMENTER_TRT_JSON, or
# where that names none, CMake's package of it, a system's include folders, or the PyPI wheel nlohmann-json of the Python
# that is named (Python_EXECUTABLE) or on PATH. What is found or missing is not kept: another Python may be active when
# CMake runs again.
add_library(segmenter_trt_json INTERFACE)
set(SEGMENTER_TRT_JSON "" CACHE PATH "Folder that holds nlohmann/json.hpp; looked for when empty")

if(NOT SEGMENTER_TRT_JSON)
  find_package(nlohmann_json 3.9 CONFIG QUIET)
endif()
if(SEGMENTER_TRT_JSON)
  set(json_headers "${SEGMENTER_TRT_JSON}")
  set(json_place " in SEGMENTER_TRT_JSON, ${SEGMENTER_TRT_JSON}")
elseif(nlohmann_json_FOUND)
  target_link_libraries(segmenter_trt_json INTERFACE nlohmann_json::nlohmann_json)
  return()
else()
  unset(json_python)
  if(Python_EXECUTABLE)
    set(json_python "${Python_EXECUTABLE}")
  endif()
  find_program(json_python NAMES python3 python NO_CACHE)
  if(json_python)
    # found, not imported: the wheel's own module imports another package
    execute_process(
      COMMAND "${json_python}" -c
        "from importlib.util import find_spec; s = find_spec('nlohmann_json'); print(s.submodule_search_locations[0] if s else '')"
      OUTPUT_VARIABLE json_wheel OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  endif()
  unset(json_headers)
  find_path(json_headers nlohmann/json.hpp PATHS "${json_wheel}/include" NO_CACHE)
endif()
if(NOT EXISTS "${json_headers}/nlohmann/json.hpp")
  message(FATAL_ERROR "nlohmann/json.hpp: not found${json_place}; pip install nlohmann-json (or your system's "
    "nlohmann-json3-dev), or set SEGMENTER_TRT_JSON to the folder that holds nlohmann/")
endif()
target_include_directories(segmenter_trt_json SYSTEM INTERFACE "${json_headers}")
