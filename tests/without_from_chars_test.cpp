// Standard libraries without std::from_chars and std::to_chars of doubles (older libc++): numbers are read and written by strtod
// and printf, and are what they are with them. Headers only: the macro is taken back after all that knows it has been read.
#include <charconv>
#include <clocale>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>
#include <version>

#include <gtest/gtest.h>

#undef __cpp_lib_to_chars
#include <lagkv/lagkv.hpp>

namespace {

// What std::from_chars takes and leaves.
void expect_plain_decimals() {
  for (const auto& [text, value] :
       {std::pair{"0.5", 0.5}, {"1e-3", 1e-3}, {".25", 0.25}, {"1.", 1.0}, {"1E-1", 0.1}, {"5e-1", 0.5}}) {
    const auto p = lagkv::parse(std::string("key_norm:keep=") + text);
    ASSERT_TRUE(p) << text << ": " << p.message();
    EXPECT_EQ(p->budget.as<lagkv::keep::share>()->of_all, value) << text;
  }
  for (const char* text :
       {"+0.5", " 0.5", "0.5 ", "0x1p-1", "0x0.8", "0,5", "inf", "nan", "1e400", "-0.5", "e5", "-", ".", "1e", "0.5f", "1_0"})
    EXPECT_EQ(lagkv::parse(std::string("key_norm:keep=") + text).message().empty(), false) << text;
  EXPECT_EQ(lagkv::parse("key_norm:keep=1.5").message(), "key_norm: keep=1.5: must be above 0 and at most 1");
  EXPECT_EQ(lagkv::parse("key_norm:sink=1e-7").message(), "key_norm: sink=1e-7: must be a whole number from 0 to 2147483647");
  for (const auto& [x, text] : {std::pair{0.1, "0.1"}, {1.0 / 3, "0.3333333333333333"}, {-2.5, "-2.5"}, {12.0, "12"}})
    EXPECT_EQ(lagkv::detail::text(x), text);
}

TEST(without_from_chars, numbers_are_plain_decimals) { expect_plain_decimals(); }

TEST(without_from_chars, numbers_are_plain_decimals_in_a_locale_with_a_comma) {
  const char* found = nullptr;
  for (const char* name : {"de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8", "fr_FR.utf8", "German"})
    if (found == nullptr) found = std::setlocale(LC_NUMERIC, name);
  if (found == nullptr) GTEST_SKIP() << "no such locale here";
  char half[8] = {};
  std::snprintf(half, sizeof half, "%.1f", 0.5);
  ASSERT_STREQ(half, "0,5");
  expect_plain_decimals();
  std::setlocale(LC_NUMERIC, "C");
}

}  // namespace
