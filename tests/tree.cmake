# cmake -P tests/tree.cmake: rules for the tree. Where one is broken it says the file, the line and the rule, and fails.
#  floors    a header of include/lagkv includes only rooms below its own, or its own; a room is a folder or a loose file
#  loose     at most 8 headers lie beside the folders
#  columns   a line of C++, CMake or Python has at most 130 characters
#  methods   views, cache, rows, plans, policies, workspace and loop name no method
#  umbrella  lagkv.hpp leads to every header but those of adapters/, detail/ and simd/, and those that need Eigen
cmake_minimum_required(VERSION 3.18)
get_filename_component(root ${CMAKE_CURRENT_LIST_DIR} DIRECTORY)
set(headers ${root}/include/lagkv)

# The rooms from the ground up. Rooms of one floor do not include each other.
set(floors
  "version.hpp"
  "detail"
  "result.hpp"
  "view"
  "simd"
  "workspace.hpp"
  "cache"
  "rows plan"
  "transform attention"
  "select"
  "policy"
  "score"
  "methods.hpp compress.hpp accumulate.hpp"
  "lagkv.hpp methods_with_eigen.hpp"
  "adapters lagkv.cpp")
set(name_no_method view cache rows plan policy workspace.hpp compress.hpp accumulate.hpp)
set(outside_umbrella adapters detail simd)
set(most_loose 8)
set(most_columns 130)

set(faults 0)
function(fault where what)
  message("${where}: ${what}")
  math(EXPR n "${faults} + 1")
  set(faults ${n} PARENT_SCOPE)
endfunction()

# The lines of a file as a list; what would upset a list (brackets, semicolons, backslashes) is replaced by another character.
function(read_lines file out)
  file(READ ${file} text)
  string(REPLACE "\\" "/" text "${text}")
  string(REPLACE ";" "," text "${text}")
  string(REPLACE "[" "(" text "${text}")
  string(REPLACE "]" ")" text "${text}")
  string(REPLACE "\n" ";" text "${text}")
  set(${out} "${text}" PARENT_SCOPE)
endfunction()

function(room_of header out)
  string(REGEX REPLACE "/.*" "" room ${header})
  set(${out} ${room} PARENT_SCOPE)
endfunction()

set(floor 0)
foreach(rooms IN LISTS floors)
  string(REPLACE " " ";" rooms ${rooms})
  foreach(room IN LISTS rooms)
    set(floor_of_${room} ${floor})
  endforeach()
  math(EXPR floor "${floor} + 1")
endforeach()

