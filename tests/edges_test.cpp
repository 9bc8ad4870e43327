// Errors are values: what is refused at the edge, and the words in which it is.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <lagkv/lagkv.hpp>

#include "support/every_method.hpp"
#include "support/host.hpp"

namespace {

using namespace support;
using lagkv::dtype;

// ---- parse ----------------------------------------------------------------------------------------------------------

constexpr const char* keys_of_lagkv = "lagkv: unknown key '%': must be one of sink, lag, ratio, value_weight, form, pre_rope";
/// The names that a message lists, from the list of policies itself.
std::string names_of(bool fusable) {
  std::string out = fusable ? "" : "fuse";
  for (const lagkv::method_entry* m : lagkv::methods())
    if (!fusable || m->make != nullptr) out.append(out.empty() ? "" : ", ").append(m->name);
  return out;
}
const std::string names = "unknown policy '%': must be one of " + names_of(false);
constexpr const char* shared =
    "sink, recent, lag, keep, capacity, budget_mb, every, recent_share, pool, smooth, heads, pre_rope, select, chunk, safeguard, "
    "threshold, pyramid";

std::string with(std::string text, const std::string& word) { return text.replace(text.find('%'), 1, word); }

TEST(parse, accepts_and_refuses_with_reason_and_numbers) {
  const std::pair<const char*, std::string> table[] = {
      {"lagkv", ""},
      {"lagkv:sink=16,lag=128,ratio=0.25,value_weight=1,form=paper", ""},
      {"lagkv:form=local,ratio=1", ""},
      {"lagkv:form=kvpress,sink=0", ""},
      {"lagkv:form=kvpress_cross,value_weight=0", ""},
      {"lagkv:ratio=1e-3", ""},
      {"streaming_llm:sink=4,capacity=512", ""},
      {"streaming_llm:sink=4,keep=0.5", ""},
      {"random", ""},
      {"random:sink=4,recent=32,keep=0.5,seed=9007199254740992", ""},

      {"lagkv:lag=0", "lag=0: must be a whole number from 1 to 2147483647"},
      {"lagkv:ratio=1.5", "ratio=1.5: must be above 0 and at most 1"},
      {"lagkv:ratio=1.0000001", "ratio=1.0000001: must be above 0 and at most 1"},
      {"lagkv:ratio=0", "ratio=0: must be above 0 and at most 1"},
      {"lagkv:ratio=-0.5", "ratio=-0.5: must be above 0 and at most 1"},
      {"lagkv:ratio=nan", "ratio=nan: must be above 0 and at most 1"},
      {"lagkv:ratio=inf", "ratio=inf: must be above 0 and at most 1"},
      {"lagkv:ratio=1e999", "ratio=1e999: must be above 0 and at most 1"},
      {"lagkv:ratio=half", "ratio=half: must be above 0 and at most 1"},
      {"lagkv:ratio=0.5x", "ratio=0.5x: must be above 0 and at most 1"},
      {"lagkv:ratio=0,5", "ratio=0: must be above 0 and at most 1"},
      {"lagkv:ratio=1,5", with(keys_of_lagkv, "5")},
      {"lagkv:lag=1.5", "lag=1.5: must be a whole number from 1 to 2147483647"},
      {"lagkv:lag=-1", "lag=-1: must be a whole number from 1 to 2147483647"},
      {"lagkv:lag=3000000000", "lag=3000000000: must be a whole number from 1 to 2147483647"},
      {"lagkv:lag=1e300", "lag=1e300: must be a whole number from 1 to 2147483647"},
      {"lagkv:sink=-1", "sink=-1: must be a whole number from 0 to 2147483647"},
      {"lagkv:sink=nan", "sink=nan: must be a whole number from 0 to 2147483647"},
      {"lagkv:sink= 4", "sink= 4: must be a whole number from 0 to 2147483647"},
      {"lagkv:value_weight=-1", "value_weight=-1: must be from 0 to 1000000"},
      {"lagkv:value_weight=1e7", "value_weight=1e7: must be from 0 to 1000000"},
      {"lagkv:form=other", "form=other: must be one of paper, local, kvpress, kvpress_cross"},
      {"lagkv:form=pape", "form=pape: must be one of paper, local, kvpress, kvpress_cross"},
      {"lagkv:lags=4", with(keys_of_lagkv, "lags")},
      {"lagkv:Lag=4", with(keys_of_lagkv, "Lag")},
      {"lagkv:sink=4,", with(keys_of_lagkv, "")},
      {"lagkv:,sink=4", with(keys_of_lagkv, "")},
      {"lagkv:=4", with(keys_of_lagkv, "")},
      {"lagkv:", "lagkv: a key=value must follow the colon"},
      {"lagkv:lag", "lag: has no value: write lag=..."},
      {"lagkv:lag=", "lag: has no value: write lag=..."},
      {"lagkv:lag=,sink=4", "lag: has no value: write lag=..."},
      {"lagkv:sink=4,sink=5", "sink: is given twice"},
      {"", with(names, "")},
      {"LagKV", with(names, "LagKV")},
      {"h3o:sink=4", with(names, "h3o")},
      {" lagkv", with(names, " lagkv")},
      {":sink=4", with(names, "")},
      {"streaming_llm", "capacity, keep: give one of them"},
      {"streaming_llm:capacity=50,keep=0.5", "capacity, keep: give one of them"},
      {"streaming_llm:sink=4,capacity=4", "capacity=4: must be 5 or more (sink + 1)"},
      {"streaming_llm:keep=1.5", "keep=1.5: must be above 0 and at most 1"},
      {"random:recent=0", ""},
      {"random:keep=2", "keep=2: must be above 0 and at most 1"},
      {"random:seed=-1", "seed=-1: must be a whole number from 0 to 9007199254740992"},
      {"random:lagg=4", "unknown key 'lagg': must be one of " + std::string(shared) + ", seed"},
      {"key_norm:keep=0", "keep=0: must be above 0 and at most 1"},
      {"key_norm:keep=-1", "keep=-1: must be above 0 and at most 1"},
      {"key_norm:keep=0.5,capacity=100", "keep, capacity, budget_mb: give one of them"},
      {"key_norm:capacity=36", "capacity=36: must be 37 or more (sink + recent + 1)"},
      {"key_norm:capacity=0", "capacity=0: must be 37 or more (sink + recent + 1)"},
      {"key_norm:capacity=100,recent_share=1,sink=16",
       "capacity=100: must be more than sink=16 and the window of 100 (recent_share=1)"},
      {"key_norm:capacity=100,recent_share=0.83,sink=16", ""},
      {"key_norm:capacity=100,recent_share=0.84,sink=16",
       "capacity=100: must be more than sink=16 and the window of 84 (recent_share=0.84)"},
      {"h2o:capacity=20,sink=18", "capacity=20: must be more than sink=18 and the window of 10 (recent_share=0.5)"},
      {"key_norm:keep=0.8,recent_share=0.7",
       "keep=0.8, recent_share=0.7: nothing would ever go: their product must be below 0.5"},
      {"key_norm:keep=0.5,recent_share=1", "keep=0.5, recent_share=1: nothing would ever go: their product must be below 0.5"},
      {"key_norm:keep=0.7,recent_share=0.7", ""},
      {"key_norm:keep=1,recent_share=0.7", ""},
      {"key_norm:budget_mb=0", "budget_mb=0: must be above 0 and at most 1000000000"},
      {"key_norm:lag=16,capacity=100", "lag=16: a partition keeps a share: give keep"},
      {"key_norm:lag=16,pyramid=20", "lag=16: a partition keeps the same share in all layers: not with pyramid"},
      {"key_norm:pyramid=0.5", "pyramid=0.5: must be from 1 to 1000000"},
      {"key_norm:pool=4", "pool=4: must be an odd number"},
      {"key_norm:every=0", "every=0: must be a whole number from 1 to 2147483647"},
      {"key_norm:select=best", "select=best: must be one of top_k, chunks, adaptive, by_head"},
      {"key_norm:select=chunks,chunk=0", "chunk=0: must be a whole number from 1 to 2147483647"},
      {"key_norm:select=adaptive,safeguard=1.5", "safeguard=1.5: must be from 0 to 1"},
      {"key_norm:select=by_head", ""},
      {"recommended:select=by_head,recent_share=0", ""},
      {"key_norm:select=by_head,recent_share=0.5", "recent_share=0.5: heads have windows of one length: not with select=by_head"},
      {"key_norm:select=by_head,pyramid=2", "pyramid=2: head budgets say what layers keep: not with select=by_head"},
      {"key_norm:select=adaptive,threshold=-4", ""},
      {"key_norm:select=adaptive,threshold=nan", "threshold=nan: must be from -100000 to 100000"},
      {"key_norm:threshold=-4", "threshold=-4: heads would keep different numbers of tokens: give select=adaptive"},
      {"redundancy:similar=1.5", "similar=1.5: must be from 0 to 1"},
      {"key_norm:recent_share=-0.5", "recent_share=-0.5: must be from 0 to 1"},
      {"key_norm:window=3", "unknown key 'window': must be one of " + std::string(shared)},
      {"distinct:bits=0", "bits=0: must be a whole number from 1 to 16"},
      {"distinct:bits=17", "bits=17: must be a whole number from 1 to 16"},
      {"snapkv:window=0", "window=0: must be a whole number from 1 to 2147483647"},
      {"snapkv:kernel=4", "kernel=4: must be an odd number"},
      {"cur:window=0", "window=0: must be a whole number from 1 to 2147483647"},
      {"h2o:form=max", "form=max: must be one of sum, mean"},
      {"fuse", "of: must be two to four methods joined by +"},
      {"fuse:cur", "of: must be two to four methods joined by +"},
      {"fuse:cur+streaming_llm", "unknown method 'streaming_llm': must be one of " + names_of(true)},
      {"fuse:cur+lagkv", "lag=0: lagkv compares partitions: must be 1 or more"},
      {"fuse:cur+key_diff,weights=1", "weights: must be as many numbers as methods, such as 1+0.5"},
      {"fuse:cur+key_diff,weights=1+2+3", "weights: must be as many numbers as methods, such as 1+0.5"},
      {"fuse:cur+key_diff,weights=1+-2", "weight=-2: must be from 0 to 1000000"},
      {"fuse:cur+key_diff,by=first", "by=first: must be one of sum, best"},
      {"fuse:key_norm+value_norm,lagg=4", "unknown key 'lagg': must be one of " + std::string(shared)},
      {"fuse:cur+no_method", "unknown method 'no_method': must be one of " + names_of(true)},
      {"fuse:cur+key_diff,of=cur+random", "of: is given twice"},
      {"fuse:of=cur+random,of=cur+random", "of: is given twice"},
      {"fuse:cur+key_diff,weights=1+1,weights=2+2", "weights: is given twice"},
      {"fuse:cur+key_diff,by=sum,keep=0.5,by=sum", "by: is given twice"},
      {"fuse:keep=0.5,of=", "of: has no value: write of=..."},
      {"fuse:cur+key_diff,weights=", "weights: has no value: write weights=..."},
      {"fuse:cur+key_diff,by=", "by: has no value: write by=..."},
      {"fuse:cur+key_diff,by", "by: has no value: write by=..."},
      {"fuse:cur+key_diff,", "a key=value must stand before and after each comma"},
      {"fuse:cur+key_diff,,keep=0.5", "a key=value must stand before and after each comma"},
      {"fuse:,cur+key_diff", "a key=value must stand before and after each comma"},
      {"fuse:cur+key_diff+,keep=0.5", "of: must be two to four methods joined by +"},
      {"fuse:+cur+key_diff", "unknown method '': must be one of " + names_of(true)},
      {"fuse:cur+key_diff,weights=1+2+", "weights: must be as many numbers as methods, such as 1+0.5"},
      {"fuse:cur+key_diff,weights=0+0", "weights: all are 0: one at least must be above"},
      {"fuse:cur+key_diff,by=best,weights=0+0.0", "weights: all are 0: one at least must be above"},
      {"novelty:keep=0.25,every=32", "every=32: is for capacity and budget_mb: give one of them"},
      {"key_norm:lag=16,every=2", "every=2: is for capacity and budget_mb: give one of them"},
      {"key_norm:keep=0.5,chunk=7", "chunk=7: is the length of chunks: give select=chunks"},
      {"key_norm:keep=0.5,safeguard=0", "safeguard=0: is a share of uneven heads: give select=adaptive"},
      {"fuse:cur+key_diff,weights=1+x", "weights: must be as many numbers as methods, such as 1+0.5"},
      {"fuse:cur+h2o,pre_rope=yes", "pre_rope=yes: queries meet keys as they are: not with a method that reads attention"},
      {"h2o:pre_rope=yes", "pre_rope=yes: queries meet keys as they are: not with a method that reads attention"},
      {"snapkv:pre_rope=yes", "pre_rope=yes: queries meet keys as they are: not with a method that reads attention"},
      {"expected_attention:pre_rope=yes", "pre_rope=yes: queries meet keys as they are: not with a method that reads attention"},
      {"key_norm:lag=16,budget_mb=1", "lag=16: a partition keeps a share: give keep"},
      {"fuse:cur+key_diff+key_norm+random+tova", "of: must be two to four methods joined by +"}};
  for (const auto& [text, message] : table) {
    const auto p = lagkv::parse(text);
    const std::string input(text), name = input.substr(0, input.find(':')) + ": ";
    const bool names_policy = message.empty() || message.find("unknown policy") == 0 || message.find(name) == 0;
    EXPECT_EQ(p.message(), names_policy ? message : name + message) << text;
    EXPECT_EQ(static_cast<bool>(p), message.empty()) << text;
  }
}

TEST(parse, survives_any_text) {
  const std::string pieces[] = {"lagkv", "random",   ":",
                                ",",     "=",        "lag",
                                "ratio", "0.5",      "1e",
                                "-",     "\xff",     std::string(1, '\0'),
                                "form",  "kvpress|", "9999999999999999999999"};
  unsigned state = 1;
  for (int i = 0; i < 20000; ++i) {
    std::string text;
    for (int n = 0; n < 8; ++n) {
      state = state * 1664525U + 1013904223U;
      text += pieces[(state >> 16) % std::size(pieces)];
    }
    const auto p = lagkv::parse(text);
    ASSERT_EQ(static_cast<bool>(p), p.message().empty()) << text;
  }
}

TEST(parse, gives_what_the_string_says) {
  const auto lagkv = lagkv::parse("lagkv:ratio=0.29,lag=100,sink=3,value_weight=0");
  ASSERT_TRUE(lagkv);
  EXPECT_EQ(lagkv->budget.sink, 3U);
  EXPECT_EQ(lagkv->budget.lag(), 100U);
  ASSERT_TRUE(lagkv->budget.as<lagkv::keep::partitions>());
  EXPECT_EQ(lagkv->budget.as<lagkv::keep::partitions>()->ratio, 0.29);
  EXPECT_FALSE(lagkv->needs.values);
  EXPECT_FALSE(lagkv->adjust);
  EXPECT_TRUE(lagkv::parse("lagkv")->needs.values);
  EXPECT_TRUE(lagkv::parse("lagkv:form=kvpress")->adjust);
  EXPECT_TRUE(lagkv::parse("lagkv:form=kvpress_cross")->budget.as<lagkv::keep::share>());
  EXPECT_EQ(lagkv::parse("random:recent=7")->budget.recent, 7U);
  EXPECT_EQ(lagkv::parse("tova")->adjust.size(), 1U) << "heads=shared is its own default";
  EXPECT_FALSE(lagkv::parse("tova:heads=own")->adjust);
}

TEST(parse, recommended_is_the_policy_that_the_docs_say_it_is) {
  for (const char* more :
       {"keep=0.25", "keep=0.25,lag=0,smooth=2", "capacity=60,recent=8", "keep=0.2,recent_share=0.1", "lag=32"}) {
    const lagkv::policy p = *lagkv::parse(std::string("recommended:") + more);
    const char* own = std::string_view(more).find("recent_share") == std::string_view::npos ? "recent_share=0.25," : "";
    const lagkv::policy q = *lagkv::parse(std::string("novelty:ridge=1,value_weight=1,") + own + more);
    EXPECT_EQ(p.budget.recent_share, q.budget.recent_share) << more;
    EXPECT_EQ(p.needs.values, q.needs.values);
    EXPECT_EQ(p.adjust.size(), q.adjust.size()) << more;
    EXPECT_EQ(p.needs.rope, q.needs.rope);
    EXPECT_EQ(p.needs.key_statistics, q.needs.key_statistics);
    const cube k = make_cube(61, 2, 200, 16);
    cache c(layout::heads_first, dtype::f32, k, k);
    const lagkv::rope rope{.base = 10000, .pairs = lagkv::rope::pairing::halves};
    std::vector<std::uint32_t> positions(200);
    std::iota(positions.begin(), positions.end(), 0U);
    const lagkv::extras offers{.positions = {positions.data(), 0}, .rope = &rope};
    lagkv::layer l = c.layer(200);
    l.extra = &offers;
    lagkv::workspace first, second;
    const lagkv::plan &a = plan_eviction(p, l, {}, first), &b = plan_eviction(q, l, {}, second);
    ASSERT_GT(a.kept.size(), 0U) << more;
    EXPECT_EQ(a.kept, b.kept) << more;
  }
}

TEST(parse, whole_and_odd_numbers_have_no_fraction) {
  std::size_t tried = 0;
  const auto refused = [&](const std::string& text, const lagkv::parameter& p) {
    using kind = lagkv::accepted::kind;
    if (p.accepts.type != kind::whole && p.accepts.type != kind::odd) return;
    for (const char* value : {"3.5", "1.0001", "4.5", "3.9999999"}) {
      ++tried;
      const std::string message = lagkv::parse(text + std::string(p.key) + "=" + value, every_method()).message();
      EXPECT_NE(message.find(std::string(p.key) + "=" + value + ": must be"), std::string::npos) << text << ": " << message;
    }
  };
  for (const lagkv::method_entry* m : every_method())
    for (auto list : {m->own.parameters, m->whole.parameters})
      for (const lagkv::parameter& p : list) refused(std::string(m->name) + ":", p);
  for (const lagkv::parameter& p : lagkv::policy_parameters) refused("key_norm:", p);
  EXPECT_GT(tried, 60U);
}

TEST(parse, methods_that_need_eigen_are_named_where_they_are_missing) {
  std::size_t missing = 0;
  for (const lagkv::method_entry* m : every_method()) {
    const std::string name(m->name);
    const auto known = lagkv::methods();
    if (std::find(known.begin(), known.end(), m) != known.end()) continue;
    ++missing;
    const std::string why = name + " needs Eigen: include lagkv/methods_with_eigen.hpp, parse(text, methods_with_eigen())";
    EXPECT_EQ(lagkv::parse(name).message(), why);
    EXPECT_EQ(lagkv::parse("fuse:key_norm+" + name).message(), why);
    EXPECT_NE(lagkv::parse(name + "_").message().find("unknown policy"), std::string::npos);
    EXPECT_TRUE(lagkv::parse(name, every_method()));
  }
  EXPECT_EQ(missing, std::size(lagkv::detail::needing_eigen));
}

TEST(parse, every_policy_says_what_it_is_and_has_defaults_that_work) {
  for (const lagkv::method_entry* m : every_method()) {
    const auto p = lagkv::parse(m->name, every_method());
    EXPECT_TRUE(p || p.message().find("give one of") != std::string::npos) << m->name << ": " << p.message();
    EXPECT_FALSE(m->meaning.empty() || m->reads.empty() || (m->source.empty() && m->name != "random" && m->name != "full"))
        << m->name;
    for (auto list : {m->own.parameters, m->whole.parameters})
      for (const lagkv::parameter& q : list)
        EXPECT_FALSE(q.key.empty() || lagkv::text(q.accepts).empty() || q.meaning.empty()) << m->name;
  }
  const lagkv::policy parsed = *lagkv::parse("lagkv"), made = *lagkv::make_lagkv();
  EXPECT_EQ(parsed.budget.sink, made.budget.sink);
  EXPECT_EQ(parsed.budget.lag(), made.budget.lag());
  EXPECT_EQ(parsed.budget.as<lagkv::keep::partitions>()->ratio, made.budget.as<lagkv::keep::partitions>()->ratio);
}

TEST(parse, shared_keys_have_the_defaults_of_their_options) {
  const lagkv::policy parsed = *lagkv::parse("key_diff"), made = *lagkv::make_policy(lagkv::key_diff_score{});
  EXPECT_EQ(parsed.budget.sink, made.budget.sink);
  EXPECT_EQ(parsed.budget.recent, made.budget.recent);
  EXPECT_EQ(parsed.budget.lag(), made.budget.lag());
  ASSERT_TRUE(parsed.budget.as<lagkv::keep::share>() && made.budget.as<lagkv::keep::share>());
  EXPECT_EQ(parsed.budget.as<lagkv::keep::share>()->of_all, made.budget.as<lagkv::keep::share>()->of_all);
  EXPECT_EQ(parsed.budget.recent_share, made.budget.recent_share);
  EXPECT_EQ(parsed.budget.slope.beta, made.budget.slope.beta);
  EXPECT_FALSE(parsed.select || parsed.adjust || parsed.ragged || parsed.fused_count != 0);
  EXPECT_EQ(lagkv::parse("snapkv:window=48")->budget.recent, 48U) << "the method's own window";
  EXPECT_EQ(lagkv::parse("snapkv:window=48,recent=7")->budget.recent, 7U);
  EXPECT_EQ(lagkv::parse("h2o")->budget.recent_share, 0.5);
}

TEST(parse, fusions_give_each_key_to_every_method_that_has_it) {
  const auto p = lagkv::parse("fuse:snapkv+cur+key_diff,window=24,weights=1+0.5+2,lag=0,keep=0.25");
  ASSERT_TRUE(p) << p.message();
  EXPECT_EQ(p->needs.queries, 24U);
  EXPECT_TRUE(p->needs.values && p->needs.all_rows);
  EXPECT_EQ(p->fused_count, 2U);
  EXPECT_EQ(p->weight, 1);
  EXPECT_EQ(p->fused[0].weight, 0.5);
  EXPECT_EQ(p->fused[1].weight, 2);
  EXPECT_EQ(p->budget.recent, 32U) << "the widest of their windows";
  EXPECT_TRUE(lagkv::parse("fuse:keep=0.25,of=key_norm+cur"));
  EXPECT_TRUE(lagkv::parse("fuse:lagkv+key_diff,lag=64,value_weight=0"));
}

// What a fusion needs is what any of its methods needs, whichever comes first.
TEST(parse, fusions_need_what_each_method_needs) {
  const auto flags = [](const lagkv::needs& n) {
    return std::vector<bool>{n.values,     n.all_rows, n.accumulated_attention, n.query_statistics, n.calibrated,
                             n.importance, n.rope,     n.key_statistics,        n.head_budgets};
  };
  for (const lagkv::method_entry* a : lagkv::methods())
    for (const lagkv::method_entry* b : lagkv::methods()) {
      if (a->make == nullptr || b->make == nullptr) continue;
      const std::string both = std::string(a->name) + "+" + std::string(b->name);
      const auto fused = lagkv::parse("fuse:" + both + ",lag=64");
      ASSERT_TRUE(fused) << fused.message();
      const auto alone = [](const lagkv::method_entry* m) { return named(std::string(m->name) + ":lag=64").needs; };
      std::vector<bool> any = flags(alone(a));
      const std::vector<bool> other = flags(alone(b));
      for (std::size_t i = 0; i < any.size(); ++i) any[i] = any[i] || other[i];
      EXPECT_EQ(flags(fused->needs), any) << both;
      EXPECT_EQ(fused->needs.queries, std::max(alone(a).queries, alone(b).queries)) << both;
    }
  const lagkv::needs calibrated{.calibrated = true}, none{};
  EXPECT_TRUE((calibrated | none).calibrated && (none | calibrated).calibrated && !(none | none).calibrated);
  EXPECT_TRUE(named("fuse:key_norm+cur,select=by_head").needs.head_budgets) << "no method's own, but the selector's";
}

// An entry of the host's own may refuse its options.
TEST(parse, says_what_an_entry_says) {
  lagkv::method_entry own{};
  own.name = "own";
  own.make = [](const void*, std::size_t lag) -> lagkv::result<lagkv::method> {
    if (lag == 7) return lagkv::error{"lag=7: no"};
    return lagkv::method_of(lagkv::key_norm_score{});
  };
  const lagkv::method_entry* known[] = {&own};
  EXPECT_EQ(lagkv::parse("own:lag=7", known).message(), "own: lag=7: no");
  EXPECT_EQ(lagkv::parse("own:lag=8", known).message(), "");
}

TEST(make_policy, has_room_for_five_transforms) {
  lagkv::method m = lagkv::method_of(lagkv::key_norm_score{});
  const lagkv::policy_options none{}, pool{.pool = 3}, heads{.heads = lagkv::deciding_heads::shared}, smooth{.smooth = 2};
  for (std::size_t own = 0; own < 5; ++own) {
    for (const lagkv::policy_options& o : {none, pool, heads, smooth}) EXPECT_EQ(lagkv::make_policy(m, o).message(), "");
    ASSERT_TRUE(m.adjust.then(lagkv::mean_of_heads{}));
  }
  EXPECT_EQ(lagkv::make_policy(m, none).message(), "");
  for (const lagkv::policy_options& o : {pool, heads, smooth})
    EXPECT_EQ(lagkv::make_policy(m, o).message(),
              "transforms: the method has 5 of its own: with pool, heads and smooth there must be at most 5");
}

TEST(make, refuses_what_no_string_can_say) {
  EXPECT_EQ(lagkv::make_lagkv({.ratio = std::numeric_limits<double>::quiet_NaN()}).message(),
            "ratio=nan: must be above 0 and at most 1");
  EXPECT_EQ(lagkv::make_lagkv({.lag = std::size_t{1} << 40}).message(),
            "lag=1099511627776: must be a whole number from 1 to 2147483647");
  lagkv::lagkv_string_options of_a_string;
  of_a_string.options.ratio = 2;
  EXPECT_EQ(lagkv::lagkv_entry.make_whole(&of_a_string).message(), "ratio=2: must be above 0 and at most 1");
  EXPECT_EQ(lagkv::make_streaming_llm({.sink = std::size_t{1} << 40, .capacity = 5}).message(),
            "sink=1099511627776: must be a whole number from 0 to 2147483647");
}

// ---- check ----------------------------------------------------------------------------------------------------------

float memory[4096];
std::uint16_t halves[4096];

std::string refusal(const lagkv::tensor& x, std::size_t tokens) { return x.check(tokens).message(); }

TEST(check, strides_that_overlap) {
  const auto of = [](lagkv::strides s) { return refusal(lagkv::strided<float>(memory, {2, 4}, s), 10); };
  EXPECT_EQ(of({40, 4, 1}), "");
  EXPECT_EQ(of({4, 8, 1}), "");
  EXPECT_EQ(of({40, 1, 10}), "");
  EXPECT_EQ(of({-40, -4, -1}), "");
  EXPECT_EQ(of({40, 3, 1}), "strides head=40, token=3, channel=1: overlap for 2 heads, 10 tokens, 4 channels");
  EXPECT_EQ(of({39, 4, 1}), "strides head=39, token=4, channel=1: overlap for 2 heads, 10 tokens, 4 channels");
  EXPECT_EQ(of({0, 4, 1}), "strides head=0, token=4, channel=1: overlap for 2 heads, 10 tokens, 4 channels");
  EXPECT_EQ(of({40, 4, 0}), "strides head=40, token=4, channel=0: overlap for 2 heads, 10 tokens, 4 channels");
  EXPECT_EQ(of({40, -3, 1}), "strides head=40, token=-3, channel=1: overlap for 2 heads, 10 tokens, 4 channels");
  EXPECT_EQ(refusal(lagkv::strided<float>(memory, {1, 4}, {0, 4, 1}), 10), "") << "a single head needs no stride";
}

TEST(check, an_array_of_nothing_overlaps_nowhere) {
  for (const lagkv::strides& s : {lagkv::strides{0, 0, 0}, {0, 4, 1}, {40, 0, 0}})
    EXPECT_EQ(refusal(lagkv::strided<float>(memory, {2, 4}, s, 0), 0), "") << "as numpy has them";
}

// Against a set, for tables as pools that have long been in use leave them.
TEST(check, scattered_block_tables_are_refused_if_a_block_stands_twice) {
  std::mt19937 random{5};
  const auto said = [&](const std::vector<std::int64_t>& table) {
    const lagkv::block_layout layout{.tokens = 1, .block = 8, .within = {4, 8, 1}};
    return refusal(lagkv::paged<lagkv::f16, std::int64_t>(halves, {2, 4}, layout, table), table.size());
  };
  for (const std::size_t n : {2U, 3U, 255U, 256U, 257U, 1000U, 5000U})
    for (const std::int64_t pool : {std::int64_t{1} << 8, std::int64_t{1} << 16, std::int64_t{1} << 40}) {
      std::vector<std::int64_t> table;
      std::set<std::int64_t> once;
      while (table.size() < n && table.size() < static_cast<std::size_t>(pool)) {
        const std::int64_t first = static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(pool));
        for (std::int64_t b = first; b < first + 1 + static_cast<std::int64_t>(random() % 4) && b < pool; ++b)
          if (once.insert(b).second) table.push_back(b);
      }
      ASSERT_EQ(said(table), "") << n << " of " << pool;
      for (int i = 0; i < 20; ++i) {
        std::vector<std::int64_t> twice = table;
        const std::size_t from = random() % table.size(), to = random() % table.size();
        twice[to] = table[from];
        ASSERT_EQ(said(twice), from == to ? "" : "block " + std::to_string(table[from]) + ": stands twice in the table");
      }
    }
}

