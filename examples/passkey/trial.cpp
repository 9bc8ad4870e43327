#include "trial.hpp"

#include <algorithm>
#include <span>

#include "host/stopwatch.hpp"

namespace passkey {
namespace {

std::span<const llama_token> all_but_last(const prompt& p) { return std::span(p.tokens).first(p.tokens.size() - 1); }

void add(trial& t, const host::compression& c) {
  t.compress_seconds += c.seconds;
  t.bytes_peak = std::max(t.bytes_peak, c.bytes_before);
  t.bytes_left = c.bytes_after;
  t.tokens_fed += c.tokens_before - t.tokens_kept;  // before: with what the earlier compressions left
  t.tokens_kept = c.tokens_after;
}

// The cache holds the prompt but its last token.
void answer(trial& t, const host::model& m, host::session& s, const prompt& p, host::compressor& c, std::size_t limit) {
  const host::stopwatch watch;
  llama_token token = p.tokens.back();
  for (;;) {
    if (!s.feed({&token, 1})) {
      t.failure = "the cache was full after " + std::to_string(t.answer_tokens) + " tokens of the answer";
      break;
    }
    t.compress_seconds += c.compress().seconds;  // a long answer fills the window too
    token = s.next();
    if (t.answer_tokens == limit || m.ends(token)) break;
    t.answer += m.piece(token);
    ++t.answer_tokens;
  }
  t.digits = digits_recalled(t.answer, p.key);
  t.answer_seconds = watch.seconds();
}

}  // namespace

trial run_restored(const host::model& m, host::session& s, const prompt& p, const host::saved_sequence& prefill,
                   const host::named_policy& policy, std::size_t answer_limit, bool follow) {
  trial t;
  t.policy = policy.name;
  s.restore(prefill);
  host::compressor c(s, policy, &prefill, follow);
  add(t, c.compress());
  t.bytes_full = t.bytes_peak;
  t.kept = c.kept();
  answer(t, m, s, p, c, answer_limit);
  return t;
}

trial run_chunked(const host::model& m, host::session& s, const prompt& p, std::size_t chunk, const host::named_policy& policy,
                  std::size_t answer_limit, bool follow, const host::session::progress& report) {
  trial t;
  t.policy = policy.name;
  s.clear();
  host::compressor c(s, policy, nullptr, follow);
  const host::stopwatch watch;
  const auto tokens = all_but_last(p);
  for (std::size_t done = 0; done < tokens.size();) {
    const auto part = tokens.subspan(done, std::min(chunk, tokens.size() - done));
    if (!s.feed(part, [&](std::size_t n) {
          if (report) report(done + n);
        })) {
      t.failure = "the cache was full after " + std::to_string(done) + " of " + std::to_string(tokens.size()) + " tokens";
      return t;
    }
    const host::compression step = c.compress();
    if (done == 0) t.bytes_full = step.bytes_before / step.tokens_before * tokens.size();
    add(t, step);
    done += part.size();
  }
  t.prefill_seconds = watch.seconds() - t.compress_seconds;
  t.kept = c.kept();
  answer(t, m, s, p, c, answer_limit);
  return t;
}

}  // namespace passkey
