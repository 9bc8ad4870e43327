// Parameters that llama.cpp has renamed since the oldest version that is tested.
#pragma once

#include <llama.h>

namespace support {

template <class Params>
constexpr bool has_flash_attention_type = requires {
  &Params::flash_attn_type;
};

/// Of before September 2025: without the Hadamard transform of quantised caches, with other names of nodes.
constexpr bool older_llama = !has_flash_attention_type<llama_context_params>;

template <class Params>
void set_flash_attention(Params& p, bool on) {
  if constexpr (has_flash_attention_type<Params>)
    p.flash_attn_type = static_cast<decltype(p.flash_attn_type)>(on ? 1 : 0);
  else
    p.flash_attn = on;
}

}  // namespace support