TEST(check, capacity_and_emptiness) {
  EXPECT_EQ(refusal(lagkv::strided<float>(memory, {2, 4}, {40, 4, 1}, 10), 11), "tokens=11: the view addresses at most 10");
  EXPECT_EQ(refusal(lagkv::strided<float>(memory, {2, 4}, {36, 4, 1}, 10), 5),
            "strides head=36, token=4, channel=1: overlap for 2 heads, 10 tokens, 4 channels")
      << "the whole capacity counts";
  EXPECT_EQ(refusal(lagkv::strided<float>(memory, {0, 4}, {40, 4, 1}), 5), "heads=0, channels=4: must be 1 or more");
  EXPECT_EQ(refusal(lagkv::strided<float>(memory, {2, 0}, {40, 4, 1}), 5), "heads=2, channels=0: must be 1 or more");
  EXPECT_EQ(refusal(lagkv::strided<float>(static_cast<float*>(nullptr), {2, 4}, {40, 4, 1}), 5), "data: is null");
  EXPECT_EQ(refusal({}, 0), "the tensor is empty");
}

std::string paged_refusal(const std::vector<std::int32_t>& table, std::size_t tokens,
                          lagkv::block_layout b = {16, 128, {4, 8, 1}, 8}) {
  return refusal(lagkv::paged<lagkv::f16>(halves, {2, 4}, b, table), tokens);
}

