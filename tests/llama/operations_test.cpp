// A host may do anything to its sequences between two calls. Random operations on a tiny model are followed by a plain reference,
// which keeps the positions, keys and values of each sequence in vectors: after each step the cache is what it says, and
// compress() acts exactly when the rule says so by the rows that are there, or refuses and changes nothing.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <regex>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include <lagkv/adapters/llama.hpp>
#include <lagkv/lagkv.hpp>

#include "random_model.hpp"

namespace {

using lagkv::llama::way;
using bytes = std::vector<std::uint8_t>;

constexpr std::size_t sink = 4;
constexpr const char* partitions = "lagkv:sink=4,lag=8,ratio=0.5";
constexpr const char* capacity = "key_diff:sink=4,recent=8,capacity=28,every=4";             // survivors are candidates again
constexpr const char* attention = "h2o:sink=4,recent=8,recent_share=0,capacity=28,every=4";  // recorded for each row

/// One token of one sequence: its keys and values in each layer.
struct row {
  llama_pos position = 0;
  std::vector<bytes> keys, values;
  std::vector<std::vector<llama_pos>> own{};  ///< [layer][head]: the position of the token that a head has here
  bool compressed = false;

  bool same_values(const row& o) const { return values == o.values; }
  bool operator==(const row& o) const { return position == o.position && keys == o.keys && values == o.values; }
};
using rows = std::vector<row>;

struct setting {
  std::string name;
  std::uint32_t sequences = 1;
  bool unified = true;
  bool flash = true;
  bool probe = true;
  support::architecture model{"llama"};
  const char* policy = partitions;

  friend void PrintTo(const setting& s, std::ostream* to) { *to << s.name; }
};

/// A real model in place of the random ones with architecture llama; null: none.
const char* file() { return std::getenv("LAGKV_OPERATIONS_MODEL"); }

/// Whether it must be the random one, of another architecture.
bool is_random(const setting& s) { return s.model.name != "llama"; }

class host {
 public:
  host(const setting& s, unsigned seed) : setting_(s), policy_(*lagkv::parse(s.policy)), random_(seed) {
    model_ = file() != nullptr ? load(file()) : support::random_model(s.model);
    heads_ = static_cast<std::size_t>(llama_model_n_head_kv(model_.get()));
    context_ = make_context(probe_);
    memory_ = llama_get_memory(context_.get());
    auto made = lagkv::llama::compressor::make(context_.get(), policy_, s.probe ? &probe_ : nullptr);
    EXPECT_TRUE(made) << made.message();
    compressor_ = std::make_unique<lagkv::llama::compressor>(*made);
  }

  /// One operation and the check after it; what it was, for messages.
  std::string step() {
    const auto sequence = static_cast<llama_seq_id>(draw(setting_.sequences));
    std::string done = "sequence " + std::to_string(sequence) + ": ";
    switch (draw(18)) {
      case 0:
      case 1:
      case 2:
      case 3: {
        if (draw(3) == 0) {
          const bool shared = setting_.sequences > 1 && setting_.unified && draw(8) == 0;
          done = shared ? "begin all with one prompt" : "feed all";
          shared ? begin_together() : feed_all();
          break;
        }
        const int n = 1 + static_cast<int>(draw(24));
        done += "feed " + std::to_string(n);
        feed(sequence, n);
        break;
      }
      case 4:
      case 5:
      case 6:
      case 7: {
        const way how = std::array{way::automatic, way::automatic, way::in_place, way::repack}[draw(4)];
        done += "compress " + std::to_string(static_cast<int>(how));
        compress(sequence, how);
        break;
      }
      case 8:
        done += "take back";
        take_back(sequence);
        break;
      case 9:
        done += "remove a span";
        remove_span(sequence, false);
        break;
      case 10:
        done += "shift";
        remove_span(sequence, true);
        break;
      case 11:
        done += "copy";
        copy(sequence);
        break;
      case 12:
        done += "clear";
        if (draw(4) == 0) clear(sequence);
        break;
      case 13:
        done += "keep only this one";
        if (draw(6) == 0) keep_only(sequence);
        break;
      case 14:
        done += "save and restore";
        save_and_restore(sequence);
        break;
      case 15:
        done += "defragment";
        defragment(sequence);
        break;
      case 16:
        done += "look at all";
        for (const auto& [each, all] : rows_) look(each);
        break;
      default:
        done += "decode more than there is room for";
        decode_too_much(sequence);
    }
    check(done);
    return done;
  }

  /// Feeds tokens of the text that all sequences begin with, and compresses; how many rows it then has. The first eight stay, so
  /// that they are those of the text.
  std::size_t begin(llama_seq_id sequence, int n, way how) {
    alike_ = true;
    compressor_->protect(sequence, {4, 5, 6, 7});
    EXPECT_TRUE(decode(sequence, n));
    const auto r = compressor_->compress(sequence, how);
    EXPECT_TRUE(r) << r.message();
    return r ? r->tokens_after : 0;
  }

  void shift(llama_seq_id sequence, llama_pos begin, llama_pos end) {
    llama_memory_seq_rm(memory_, sequence, begin, end);
    llama_memory_seq_add(memory_, sequence, end, -1, begin - end);
  }

  /// Positions [begin, end) are divided, and those behind follow, as with a context that is extended by grouped positions.
  void divide(llama_seq_id sequence, llama_pos begin, llama_pos end, int by) {
    llama_memory_seq_div(memory_, sequence, begin, end, by);
    if (end >= 0) llama_memory_seq_add(memory_, sequence, end, -1, -(end - begin) + (end - begin) / by);
  }

