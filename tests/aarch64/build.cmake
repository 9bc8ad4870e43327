# Cross-compiles aarch64/CMakeLists.txt into `work` (kept, so a second run is quick).
function(run)
  execute_process(COMMAND ${ARGV} COMMAND_ERROR_IS_FATAL ANY)
endfunction()

run(${CMAKE_COMMAND} -S ${CMAKE_CURRENT_LIST_DIR} -B ${work} -G ${generator} -D CMAKE_BUILD_TYPE=Release -D CMAKE_CXX_COMPILER=${compiler}
    -D CMAKE_SYSTEM_NAME=Linux -D CMAKE_SYSTEM_PROCESSOR=aarch64 -D EIGEN_INCLUDE=${eigen} -D GTEST_SOURCE=${gtest})
run(${CMAKE_COMMAND} --build ${work} --parallel 2)
