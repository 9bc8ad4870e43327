// What run and tune ask of llama.cpp alike.
#pragma once

#include <string>

namespace eval {

struct host_options {
  std::string model;               ///< GGUF file
  int threads = 0;                 ///< 0: all cores. For the prompt; then as many policies at a time, a thread each
  std::string cache_type = "f16";  ///< as session_options::types
  bool transposed = false;         ///< values: llama.cpp without flash attention
  bool repack = false;             ///< weights as llama.cpp likes them best on this processor
};

}  // namespace eval