  std::vector<rows> read_all() const {
    std::vector<rows> all;
    for (llama_seq_id s = 0; s < static_cast<llama_seq_id>(setting_.sequences); ++s) all.push_back(read(s));
    return all;
  }

  lagkv::result<lagkv::llama::report> compress_now(llama_seq_id sequence, way how) {
    return compressor_->compress(sequence, how);
  }

  template <class Observe>
  lagkv::result<lagkv::llama::report> compress_now(llama_seq_id sequence, way how, const Observe& observe) {
    return compressor_->compress(sequence, how, observe);
  }

  lagkv::cursor at(llama_seq_id sequence) const { return compressor_->at(sequence); }

  bytes state(llama_seq_id sequence) const {
    bytes b(llama_state_seq_get_size(context_.get(), sequence));
    EXPECT_EQ(llama_state_seq_get_data(context_.get(), b.data(), b.size(), sequence), b.size());
    return b;
  }

  lagkv::llama::checkpoint save(llama_seq_id sequence) { return compressor_->save(sequence); }

  /// Puts a sequence of another host in place of this one's.
  void put(llama_seq_id sequence, const bytes& state, const lagkv::llama::checkpoint& beside) {
    llama_memory_seq_rm(memory_, sequence, -1, -1);
    EXPECT_EQ(llama_state_seq_set_data(context_.get(), state.data(), state.size(), sequence), state.size());
    EXPECT_TRUE(compressor_->restore(sequence, state, beside));
  }

  lagkv::status restore(llama_seq_id sequence, const bytes& state, const lagkv::llama::checkpoint& beside) {
    return compressor_->restore(sequence, state, beside);
  }

  void protect(llama_seq_id sequence, std::vector<std::uint32_t> positions) {
    compressor_->protect(sequence, std::move(positions));
  }

  /// By what the graphs have shown.
  std::vector<llama_pos> seen_positions() const { return probe_.positions(); }

  void defragment_now(llama_seq_id sequence) { EXPECT_TRUE(compressor_->defragment(sequence)); }

  /// Rows [first, last).
  void remove(llama_seq_id sequence, std::size_t first, std::size_t last) {
    const rows all = read(sequence);
    llama_memory_seq_rm(memory_, sequence, all[first].position, all[last - 1].position + 1);
  }

  /// Nothing decodes a token yet.
  void copy_all(llama_seq_id from, llama_seq_id to) {
    llama_memory_seq_cp(memory_, from, to, -1, -1);
    compressor_->copy(from, to);
  }

  void take_back_to(llama_seq_id sequence, llama_pos end) { llama_memory_seq_rm(memory_, sequence, end, -1); }

  /// Without a look at what is there.
  void decode_text(llama_seq_id sequence, int n) { EXPECT_TRUE(decode(sequence, n)); }

  void feed(llama_seq_id sequence, int n) {
    decode(sequence, n);  // where there is no room llama.cpp takes back what it decoded
    take_over_all();
  }

  void end(llama_seq_id sequence) { llama_memory_seq_rm(memory_, sequence, -1, -1); }

  std::size_t acted() const { return acted_; }
  /// How often, by reason without its numbers.
  const std::map<std::string, std::size_t>& refused() const { return refused_; }
  std::size_t in_place() const { return in_place_; }

 private:
  struct free_context {
    void operator()(llama_context* c) const { llama_free(c); }
  };
  using context = std::unique_ptr<llama_context, free_context>;

  static support::owned_model load(const char* path) {
    support::owned_model model = support::load_model(path);
    EXPECT_NE(model, nullptr) << "LAGKV_OPERATIONS_MODEL=" << path;
    return model;
  }

  context make_context(lagkv::llama::cache_probe& probe) const {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = 512, params.n_batch = 256, params.n_ubatch = 16;
    params.n_seq_max = setting_.sequences, params.kv_unified = setting_.unified;
    params.n_threads = params.n_threads_batch = 1;
    params.flash_attn_type = setting_.flash ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    if (setting_.probe) probe.attach(params);
    return context(llama_init_from_model(model_.get(), params));
  }

  std::size_t draw(std::size_t n) { return std::uniform_int_distribution<std::size_t>(0, n - 1)(random_); }

  /// What llama.cpp says of a sequence, in the order of positions.
  rows read(llama_seq_id sequence) const {
    bytes state(llama_state_seq_get_size(context_.get(), sequence));
    EXPECT_EQ(llama_state_seq_get_data(context_.get(), state.data(), state.size(), sequence), state.size());
    rows all;
    if (llama_memory_seq_pos_max(memory_, sequence) < 0) return all;
    const auto saved = lagkv::llama::saved_sequence::parse(state, lagkv::llama::saved_sequence::unknown_rest);
    EXPECT_TRUE(saved) << saved.message();
    if (!saved) return all;
    const auto bytes_of = [](const lagkv::llama::matrix& m, std::int32_t cell) {
      bytes b;
      lagkv::llama::detail::for_each_part(m, cell,
                                          [&](const std::uint8_t* data, std::size_t n) { b.insert(b.end(), data, data + n); });
      return b;
    };
    for (std::size_t i = 0; i < saved->tokens(); ++i) {
      row r;
      r.position = saved->positions()[i];
      for (std::size_t l = 0; l < saved->layers(); ++l) {
        r.keys.push_back(bytes_of(saved->keys(l), saved->cells()[i]));
        r.values.push_back(bytes_of(saved->values(l), saved->cells()[i]));
      }
      all.push_back(std::move(r));
    }
    return all;
  }

