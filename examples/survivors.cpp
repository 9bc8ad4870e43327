// Without a model: the keys and values of three layers of SmolLM2-135M after a prompt that hides a 64-digit pass key (they
// ship with the tests). Which of the key's tokens survive each policy?
#include <cstdio>
#include <filesystem>
#include <iterator>
#include <string>
#include <vector>

#include <lagkv/lagkv.hpp>

#include "tests/support/npy.hpp"

namespace {

// The prompt says the key twice; these tokens are its digits.
constexpr std::size_t key_digits = 64, first_copy = 199, second_copy = 268;

/// The share of digits of which a head still has at least one copy, in percent, over all heads.
double digits_left(const lagkv::plan& p) {
  std::size_t left = 0;
  for (std::size_t head = 0; head < p.heads(); ++head) {
    std::vector<bool> kept(p.tokens_before, p.empty());
    for (std::size_t i = 0; i < p.tokens_after(head); ++i) kept[p.source(head, i)] = true;
    for (std::size_t d = 0; d < key_digits; ++d)
      if (kept[first_copy + d] || kept[second_copy + d]) ++left;
  }
  return 100.0 * static_cast<double>(left) / static_cast<double>(key_digits * p.heads());
}

}  // namespace

int main(int argc, char** argv) {
  const std::filesystem::path golden = argc > 1 ? argv[1] : LAGKV_GOLDEN;
  constexpr int layers[] = {0, 15, 29};
  std::vector<npy::array> keys, values;
  for (int layer : layers)
    for (auto [side, file] : {std::pair{&keys, "keys.npy"}, std::pair{&values, "values.npy"}}) {
      lagkv::result<npy::array> a = npy::load(golden / ("real_smollm2_l" + std::to_string(layer)) / file);
      if (!a) return std::fprintf(stderr, "survivors: %s\n", a.message().c_str()), 2;
      side->push_back(*a);
    }
  std::printf("%zu tokens of SmolLM2-135M-Instruct; digits of the pass key that a head still holds, in %%:\n\n",
              keys[0].shape[1]);
  std::printf("%-42s %12s %9s %9s %9s\n", "policy", "tokens kept", "layer 0", "layer 15", "layer 29");
  lagkv::workspace ws;
  for (const char* text : {"lagkv:lag=512,ratio=0.5", "streaming_llm:capacity=1223", "random:keep=0.8273",
                           "lagkv:lag=512,ratio=0.25", "streaming_llm:capacity=1095", "random:keep=0.7407",
                           "lagkv:lag=128,ratio=0.25", "streaming_llm:capacity=519", "random:keep=0.3513"}) {
    const auto policy = lagkv::parse(text);
    if (!policy) return std::fprintf(stderr, "survivors: %s\n", policy.message().c_str()), 2;
    double left[std::size(layers)] = {};
    for (std::size_t l = 0; l < std::size(layers); ++l) {
      const lagkv::layer layer{npy::view(keys[l]), npy::view(values[l]), keys[l].shape[1]};
      if (const auto ok = lagkv::check(*policy, layer); !ok)
        return std::fprintf(stderr, "survivors: %s\n", ok.message().c_str()), 2;
      left[l] = digits_left(lagkv::plan_eviction(*policy, layer, {}, ws));
    }
    std::printf("%-42s %12zu %9.0f %9.0f %9.0f\n", text, lagkv::last_plan(ws).tokens_after(), left[0], left[1], left[2]);
  }
}