TEST(check, block_tables) {
  EXPECT_EQ(paged_refusal({7, 0, 3}, 48), "");
  EXPECT_EQ(paged_refusal({7, 0, 3}, 49), "tokens=49: the view addresses at most 48");
  EXPECT_EQ(paged_refusal({}, 1), "tokens=1: the view addresses at most 0");
  EXPECT_EQ(paged_refusal({7, -1, 3}, 48), "block -1: must be 0 or more");
  EXPECT_EQ(paged_refusal({7, -1, 3}, 16), "") << "blocks behind the tokens in use may be anything";
  EXPECT_EQ(paged_refusal({7, 8, 3}, 48), "block 8: the pool has 8 blocks");
  EXPECT_EQ(paged_refusal({7, 3, 7}, 48), "block 7: stands twice in the table");
  EXPECT_EQ(paged_refusal({0, 1}, 32, {16, 127, {4, 8, 1}, 8}),
            "strides block=127, head=4, token=8, channel=1: overlap for 2 blocks of 16 tokens, 2 heads, 4 channels");
  EXPECT_EQ(paged_refusal({0, 1}, 32, {16, 128, {3, 8, 1}, 8}),
            "strides block=128, head=3, token=8, channel=1: overlap for 2 blocks of 16 tokens, 2 heads, 4 channels");
  EXPECT_EQ(paged_refusal({7}, 5, {~std::size_t{0}, 128, {4, 8, 1}, 8}),
            "strides block=128, head=4, token=8, channel=1: exceed what memory can address for 8 blocks of "
            "18446744073709551615 tokens, 2 heads, 4 channels")
      << "the number that is wrong is not a stride";
  EXPECT_EQ(paged_refusal({0, 1}, 0, {0, 128, {4, 8, 1}, 8}), "block tokens=0: must be 1 or more");
  EXPECT_EQ(
      refusal(lagkv::paged<float>(static_cast<float*>(nullptr), {2, 4}, {16, 128, {4, 8, 1}, 0}, std::vector<std::int32_t>{0}),
              1),
      "pool: is null");
}

