// Part of lagkv (MIT). A transform: scores become ranks within their partition.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include <lagkv/retention.hpp>
#include <lagkv/workspace.hpp>

namespace lagkv {

/// score -> (number of scores below it in its partition) / lag, so that partitions compete as equals. Of equal scores the
/// earlier token ranks higher. Source: kvpress 0.5.5, lagkv_press.py (argsort of argsort).
struct rank_in_partition {
  std::size_t lag = 128;

  void operator()(std::span<float> scores, const due&, workspace& ws) const {
    std::int32_t* keys = ws.keys(lag);
    for (std::size_t begin = 0; begin < scores.size(); begin += lag) {
      float* s = scores.data() + begin;
      const std::size_t n = scores.size() - begin < lag ? scores.size() - begin : lag;
      for (std::size_t i = 0; i < n; ++i) {
        std::int32_t below = 0;
        for (std::size_t j = 0; j < n; ++j) below += s[j] < s[i] || (s[j] == s[i] && j > i) ? 1 : 0;
        keys[i] = below;
      }
      for (std::size_t i = 0; i < n; ++i) s[i] = static_cast<float>(keys[i]) / static_cast<float>(lag);
    }
  }
};

}  // namespace lagkv
