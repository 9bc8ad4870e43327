# cmake -D kind=find_package|add_subdirectory -D root= -D work= -D generator= -D compiler= -P run.cmake
# Builds and runs the consumer project `kind` from scratch.
function(run)
  execute_process(COMMAND ${ARGV} COMMAND_ERROR_IS_FATAL ANY)
endfunction()

file(REMOVE_RECURSE ${work})
set(common -G ${generator} -D CMAKE_CXX_COMPILER=${compiler} -D CMAKE_BUILD_TYPE=Release)
set(extra -D LAGKV_ROOT=${root})
if(kind STREQUAL find_package)
  run(${CMAKE_COMMAND} -S ${root} -B ${work}/lagkv ${common} -D CMAKE_INSTALL_PREFIX=${work}/prefix
      -D LAGKV_TESTS=OFF -D LAGKV_EXAMPLES=OFF -D LAGKV_TOOLS=OFF)
  run(${CMAKE_COMMAND} --install ${work}/lagkv)
  set(extra -D CMAKE_PREFIX_PATH=${work}/prefix)
endif()
run(${CMAKE_COMMAND} -S ${CMAKE_CURRENT_LIST_DIR}/${kind} -B ${work}/engine ${common} ${extra})
run(${CMAKE_COMMAND} --build ${work}/engine)
run(${work}/engine/engine)
