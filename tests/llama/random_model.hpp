// Tiny models with random weights, of any architecture that llama.cpp knows: only metadata is written, llama.cpp makes the
// tensors of it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include <ggml-backend.h>
#include <ggml.h>
#include <gguf.h>
#include <llama.h>

#include "model.hpp"

namespace support {

using metadata = std::variant<std::uint32_t, float, bool, std::vector<std::uint32_t>>;

/// Keys are written as "<architecture>.<key>"; later ones replace earlier ones.
struct architecture {
  std::string name;
  std::vector<std::pair<std::string, metadata>> keys{};
};

constexpr std::uint32_t random_vocabulary = 128;

inline void set_random_weights(ggml_tensor* tensor, void*) {
  const std::string name(tensor->name);
  std::mt19937 engine(static_cast<std::uint32_t>(std::hash<std::string>{}(name)));
  std::normal_distribution<float> draw(0, 0.15F);
  const bool decay = name.find("ssm_a") != std::string::npos;  // states must decay
  std::vector<float> x(static_cast<std::size_t>(ggml_nelements(tensor)));
  const bool divisors = name.find("rope_f") != std::string::npos;  // of frequencies
  for (float& v : x) v = divisors ? 1 + std::abs(draw(engine)) : decay ? -std::abs(draw(engine)) : draw(engine);
  if (tensor->type == GGML_TYPE_F32) return ggml_backend_tensor_set(tensor, x.data(), 0, ggml_nbytes(tensor));
  std::vector<ggml_fp16_t> half(x.size());
  ggml_fp32_to_fp16_row(x.data(), half.data(), static_cast<std::int64_t>(x.size()));
  ggml_backend_tensor_set(tensor, half.data(), 0, ggml_nbytes(tensor));
}

/// Two layers of two heads of 32 channels, unless the keys say otherwise; windows of 32 tokens where there are any.
inline owned_model random_model(const architecture& a) {
  std::vector<std::pair<std::string, metadata>> keys = {
      {"vocab_size", random_vocabulary},
      {"context_length", 4096U},
      {"embedding_length", 64U},
      {"block_count", 2U},
      {"feed_forward_length", 96U},
      {"attention.head_count", 2U},
      {"attention.head_count_kv", 2U},
      {"attention.layer_norm_epsilon", 1e-5F},
      {"attention.layer_norm_rms_epsilon", 1e-5F},
      {"attention.sliding_window", 32U},
      {"attention.sliding_window_pattern", 2U},
      {"rope.dimension_sections", std::vector<std::uint32_t>{8, 8, 8, 8}},
  };
  for (const auto& [key, value] : a.keys) {
    std::erase_if(keys, [&k = key](const auto& pair) { return pair.first == k; });
    keys.emplace_back(key, value);
  }
  gguf_context* g = gguf_init_empty();
  gguf_set_val_str(g, "general.architecture", a.name.c_str());
  for (const auto& [key, value] : keys) {
    const std::string full = a.name + "." + key;
    if (const auto* whole = std::get_if<std::uint32_t>(&value)) gguf_set_val_u32(g, full.c_str(), *whole);
    if (const auto* real = std::get_if<float>(&value)) gguf_set_val_f32(g, full.c_str(), *real);
    if (const auto* flag = std::get_if<bool>(&value)) gguf_set_val_bool(g, full.c_str(), *flag);
    if (const auto* list = std::get_if<std::vector<std::uint32_t>>(&value))
      gguf_set_arr_data(g, full.c_str(), GGUF_TYPE_UINT32, list->data(), list->size());
  }
  std::vector<std::string> tokens;
  std::vector<const char*> names;
  for (std::uint32_t i = 0; i < random_vocabulary; ++i) tokens.push_back("t" + std::to_string(i));
  for (const std::string& t : tokens) names.push_back(t.c_str());
  const std::vector<float> scores(names.size(), 0);
  gguf_set_val_str(g, "tokenizer.ggml.model", "test");
  gguf_set_arr_str(g, "tokenizer.ggml.tokens", names.data(), names.size());
  gguf_set_arr_data(g, "tokenizer.ggml.scores", GGUF_TYPE_FLOAT32, scores.data(), scores.size());
  for (std::uint32_t layer = 0; layer < 8; ++layer) {  // f16 where the convolution demands it
    ggml_tensor t{};
    t.type = GGML_TYPE_F16;
    ggml_set_name(&t, ("conv" + std::to_string(layer) + "d.weight").c_str());
    gguf_add_tensor(g, &t);
  }
  owned_model model(llama_model_init_from_user(g, set_random_weights, nullptr, model_params()));
  gguf_free(g);
  return model;
}

/// The first one of its name that is asked for, for as long as the program runs.
inline llama_model* made_once(const architecture& a) {
  static std::vector<std::pair<std::string, owned_model>> made;
  for (const auto& [name, model] : made)
    if (name == a.name) return model.get();
  made.emplace_back(a.name, random_model(a));
  return made.back().second.get();
}

}  // namespace support
