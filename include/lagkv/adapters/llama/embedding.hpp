// Part of lagkv (MIT). The rotary embedding of the keys that a node of llama.cpp's graph stores.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ggml-backend.h>
#include <ggml.h>

#include <lagkv/view/rope.hpp>

namespace lagkv::inline LAGKV_ABI::llama {

/// The embedding of a layer's keys, as its graph applies it, or why it is not known.
struct embedding {
  int id = -1;               ///< of the layer
  std::size_t channels = 0;  ///< of the rows that it turns: must be those of a head
  std::string obstacle;
  rope turns;                  ///< without factors
  std::vector<float> factors;  ///< of the pairs; empty: 1

  /// Points to the factors held here.
  rope with_factors() const {
    rope r = turns;
    r.factors = factors;
    return r;
  }
};

namespace detail {

/// The node that turns what `stored` holds, where nothing but changes of shape and the Hadamard transform stand between; null
/// where there is none.
inline const ggml_tensor* turn_of(const ggml_tensor* stored) {
  while (stored != nullptr && stored->op != GGML_OP_ROPE) {
    switch (stored->op) {
      case GGML_OP_RESHAPE:
      case GGML_OP_VIEW:
      case GGML_OP_CONT:
        stored = stored->src[0];
        break;
      case GGML_OP_MUL_MAT:
        stored = std::string_view(stored->src[0]->name) == "attn_inp_k_rot" ? stored->src[1] : nullptr;
        break;
      default:
        return nullptr;
    }
  }
  return stored;
}

/// Frequency divisors that give what ggml's YaRN gives (rope_yarn in ggml-cpu/ops.cpp; arXiv 2309.00071): a pair's angle lies
/// between the scaled and the unscaled one by a ramp over the pairs.
inline void add_yarn(embedding& e, std::size_t pairs, float scale, float share, int original_context, float fast, float slow) {
  float ramp[2] = {};
  ggml_rope_yarn_corr_dims(static_cast<int>(2 * pairs), original_context, static_cast<float>(e.turns.base), fast, slow, ramp);
  e.factors.resize(pairs, 1.0F);
  const float width = ramp[1] - ramp[0] > 0.001F ? ramp[1] - ramp[0] : 0.001F;
  for (std::size_t j = 0; j < pairs; ++j) {
    const float along = (static_cast<float>(j) - ramp[0]) / width;
    const float unscaled = share * (1 - (along < 0 ? 0 : along > 1 ? 1 : along));
    e.factors[j] /= scale * (1 - unscaled) + unscaled;
  }
}

/// Of the keys that the node stores. Its parameters are those of ggml_rope_ext.
inline embedding embedding_of(const ggml_tensor* stored) {
  embedding e;
  const auto refused = [&](std::string why) {
    e.obstacle = std::move(why);
    return e;
  };
  const ggml_tensor* turn = turn_of(stored);
  if (turn == nullptr) return refused("is none that lagkv knows (keys are stored without a rotation, or changed after it)");
  std::int32_t whole[16] = {};
  float real[16] = {};
  static_assert(sizeof whole == sizeof real && sizeof whole <= GGML_MAX_OP_PARAMS);
  std::memcpy(whole, turn->op_params, sizeof whole);
  std::memcpy(real, turn->op_params, sizeof real);
  const std::int32_t dims = whole[1], mode = whole[2], original_context = whole[4], offset = whole[15];
  const float base = real[5], scale = real[6], yarn_share = real[7], fast = real[9], slow = real[10];
  constexpr std::int32_t neighbours = 0;  // older headers have no name for it
  if (mode != neighbours && mode != GGML_ROPE_TYPE_NEOX)
    return refused("is of mode " + std::to_string(mode) + ": must be 0 (neighbours) or 2 (halves)");
  if (offset != 0) return refused("begins at channel " + std::to_string(offset) + ": must be 0");
  e.channels = static_cast<std::size_t>(turn->ne[0]);
  e.turns.base = static_cast<double>(base), e.turns.dims = static_cast<std::size_t>(dims);
  e.turns.pairs = mode == GGML_ROPE_TYPE_NEOX ? rope::pairing::halves : rope::pairing::neighbours;
  const std::size_t pairs = e.turns.dims / 2;
  if (const ggml_tensor* divisors = turn->src[2]; divisors != nullptr) {
    e.factors.resize(pairs);
    ggml_backend_tensor_get(divisors, e.factors.data(), 0, pairs * sizeof(float));
  }
  if (yarn_share != 0)
    add_yarn(e, pairs, scale, yarn_share, original_context, fast, slow);
  else
    e.turns.position_scale = scale;
  return e;
}

}  // namespace detail

}  // namespace lagkv::inline LAGKV_ABI::llama