TEST(check, layers_and_policies) {
  const lagkv::tensor two = lagkv::strided<float>(memory, {2, 4}, {400, 4, 1}, 100);
  const lagkv::tensor three = lagkv::strided<lagkv::f16>(halves, {3, 8}, {800, 8, 1}, 100);
  const lagkv::policy with_values = named("lagkv"), keys_only = named("lagkv:value_weight=0");
  EXPECT_EQ(check(with_values, {two, two, 100}).message(), "");
  EXPECT_EQ(check(with_values, {two, {}, 100}).message(), "values: the policy reads them, the layer has none");
  EXPECT_EQ(check(keys_only, {two, {}, 100}).message(), "");
  EXPECT_EQ(check(keys_only, {two, three, 100}).message(), "values: heads=3: must be the 2 of the keys");
  EXPECT_EQ(check(keys_only, {two, two, 101}).message(), "keys: tokens=101: the view addresses at most 100");
  EXPECT_EQ(check(keys_only, {{}, two, 10}).message(), "keys: the tensor is empty");
  lagkv::policy p;
  EXPECT_EQ(check(p, {two, two, 100}).message(), "policy: has no scorer");
  p = keys_only, p.budget.keeps = lagkv::keep::partitions{0, 0.5};
  EXPECT_EQ(check(p, {two, two, 100}).message(), "lag=0: must be 1 or more if each partition keeps a share");
  const lagkv::tensor endless = lagkv::strided<float>(memory, {1, 4}, {0, 4, 1});
  EXPECT_EQ(check(keys_only, {endless, {}, std::size_t{1} << 32}).message(), "tokens=4294967296: must be at most 4294967295");
}

TEST(check, budgets_that_only_a_host_can_write) {
  constexpr double nan = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();
  const lagkv::tensor two = lagkv::strided<float>(memory, {2, 4}, {400, 4, 1}, 100);
  const auto refused = [&](const lagkv::budget& b) {
    lagkv::policy p = named("key_norm");
    p.budget = b;
    return check(p, {two, two, 100}).message();
  };
  EXPECT_EQ(refused({.keeps = lagkv::keep::partitions{128, 1.5}}), "ratio=1.5: must be above 0 and at most 1");
  EXPECT_EQ(refused({.keeps = lagkv::keep::partitions{128, 1}}), "");
  for (const auto& [x, text] : {std::pair(0.0, "0"), {-0.5, "-0.5"}, {1.25, "1.25"}, {nan, "nan"}, {infinity, "inf"}}) {
    const std::string of_a_share = std::string("=") + text + ": must be above 0 and at most 1";
    EXPECT_EQ(refused({.keeps = lagkv::keep::partitions{128, x}}), "ratio" + of_a_share);
    EXPECT_EQ(refused({.keeps = lagkv::keep::share{x}}), "of_all" + of_a_share);
    EXPECT_EQ(refused({.keeps = lagkv::keep::window{.of_all = x}}), "of_all" + of_a_share);
    EXPECT_EQ(refused({.keeps = lagkv::keep::window{.rows = 40, .of_all = x}}), "") << "of_all is not read";
    EXPECT_EQ(refused({.recent_share = x}), x == 0 ? "" : std::string("recent_share=") + text + ": must be from 0 to 1");
  }
  EXPECT_EQ(refused({.recent_share = 1}), "") << "partitions have no window of their own";
  constexpr std::size_t most = 0xffffffffU, huge = ~std::size_t{0};
  for (const std::size_t n : {most + 1, huge / 2 + 1, huge}) {
    const std::string above = "=" + std::to_string(n) + ": must be at most 4294967295";
    EXPECT_EQ(refused({.sink = n}), "sink" + above);
    EXPECT_EQ(refused({.recent = n}), "recent" + above);
    EXPECT_EQ(refused({.keeps = lagkv::keep::partitions{n, 0.5}}), "lag" + above);
    EXPECT_EQ(refused({.keeps = lagkv::keep::share{0.5, n}}), "lag" + above);
    EXPECT_EQ(refused({.keeps = lagkv::keep::capacity{.rows = n}}), "capacity" + above);
    EXPECT_EQ(refused({.keeps = lagkv::keep::capacity{.rows = 40, .every = n}}), "every" + above);
    EXPECT_EQ(refused({.keeps = lagkv::keep::window{.rows = n}}), "capacity" + above);
    EXPECT_EQ(refused({.keeps = lagkv::keep::window{.rows = 40, .every = n}}), "every" + above);
  }
  EXPECT_EQ(refused({.sink = 4, .recent = 5, .keeps = lagkv::keep::capacity{.rows = 9}}),
            "capacity=9: must be 10 or more (sink + recent + 1)");
  EXPECT_EQ(refused({.sink = 4, .keeps = lagkv::keep::window{.rows = 4}}), "capacity=4: must be 5 or more (sink + 1)");
  EXPECT_EQ(refused({.recent_share = 0.7, .keeps = lagkv::keep::share{0.8}}),
            "keep=0.8, recent_share=0.7: nothing would ever go: their product must be below 0.5");
  EXPECT_EQ(refused({.keeps = lagkv::keep::capacity{.rows = 40, .every = 0}}), "every=0: must be 1 or more");
  EXPECT_EQ(refused({.keeps = lagkv::keep::window{.rows = 40, .every = 0}}), "every=0: must be 1 or more");
}

