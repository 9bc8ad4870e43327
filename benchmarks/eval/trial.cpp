#include "trial.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "frame.hpp"
#include "host/stopwatch.hpp"
#include "tasks/draws.hpp"
#include "uneven.hpp"

namespace eval {
namespace {

constexpr double megabyte = 1e6;

void must_fit(bool fits) {
  if (!fits) throw std::runtime_error("the cache has no room for the prompt and the answer");
}

void append(std::vector<llama_token>& tokens, const std::vector<llama_token>& more) {
  tokens.insert(tokens.end(), more.begin(), more.end());
}

std::pair<std::string, std::string> frame(const host::model& m) {
  return frame_of([&m](const std::string& message) { return m.chat(message); });
}

void add(sample_result& r, const host::compression& c) {
  const double mb_a_token = static_cast<double>(c.bytes_before) / megabyte / static_cast<double>(c.tokens_before);
  r.judged_tokens += c.tokens_before - r.kept_tokens;  // what came in since the last time
  r.kept_tokens = c.tokens_after;
  r.kept_mb = mb_a_token * static_cast<double>(c.tokens_after);
  r.full_mb = mb_a_token * static_cast<double>(r.judged_tokens);
  r.compress_ms += c.seconds * 1000;
}

// Tokens in one row of digits for each layer and head.
std::vector<std::string> picture(const host::kept_positions& kept, std::size_t tokens, std::size_t columns) {
  std::vector<std::string> rows;
  for (const auto& heads : kept)
    for (const auto& positions : heads) {
      std::vector<std::size_t> of(columns), all(columns);
      for (std::size_t t = 0; t < tokens; ++t) ++all[t * columns / tokens];
      for (const std::uint32_t t : positions)
        if (t < tokens) ++of[t * columns / tokens];
      std::string row(columns, '0');
      for (std::size_t c = 0; c < columns; ++c)
        if (all[c] > 0) row[c] = static_cast<char>('0' + (9 * of[c] + all[c] / 2) / all[c]);
      rows.push_back(std::move(row));
    }
  return rows;
}

// Reads `before` and compresses it.
void fill(const trial& t, host::session& s, host::compressor& c, sample_result& r) {
  const std::span<const llama_token> tokens = t.tokens->before;
  if (t.prefill != nullptr) {
    add(r, c.compress());
    return;
  }
  const std::size_t chunk = t.chunk > 0 ? t.chunk : tokens.size();
  for (std::size_t done = 0; done < tokens.size(); done += chunk) {
    must_fit(s.feed(tokens.subspan(done, std::min(chunk, tokens.size() - done))));
    add(r, c.compress());
  }
}

// log(softmax(logits)).
std::vector<float> log_softmax(std::span<const float> logits) {
  const double most = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float x : logits) sum += std::exp(static_cast<double>(x) - most);
  const double shift = most + std::log(sum);
  std::vector<float> made(logits.size());
  std::transform(logits.begin(), logits.end(), made.begin(),
                 [&](float x) { return static_cast<float>(static_cast<double>(x) - shift); });
  return made;
}

double kl_divergence(std::span<const float> log_p, std::span<const float> log_q) {
  double sum = 0;
  for (std::size_t i = 0; i < log_p.size(); ++i) {
    const double p = std::exp(static_cast<double>(log_p[i]));
    if (p > 0) sum += p * (static_cast<double>(log_p[i]) - static_cast<double>(log_q[i]));
  }
  return sum;
}

// Greedy, up to the task's new_tokens, or until nothing that follows could make the answer worth more.
void answer(const trial& t, host::session& s, const std::function<const reference&()>& full, reference* said, sample_result& r) {
  must_fit(s.feed(t.tokens->after));
  std::vector<llama_token> tokens;
  for (;;) {
    const llama_token token = s.next();
    tokens.push_back(token);
    if (t.model->ends(token)) break;
    r.answer += t.model->piece(token);
    r.scores = t.what->score(r.answer, *t.asked);
    if (tokens.size() == t.what->new_tokens || r.scores.at("score") >= 1) break;
    const host::stopwatch watch;
    must_fit(s.feed({&token, 1}));
    r.decode_seconds += watch.seconds();
    ++r.decoded;
  }
  if (r.scores.empty()) r.scores = t.what->score(r.answer, *t.asked);
  const llama_token first = tokens.front();
  if (said != nullptr) said->tokens = std::move(tokens);
  r.scores["first_token"] = said != nullptr || full().tokens.front() == first ? 1 : 0;
}

void perplexity(const trial& t, host::session& s, const std::function<const reference&()>& full, reference* said,
                sample_result& r) {
  const std::vector<llama_token>& text = t.tokens->continuation;
  std::vector<llama_token> fed = t.tokens->after;
  append(fed, text);
  const std::size_t skip = t.tokens->after.size() - 1;  // the text's first token follows the last of `after`
  fed.pop_back();
  double nll = 0, kl = 0, same = 0;
  const reference* compared = said != nullptr ? nullptr : &full();
  must_fit(s.feed_all(fed, [&](std::size_t i, std::span<const float> logits) {
    if (i < skip) return;
    std::vector<float> log_q = log_softmax(logits);
    nll -= log_q[static_cast<std::size_t>(text[i - skip])];
    if (compared == nullptr) {
      ++same;
      said->log_probabilities.push_back(std::move(log_q));
    } else {
      const std::vector<float>& log_p = compared->log_probabilities[i - skip];
      kl += kl_divergence(log_p, log_q);
      same += host::likeliest(log_p) == host::likeliest(log_q) ? 1 : 0;
    }
  }));
  const double n = static_cast<double>(text.size());
  r.scores = {{"nll", nll / n}, {"kl", kl / n}, {"same_token", same / n}};
}

// A number from 0 to 1, both left out, for a place in a text and a token of the vocabulary.
double noise(std::size_t place, std::size_t token) {
  const std::uint64_t x = split_mix((static_cast<std::uint64_t>(place) << 32U) + token);
  return (static_cast<double>(x >> 12U) + 0.5) / static_cast<double>(std::uint64_t{1} << 52U);
}

// A sample of softmax(logits / temperature), drawn as the largest of logits / temperature + Gumbel noise. The noise belongs to
// the place and the token, so that caches with nearly the same logits draw the same token. (Greedily, a small model soon repeats
// itself, and every policy agrees on that.) Tokens that end a text are passed over, so that all are equally long.
llama_token draw(const host::model& m, std::span<const float> logits, std::size_t place) {
  constexpr double temperature = 0.8;
  double most = -std::numeric_limits<double>::infinity();
  llama_token best = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const double value = static_cast<double>(logits[i]) / temperature - std::log(-std::log(noise(place, i)));
    if (value > most && !m.ends(static_cast<llama_token>(i))) most = value, best = static_cast<llama_token>(i);
  }
  return best;
}

