// Part of lagkv (MIT). Reads and writes the state of one sequence as llama_state_seq_get_data gives it: the public way to
// any cache, on any backend. The layout is that of llama_kv_cache::state_write; what does not parse to its last byte is
// refused. Models with window layers or recurrent ones write those after the first cache: they are left as they are.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <ggml.h>
#include <llama.h>

#include <lagkv/adapters/llama/views.hpp>
#include <lagkv/plan/plan.hpp>
#include <lagkv/result.hpp>
#include <lagkv/view/dtype.hpp>

namespace lagkv::inline LAGKV_ABI::llama {

/// Bytes at the beginning of every state, before its caches: a number of llama.cpp's, and the sequence. Until 2025 there were
/// none.
inline constexpr std::size_t state_header = 8;

/// Bytes that a state has of each cell beside its rows: position, number of sequences, sequence.
inline constexpr std::size_t state_cell = 12;

/// The cache of the layers with full attention in a parsed state. It views the bytes that it was parsed from.
class saved_sequence {
 public:
  /// What follows the first cache, if it is not the end: so many bytes; `unknown_rest`: any number.
  static constexpr std::size_t unknown_rest = ~std::size_t{0};

  static result<saved_sequence> parse(std::span<std::uint8_t> bytes, std::size_t rest = 0) {
    saved_sequence s;
    s.bytes_ = bytes, s.rest_ = rest;
    if (status ok = s.read(); !ok) return error{"state: " + ok.message()};
    return s;
  }

  /// Bytes before the caches of a state: state_header, or 0 in the older form, which begins with the number of streams.
  static std::size_t header_of(std::span<const std::uint8_t> bytes) {
    std::uint32_t first = 0;
    if (bytes.size() >= sizeof first) std::memcpy(&first, bytes.data(), sizeof first);
    return first <= most_streams ? 0 : state_header;
  }

  /// Bytes that models with positions of several sections add to what a state says of a cell.
  std::size_t added_to_cell() const { return added_; }

  std::size_t tokens() const { return cells_.size(); }
  std::size_t layers() const { return keys_.size(); }
  bool has_values() const { return !values_.empty(); }
  const matrix& keys(std::size_t layer) const { return keys_[layer]; }
  const matrix& values(std::size_t layer) const { return values_[layer]; }

  std::vector<cached_layer> all_layers() const {
    std::vector<cached_layer> all(layers());
    for (std::size_t i = 0; i < all.size(); ++i)
      all[i] = {.id = static_cast<int>(i), .keys = keys_[i], .values = has_values() ? values_[i] : matrix{}};
    return all;
  }

  /// Cells in the order of their tokens: row i of a view is cell cells()[i] of the state.
  std::span<const std::int32_t> cells() const { return cells_; }
  /// Position of each row, ascending.
  std::span<const llama_pos> positions() const { return positions_; }

  /// Bytes of keys and values of all layers.
  std::size_t payload_bytes() const {
    std::size_t n = 0;
    for (const auto* side : {&keys_, &values_})
      for (const matrix& m : *side) n += row_bytes(m) * tokens();
    return n;
  }

  /// The state with the rows that `plans` (one a layer, all of one size) keep, in the order of tokens. Row r gets the
  /// position that its cell has when rows are moved to the window in place, so that both ways give the same bytes.
  std::vector<std::uint8_t> rebuilt(std::span<const plan> plans) const {
    const plan& first = plans[0];
    const std::size_t before = tokens(), after = first.tokens_after(), dropped = before - after;
    std::vector<std::uint8_t> out;
    out.reserve(bytes_.size() - dropped * (cell_bytes() + payload_bytes() / before));
    const auto put = [&](const void* data, std::size_t n) {
      const auto* p = static_cast<const std::uint8_t*>(data);
      out.insert(out.end(), p, p + n);
    };
    const auto put32 = [&](std::uint32_t x) { put(&x, sizeof x); };
    put(bytes_.data(), count_at_);
    put32(static_cast<std::uint32_t>(after));
    for (std::size_t row = 0; row < after; ++row) {
      const std::size_t source = row < first.candidates.begin ? row : row + dropped;
      put(bytes_.data() + cells_at_ + static_cast<std::size_t>(cells_[source]) * cell_bytes(), cell_bytes());
    }
    put32(transposed_ ? 1 : 0);
    put32(static_cast<std::uint32_t>(layers()));
    for (const auto* side : {&keys_, &values_})
      for (std::size_t l = 0; l < side->size(); ++l) {
        const matrix& m = (*side)[l];
        const auto* data = static_cast<const std::uint8_t*>(m.data);
        put(data - header_bytes, header_bytes);
        gather(m, plans[l], after, out);
      }
    put(bytes_.data() + end_, bytes_.size() - end_);  // the counts of other, empty streams; other caches
    return out;
  }

