// What an answer is worth.
#pragma once

#include "tasks/task.hpp"

#include <cstddef>
#include <string_view>

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

/// For the one reference, a key of digits. `score`: 1 where the answer contains it. `partial`: their longest common substring
/// over the key's length. `prefix`: the share of the key's digits that the answer gives, from its first digit on, before the
/// first mistake.
[[nodiscard]] scores key_recalled(std::string_view answer, const prompt& asked);

}  // namespace eval
