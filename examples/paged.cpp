// A pool of blocks and a block table: after compaction the table is shorter, and its last blocks go back to the pool.
#include <cstdint>
#include <cstdio>
#include <span>
#include <vector>

#include <lagkv/lagkv.hpp>

constexpr std::size_t heads = 2, channels = 16, block = 16, pool_blocks = 64;

struct pool {
  std::vector<float> k = std::vector<float>(pool_blocks * heads * block * channels), v = k;  // [blocks, heads, block, channels]
  std::vector<std::int32_t> free_blocks;
};

struct sequence {
  std::vector<std::int32_t> table;
  std::size_t tokens = 0;
  lagkv::cursor cursor;
};

lagkv::layer view(pool& p, const sequence& s) {
  const lagkv::block_layout layout{.tokens = block,
                                   .block = heads * block * channels,
                                   .within = {.head = block * channels, .token = channels},
                                   .pool_blocks = pool_blocks};
  const std::span<const std::int32_t> table(s.table);
  return {lagkv::paged<float>(p.k.data(), {heads, channels}, layout, table),
          lagkv::paged<float>(p.v.data(), {heads, channels}, layout, table), s.tokens};
}

// Where the row of a token begins, in both arrays of the pool.
std::size_t offset(const sequence& s, std::size_t head, std::size_t token) {
  return ((static_cast<std::size_t>(s.table[token / block]) * heads + head) * block + token % block) * channels;
}

/// Where the pool has no block for one more token nothing is appended.
bool append(pool& p, sequence& s) {
  if (s.tokens == s.table.size() * block) {
    if (p.free_blocks.empty()) return false;
    s.table.push_back(p.free_blocks.back()), p.free_blocks.pop_back();
  }
  const std::size_t position = s.tokens + s.cursor.dropped;
  for (std::size_t h = 0; h < heads; ++h) {
    const std::size_t row = offset(s, h, s.tokens);
    for (std::size_t c = 1; c < channels; ++c) p.k[row + c] = p.v[row + c] = static_cast<float>(position * (7 * c + h) % 101);
    p.k[row] = static_cast<float>(position);  // so that a row tells where it came from
  }
  ++s.tokens;
  return true;
}

void release_unused(pool& p, sequence& s) {
  for (const std::size_t needed = (s.tokens + block - 1) / block; s.table.size() > needed; s.table.pop_back())
    p.free_blocks.push_back(s.table.back());
}

int main() {
  pool p;
  for (std::size_t b = 0; b < pool_blocks; ++b) p.free_blocks.push_back(static_cast<std::int32_t>(b * 37 % pool_blocks));
  const lagkv::policy policy = *lagkv::make_lagkv({.sink = 4, .lag = 64, .ratio = 0.25});
  lagkv::workspace workspace;
  sequence s;
  for (int round = 0; round < 3; ++round) {
    for (int i = 0; i < 500; ++i)
      if (!append(p, s)) return std::printf("the pool is full\n"), 1;
    if (const lagkv::status ok = check(policy, view(p, s)); !ok) return std::printf("%s\n", ok.message().c_str()), 1;
    const std::size_t before = s.table.size();
    s.tokens = lagkv::compress(policy, view(p, s), s.cursor, workspace);
    release_unused(p, s);
    std::printf("position %4zu: %zu blocks in use, %zu go back to the pool, %zu are free\n", s.cursor.seen(), before,
                before - s.table.size(), p.free_blocks.size());
    for (std::size_t h = 0; h < heads; ++h)  // rows are where the plan says
      for (std::size_t t = 1; t < s.tokens; ++t)
        if (p.k[offset(s, h, t)] <= p.k[offset(s, h, t - 1)]) return 1;
  }
  return p.free_blocks.size() + s.table.size() == pool_blocks && s.table.size() == (s.tokens + block - 1) / block ? 0 : 1;
}
