# Configures and builds llama.cpp's one library as a project of its own; run by llama.cmake at build time as
#   cmake -D SOURCE= -D BUILD= -D GENERATOR= -D MAKE_PROGRAM= -D CXX= -D CXX_ID= -P llama-build.cmake
# Nothing but these six values comes from our build, so neither our warnings nor our sanitizers reach it.

file(LOCK "${BUILD}.lock")  # two presets may be built at once
foreach(flags CFLAGS CXXFLAGS CPPFLAGS LDFLAGS)
  unset(ENV{${flags}})
endforeach()

# A tree that was moved or copied cannot be configured again.
if(EXISTS "${BUILD}/CMakeCache.txt")
  file(STRINGS "${BUILD}/CMakeCache.txt" made_in REGEX "^CMAKE_CACHEFILE_DIR:")
  if(NOT made_in STREQUAL "CMAKE_CACHEFILE_DIR:INTERNAL=${BUILD}")
    file(REMOVE_RECURSE "${BUILD}")
  endif()
endif()

# Configured by the first preset that comes along: it is a C interface, any compiler of ours can use the result.
if(NOT EXISTS "${BUILD}/configured")
  set(off "")
  foreach(part COMMON TESTS TOOLS EXAMPLES SERVER APP UI)
    list(APPEND off -D LLAMA_BUILD_${part}=OFF)
  endforeach()
  # The model runs in ggml. llama.cpp's own sources, two thirds of the build, only set it up: -O1 compiles them in two thirds of
  # the time, and a prompt and an answer take as long as with -O3.
  file(WRITE "${BUILD}/ggml.cmake" "set(CMAKE_CXX_FLAGS_RELEASE \"-O3 -DNDEBUG\")\n")
  # GCC (12.2) takes _tile_loadconfig to read 8 bytes of its 64 and leaves out the stores of the rest: AMX faults.
  set(keep_stores "")
  if(CXX_ID STREQUAL "GNU")
    set(keep_stores "-fno-tree-dse -fno-dse")
  endif()
  execute_process(
    COMMAND "${CMAKE_COMMAND}" -G "${GENERATOR}" -S "${SOURCE}" -B "${BUILD}"
            -D CMAKE_MAKE_PROGRAM=${MAKE_PROGRAM} -D CMAKE_CXX_COMPILER=${CXX}
            -D CMAKE_BUILD_TYPE=Release -D BUILD_SHARED_LIBS=ON -D GGML_NATIVE=ON -D GGML_RPC=ON -D GGML_CCACHE=OFF
            -D LLAMA_OPENSSL=OFF -D LLAMA_ALL_WARNINGS=OFF -D "CMAKE_CXX_FLAGS=${keep_stores}"
            -D "CMAKE_CXX_FLAGS_RELEASE=-O1 -DNDEBUG" -D "CMAKE_PROJECT_ggml_INCLUDE=${BUILD}/ggml.cmake" ${off}
    RESULT_VARIABLE failed OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(failed)
    message(FATAL_ERROR "configuring llama.cpp failed\n${output}")
  endif()
  file(TOUCH "${BUILD}/configured")
endif()

# The 78 steps, a line each, are for somebody who watches a terminal; elsewhere they are shown where the build fails. A command
# that CMake runs never sees the terminal itself.
set(out "")
if(IS_SYMLINK /proc/self/fd/1)
  file(READ_SYMLINK /proc/self/fd/1 out)
endif()
set(log "")
set(to_log "")
if(NOT out MATCHES "^/dev/(pts/|tty|console)")
  set(to_log OUTPUT_VARIABLE log ERROR_VARIABLE log)
endif()
cmake_host_system_information(RESULT cores QUERY NUMBER_OF_LOGICAL_CORES)
execute_process(COMMAND "${CMAKE_COMMAND}" --build "${BUILD}" --target llama --parallel ${cores} RESULT_VARIABLE failed ${to_log})
if(failed)
  message("${log}")
  message(FATAL_ERROR "building llama.cpp failed")
endif()
