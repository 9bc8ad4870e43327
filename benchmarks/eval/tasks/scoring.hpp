// What an answer is worth.
#pragma once

#include "tasks/task.hpp"

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace eval {

/// Whether the text contains the part; ASCII letters count as equal in both cases. An empty part is in every text.
[[nodiscard]] bool contains(std::string_view text, std::string_view part);

/// The length of the longest run of bytes that stands in both. Takes |a| * |b| steps.
[[nodiscard]] std::size_t longest_common_substring(std::string_view a, std::string_view b);

/// `score`: the share of the references that the answer contains.
[[nodiscard]] scores share_contained(std::string_view answer, const prompt& asked);

/// `score`: 1 where the answer contains one of the references.
[[nodiscard]] scores any_contained(std::string_view answer, const prompt& asked);

/// For the one reference, a text. `score`: the share of its words that the answer's first words, as many, have in the same order
/// (longest common subsequence). `prefix`: the share before the first that differs. A word is a run of letters, digits and
/// apostrophes; ASCII letters count as equal in both cases. Takes |reference|^2 steps. Unlike prose of one book has a score of
/// about 0.09, a prefix of about 0.01.
[[nodiscard]] scores words_recalled(std::string_view answer, const prompt& asked);

/// The words of a text that say what it is about, in lower case, each once: runs of letters, digits and apostrophes, without
/// articles, pronouns, prepositions, conjunctions and the forms of to be, to have, to do and their like.
[[nodiscard]] std::vector<std::string> content_words(std::string_view text);

/// For the one reference, a summary. `score`: ROUGE-1 recall (Lin, "ROUGE: A Package for Automatic Evaluation of Summaries",
/// 2004) by content words, each counted once, without those that question and answer_begins give: the share of the reference's
/// that the answer has. The task's new_tokens limit the answer, as recall needs.
[[nodiscard]] scores gist_recalled(std::string_view answer, const prompt& asked);

/// Names in code, in their order: runs of letters, digits and underscores that do not begin with a digit, without C++'s keywords,
/// `std` and `size_t`, which stand in most lines.
[[nodiscard]] std::vector<std::string_view> names_in_code(std::string_view text);

/// For the one reference, a part of a line of code. `score`: the share of its names that the answer's first names, as many, have
/// in the same order (longest common subsequence). `edit`: the edit similarity of LongBench's code tasks (arXiv 2308.14508), 2 M
/// / T for M bytes of the longest common subsequence and T bytes of both, to the answer's beginning of the reference's length.
/// Only the answer's first line that is not empty counts. Another function's parameters have a score of about 0.09, but an `edit`
/// of about 0.45.
[[nodiscard]] scores code_recalled(std::string_view answer, const prompt& asked);

/// For the one reference, a key of digits. `score`: 1 where the answer contains it. `partial`: their longest common substring
/// over the key's length. `prefix`: the share of the key's digits that the answer gives, from its first digit on, before the
/// first mistake.
[[nodiscard]] scores key_recalled(std::string_view answer, const prompt& asked);

}  // namespace eval
