// What a results file says, for people.
#pragma once

#include <string>

namespace eval {

struct report_options {
  std::string results;    ///< the file to read
  std::string html;       ///< where the page goes; empty: none is written
  std::string json;       ///< where the figures go; empty: they are not written
  bool markdown = false;  ///< tables in markdown, not for a terminal
  double reach = 0;       ///< of 100: tasks in which the full cache has less are left out
  std::string against{};  ///< a policy: tables of the differences from it on the same prompts; empty: of the figures
};

/// Prints the tables to std::cout and writes what was asked for; returns 0. Throws std::invalid_argument for a file that holds
/// no results, std::runtime_error for one that cannot be read or written.
int report_command(const report_options& options);

}  // namespace eval
