// Queries and attention of several sequences: what is recorded of each is what a context of its own records, whatever the host
// does to the others. On tiny models with random weights.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <lagkv/adapters/llama.hpp>
#include <lagkv/adapters/llama/saved_recording.hpp>
#include <lagkv/lagkv.hpp>

#include "random_model.hpp"

namespace {

using lagkv::llama::way;
using bytes = std::vector<std::uint8_t>;

constexpr std::uint32_t sequences = 3;
constexpr const char* policy = "fuse:h2o+snapkv,recent=24,keep=0.5";

struct setting {
  const char* name;
  const char* architecture;
  bool flash, unified;
};

/// Tokens of a sequence that go into one batch.
struct piece {
  llama_seq_id sequence;
  int tokens;
};

struct session {
  session(const setting& how, std::uint32_t n) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = 512 * n, params.n_batch = params.n_ubatch = 96;
    params.n_seq_max = n, params.kv_unified = how.unified;
    params.n_threads = params.n_threads_batch = 1;
    params.type_k = params.type_v = GGML_TYPE_F32;
    params.flash_attn_type = how.flash ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    probe.attach(params);
    context.reset(llama_init_from_model(support::made_once({how.architecture}), params));
    auto made = lagkv::llama::compressor::make(context.get(), *lagkv::parse(policy), &probe);
    EXPECT_TRUE(made) << made.message();
    compressor = std::make_unique<lagkv::llama::compressor>(*made);
  }

  llama_memory_t memory() const { return llama_get_memory(context.get()); }

  /// Tokens of several sequences at once, those of a text, followed in the same batch by tokens of single ones.
  bool feed_together(const std::vector<llama_seq_id>& all, int tokens, int text, std::initializer_list<piece> more = {}) {
    llama_batch batch = llama_batch_init(96, 0, static_cast<int>(sequences));
    const auto add = [&](int at, int of, const std::vector<llama_seq_id>& to) {
      const int i = batch.n_tokens++;
      batch.token[i] = token_at(at, of), batch.pos[i] = at, batch.logits[i] = 0;
      batch.n_seq_id[i] = static_cast<int>(to.size());
      std::copy(to.begin(), to.end(), batch.seq_id[i]);
    };
    for (int i = 0; i < tokens; ++i) add(i, text, all);
    for (const piece& p : more)
      for (int i = 0; i < p.tokens; ++i) add(tokens + i, p.sequence, {p.sequence});
    const int failed = llama_decode(context.get(), batch);
    llama_batch_free(batch);
    return failed == 0;
  }

  static llama_token token_at(int at, int text) {
    return (at * 7919 + text * 104729 + at / 7 * 31) % static_cast<int>(support::random_vocabulary);
  }

  /// `text`: tells the sequences' tokens apart, whichever context they are in.
  bool feed(std::initializer_list<piece> pieces, int text = -1) {
    llama_batch batch = llama_batch_init(96, 0, 1);
    for (const piece& p : pieces) {
      const llama_pos first = llama_memory_seq_pos_max(memory(), p.sequence) + 1;
      for (int i = 0; i < p.tokens; ++i, ++batch.n_tokens) {
        const int of = text >= 0 ? text : p.sequence, at = first + i;
        batch.token[batch.n_tokens] = token_at(at, of);
        batch.pos[batch.n_tokens] = at, batch.n_seq_id[batch.n_tokens] = 1, batch.seq_id[batch.n_tokens][0] = p.sequence;
        batch.logits[batch.n_tokens] = 0;
      }
    }
    const int failed = llama_decode(context.get(), batch);
    llama_batch_free(batch);
    return failed == 0;
  }

  bytes state(llama_seq_id s) const {
    bytes b(llama_state_seq_get_size(context.get(), s));
    EXPECT_EQ(llama_state_seq_get_data(context.get(), b.data(), b.size(), s), b.size());
    return b;
  }

