// From the file to the tables and the page.
#include "report_command.hpp"

#include <fmt/format.h>

#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

#include "differences.hpp"
#include "figures.hpp"
#include "page.hpp"
#include "summary.hpp"
#include "table.hpp"
#include "text_table.hpp"
#include "within_reach.hpp"

namespace eval {
namespace {

void write_file(const std::string& path, std::string_view text) {
  std::ofstream out(path, std::ios::binary);
  out << text << std::flush;
  if (!out) throw std::runtime_error(path + ": cannot be written");
}

void check_alike(const std::string& path, const std::vector<run_info>& runs) {
  for (std::size_t i = 1; i < runs.size(); ++i)
    for (std::size_t k = 0; k < i; ++k)
      if (const std::string why = conflict(runs[k], runs[i]); !why.empty())
        throw std::invalid_argument(
            fmt::format("{}: one run {}, as another was: their results cannot stand in one table", path, why));
}

std::string title_of(const summary& all) {
  const std::string model = all.runs.empty() ? "" : shortened(one_line(all.runs.back().model), 60);
  return "How well " + (model.empty() ? "a model" : model) + " answers when its KV cache is compressed";
}

}  // namespace

int report_command(const report_options& options) {
  results samples = read_results(options.results);
  if (samples.samples.empty()) throw std::invalid_argument(options.results + ": holds no samples");
  check_alike(options.results, samples.runs);
  if (options.reach > 0) samples = within_reach(samples, options.reach / 100);
  const summary all = summarize(samples);
  print_tables(std::cout, options.against.empty() ? all : summarize(differences(samples, options.against)), options.markdown,
               options.against);
  std::cout << std::flush;
  if (options.html.empty() && options.json.empty()) return 0;
  const std::string figures = figures_json(all, samples);
  if (!options.json.empty()) write_file(options.json, figures + '\n');
  if (!options.html.empty()) write_file(options.html, make_page(title_of(all), figures));
  return 0;
}

}  // namespace eval
