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

  /// Takes what the dictionary names; None takes an offer back. Refuses a name that is none.
  void offer(nb::dict offers);

  std::size_t batch() const { return layers_.size(); }
  bool batched() const { return keys_.rank() == 4; }
  std::size_t tokens() const { return tokens_; }
  void set_tokens(std::size_t n);
  std::size_t heads() const { return layers_[0].keys.heads(); }
  std::size_t channels() const { return layers_[0].keys.channels(); }
  std::size_t capacity() const;

  const lagkv::layer& at(std::size_t entry) const { return layers_[entry]; }
  lagkv::extras& offers(std::size_t entry) { return extras_[entry]; }
  bool protects() const { return !protect_.empty(); }

  /// Refuses arrays of fewer entries than rows in use.
  void expect_rows() const;
  /// Refuses read-only arrays that compress() would write.
  void expect_writable() const;
  /// The same of what accumulate() would write.
  void expect_sums_writable() const;

  std::atomic<bool> busy = false;

 private:
  array offered(const char* name, nb::handle x, int rank, unsigned types) const;
  template <class Set>
  void for_each_entry(const array& x, const Set& set);

  array keys_, values_, queries_, weights_, accumulated_attention_, key_statistics_, query_mean_, query_covariance_,
      query_factors_, importance_, positions_;
  std::vector<std::uint32_t> protect_{};
  std::unique_ptr<rope_object> rope_{};
  std::size_t tokens_ = 0;
  std::vector<lagkv::extras> extras_;
  std::vector<lagkv::layer> layers_;  // point into extras_
};

}  // namespace python
