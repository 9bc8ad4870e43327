#include "refit.hpp"

#include <lagkv/policy/registry.hpp>
#include <lagkv/result.hpp>

#include <sstream>
#include <stdexcept>

namespace eval {
namespace {

constexpr lagkv::parameter keys[] = {
    lagkv::option<&refit::ridge>("refit", lagkv::accepts::number(1e-9, 1e6), "ridge of the refit"),
    lagkv::option<&refit::queries>("refit_queries", lagkv::accepts::positive, "last tokens whose queries count")};

}  // namespace

refitted_policy split_refit(const std::string& text) {
  const std::size_t colon = text.find(':');
  if (colon == std::string::npos) return {text};
  const std::string name = text.substr(0, colon);
  lagkv::option_values asked(lagkv::table_of<refit>(keys));
  std::string rest;
  bool any = false;
  std::istringstream items(text.substr(colon + 1));
  for (std::string item; std::getline(items, item, ',');) {
    const std::size_t equals = item.find('=');
    lagkv::status outcome;
    if (equals == std::string::npos || !asked.set(item.substr(0, equals), item.substr(equals + 1), outcome))
      rest += (rest.empty() ? ":" : ",") + item;
    else if (!outcome)
      throw std::invalid_argument(name + ": " + outcome.message());
    else
      any = true;
  }
  if (!any) return {text};
  const auto& how = *static_cast<const refit*>(asked.get());
  if (!(how.ridge > 0)) throw std::invalid_argument(name + ": refit_queries: give refit too");
  return {name + rest, how};
}

}  // namespace eval