# A method's names: its file's `.name = "paged_eviction"` gives paged_eviction, PagedEviction, "paged eviction". Names that are
# plain words count only as the code writes them (random_score, LagKV).
file(GLOB scores ${headers}/score/*.hpp)
set(method_words "(full|random|lagkv)_(score|entry|method|options|form|parameters)|make_lagkv")
foreach(score IN LISTS scores)
  file(STRINGS ${score} names REGEX "[.]name = \"[a-z0-9_]+\"")
  foreach(name IN LISTS names)
    string(REGEX REPLACE ".*[.]name = \"([a-z0-9_]+)\".*" "\\1" name ${name})
    if(NOT name MATCHES "^(full|random|lagkv)$")
      string(REPLACE "_" "[_ -]?" name ${name})
      string(APPEND method_words "|${name}")
    endif()
  endforeach()
endforeach()
set(method_words "(^|[^a-z0-9])(${method_words})([^a-z0-9]|$)")

file(GLOB_RECURSE files RELATIVE ${headers} ${headers}/*.hpp ${headers}/*.inl ${headers}/*.cpp)
foreach(file IN LISTS files)
  room_of(${file} room)
  set(included_by_${file} "")
  set(needs_eigen_${file} FALSE)
  if(NOT DEFINED floor_of_${room})
    fault(include/lagkv/${file} "floors: ${room} is a new room: give it a floor in tests/tree.cmake")
    set(floor_of_${room} -1)
  endif()
  read_lines(${headers}/${file} lines)
  set(at 0)
  foreach(line IN LISTS lines)
    math(EXPR at "${at} + 1")
    if(line MATCHES "^ *# *include +<lagkv/([^>]+)>")
      set(other ${CMAKE_MATCH_1})
      list(APPEND included_by_${file} ${other})
      room_of(${other} below)
      if(NOT EXISTS ${headers}/${other})
        fault(include/lagkv/${file}:${at} "floors: there is no lagkv/${other}")
      elseif(NOT below STREQUAL room AND NOT floor_of_${below} LESS floor_of_${room})
        fault(include/lagkv/${file}:${at} "floors: ${below} does not lie below ${room}: no <lagkv/${other}> here")
      endif()
    elseif(line MATCHES "^ *# *include +<Eigen/")
      set(needs_eigen_${file} TRUE)
    elseif(line MATCHES "^ *# *include +\"")
      fault(include/lagkv/${file}:${at} "floors: headers are included as <lagkv/...>")
    endif()
    if(room IN_LIST name_no_method)
      string(TOLOWER "${line}" lower)
      if(lower MATCHES "${method_words}")
        fault(include/lagkv/${file}:${at} "methods: ${room} names the method ${CMAKE_MATCH_2}")
      elseif(line MATCHES "LagKV")
        fault(include/lagkv/${file}:${at} "methods: ${room} names the method LagKV")
      endif()
    endif()
  endforeach()
endforeach()

file(GLOB loose RELATIVE ${headers} ${headers}/*.hpp)
list(LENGTH loose n)
if(n GREATER most_loose)
  fault(include/lagkv "loose: ${n} headers beside the folders, more than ${most_loose}: ${loose}")
endif()

# Headers that the umbrella leads to, from header to header; and those that lead to Eigen.
set(reached lagkv.hpp)
set(next lagkv.hpp)
while(next)
  list(POP_FRONT next file)
  foreach(other IN LISTS included_by_${file})
    if(NOT other IN_LIST reached)
      list(APPEND reached ${other})
      list(APPEND next ${other})
    endif()
  endforeach()
endwhile()
set(grows TRUE)
while(grows)
  set(grows FALSE)
  foreach(file IN LISTS files)
    foreach(other IN LISTS included_by_${file})
      if(needs_eigen_${other} AND NOT needs_eigen_${file})
        set(needs_eigen_${file} TRUE)
        set(grows TRUE)
      endif()
    endforeach()
  endforeach()
endwhile()
foreach(file IN LISTS files)
  room_of(${file} room)
  if(needs_eigen_${file} AND file IN_LIST reached)
    fault(include/lagkv/${file} "umbrella: lagkv.hpp leads here, and so to Eigen")
  elseif(file MATCHES "[.]hpp$" AND NOT file IN_LIST reached AND NOT room IN_LIST outside_umbrella AND NOT needs_eigen_${file})
    fault(include/lagkv/${file} "umbrella: lagkv.hpp does not lead here")
  endif()
endforeach()

# Characters, not bytes: bytes 80 to bf continue a character of UTF-8.
math(EXPR more "${most_columns} + 1")
set(sources "")
foreach(folder include tests tools benchmarks examples python c)
  foreach(kind hpp cpp inl cmake py)
    list(APPEND sources ${root}/${folder}/*.${kind})
  endforeach()
  list(APPEND sources ${root}/${folder}/CMakeLists.txt)
endforeach()
file(GLOB_RECURSE sources RELATIVE ${root} ${sources})
foreach(source IN LISTS sources)
  file(STRINGS ${root}/${source} long LENGTH_MINIMUM ${more} LIMIT_COUNT 1 ENCODING UTF-8)
  if(NOT long STREQUAL "")
    read_lines(${root}/${source} lines)
    set(at 0)
    foreach(line IN LISTS lines)
      math(EXPR at "${at} + 1")
      string(LENGTH "${line}" n)
      if(n GREATER most_columns)
        string(HEX "${line}" bytes)
        string(REGEX REPLACE "([0-9a-f][0-9a-f])" " \\1" bytes "${bytes}")
        string(REGEX MATCHALL " [0-7c-f]" characters "${bytes}")
        list(LENGTH characters n)
        if(n GREATER most_columns)
          fault(${source}:${at} "columns: ${n} of at most ${most_columns}")
        endif()
      endif()
    endforeach()
  endif()
endforeach()

if(faults)
  message(FATAL_ERROR "tests/tree.cmake: ${faults} faults")
endif()
