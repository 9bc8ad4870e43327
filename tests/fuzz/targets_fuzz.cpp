// Every SIMD target against the plain one: the scores of all methods, on any numbers of any element type, shape and stride.
#include <cmath>
#include <string>
#include <vector>

#include <lagkv/lagkv.hpp>

#include "input.hpp"
#include "tests/support/host.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace support;
  fuzz::input in(data, size);
  constexpr std::string_view scorers[] = {"lagkv:sink=1,lag=L,ratio=0.5",
                                          "key_diff:lag=L,keep=0.5",
                                          "key_norm:keep=0.5",
                                          "value_norm:keep=0.5",
                                          "cur:keep=0.5",
                                          "manifold:keep=0.5",
                                          "nested:keep=0.5",
                                          "novelty:keep=0.5,pre_rope=yes",
                                          "snapkv:window=3,keep=0.5",
                                          "expected_attention:keep=0.5"};
  std::string text(scorers[in.below(std::size(scorers))]);
  const std::size_t lag = 1 + in.below(40), heads = 1 + in.below(2), channels = 2 * (1 + in.below(40)),
                    tokens = 80 + in.below(40);
  if (const std::size_t at = text.find('L'); at != std::string::npos) text.replace(at, 1, std::to_string(lag));
  const lagkv::dtype type = all_types[in.below(3)];
  const layout l = all_layouts[in.below(std::size(all_layouts))];
  cube k = draw_cube(in.take<std::uint8_t>(), heads, tokens, channels),
       v = draw_cube(in.take<std::uint8_t>(), heads, tokens, channels);
  const cube q = draw_cube(7, heads, 3, channels);
  const float offset = static_cast<float>(in.take<std::int8_t>()) / 16;
  for (float& x : k.x) x += offset;
  cache c(l, type, k, v);
  host queries(layout::heads_first, lagkv::dtype::f32, q);
  const lagkv::rope rope{.pairs = lagkv::rope::pairing::halves};
  lagkv::extras e;
  e.queries = queries.view(), e.rope = &rope;
  lagkv::layer all = c.layer(tokens);
  all.extra = &e;
  const lagkv::policy p = named(text);
  fuzz::expect(static_cast<bool>(lagkv::check(p, all)));
  const lagkv::candidates due = p.budget.due({}, tokens);
  if (due.empty()) return 0;
  std::vector<float> first;
  double most = 0;
  for (const lagkv::simd::target t : targets()) {
    lagkv::workspace ws(t);
    const auto scores = lagkv::score(p, all, due, ws);
    if (first.empty()) {
      first.assign(scores.begin(), scores.end());
      for (const float s : first) most = std::isfinite(s) && std::abs(s) > most ? std::abs(s) : most;
    }
    for (std::size_t i = 0; i < first.size(); ++i) {
      fuzz::expect(std::isfinite(scores[i]) == std::isfinite(first[i]));
      // Sums in another order; away from the mean what is left of them may be small.
      if (std::isfinite(first[i]))
        fuzz::expect(std::abs(static_cast<double>(scores[i]) - static_cast<double>(first[i])) <= 1e-3 * most);
    }
  }
  return 0;
}