  /// All sequences begin anew, with the same tokens, each of which is decoded once for all of them.
  void begin_together() {
    std::vector<llama_seq_id> all;
    for (llama_seq_id s = 0; s < static_cast<llama_seq_id>(setting_.sequences); ++s) clear(s), all.push_back(s);
    const int n = 1 + static_cast<int>(draw(24));
    llama_batch batch = llama_batch_init(n, 0, static_cast<int>(all.size()));
    for (int i = 0; i < n; ++i) {
      batch.token[i] = static_cast<llama_token>(draw(support::random_vocabulary)), batch.pos[i] = i;
      batch.n_seq_id[i] = static_cast<int>(all.size()), batch.logits[i] = i == n - 1 ? 1 : 0;
      std::copy(all.begin(), all.end(), batch.seq_id[i]);
    }
    const int failed = llama_decode(context_.get(), batch);
    llama_batch_free(batch);
    waiting_.clear();
    if (failed == 0) stale_.clear();
    take_over_all();
  }

  bool decode(llama_seq_id sequence, int n) { return decode({{sequence, n}}); }

  /// Tokens of several sequences in one batch, as servers decode them.
  bool decode(const std::vector<std::pair<llama_seq_id, int>>& parts) {
    int all = 0;
    for (const auto& part : parts) all += part.second;
    llama_batch batch = llama_batch_init(all, 0, 1);
    for (const auto& [sequence, n] : parts) {
      const llama_pos first = llama_memory_seq_pos_max(memory_, sequence) + 1;
      for (int i = 0; i < n; ++i) {
        const std::int32_t at = batch.n_tokens++;
        const auto drawn = static_cast<llama_token>(draw(support::random_vocabulary));
        batch.token[at] = alike_ && first + i < 28 ? first + i : drawn;
        batch.pos[at] = first + i;
        batch.n_seq_id[at] = 1;
        batch.seq_id[at][0] = sequence;
        batch.logits[at] = i == n - 1 ? 1 : 0;
      }
    }
    const int failed = llama_decode(context_.get(), batch);
    llama_batch_free(batch);
    waiting_.clear(), copying_ = false;  // shifts and copies have been applied
    for (const auto& part : parts)
      if (failed == 0) stale_.erase(part.first);
    return failed == 0;
  }

  void feed_all() {
    std::vector<std::pair<llama_seq_id, int>> parts;
    const int same = draw(2) == 0 ? 1 + static_cast<int>(draw(9)) : 0;
    for (llama_seq_id s = 0; s < static_cast<llama_seq_id>(setting_.sequences); ++s)
      if (same > 0 || draw(3) > 0) parts.emplace_back(s, same > 0 ? same : 1 + static_cast<int>(draw(12)));
    if (parts.empty()) return;
    decode(parts);
    take_over_all();
  }

  /// New rows are what the cache holds after the old ones, which must be unchanged but for shifted keys.
  void take_over(llama_seq_id sequence) {
    const rows now = read(sequence);
    rows& was = rows_[sequence];
    ASSERT_GE(now.size(), was.size());
    for (std::size_t i = 0; i < was.size(); ++i) {
      ASSERT_EQ(now[i].position, was[i].position) << "row " << i;
      ASSERT_TRUE(now[i].same_values(was[i])) << "row " << i;
      row kept = now[i];
      kept.own = was[i].own, kept.compressed = was[i].compressed;
      was[i] = std::move(kept);
    }
    was.insert(was.end(), now.begin() + static_cast<std::ptrdiff_t>(was.size()), now.end());
    for (row& r : was)
      if (r.own.empty()) r.own.assign(r.keys.size(), std::vector<llama_pos>(heads_, r.position));
  }

  void take_over_all() {
    for (llama_seq_id s = 0; s < static_cast<llama_seq_id>(setting_.sequences); ++s) take_over(s);
  }

  void decode_too_much(llama_seq_id sequence) {
    if (draw(3) > 0) return;
    for (int i = 0; i < 5; ++i)
      if (!decode(sequence, 200)) break;
    take_over_all();
    if (rows_[sequence].size() > 300) clear(sequence);
  }

  /// A state holds of window layers only what the window sees: after a repack llama.cpp cannot take back more.
  bool has_windows() const { return llama_model_n_swa(model_.get()) > 0; }

  void take_back(llama_seq_id sequence) {
    rows& all = rows_[sequence];
    if (all.empty() || has_windows()) return;
    const std::size_t n = (std::min)(all.size(), draw(40));
    if (n == 0) return;
    llama_memory_seq_rm(memory_, sequence, all[all.size() - n].position, -1);
    all.resize(all.size() - n);
  }

  void remove_span(llama_seq_id sequence, bool shift) {
    rows& all = rows_[sequence];
    if (all.size() < 8 || has_windows()) return;
    if (shift && is_shared(sequence)) return;  // llama.cpp shifts the cells, whoever else has them
    const std::size_t n = 1 + draw(all.size() / 2), first = draw(all.size() - n);
    const llama_pos begin = all[first].position, end = all[first + n].position;
    llama_memory_seq_rm(memory_, sequence, begin, end);
    stale_.insert(sequence);
    all.erase(all.begin() + static_cast<std::ptrdiff_t>(first), all.begin() + static_cast<std::ptrdiff_t>(first + n));
    if (shift) {
      llama_memory_seq_add(memory_, sequence, end, -1, begin - end);
      for (std::size_t i = first; i < all.size(); ++i) {
        all[i].position += begin - end;
        for (auto& layer : all[i].own)
          for (llama_pos& p : layer) p += begin - end;
      }
      waiting_.insert(sequence);
    }
    if (shift && draw(3) > 0) feed(sequence, 1);
  }

