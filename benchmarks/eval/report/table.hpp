// The figures as text.
#pragma once

#include <ostream>

#include "summary.hpp"

namespace eval {

/// Per length: accuracy and cost, each task, pass keys by depth, perplexity and generation; below all, why samples are missing.
/// Markdown tables where asked for; else lines of at most text_table's most_columns. `against`: the policy from which the scores
/// are differences (differences.hpp); empty where they are none.
void print_tables(std::ostream& out, const summary& all, bool markdown, const std::string& against = {});

}  // namespace eval
