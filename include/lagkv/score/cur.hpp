// Part of lagkv (MIT). CurDKV: tokens whose key and value are large among their neighbours (arXiv 2509.15038).
#pragma once

#include <cstddef>
#include <span>

#include <lagkv/detail/numbers.hpp>
#include <lagkv/policy/registry.hpp>
#include <lagkv/rows/rows.hpp>

namespace lagkv::inline LAGKV_ABI {

/// (|k|^2 / their sum over a window) * (|v|^2 / their sum), windows counted from the first candidate (from the first of each
/// partition). A row that is not finite takes no part. Reads each key and value once.
/// Source: kvpress 0.5.5, CURPress (which then divides by the sum over all tokens: the order is the same).
struct cur_score {
  std::size_t window = 16;  ///< tokens; kvpress's default
  std::size_t lag = 0;      ///< tokens a partition; 0: all candidates at once

  void operator()(const layer& l, std::size_t head, token_range candidates, std::span<float> out, workspace& ws) const;

 private:
  static float share(float x, double total);

  static double sum(const float* x, std::size_t n);
};

inline method method_of(const cur_score& s) { return {.score = s, .needs = {.values = true}}; }

inline constexpr parameter cur_parameters[] = {
    option<&cur_score::window>("window", accepts::positive, "tokens that norms are compared with")};

constexpr std::span<const parameter> options_of(const cur_score&) { return cur_parameters; }

inline constexpr method_entry cur_entry = entry_of<cur_score>({.name = "cur",
                                                               .meaning = "large norms of key and value among neighbours",
                                                               .source = "arXiv 2509.15038",
                                                               .reads = "keys, values"},
                                                              cur_parameters);

#if LAGKV_BODIES

LAGKV_FN void cur_score::operator()(const layer& l, std::size_t head, token_range candidates, std::span<float> out,
                                    workspace& ws) const {
  const workspace::frame scratch(ws);
  float* other = ws.take<float>(out.size());
  squares_of_rows(l.keys, head, candidates, out.data(), ws);
  squares_of_rows(l.values, head, candidates, other, ws);
  const std::size_t part = lag == 0 ? out.size() : lag;
  const std::size_t together = window > 0 ? window : 1;
  for (std::size_t begin = 0; begin < out.size(); begin += part)
    for (std::size_t at = begin, n = 0; at < begin + part; at += n) {
      n = begin + part - at < together ? begin + part - at : together;
      const double keys = sum(out.data() + at, n), values = sum(other + at, n);
      for (std::size_t i = at; i < at + n; ++i) out[i] = share(out[i], keys) * share(other[i], values);
    }
}

LAGKV_FN float cur_score::share(float x, double total) {
  if (!detail::finite(x)) return detail::not_a_number();
  return total > 0 ? static_cast<float>(static_cast<double>(x) / total) : 0.0F;
}

LAGKV_FN double cur_score::sum(const float* x, std::size_t n) {
  double total = 0;
  for (std::size_t i = 0; i < n; ++i) total += detail::finite(x[i]) ? static_cast<double>(x[i]) : 0.0;
  return total;
}

#endif

}  // namespace lagkv::inline LAGKV_ABI
