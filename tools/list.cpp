#include "list.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include <lagkv/methods_with_eigen.hpp>

namespace tool {

namespace {

constexpr std::size_t columns = 100, left = 20;

/// Text that entry() does not break.
std::string together(std::string text) {
  std::replace(text.begin(), text.end(), ' ', '\t');
  return text;
}

/// A word at the left, and text beside it.
std::string entry(std::string head, std::string_view text) {
  std::string out = std::move(head);
  std::size_t column = out.size();
  if (column >= left) out += '\n', column = 0;
  out.append(left - column, ' ');
  column = left;
  while (!text.empty()) {
    const std::string_view word = text.substr(0, text.find(' '));
    text.remove_prefix(word.size() == text.size() ? word.size() : word.size() + 1);
    const bool first = column == left;
    if (!first && column + 1 + word.size() > columns) {
      out += '\n' + std::string(left, ' ');
      column = left;
    } else if (!first) {
      out += ' ', ++column;
    }
    out += word, column += word.size();
  }
  std::replace(out.begin(), out.end(), '\t', ' ');
  return out + '\n';
}

std::string number(double x) {
  char digits[32];
  std::snprintf(digits, sizeof digits, "%g", x);
  return digits;
}

/// The value of an option in a struct of defaults, as a string writes it.
std::string initial_value(const lagkv::parameter& p, const void* defaults) {
  if (!p.given(defaults)) return "...";
  if (p.accepts.type != lagkv::accepted::kind::word) return number(p.get(defaults));
  std::string_view words = p.accepts.words;
  for (auto skip = static_cast<int>(p.get(defaults)); skip > 0; --skip) words.remove_prefix(words.find('|') + 1);
  return std::string(words.substr(0, words.find('|')));
}

/// "must be a whole number from 1 to 9" -> "whole, from 1 to 9"; no upper limit that nobody meets.
std::string accepted(const lagkv::accepted& a) {
  std::string out = a.type == lagkv::accepted::kind::word ? std::string(a.words) : lagkv::text(a);
  for (const auto& [from, to] : {std::pair{"must be ", ""}, std::pair{"a whole number", "whole,"}})
    if (out.find(from) == 0) out.replace(0, std::strlen(from), to);
  if (a.type == lagkv::accepted::kind::whole && a.most == lagkv::accepts::most_tokens)
    return "whole, " + number(a.least) + " or more";
  return out;
}

/// One key with its value at the left. (Not with operator+: g++ 12 warns of it at -O3.)
std::string key_entry(std::string_view key, std::string_view value, std::string_view text) {
  std::string head("  ");
  head.append(key).append("=").append(value);
  return entry(std::move(head), text);
}

std::string key_line(std::string_view key, std::string_view value, std::string_view meaning, const lagkv::accepted& a) {
  return key_entry(key, value, std::string(meaning) + ' ' + together('[' + accepted(a) + ']'));
}

std::string keys(const lagkv::option_table& table) {
  const lagkv::option_values defaults(table);
  std::string out;
  for (const lagkv::parameter& p : table.parameters)
    out += key_line(p.key, initial_value(p, defaults.get()), p.meaning, p.accepts);
  return out;
}

std::string options_for(const lagkv::needs& n) {
  if (n.query_statistics) return together("[--query-mean, --query-covariance or --queries]");
  return n.queries > 0 || n.accumulated_attention ? "[--queries]" : "";
}

std::string describe(const lagkv::method_entry& m) {
  const bool whole = m.make_whole != nullptr;
  const lagkv::option_values defaults(m.own);
  const lagkv::result<lagkv::method> part = whole ? lagkv::error{} : m.make(defaults.get(), 0);
  const lagkv::method plain;
  constexpr const char* instead = "default of the shared key";

  std::string out =
      entry(std::string(m.name), std::string(m.meaning) + (m.source.empty() ? "" : ", ") + together(std::string(m.source)));
  out += entry("", std::string("reads ").append(m.reads) + ' ' + (part ? options_for(part->needs) : ""));
  out += keys(whole ? m.whole : m.own);
  if (part) {
    if (part->recent != plain.recent) out += key_entry("recent", std::to_string(part->recent), instead);
    if (part->recent_share != plain.recent_share) out += key_entry("recent_share", number(part->recent_share), instead);
    if (part->smooth != plain.smooth) out += key_entry("smooth", std::to_string(part->smooth), instead);
    if (part->shared_heads) out += key_entry("heads", "shared", instead);
    if (part->pre_rope != nullptr) out += key_entry("pre_rope", "yes", instead);
  }
  return out + '\n';
}

std::string names(bool (*which)(const lagkv::method_entry&), const char* between) {
  std::string out;
  for (const lagkv::method_entry* m : lagkv::methods_with_eigen())
    if (which(*m)) out += (out.empty() ? "" : between) + std::string(m->name);
  return out;
}

std::string heading(std::string_view text) { return std::string(text) + '\n' + std::string(text.size(), '-') + '\n'; }

/// A row of the table of keys. In Markdown a bar would end the cell.
std::string markdown_row(std::string_view policy, std::string_view key, std::string value, const lagkv::accepted& a,
                         std::string_view meaning) {
  if (value == "...") value = "-";
  std::string accepts = accepted(a);
  for (std::size_t bar = accepts.find('|'); bar != std::string::npos; bar = accepts.find('|')) accepts.replace(bar, 1, ", ");
  std::string row = "| ";
  if (!policy.empty()) row.append("`").append(policy).append("` ");
  return row.append("| `").append(key).append("` | ").append(value).append(" | ").append(accepts).append(" | ").append(meaning) +
         " |\n";
}

std::string markdown_rows(std::string_view policy, const lagkv::option_table& table) {
  const lagkv::option_values defaults(table);
  std::string out;
  for (const lagkv::parameter& p : table.parameters) {
    out += markdown_row(policy, p.key, initial_value(p, defaults.get()), p.accepts, p.meaning);
    policy = {};
  }
  return out;
}

}  // namespace

std::string markdown_keys() {
  std::string out = "| policy | key | default | accepted | meaning |\n|---|---|---|---|---|\n";
  for (const lagkv::method_entry* m : lagkv::methods_with_eigen())
    out += markdown_rows(m->name, m->make_whole != nullptr ? m->whole : m->own);
  out += markdown_rows("shared", lagkv::shared_options);
  std::string_view fuse = "fuse";
  for (const lagkv::fusion_parameter& p : lagkv::fusion_parameters) {
    out += markdown_row(fuse, p.key, std::string(p.initial), p.accepts, p.meaning);
    fuse = {};
  }
  return out;
}

std::string list_policies() {
  std::string out =
      "A policy is NAME or NAME:KEY=VALUE,KEY=VALUE,... with keys in any order. Those not given have the\n"
      "values below; KEY=... has none.\n\n";
  out += heading("Policies");
  for (const lagkv::method_entry* m : lagkv::methods_with_eigen()) out += describe(*m);
  out += heading("Keys of every policy but " + names([](const lagkv::method_entry& m) { return m.make_whole != nullptr; }, ", ") +
                 ", and of every fusion");
  out += keys(lagkv::shared_options) + '\n';
  out += heading("Fusions");
  out += entry("fuse:A+B", "the sum of the ranks that two to four of these give: " +
                               names([](const lagkv::method_entry& m) { return m.make != nullptr; }, ", "));
  out += entry("", "fuse:lagkv+key_diff,lag=128,weights=1+0.5");
  out += entry("", "each key goes to every method that has it");
  for (const lagkv::fusion_parameter& p : lagkv::fusion_parameters) out += key_line(p.key, p.initial, p.meaning, p.accepts);
  return out;
}

}  // namespace tool
