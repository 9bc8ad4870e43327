#include "query_file.hpp"

#include <cmath>
#include <cstddef>
#include <span>
#include <stdexcept>
#include <string>

#include "tools/npy.hpp"

namespace host {

void write_queries(const std::string& path, const std::vector<lagkv::query_statistics>& layers) {
  const lagkv::query_statistics of_none, &first = layers.empty() ? of_none : layers[0];
  const std::size_t channels = first.channels, rank = first.rank();
  std::vector<float> all;
  for (const lagkv::query_statistics& s : layers)
    for (std::size_t head = 0; head < s.heads; ++head) {
      const auto mean = std::span(s.mean).subspan(head * channels, channels);
      const auto factors = std::span(s.factors).subspan(head * rank * channels, rank * channels);
      all.insert(all.end(), mean.begin(), mean.end());
      all.insert(all.end(), factors.begin(), factors.end());
    }
  const lagkv::status written = npy::save(path, "<f4", {layers.size(), first.heads, 1 + rank, channels}, all);
  if (!written) throw std::runtime_error(written.message());
}

std::vector<lagkv::query_statistics> read_queries(const std::string& path) {
  const auto read = npy::load(path);
  if (!read) throw std::invalid_argument(read.message());
  const std::vector<std::size_t>& shape = read->shape;
  if (read->type != "<f4" || shape.size() != 4 || read->size() == 0)
    throw std::invalid_argument(path +
                                ": must be float32 [layers, query heads, 1 + rank, channels], as lagkv-eval calibrate writes");
  const std::size_t heads = shape[1], rank = shape[2] - 1, channels = shape[3];
  std::vector<lagkv::query_statistics> layers(shape[0]);
  const std::span<const float> numbers = read->as<float>();
  for (std::size_t i = 0; i < numbers.size(); ++i)
    if (!std::isfinite(numbers[i]))
      throw std::invalid_argument(path + ": number " + std::to_string(i) + " of layer " +
                                  std::to_string(i / (numbers.size() / shape[0])) + " is not finite");
  const float* from = numbers.data();
  for (lagkv::query_statistics& s : layers) {
    s.heads = heads, s.channels = channels;
    for (std::size_t head = 0; head < heads; ++head, from += (1 + rank) * channels) {
      s.mean.insert(s.mean.end(), from, from + channels);
      s.factors.insert(s.factors.end(), from + channels, from + (1 + rank) * channels);
    }
  }
  return layers;
}

}  // namespace host
