// How tests take a model: without llama.cpp's messages.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <random>
#include <string>

#include <ggml.h>
#include <gguf.h>
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

/// A file with the first n layers of a Llama and all that is not a layer, for as long as it lives: what looks at caches and not
/// at words need not wait for the other layers.
class first_layers {
 public:
  first_layers(const char* model, std::uint32_t n)
      : path_((std::filesystem::temp_directory_path() / ("lagkv-" + std::to_string(std::random_device{}()) + ".gguf")).string()) {
    ggml_context* data = nullptr;
    gguf_context* whole = gguf_init_from_file(model, {.no_alloc = false, .ctx = &data});
    if (whole == nullptr) return;
    gguf_context* part = gguf_init_empty();
    gguf_set_kv(part, whole);
    gguf_set_val_u32(part, "llama.block_count", n);
    const std::string block = "blk.";
    for (ggml_tensor* t = ggml_get_first_tensor(data); t != nullptr; t = ggml_get_next_tensor(data, t)) {
      const std::string name(t->name);
      const bool beyond = name.starts_with(block) && std::strtoul(name.c_str() + block.size(), nullptr, 10) >= n;
      if (!beyond && gguf_find_tensor(whole, t->name) >= 0)
        gguf_add_tensor(part, t);  // `data` has one that is none of the model's
    }
    gguf_write_to_file(part, path_.c_str(), false);
    gguf_free(part), gguf_free(whole), ggml_free(data);
  }
  first_layers(const first_layers&) = delete;
  ~first_layers() {
    std::error_code there_is_none;
    std::filesystem::remove(path_, there_is_none);
  }

  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

inline owned_model load_first_layers(const char* model, std::uint32_t n) {
  return load_model(first_layers(model, n).path().c_str());
}

/// The first one that is asked for, for as long as the program runs.
inline llama_model* loaded_once(const char* path) {
  static const owned_model model = load_model(path);
  return model.get();
}

}  // namespace support
