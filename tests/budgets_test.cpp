// A budget is what it says: the table of docs/methods.md, line by line, against real runs.
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include <lagkv/lagkv.hpp>

#include "support/offer.hpp"

namespace {

using namespace support;

struct line_of_table {
  std::string policy;
  std::size_t least, most;
};

/// The cells of a line of a table, without the blanks around them.
std::vector<std::string> cells(const std::string& line) {
  std::vector<std::string> out;
  std::istringstream in(line);
  for (std::string cell; std::getline(in, cell, '|');) {
    const std::size_t begin = cell.find_first_not_of(' '), end = cell.find_last_not_of(' ');
    out.push_back(begin == std::string::npos ? "" : cell.substr(begin, end - begin + 1));
  }
  return out;
}

std::vector<line_of_table> table_of_the_page() {
  std::ifstream page(LAGKV_METHODS_PAGE);
  std::vector<line_of_table> out;
  std::string line;
  while (std::getline(page, line) && line != "## What a budget keeps") {
  }
  while (std::getline(page, line) && line.rfind("## ", 0) != 0) {
    const std::vector<std::string> found = cells(line);
    if (found.size() != 5 || found[1].empty() || found[1].front() != '`') continue;
    out.push_back({found[1].substr(1, found[1].size() - 2), std::stoul(found[3]), std::stoul(found[4])});
  }
  return out;
}

TEST(budgets, keep_what_the_table_says) {
  constexpr std::size_t prompt = 300, tokens = 2000, channels = 4, room = tokens;
  const std::vector<line_of_table> table = table_of_the_page();
  ASSERT_GE(table.size(), 15U);
  for (const auto& [text, least, most] : table) {
    SCOPED_TRACE(text);
    const lagkv::result<lagkv::policy> p = lagkv::parse(text);
    ASSERT_TRUE(p) << p.message();
    cube keys = make_cube(91, 1, room, channels);
    std::vector<float> attention(room);
    lagkv::extras e;
    e.accumulated_attention = {attention.data(), 0};
    cube values = keys;
    const auto view = [](cube& of) {
      return lagkv::strided<float>(of.x.data(), {1, channels}, {.head = 1, .token = channels}, room);
    };
    lagkv::layer l{view(keys), view(values), 0, &e};
    ASSERT_EQ(check(*p, l).message(), "");
    lagkv::workspace ws;
    lagkv::cursor at;
    std::size_t fewest = tokens, highest = 0;
    for (std::size_t seen = prompt; seen <= tokens; ++seen) {
      l.tokens += seen == prompt ? prompt : 1;
      l.tokens = lagkv::compress(*p, l, at, ws);
      ASSERT_EQ(at.seen(), seen);
      if (at.dropped == 0 && seen < tokens) continue;
      fewest = std::min(fewest, l.tokens), highest = std::max(highest, l.tokens);
    }
    EXPECT_EQ(fewest, least);
    EXPECT_EQ(highest, most);
    EXPECT_LE(highest, lagkv::peak_rows(*p, 1, tokens));
  }
}

}  // namespace
