// What the queries of a model usually are, in a file that NumPy reads.
#pragma once

#include <string>
#include <vector>

#include <lagkv/attention/query_statistics.hpp>

namespace host {

/// One array of f32, [layers][query heads][1 + rank][channels]: the mean, then the factors. Throws std::runtime_error
/// where the file cannot be written.
void write_queries(const std::string& path, const std::vector<lagkv::query_statistics>& layers);

/// Throws std::invalid_argument where the file is no such array, or holds a number that is not finite.
[[nodiscard]] std::vector<lagkv::query_statistics> read_queries(const std::string& path);

}  // namespace host
