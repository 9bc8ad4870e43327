// Part of lagkv (MIT). What one call of compress() works on, in place or through the state API.
#pragma once

#include <cstddef>
#include <functional>
#include <span>

#include <llama.h>

#include <lagkv/adapters/llama/offers.hpp>
#include <lagkv/adapters/llama/progress.hpp>
#include <lagkv/adapters/llama/recording.hpp>
#include <lagkv/adapters/llama/report.hpp>
#include <lagkv/adapters/llama/whereabouts.hpp>
#include <lagkv/cache/cursor.hpp>
#include <lagkv/cache/layer.hpp>
#include <lagkv/plan/plan.hpp>
#include <lagkv/workspace.hpp>

namespace lagkv::inline LAGKV_ABI::llama {

/// What the host does to a layer between its plan and the moves: it may change rows that stay.
using before_moving = std::function<void(const layer&, const plan&, lagkv::workspace&)>;

/// Nobody wants to know the plans.
struct unobserved {
  void operator()(std::size_t, const plan&) const {}
};

/// One sequence, and what is known of it.
struct compression {
  llama_context* context = nullptr;
  llama_seq_id sequence = 0;
  progress& of;
  whereabouts& where;
  offers& with;
  lagkv::workspace& workspace;
  const before_moving& change;  ///< empty: none

  /// What has been recorded of it; null if nothing has.
  recording* recorded() const { return where.recorded(of.track); }

  report nothing_due(std::size_t tokens, std::size_t row_bytes) const {
    plan none;
    none.clear(tokens);
    advance(of.at, none);
    const std::size_t bytes = tokens * row_bytes;
    return {.tokens_before = tokens, .tokens_after = tokens, .bytes_before = bytes, .bytes_after = bytes};
  }

  /// The rows that a plan has freed are gone, and the cursor says so. `cells`: positions of the cells of before.
  void note(const plan& p, std::size_t freed, std::span<const llama_pos> cells) const {
    if (recording* r = recorded(); r != nullptr && freed > 0)
      r->erase(p.candidates.begin, freed, p.tokens_before - p.candidates.end);
    with.note_moved(of, cells, p.candidates.begin, freed);
  }
};

}  // namespace lagkv::inline LAGKV_ABI::llama
