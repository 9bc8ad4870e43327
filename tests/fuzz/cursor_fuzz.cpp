// A saved cursor of anyone's making, and what a budget makes of it.
#include <algorithm>
#include <span>

#include <lagkv/lagkv.hpp>

#include "input.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const lagkv::result<lagkv::cursor> loaded = lagkv::load_cursor(std::as_bytes(std::span(data, std::min<std::size_t>(size, 28))));
  fuzz::expect(static_cast<bool>(loaded) == loaded.message().empty());
  if (!loaded) return 0;
  const lagkv::saved_cursor again = lagkv::save(*loaded);
  fuzz::expect(std::equal(again.begin(), again.end(), reinterpret_cast<const std::byte*>(data)));
  fuzz::expect(loaded->compressed <= loaded->tokens);

  fuzz::input in(data + 28, size - 28);
  const std::size_t tokens = in.take<std::uint32_t>();
  for (const char* text : {"lagkv:lag=128", "key_diff:keep=0.25", "key_diff:capacity=100", "h2o:keep=0.4",
                           "streaming_llm:capacity=9", "streaming_llm:keep=0.5", "key_diff:capacity=100,pyramid=20", "full"}) {
    const lagkv::policy p = lagkv::for_layer(*lagkv::parse(text), in.below(4), 4);
    lagkv::cursor at = *loaded;
    lagkv::take_back(at, tokens);
    const std::size_t begin = in.below(tokens + 1), end = in.below(tokens + 1);  // read in this order by every compiler
    lagkv::take_out(at, begin, end, in.below(2) == 0 ? lagkv::gap::kept : lagkv::gap::closed);
    fuzz::expect(at.compressed <= at.tokens && at.tokens <= tokens);
    const lagkv::candidates c = p.budget.due(at, tokens);
    fuzz::expect(c.rows.begin <= c.rows.end && c.rows.end <= tokens && c.keep <= c.rows.size());
    fuzz::expect(c.partition == 0 || c.rows.size() % c.partition == 0);
  }
  return 0;
}
