// Which figures stand in which table, and how a number is written.
#include "table.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <set>

#include "text_table.hpp"

namespace eval {
namespace {

std::string number(double value, int digits) { return std::isfinite(value) ? fmt::format("{:.{}f}", value, digits) : "-"; }

std::string percent(double share) { return number(share * 100, 1); }

// "43±31": half the interval's width, where more than one sample gives it one.
std::string percent_with_width(const estimate& e) {
  if (!std::isfinite(e.mean)) return "-";
  const std::string mean = fmt::format("{:.0f}", e.mean * 100);
  return e.samples < 2 ? mean : fmt::format("{}±{:.0f}", mean, (e.high - e.low) * 50);
}

std::string with_interval(const estimate& e, double scale, int digits) {
  const std::string mean = number(e.mean * scale, digits);
  if (mean == "-" || e.samples < 2) return mean;
  return fmt::format("{} [{}, {}]", mean, number(e.low * scale, digits), number(e.high * scale, digits));
}

std::string removed_text(double removed) { return removed < 0 ? "own" : fmt::format("{:.4g} %", removed * 100); }

// Long policies by a number, and what it stands for.
class policy_labels {
 public:
  explicit policy_labels(const std::vector<std::string>& policies) {
    for (const std::string& policy : policies) {
      const std::string line = one_line(policy);
      if (shortened(line, longest) == line) {
        labels_[policy] = line;
      } else {
        notes_.push_back(line);
        labels_[policy] = fmt::format("{}... ({})", shortened(line, longest - 7), notes_.size());
      }
    }
  }

  [[nodiscard]] const std::string& of(const row_key& key) const { return labels_.at(key.policy); }
  [[nodiscard]] const std::vector<std::string>& notes() const { return notes_; }

 private:
  static constexpr std::size_t longest = 30;
  std::map<std::string, std::string> labels_;
  std::vector<std::string> notes_;
};

// One column: what it shows of a row.
struct column {
  std::string head;
  std::function<std::string(const summary_row&)> cell;
};

estimate score_of(const summary_row& row, const std::string& task, const std::string& score) {
  const auto figures = row.tasks.find(task);
  if (figures == row.tasks.end()) return {};
  const auto found = figures->second.scores.find(score);
  return found == figures->second.scores.end() ? estimate{} : found->second;
}

// A star where some samples have no result: of one of the tasks that `counts` names.
std::string starred(std::string cell, const summary_row& row, const std::function<bool(std::string_view)>& counts) {
  const bool some = cell != "-" && std::ranges::any_of(row.tasks, [&counts](const auto& task) {
                      return counts(task.first) && task.second.failed > 0;
                    });
  return some ? cell + '*' : cell;
}

column score_column(std::string head, const std::string& task, const std::string& score,
                    const std::function<std::string(const estimate&)>& text) {
  return {std::move(head), [=](const summary_row& row) {
            return starred(text(score_of(row, task, score)), row, [&task](std::string_view name) { return name == task; });
          }};
}

void add_costs(std::vector<column>& columns, cost_figures summary_row::*cost, bool tokens) {
  const auto add = [&](const char* head, double cost_figures::*figure, int digits, double scale = 1) {
    columns.push_back({head, [=](const summary_row& row) { return number((row.*cost).*figure * scale, digits); }});
  };
  if (tokens) add("kept tokens", &cost_figures::kept_tokens, 0);
  add("kept %", &cost_figures::kept_share, 1, 100);
  add("kept MB", &cost_figures::kept_mb, 2);
  add("compress ms", &cost_figures::compress_ms, 2);
  add("tokens/s", &cost_figures::decode_rate, 1);
}

class printer {
 public:
  printer(std::ostream& out, const summary& all, bool markdown, const std::string& against)
      : out_(out), all_(all), markdown_(markdown), against_(against), labels_(all.policies) {}

  void print_all() {
    facts();
    if (!against_.empty())
      note(fmt::format("Scores are differences from {} on the same prompts; a perplexity is how many times as high",
                       quoted(against_)));
    for (const std::size_t length : all_.lengths) {
      answers(length);
      pass_keys(length);
      writing(length);
      equality(length);
    }
    notes();
    failures();
  }

 private:
  // Words in markdown may hold what it takes for its own.
  [[nodiscard]] std::string quoted(std::string_view text) const {
    std::string line = one_line(text);
    if (!markdown_) return line;
    std::ranges::replace(line, '`', '\'');
    return '`' + line + '`';
  }

  void heading(std::string_view text) { out_ << (markdown_ ? "\n### " : "\n") << text << "\n\n"; }
  void note(std::string_view text) { out_ << (markdown_ ? "\n" : "") << text << '\n'; }