// The full cache's own text is read token by token, compressing as it comes. Up to the first token that this cache would have
// drawn otherwise, that is what it would have written itself.
void generation(const trial& t, host::session& s, host::compressor& c, const std::function<const reference&()>& full,
                reference* said, sample_result& r) {
  must_fit(s.feed(t.tokens->after));
  add(r, c.compress());
  const std::size_t n = t.what->new_tokens;
  std::vector<llama_token> text = said != nullptr ? std::vector<llama_token>{} : full().tokens;
  std::size_t agreed = 0, same = 0;
  double nll = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const llama_token own = draw(*t.model, s.logits(), i);
    if (said != nullptr) text.push_back(own);
    if (own == text[i]) agreed += same++ == i ? 1U : 0U;
    if (i >= n / 2) nll -= log_softmax(s.logits())[static_cast<std::size_t>(text[i])];
    r.answer += t.model->piece(own);
    if (i + 1 == n) break;
    const host::stopwatch watch;
    must_fit(s.feed({&text[i], 1}));
    r.decode_seconds += watch.seconds();
    add(r, c.compress());
    ++r.decoded;
  }
  if (said != nullptr) said->tokens = std::move(text);
  r.scores = {{"agreed", static_cast<double>(agreed)},
              {"same_token", static_cast<double>(same) / static_cast<double>(n)},
              {"nll", nll / static_cast<double>(n - n / 2)}};
}

