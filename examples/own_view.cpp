// A view of one's own: a cache that grows by chunks, each an allocation of its own, so that no token is ever copied to a larger
// array. Anything that answers the six questions of lagkv::kv_tensor will do.
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include <lagkv/lagkv.hpp>

constexpr std::size_t heads = 2, channels = 4, chunk = 32;  // a chunk is f32 [heads, chunk, channels]

struct chunks {
  float* const* table = nullptr;  // the host's, which outlives the view
  std::size_t count = 0;

  lagkv::dtype type() const { return lagkv::dtype::f32; }
  static std::size_t heads() { return ::heads; }
  static std::size_t channels() { return ::channels; }
  std::size_t capacity() const { return count * chunk; }

  lagkv::tile at(std::size_t head, lagkv::token_range tokens) const {  // a run ends where its chunk does
    const std::size_t inside = tokens.begin % chunk, left = chunk - inside;
    float* row = table[tokens.begin / chunk] + (head * chunk + inside) * ::channels;
    return {reinterpret_cast<std::byte*>(row), tokens.size() < left ? tokens.size() : left,
            static_cast<std::ptrdiff_t>(::channels), 1};
  }

  lagkv::status check(std::size_t tokens) const {
    for (std::size_t i = 0; i * chunk < tokens; ++i)
      if (table[i] == nullptr) return lagkv::error{"chunk " + std::to_string(i) + ": is null"};
    return {};
  }
};
static_assert(lagkv::kv_tensor<chunks>);

/// Keys or values of a sequence.
class growing {
 public:
  chunks view() const { return {table_.data(), table_.size()}; }
  float* row(std::size_t head, std::size_t token) {
    while (token >= table_.size() * chunk) {
      owned_.push_back(std::make_unique<float[]>(heads * chunk * channels));
      table_.push_back(owned_.back().get());
    }
    return table_[token / chunk] + (head * chunk + token % chunk) * channels;
  }
  /// Chunks behind the tokens in use go back to the system.
  std::size_t release(std::size_t tokens) {
    const std::size_t needed = (tokens + chunk - 1) / chunk, freed = table_.size() - needed;
    owned_.resize(needed), table_.resize(needed);
    return freed;
  }

 private:
  std::vector<std::unique_ptr<float[]>> owned_;
  std::vector<float*> table_;
};

int main() {
  const lagkv::policy policy = *lagkv::make_lagkv({.sink = 4, .lag = 16, .ratio = 0.25});
  lagkv::workspace workspace;
  lagkv::cursor cursor;
  growing keys, values;
  std::size_t tokens = 0, freed = 0;
  for (std::size_t seen = 0; seen < 400; ++seen) {  // chunks come and go as tokens do
    for (std::size_t h = 0; h < heads; ++h)
      for (std::size_t c = 0; c < channels; ++c) {
        keys.row(h, tokens)[c] = static_cast<float>((seen * 29 + c * 13 + h * 5) * (seen + 3) % 97);
        values.row(h, tokens)[c] = c == 0 ? static_cast<float>(seen) : 1.0F;  // channel 0 tells where a row came from
      }
    const lagkv::layer layer{keys.view(), values.view(), tokens + 1};
    if (const lagkv::status s = check(policy, layer); !s) return std::printf("%s\n", s.message().c_str()), 1;
    tokens = lagkv::compress(policy, layer, cursor, workspace);
    freed += keys.release(tokens);
  }
  std::printf("%zu tokens seen, %zu left in chunks of %zu; %zu chunks were freed on the way\n", cursor.seen(), tokens, chunk,
              freed);
  bool ascending = true;  // survivors lie at the front, in their order, across chunks
  for (std::size_t t = 1; t < tokens; ++t)
    for (std::size_t h = 0; h < heads; ++h) ascending = ascending && values.row(h, t - 1)[0] < values.row(h, t)[0];
  return ascending && freed > 0 && tokens == 4 + 23 * 4 + 16 + 12 ? 0 : 1;
}
