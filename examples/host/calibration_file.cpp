#include "calibration_file.hpp"

#include <nlohmann/json.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <span>
#include <stdexcept>
#include <system_error>
#include <utility>

namespace host {
namespace {

using nlohmann::json;

constexpr const char* format = "lagkv-calibration";
constexpr const char* version = "1";
constexpr std::size_t most_header = 1 << 20, most_bytes = std::size_t{1} << 30;

struct tensor {
  const char* name;
  std::size_t rank;
};
constexpr tensor queries{"queries", 4}, importance{"importance", 3}, head_importance{"head_importance", 3};
constexpr tensor tensors[] = {queries, importance, head_importance};

/// A tensor of F32 in a file that was read.
struct array {
  std::vector<std::size_t> shape;
  std::vector<float> numbers;
};

class reader {
 public:
  explicit reader(const std::string& path) : path_(path) {
    std::error_code failure;
    if (!std::filesystem::is_regular_file(path, failure)) fail("is no file");  // a pipe would be waited for
    const auto size = std::filesystem::file_size(path, failure);
    if (failure || size < 8 || size > most_bytes) fail("is not a safetensors file");
    std::ifstream in(path, std::ios::binary);
    unsigned char start[8] = {};
    in.read(reinterpret_cast<char*>(start), 8);
    std::uint64_t length = 0;
    for (int i = 7; i >= 0; --i) length = length << 8 | start[i];
    if (!in || length > most_header || length > size - 8) fail("is not a safetensors file");
    std::string header(static_cast<std::size_t>(length), ' ');
    in.read(header.data(), static_cast<std::streamsize>(header.size()));
    data_.resize(static_cast<std::size_t>(size) - 8 - header.size());
    in.read(reinterpret_cast<char*>(data_.data()), static_cast<std::streamsize>(data_.size()));
    if (!in) fail("cannot be read");
    header_ = json::parse(header, nullptr, false);
    if (!header_.is_object()) fail("is not a safetensors file");
    if (metadata("format") != format) fail("is no calibration of lagkv's");
    if (metadata("version") != version) fail("has version " + metadata("version").substr(0, 20) + ": must be " + version);
  }

  [[noreturn]] void fail(const std::string& why) const { throw std::invalid_argument(path_ + ": " + why); }

  [[nodiscard]] std::string metadata(const char* key) const {
    const auto all = header_.find("__metadata__");
    if (all == header_.end() || !all->is_object()) return {};
    const auto found = all->find(key);
    return found != all->end() && found->is_string() ? found->get<std::string>() : std::string{};
  }

  /// Empty where the file has none of this name.
  [[nodiscard]] array get(const char* name, std::size_t rank) const {
    const auto found = header_.find(name);
    if (found == header_.end()) return {};
    const auto wrong = [&] {
      fail(std::string(name) + ": must be F32 of " + std::to_string(rank) + " dimensions, each 1 or more");
    };
    array out;
    if (!found->is_object() || found->value("dtype", json()) != "F32") wrong();
    std::size_t bytes = 4;
    const json shape = found->value("shape", json()), at = found->value("data_offsets", json());
    if (!shape.is_array() || shape.size() != rank) wrong();
    for (const json& n : shape) {
      if (!n.is_number_unsigned() || n.get<std::uint64_t>() == 0 || n.get<std::uint64_t>() > data_.size() / bytes) wrong();
      out.shape.push_back(n.get<std::size_t>());
      bytes *= out.shape.back();
    }
    if (!at.is_array() || at.size() != 2 || !at[0].is_number_unsigned() || !at[1].is_number_unsigned()) wrong();
    const auto begin = at[0].get<std::uint64_t>(), end = at[1].get<std::uint64_t>();
    if (begin > end || end > data_.size() || end - begin != bytes) fail(std::string(name) + ": its numbers are not in the file");
    out.numbers.resize(bytes / 4);
    std::memcpy(out.numbers.data(), data_.data() + begin, bytes);
    const std::size_t of_layer = out.numbers.size() / out.shape[0];
    for (std::size_t i = 0; i < out.numbers.size(); ++i)
      if (!std::isfinite(out.numbers[i]))
        fail(std::string(name) + ": number " + std::to_string(i % of_layer) + " of layer " + std::to_string(i / of_layer) +
             " is not finite");
    return out;
  }

