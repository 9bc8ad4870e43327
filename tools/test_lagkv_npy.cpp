// On the reference vectors of LagKV in tests/golden, and on what lagkv-npy must refuse.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <span>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include <lagkv/methods_with_eigen.hpp>

#include "test_lagkv_npy.hpp"

namespace {

class official : public lagkv_npy {
 protected:
  /// Expects the kept positions of a case of the paper's form, except that where the reference's scores at the cut differ
  /// by less than 1e-6 relative either token may stay.
  void expect_kept(const fs::path& input, std::size_t sink, std::size_t lag, std::size_t keep) const {
    const npy::array a = load(out() / "kept.npy"), b = load(input / "kept.npy"), s = load(input / "score.npy");
    ASSERT_EQ(a.shape, b.shape);
    const std::size_t heads = a.shape[0], rows = a.shape[1], candidates = s.size() / heads;
    for (std::size_t h = 0; h < heads; ++h) {
      const auto x = a.as<std::int32_t>().subspan(h * rows, rows), y = b.as<std::int32_t>().subspan(h * rows, rows);
      std::vector<std::int32_t> differing;
      std::set_symmetric_difference(x.begin(), x.end(), y.begin(), y.end(), std::back_inserter(differing));
      for (std::int32_t position : differing) {
        const std::size_t at = static_cast<std::size_t>(position) - sink;
        ASSERT_LT(at, candidates);
        const auto scores = s.as<float>().subspan(h * candidates, candidates);
        std::vector<float> sorted(scores.begin() + static_cast<std::ptrdiff_t>(at / lag * lag),
                                  scores.begin() + static_cast<std::ptrdiff_t>((at / lag + 1) * lag));
        std::sort(sorted.rbegin(), sorted.rend());
        const float cut = scores[at] >= sorted[keep - 1] ? sorted[keep] : sorted[keep - 1];
        EXPECT_NEAR(scores[at], cut, 1e-6F * cut) << "head " << h << ", position " << position;
      }
    }
  }
};

TEST_F(official, agrees_with_the_official_code) {
  const fs::path tiny = golden("tiny");
  const run_result r = compress("lagkv:sink=4,lag=8,ratio=0.5", tiny, "--scores");
  ASSERT_EQ(r.code, 0) << r.output;
  EXPECT_FALSE(fs::exists(out() / "lengths.npy"));
  expect_same(out() / "kept.npy", tiny / "kept.npy");
  expect_close(out() / "scores.npy", tiny / "score.npy");
  expect_gathered(tiny, "keys.npy");
  expect_gathered(tiny, "values.npy");
}

TEST_F(official, takes_f16_on_every_target) {
  const fs::path input = golden("d128_f16");
  for (const char* target : {"scalar", "sse2", "avx2", "avx512", "neon"}) {
    const run_result r = compress("lagkv:lag=128,ratio=0.25", input, "--scores --target " + std::string(target));
    if (r.code == 2) {
      expect_refused(r, "on this machine");
      continue;
    }
    ASSERT_EQ(r.code, 0) << r.output;
    EXPECT_NE(r.output.find(target), std::string::npos);
    expect_kept(input, 16, 128, 32);
    expect_close(out() / "scores.npy", input / "score.npy");
    expect_gathered(input, "keys.npy");
    expect_gathered(input, "values.npy");
  }
}

TEST_F(official, streams) {
  const fs::path input = golden("stream_chunks");
  const npy::array steps = load(input / "steps.npy");
  std::string list;
  for (std::int32_t n : steps.as<std::int32_t>()) list.append(list.empty() ? "" : ",").append(std::to_string(n));
  const run_result r = compress("lagkv:lag=64,ratio=0.5", input, "--steps " + list);
  ASSERT_EQ(r.code, 0) << r.output;
  expect_same(out() / "kept.npy", input / "kept.npy");
  expect_same(out() / "lengths.npy", input / "lengths.npy");
  expect_gathered(input, "keys.npy");
  expect_gathered(input, "values.npy");

  ASSERT_EQ(compress("lagkv:lag=64,ratio=0.5", input, "--steps 500,1x400").code, 0);
  EXPECT_EQ(load(out() / "lengths.npy").shape, std::vector<std::size_t>{401});
  expect_same(out() / "kept.npy", input / "kept.npy");
}

TEST_F(official, leaves_a_short_cache_alone) {
  const fs::path tiny = golden("tiny");
  ASSERT_EQ(compress("lagkv:sink=25,lag=8", tiny, "--scores").code, 0);
  expect_same(out() / "keys.npy", tiny / "keys.npy");
  expect_same(out() / "values.npy", tiny / "values.npy");
  EXPECT_EQ(load(out() / "scores.npy").shape, (std::vector<std::size_t>{2, 0, 8}));
  ASSERT_EQ(compress("lagkv:sink=25,lag=8,form=kvpress", tiny, "--scores").code, 0);
  expect_same(out() / "keys.npy", tiny / "keys.npy");
  const npy::array ones = load(out() / "scores.npy");
  for (float s : ones.as<float>()) EXPECT_EQ(s, 1.0F);
}

TEST_F(lagkv_npy, other_policies) {
  const fs::path tiny = golden("tiny");
  // kvpress_cross: half the paper's score where tokens are candidates, 1 before and behind.
  const npy::array paper = load(tiny / "score.npy");
  ASSERT_EQ(compress("lagkv:sink=4,lag=8,form=kvpress_cross", tiny, "--scores").code, 0);
  const npy::array cross = load(out() / "scores.npy");
  ASSERT_EQ(cross.shape, (std::vector<std::size_t>{2, 40}));
  for (std::size_t h = 0; h < 2; ++h)
    for (std::size_t t = 0; t < 40; ++t) {
      const bool candidates = t >= 4 && t < 28;
      const float expected = candidates ? paper.as<float>()[h * 24 + t - 4] / 2 : 1.0F;
      ASSERT_NEAR(cross.as<float>()[h * 40 + t], expected, 1e-5 * expected);
    }
  EXPECT_EQ(load(out() / "kept.npy").shape, (std::vector<std::size_t>{2, 20}));
  // kvpress: ranks in each partition.
  ASSERT_EQ(compress("lagkv:sink=4,lag=8,form=kvpress", tiny, "--scores").code, 0);
  const npy::array ranks = load(out() / "scores.npy");
  for (std::size_t p = 0; p < 3; ++p) {
    std::vector<float> part(ranks.as<float>().begin() + 4 + static_cast<std::ptrdiff_t>(p * 8),
                            ranks.as<float>().begin() + 12 + static_cast<std::ptrdiff_t>(p * 8));
    std::sort(part.begin(), part.end());
    for (std::size_t i = 0; i < 8; ++i) EXPECT_EQ(part[i], static_cast<float>(i) / 8);
  }
  ASSERT_EQ(compress("random:recent=8,seed=3", tiny, "--scores").code, 0);
  EXPECT_EQ(load(out() / "scores.npy").shape, (std::vector<std::size_t>{2, 40}));
  EXPECT_EQ(load(out() / "kept.npy").shape, (std::vector<std::size_t>{2, 20}));
  expect_gathered(tiny, "keys.npy");
  ASSERT_EQ(compress("streaming_llm:capacity=12", tiny, "--steps 1x40").code, 0);
  const std::vector<std::int32_t> stay{0, 1, 2, 3, 32, 33, 34, 35, 36, 37, 38, 39};
  const npy::array kept = load(out() / "kept.npy");
  EXPECT_TRUE(std::equal(stay.begin(), stay.end(), kept.as<std::int32_t>().begin()));
}

TEST_F(lagkv_npy, takes_values_of_another_type_and_dim) {
  const fs::path input = folder_ / "mixed";
  fs::create_directories(input);
  std::vector<float> keys(2 * 40 * 3);
  std::vector<std::uint16_t> values(2 * 40 * 5);
  for (std::size_t i = 0; i < keys.size(); ++i) keys[i] = std::sin(static_cast<float>(i * i));
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<std::uint16_t>(0x3000 + i * 37 % 0x1000);
  ASSERT_TRUE(npy::save(input / "keys.npy", "<f4", {2, 40, 3}, keys));
  ASSERT_TRUE(npy::save(input / "values.npy", "<f2", {2, 40, 5}, values));
  const run_result r = compress("lagkv:sink=2,lag=6,ratio=0.5", input);
  ASSERT_EQ(r.code, 0) << r.output;
  EXPECT_EQ(load(out() / "kept.npy").shape, (std::vector<std::size_t>{2, 25}));
  expect_gathered(input, "keys.npy");
  expect_gathered(input, "values.npy");
}

TEST_F(lagkv_npy, refuses_bad_input_in_one_line) {
  const fs::path tiny = golden("tiny");
  expect_refused(compress("lagkv:lag=0", tiny), "lag=0: must be a whole number from 1 to 2147483647");
  expect_refused(compress("lagkv:ratio=1.5", tiny), "ratio=1.5: must be above 0 and at most 1");
  expect_refused(compress("lagcv", tiny), "unknown policy 'lagcv'");
  expect_refused(compress("lagkv", tiny, "--steps 10,10"), "add up to 20");
  expect_refused(compress("lagkv", tiny, "--steps 10,x"), "'x'");
  expect_refused(compress("lagkv", tiny, "--steps 0,40"), "'0'");
  expect_refused(compress("lagkv", tiny, "--steps 40,"), "''");
  expect_refused(compress("lagkv", tiny, "--steps 18446744073709551615,41"), "more than");
  expect_refused(compress("lagkv", tiny, "--target mmx"), "target=mmx");
  expect_refused(compress("streaming_llm:keep=0.5", tiny, "--scores"), "streaming_llm has none");
  expect_refused(compress("lagkv", tiny, "--frobnicate"), "--frobnicate");
  expect_refused(run("--policy lagkv"), "--keys");
  const std::string keys = " --keys " + (tiny / "keys.npy").string(), values = " --values " + (tiny / "values.npy").string();
  expect_refused(run("--policy lagkv" + keys + values), "--out");
  expect_refused(compress("lagkv", folder_ / "absent"), "cannot be opened");

  const fs::path bad = folder_ / "bad.npy";
  const auto with_values = [&] {
    return run("--policy lagkv" + keys + " --values " + bad.string() + " --out " + out().string());
  };
  std::ofstream(bad) << "not numpy";
  expect_refused(with_values(), "is not a .npy file");
  ASSERT_TRUE(npy::save(bad, "<f4", {2, 41, 2}, std::vector<float>(164)));
  expect_refused(with_values(), "keys [2, 40, 16], values [2, 41, 2]");
  ASSERT_TRUE(npy::save(bad, "<f4", {80, 2}, std::vector<float>(160)));
  expect_refused(with_values(), "shape [80, 2]");
  ASSERT_TRUE(npy::save(bad, "<i4", {2, 40, 2}, std::vector<std::int32_t>(160)));
  expect_refused(with_values(), "type <i4");
  ASSERT_TRUE(npy::save(bad, "<f4", {2, 40, 2}, std::vector<float>(159)));
  expect_refused(with_values(), "has 636 bytes of data");
  expect_refused(run("--policy lagkv" + keys + values + " --out " + (bad / "below").string()), "cannot be made a folder");
  fs::create_directories(out());
  fs::remove_all(out() / "kept.npy");
  fs::create_directories(out() / "kept.npy");
  expect_refused(compress("lagkv", tiny), "cannot be written");
}

/// A version 1.0 file with this header, and so many zeros behind it.
void write_npy(const fs::path& path, std::string header, std::size_t bytes, const std::string& start = {"\x93NUMPY\1\0", 8}) {
  header += '\n';
  std::ofstream(path, std::ios::binary) << start << static_cast<char>(header.size() & 255U)
                                        << static_cast<char>(header.size() >> 8U) << header << std::string(bytes, '\0');
}

// Every number of a file is checked before it is used.
TEST_F(lagkv_npy, refuses_files_that_were_tampered_with) {
  const fs::path file = folder_ / "bad.npy";
  const auto refusal = [&] { return npy::load(file).message(); };
  const auto with_shape = [&](const std::string& shape) {
    write_npy(file, "{'descr': '<f4', 'fortran_order': False, 'shape': " + shape + ", }", 64);
    return refusal();
  };
  EXPECT_EQ(with_shape("(2, 2, 4)"), "");
  EXPECT_EQ(with_shape("(2, 2, 4,)"), "");
  EXPECT_EQ(with_shape("(16,)"), "");
  EXPECT_EQ(with_shape("( 16 , )"), "");
  EXPECT_EQ(with_shape("()"), "");
  for (const char* shape : {"(-1, 2, 4)", "(2, -2, 4)", "(2, 2, 4", "(2 2 4)", "(2; 2)", "(16)", "(a, 2)", "[2, 2, 4]", "2, 2, 4",
                            "(2, 2.5, 4)", "(,)", "(2,,4)", "(18446744073709551617, 1)", "(99999999999999999999999999, 1)",
                            "(1, 1, 1, 1, 1, 1, 1, 1, 1)", "(0x2, 2)", "(+2, 2)"})
    EXPECT_NE(with_shape(shape).find("shape "), std::string::npos) << shape << with_shape(shape);
  for (const char* shape : {"(4294967296, 4294967296)", "(70368744177664, 2)", "(65536, 65536, 65536, 65536)"})
    EXPECT_NE(with_shape(shape).find("too large to be true"), std::string::npos) << shape << with_shape(shape);
  EXPECT_NE(with_shape("(3, 2, 4)").find("has 64 bytes of data: must be 96"), std::string::npos) << with_shape("(3, 2, 4)");

  const std::string good = "{'descr': '<f4', 'fortran_order': False, 'shape': (16,), }";
  for (const auto& [major, minor, said] : {std::tuple(0, 0, "has version 0.0"),
                                           {9, 0, "has version 9.0"},
                                           {1, 1, "has version 1.1"},
                                           {255, 7, "has version 255.7"}}) {
    write_npy(file, good, 64, std::string("\x93NUMPY") + static_cast<char>(major) + static_cast<char>(minor));
    EXPECT_NE(refusal().find(said), std::string::npos) << refusal();
  }
  for (const char* header :
       {"", "{", "{'descr': }", "{'descr': '<f4'", "{'descr': '<f8', 'fortran_order': False, 'shape': (8,), }",
        "{'descr': '>f4', 'fortran_order': False, 'shape': (16,), }", "{'descr': '<f4', 'fortran_order': True, 'shape': (16,), }",
        "{'descr': '<f4', 'fortran_order': False, }"}) {
    write_npy(file, header, 64);
    EXPECT_NE(refusal(), "") << header;
  }
  write_npy(file, good, 64);
  const auto size = fs::file_size(file);
  for (std::uintmax_t n = 0; n < size; ++n) {  // cut off anywhere
    fs::resize_file(file, size - 1 - n);
    EXPECT_NE(refusal(), "") << size - 1 - n;
  }
  fs::remove(file);
  ASSERT_EQ(mkfifo(file.c_str(), 0600), 0);
  EXPECT_NE(refusal().find("is no regular file"), std::string::npos) << "or this would wait for ever";
  EXPECT_NE(npy::load(folder_).message().find("is no regular file"), std::string::npos);
}

TEST_F(lagkv_npy, leaves_its_inputs_alone) {
  const fs::path own = folder_ / "own";
  fs::create_directories(own);
  for (const char* name : {"keys.npy", "values.npy"}) fs::copy_file(golden("exact_two_lags") / name, own / name);
  const npy::array keys = load(own / "keys.npy"), values = load(own / "values.npy");
  const std::string inputs = " --keys " + (own / "keys.npy").string() + " --values " + (own / "values.npy").string();
  const std::string policy = "--policy lagkv:lag=8,sink=2";
  expect_refused(run(policy + inputs + " --out " + own.string()), "keys.npy there is the input --keys: name another folder");
  expect_refused(run(policy + inputs + " --out " + (own / ".").string()), "is the input --keys");
  const fs::path link = folder_ / "link";
  fs::create_directory_symlink(own, link);
  expect_refused(run(policy + inputs + " --out " + link.string()), "is the input --keys");
  fs::copy_file(own / "keys.npy", own / "scores.npy");  // a name of a result that is an input
  expect_refused(run(policy + " --keys " + (own / "scores.npy").string() + " --values " +
                     (golden("exact_two_lags") / "values.npy").string() + " --out " + own.string()),
                 "scores.npy there is the input --keys");
  EXPECT_EQ(load(own / "keys.npy").data, keys.data);
  EXPECT_EQ(load(own / "values.npy").data, values.data);
  EXPECT_EQ(run(policy + inputs + " --out " + out().string()).code, 0);
}

TEST_F(lagkv_npy, lists_policies_and_helps) {
  const run_result list = run("--list");
  EXPECT_EQ(list.code, 0);
  const auto expect_listed = [&](const std::string& part) {
    EXPECT_NE(list.output.find(part), std::string::npos) << part << " is not in\n" << list.output;
  };
  for (const char* part : {"ratio=0.5", "form=paper", "2504.04704", "capacity=...", "recent_share=0.5", "fuse:A+B"})
    expect_listed(part);
  for (const auto& [method, keys] : {std::pair("h2o", std::vector{"recent=1 ", "recent_share=0.5 "}),
                                     {"novelty", {"smooth=8 ", "heads=shared ", "pre_rope=yes "}},
                                     {"distinct", {"pre_rope=yes "}},
                                     {"tova", {"recent=1 ", "heads=shared "}}}) {
    const std::size_t at = list.output.find(std::string("\n") + method + ' ');
    const std::string entry = list.output.substr(at, list.output.find("\n\n", at) - at);
    for (const char* key : keys)
      EXPECT_NE(entry.find(std::string("\n  ") + key), std::string::npos) << key << " is not in" << entry;
  }
  const auto expect_keys = [&](std::span<const lagkv::parameter> keys) {
    for (const lagkv::parameter& p : keys) expect_listed(std::string("\n  ").append(p.key).append("="));
  };
  for (const lagkv::method_entry* m : lagkv::methods_with_eigen()) {
    expect_listed(std::string("\n").append(m->name).append(" "));
    expect_keys(m->make_whole != nullptr ? m->whole.parameters : m->own.parameters);
  }
  expect_keys(lagkv::policy_parameters);
  for (const lagkv::fusion_parameter& p : lagkv::fusion_parameters) expect_listed(std::string("\n  ").append(p.key).append("="));
  EXPECT_EQ(list.output.find("=-1"), std::string::npos);
  std::istringstream lines(list.output);
  for (std::string line; std::getline(lines, line);) EXPECT_LE(line.size(), 100U) << line;
  const run_result help = run("--help");
  EXPECT_EQ(help.code, 0);
  for (const char* option : {"--policy", "--queries", "--query-mean", "--query-covariance", "--protect", "--layer", "--rope-base",
                             "--rope-pairs", "--rope-dims", "--rope-scale", "--rope-factors"})
    EXPECT_NE(help.output.find(option), std::string::npos) << option;
}

TEST_F(lagkv_npy, the_table_of_keys_in_the_docs_is_the_registry) {
  const run_result table = run("--list-markdown");
  ASSERT_EQ(table.code, 0);
  std::ifstream file(LAGKV_METHODS_PAGE);
  const std::string page((std::istreambuf_iterator<char>(file)), {});
  EXPECT_NE(page.find("\n" + table.output), std::string::npos)
      << "docs/methods.md: put the output of lagkv-npy --list-markdown in place of its table of keys";
}

}  // namespace
