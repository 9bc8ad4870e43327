include_guard(GLOBAL)

# lagkv_expect(test "expression"): the test passes where its output matches, whatever it exits with. CMake splits a property at
# semicolons, and one of several expressions would be enough: "." stands for a semicolon.
function(lagkv_expect test expression)
  if(NOT ARGC EQUAL 2 OR expression MATCHES ";")
    message(FATAL_ERROR "${test}: \"${expression};${ARGN}\": a semicolon would make several expressions of it: write \".\"")
  endif()
  set_tests_properties(${test} PROPERTIES PASS_REGULAR_EXPRESSION "${expression}")
endfunction()