  struct free_context {
    void operator()(llama_context* c) const { llama_free(c); }
  };
  lagkv::llama::cache_probe probe;
  std::unique_ptr<llama_context, free_context> context;
  std::unique_ptr<lagkv::llama::compressor> compressor;
};

/// The numbers of a recording: rows, and of each layer queries and accumulated attention.
std::vector<float> numbers_of(lagkv::llama::recording r) {
  std::vector<float> all;
  for (const llama_pos p : r.rows()) all.push_back(static_cast<float>(p));
  lagkv::workspace ws;
  for (std::size_t l = 0; l < r.layers(); ++l) {
    const lagkv::extras e = r.beside(l);
    for (std::size_t q = 0; q < e.queries.heads(); ++q)
      lagkv::for_each_row(e.queries, q, {0, e.queries.capacity()}, ws,
                          [&](std::size_t, std::span<const float> row) { all.insert(all.end(), row.begin(), row.end()); });
    for (std::size_t head = 0; head < 2; ++head)
      all.insert(all.end(), e.accumulated_attention.of(head), e.accumulated_attention.of(head) + r.rows().size());
  }
  return all;
}

void expect_the_same(session& many, llama_seq_id s, session& alone, const char* when) {
  const auto a = many.compressor->save(s).recorded, b = alone.compressor->save(0).recorded;
  EXPECT_EQ(a.obstacle(), "") << when;
  EXPECT_GT(b.rows().size(), 0U) << when;
  EXPECT_GT(b.layers(), 0U) << when;
  const std::vector<float> x = numbers_of(a), y = numbers_of(b);
  ASSERT_EQ(x.size(), y.size()) << when << ", sequence " << s;
  double worst = 0;
  for (std::size_t i = 0; i < x.size(); ++i)
    worst = std::max(worst, static_cast<double>(std::abs(x[i] - y[i])) / (1 + static_cast<double>(std::abs(y[i]))));
  EXPECT_LT(worst, 2e-3) << when << ", sequence " << s;
}

class Recordings : public testing::TestWithParam<setting> {
 protected:
  Recordings() {
    for (std::uint32_t i = 0; i < sequences; ++i) alone.push_back(std::make_unique<session>(GetParam(), 1));
  }

  /// The same tokens into the sequences of one context, in one batch, and into contexts of their own.
  void feed(std::initializer_list<piece> pieces) {
    ASSERT_TRUE(many.feed(pieces));
    for (const piece& p : pieces) ASSERT_TRUE(one(p.sequence).feed({{0, p.tokens}}, p.sequence));
  }

  session& one(llama_seq_id s) { return *alone[static_cast<std::size_t>(s)]; }

  void expect_the_same_of_all(const char* when) {
    for (llama_seq_id s = 0; s < static_cast<llama_seq_id>(sequences); ++s) expect_the_same(many, s, one(s), when);
  }

  /// Both drop the same rows.
  void compress(llama_seq_id s, way how) {
    std::vector<std::vector<std::uint32_t>> kept[2];
    const auto into = [](auto& all) {
      return [&all](std::size_t, const lagkv::plan& p) { all.emplace_back(p.kept.begin(), p.kept.end()); };
    };
    const auto x = many.compressor->compress(s, how, into(kept[0])), y = one(s).compressor->compress(0, how, into(kept[1]));
    ASSERT_TRUE(x && y) << x.message() << y.message();
    EXPECT_TRUE(x->compressed && y->compressed);
    EXPECT_LT(x->tokens_after, x->tokens_before);
    EXPECT_EQ(x->tokens_after, y->tokens_after);
    EXPECT_EQ(kept[0], kept[1]);
  }

  session many{GetParam(), sequences};
  std::vector<std::unique_ptr<session>> alone;
};

TEST_P(Recordings, OfEachSequenceAreThoseOfItAlone) {
  feed({{0, 40}, {1, 30}, {2, 20}});
  feed({{2, 25}, {0, 40}});
  for (int i = 0; i < 5; ++i) feed({{1, 1}, {0, 1}, {2, 1}});
  expect_the_same_of_all("fed");
  for (const way how : {way::in_place, way::repack}) {
    compress(how == way::in_place ? 0 : 1, how);
    expect_the_same_of_all("after compression");
    feed({{0, 20}, {1, 60}});
    for (int i = 0; i < 3; ++i) feed({{2, 1}, {1, 1}});
    expect_the_same_of_all("fed on");
  }
}

