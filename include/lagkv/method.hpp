// Part of lagkv (MIT). What a method consists of, and what its file tells the list of policies. A method is one file in score/.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <type_traits>

#include <lagkv/callable.hpp>
#include <lagkv/core.hpp>
#include <lagkv/layer.hpp>
#include <lagkv/plan.hpp>
#include <lagkv/retention.hpp>
#include <lagkv/workspace.hpp>

namespace lagkv::inline LAGKV_ABI {

/// out[i] = how much token judged.begin + i of this head matters; higher stays. Reads the judged rows and those behind them,
/// writes nothing but `out`. (Rows before them may have moved; one that must read those too sets needs.all_rows.)
using scorer = callable<void(const layer&, std::size_t head, token_range judged, std::span<float> out, workspace&)>;

/// Changes the scores [heads][judged] of a layer; it may look across heads.
using transform = callable<void(std::span<float> scores, std::size_t heads, const due&, workspace&)>;

/// scores [heads][judged] -> the rows of a plan that has been reset for them.
using selector = callable<void(std::span<const float> scores, std::size_t heads, const due&, plan&, workspace&)>;

/// Up to five transforms, one after the other.
class transforms {
 public:
  static constexpr std::size_t most = 5;

  transforms() = default;
  template <class F>
  requires(!std::is_same_v<std::decay_t<F>, transforms> && requires(const F& f) { transform(f); }) transforms(const F& f) {
    then(f);
  }

  /// Appends one; false where there are five already.
  bool then(const transform& t) {
    if (count_ == most) return false;
    list_[count_++] = t;
    return true;
  }

  explicit operator bool() const { return count_ != 0; }

  void operator()(std::span<float> scores, std::size_t heads, const due& d, workspace& ws) const {
    for (std::size_t i = 0; i < count_; ++i) list_[i](scores, heads, d, ws);
  }

 private:
  transform list_[most];
  std::size_t count_ = 0;
};

/// What a policy reads beside the keys.
struct needs {
  bool values = false;
  bool all_rows = false;    ///< rows before the judged ones too
  std::size_t queries = 0;  ///< attention of the last so many tokens: extras.queries or extras.weights
  bool mass = false;        ///< attention of all tokens so far: extras.mass, or queries or weights of all tokens in use
  bool statistics = false;  ///< of queries: extras.query_mean, or extras.queries to take them from
  bool calibrated = false;  ///< and only those of the model's queries: extras.query_mean
  bool rope = false;        ///< the embedding of the keys: extras.rope
  bool moments = false;     ///< extras.moments, where it is offered

  friend needs operator|(const needs& a, const needs& b) {
    return {.values = a.values || b.values,
            .all_rows = a.all_rows || b.all_rows,
            .queries = a.queries > b.queries ? a.queries : b.queries,
            .mass = a.mass || b.mass,
            .statistics = a.statistics || b.statistics,
            .calibrated = a.calibrated || b.calibrated,
            .rope = a.rope || b.rope,
            .moments = a.moments || b.moments};
  }
};

/// The keys of a layer as a scorer is shown them; what they are turned back by must outlive them.
using key_view = tensor (*)(const layer&, const rotated&, workspace&);

/// As they were before RoPE.
inline tensor unrotated_keys(const layer& l, const rotated& how, workspace& ws) {
  ws.turns.prepare(*how.by, l.keys.channels());
  return l.keys.unrotated(how);
}

/// A scorer with what belongs to it: one method, before it is said how many tokens stay.
struct part {
  scorer score{};
  transforms adjust{};  ///< optional
  lagkv::needs needs{};
  std::size_t recent = 32;       ///< the method's own window, where none is asked for
  double recent_share = 0;       ///< and its share of the budget
  key_view unrotated = nullptr;  ///< unrotated_keys: shown keys as they were before RoPE, where nothing else is asked for
  bool agree = false;            ///< all heads of a layer take the mean of their scores, where nothing else is asked for
  std::size_t smooth = 0;        ///< reach of the triangle over neighbours, where none is asked for
  double weight = 1;             ///< in a fusion
};

struct policy;

/// The part of a scorer that has nothing else to it. Methods that have overload it.
template <class Scorer>
requires requires(const Scorer& s) { scorer(s); }
part part_of(const Scorer& s) { return {.score = s}; }

/// One key of a policy string.
struct parameter {
  enum class kind : std::uint8_t { count, positive, odd, number, word, text };

  std::string_view key;
  kind type;
  double initial;          ///< value where the string does not give the key; for words the index of one; `none`: no value
  std::string_view range;  ///< what is accepted, in words; for words the words themselves, separated by '|'
  std::string_view meaning;

  static constexpr double none = -1;
};

/// Whether a parameter has a value; the others are 0 or more.
constexpr bool given(double value) { return value > parameter::none; }

namespace accepts {

inline constexpr std::string_view count = "must be a whole number, 0 or more";
inline constexpr std::string_view positive = "must be a whole number, 1 or more";
inline constexpr std::string_view odd = "must be an odd number";
inline constexpr std::string_view share = "must be above 0 and at most 1";
inline constexpr std::string_view yes_no = "no|yes";

}  // namespace accepts

/// A method by name: the values of its parameters, in their order, make it.
struct method {
  std::string_view name;
  std::string_view meaning;
  std::string_view source;
  std::string_view reads;  ///< in words
  std::span<const parameter> parameters;
  /// `lag`: length of the partitions, 0: none. Null where the method has no scores.
  result<part> (*make)(std::span<const double> values, std::size_t lag) = nullptr;
  /// For a method whose retention is its own: all its parameters as a policy, and what makes it of them.
  std::span<const parameter> whole_parameters = {};
  result<policy> (*whole)(std::span<const double> values) = nullptr;
};

}  // namespace lagkv::inline LAGKV_ABI
