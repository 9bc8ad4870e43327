// A prompt in any chunks ends like the same prompt at once: policies whose partitions are scored by themselves, on every view,
// type, direction and SIMD target.
#include <algorithm>
#include <string>
#include <vector>

#include <lagkv/lagkv.hpp>

#include "input.hpp"
#include "tests/support/host.hpp"

namespace {

using namespace support;
using fuzz::expect;
using lagkv::toward;

/// A sequence of an engine.
class sequence {
 public:
  sequence(layout l, lagkv::dtype type, toward direction, lagkv::simd::target target, const cube& k, const cube& v)
      : k_(k),
        v_(v),
        direction_(direction),
        keys_(l, type, k.heads, k.tokens, k.channels),
        values_(l, type, v.heads, v.tokens, v.channels),
        ws_(target) {}

  void append(std::size_t n, const lagkv::policy& p) {
    for (std::size_t i = 0; i < n; ++i, ++seen_, ++rows_) keys_.put(k_, seen_, rows_), values_.put(v_, seen_, rows_);
    const std::size_t begin = p.budget.due(at_, rows_).rows.begin, before = rows_;
    rows_ = lagkv::compress(p, lagkv::layer{keys_.view(), values_.view(), rows_}, at_, ws_, direction_);
    expect(rows_ == at_.tokens && at_.seen() == seen_);
    if (direction_ == toward::front || rows_ == before) return;
    lagkv::plan down;  // the host closes the gap
    down.reset({begin, begin + before - rows_}, before, k_.heads, 0);
    lagkv::compact(keys_.view(), down), lagkv::compact(values_.view(), down);
  }

  std::size_t seen() const { return seen_; }

  void expect_same(const sequence& other) const {
    expect(at_ == other.at_ && rows_ == other.rows_ && keys_.intact() && values_.intact());
    for (std::size_t h = 0; h < k_.heads; ++h)
      for (std::size_t i = 0; i < rows_; ++i)
        expect(keys_.row(h, i) == other.keys_.row(h, i) && values_.row(h, i) == other.values_.row(h, i));
  }

 private:
  const cube &k_, &v_;
  toward direction_;
  host keys_, values_;
  lagkv::workspace ws_;
  lagkv::cursor at_;
  std::size_t seen_ = 0, rows_ = 0;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::input in(data, size);
  const std::size_t sink = in.below(12), lag = 1 + in.below(40), share = 1 + in.below(100);
  std::string text = "lagkv:sink=" + std::to_string(sink) + ",lag=" + std::to_string(lag);
  text += ",ratio=" + std::to_string(static_cast<double>(share) / 100);
  if (in.below(2) == 1) text += ",form=local";
  const lagkv::result<lagkv::policy> p = lagkv::parse(text);
  if (!p) return 0;
  const std::size_t heads = 1 + in.below(3), channels = 1 + in.below(40), tokens = 50 + in.take<std::uint8_t>();
  const lagkv::dtype type = all_types[in.below(3)];
  const layout first = all_layouts[in.below(std::size(all_layouts))], second = all_layouts[in.below(std::size(all_layouts))];
  const toward direction = in.below(2) == 0 ? toward::front : toward::window;
  const lagkv::simd::target target = targets()[in.below(targets().size())];
  const cube k = draw_cube(in.take<std::uint8_t>(), heads, tokens, channels),
             v = draw_cube(in.take<std::uint8_t>(), heads, tokens, channels);
  sequence whole(first, type, toward::front, target, k, v), parts(second, type, direction, target, k, v);
  whole.append(tokens, *p);
  while (parts.seen() < tokens) parts.append(std::min(tokens - parts.seen(), 1 + in.below(100)), *p);
  parts.expect_same(whole);
  return 0;
}