TEST_P(Recordings, FollowAContextShift) {
  if (std::string(GetParam().architecture) == "gemma3") GTEST_SKIP() << "llama.cpp does not shift it";
  feed({{0, 60}, {1, 36}});
  feed({{2, 50}});
  for (auto& [s, of] : {std::pair{&many, 1}, std::pair{&one(1), 0}}) {
    llama_memory_seq_rm(s->memory(), of, 5, 15);
    llama_memory_seq_add(s->memory(), of, 15, -1, -10);
  }
  feed({{0, 1}, {1, 30}, {2, 1}});
  expect_the_same_of_all("shifted");
  EXPECT_EQ(many.compressor->save(1).recorded.rows().size(), 56U);
  EXPECT_EQ(many.compressor->save(1).recorded.rows().back(), 55);
  compress(1, way::automatic);
}

// llama.cpp tells of divided positions as if they had gone the other way: rows are not found by them, and nothing is kept by
// attention of other rows.
TEST_P(Recordings, OfDividedPositionsAreRefused) {
  if (std::string(GetParam().architecture) == "gemma3") GTEST_SKIP() << "llama.cpp does not shift it";
  feed({{0, 60}, {1, 36}});
  feed({{2, 50}, {1, 24}});
  llama_memory_seq_div(many.memory(), 1, 0, -1, 2);
  ASSERT_TRUE(many.feed({{0, 1}, {1, 5}, {2, 1}}));
  ASSERT_TRUE(one(0).feed({{0, 1}}, 0) && one(2).feed({{0, 1}}, 2));
  for (const way how : {way::in_place, way::automatic, way::repack}) {
    const bytes before = many.state(1);
    const auto r = many.compressor->compress(1, how);
    ASSERT_FALSE(r);
    EXPECT_NE(r.message().find("recording: "), std::string::npos) << r.message();
    EXPECT_EQ(many.state(1), before);
  }
  for (const llama_seq_id s : {0, 2}) expect_the_same(many, s, one(s), "of the others");
  many.compressor->forget(1);
  one(1).compressor->forget(0);
  for (auto& [s, of] : {std::pair{&many, 1}, std::pair{&one(1), 0}}) llama_memory_seq_rm(s->memory(), of, -1, -1);
  feed({{1, 60}});
  expect_the_same_of_all("begun anew");
}

TEST_P(Recordings, FollowTokensTakenBackAndASequenceBegunAnew) {
  feed({{0, 60}, {1, 36}});
  feed({{2, 50}});
  for (auto& [s, of] : {std::pair{&many, 0}, std::pair{&one(0), 0}}) llama_memory_seq_rm(s->memory(), of, 50, -1);
  feed({{0, 20}, {2, 9}});
  many.compressor->forget(1);
  one(1).compressor->forget(0);
  for (auto& [s, of] : {std::pair{&many, 1}, std::pair{&one(1), 0}}) llama_memory_seq_rm(s->memory(), of, -1, -1);
  feed({{1, 44}, {0, 3}, {2, 3}});
  expect_the_same_of_all("begun anew");
}

TEST_P(Recordings, OfAForkBeginWithThoseOfItsOrigin) {
  ASSERT_TRUE(many.feed({{0, 60}}));
  ASSERT_TRUE(one(0).feed({{0, 60}}, 0) && one(1).feed({{0, 60}}, 0));
  llama_memory_seq_cp(many.memory(), 0, 1, -1, -1);
  many.compressor->copy(0, 1);
  if (GetParam().flash) feed({{0, 5}});  // its origin first
  for (int i = 0; i < 4; ++i) feed({{0, 3}, {1, 2}});
  expect_the_same(many, 0, one(0), "the origin");
  expect_the_same(many, 1, one(1), "the fork");
}