// compress() trusts a budget. One that check() refuses takes no row that is not there, and no sink.
TEST(budgets, that_are_refused_stay_within_the_rows) {
  for (const std::size_t rows : {std::size_t{0}, std::size_t{1}, std::size_t{9}, std::size_t{20}})
    for (const std::size_t sink : {std::size_t{0}, std::size_t{5}, std::size_t{50}})
      for (const std::size_t recent : {std::size_t{0}, std::size_t{8}, std::size_t{50}})
        for (const std::size_t tokens : {std::size_t{0}, std::size_t{1}, std::size_t{12}, std::size_t{40}, std::size_t{60}})
          for (const double beta : {0.0, 20.0}) {
            const lagkv::budget b{.sink = sink,
                                  .recent = recent,
                                  .keeps = lagkv::keep::capacity{.rows = rows},
                                  .slope = {.beta = beta, .layer = 1, .layers = 3}};
            const lagkv::candidates c = b.due({}, tokens);
            if (c.empty()) continue;
            EXPECT_GE(c.rows.begin, sink);
            EXPECT_LT(c.rows.begin, c.rows.end);
            EXPECT_LE(c.rows.end, tokens);
            EXPECT_LT(c.keep, c.rows.size());
          }
}

TEST(peak_rows, of_a_chunk_of_any_size_is_at_most_all_tokens) {
  for (const char* text :
       {"lagkv:lag=64", "key_diff:capacity=256,every=32", "key_norm:keep=0.5", "streaming_llm:capacity=100", "full"})
    for (const std::size_t chunk : {std::size_t{32768}, ~std::size_t{0} - 300, ~std::size_t{0}})
      EXPECT_EQ(lagkv::peak_rows(named(text), chunk, 32768), 32768U) << text << ", " << chunk;
}

// More tokens never need fewer rows, and no number of them is undefined behaviour: -fsanitize=float-cast-overflow agrees.
TEST(peak_rows, of_any_number_of_tokens_grows_and_ends_at_the_most_that_a_layer_may_have) {
  constexpr std::size_t most = 0xffffffffU;
  for (const char* text : {"full", "key_diff:keep=1", "key_diff:keep=0.7,pyramid=20", "lagkv:ratio=1", "lagkv:lag=2147483647",
                           "streaming_llm:keep=1", "streaming_llm:capacity=2147483647,every=2147483647",
                           "key_diff:capacity=2147483647,every=2147483647", "key_diff:capacity=2000000000,pyramid=20",
                           "key_diff:keep=0.5,recent_share=0.9,select=adaptive", "key_diff:sink=2147483647,recent=2147483647"}) {
    const lagkv::policy p = named(text);
    std::size_t before = 0;
    for (const std::size_t tokens : {std::size_t{0}, std::size_t{1}, std::size_t{1000}, most / 2, most - 1, most})
      for (const std::size_t chunk : {std::size_t{1}, std::size_t{512}, ~std::size_t{0}}) {
        const std::size_t rows = lagkv::peak_rows(p, chunk, tokens);
        EXPECT_LE(rows, tokens) << text;
        EXPECT_TRUE(chunk <= tokens || rows == tokens) << text;
        if (chunk != 512) continue;
        EXPECT_GE(rows, before) << text;
        before = rows;
      }
    for (const std::size_t tokens : {most + std::size_t{most < ~std::size_t{0}}, ~std::size_t{0} / 2, ~std::size_t{0}})
      EXPECT_EQ(lagkv::peak_rows(p, 512, tokens), before) << text << ", " << tokens;
  }
  EXPECT_EQ(lagkv::peak_rows(named("key_diff:keep=1"), 512, ~std::size_t{0}), most);
  EXPECT_EQ(lagkv::peak_rows(named("lagkv:ratio=1"), 512, ~std::size_t{0}), most);
}

TEST(share_of, stays_within_what_a_number_of_rows_can_be) {
  constexpr std::size_t most = ~std::size_t{0};
  EXPECT_EQ(lagkv::share_of(1, most), most);
  EXPECT_EQ(lagkv::share_of(2, most), most);
  EXPECT_EQ(lagkv::share_of(1e300, 5), most);
  EXPECT_EQ(lagkv::share_of(-1, 5), 0U);
  EXPECT_EQ(lagkv::share_of(0.5, 0), 0U);
  EXPECT_EQ(lagkv::share_of(std::numeric_limits<double>::quiet_NaN(), 5), 0U);
}

TEST(peak_rows, of_fewer_tokens_than_sinks_is_all_of_them) {
  EXPECT_EQ(lagkv::peak_rows(named("lagkv:sink=16,lag=8"), 4, 10), 10U);
  EXPECT_EQ(lagkv::peak_rows(named("key_norm:sink=2,recent=2,capacity=20,pyramid=20"), 5, 1000), 45U) << "the first layer's";
}

// Addresses are computed from sizes and strides: what is beyond them is refused before it is.
TEST(check, strides_and_sizes_that_no_memory_has) {
  constexpr std::ptrdiff_t far = std::numeric_limits<std::ptrdiff_t>::max(), near = std::numeric_limits<std::ptrdiff_t>::min();
  const auto beyond = [](const lagkv::tensor& x, std::size_t tokens = 2) {
    return check(lagkv::layer{x, {}, tokens}).message().find("what memory can address") != std::string::npos;
  };
  for (const std::ptrdiff_t stride : {std::ptrdiff_t{1} << 61, (std::ptrdiff_t{1} << 61) + 5, std::ptrdiff_t{1} << 62, far, near,
                                      near + 1, -(std::ptrdiff_t{1} << 61)}) {
    SCOPED_TRACE(stride);
    EXPECT_TRUE(beyond(lagkv::strided<float>(memory, {2, 4}, {stride, 4, 1}, 100)));
    EXPECT_TRUE(beyond(lagkv::strided<float>(memory, {2, 4}, {400, stride, 1}, 100)));
    EXPECT_TRUE(beyond(lagkv::strided<float>(memory, {2, 4}, {400, 4, stride}, 100)));
    EXPECT_TRUE(beyond(lagkv::strided<float>(memory, {1, 4}, {stride, 4, 1}, 100))) << "even if it is of a single head";
    const std::int32_t table[] = {0, 1, 2};
    EXPECT_TRUE(beyond(lagkv::paged<float>(memory, {2, 4}, {4, stride, {16, 4, 1}}, table)));
    EXPECT_TRUE(beyond(lagkv::paged<float>(memory, {2, 4}, {4, 64, {stride, 4, 1}}, table)));
    EXPECT_TRUE(beyond(lagkv::paged<float>(memory, {2, 4}, {4, 64, {16, stride, 1}}, table)));
    EXPECT_TRUE(beyond(lagkv::paged<float>(memory, {2, 4}, {4, 64, {16, 4, stride}}, table)));
  }
  // Each dimension alone can be had, not together; of bytes, whose sum could wrap around.
  for (const std::ptrdiff_t stride : {(std::ptrdiff_t{1} << 62) + 1, far - 1, -(far - 1)})
    EXPECT_TRUE(beyond(lagkv::strided<std::int8_t>(reinterpret_cast<std::int8_t*>(memory), {2, 2}, {stride, 1L << 62, far}, 2)));
  const std::size_t huge = std::size_t{1} << 62;
  EXPECT_TRUE(beyond(lagkv::strided<float>(memory, {huge, 4}, {8, 4, 1}, 2)));
  EXPECT_TRUE(beyond(lagkv::strided<float>(memory, {2, huge}, {400, 4, 1}, 100)));
  EXPECT_TRUE(beyond(lagkv::strided<float>(memory, {2, 4}, {400, 4, 1}, huge)));
  EXPECT_TRUE(beyond(lagkv::strided<float>(memory, {2, 4}, {4, 8, 1}, ~std::size_t{0} - 1)));
  const std::int64_t distant[] = {0, std::numeric_limits<std::int64_t>::max()};
  EXPECT_TRUE(beyond(lagkv::paged<float, std::int64_t>(memory, {2, 4}, {4, 64, {16, 4, 1}}, distant), 5));
  const std::uint64_t last[] = {0, ~std::uint64_t{0}};
  EXPECT_EQ(check(lagkv::layer{lagkv::paged<float, std::uint64_t>(memory, {2, 4}, {4, 64, {16, 4, 1}}, last), {}, 5}).message(),
            "keys: block 18446744073709551615: exceeds what memory can address");
  const std::int32_t table[] = {0, 1, 2, 3};
  for (const std::size_t tokens : {huge, ~std::size_t{0}, ~std::size_t{0} / 2})
    EXPECT_FALSE(check(lagkv::layer{lagkv::paged<float>(memory, {2, 4}, {tokens, 64, {16, 4, 1}}, table), {}, 5})) << tokens;

  // What lies before the first element ends at address 0.
  const auto address = static_cast<std::ptrdiff_t>(reinterpret_cast<std::uintptr_t>(memory) / 4);
  EXPECT_TRUE(beyond(lagkv::strided<float>(memory, {2, 4}, {-address - 1, 4, 1}, 2)));
  EXPECT_FALSE(beyond(lagkv::strided<float>(memory, {2, 4}, {-address, 4, 1}, 2)));

  // Each stride can be had, not both together; and what lies behind the first element ends where addresses do.
  EXPECT_TRUE(beyond(lagkv::strided<float>(memory, {2, 4}, {far >> 2, (far >> 2) - 10, 1}, 2)));
  auto* const last_page = reinterpret_cast<float*>(~std::uintptr_t{0} - 4095);
  EXPECT_TRUE(beyond(lagkv::strided<float>(last_page, {2, 4}, {1024, 4, 1}, 2)));
  EXPECT_FALSE(beyond(lagkv::strided<float>(last_page, {2, 4}, {400, 4, 1}, 2)));

  // The widest that is still to be had passes: nothing is touched.
  EXPECT_EQ(check(lagkv::layer{lagkv::strided<float>(memory, {2, 4}, {(far >> 2) - 100, 4, 1}, 20), {}, 2}).message(), "");
}

