#include "saved.hpp"

#include <lagkv/adapters/llama/saved_recording.hpp>
#include <lagkv/cache/cursor.hpp>

#include <array>
#include <cstring>
#include <fstream>
#include <span>
#include <stdexcept>
#include <utility>

namespace chat {

namespace {

constexpr std::array<char, 8> magic = {'l', 'a', 'g', 'k', 'v', 'c', 'h', '3'};
constexpr std::uint64_t most_bytes = std::uint64_t{1} << 40;

template <class T>
void put(std::ostream& file, const T* data, std::size_t n) {
  file.write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(n * sizeof(T)));
}
void put_count(std::ostream& file, std::uint64_t n) { put(file, &n, 1); }

template <class T>
void put_list(std::ostream& file, const std::vector<T>& all) {
  put_count(file, all.size());
  put(file, all.data(), all.size());
}

template <class T>
void put_lists(std::ostream& file, const std::vector<std::vector<T>>& all) {
  put_count(file, all.size());
  for (const std::vector<T>& layer : all) put_list(file, layer);
}

template <class T>
void take(std::istream& file, T* data, std::size_t n, const std::string& path) {
  if (!file.read(reinterpret_cast<char*>(data), static_cast<std::streamsize>(n * sizeof(T))))
    throw std::runtime_error(path + ": ends too early");
}

/// At most as many elements as the rest of the file has.
template <class T>
std::vector<T> take_list(std::istream& file, const std::string& path) {
  std::uint64_t n = 0;
  take(file, &n, 1, path);
  const auto here = file.tellg();
  file.seekg(0, std::ios::end);
  const auto left = static_cast<std::uint64_t>(file.tellg() - here);
  file.seekg(here);
  if (n > most_bytes || n * sizeof(T) > left) throw std::runtime_error(path + ": ends too early");
  std::vector<T> all(static_cast<std::size_t>(n));
  take(file, all.data(), all.size(), path);
  return all;
}

/// A list a layer.
template <class T>
std::vector<std::vector<T>> take_lists(std::istream& file, const std::string& path) {
  std::uint64_t layers = 0;
  take(file, &layers, 1, path);
  if (layers > 4096) throw std::runtime_error(path + ": has " + std::to_string(layers) + " layers: must be at most 4096");
  std::vector<std::vector<T>> all;
  for (std::uint64_t i = 0; i < layers; ++i) all.push_back(take_list<T>(file, path));
  return all;
}

}  // namespace

void write(const std::string& path, const saved_chat& s) {
  std::ofstream file(path, std::ios::binary);
  const lagkv::saved_cursor cursor = lagkv::save(s.beside.at);
  put(file, magic.data(), magic.size());
  put(file, cursor.data(), cursor.size());
  put_count(file, s.beside.counted);
  put_lists(file, s.beside.key_statistics);
  put_list(file, s.beside.moved.cells);
  put_lists(file, s.beside.moved.positions);
  put_list(file, lagkv::llama::save(s.beside.recorded));
  put_list(file, s.state);
  if (!file.flush()) throw std::runtime_error(path + ": could not be written");
}

saved_chat read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path + ": cannot be read");
  std::array<char, 8> found{};
  lagkv::saved_cursor cursor{};
  if (!file.read(found.data(), found.size()) || found != magic) throw std::runtime_error(path + ": is no saved chat");
  take(file, cursor.data(), cursor.size(), path);
  saved_chat s;
  const auto at = lagkv::load_cursor(cursor);
  if (!at) throw std::runtime_error(path + ": " + at.message());
  s.beside.at = *at;
  std::uint64_t counted = 0;
  take(file, &counted, 1, path);
  s.beside.counted = static_cast<std::size_t>(counted);
  s.beside.key_statistics = take_lists<double>(file, path);
  s.beside.moved.cells = take_list<llama_pos>(file, path);
  s.beside.moved.positions = take_lists<std::uint32_t>(file, path);
  auto recorded = lagkv::llama::load_recording(take_list<std::uint8_t>(file, path));
  if (!recorded) throw std::runtime_error(path + ": " + recorded.message());
  s.beside.recorded = std::move(*recorded);
  s.state = take_list<std::uint8_t>(file, path);
  return s;
}

}  // namespace chat