  void facts() {
    if (all_.runs.empty()) return;
    const run_info& run = all_.runs.back();
    note(fmt::format("Model {} ({}), cache {}; lagkv {}, llama.cpp {}; {}", quoted(run.model), quoted(run.model_name),
                     quoted(run.cache_type + (run.transposed ? ", values transposed" : "")), quoted(run.lagkv), quoted(run.llama),
                     quoted(run.machine)));
    note(fmt::format("Seed {}; the question is {} when the cache is compressed{}", run.seed,
                     run.question_seen ? "seen" : "not seen",
                     run.chunk > 0 ? fmt::format("; chunk by chunk of {} tokens", run.chunk) : ""));
  }

  // Rows of a length that have anything of these tasks, be it failures.
  void table(std::size_t length, const std::vector<std::string>& tasks, const std::vector<column>& columns) {
    text_table table{2, {"policy", "removed"}, {}};
    for (const column& c : columns) table.heads.push_back(c.head);
    for (const summary_row& row : all_.rows) {
      const bool has_any = std::ranges::any_of(tasks, [&row](const std::string& task) { return row.tasks.contains(task); });
      if (row.key.length != length || !has_any) continue;
      std::vector<std::string> cells{labels_.of(row.key), removed_text(row.key.removed)};
      for (const column& c : columns) cells.push_back(c.cell(row));
      table.rows.push_back(std::move(cells));
    }
    print(out_, table, markdown_);
  }

  [[nodiscard]] bool has(std::size_t length, const std::vector<std::string>& tasks) const {
    return std::ranges::any_of(all_.rows, [&](const summary_row& row) {
      return row.key.length == length &&
             std::ranges::any_of(tasks, [&row](const std::string& task) { return row.tasks.contains(task); });
    });
  }

  // "10 samples a task", or "3 to 10".
  [[nodiscard]] std::string sample_counts(std::size_t length, const std::vector<std::string>& tasks) const {
    std::set<std::size_t> counts;
    for (const summary_row& row : all_.rows)
      if (row.key.length == length)
        for (const auto& [task, figures] : row.tasks)
          if (std::ranges::find(tasks, task) != tasks.end()) counts.insert(figures.samples + figures.failed);
    if (counts.empty()) return "no samples";
    const std::string most = fmt::format("{} {} a task", *counts.rbegin(), *counts.rbegin() == 1 ? "sample" : "samples");
    return counts.size() == 1 ? most : fmt::format("{} to {}", *counts.begin(), most);
  }

  void answers(std::size_t length) {
    if (!has(length, all_.answer_tasks)) return;
    heading(fmt::format("Accuracy at {} tokens ({})", length, sample_counts(length, all_.answer_tasks)));
    std::vector<column> columns{
        {"RULER mean", [](const summary_row& row) { return starred(with_interval(row.ruler, 100, 1), row, in_ruler); }}};
    add_costs(columns, &summary_row::answers, true);
    columns.push_back({"first token %", [](const summary_row& row) { return percent(row.first_token.mean); }});
    table(length, all_.answer_tasks, columns);

    heading(fmt::format("Each task at {} tokens, of 100", length));
    columns.clear();
    std::string legend;
    for (const std::string& task : all_.answer_tasks) {
      const std::string brief = one_line(short_name(task));
      if (brief != task) legend += fmt::format("{}{} {}", legend.empty() ? "" : ", ", brief, task);
      columns.push_back(score_column(brief, task, "score", percent_with_width));
    }
    table(length, all_.answer_tasks, columns);
    if (!legend.empty()) note(markdown_ ? legend : wrapped(legend));
  }

  static std::string wrapped(std::string_view list) {
    std::string text;
    std::size_t width = 0;
    while (!list.empty()) {
      const std::size_t end = std::min(list.find(", "), list.size());
      if (width > 0 && width + 2 + end > most_columns) {
        text += ",\n";
        width = 0;
      } else if (width > 0) {
        text += ", ";
        width += 2;
      }
      text += list.substr(0, end);
      width += end;
      list.remove_prefix(std::min(end + 2, list.size()));
    }
    return text;
  }

  void pass_keys(std::size_t length) {
    const std::vector<std::string> task{"passkey64"};
    if (!has(length, task)) return;
    heading(fmt::format("Pass key of 64 digits at {} tokens, of 100; by depth: the partial score", length));
    const auto text = [](const estimate& e) { return with_interval(e, 100, 0); };
    std::vector<column> columns{score_column("exact", task.front(), "score", text),
                                score_column("partial", task.front(), "partial", text),
                                score_column("prefix", task.front(), "prefix", text)};
    std::set<double> depths;
    for (const depth_figures& d : all_.depths)
      if (d.key.length == length) depths.insert(d.depth);
    for (const double depth : depths)
      columns.push_back({fmt::format("@{:.4g}%", depth * 100), [this, depth](const summary_row& row) {
                           for (const depth_figures& d : all_.depths)
                             if (d.key == row.key && d.depth == depth)
                               if (const auto found = d.scores.find("partial"); found != d.scores.end())
                                 return number(found->second * 100, 0);
                           return std::string("-");
                         }});
    table(length, task, columns);
  }

