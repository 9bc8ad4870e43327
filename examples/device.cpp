// A cache that lagkv cannot reach: in the memory of a GPU, say. The host copies a layer's keys and values to its own memory,
// makes the plan there, and sends the plan: for each head the rows that stay, the indices of a gather on the device. Here the
// device is another array, and its gather a loop.
#include <cstdint>
#include <cstdio>
#include <vector>

#include <lagkv/lagkv.hpp>

namespace {

constexpr std::size_t heads = 4, capacity = 1024, channels = 64;

/// Keys or values on the device, [heads][capacity][channels] of 16 bits.
struct device_array {
  std::vector<std::uint16_t> memory = std::vector<std::uint16_t>(heads * capacity * channels);

  explicit device_array(unsigned seed) {
    for (std::size_t i = 0; i < memory.size(); ++i)
      memory[i] = static_cast<std::uint16_t>(0x3000 + (i * 2654435761U + seed) % 0x0c00);  // positive f16 numbers
  }

  std::vector<std::uint16_t> copy_to_host() const { return memory; }

  /// Row i becomes what row rows[i] was.
  void gather(std::size_t head, const std::vector<std::uint32_t>& rows) {
    const std::vector<std::uint16_t> before = memory;
    for (std::size_t i = 0; i < rows.size(); ++i)
      for (std::size_t c = 0; c < channels; ++c)
        memory[(head * capacity + i) * channels + c] = before[(head * capacity + rows[i]) * channels + c];
  }
};

lagkv::layer view(std::vector<std::uint16_t>& k, std::vector<std::uint16_t>& v, std::size_t tokens) {
  const lagkv::strides rows{.head = capacity * channels, .token = channels};
  return {lagkv::strided<lagkv::f16>(k.data(), {heads, channels}, rows, capacity),
          lagkv::strided<lagkv::f16>(v.data(), {heads, channels}, rows, capacity), tokens};
}

}  // namespace

int main() {
  const auto policy = lagkv::parse("lagkv:sink=16,lag=128,ratio=0.25");
  if (!policy) return std::fprintf(stderr, "%s\n", policy.message().c_str()), 1;
  device_array keys(1), values(2);
  lagkv::workspace workspace;
  lagkv::cursor cursor;
  std::size_t tokens = 1000;

  // Is anything due? The budget says so without keys: most steps need no copy.
  if (policy->budget.due(cursor, tokens).empty()) return 1;
  std::vector<std::uint16_t> k = keys.copy_to_host(), v = values.copy_to_host();
  const lagkv::layer layer = view(k, v, tokens);
  if (const lagkv::status ok = check(*policy, layer); !ok) return std::fprintf(stderr, "%s\n", ok.message().c_str()), 1;
  const lagkv::plan& plan = lagkv::plan_eviction(*policy, layer, cursor, workspace);
  for (std::size_t head = 0; head < heads; ++head) {
    const std::vector<std::uint32_t> rows = plan.rows(head);
    keys.gather(head, rows), values.gather(head, rows);
  }
  lagkv::advance(cursor, plan);
  tokens = cursor.tokens;

  // The same as compress() in memory of the host.
  lagkv::cursor again;
  const std::size_t left = lagkv::compress(*policy, layer, again, workspace);
  bool same = left == tokens && again == cursor;
  for (std::size_t h = 0; h < heads; ++h)
    for (std::size_t i = 0; i < left * channels; ++i)
      same = same && keys.memory[h * capacity * channels + i] == k[h * capacity * channels + i] &&
             values.memory[h * capacity * channels + i] == v[h * capacity * channels + i];
  std::printf("%zu of 1000 rows stay on the device; %s\n", tokens,
              same ? "as in the host's memory" : "not as in the host's memory");
  return same ? 0 : 1;
}