// A prompt that is decoded once for several sequences.
TEST_P(Recordings, OfAPromptThatIsSharedAreEachSequencesOwn) {
  if (!GetParam().unified) GTEST_SKIP() << "llama.cpp has no shared cells there";
  const auto begin = [&](std::initializer_list<piece> more) {
    for (llama_seq_id s = 0; s < 3; ++s) {
      many.compressor->forget(s), one(s).compressor->forget(0);
      llama_memory_seq_rm(many.memory(), s, -1, -1), llama_memory_seq_rm(one(s).memory(), 0, -1, -1);
    }
    ASSERT_TRUE(many.feed_together({0, 1, 2}, 40, 7, more));
    for (llama_seq_id s = 0; s < 3; ++s) ASSERT_TRUE(one(s).feed({{0, 40}}, 7));
    for (const piece& p : more) ASSERT_TRUE(one(p.sequence).feed({{0, p.tokens}}, p.sequence));
  };
  begin({});
  feed({{0, 8}, {1, 5}, {2, 11}});  // in one micro-batch
  feed({{0, 2}, {2, 1}});
  expect_the_same_of_all("all at once");
  begin({});
  expect_the_same_of_all("the prompt alone");
  feed({{0, 50}});  // one long before the others
  for (int i = 0; i < 9; ++i) feed({{0, 1}});
  feed({{1, 5}});
  feed({{2, 7}, {0, 3}});
  expect_the_same_of_all("one by one");
  begin({{0, 6}});  // one goes on in the batch of the prompt
  feed({{2, 3}});
  feed({{1, 3}, {0, 3}});
  expect_the_same_of_all("the prompt and one that goes on");
  begin({});
  feed({{0, 30}, {1, 30}});  // ends at one position
  feed({{2, 29}});
  feed({{0, 1}, {1, 1}});
  expect_the_same_of_all("alike");
  for (llama_seq_id s = 0; s < 3; ++s) {
    compress(s, way::automatic);
    expect_the_same_of_all("after compression");
    feed({{0, 1}, {1, 1}, {2, 1}});
  }
  expect_the_same_of_all("compressed");
}

TEST_P(Recordings, OfAForkOfAPartAreThoseOfThePart) {
  if (!GetParam().unified || std::string(GetParam().architecture) == "gemma3") GTEST_SKIP() << "no part can be copied";
  ASSERT_TRUE(many.feed({{0, 60}}));
  ASSERT_TRUE(one(0).feed({{0, 60}}, 0) && one(1).feed({{0, 60}}, 0));
  llama_memory_seq_cp(many.memory(), 0, 1, 0, 45);
  many.compressor->copy(0, 1);
  llama_memory_seq_rm(one(1).memory(), 0, 45, -1);
  for (int i = 0; i < 12; ++i) feed({{0, 1}});  // its origin goes on for long
  feed({{1, 2}});
  feed({{1, 2}, {0, 3}});
  expect_the_same(many, 0, one(0), "the origin");
  expect_the_same(many, 1, one(1), "the fork");
}

