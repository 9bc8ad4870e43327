// Part of lagkv (MIT). What a method consists of. Each method is one file in score/.
#pragma once

#include <cstddef>
#include <span>
#include <type_traits>

#include <lagkv/cache/layer.hpp>
#include <lagkv/plan/candidates.hpp>
#include <lagkv/plan/plan.hpp>
#include <lagkv/policy/callable.hpp>
#include <lagkv/rows/pre_rope.hpp>
#include <lagkv/view/range.hpp>
#include <lagkv/workspace.hpp>

namespace lagkv::inline LAGKV_ABI {

/// out[i] = how much token candidates.begin + i of this head matters; higher stays. Reads the candidates and the rows behind
/// them, writes nothing but `out`. (Rows before them may have moved; a scorer that reads those too sets needs.all_rows.)
using scorer = callable<void(const layer&, std::size_t head, token_range candidates, std::span<float> out, workspace&)>;

/// Changes the scores [heads][candidates] of a layer; it may look across heads.
using transform = callable<void(std::span<float> scores, std::size_t heads, const candidates&, workspace&)>;

/// scores [heads][candidates] -> the rows of a plan that has been reset for them.
using selector = callable<void(std::span<const float> scores, std::size_t heads, const candidates&, plan&, workspace&)>;

/// Up to five transforms, one after the other.
class transforms {
 public:
  static constexpr std::size_t most = 5;

  transforms() = default;
  template <class F>
  requires(!std::is_same_v<std::decay_t<F>, transforms> && requires(const F& f) { transform(f); }) transforms(const F& f) {
    list_[count_++] = f;
  }

  /// Appends one; false if there are five already.
  [[nodiscard]] bool then(const transform& t) {
    if (count_ == most) return false;
    list_[count_++] = t;
    return true;
  }

  std::size_t size() const noexcept { return count_; }
  explicit operator bool() const noexcept { return count_ != 0; }

  void operator()(std::span<float> scores, std::size_t heads, const candidates& c, workspace& ws) const {
    for (std::size_t i = 0; i < count_; ++i) list_[i](scores, heads, c, ws);
  }

 private:
  transform list_[most];
  std::size_t count_ = 0;
};

/// What a method reads beside the keys, and what it has kept for it from call to call.
struct needs {
  bool values = false;
  bool all_rows = false;               ///< rows before the candidates too
  std::size_t queries = 0;             ///< attention of the last so many tokens: extras.queries or extras.weights
  bool accumulated_attention = false;  ///< of all tokens so far; or queries or weights of all tokens in use
  bool query_statistics = false;       ///< extras.query_mean, or extras.queries to take them from
  bool calibrated = false;             ///< and only those of the model's queries: extras.query_mean
  bool importance = false;             ///< extras.importance
  bool rope = false;                   ///< the embedding of the keys: extras.rope
  bool positions = false;              ///< of survivors, where the budget makes them candidates again: extras.positions
  bool key_statistics = false;         ///< of the whole sequence, if they are offered
  bool head_budgets = false;           ///< extras.head_budgets

  friend needs operator|(const needs& a, const needs& b) {
    return {.values = a.values || b.values,
            .all_rows = a.all_rows || b.all_rows,
            .queries = a.queries > b.queries ? a.queries : b.queries,
            .accumulated_attention = a.accumulated_attention || b.accumulated_attention,
            .query_statistics = a.query_statistics || b.query_statistics,
            .calibrated = a.calibrated || b.calibrated,
            .importance = a.importance || b.importance,
            .rope = a.rope || b.rope,
            .positions = a.positions || b.positions,
            .key_statistics = a.key_statistics || b.key_statistics,
            .head_budgets = a.head_budgets || b.head_budgets};
  }
};

/// The keys of a layer as a scorer is shown them; what `how` points to must outlive them.
using key_view = tensor (*)(const layer&, const rotated& how, workspace&);

/// As they were before RoPE.
inline tensor pre_rope_keys(const layer& l, const rotated& how, workspace& ws) { return pre_rope(l.keys, how, ws); }

namespace detail {

/// A layer as a scorer is shown it.
class shown {
 public:
  shown(const layer& l, const row_positions& positions, key_view keys, workspace& ws) : seen_(&l) {
    if (keys == nullptr) return;
    rotated_ = {l.extra->rope, positions};
    changed_ = l;
    changed_.keys = keys(l, rotated_, ws);
    seen_ = &changed_;
  }
  shown(const shown&) = delete;
  shown& operator=(const shown&) = delete;

  const layer& operator*() const { return *seen_; }

 private:
  const layer* seen_;
  rotated rotated_{};
  layer changed_{};
};

}  // namespace detail

/// A scorer with what belongs to it, before it is said how many tokens stay. A file in score/ makes one by method_of().
struct method {
  scorer score{};
  transforms adjust{};  ///< optional
  lagkv::needs needs{};
  std::size_t recent = 32;      ///< the method's own window, if the options name none
  double recent_share = 0;      ///< its share of the budget, likewise
  key_view pre_rope = nullptr;  ///< pre_rope_keys: it is shown keys as they were before RoPE, likewise
  bool shared_heads = false;    ///< all heads of a layer take the mean of their scores, likewise
  std::size_t smooth = 0;       ///< reach of the triangle over neighbours, likewise
  double weight = 1;            ///< in a fusion
};

/// The method of a scorer that has nothing else to it. Scorers that have overload it.
template <class Scorer>
requires requires(const Scorer& s) { scorer(s); }
method method_of(const Scorer& s) { return {.score = s}; }

}  // namespace lagkv::inline LAGKV_ABI
