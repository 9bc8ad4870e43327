// Part of lagkv (MIT). What a host asks of compress(), and what it did.
#pragma once

#include <cstddef>
#include <cstdint>

#include <lagkv/detail/config.hpp>

namespace lagkv::inline LAGKV_ABI::llama {

/// How to get at the cache.
enum class way : std::uint8_t {
  automatic,  ///< in place where possible, else through the state API
  in_place,   ///< rows move within the cache, freed cells become holes that the next tokens fill: a few ms, no second
              ///< buffer, but until then attention spans all cells up to the highest used one
  repack      ///< through the state API: two copies of the sequence for a moment, then its cells are dense, so that the
              ///< next tokens are decoded faster
};

/// What compress() did.
struct report {
  std::size_t tokens_before = 0;
  std::size_t tokens_after = 0;
  std::size_t bytes_before = 0;  ///< keys and values of all layers; 0 where nothing was due and there is no probe
  std::size_t bytes_after = 0;
  bool compressed = false;  ///< false: nothing was due
  bool in_place = false;
};

}  // namespace lagkv::inline LAGKV_ABI::llama