// Sequences of one length cannot be told apart by their numbers.
TEST_P(Recordings, OfOthersStayWhateverIsDoneToOne) {
  for (const char* what : {"compressed in place", "repacked", "defragmented", "cleared", "copied to", "put back"}) {
    const std::string done = what;
    session some(GetParam(), sequences);
    std::vector<std::unique_ptr<session>> by_itself;
    for (std::uint32_t i = 0; i < sequences; ++i) by_itself.push_back(std::make_unique<session>(GetParam(), 1));
    for (int i = 0; i < 20; ++i) {
      ASSERT_TRUE(some.feed({{0, 3}, {1, 3}, {2, 3}}));
      for (int s = 0; s < 3; ++s) ASSERT_TRUE(by_itself[static_cast<std::size_t>(s)]->feed({{0, 3}}, s));
    }
    const bool windows = std::string(GetParam().architecture) == "gemma3";
    llama_seq_id first = 1;
    if (done == "compressed in place") {
      EXPECT_EQ(static_cast<bool>(some.compressor->compress(0, way::in_place)), !windows);
    } else if (done == "repacked") {
      ASSERT_TRUE(some.compressor->compress(0, way::repack));
    } else if (done == "defragmented") {
      ASSERT_TRUE(some.compressor->defragment(0));
    } else if (done == "cleared") {
      some.compressor->forget(0);
      llama_memory_seq_rm(some.memory(), 0, -1, -1);
    } else if (done == "copied to") {
      llama_memory_seq_rm(some.memory(), 0, -1, -1);
      llama_memory_seq_cp(some.memory(), 1, 0, -1, -1);
      some.compressor->copy(1, 0);
    } else {
      const bytes state = some.state(0);
      const auto beside = some.compressor->save(0);
      ASSERT_TRUE(some.feed({{0, 4}}));
      llama_memory_seq_rm(some.memory(), 0, -1, -1);
      ASSERT_EQ(llama_state_seq_set_data(some.context.get(), state.data(), state.size(), 0), state.size());
      ASSERT_TRUE(some.compressor->restore(0, state, beside));
      first = 0;
    }
    for (llama_seq_id s = first; s < 3; ++s) expect_the_same(some, s, *by_itself[static_cast<std::size_t>(s)], what);
    ASSERT_TRUE(some.feed({{0, 2}, {1, 3}, {2, 3}}));
    for (int s = 0; s < 3; ++s) ASSERT_TRUE(by_itself[static_cast<std::size_t>(s)]->feed({{0, s == 0 ? 2 : 3}}, s));
    for (llama_seq_id s = first; s < 3; ++s) expect_the_same(some, s, *by_itself[static_cast<std::size_t>(s)], what);
    for (llama_seq_id s = 1; s < 3; ++s) {
      const auto r = some.compressor->compress(s), x = by_itself[static_cast<std::size_t>(s)]->compressor->compress(0);
      ASSERT_TRUE(r && x) << what << ", sequence " << s << ": " << r.message() << x.message();
      EXPECT_TRUE(r->compressed);
      EXPECT_EQ(r->tokens_after, x->tokens_after);
      expect_the_same(some, s, *by_itself[static_cast<std::size_t>(s)], what);
    }
  }
}

TEST_P(Recordings, OfAForkAndItsOriginAreKeptApartByCompression) {
  for (const bool origin_first : {true, false})
    for (const int between : {0, 4}) {
      session some(GetParam(), 2), a(GetParam(), 1), b(GetParam(), 1);
      ASSERT_TRUE(some.feed({{0, 60}}) && a.feed({{0, 60}}, 0) && b.feed({{0, 60}}, 0));
      llama_memory_seq_cp(some.memory(), 0, 1, -1, -1);
      some.compressor->copy(0, 1);
      const auto both = [&](int n) { return some.feed({{0, n}, {1, n}}) && a.feed({{0, n}}, 0) && b.feed({{0, n}}, 1); };
      ASSERT_TRUE(both(3));
      for (int i = 0; i < 2; ++i) {
        const llama_seq_id s = (i == 0) == origin_first ? 0 : 1;
        const auto r = some.compressor->compress(s), x = (s == 0 ? a : b).compressor->compress(0);
        ASSERT_TRUE(r && x) << r.message() << x.message();
        EXPECT_EQ(r->tokens_after, x->tokens_after);
        expect_the_same(some, 0, a, "the origin");
        expect_the_same(some, 1, b, "the fork");
        ASSERT_TRUE(between == 0 || both(between));
      }
      ASSERT_TRUE(both(5));
      expect_the_same(some, 0, a, "the origin, later");
      expect_the_same(some, 1, b, "the fork, later");
    }
}