  bool is_shared(llama_seq_id sequence) const {
    for (const auto& [other, all] : rows_)
      for (const row& r : all)
        if (other != sequence && !rows_.at(sequence).empty() &&
            std::any_of(rows_.at(sequence).begin(), rows_.at(sequence).end(),
                        [&](const row& mine) { return mine.position == r.position && mine.same_values(r); }))
          return true;
    return false;
  }

  void copy(llama_seq_id from) {
    if (setting_.sequences == 1 || !waiting_.empty() || rows_[from].empty()) return;
    const auto to = static_cast<llama_seq_id>(draw(setting_.sequences));
    if (to == from) return;
    clear(to);
    const bool part = setting_.unified && !has_windows() && draw(2) == 0;
    const std::size_t n = part ? 1 + draw(rows_[from].size()) : rows_[from].size();
    llama_memory_seq_cp(memory_, from, to, part ? 0 : -1, part ? rows_[from][n - 1].position + 1 : -1);
    compressor_->copy(from, to);
    rows_[to].assign(rows_[from].begin(), rows_[from].begin() + static_cast<std::ptrdiff_t>(n));
    copying_ = !setting_.unified;
    stale_.insert(to);
    if (copying_ && draw(3) > 0) feed(to, 1);
  }

  void clear(llama_seq_id sequence) {
    llama_memory_seq_rm(memory_, sequence, -1, -1);
    if (draw(2) == 0) compressor_->forget(sequence);
    rows_[sequence].clear();
    waiting_.erase(sequence);
  }

  void keep_only(llama_seq_id sequence) {
    if (!setting_.unified) return;
    llama_memory_seq_keep(memory_, sequence);
    for (auto& [other, all] : rows_)
      if (other != sequence) all.clear();
  }

  void save_and_restore(llama_seq_id from) {
    if (!waiting_.empty() || copying_ || rows_[from].empty()) return;
    const auto to = static_cast<llama_seq_id>(draw(setting_.sequences));
    if (to != from && is_shared(from)) return;  // there may be no room
    bytes state(llama_state_seq_get_size(context_.get(), from));
    llama_state_seq_get_data(context_.get(), state.data(), state.size(), from);
    const lagkv::llama::checkpoint beside = compressor_->save(from);
    const rows saved = rows_[from];
    clear(to);
    if (llama_state_seq_set_data(context_.get(), state.data(), state.size(), to) != state.size()) {  // no room
      llama_memory_seq_rm(memory_, to, -1, -1);
      compressor_->forget(to);
      if (to == from) rows_[from].clear();
      return;
    }
    rows_[to] = saved;
    stale_.insert(to);
    // The rows that the checkpoint speaks of: the host may have taken some since.
    const auto ok = compressor_->restore(to, state, beside);
    if (!ok) {
      refuse(ok.message());
      compressor_->forget(to);
      for (row& r : rows_[to]) r.compressed = false;
      return;
    }
    for (std::size_t i = 0; i < rows_[to].size(); ++i) rows_[to][i].compressed = i < beside.at.compressed;
  }

  /// A checkpoint, also while llama.cpp has a shift or a copy still to make. What the compressor knows is unchanged.
  void look(llama_seq_id sequence) {
    compressor_->save(sequence);
    if (setting_.policy != partitions && waiting_.empty() && !copying_) check_moved(sequence);
  }

  void refuse(const std::string& why) { ++refused_[std::regex_replace(why, std::regex("[0-9]+"), "N")]; }

  /// It changes no row of any sequence, which check() sees; what is due stays due.
  void defragment(llama_seq_id sequence) {
    std::map<llama_seq_id, rows> before;
    if (!copying_)
      for (llama_seq_id s = 0; s < static_cast<llama_seq_id>(setting_.sequences); ++s) before[s] = read(s);
    if (const auto ok = compressor_->defragment(sequence); !ok) refuse(ok.message());
    for (const auto& [s, is] : before) ASSERT_EQ(read(s), is);
  }

  void compress(llama_seq_id sequence, way how) {
    rows& all = rows_[sequence];
    const auto compressed =
        static_cast<std::size_t>(std::count_if(all.begin(), all.end(), [](const row& r) { return r.compressed; }));
    const std::size_t n = all.size();
    const expectation e = expect(compressed, n);
    const bool due = e.judged > 0;
    const std::size_t cursor = compressor_->at(sequence).compressed;
    std::map<llama_seq_id, rows> before;
    if (!copying_)
      for (llama_seq_id s = 0; s < static_cast<llama_seq_id>(setting_.sequences); ++s) before[s] = read(s);
    std::vector<std::vector<std::vector<std::uint32_t>>> kept;  // [layer][head]
    const auto r = compressor_->compress(sequence, how, [&](std::size_t, const lagkv::plan& p) {
      kept.emplace_back();
      for (std::size_t h = 0; h < p.heads(); ++h) kept.back().emplace_back(p.of(h).begin(), p.of(h).end());
    });
    if (!r || !r->compressed) {
      for (const auto& [s, is] : before) ASSERT_EQ(read(s), is) << (r ? "nothing was due" : r.message());
      if (!r) return refuse(r.message());
      // A shift that llama.cpp has not applied yet looks like tokens taken back: what is due waits for the next token.
      if (!waiting_.contains(sequence)) {
        ASSERT_FALSE(due) << n << " rows, " << compressed << " compressed";
      }
      // Where nothing is due, the number is that of the last decode: what the host has removed since is not looked for.
      if (stale_.contains(sequence))
        ASSERT_GE(r->tokens_after, n);
      else
        ASSERT_EQ(r->tokens_after, n);
      return;
    }
    ++acted_, in_place_ += r->in_place ? 1U : 0U;
    ASSERT_TRUE(due) << n << " rows, " << compressed << " compressed, " << r->tokens_before << " -> " << r->tokens_after;
    ASSERT_EQ(r->tokens_before, n);
    const auto [begin, judged, stay] = e;
    const std::size_t dropped = judged - stay;
    ASSERT_EQ(r->tokens_after, n - dropped) << n << " rows, " << compressed << " compressed, the cursor said " << cursor;
    rows expected;
    for (std::size_t i = 0; i < n - dropped; ++i) {
      const std::size_t place = i < begin ? i : i + dropped;  // its cell, and with it its position
      row x = all[place];
      x.compressed = i < begin + stay;
      for (std::size_t l = 0; l < kept.size() && i >= begin && i < begin + stay; ++l)
        for (std::size_t h = 0; h < heads_; ++h) {
          const row& source = all[kept[l][h][i - begin]];
          x.own[l][h] = source.own[l][h];
          for (auto [to, from] : {std::pair{&x.keys[l], &source.keys[l]}, std::pair{&x.values[l], &source.values[l]}}) {
            const std::size_t part = from->size() / heads_;
            std::copy_n(from->begin() + static_cast<std::ptrdiff_t>(h * part), part,
                        to->begin() + static_cast<std::ptrdiff_t>(h * part));
          }
        }
      expected.push_back(std::move(x));
    }
    if (setting_.policy != attention) check_plans(all, compressed, judged, kept);  // attention is not seen here
    all = std::move(expected);
    if (setting_.policy != partitions) check_moved(sequence);
  }

