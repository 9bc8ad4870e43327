#include "query_file.hpp"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <span>
#include <stdexcept>

#include "npy.hpp"

namespace host {

void write_queries(const std::string& path, const std::vector<lagkv::query_statistics>& layers) {
  const std::size_t heads = layers.empty() ? 0 : layers[0].heads, channels = layers.empty() ? 0 : layers[0].channels;
  std::vector<float> all;
  for (const lagkv::query_statistics& s : layers)
    for (std::size_t head = 0; head < heads; ++head) {
      const auto mean = std::span(s.mean).subspan(head * channels, channels);
      const auto covariance = std::span(s.covariance).subspan(head * channels * channels, channels * channels);
      all.insert(all.end(), mean.begin(), mean.end());
      all.insert(all.end(), covariance.begin(), covariance.end());
    }
  const lagkv::status written = npy::save(path, "<f4", {layers.size(), heads, 1 + channels, channels}, all);
  if (!written) throw std::runtime_error(written.message());
}

std::vector<lagkv::query_statistics> read_queries(const std::string& path) {
  const auto read = npy::load(path);
  if (!read) throw std::invalid_argument(read.message());
  const std::vector<std::size_t>& shape = read->shape;
  if (read->type != "<f4" || shape.size() != 4 || shape[2] != 1 + shape[3] || read->size() == 0)
    throw std::invalid_argument(
        path + ": must be float32 [layers, query heads, 1 + channels, channels], as lagkv-eval calibrate writes");
  const std::size_t heads = shape[1], channels = shape[3];
  std::vector<lagkv::query_statistics> layers(shape[0]);
  const float* from = read->as<float>().data();
  for (lagkv::query_statistics& s : layers) {
    s.heads = heads, s.channels = channels;
    for (std::size_t head = 0; head < heads; ++head, from += (1 + channels) * channels) {
      s.mean.insert(s.mean.end(), from, from + channels);
      s.covariance.insert(s.covariance.end(), from + channels, from + (1 + channels) * channels);
    }
  }
  return layers;
}

}  // namespace host
