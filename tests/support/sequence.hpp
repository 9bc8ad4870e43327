// A sequence as an engine drives it: append, step, and carry the positions along.
#pragma once

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <vector>

#include <lagkv/lagkv.hpp>

#include "host.hpp"

namespace support {

class sequence {
 public:
  /// Appends come from `k` and `v` in order.
  sequence(layout l, lagkv::dtype type, const cube& k, const cube& v) : cache_(l, type, k, v), k_(k), v_(v), positions_(k.heads) {
    for (auto& p : positions_) p.resize(k.tokens);
  }

  /// Appends n tokens, then compresses. (Use, then compress: an engine attends in between.)
  void append(std::size_t n, const lagkv::policy& policy, lagkv::workspace& ws) {
    append_only(n);
    tokens_ = lagkv::compress(policy, cache_.layer(tokens_), at_, ws);
    for (std::size_t h = 0; h < positions_.size(); ++h) lagkv::compact(positions_[h].data(), h, lagkv::last_plan(ws));
  }

  void append_only(std::size_t n) {
    for (std::size_t i = 0; i < n; ++i, ++seen_, ++tokens_) {
      cache_.keys.put(k_, seen_, tokens_), cache_.values.put(v_, seen_, tokens_);
      for (auto& p : positions_) p[tokens_] = static_cast<int>(seen_);
    }
  }

  /// Removes rows [begin, end), as a host that edits its sequence does.
  void take_out(std::size_t begin, std::size_t end, lagkv::gap positions) {
    for (std::size_t h = 0; h < positions_.size(); ++h) {
      for (std::size_t from = end, to = begin; from < tokens_; ++from, ++to)
        for (host* x : {&cache_.keys, &cache_.values}) {
          const row_bits row = x->row(h, from);
          for (std::size_t c = 0; c < row.size(); ++c) x->set(h, to, c, row[c]);
        }
      const auto first = positions_[h].begin();
      std::copy(first + std::ptrdiff_t(end), first + std::ptrdiff_t(tokens_), first + std::ptrdiff_t(begin));
    }
    tokens_ -= end - begin;
    lagkv::take_out(at_, begin, end, positions);
  }

  std::size_t tokens() const { return tokens_; }
  std::size_t seen() const { return seen_; }
  const lagkv::cursor& at() const { return at_; }

  /// Where each row of this head came from.
  std::vector<int> positions(std::size_t head) const {
    return {positions_[head].begin(), positions_[head].begin() + static_cast<std::ptrdiff_t>(tokens_)};
  }

  /// Whether row i of every head still is the token that its position names.
  bool rows_follow_positions() const {
    const host k(layout::heads_first, cache_.keys.type(), k_), v(layout::heads_first, cache_.values.type(), v_);
    for (std::size_t h = 0; h < positions_.size(); ++h)
      for (std::size_t i = 0; i < tokens_; ++i) {
        const auto from = static_cast<std::size_t>(positions_[h][i]);
        if (cache_.keys.row(h, i) != k.row(h, from) || cache_.values.row(h, i) != v.row(h, from)) return false;
      }
    return cache_.intact();
  }

 private:
  cache cache_;
  cube k_, v_;
  std::vector<std::vector<int>> positions_;
  std::size_t tokens_ = 0, seen_ = 0;
  lagkv::cursor at_;
};

}  // namespace support
