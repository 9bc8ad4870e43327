#include "compressor.hpp"

#include <stdexcept>
#include <utility>

#include "stopwatch.hpp"

namespace host {
namespace {

lagkv::llama::compressor make(session& s, const named_policy& policy) {
  calibration counted = counted_for(s, policy.rules);
  auto made = lagkv::llama::compressor::make(s.get(), policy.rules, &s.probe(), std::move(counted.queries),
                                             std::move(counted.importance));
  if (!made) throw std::invalid_argument(policy.name + ": " + made.message());
  made->set_before_moving(policy.change);
  return *made;
}

}  // namespace

named_policy parse(const std::string& text, std::span<const lagkv::method_entry* const> known) {
  const auto made = lagkv::parse(text, known);
  if (!made) throw std::invalid_argument(made.message());
  return {text, *made};
}

calibration counted_for(const session& s, const lagkv::policy& rules) {
  calibration read{.model = s.counted().model};
  if (rules.needs.calibrated) read.queries = s.counted().queries;
  if (rules.needs.importance) read.importance = s.counted().importance;
  if (rules.needs.head_budgets) read.head_importance = s.counted().head_importance;
  return read;
}

void compressor::prepare(session& s, std::span<const named_policy> policies) {
  lagkv::llama::wanted all;
  for (const named_policy& policy : policies) {
    if (policy.rules.ragged) {  // planned only: llama.cpp cannot hold what it keeps
      all = all | lagkv::llama::wanted_by(policy.rules, policy.rules.needs.calibrated);
      continue;
    }
    make(s, policy);
    all = all | s.probe().what();
  }
  s.probe().record(all);
}

compressor::compressor(session& s, const named_policy& policy, const saved_sequence* restored, bool follow)
    : compressor_(make(s, policy)), follow_(follow) {
  if (restored == nullptr) return;
  if (const lagkv::status ok = compressor_.restore(0, restored->state, {.recorded = restored->attention}); !ok)
    throw std::runtime_error(ok.message());
}

compression compressor::compress() {
  const stopwatch watch;
  const std::size_t dropped = compressor_.at(0).dropped;  // when a plan is told, it has been carried out
  const auto told = [&](std::size_t layer, const lagkv::plan& plan) { follow(layer, plan, dropped); };
  const auto done = follow_ ? compressor_.compress(0, lagkv::llama::way::automatic, told) : compressor_.compress(0);
  const double seconds = watch.seconds();
  if (!done) throw std::runtime_error(done.message());
  return {done->tokens_before, done->tokens_after, done->bytes_before, done->bytes_after, seconds};
}

double compressor::defragment() {
  const stopwatch watch;
  if (const lagkv::status ok = compressor_.defragment(0); !ok) throw std::runtime_error(ok.message());
  return watch.seconds();
}

// Tokens that came in since the last plan are all there.
void compressor::append(std::vector<std::uint32_t>& positions, std::size_t tokens, std::size_t dropped) {
  while (positions.size() < tokens) positions.push_back(static_cast<std::uint32_t>(positions.size() + dropped));
}

kept_positions compressor::kept() const {
  kept_positions all = kept_;
  for (auto& heads : all)
    for (auto& positions : heads) append(positions, compressor_.at(0).tokens, compressor_.at(0).dropped);
  return all;
}

void compressor::follow(std::size_t layer, const lagkv::plan& plan, std::size_t dropped) {
  if (layer >= kept_.size()) kept_.resize(layer + 1, std::vector<std::vector<std::uint32_t>>(plan.heads()));
  for (std::size_t head = 0; head < plan.heads(); ++head) {
    auto& positions = kept_[layer][head];
    append(positions, plan.tokens_before, dropped);
    lagkv::compact(positions.data(), head, plan);
    positions.resize(plan.tokens_after(head));
  }
}

}  // namespace host