TEST(check, side_arrays_that_no_memory_has) {
  lagkv::policy p = named("key_norm");
  std::uint32_t positions[400] = {};
  lagkv::extras e;
  const lagkv::tensor two = lagkv::strided<float>(memory, {3, 4}, {400, 4, 1}, 100);
  const auto said = [&] { return check(p, {two, two, 100, &e}).message(); };
  for (const std::ptrdiff_t stride : {std::ptrdiff_t{1} << 61, std::numeric_limits<std::ptrdiff_t>::min()}) {
    e = {}, e.positions = {positions, stride};
    EXPECT_EQ(said(), "positions: head_stride=" + std::to_string(stride) + ": 3 heads exceed what memory can address");
    e = {}, e.accumulated_attention = {memory, stride};
    EXPECT_EQ(said(),
              "accumulated_attention: head_stride=" + std::to_string(stride) + ": 3 heads exceed what memory can address");
    const lagkv::tensor bytes =
        lagkv::scaled(lagkv::strided<std::int8_t>(reinterpret_cast<std::int8_t*>(memory), {3, 4}, {400, 4, 1}, 100),
                      lagkv::shared_scales{memory, stride});
    EXPECT_NE(check(p, {bytes, {}, 100}).message().find("scales: head_stride="), std::string::npos);
  }
  e = {}, e.importance = lagkv::strided<float>(memory, {3, 9}, {9, 9, 1}, 0);
  EXPECT_EQ(said(), "importance: rows=0: must be 1 or more");
  e = {}, e.query_mean = lagkv::strided<float>(memory, {3, 4}, {4, 4, 1}, 0);
  EXPECT_EQ(said(), "query_mean: rows=0: must be 1 or more");
  for (const float scale : {-1.0F, std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    e = {}, e.scale = scale;
    EXPECT_NE(said().find("must be 0 or more, and finite"), std::string::npos) << scale;
  }
  p.ragged = true, e = {};
  const lagkv::tensor many = lagkv::strided<float>(memory, {1U << 20, 4}, {std::ptrdiff_t{1} << 16, 4, 1}, 5000);
  EXPECT_EQ(lagkv::check(p, {many, {}, 5000}, true).message(),
            "tokens=5000: heads of different lengths must have at most 4294967295 rows together, not 1048576 times as many");
}

TEST(check, budgets_of_heads) {
  const lagkv::policy p = named("key_norm:sink=0,recent=0,keep=0.5,select=by_head");
  lagkv::extras e;
  const lagkv::tensor three = lagkv::strided<float>(memory, {3, 4}, {400, 4, 1}, 100);
  std::vector<float> budgets;
  const auto said = [&](bool any_length = true) {
    e.head_budgets = budgets;
    return check(p, {three, {}, 100, &e}, any_length).message();
  };
  EXPECT_EQ(said(), "head_budgets: the policy reads the budget of each head; the layer offers none");
  budgets = {1, 2};
  EXPECT_EQ(said(), "head_budgets: 2 heads: must be the 3 of the keys");
  for (const float wrong : {-0.5F, std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    budgets = {1, 0, wrong};
    EXPECT_NE(said().find("of head 2: must be 0 or more, and finite"), std::string::npos) << wrong;
  }
  budgets = {1, 0, 4};
  EXPECT_EQ(said(), "");
  EXPECT_EQ(said(false), "policy: keeps different numbers of tokens a head, which this cache cannot hold");

  // A call at which they are missing, or are of other heads, drops nothing.
  lagkv::workspace ws;
  EXPECT_FALSE(plan_eviction(p, {three, {}, 100, &e}, {}, ws).empty());
  for (const std::size_t heads : {0U, 2U, 4U}) {
    budgets.assign(heads, 1);
    e.head_budgets = budgets;
    EXPECT_TRUE(plan_eviction(p, {three, {}, 100, &e}, {}, ws).empty()) << heads;
  }
  EXPECT_TRUE(plan_eviction(p, {three, {}, 100}, {}, ws).empty());
}

TEST(check, statistics_of_queries_that_do_not_fit_each_other) {
  const lagkv::policy p = named("key_norm");
  lagkv::extras e;
  const lagkv::tensor two = lagkv::strided<float>(memory, {3, 4}, {400, 4, 1}, 100);
  const auto rows = [](std::size_t heads, std::size_t n) { return lagkv::strided<float>(memory, {heads, 4}, {64, 4, 1}, n); };
  const auto said = [&] { return check(p, {two, two, 100, &e}).message(); };
  e.query_mean = rows(3, 1), e.query_covariance = rows(3, 4);
  EXPECT_EQ(said(), "");
  e.query_covariance = rows(3, 3);
  EXPECT_EQ(said(), "query_covariance: rows=3: must be 4");
  e.query_covariance = rows(6, 4);
  EXPECT_EQ(said(), "query_covariance: heads=6: must be those of query_mean");
  e.query_mean = {}, e.query_covariance = rows(3, 4);
  EXPECT_EQ(said(), "query_covariance: heads=3: must be those of query_mean");
  e.query_covariance = {}, e.query_mean = {}, e.query_factors = rows(3, 2);
  EXPECT_EQ(said(), "query_factors: heads=3: must be those of query_mean");
  e.query_mean = rows(6, 1);
  EXPECT_EQ(said(), "query_factors: heads=3: must be those of query_mean");
  e.query_mean = rows(3, 1);
  EXPECT_EQ(said(), "");
}

// All views that are offered are checked in the same way.
TEST(check, each_view_that_is_offered) {
  const lagkv::policy p = named("key_norm");
  const lagkv::tensor two = lagkv::strided<float>(memory, {3, 4}, {400, 4, 1}, 100);
  const std::pair<const char*, lagkv::tensor lagkv::extras::*> sides[] = {{"queries", &lagkv::extras::queries},
                                                                          {"weights", &lagkv::extras::weights},
                                                                          {"query_mean", &lagkv::extras::query_mean},
                                                                          {"query_covariance", &lagkv::extras::query_covariance},
                                                                          {"query_factors", &lagkv::extras::query_factors}};
  for (const auto& [name, side] : sides) {
    lagkv::extras e;
    const bool weights = side == &lagkv::extras::weights;
    const std::size_t channels = weights ? 100 : 4;
    const auto said = [&](const lagkv::tensor& x) {
      e.*side = x;
      return check(p, {two, two, 100, &e}).message();
    };
    const auto step = static_cast<std::ptrdiff_t>(channels);
    EXPECT_NE(said(lagkv::strided<float>(memory, {3, channels}, {0, step, 1}, 1)).find(name + std::string(": strides")),
              std::string::npos);
    EXPECT_EQ(said(lagkv::strided<float>(memory, {4, channels}, {step, step, 1}, 1)),
              name + std::string(": heads=4: must be a multiple of the 3 KV heads"));
    EXPECT_EQ(said(lagkv::strided<float>(memory, {3, channels - 1}, {step, step, 1}, 1)),
              name + (weights ? std::string(": channels=99: must be at least 100") : ": channels=3: must be 4"));
    EXPECT_EQ(said(lagkv::strided<float>(memory, {3, channels + 1}, {step + 1, step + 1, 1}, 1)),
              weights ? "" : name + std::string(": channels=5: must be 4"));
    EXPECT_EQ(said(lagkv::strided<float>(memory, {3, channels}, {step, step, 1})),
              name + std::string(": capacity is unbounded: must be the number of rows that there are"));
  }
  lagkv::extras map;
  const auto said = [&](std::size_t heads, std::size_t channels, std::ptrdiff_t step) {
    map.importance = lagkv::strided<float>(memory, {heads, channels}, {step, step, 1}, 1);
    return check(p, {two, two, 100, &map}).message();
  };
  EXPECT_EQ(said(3, 9, 9), "");
  EXPECT_EQ(check(p, {two, {}, 100, &map}).message(), "") << "nothing reads it then";
  EXPECT_EQ(said(2, 9, 9), "importance: heads=2: must be the 3 of the keys");
  EXPECT_EQ(said(3, 8, 9), "importance: channels=8: must be 9, those of keys and values and 1");
  EXPECT_NE(said(3, 9, 0).find("importance: strides"), std::string::npos);
  lagkv::policy mapped = p;
  mapped.needs.importance = true;
  EXPECT_NE(check(mapped, {two, two, 100}).message().find("importance: the policy reads the map"), std::string::npos);
  EXPECT_FALSE((lagkv::importance_map{3, 4, 4, {1, 2}}.view())) << "of too few numbers";
  const lagkv::tensor overlap = lagkv::strided<float>(memory, {3, 4}, {0, 4, 1}, 100);
  EXPECT_NE(check(p, {overlap, two, 100}).message().find("keys: strides"), std::string::npos);
  EXPECT_NE(check(p, {two, overlap, 100}).message().find("values: strides"), std::string::npos);
  lagkv::policy calibrated = p;
  calibrated.needs.calibrated = true;
  EXPECT_NE(check(calibrated, {two, two, 100}).message().find("query_mean: the policy reads statistics of the model's"),
            std::string::npos);
}

TEST(make_fusion, takes_two_to_four) {
  const std::vector<lagkv::method> all(5, lagkv::method_of(lagkv::key_norm_score{}));
  for (const std::size_t n : {0U, 1U, 2U, 4U, 5U}) {
    const auto made = lagkv::make_fusion(std::span(all).first(n), {});
    EXPECT_EQ(made.message(), n >= 2 && n <= 4 ? "" : "methods=" + std::to_string(n) + ": must be from 2 to 4");
  }
  EXPECT_NE(lagkv::make_fusion(std::span(all).first(2), {.keep = 2.0}).message(), "");
}

TEST(fit, refuses_bytes_that_are_no_number_of_rows) {
  lagkv::policy p = named("key_norm:sink=2,recent=3,budget_mb=1");
  const lagkv::tensor two = lagkv::strided<float>(memory, {3, 4}, {400, 4, 1}, 100);
  const auto said = [&](double amount, const lagkv::layer& l) {
    p.budget.keeps = lagkv::keep::bytes{amount, 1};
    return lagkv::fit(p, l, 2).message();
  };
  for (const double amount : {0.0, -1.0, std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()})
    EXPECT_NE(said(amount, {two, two, 100}).find("must be above 0"), std::string::npos) << amount;
  EXPECT_NE(said(0.5, {two, two, 100}).find("budget: holds 0 tokens of 192 bytes"), std::string::npos);
  EXPECT_NE(said(5 * 192, {two, two, 100}).find("budget: holds 5 tokens of 192 bytes: must hold 6 or more"), std::string::npos);
  EXPECT_EQ(said(6 * 192, {two, two, 100}), "");
  EXPECT_EQ(said(1e300, {two, two, 100}), "") << "at most 2^32 - 1 rows";
  EXPECT_NE(lagkv::fit(p, {two, two, 100}, 0).message().find("layers=0: must be 1 or more"), std::string::npos);
  EXPECT_EQ(said(1e6, {}), "budget: holds 0 tokens of 0 bytes: must hold 6 or more (sink + recent + 1)");
  p.budget.recent_share = 1;
  EXPECT_EQ(said(20 * 192, {two, two, 100}),
            "budget: holds 20 tokens of 192 bytes: capacity=20: must be more than sink=2 and the window of 20 (recent_share=1)");
  p.budget.recent_share = 0;
  EXPECT_EQ(lagkv::fit(named("key_norm:capacity=50"), {two, two, 100}, 0).message(), "") << "there is nothing to fit";
  lagkv::policy sums = named("key_norm:sink=2,recent=3,budget_mb=1");
  const lagkv::tensor scaled =
      lagkv::scaled(lagkv::strided<std::int8_t>(reinterpret_cast<std::int8_t*>(memory), {3, 4}, {400, 4, 1}, 100),
                    lagkv::strided<float>(memory + 1000, {3, 1}, {100, 1, 1}, 100));
  const auto with_scales = lagkv::fit(sums, {scaled, {}, 100}, 2);
  ASSERT_TRUE(with_scales) << with_scales.message();
  EXPECT_EQ(with_scales->budget.as<lagkv::keep::capacity>()->rows, 1'000'000U / (2 * 3 * (4 + sizeof(float))));
  const auto by_keys = lagkv::fit(sums, {two, {}, 100}, 2), by_both = lagkv::fit(sums, {two, two, 100}, 2);
  ASSERT_TRUE(by_keys && by_both);
  EXPECT_EQ(by_keys->budget.as<lagkv::keep::capacity>()->rows / 2, by_both->budget.as<lagkv::keep::capacity>()->rows);
}

TEST(query_statistics, are_multiplied_as_the_queries_would_be) {
  lagkv::query_statistics s{1, 2, {1, 2}, {3, 4, 4, 5}, {6, 7}};
  s.multiply(10);
  EXPECT_EQ(s.mean, (std::vector<float>{10, 20}));
  EXPECT_EQ(s.covariance, (std::vector<float>{300, 400, 400, 500}));
  EXPECT_EQ(s.factors, (std::vector<float>{60, 70}));
  EXPECT_EQ(lagkv::query_statistics{}.rank(), 0U);
}

// A fusion keeps both sums that its methods ask for.
TEST(accumulate, adds_what_all_methods_of_a_fusion_read) {
  constexpr std::size_t n = 60, d = 4;
  const cube k = make_cube(47, 1, n, d), v = make_cube(48, 1, n, d), q = make_cube(49, 1, n, d);
  const auto sums = [&](const char* text) {
    host keys(layout::heads_first, dtype::f32, k), values(layout::heads_first, dtype::f32, v),
        queries(layout::heads_first, dtype::f32, q);
    std::vector<float> attention(n);
    std::vector<double> statistics(lagkv::key_statistics::size(d));
    const lagkv::rope rope{.pairs = lagkv::rope::pairing::halves};
    lagkv::extras e;
    e.queries = queries.view(), e.accumulated_attention = {attention.data(), n}, e.key_statistics = {statistics.data()};
    e.rope = &rope;
    lagkv::workspace ws;
    lagkv::accumulate(named(text), {keys.view(), values.view(), n, &e}, {}, n, ws);
    return std::pair{attention, statistics};
  };
  const auto both = sums("fuse:h2o+novelty,keep=0.5"), first = sums("h2o:keep=0.5"), second = sums("novelty:keep=0.5");
  EXPECT_EQ(both.first, first.first);
  EXPECT_NE(both.first, std::vector<float>(n));
  EXPECT_EQ(both.second, second.second);
  EXPECT_NE(both.second, std::vector<double>(both.second.size()));
}

// Weights that are shorter than the cache say nothing of its rows: compress() drops nothing then, and accumulate() adds nothing.
TEST(accumulate, adds_no_weights_of_fewer_rows) {
  constexpr std::size_t n = 60, d = 4, queries = 3;
  const cube k = make_cube(47, 1, n, d);
  host keys(layout::heads_first, dtype::f32, k);
  for (const std::size_t columns : {n - 1, n, n + 5}) {
    std::vector<float> weights(queries * columns, 0.25F), attention(n);
    lagkv::extras e;
    const auto width = static_cast<std::ptrdiff_t>(columns);
    e.weights =
        lagkv::strided<float>(weights.data(), {1, columns}, {width * static_cast<std::ptrdiff_t>(queries), width}, queries);
    e.accumulated_attention = {attention.data(), n};
    lagkv::workspace ws;
    lagkv::accumulate(named("h2o:keep=0.5"), {keys.view(), {}, n, &e}, {}, queries, ws);
    EXPECT_EQ(std::count(attention.begin(), attention.end(), 0.0F) == static_cast<std::ptrdiff_t>(n), columns < n) << columns;
  }
}

// "Nothing happens for what is not offered", one thing at a time; and no tokens add nothing.
TEST(accumulate, does_nothing_for_what_is_not_offered) {
  constexpr std::size_t n = 60, d = 4;
  const cube k = make_cube(47, 1, n, d), q = make_cube(49, 1, n, d);
  for (const char* text : {"h2o:keep=0.5", "novelty:keep=0.5", "novelty:keep=0.5,pre_rope=no", "fuse:h2o+novelty,keep=0.5",
                           "fuse:key_norm+novelty,keep=0.5", "fuse:novelty+h2o,keep=0.5"})
    for (int without = 0; without < 7; ++without) {
      SCOPED_TRACE(std::string(text) + ", without " + std::to_string(without));
      host keys(layout::heads_first, dtype::f32, k), queries(layout::heads_first, dtype::f32, q);
      std::vector<float> attention(n);
      std::vector<double> statistics(lagkv::key_statistics::size(d));
      lagkv::rope rope{.pairs = lagkv::rope::pairing::halves};
      lagkv::extras e;
      e.queries = queries.view(), e.accumulated_attention = {attention.data(), n}, e.key_statistics = {statistics.data()};
      e.rope = &rope;
      if (without == 1) e.queries = {};
      if (without == 2) e.accumulated_attention = {};
      if (without == 3) e.key_statistics = {};
      if (without == 4) e.rope = nullptr;
      if (without == 5) rope.pairs = lagkv::rope::pairing::unnamed;
      lagkv::workspace ws;
      const lagkv::policy p = named(text);
      lagkv::accumulate(p, {keys.view(), keys.view(), n, without == 6 ? nullptr : &e}, {}, without == 0 ? 0 : n, ws);
      const bool attends = p.needs.accumulated_attention && without != 0 && without != 1 && without != 2 && without != 6;
      const bool rotates = std::string(text).find("pre_rope=no") == std::string::npos;
      const bool counts =
          p.needs.key_statistics && without != 0 && without != 3 && without != 6 && !(rotates && (without == 4 || without == 5));
      EXPECT_EQ(attention != std::vector<float>(n), attends);
      EXPECT_EQ(statistics != std::vector<double>(statistics.size()), counts);
    }
}

// Each option of a scorer that a host fills in is checked as one of a string is.
TEST(make_policy, checks_the_options_of_the_scorer) {
  EXPECT_EQ(lagkv::make_policy(lagkv::lagkv_score{}).message(), "lag=0: must be a whole number from 1 to 2147483647");
  EXPECT_EQ(lagkv::make_policy(lagkv::cur_score{.window = 0}).message(), "window=0: must be a whole number from 1 to 2147483647");
  EXPECT_EQ(lagkv::make_policy(lagkv::nested_score{.window = 0}).message(),
            "window=0: must be a whole number from 1 to 2147483647");
  EXPECT_EQ(lagkv::make_policy(lagkv::snapkv_score{.window = 0}).message(),
            "window=0: must be a whole number from 1 to 2147483647");
  EXPECT_EQ(lagkv::make_policy(lagkv::distinct_score{.bits = 17}).message(), "bits=17: must be a whole number from 1 to 16");
  EXPECT_EQ(lagkv::make_policy(lagkv::expected_attention_score{.epsilon = -1}).message(),
            "epsilon=-1: must be from 0 to 1000000");
}

// Else the positions of head 0 would be moved as those of all.
TEST(check, positions_of_all_heads_are_for_policies_that_keep_the_same_rows_in_each) {
  constexpr std::size_t heads = 3, n = 120;
  std::vector<std::uint32_t> positions(n);
  std::iota(positions.begin(), positions.end(), 0U);
  const lagkv::rope rope{.pairs = lagkv::rope::pairing::halves};
  const std::vector<std::string> same = {"key_norm:heads=shared",
                                         "recommended",
                                         "novelty:capacity=50",
                                         "key_norm:select=chunks",
                                         "fuse:key_norm+novelty,heads=shared",
                                         "fuse:key_norm+cur,select=chunks,by=best",
                                         "streaming_llm:capacity=50",
                                         "full"};
  const std::vector<std::string> own = {"key_norm",
                                        "novelty:heads=own",
                                        "lagkv:lag=16,sink=4",
                                        "lagkv:lag=16,sink=4,form=kvpress",
                                        "key_norm:lag=20",
                                        "fuse:key_norm+novelty",
                                        "fuse:novelty+cur",
                                        "key_norm:capacity=50",
                                        "cur:select=adaptive,heads=shared"};
  const auto layer_of = [&](cache& c, const lagkv::extras& e) {
    lagkv::layer l = c.layer(n);
    l.extra = &e;
    return l;
  };
  for (const auto& [texts, accepted] : {std::pair{same, true}, std::pair{own, false}})
    for (const std::string& text : texts) {
      const lagkv::policy p = named(text);
      cache c(layout::heads_first, dtype::f32, make_cube(1, heads, n, 8), make_cube(2, heads, n, 8));
      const lagkv::extras e{.positions = {positions.data(), 0}, .rope = &rope};
      const lagkv::layer l = layer_of(c, e);
      EXPECT_EQ(check(p, l, true).message(), accepted ? ""
                                                      : "positions: head_stride=0: the policy keeps different tokens in each "
                                                        "head: must be at least the 120 rows in use")
          << text;
      lagkv::workspace ws;
      const lagkv::plan plan = plan_eviction(p, l, {}, ws);
      EXPECT_EQ(plan.empty(), !accepted || text == "full") << text;
      for (std::size_t h = 1; h < plan.heads(); ++h) EXPECT_TRUE(std::ranges::equal(plan.of(h), plan.of(0))) << text;
      // With numbers of their own all are accepted; so are numbers of one head.
      std::vector<std::uint32_t> each(heads * n);
      for (std::size_t i = 0; i < each.size(); ++i) each[i] = static_cast<std::uint32_t>(i % n);
      const lagkv::extras apart{.positions = {each.data(), n}, .rope = &rope};
      EXPECT_EQ(check(p, layer_of(c, apart), true).message(), "") << text;
      cache single(layout::heads_first, dtype::f32, make_cube(1, 1, n, 8), make_cube(2, 1, n, 8));
      EXPECT_EQ(check(p, layer_of(single, e), true).message(), "") << text;
    }
}

// Else the queries that have seen a survivor would be counted by its row.
TEST(check, the_mean_of_h2o_needs_positions_where_survivors_are_candidates_again) {
  constexpr std::size_t n = 120;
  cache c(layout::heads_first, dtype::f32, make_cube(1, 2, n, 8), make_cube(2, 2, n, 8));
  std::vector<float> attention(2 * n, 1.0F);
  std::vector<std::uint32_t> positions(2 * n);
  for (std::size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<std::uint32_t>(i % n);
  lagkv::extras e{.accumulated_attention = {attention.data(), n}};
  lagkv::layer l = c.layer(n);
  l.extra = &e;
  const auto kept = [&](const char* text) {
    lagkv::workspace ws;
    lagkv::cursor at;
    cache copy = c;
    lagkv::layer again = copy.layer(n);
    again.extra = &e;
    return lagkv::plan_eviction(named(text), again, at, ws).tokens_after();
  };
  for (const char* text : {"h2o:form=mean,capacity=50", "fuse:key_norm+h2o,form=mean,capacity=50"}) {
    EXPECT_EQ(check(named(text), l).message(),
              "positions: the policy reads those of survivors that are candidates again; the layer offers none");
    EXPECT_EQ(kept(text), n);
  }
  EXPECT_EQ(check(named("h2o:capacity=50"), l).message(), "");
  EXPECT_EQ(check(named("h2o:form=mean,keep=0.5"), l).message(), "");
  EXPECT_EQ(kept("h2o:form=mean,keep=0.5"), n / 2);
  e.positions = {positions.data(), n};
  EXPECT_EQ(check(named("h2o:form=mean,capacity=50"), l).message(), "");
  EXPECT_EQ(kept("h2o:form=mean,capacity=50"), 50U);
}

TEST(check, attention_of_all_tokens_is_refused_where_fewer_are_offered) {
  constexpr std::size_t n = 120;
  cache c(layout::heads_first, dtype::f32, make_cube(1, 2, n, 8), make_cube(2, 2, n, 8));
  std::vector<float> probabilities(2 * n * n, 1.0F / n);
  lagkv::extras e;
  lagkv::layer l = c.layer(n);
  l.extra = &e;
  const auto weights = [&](std::size_t rows) {
    return lagkv::strided<float>(probabilities.data(), {2, n}, {.head = n * n, .token = n}, rows);
  };
  e.weights = weights(n - 1);
  EXPECT_EQ(check(named("h2o"), l).message(),
            "weights=119: the policy reads those of all 120 tokens, or the attention that each row has received "
            "(accumulated_attention)");
  e.weights = weights(n);
  EXPECT_EQ(check(named("h2o"), l).message(), "");
  e.query_count = 7;
  EXPECT_NE(check(named("h2o"), l).message().find("weights=7: "), std::string::npos);
}

TEST(pre_rope, of_a_policy_is_refused_where_the_string_is) {
  for (const lagkv::method_entry* m : every_method()) {
    if (m->make == nullptr) continue;
    const std::string name(m->name);
    const auto plain = lagkv::parse(name, every_method());
    const auto text = lagkv::parse(name + ":pre_rope=yes", every_method());
    if (!plain) continue;
    const auto turned = lagkv::pre_rope(*plain);
    EXPECT_EQ(static_cast<bool>(turned), static_cast<bool>(text)) << name << ": " << turned.message() << text.message();
    EXPECT_TRUE(turned ? turned->needs.rope && turned->pre_rope != nullptr : name + ": " + turned.message() == text.message())
        << name;
  }
}

TEST(views, stand_on_the_hosts_own_types) {
  static_assert(!lagkv::stored_as<const float, float> && !lagkv::stored_as<const std::uint16_t, lagkv::f16>, "rows move");
  static_assert(!lagkv::stored_as<lagkv::bf16, lagkv::f16> && !lagkv::stored_as<lagkv::f16, lagkv::bf16> &&
                    !lagkv::stored_as<lagkv::fp8_e5m2, lagkv::fp8_e4m3> && lagkv::stored_as<lagkv::q4_0, lagkv::q4_0>,
                "the host said otherwise");
  static_assert(lagkv::stored_as<std::uint8_t, lagkv::fp8_e4m3> && lagkv::stored_as<char, std::int8_t>);
  static_assert(lagkv::stored_as<float, float> && lagkv::stored_as<std::uint16_t, lagkv::f16> &&
                lagkv::stored_as<short, lagkv::bf16>);
  static_assert(!lagkv::stored_as<double, float> && !lagkv::stored_as<int, float> && !lagkv::stored_as<float, lagkv::f16>);
  static_assert(lagkv::kv_tensor<lagkv::strided<float>> && lagkv::kv_tensor<lagkv::paged<lagkv::bf16, std::uint64_t>> &&
                lagkv::kv_tensor<ring_view>);
  static_assert(std::is_trivially_copyable_v<lagkv::layer> && std::is_trivially_copyable_v<lagkv::policy> &&
                std::is_trivially_copyable_v<lagkv::cursor>);
}

// ---- cursor ---------------------------------------------------------------------------------------------------------

TEST(cursor, is_saved_and_restored) {
  const lagkv::cursor c{0x0102030405060708, 0x3ffffffffffffff0, 77};
  const lagkv::saved_cursor bytes = lagkv::save(c);
  const auto back = lagkv::load_cursor(bytes);
  ASSERT_TRUE(back);
  EXPECT_EQ(*back, c);
  // The bytes are the contract, whatever the machine: version 1, little endian.
  EXPECT_EQ(bytes[0], std::byte{1});
  EXPECT_EQ(bytes[4], std::byte{8});
  EXPECT_EQ(bytes[11], std::byte{1});
  EXPECT_EQ(bytes[20], std::byte{77});
}

TEST(cursor, is_refused_where_it_cannot_be_one) {
  lagkv::saved_cursor bytes = lagkv::save({10, 5, 8});
  EXPECT_EQ(lagkv::load_cursor(std::span(bytes).first(27)).message(), "saved cursor of 27 bytes: must be 28");
  EXPECT_EQ(lagkv::load_cursor({}).message(), "saved cursor of 0 bytes: must be 28");
  bytes[1] = std::byte{1};
  EXPECT_EQ(lagkv::load_cursor(bytes).message(), "saved cursor of version 257: must be 1");
  EXPECT_EQ(lagkv::load_cursor(lagkv::save({10, 5, 11})).message(), "saved cursor: compressed=11: must be at most tokens=10");
  const std::size_t most =
      std::numeric_limits<std::size_t>::max() / 4;  // a 32-bit machine drops no half of what a 64-bit one saved
  EXPECT_TRUE(lagkv::load_cursor(lagkv::save({most, most, most})));
  for (lagkv::cursor c : {lagkv::cursor{most + 1, 0, 0}, lagkv::cursor{0, most + 1, 0}, lagkv::cursor{most, 0, most + 1}})
    EXPECT_EQ(lagkv::load_cursor(lagkv::save(c)).message(),
              "saved cursor: a count of " + std::to_string(most + 1) + ": must be at most " + std::to_string(most));
}

}  // namespace