 private:
  std::string path_;
  json header_;
  std::vector<std::byte> data_;
};

void append(std::vector<float>& to, std::span<const float> more) { to.insert(to.end(), more.begin(), more.end()); }

}  // namespace

void write_calibration(const std::string& path, const calibration& c) {
  json header = {{"__metadata__", {{"format", format}, {"version", version}, {"model", c.model}}}};
  std::vector<float> numbers;
  const auto add = [&](const char* name, const std::vector<std::size_t>& shape, std::size_t before) {
    header[name] = {{"dtype", "F32"}, {"shape", shape}, {"data_offsets", {4 * before, 4 * numbers.size()}}};
  };
  if (!c.queries.empty()) {
    const lagkv::query_statistics& first = c.queries[0];
    const std::size_t channels = first.channels, rank = first.rank();
    for (const lagkv::query_statistics& s : c.queries)
      for (std::size_t head = 0; head < s.heads; ++head) {
        append(numbers, std::span(s.mean).subspan(head * channels, channels));
        append(numbers, std::span(s.factors).subspan(head * rank * channels, rank * channels));
      }
    add(queries.name, {c.queries.size(), first.heads, 1 + rank, channels}, 0);
  }
  if (!c.importance.empty()) {
    const std::size_t before = numbers.size();
    for (const lagkv::importance_map& m : c.importance) append(numbers, m.weights);
    add(importance.name, {c.importance.size(), c.importance[0].heads, c.importance[0].width()}, before);
    header["__metadata__"]["key_channels"] = std::to_string(c.importance[0].key_channels);
  }
  if (!c.head_importance.empty()) {
    const std::size_t before = numbers.size();
    for (const auto& heads : c.head_importance)
      for (const std::vector<float>& sample : heads) append(numbers, sample);
    add(head_importance.name, {c.head_importance.size(), c.head_importance[0].size(), c.head_importance[0][0].size()}, before);
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::ofstream out(path, std::ios::binary);
  for (std::uint64_t n = text.size(), i = 0; i < 8; ++i) out.put(static_cast<char>(n >> (8 * i)));
  out << text;
  out.write(reinterpret_cast<const char*>(numbers.data()), static_cast<std::streamsize>(4 * numbers.size()));
  out.close();
  if (!out) throw std::runtime_error(path + ": cannot be written");
}

std::map<std::string, std::vector<float>> calibration_numbers(const std::string& path) {
  const reader file(path);
  std::map<std::string, std::vector<float>> made;
  for (const auto& [name, rank] : tensors)
    if (array a = file.get(name, rank); !a.shape.empty()) made[name] = std::move(a.numbers);
  return made;
}

calibration read_calibration(const std::string& path, const std::string& model) {
  const reader file(path);
  calibration c{.model = file.metadata("model")};
  if (c.model != model) file.fail("was made for " + c.model.substr(0, 200) + ", not for " + model);
  if (const array a = file.get(queries.name, queries.rank); !a.shape.empty()) {
    const std::size_t heads = a.shape[1], rank = a.shape[2] - 1, channels = a.shape[3];
    const float* from = a.numbers.data();
    for (std::size_t i = 0; i < a.shape[0]; ++i) {
      lagkv::query_statistics& s = c.queries.emplace_back();
      s.heads = heads, s.channels = channels;
      for (std::size_t head = 0; head < heads; ++head, from += (1 + rank) * channels) {
        append(s.mean, {from, channels});
        append(s.factors, {from + channels, rank * channels});
      }
    }
  }
  if (const array a = file.get(importance.name, importance.rank); !a.shape.empty()) {
    const std::size_t heads = a.shape[1], width = a.shape[2];
    const std::string keys = file.metadata("key_channels");
    std::size_t key_channels = 0;
    for (const char digit : keys.substr(0, 9))
      if (digit >= '0' && digit <= '9') key_channels = 10 * key_channels + static_cast<std::size_t>(digit - '0');
    if (key_channels == 0 || key_channels >= width)
      file.fail("key_channels=" + keys.substr(0, 20) + ": must be from 1 to " + std::to_string(width - 1));
    for (std::size_t i = 0; i < a.shape[0]; ++i)
      c.importance.push_back({heads,
                              key_channels,
                              width - 1 - key_channels,
                              {a.numbers.begin() + static_cast<std::ptrdiff_t>(i * heads * width),
                               a.numbers.begin() + static_cast<std::ptrdiff_t>((i + 1) * heads * width)}});
  }
  if (const array a = file.get(head_importance.name, head_importance.rank); !a.shape.empty()) {
    const float* from = a.numbers.data();
    for (std::size_t i = 0; i < a.shape[0]; ++i) {
      auto& heads = c.head_importance.emplace_back();
      for (std::size_t head = 0; head < a.shape[1]; ++head, from += a.shape[2]) heads.emplace_back(from, from + a.shape[2]);
    }
  }
  if (c.queries.empty() && c.importance.empty() && c.head_importance.empty()) file.fail("holds neither queries nor importance");
  return c;
}

}  // namespace host
