// What has been counted of a model, once, in a safetensors file.
#pragma once

#include <map>
#include <string>
#include <vector>

#include <lagkv/attention/importance.hpp>
#include <lagkv/attention/query_statistics.hpp>

namespace host {

/// Each list has an entry a layer with full attention, or none.
struct calibration {
  std::string model;                               ///< what it was made for, as model::signature() has it
  std::vector<lagkv::query_statistics> queries{};  ///< mean and factors, before RoPE
  std::vector<lagkv::importance_map> importance{};
  /// Of each head a sample of its rows' importance, all of one length, descending: head_budgets() reads it.
  std::vector<std::vector<std::vector<float>>> head_importance{};
};

/// Tensors of F32: "queries" [layers, query heads, 1 + rank, channels], the mean, then the factors; "importance" [layers, heads,
/// channels of keys and values + 1]; "head_importance" [layers, heads, sample]; model and version of the format are in the
/// metadata. Throws std::runtime_error where the file cannot be written.
void write_calibration(const std::string& path, const calibration& c);

/// Throws std::invalid_argument where the file is no such file, was made for another model than `model`, or holds a number that
/// is not finite.
[[nodiscard]] calibration read_calibration(const std::string& path, const std::string& model);

/// The numbers of each tensor of the file, by its name; they say whether two files hold the same. Throws std::invalid_argument
/// where it is no such file, or holds a number that is not finite.
[[nodiscard]] std::map<std::string, std::vector<float>> calibration_numbers(const std::string& path);

}  // namespace host
