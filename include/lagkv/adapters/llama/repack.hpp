// Part of lagkv (MIT). Compression of a sequence through llama.cpp's state API: it is read, and put back with fewer rows.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <llama.h>

#include <lagkv/adapters/llama/compression.hpp>
#include <lagkv/adapters/llama/offers.hpp>
#include <lagkv/adapters/llama/progress.hpp>
#include <lagkv/adapters/llama/report.hpp>
#include <lagkv/adapters/llama/sizes.hpp>
#include <lagkv/adapters/llama/state.hpp>
#include <lagkv/adapters/llama/views.hpp>
#include <lagkv/adapters/llama/whereabouts.hpp>
#include <lagkv/compress.hpp>
#include <lagkv/result.hpp>

namespace lagkv::inline LAGKV_ABI::llama {

inline error unequal() { return {"policy: keeps different numbers of tokens a head, which llama.cpp's cache cannot hold"}; }

namespace detail {

/// Whether there is room for so many rows of a sequence when its own `before` have gone. What it shares with others stays where
/// it is, so that its own copy needs room.
inline status has_room(const compression& c, std::size_t before, std::size_t after) {
  const std::string who = "sequence " + std::to_string(c.sequence);
  if (c.where.may_share()) {
    const occupancy o = c.where.occupied();
    const std::size_t shared = o.shared(), all = c.where.base()->table.cells();
    const std::size_t own = before - (std::min)(before, shared);  // at least so many become free
    if (all - (std::min)(all, o.cells) + own < after)
      return error{who + " shares up to " + std::to_string(shared) + " cells with others and needs " + std::to_string(after) +
                   " of its own: only " + std::to_string(all - o.cells + own) + " are free"};
  } else if (!c.where.has_probe() && llama_n_seq_max(c.context) > 1) {
    const std::size_t cells = llama_n_ctx(c.context);
    std::size_t others = 0;
    for (llama_seq_id t = 0; t < static_cast<llama_seq_id>(llama_n_seq_max(c.context)); ++t)
      if (t != c.sequence && llama_memory_seq_pos_max(llama_get_memory(c.context), t) >= 0)
        others += c.where.states().most_rows(t);
    if (cells - (std::min)(cells, others) < after && cells - (std::min)(cells, others + before) < after)
      return error{who + ": up to " + std::to_string(others + before) + " of " + std::to_string(cells) +
                   " cells are in use, too many to be sure that there is room for it (a cache_probe knows)"};
  }
  return {};
}

}  // namespace detail

/// Replaces the sequence, of `before` rows, by the state `with` of `after` rows, or leaves it as it was: `whole`.
inline status put_back(const compression& c, std::size_t before, std::size_t after, const std::vector<std::uint8_t>& with,
                       const std::vector<std::uint8_t>& whole) {
  if (status ok = detail::has_room(c, before, after); !ok) return ok;
  const auto set = [&](const std::vector<std::uint8_t>& bytes) {
    return llama_state_seq_set_data(c.context, bytes.data(), bytes.size(), c.sequence) == bytes.size();
  };
  if (set(with)) return {};
  if (set(whole)) return error{"state: llama.cpp did not take the compressed one; the sequence is as it was"};
  return error{"state: llama.cpp took neither the compressed sequence nor the old one: it is lost"};
}

/// The rows of this state have been put into other cells.
inline void note_new_cells(const compression& c, const saved_sequence& saved) {
  progress& s = c.of;
  c.where.lose_sight_of(c.sequence);
  s.moved = s.still_there();
  s.marks = marks_of(marked(saved), saved.cells().first(s.at.compressed));
  s.still.clear();
  c.where.expect(c.sequence, saved, s.track);
  s.cells = {};
  s.written = c.where.written();
}

/// Drops what is due. Where it fails nothing has changed. `followed`: what was compressed has been looked for in the cache, which
/// tells more than a state does.
template <class Observe>
result<report> repack(const compression& c, bool followed, const Observe& observe) {
  progress& s = c.of;
  sequence_states& states = c.where.states();
  const policy& rules = c.with.rules();
  const llama_pos last = llama_memory_seq_pos_max(llama_get_memory(c.context), c.sequence);
  // Most calls find nothing due, and see it without a copy of the state, unless the host renumbers its tokens.
  if (!c.where.sees())
    if (const result<std::size_t> rows = states.learnt_count(c.sequence);
        rows && last + 1 - static_cast<llama_pos>(*rows) == s.offset) {
      take_back(s.at, *rows);
      if (rules.budget.due(s.at, *rows).empty()) return c.nothing_due(*rows, states.learnt_row_bytes());
    }
  const result<read_state> read = states.read(c.sequence);
  if (!read) return error{read.message()};
  const saved_sequence& saved = read->saved;
  const std::size_t n = saved.tokens();
  states.learn(c.sequence, *read);
  if (!followed) s.follow(saved);
  s.offset = last + 1 - static_cast<llama_pos>(n);
  if (rules.budget.due(s.at, n).empty()) return c.nothing_due(n, states.learnt_row_bytes());
  c.where.tell_apart(c.sequence);

  offered_rows offered{saved.all_layers(), saved.cells(), saved.positions(), c.recorded(), c.where.written()};
  if (const seen_cache* base = c.where.base(); base != nullptr) take_seen(offered.layers, base->layers);
  const result<std::vector<layer>> layers = c.with.make(s, offered, c.workspace);
  if (!layers) return error{layers.message()};
  std::vector<plan> plans;
  for (const layer& l : *layers) {
    plans.push_back(plan_eviction(rules, l, s.at, c.workspace));
    if (!equal_counts(plans.back(), plans[0])) return unequal();
  }
  const std::size_t left = plans[0].tokens_after();
  std::vector<std::uint8_t> unchanged;  // what is put back where llama.cpp does not take the new state
  if (c.change) unchanged = read->bytes;
  for (std::size_t i = 0; i < plans.size() && c.change; ++i) c.change((*layers)[i], plans[i], c.workspace);
  std::vector<std::uint8_t> fewer = saved.rebuilt(plans);
  if (status ok = put_back(c, n, left, fewer, c.change ? unchanged : read->bytes); !ok) return error{ok.message()};
  for (std::size_t i = 0; i < plans.size(); ++i) compact(*(*layers)[i].extra, plans[i], toward::window);
  advance(s.at, plans[0]);
  c.note(plans[0], n - left, saved.positions());
  s.offset = last + 1 - static_cast<llama_pos>(left);
  if (const result<saved_sequence> after = saved_sequence::parse(fewer, states.rest_of(c.sequence))) note_new_cells(c, *after);
  const std::size_t each = states.learnt_row_bytes();
  for (std::size_t i = 0; i < plans.size(); ++i) observe(i, plans[i]);
  return report{
      .tokens_before = n, .tokens_after = left, .bytes_before = n * each, .bytes_after = left * each, .compressed = true};
}

}  // namespace lagkv::inline LAGKV_ABI::llama
