// Runs lagkv-npy as a user does: the fixture of its tests.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <gtest/gtest.h>

#include "tools/npy.hpp"

namespace fs = std::filesystem;

inline std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr ? value : "";
}

inline npy::array load(const fs::path& path) {
  lagkv::result<npy::array> a = npy::load(path);
  if (a) return *a;
  ADD_FAILURE() << a.message();
  return {};
}

struct run_result {
  int code = -1;
  std::string output;  // both streams
  std::size_t lines() const { return static_cast<std::size_t>(std::count(output.begin(), output.end(), '\n')); }
};

class lagkv_npy : public testing::Test {
 protected:
  void SetUp() override {
    program_ = environment("LAGKV_NPY");
    golden_ = environment("LAGKV_GOLDEN");
    if (program_.empty()) GTEST_SKIP() << "LAGKV_NPY is not set: run this through ctest";
    folder_ = fs::temp_directory_path() / ("lagkv-npy-" + std::to_string(getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override {
    if (!folder_.empty()) fs::remove_all(folder_);
  }

  fs::path golden(const std::string& name) const {
    EXPECT_TRUE(fs::exists(golden_ / name)) << golden_ / name;
    return golden_ / name;
  }
  fs::path out() const { return folder_ / "out"; }

  run_result run(const std::string& arguments) const {
    const fs::path log = folder_ / "log";
    const int status = std::system((program_.string() + " " + arguments + " >" + log.string() + " 2>&1").c_str());
    std::ostringstream text;
    text << std::ifstream(log).rdbuf();
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, text.str()};
  }

  run_result compress(const std::string& policy, const fs::path& folder, const std::string& more = "") const {
    return run("--policy " + policy + " --keys " + (folder / "keys.npy").string() + " --values " +
               (folder / "values.npy").string() + " --out " + out().string() + " " + more);
  }

  /// Expects the code of bad input, and one line that has `part` in it.
  static void expect_refused(const run_result& r, const std::string& part) {
    EXPECT_EQ(r.code, 2) << r.output;
    EXPECT_EQ(r.lines(), 1U) << r.output;
    EXPECT_NE(r.output.find(part), std::string::npos) << r.output << "lacks: " << part;
  }

  void expect_same(const fs::path& found, const fs::path& expected) const {
    const npy::array a = load(found), b = load(expected);
    EXPECT_EQ(a.type, b.type) << found;
    EXPECT_EQ(a.shape, b.shape) << found;
    EXPECT_TRUE(a.data == b.data) << found << " differs from " << expected;
  }

  void expect_close(const fs::path& found, const fs::path& expected) const {
    const npy::array a = load(found), b = load(expected);
    ASSERT_EQ(a.type, "<f4");
    ASSERT_EQ(a.shape, b.shape) << found;
    const auto x = a.as<float>(), y = b.as<float>();
    for (std::size_t i = 0; i < x.size(); ++i) ASSERT_NEAR(x[i], y[i], 1e-5 * std::abs(y[i])) << found << " at " << i;
  }

  /// Expects the rows of `name` in out() to be those of the input at the positions in kept.npy, byte for byte.
  void expect_gathered(const fs::path& input, const std::string& name) const {
    const npy::array all = load(input / name), kept = load(out() / "kept.npy"), left = load(out() / name);
    const std::size_t heads = all.shape[0], tokens = all.shape[1], rows = kept.shape[1];
    ASSERT_EQ(left.type, all.type);
    ASSERT_EQ(left.shape, (std::vector<std::size_t>{heads, rows, all.shape[2]}));
    const std::size_t bytes = all.data.size() / (heads * tokens);
    for (std::size_t h = 0; h < heads; ++h)
      for (std::size_t i = 0; i < rows; ++i) {
        const auto position = static_cast<std::size_t>(kept.as<std::int32_t>()[h * rows + i]);
        ASSERT_LT(position, tokens);
        ASSERT_TRUE(i == 0 || position > static_cast<std::size_t>(kept.as<std::int32_t>()[h * rows + i - 1]));
        ASSERT_EQ(std::memcmp(&left.data[(h * rows + i) * bytes], &all.data[(h * tokens + position) * bytes], bytes), 0);
      }
  }

  fs::path program_, golden_, folder_;
};