  struct expectation {
    std::size_t begin = 0, judged = 0, stay = 0;
  };

  /// What the policy's rule says of n rows.
  expectation expect(std::size_t compressed, std::size_t n) const {
    if (setting_.policy != partitions) {  // as soon as 4 more are there, all but 4 sinks and the last 8 compete
      if (n < 28 + 4) return {};
      return {sink, n - sink - 8, 28 - sink - 8};
    }
    const std::size_t begin = (std::max)(compressed, sink);  // all whole partitions but the last; half of each stays
    if (n < begin + 2 * 8) return {};
    const std::size_t judged = ((n - begin) / 8 - 1) * 8;
    return {begin, judged, judged / 2};
  }

  /// The compressor knows which token each head has in each row.
  void check_moved(llama_seq_id sequence) {
    const rows& all = rows_[sequence];
    const lagkv::llama::moved_rows moved = compressor_->save(sequence).moved;
    const std::size_t n = compressor_->at(sequence).compressed;
    ASSERT_EQ(moved.cells.size(), n);
    for (std::size_t i = 0; i < n; ++i) {
      ASSERT_EQ(moved.cells[i], all[i].position);
      for (std::size_t l = 0; l < moved.positions.size(); ++l)
        for (std::size_t h = 0; h < heads_; ++h)
          ASSERT_EQ(static_cast<llama_pos>(moved.positions[l][h * n + i]), all[i].own[l][h]) << "row " << i;
    }
  }

  /// What is kept is what the library keeps of plain arrays.
  void check_plans(const rows& all, std::size_t compressed, std::size_t judged,
                   const std::vector<std::vector<std::vector<std::uint32_t>>>& kept) const {
    lagkv::workspace ws;
    for (std::size_t l = 0; l < kept.size(); ++l) {
      const std::size_t channels = all[0].keys[l].size() / 2 / heads_, n = all.size();
      std::vector<std::uint16_t> k(n * heads_ * channels), v(k.size());
      for (std::size_t i = 0; i < n; ++i) {
        std::memcpy(k.data() + i * heads_ * channels, all[i].keys[l].data(), all[i].keys[l].size());
        std::memcpy(v.data() + i * heads_ * channels, all[i].values[l].data(), all[i].values[l].size());
      }
      const lagkv::strides strides{.head = channels, .token = heads_ * channels};
      const lagkv::layer layer{lagkv::strided<lagkv::f16>(k.data(), {heads_, channels}, strides, n),
                               lagkv::strided<lagkv::f16>(v.data(), {heads_, channels}, strides, n), n};
      std::vector<std::uint32_t> own;
      for (std::size_t h = 0; h < heads_; ++h)
        for (const row& r : all) own.push_back(static_cast<std::uint32_t>(r.own[l][h]));
      lagkv::extras beside;
      beside.positions = {own.data(), static_cast<std::ptrdiff_t>(n)};
      lagkv::layer with = layer;
      with.extra = &beside;
      const lagkv::plan& p = plan_eviction(policy_, with, {.tokens = compressed, .dropped = 0, .compressed = compressed}, ws);
      ASSERT_EQ(p.candidates.size(), judged);
      for (std::size_t h = 0; h < heads_; ++h)
        ASSERT_TRUE(std::equal(p.of(h).begin(), p.of(h).end(), kept[l][h].begin(), kept[l][h].end()));
    }
  }

  void check(const std::string& what) {
    if (copying_) return;  // a state read before the next decode is not what it will be
    for (llama_seq_id s = 0; s < static_cast<llama_seq_id>(setting_.sequences); ++s) {
      const rows is = read(s);
      ASSERT_EQ(is.size(), rows_[s].size()) << what << ", seen in sequence " << s;
      for (std::size_t i = 0; i < is.size(); ++i)
        ASSERT_EQ(is[i], rows_[s][i]) << what << ", seen in sequence " << s << ", row " << i;
    }
  }

