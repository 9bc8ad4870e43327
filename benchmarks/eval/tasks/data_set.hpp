// Question answering data sets: files of the user, cut in questions and documents.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace eval {

/// Questions about documents. Indices count `documents`.
struct data_set {
  struct question {
    std::string text;
    std::vector<std::string> answers;  ///< any of them is right; distinct
    std::vector<std::size_t> golden;   ///< documents that must be in the prompt
    std::vector<std::size_t> near;     ///< distractors that come first: of the same article
    std::vector<std::size_t> needles;  ///< those of the golden that the answer stands in; may be empty
  };
  std::vector<std::string> documents;  ///< distinct, as they first appear
  std::vector<question> questions;     ///< in the file's order; those without an answer are left out
};

/// From the text of a file in the form of SQuAD v2.0 (v1.1 does as well): {"data": [{"paragraphs": [{"context", "qas"}]}]}.
/// Throws std::invalid_argument for other files, saying what is wrong with it, and for one without a question.
[[nodiscard]] data_set parse_squad(const std::string& content);

/// The same from HotpotQA's distractor setting: [{"question", "answer", "context": [[title, [sentences]]]}]. Its documents are
/// title, '\n', sentences; the ten of a question are all golden, its "supporting_facts" name the needles.
[[nodiscard]] data_set parse_hotpotqa(const std::string& content);

}  // namespace eval