TEST_P(Recordings, ArePutBackWithASavedSequence) {
  feed({{0, 40}, {1, 30}, {2, 20}});
  const bytes saved = many.state(1);
  const auto beside = many.compressor->save(1);
  feed({{0, 10}});
  ASSERT_TRUE(many.feed({{1, 10}}));  // and taken back with all the rest
  llama_memory_seq_rm(many.memory(), 1, -1, -1);
  ASSERT_EQ(llama_state_seq_set_data(many.context.get(), saved.data(), saved.size(), 1), saved.size());
  ASSERT_TRUE(many.compressor->restore(1, saved, beside));
  feed({{1, 20}, {2, 20}});
  expect_the_same_of_all("restored");
}

/// A sequence of one context, saved: its state, and what is kept beside it, with the recording as bytes.
struct saved {
  bytes state, recorded;
  lagkv::llama::checkpoint beside;
};

saved save(session& s) {
  saved made{s.state(0), {}, s.compressor->save(0)};
  made.recorded = lagkv::llama::save(made.beside.recorded);
  made.beside.recorded = {};
  return made;
}

/// As a host does after it has read a file.
lagkv::status restore(session& s, saved from) {
  auto recorded = lagkv::llama::load_recording(from.recorded);
  if (!recorded) return lagkv::error{recorded.message()};
  from.beside.recorded = std::move(*recorded);
  llama_memory_seq_rm(s.memory(), 0, -1, -1);
  EXPECT_EQ(llama_state_seq_set_data(s.context.get(), from.state.data(), from.state.size(), 0), from.state.size());
  return s.compressor->restore(0, from.state, from.beside);
}

constexpr setting plain{"plain", "llama", false, true};

TEST(SavedRecording, GoesOnInAnotherContextAsIfNothingHadHappened) {
  for (const bool flash : {false, true}) {
    const setting how{"", "llama", flash, true};
    session one(how, 1), other(how, 1);
    ASSERT_TRUE(one.feed({{0, 70}}, 0));
    ASSERT_TRUE(one.compressor->compress(0));
    ASSERT_TRUE(one.feed({{0, 9}}, 0));
    const lagkv::status ok = restore(other, save(one));
    ASSERT_TRUE(ok) << ok.message();
    for (session* s : {&one, &other}) ASSERT_TRUE(s->feed({{0, 60}}, 0));
    expect_the_same(one, 0, other, "fed on");
    std::vector<std::vector<std::uint32_t>> kept[2];
    for (std::size_t i = 0; i < 2; ++i) {
      const auto r = (i == 0 ? one : other).compressor->compress(0, way::automatic, [&](std::size_t, const lagkv::plan& p) {
        kept[i].emplace_back(p.kept.begin(), p.kept.end());
      });
      ASSERT_TRUE(r) << r.message();
      EXPECT_TRUE(r->compressed);
    }
    EXPECT_EQ(kept[0], kept[1]);
  }
}

TEST(SavedRecording, IsRefusedWhereItEndsTooEarlyOrGoesOn) {
  session one(plain, 1);
  ASSERT_TRUE(one.feed({{0, 70}}, 0));
  const bytes whole = save(one).recorded;
  ASSERT_TRUE(lagkv::llama::load_recording(whole));
  for (std::size_t n = 0; n < whole.size(); ++n) {
    const auto r = lagkv::llama::load_recording(std::span(whole).first(n));
    ASSERT_FALSE(r) << n << " of " << whole.size() << " bytes";
    ASSERT_EQ(r.message(), "saved recording: ends too early");
  }
  bytes longer = whole;
  longer.push_back(0);
  EXPECT_EQ(lagkv::llama::load_recording(longer).message(), "saved recording: more bytes follow it");
  longer = whole;
  ++longer[0];
  EXPECT_EQ(lagkv::llama::load_recording(longer).message(), "saved recording of version 2: must be 1");
}

