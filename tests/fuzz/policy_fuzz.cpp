// A policy string, then a sequence that it compresses: any text, view, element type, direction, chunking, protected positions and
// values. The first line is the policy; the other bytes choose the rest.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <lagkv/lagkv.hpp>

#include "input.hpp"
#include "tests/support/host.hpp"

namespace {

using namespace support;
using fuzz::expect;
using lagkv::dtype;
using lagkv::toward;

constexpr std::size_t most_tokens = 220;

/// Tokens of an engine, with all that may lie beside a cache.
class engine {
 public:
  engine(const lagkv::policy& p, fuzz::input& in)
      : policy_(p),
        heads_(1 + in.below(3)),
        channels_(2 * (1 + in.below(20))),
        direction_(in.below(2) == 0 ? toward::front : toward::window),
        type_(all_types[in.below(3)]),
        layout_(all_layouts[in.below(std::size(all_layouts))]),
        keys_(layout_, type_, heads_, most_tokens, channels_),
        values_(layout_, type_, heads_, most_tokens, channels_),
        k_(draw_cube(in.take<std::uint8_t>(), heads_, most_tokens, channels_)),
        v_(draw_cube(in.take<std::uint8_t>(), heads_, most_tokens, channels_)),
        queries_(draw_cube(3, 2 * heads_, most_tokens, channels_)),
        attention_(heads_ * most_tokens),
        statistics_(heads_ * lagkv::key_statistics::size(channels_)),
        positions_(heads_ * most_tokens),
        ws_(targets()[in.below(targets().size())]) {
    constexpr std::array bad{std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 3e38F, 1e-40F,
                             0.0F};
    for (std::size_t n = in.below(8); n > 0; --n) {
      cube& to = in.below(2) == 0 ? k_ : v_;
      to.x[in.take<std::uint16_t>() % to.x.size()] = bad[in.below(bad.size())];
    }
    for (std::size_t n = in.below(16); n > 0; --n) protect_.push_back(in.take<std::uint8_t>());
    std::sort(protect_.begin(), protect_.end());
    protect_.erase(std::unique(protect_.begin(), protect_.end()), protect_.end());
  }

  /// Appends n tokens and compresses; false if the policy cannot work on such a cache.
  bool append(std::size_t n) {
    for (std::size_t i = 0; i < n; ++i, ++seen_, ++rows_) {
      keys_.put(k_, seen_, rows_), values_.put(v_, seen_, rows_);
      for (std::size_t h = 0; h < heads_; ++h) {
        positions_[h * most_tokens + rows_] = static_cast<std::uint32_t>(seen_);
        attention_[h * most_tokens + rows_] = 0;
      }
    }
    lagkv::extras e;
    const auto c = static_cast<std::ptrdiff_t>(channels_);
    const std::size_t asked = std::min(rows_, std::max(n, policy_.needs.queries));
    e.queries = lagkv::strided<float>(queries_.x.data(), {2 * heads_, channels_},
                                      {.head = c * static_cast<std::ptrdiff_t>(asked), .token = c}, asked);
    e.accumulated_attention = {attention_.data(), most_tokens}, e.positions = {positions_.data(), most_tokens};
    e.key_statistics = {statistics_.data()}, e.rope = &rope_, e.protect = protect_;
    lagkv::importance_map importance{heads_, channels_, channels_, {}};
    importance.weights = draw_cube(3, heads_, 1, importance.width()).x;
    e.importance = importance.view();
    const lagkv::layer l{keys_.view(), values_.view(), rows_, &e};
    if (!lagkv::check(policy_, l)) return false;
    lagkv::accumulate(policy_, l, at_, n, ws_);
    const std::size_t now = lagkv::compress(policy_, l, at_, ws_, direction_);
    follow(lagkv::last_plan(ws_), now);
    return true;
  }

 private:
  /// Rows, side arrays and cursor tell the same story as the plan.
  void follow(const lagkv::plan& plan, std::size_t now) {
    expect(now == at_.tokens && at_.seen() == seen_ && now >= 1 && now <= rows_ && at_.compressed <= now);
    const std::size_t freed = rows_ - now;
    const std::size_t begin = plan.empty() ? rows_ : plan.candidates.begin;
    for (std::size_t h = 0; h < heads_; ++h) {
      if (!plan.empty()) {
        const auto kept = plan.of(h);
        expect(kept.size() == plan.of(0).size());
        for (std::size_t i = 0; i < kept.size(); ++i)
          expect(kept[i] >= begin && kept[i] < plan.candidates.end && (i == 0 || kept[i - 1] < kept[i]));
      }
      std::size_t guarded = 0;
      for (std::size_t i = 0; i < now; ++i) {
        const std::size_t row = direction_ == toward::front || i < begin ? i : i + freed;
        const std::uint32_t position = positions_[h * most_tokens + row];
        expect(position < seen_);
        expect(same_row(keys_, h, row, k_, position) && same_row(values_, h, row, v_, position));
        guarded += std::binary_search(protect_.begin(), protect_.end(), position) ? 1U : 0U;
      }
      expect(guarded == static_cast<std::size_t>(
                            std::count_if(protect_.begin(), protect_.end(), [&](std::uint32_t p) { return p < seen_; })));
    }
    expect(keys_.intact() && values_.intact());
    if (direction_ == toward::window && freed > 0) close_the_gap(begin, freed);
    rows_ = now;
  }

  bool same_row(const host& at, std::size_t head, std::size_t row, const cube& of, std::size_t token) const {
    const row_bits found = at.row(head, row);
    for (std::size_t c = 0; c < channels_; ++c)
      if (found[c] != encoded(type_, of.row(head, token)[c])) return false;
    return true;
  }

  /// The host moves the rows behind a gap down, so that the next call finds them side by side.
  void close_the_gap(std::size_t begin, std::size_t freed) {
    lagkv::plan down;
    down.reset({begin, begin + freed}, rows_, heads_, 0);
    lagkv::compact(keys_.view(), down), lagkv::compact(values_.view(), down);
    for (std::size_t h = 0; h < heads_; ++h) {
      lagkv::compact(positions_.data() + h * most_tokens, h, down);
      lagkv::compact(attention_.data() + h * most_tokens, h, down);
    }
  }

  lagkv::policy policy_;
  std::size_t heads_, channels_;
  toward direction_;
  dtype type_;
  layout layout_;
  host keys_, values_;
  cube k_, v_, queries_;
  std::vector<float> attention_;
  std::vector<double> statistics_;
  std::vector<std::uint32_t> positions_, protect_;
  lagkv::rope rope_{.pairs = lagkv::rope::pairing::halves};
  lagkv::workspace ws_;
  lagkv::cursor at_;
  std::size_t rows_ = 0, seen_ = 0;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::input in(data, size);
  const lagkv::result<lagkv::policy> p = lagkv::parse(in.line());
  expect(static_cast<bool>(p) == p.message().empty());
  if (!p) return 0;
  engine host(*p, in);
  for (std::size_t left = most_tokens; left > 0 && !in.empty();) {
    const std::size_t n = std::min(left, 1 + in.below(100));
    if (!host.append(n)) return 0;
    left -= n;
  }
  return 0;
}