  setting setting_;
  bool alike_ = std::getenv("LAGKV_OPERATIONS_ALIKE") != nullptr;  // all sequences begin with the same tokens
  std::size_t heads_ = 0;
  lagkv::policy policy_;
  std::mt19937 random_;
  support::owned_model model_;
  lagkv::llama::cache_probe probe_;
  context context_;
  llama_memory_t memory_ = nullptr;
  std::unique_ptr<lagkv::llama::compressor> compressor_;
  std::map<llama_seq_id, rows> rows_;
  std::set<llama_seq_id> waiting_;  // for a shift to be applied
  std::set<llama_seq_id> stale_;    // changed since the last token of it was decoded
  bool copying_ = false;            // of a stream, at the next decode
  std::size_t acted_ = 0, in_place_ = 0;
  std::map<std::string, std::size_t> refused_;
};

/// Whoever is asked whether a sighting stays compares it with the others: none may have gone by then, nor be half-way gone.
TEST(CellTable, AllSightingsAreThereWhileTheyAreAskedAbout) {
  lagkv::llama::cell_table table;
  table.resize(8, 1, 4);
  for (std::int32_t i = 0; i < 4; ++i) {
    lagkv::llama::sighting s;
    s.cells = {2 * i, 2 * i + 1}, s.last_cell = 2 * i, s.sequence = i;
    table.set_position(0, s.last_cell, 7);
    table.keep(std::move(s));
  }
  table.retain([&](const lagkv::llama::sighting& s) {
    const auto all = table.sightings();
    EXPECT_EQ(all.size(), 4U);
    for (const lagkv::llama::sighting& other : all) EXPECT_EQ(other.cells.size(), 2U) << "asked about " << s.sequence;
    return s.sequence % 2 == 1;
  });
  ASSERT_EQ(table.sightings().size(), 2U);
  EXPECT_EQ(table.sightings()[0].sequence, 1);
  EXPECT_EQ(table.sightings()[1].sequence, 3);
  EXPECT_EQ(table.sightings()[1].cells, (std::vector<std::int32_t>{6, 7}));
}

/// Between a repack and the next token the host takes rows back, or removes a span: what is recorded of the others is theirs
/// still.
TEST(Recording, FollowsWhatIsLeftOfARepackedSequence) {
  for (const setting& s :
       {setting{"", 1, true, true, true, {"llama"}, attention}, setting{"", 2, false, true, true, {"llama"}, attention}})
    for (const auto& [first, last] : {std::pair{20, 28}, std::pair{8, 14}}) {
      std::vector<lagkv::llama::moved_rows> found;
      for (const way how : {way::in_place, way::repack}) {
        host h(s, 3);
        h.decode_text(0, 60);
        const auto once = h.compress_now(0, how);
        ASSERT_TRUE(once && once->compressed) << once.message();
        h.remove(0, static_cast<std::size_t>(first), static_cast<std::size_t>(last));
        h.decode_text(0, 30);
        const auto again = h.compress_now(0, how);
        ASSERT_TRUE(again) << s.sequences << " sequences, " << first << ": " << again.message();
        EXPECT_TRUE(again->compressed);
        found.push_back(h.save(0).moved);
      }
      EXPECT_EQ(found[0].cells, found[1].cells);
      EXPECT_EQ(found[0].positions, found[1].positions);
    }
}

/// llama.cpp copies a stream at the next decode. A checkpoint before it is no reason to forget what has been compressed.
TEST(WaitingCopy, LeavesWhatIsKnownOfTheCopy) {
  host h({"", 2, false, true, true, {"llama"}, capacity}, 1);
  h.decode_text(0, 60);
  ASSERT_TRUE(h.compress_now(0, way::in_place));
  h.copy_all(0, 1);
  const lagkv::cursor before = h.at(1);
  EXPECT_GT(before.compressed, 0U);
  h.save(1);
  h.decode_text(1, 1);
  EXPECT_EQ(h.save(1).moved.positions, h.save(0).moved.positions);
  EXPECT_EQ(h.at(1).compressed, before.compressed);
}

/// A sequence whose shift waits has as many tokens as another one, up to the same position: nothing is moved, of neither.
TEST(WaitingShift, LeavesASequenceThatLooksLikeAnother) {
  for (const way how : {way::in_place, way::automatic}) {
    host h({"", 2}, 1);
    h.feed(0, 44);
    h.feed(1, 36);
    h.shift(0, 10, 18);
    const auto before = h.read_all();
    const auto r = h.compress_now(0, how);
    ASSERT_FALSE(r);
    EXPECT_NE(r.message().find("a context shift has not been applied yet"), std::string::npos) << r.message();
    EXPECT_EQ(h.read_all(), before);
  }
}

/// llama.cpp tells of divided positions as of a shift, but counts the other way round: rows are not moved by what the table of
/// cells makes of that.
TEST(DividedPositions, LoseNoRow) {
  std::size_t in_place = 0;
  for (const std::uint32_t sequences : {1U, 2U})
    for (const auto& [begin, end] : {std::pair{0, -1}, std::pair{8, 104}, std::pair{0, 4}, std::pair{60, 120}})
      for (const way how : {way::in_place, way::automatic, way::repack}) {
        host divided({"", sequences}, 1), repacked({"", sequences}, 1);
        for (host* h : {&divided, &repacked}) {
          for (llama_seq_id s = 0; s < static_cast<llama_seq_id>(sequences); ++s) h->decode_text(s, s == 0 ? 120 : 40);
          h->divide(0, begin, end, 2);
          const auto at_once = h->compress_now(0, how);
          EXPECT_FALSE(at_once) << "it waits";
          h->decode_text(0, 3);
        }
        const auto before = divided.read_all();
        const auto r = divided.compress_now(0, how);
        const auto after = divided.read_all();
        const std::string which =
            std::to_string(begin) + ".." + std::to_string(end) + ", way " + std::to_string(static_cast<int>(how));
        if (!r) {
          EXPECT_EQ(how, way::in_place) << which << ": " << r.message();
          EXPECT_EQ(r.message(), "several tokens have one position") << which;
          EXPECT_EQ(after, before) << which;
          continue;
        }
        in_place += r->in_place ? 1U : 0U;
        EXPECT_TRUE(r->compressed) << which;
        EXPECT_EQ(r->tokens_before, 123U);
        EXPECT_EQ(after[0].size(), r->tokens_after) << which;
        const auto other = repacked.compress_now(0, way::repack);
        ASSERT_TRUE(other) << other.message();
        EXPECT_EQ(after, repacked.read_all()) << which;
      }
  EXPECT_GT(in_place, 0U);
}

/// What it throws leaves a sequence that is as compressed as without it.
TEST(Observer, IsCalledWhenAllIsDone) {
  for (const way how : {way::in_place, way::repack}) {
    host quiet({"", 2}, 1), thrown({"", 2}, 1);
    for (host* h : {&quiet, &thrown}) h->decode_text(0, 60), h->decode_text(1, 30);
    ASSERT_TRUE(quiet.compress_now(0, how));
    std::vector<rows> seen;
    EXPECT_THROW((void)thrown.compress_now(0, how,
                                           [&](std::size_t layer, const lagkv::plan& p) {
                                             if (layer == 0) seen = thrown.read_all();
                                             EXPECT_FALSE(p.empty());
                                             if (layer == 1) throw std::runtime_error("observed");
                                           }),
                 std::runtime_error);
    EXPECT_EQ(seen, quiet.read_all());
    EXPECT_EQ(thrown.read_all(), quiet.read_all());
    EXPECT_EQ(thrown.at(0).compressed, quiet.at(0).compressed);
    for (host* h : {&quiet, &thrown}) {
      const auto again = h->compress_now(0, how);
      ASSERT_TRUE(again) << again.message();
      EXPECT_FALSE(again->compressed);
      h->decode_text(0, 20);
      ASSERT_TRUE(h->compress_now(0, how));
    }
    EXPECT_EQ(thrown.read_all(), quiet.read_all());
  }
}

/// Keys are counted once, whatever the host does between two compressions: a sequence that is saved and put into another context
/// goes on with the same statistics, and keeps the same rows.
TEST(KeyStatistics, AreThoseOfTheRowsThatThereAre) {
  constexpr const char* counted = "novelty:sink=4,recent=8,capacity=28,every=4";
  for (const bool taken_back : {true, false})
    for (const bool defragmented : {true, false}) {
      const setting how{"", 2, true, true, true, {"llama"}, counted};
      host live(how, 1), other(how, 1);
      for (int i = 0; i < 4; ++i) live.decode_text(0, 9), live.decode_text(1, 10);
      ASSERT_TRUE(live.compress_now(1, way::in_place));
      live.decode_text(1, 12), live.decode_text(0, 5), live.decode_text(1, 6);
      if (taken_back) live.take_back_to(1, 35), live.decode_text(1, 30);
      if (defragmented) live.defragment_now(1), live.decode_text(1, 5);
      other.decode_text(0, 3), other.decode_text(1, 3);
      other.put(1, live.state(1), live.save(1));
      const auto x = live.compress_now(1, way::repack), y = other.compress_now(1, way::repack);
      ASSERT_TRUE(x && y) << x.message() << y.message();
      EXPECT_TRUE(x->compressed);
      EXPECT_EQ(live.save(1).key_statistics, other.save(1).key_statistics);
      EXPECT_EQ(live.read_all()[1], other.read_all()[1]) << taken_back << defragmented;
    }
}

/// Protected are the rows that llama.cpp says are at these positions, whatever the host has removed or shifted before.
TEST(Protected, AreTheRowsThatAreAtThesePositionsNow) {
  for (const char* policy : {partitions, capacity, "streaming_llm:sink=4,capacity=40", "key_diff:sink=4,lag=8,keep=0.3"})
    for (const way how : {way::in_place, way::repack})
      for (const bool shifted : {true, false})
        for (const bool compressed : {true, false}) {
          host h({"", 1, true, true, true, {"llama"}, policy}, 1);
          h.decode_text(0, 60);
          if (compressed) {
            ASSERT_TRUE(h.compress_now(0, how));
          }
          const rows first = h.read_all()[0];
          shifted ? h.shift(0, first[10].position, first[20].position) : h.remove(0, 10, 20);
          h.decode_text(0, 40);
          const rows before = h.read_all()[0];
          std::vector<std::uint32_t> positions;
          rows wanted;
          for (std::size_t i = before.size() - 40; i < before.size() - 20; i += 3) {
            positions.push_back(static_cast<std::uint32_t>(before[i].position));
            wanted.push_back(before[i]);
          }
          h.protect(0, positions);
          h.decode_text(0, 24);
          const auto r = h.compress_now(0, how);
          ASSERT_TRUE(r && r->compressed) << r.message();
          const rows after = h.read_all()[0];
          const std::size_t heads = 2,
                            part = wanted[0].values.back().size() / heads;  // in the first layer one word is as another
          for (std::size_t i = 0; i < wanted.size(); ++i)
            for (std::size_t head = 0; head < heads; ++head) {
              const auto same = [&](const row& x) {
                return std::memcmp(x.values.back().data() + head * part, wanted[i].values.back().data() + head * part, part) == 0;
              };
              EXPECT_TRUE(std::any_of(after.begin(), after.end(), same))
                  << policy << ", way " << static_cast<int>(how) << (shifted ? ", shifted" : ", removed")
                  << (compressed ? ", compressed before" : "") << ": position " << positions[i] << " of head " << head;
            }
        }
}

/// A sequence that the context cannot have is named; no cell of another is looked at.
TEST(Restore, OfASequenceThatThereIsNotIsRefused) {
  for (const bool unified : {true, false}) {
    host h({"", 2, unified}, 1);
    h.decode_text(0, 60);
    ASSERT_TRUE(h.compress_now(0, way::automatic));
    const bytes state = h.state(0);
    const lagkv::llama::checkpoint beside = h.save(0);
    const auto before = h.read_all();
    for (const llama_seq_id sequence : {-1, 2, 1000000})
      EXPECT_EQ(h.restore(sequence, state, beside).message(), "sequence " + std::to_string(sequence) + ": must be from 0 to 1");
    EXPECT_EQ(h.read_all(), before);
    EXPECT_TRUE(h.restore(0, state, beside));
    h.decode_text(0, 20);
    EXPECT_TRUE(h.compress_now(0, way::automatic));
  }
}

/// A window's cache has as many cells, and its layers may come first: its rows are those of the last tokens alone.
TEST(SeenPositions, AreThoseOfTheLayersWithFullAttention) {
  for (const char* model : {"llama", "gemma3"}) {
    host h({"", 1, true, true, true, {model}}, 1);
    EXPECT_TRUE(h.seen_positions().empty());
    h.decode_text(0, 60);
    const auto r = h.compress_now(0, way::in_place);
    EXPECT_TRUE(r) << r.message();
    for (const int more : {0, 30}) {
      if (more > 0) h.decode_text(0, more);
      const rows all = h.read_all()[0];
      std::vector<llama_pos> positions;
      for (const row& x : all) positions.push_back(x.position);
      EXPECT_EQ(h.seen_positions(), positions) << model;
      EXPECT_GT(positions.size(), 32U) << "more than the window sees";
    }
  }
}

class Operations : public testing::TestWithParam<setting> {};

/// A sequence that begins as one did that was cleared is a new one, though nobody has said so and its first rows are the rows
/// that stayed of the old one: it is partitioned as if there had been none.
TEST(NewSequence, ThatBeginsAsAnOldOneIsPartitionedAsNew) {
  for (const bool unified : {true, false})
    for (const std::uint32_t sequences : {1U, 3U})
      for (const way how : {way::automatic, way::repack}) {
        const setting s{"", sequences, unified};
        host fresh(s, 1), again(s, 1);
        again.begin(0, 28, how);
        again.end(0);
        EXPECT_EQ(fresh.begin(0, 28, how), 20U);
        EXPECT_EQ(again.begin(0, 28, how), 20U) << sequences << " sequences, unified=" << unified;
        again.end(0);
        again.begin(0, 6, how);  // taken up in pieces
        EXPECT_EQ(again.begin(0, 22, how), 20U);
      }
}

TEST_P(Operations, TheCacheIsTheTruth) {
  const char* more = std::getenv("LAGKV_OPERATIONS");  // steps of each setting
  const std::size_t steps = more != nullptr ? std::strtoul(more, nullptr, 10) : 1000;
  if (file() != nullptr && is_random(GetParam())) GTEST_SKIP() << "LAGKV_OPERATIONS_MODEL is given: of another kind";
  std::size_t acted = 0, in_place = 0;
  std::map<std::string, std::size_t> refused;
  for (std::size_t done = 0, seed = 1; done < steps; ++seed) {
    host h(GetParam(), static_cast<unsigned>(seed));
    std::vector<std::string> story;
    for (std::size_t i = 0; i < 200 && done < steps; ++i, ++done) {
      story.push_back(h.step());
      if (HasFatalFailure()) {
        std::string all;
        for (std::size_t s = story.size() > 20 ? story.size() - 20 : 0; s < story.size(); ++s) all += story[s] + "\n";
        FAIL() << "seed " << seed << ", step " << i << ":\n" << all;
      }
    }
    acted += h.acted(), in_place += h.in_place();
    for (const auto& [why, n] : h.refused()) refused[why] += n;
  }
  RecordProperty("acted", std::to_string(acted));
  std::printf("%zu operations, %zu compressions (%zu in place); refused:\n", steps, acted, in_place);
  for (const auto& [why, n] : refused) std::printf("%6zu %s\n", n, why.c_str());
  EXPECT_GT(acted, steps / (GetParam().policy == attention ? 60 : 40));  // what is not recorded is refused
}

INSTANTIATE_TEST_SUITE_P(Llama, Operations,
                         testing::Values(setting{"one_sequence"}, setting{"transposed", 1, true, false},
                                         setting{"four_unified", 4}, setting{"three_transposed", 3, true, false},
                                         setting{"three_streams", 3, false}, setting{"streams_transposed", 2, false, false},
                                         setting{"capacity", 1, true, true, true, {"llama"}, capacity},
                                         setting{"capacity_without_a_probe", 1, true, true, false, {"llama"}, capacity},
                                         setting{"capacity_of_four", 4, true, true, true, {"llama"}, capacity},
                                         setting{"capacity_in_streams", 3, false, false, true, {"llama"}, capacity},
                                         setting{"capacity_with_windows", 2, true, true, true, {"gemma3"}, capacity},
                                         setting{"attention", 1, true, true, true, {"llama"}, attention},
                                         setting{"attention_of_four", 4, true, true, true, {"llama"}, attention},
                                         setting{"attention_in_streams", 3, false, true, true, {"llama"}, attention},
                                         setting{"windows", 3, true, true, true, {"gemma3"}},
                                         setting{"windows_in_streams", 2, false, true, true, {"gemma3"}}),
                         [](const auto& s) { return s.param.name; });

}  // namespace