  void writing(std::size_t length) {
    if (!has(length, all_.writing_tasks)) return;
    heading(fmt::format("Text at {} tokens ({})", length, sample_counts(length, all_.writing_tasks)));
    std::vector<column> columns;
    const auto perplexity = [](const estimate& e) {
      const std::string mean = number(std::exp(e.mean), 2);
      return mean == "-" || e.samples < 2 ? mean : fmt::format("{}±{:.2f}", mean, (std::exp(e.high) - std::exp(e.low)) / 2);
    };
    for (const std::string& task : all_.writing_tasks) {
      const bool written = task == "generation";
      const std::string of = written ? "tail " : task == "perplexity" ? "" : one_line(short_name(task)) + " ";
      columns.push_back(score_column(of + "perplexity", task, "nll", perplexity));
      columns.push_back(score_column(of + "KL", task, "kl", [](const estimate& e) { return number(e.mean, 3); }));
      columns.push_back(score_column((written ? "written " : of) + "same %", task, "same_token",
                                     [](const estimate& e) { return percent(e.mean); }));
      columns.push_back(score_column("agreed", task, "agreed", [](const estimate& e) { return number(e.mean, 1); }));
    }
    add_costs(columns, &summary_row::writing, false);
    table(length, all_.writing_tasks, columns);
  }

  void equality(std::size_t length) {
    const auto found = all_.equality.find(length);
    if (found == all_.equality.end() || found->second.unequal == 0) return;
    const equality_figures& kept = found->second;
    note(fmt::format(
        "{}In {} of {} prompts and shares the policies kept numbers of tokens that differ by more than 1 %, at most {} "
        "against {}",
        markdown_ ? "" : "\n", kept.unequal, kept.prompts, kept.least, kept.most));
  }

  void notes() {
    const auto answers = [this](auto&& wanted) { return std::ranges::any_of(all_.answer_tasks, wanted); };
    heading("How to read");
    const char* dash = markdown_ ? "- " : "";
    const auto line = [&](std::string_view text) { out_ << dash << text << '\n'; };
    line("removed: share of the context's tokens that was to go; own: the policy has a budget of its own");
    line("a±b: mean and half its 95 % bootstrap interval; a [b, c]: mean and the interval's ends");
    if (answers(in_ruler)) line("RULER mean: of the RULER tasks' means; only where the row has every RULER task of its length");
    if (!all_.answer_tasks.empty()) line("first token %: samples whose first token of the answer is the full cache's");
    if (!all_.writing_tasks.empty()) {
      line("KL: nats a token from the full cache's probabilities; same %: tokens whose most probable one is the full cache's");
      line("agreed: tokens written before the first that is not the full cache's; tail perplexity: of its text's second half");
    }
    line("kept: mean of a layer and head; MB: 10^6 bytes of keys and values; compress ms and tokens/s (decoding): medians");
    if (!all_.failures.empty()) line("-: no sample has a result; *: some have none, see below");
    for (std::size_t i = 0; i < labels_.notes().size(); ++i) line(fmt::format("({}): {}", i + 1, quoted(labels_.notes()[i])));
  }

  // One line for all tasks of a row that failed alike.
  void failures() {
    if (all_.failures.empty()) return;
    heading("Not available");
    std::vector<std::pair<const failure_note*, std::string>> lines;
    for (const failure_note& f : all_.failures) {
      const std::string task = fmt::format("{} ({} of {})", one_line(f.task), f.samples, f.of);
      const auto same = std::ranges::find_if(
          lines, [&f](const auto& line) { return line.first->key == f.key && line.first->reason == f.reason; });
      if (same == lines.end())
        lines.emplace_back(&f, task);
      else
        same->second += ", " + task;
    }
    for (const auto& [f, tasks] : lines)
      out_ << fmt::format("{}{}, {} removed, {} tokens: {}: samples of {}\n", markdown_ ? "- " : "", quoted(f->key.policy),
                          removed_text(f->key.removed), f->key.length, quoted(f->reason), tasks);
  }

  std::ostream& out_;
  const summary& all_;
  bool markdown_;
  const std::string& against_;
  policy_labels labels_;
};

}  // namespace

void print_tables(std::ostream& out, const summary& all, bool markdown, const std::string& against) {
  if (all.rows.empty()) {
    out << "no samples\n";
    return;
  }
  printer(out, all, markdown, against).print_all();
}

}  // namespace eval
