// Prints libFuzzer's dictionary of policy strings, from the registry: names of methods, keys, words that they take.
#include <cstdio>
#include <span>
#include <string_view>

#include <lagkv/lagkv.hpp>

namespace {

void print(std::string_view word, const char* behind = "") {
  std::printf("\"%.*s%s\"\n", static_cast<int>(word.size()), word.data(), behind);
}

void print(std::span<const lagkv::parameter> table) {
  for (const lagkv::parameter& p : table) {
    print(p.key, "=");
    if (p.accepts.type != lagkv::accepted::kind::word) continue;
    for (std::string_view words = p.accepts.words; !words.empty();) print(lagkv::detail::take(words, '|'));
  }
}

}  // namespace

int main() {
  print("fuse", ":");
  for (const lagkv::fusion_parameter& p : lagkv::fusion_parameters) print(p.key, "=");
  print(lagkv::shared_options.parameters);
  for (const lagkv::method_entry* m : lagkv::methods()) {
    print(m->name, ":");
    print(m->own.parameters);
    print(m->whole.parameters);
  }
}
