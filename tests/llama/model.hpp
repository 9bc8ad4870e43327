// How tests take a model: without llama.cpp's messages.
#pragma once

#include <memory>

#include <llama.h>

namespace support {

struct free_model {
  void operator()(llama_model* m) const { llama_model_free(m); }
};
using owned_model = std::unique_ptr<llama_model, free_model>;

/// Silences llama.cpp and starts it.
inline llama_model_params model_params() {
  llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  llama_backend_init();
  llama_model_params params = llama_model_default_params();
  params.use_extra_bufts = false;  // some virtual machines report AMX and fault on it
  return params;
}

inline owned_model load_model(const char* path) { return owned_model(llama_model_load_from_file(path, model_params())); }

/// The first one that is asked for, for as long as the program runs.
inline llama_model* loaded_once(const char* path) {
  static const owned_model model = load_model(path);
  return model.get();
}

}  // namespace support