// What comes after the cache has been compressed.
void read_on(const trial& t, host::session& s, const std::function<const reference&()>& full, reference* said, sample_result& r) {
  if (t.what->how == kind::answer)
    answer(t, s, full, said, r);
  else
    perplexity(t, s, full, said, r);
}

// The cells that a head would have dropped are hidden from it.
void run_uneven(const trial& t, host::session& s, const std::function<const reference&()>& full, reference* said,
                sample_result& r) {
  if (t.what->how == kind::generation) {
    r.failure = "heads of different lengths: not in a text that grows";
    return;
  }
  const auto seen_again = [&s](void*) { s.hidden().clear(); };
  const std::unique_ptr<void, decltype(seen_again)> at_end(&r, seen_again);
  add(r, hide_what_goes(s, t.policy, *t.prefill));
  read_on(t, s, full, said, r);
}

}  // namespace

std::size_t template_tokens(const host::model& m) {
  const auto [opens, closes] = frame(m);
  return m.tokenize(opens).size() + m.tokenize(closes, false).size();
}

void set_length(request& asked, const task& t, std::size_t length, std::size_t template_tokens) {
  asked.beside = (t.how == kind::answer ? template_tokens : 0) + spare_tokens;
  asked.length = length - std::min(length, asked.beside);
}

tokenized tokenize(const host::model& m, const task& t, const prompt& p, bool question_seen) {
  tokenized made;
  if (t.how != kind::answer) {
    made.before = m.tokenize(p.context);
    if (made.before.size() < 2) throw std::invalid_argument(std::string(t.name) + ": a text of less than two tokens");
    made.after = {made.before.back()};
    made.before.pop_back();
    made.continuation = m.tokenize(p.continuation, false);
    return made;
  }
  const auto [opens, closes] = frame(m);
  made.before = m.tokenize(opens + p.context);
  // A chat template ends where the answer may begin; elsewhere a space parts it from the question.
  const std::string space = closes.empty() && !p.answer_begins.empty() ? " " : "";
  made.after = m.tokenize(p.question + closes + space + p.answer_begins, false);
  if (!p.needles.empty())
    if (const auto found = m.find(made.before, p.needles.front()))
      made.needle_begin = found->first, made.needle_end = found->second;
  if (question_seen) {  // all but the last token
    append(made.before, made.after);
    made.after = {made.before.back()};
    made.before.pop_back();
  }
  return made;
}

sample_result run(const trial& t, host::session& s, const std::function<const reference&()>& full, reference* said) {
  sample_result r;
  r.prompt_tokens = t.tokens->before.size() + t.tokens->after.size();
  if (t.prefill != nullptr)
    s.restore(*t.prefill);
  else
    s.clear();
  if (t.policy.rules.ragged) {
    run_uneven(t, s, full, said, r);
    return r;
  }
  host::compressor c(s, t.policy, t.prefill, t.picture_columns > 0);
  fill(t, s, c, r);
  if (t.picture_columns > 0) {
    const auto n = static_cast<double>(t.tokens->before.size());
    r.survivors = picture(c.kept(), t.tokens->before.size(), t.picture_columns);
    r.needle_begin = static_cast<double>(t.tokens->needle_begin) / n;
    r.needle_end = static_cast<double>(t.tokens->needle_end) / n;
  }
  if (t.what->how == kind::generation) {
    generation(t, s, c, full, said, r);
    return r;
  }
  s.probe().record({});  // the answer is not compressed
  c.defragment();
  read_on(t, s, full, said, r);
  return r;
}

}  // namespace eval