// Where a byte of it is another, it is refused, or compress() refuses it, or works with its numbers: nothing is read or written
// outside (the sanitizers look), and the sequence is as it was or has what is kept.
TEST(SavedRecording, OfAnyBytesDoesNoHarm) {
  session one(plain, 1), other(plain, 1);
  ASSERT_TRUE(one.feed({{0, 70}}, 0));
  const saved good = save(one);
  std::size_t refused = 0, refused_late = 0, taken = 0;
  for (std::size_t at = 0; at < good.recorded.size(); at += at < 400 ? 1 : 61)
    for (const int by : {0x01, 0x80, 0xff}) {
      saved bad = good;
      bad.recorded[at] = static_cast<std::uint8_t>(bad.recorded[at] ^ by);
      if (!restore(other, bad)) {
        ++refused;
        continue;
      }
      const bytes before = other.state(0);
      const auto r = other.compressor->compress(0);
      if (!r) {
        ++refused_late;
        ASSERT_EQ(other.state(0), before) << r.message();
        continue;
      }
      ++taken;
      ASSERT_EQ(r->tokens_after, 35U);
    }
  EXPECT_GT(refused, 100U);
  EXPECT_GT(refused_late, 10U);
  EXPECT_GT(taken, 100U);
}

// What no writer of ours writes: each is refused by name.
TEST(SavedRecording, OfNumbersThatNoneHasIsRefused) {
  session one(plain, 1);
  ASSERT_TRUE(one.feed({{0, 70}}, 0));
  const lagkv::llama::recorded_numbers good = one.compressor->save(0).recorded.numbers();
  ASSERT_EQ(good.layers.size(), 2U);
  ASSERT_TRUE(lagkv::llama::recording::of(good));
  const auto refused = [&](const char* why, const auto& change) {
    lagkv::llama::recorded_numbers bad = good;
    change(bad);
    const auto r = lagkv::llama::recording::of(bad);
    EXPECT_FALSE(r) << why;
    EXPECT_NE(r.message().find(why), std::string::npos) << r.message();
  };
  using numbers = lagkv::llama::recorded_numbers;
  refused("positions of rows must ascend from 0", [](numbers& n) { n.rows[0] = -1; });
  refused("positions of rows must ascend from 0", [](numbers& n) { n.rows[5] = n.rows[4] - 1; });
  refused("layer 0: ids must ascend from 0", [](numbers& n) { n.layers[1].id = 0; });
  refused("layer -1: ids must ascend from 0", [](numbers& n) { n.layers[0].id = -1; });
  refused("KV heads: must be at most 1048576", [](numbers& n) { n.layers[0].heads = std::size_t{1} << 40U; });
  refused("numbers of queries: must be 64 a token", [](numbers& n) { n.layers[0].queries.pop_back(); });
  refused("numbers of queries: must be 0 a token", [](numbers& n) { n.layers[0].channels = 0; });
  refused("of at most 70", [](numbers& n) { n.layers[1].queries.resize(64 * 71); });
  refused("block=24: must be a power of two", [](numbers& n) { n.layers[1].hadamard_block = 24; });
  refused("for each of 3 heads and 70 rows", [](numbers& n) { n.layers[1].heads = 3; });

  numbers heads = good;  // of another model: restore() cannot know it
  for (numbers::of_layer& l : heads.layers) l.heads = 1, l.accumulated_attention.resize(70);
  session other(plain, 1);
  saved with = save(one);
  with.recorded = lagkv::llama::save(*lagkv::llama::recording::of(heads));
  ASSERT_TRUE(restore(other, with));
  const auto r = other.compressor->compress(0);
  EXPECT_EQ(r.message(), "recording: the accumulated attention of layer 0 is of 1 heads: must be the 2 of its keys");
}

INSTANTIATE_TEST_SUITE_P(Llama, Recordings,
                         testing::Values(setting{"one_stream", "llama", true, true}, setting{"plain", "llama", false, true},
                                         setting{"streams", "llama", true, false},
                                         setting{"plain_streams", "llama", false, false},
                                         setting{"windows", "gemma3", true, true},
                                         setting{"windows_streams", "gemma3", false, false}),
                         [](const auto& s) { return std::string(s.param.name); });

}  // namespace