 private:
  static constexpr std::size_t header_bytes = 12;  // before each layer's keys or values
  static constexpr std::uint32_t most_streams = 1024;

  /// Position, number of sequences, what models with positions of several sections add, sequence.
  std::size_t cell_bytes() const { return state_cell + added_; }

  /// Appends the kept rows of one layer. Heads keep different rows: each head's part is taken from its own source.
  void gather(const matrix& m, const plan& p, std::size_t after, std::vector<std::uint8_t>& out) const {
    // In units: elements, or blocks of a quantised type.
    const auto block = static_cast<std::size_t>(ggml_blck_size(m.type));
    const std::size_t unit = ggml_type_size(m.type), width = m.width / block, heads = p.heads(), part = width / heads;
    const std::size_t start = out.size();
    out.resize(start + after * width * unit);
    std::uint8_t* to = out.data() + start;
    const auto* from = static_cast<const std::uint8_t*>(m.data);
    for (std::size_t head = 0; head < heads; ++head)
      for (std::size_t row = 0; row < after; ++row) {
        const auto cell = static_cast<std::size_t>(cells_[p.source(head, row)]);
        if (!m.transposed) {
          std::memcpy(to + (row * width + head * part) * unit, from + (cell * width + head * part) * unit, part * unit);
        } else {
          for (std::size_t c = head * part; c < (head + 1) * part; ++c)
            std::memcpy(to + (c * after + row) * unit, from + (c * m.pitch + cell) * unit, unit);
        }
      }
  }

  status read() {
    std::uint32_t streams = 0;
    if (header_of(bytes_) > 0) {
      std::uint32_t magic = 0;  // private to llama.cpp, so not compared
      if (!take(magic) || !take(sequence_)) return ended();
    } else {
      older_ = true;
    }
    if (!take(streams)) return ended();
    if (streams == 0 || streams > most_streams) return unknown("streams=" + std::to_string(streams));
    std::uint32_t count = 0;
    std::uint32_t stream = 0;
    for (; stream < streams && count == 0; ++stream) {
      count_at_ = at_;
      if (!take(count)) return ended();
    }
    if (count == 0) return error{"holds no tokens"};
    cells_at_ = at_;
    // The forms differ in what they add to a cell and in whether there are values; only one of them fits to the end.
    status first = unknown("cells");
    for (const std::size_t added : {0U, 8U, 12U})
      for (const bool values : {true, false}) {
        at_ = cells_at_, added_ = added;
        cells_.clear(), positions_.clear(), keys_.clear(), values_.clear();
        status ok = read_section(count, stream, streams, values);
        if (ok) return ok;
        if (added == 0 && values) first = std::move(ok);  // what nearly all states are: its complaint is the one to read
      }
    return first;
  }

  status read_section(std::uint32_t count, std::uint32_t stream, std::uint32_t streams, bool values) {
    if (status ok = read_cells(count); !ok) return ok;
    if (status ok = read_layers(count, values); !ok) return ok;
    end_ = at_;
    for (; stream < streams; ++stream) {
      std::uint32_t other = 0;
      if (!take(other)) return ended();
      if (other != 0) return error{"holds tokens in more than one stream"};
    }
    const std::size_t left = bytes_.size() - at_;
    if (rest_ != unknown_rest && left != rest_)
      return unknown(std::to_string(left) + " bytes follow the cache: must be " + std::to_string(rest_));
    return {};
  }

  status read_cells(std::uint32_t count) {
    if (count > (bytes_.size() - at_) / cell_bytes()) return ended();
    std::vector<llama_pos> position(count);
    for (std::uint32_t i = 0; i < count; ++i) {
      const std::string which = "cell " + std::to_string(i);
      std::uint32_t sequences = 0;
      llama_seq_id sequence = 0;
      take(position[i]), take(sequences);
      at_ += added_;
      take(sequence);
      if (sequences != 1) return unknown(which + " belongs to " + std::to_string(sequences) + " sequences");
      if (i == 0 && older_) sequence_ = sequence;
      if (sequence != sequence_) return unknown(which + " is of sequence " + std::to_string(sequence));
      if (position[i] < 0 || position[i] == (std::numeric_limits<llama_pos>::max)())
        return error{which + " has position " + std::to_string(position[i]) + ": must be from 0 to 2147483646"};
    }
    cells_.resize(count);
    for (std::uint32_t i = 0; i < count; ++i) cells_[i] = static_cast<std::int32_t>(i);
    std::stable_sort(cells_.begin(), cells_.end(), [&](std::int32_t a, std::int32_t b) {
      return position[static_cast<std::size_t>(a)] < position[static_cast<std::size_t>(b)];
    });
    positions_.resize(count);
    for (std::uint32_t i = 0; i < count; ++i) positions_[i] = position[static_cast<std::size_t>(cells_[i])];
    return {};
  }

