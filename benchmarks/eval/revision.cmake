# Writes OUT, which says to C++ what revision of SOURCE is built, at each build: results name what made them.
set(revision "unknown")  # no git, or a folder of another repository
execute_process(COMMAND git rev-parse --show-prefix WORKING_DIRECTORY "${SOURCE}" RESULT_VARIABLE failed
                OUTPUT_VARIABLE below OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
if(failed STREQUAL "0" AND below STREQUAL "")
  execute_process(COMMAND git describe --always --dirty --abbrev=12 "--exclude=*" WORKING_DIRECTORY "${SOURCE}"
                  RESULT_VARIABLE failed OUTPUT_VARIABLE found OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  if(failed STREQUAL "0")
    set(revision "${found}")
  endif()
endif()
file(CONFIGURE OUTPUT "${OUT}" CONTENT "#define LAGKV_EVAL_REVISION \"${revision}\"\n" @ONLY)
