# Cross-compiles aarch64/CMakeLists.txt into `work` (kept, so a second run is quick) and runs it under qemu.
function(run)
  execute_process(COMMAND ${ARGV} COMMAND_ERROR_IS_FATAL ANY)
endfunction()

run(${CMAKE_COMMAND} -S ${CMAKE_CURRENT_LIST_DIR} -B ${work} -G ${generator} -D CMAKE_BUILD_TYPE=Release -D CMAKE_CXX_COMPILER=${compiler}
    -D CMAKE_SYSTEM_NAME=Linux -D CMAKE_SYSTEM_PROCESSOR=aarch64 -D EIGEN_INCLUDE=${eigen} -D GTEST_SOURCE=${gtest})
run(${CMAKE_COMMAND} --build ${work} --parallel 2)
# qemu is some twenty times slower: of the larger goldens, one view of each kind.
set(filter "*-golden/official*:golden/stream*")
run(${qemu} -L ${sysroot} ${work}/lagkv-test-aarch64 --gtest_brief=1 --gtest_filter=${filter})
set(filter "golden/*_heads_first:golden/*_transposed:golden/*_blocks_of_7-*real_smollm2_l0*:*real_smollm2_l15*")
run(${qemu} -L ${sysroot} ${work}/lagkv-test-aarch64 --gtest_brief=1 --gtest_filter=${filter})
