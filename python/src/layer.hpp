// One layer of a cache in Python arrays: an entry a batch index, with what the host offers beside keys and values.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "array.hpp"

namespace python {

/// Refuses a second thread while it lives: what it guards is used without the GIL.
class use {
 public:
  use(std::atomic<bool>& busy, const char* what) : busy_(busy) {
    if (busy_.exchange(true)) throw refused(std::string(what) + ": is in use by another thread");
  }
  ~use() { busy_ = false; }
  use(const use&) = delete;
  use& operator=(const use&) = delete;

 private:
  std::atomic<bool>& busy_;
};

/// The rotary embedding that keys carry; holds the factors.
struct rope_object {
  lagkv::rope rope{};
  std::vector<float> factors{};

  /// The same with its factors where this object has them.
  const lagkv::rope* get() {
    rope.factors = factors;
    return &rope;
  }
};

/// Keys and values [heads, tokens, channels], or with a batch before them, and all that is offered beside them.
class layer_object {
 public:
  layer_object(nb::handle keys, nb::handle values, std::size_t tokens, bool all_tokens);
  layer_object(const layer_object&) = delete;
  layer_object& operator=(const layer_object&) = delete;

  /// Takes what the dictionary names, all of it or nothing; None takes an offer back. Refuses a name that is none.
  void offer(nb::dict offers);

  std::size_t batch() const { return layers_.size(); }
  bool batched() const { return keys_.rank() == 4; }
  std::size_t tokens() const { return tokens_; }
  void set_tokens(std::size_t n);
  std::size_t heads() const { return layers_[0].keys.heads(); }
  std::size_t channels() const { return layers_[0].keys.channels(); }
  std::size_t capacity() const;

  const lagkv::layer& at(std::size_t entry) const { return layers_[entry]; }
  lagkv::extras& offers(std::size_t entry) { return offers_.of[entry]; }

  /// Refuses arrays of fewer entries than rows in use.
  void expect_rows() const;
  /// Refuses arrays that compress() would write and cannot: read-only ones, and those whose entries share memory.
  void expect_writable() const;
  /// The same of what accumulate() would write.
  void expect_sums_writable() const;

  std::atomic<bool> busy = false;

 private:
  array offered(const char* name, nb::handle x, int rank, unsigned types) const;
  /// What is offered, and the arrays that it points into.
  struct offered_set {
    array queries, weights, accumulated_attention, key_statistics, query_mean, query_covariance, query_factors, importance,
        positions;
    std::vector<std::uint32_t> protect{};
    std::vector<float> head_budgets{};
    std::shared_ptr<rope_object> rope{};
    std::vector<lagkv::extras> of;  ///< an entry of the batch each
  };

  /// Adds an offer to a set. Refuses a name that is none.
  void add(offered_set& to, const std::string& name, nb::handle x) const;

  array keys_, values_;
  offered_set offers_{};
  std::size_t tokens_ = 0;
  std::vector<lagkv::layer> layers_;  // point into offers_
};

}  // namespace python