  status read_layers(std::uint32_t count, bool has_values) {
    std::uint32_t transposed = 0, layers = 0;
    if (!take(transposed) || !take(layers)) return ended();
    if (layers == 0 && transposed <= 1) return error{"has no layer with full attention"};
    if (transposed > 1 || layers > 4096) return unknown("layers=" + std::to_string(layers));
    transposed_ = transposed == 1;
    for (std::uint32_t l = 0; l < layers; ++l)
      if (status ok = read_rows(count, keys_); !ok) return error{"keys of layer " + std::to_string(l) + ": " + ok.message()};
    for (std::uint32_t l = 0; l < layers && has_values; ++l) {
      const status ok = transposed_ ? read_columns(count) : read_rows(count, values_);
      if (!ok) return error{"values of layer " + std::to_string(l) + ": " + ok.message()};
    }
    return {};
  }

  status read_rows(std::uint32_t count, std::vector<matrix>& side) {
    std::int32_t type = 0;
    std::uint64_t row = 0;
    if (!take(type) || !take(row)) return ended();
    matrix m;
    if (status ok = read_type(type, m); !ok) return ok;
    if (row > bytes_.size()) return ended();
    if (row == 0 || row % ggml_type_size(m.type) != 0) return unknown("rows of " + std::to_string(row) + " bytes");
    m.width = m.pitch = row / ggml_type_size(m.type) * static_cast<std::size_t>(ggml_blck_size(m.type));
    return read_data(m, row, count, side);
  }

  status read_columns(std::uint32_t count) {
    std::int32_t type = 0;
    std::uint32_t element = 0, width = 0;
    if (!take(type) || !take(element) || !take(width)) return ended();
    matrix m;
    if (status ok = read_type(type, m); !ok) return ok;
    if (ggml_is_quantized(m.type))
      return error{std::string("transposed blocks of ") + ggml_type_name(m.type) + " cannot move alone"};
    if (element != ggml_type_size(m.type) || width == 0) return unknown("elements of " + std::to_string(element) + " bytes");
    m.width = width, m.pitch = count, m.transposed = true;
    return read_data(m, std::size_t{element} * width, count, values_);
  }

  static status read_type(std::int32_t type, matrix& m) {
    if (type < 0 || type >= GGML_TYPE_COUNT) return unknown("type " + std::to_string(type));
    m.type = static_cast<ggml_type>(type);
    const result<dtype> known = dtype_of_ggml(m.type);
    return known ? status{} : status(error{"cache: " + known.message()});
  }

  status read_data(matrix m, std::size_t row, std::uint32_t count, std::vector<matrix>& side) {
    if (row > (bytes_.size() - at_) / count) return ended();
    m.data = bytes_.data() + at_;
    at_ += row * count;
    side.push_back(m);
    return {};
  }

  template <class T>
  bool take(T& x) {
    if (bytes_.size() - at_ < sizeof x) return false;
    std::memcpy(&x, bytes_.data() + at_, sizeof x);
    at_ += sizeof x;
    return true;
  }

  static status ended() { return error{"ends too early"}; }
  static status unknown(const std::string& what) { return error{"has a form that lagkv does not know: " + what}; }

  std::span<std::uint8_t> bytes_;
  std::size_t rest_ = 0;
  std::size_t at_ = 0, count_at_ = 0, cells_at_ = 0, end_ = 0;
  std::size_t added_ = 0;  // bytes that models with positions of several sections add to a cell
  llama_seq_id sequence_ = 0;
  bool transposed_ = false, older_ = false;  // without a header
  std::vector<std::int32_t> cells_;
  std::vector<llama_pos> positions_;
  std::vector<matrix> keys_, values_;
};

inline const matrix& marked(const saved_sequence& s) {
  return s.has_values() ? s.values(s.layers() - 1) : s.keys(s.layers() - 1);
}

}  // namespace lagkv::inline LAGKV_ABI::llama
