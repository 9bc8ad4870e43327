// lagkv-npy: compresses keys and values stored as .npy files, so that any program that writes NumPy arrays can check
// itself against lagkv. docs/numpy.md shows it at work.
#include <cstdio>
#include <exception>
#include <string>
#include <utility>

#include <CLI/CLI.hpp>

#include "job.hpp"
#include "list.hpp"
#include "work.hpp"

namespace {

constexpr int bad_input = 2;

int complain(const std::string& message) {
  std::fprintf(stderr, "lagkv-npy: %s\n", message.c_str());
  return bad_input;
}

int run(const tool::options& o) {
  lagkv::result<tool::job> j = tool::prepare(o);
  if (!j) return complain(j.message());
  const tool::score_array scores = o.scores ? tool::compute_scores(*j) : tool::score_array{};
  const tool::outcome result = tool::compress(*j);
  if (lagkv::status s = tool::write(*j, result, scores, o.out); !s) return complain(s.message());
  std::string rows = std::to_string(result.most);
  if (result.fewest != result.most) rows = "from " + std::to_string(result.fewest) + " to " + rows;
  std::printf("%s: %s of %zu tokens stay in each of %zu heads (%s)\n", o.out.c_str(), rows.c_str(), j->tokens, j->heads,
              lagkv::simd::name(j->target));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  tool::options o;
  CLI::App app(
      "Compresses keys and values of one layer in .npy files: [heads, tokens, dim], float32 or float16.\n"
      "Writes kept.npy (original positions, [heads, n]), kept_mask.npy ([heads, tokens]), keys.npy and values.npy to a\n"
      "folder; with select=adaptive, where heads keep different numbers of tokens, only kept_mask.npy.");
  app.name("lagkv-npy");
  app.add_option("--policy", o.policy, "a policy, such as lagkv:lag=128,ratio=0.25 (--list tells what there is)");
  app.add_option("--keys", o.keys, "keys");
  app.add_option("--values", o.values, "values; dim and type may differ from the keys'");
  app.add_option("--queries", o.queries, "[query_heads, tokens, dim]: queries as they meet the keys (after RoPE), one a token");
  app.add_option("--query-mean", o.query_mean, "[query_heads, dim]: mean of the queries to come, for expected_attention");
  app.add_option("--query-covariance", o.query_covariance, "[query_heads, dim, dim]: their covariance");
  auto* base = app.add_option("--rope-base", o.rope_base, "the keys carry RoPE of this base (theta), positions 0, 1, 2, ...");
  app.add_option("--rope-pairs", o.rope_pairs, "its pairs: halves (Hugging Face, NeoX) or neighbours; default: halves")
      ->needs(base);
  app.add_option("--rope-dims", o.rope_dims, "the first so many channels are rotated (default: all)")->needs(base);
  app.add_option("--rope-scale", o.rope_scale, "multiplies positions: 0.25 for linear scaling by 4 (default: 1)")->needs(base);
  app.add_option("--rope-factors", o.rope_factors, "[pairs]: frequency divisors (Llama 3, YaRN)")->needs(base);
  app.add_option("--protect", o.protect, "positions that are never dropped: 3,17,40-63");
  app.add_option("--layer", o.layer,
                 "the arrays are layer I of N, counted from 0: 2/30; for pyramid and budget_mb (default: 0/1)");
  app.add_option("--steps", o.steps, "append that many tokens a step: 300,1,1 or 300,1x400; writes lengths.npy");
  app.add_flag("--scores", o.scores, "write scores.npy: the scores of all tokens candidates at once, whatever --steps says");
  app.add_option("--target", o.target, "force scalar, sse2, avx2, avx512 or neon (default: the widest here)");
  app.add_option("--out", o.out, "folder for the results, made where it is missing");
  app.add_flag("--list-markdown", o.list_markdown, "print all keys as the table of docs/methods.md, and end");
  app.add_flag("--list", o.list, "print the policies with their keys, defaults and ranges, and end");
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp& e) {
    return app.exit(e);
  } catch (const CLI::ParseError& e) {
    return complain(std::string(e.what()) + " (see lagkv-npy --help)");
  }
  if (o.list_markdown) {
    std::fputs(tool::markdown_keys().c_str(), stdout);
    return 0;
  }
  if (o.list) {
    std::fputs(tool::list_policies().c_str(), stdout);
    return 0;
  }
  for (const auto& [name, value] : {std::pair{"--policy", &o.policy}, std::pair{"--keys", &o.keys},
                                    std::pair{"--values", &o.values}, std::pair{"--out", &o.out}})
    if (value->empty()) return complain(std::string(name) + ": is missing (see lagkv-npy --help)");
  try {
    return run(o);
  } catch (const std::exception& e) {  // out of memory
    return complain(e.what());
  }
}
