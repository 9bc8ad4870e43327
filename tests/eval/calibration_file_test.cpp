// Calibration files: what is written is read again, and what others wrote is refused by name.
#include "examples/host/calibration_file.hpp"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <unistd.h>
#include <cmath>
#include <cstdint>

#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using nlohmann::json;

struct CalibrationFile : testing::Test {
  std::string path = (std::filesystem::temp_directory_path() / ("lagkv-calibration-" + std::to_string(getpid()))).string();
  ~CalibrationFile() override { std::filesystem::remove(path); }

  /// Why it is refused; empty where it is not.
  std::string refusal(const std::string& model = "m") const {
    try {
      static_cast<void>(host::read_calibration(path, model));
    } catch (const std::invalid_argument& wrong) {
      return wrong.what();
    }
    return {};
  }
  void write(const std::string& bytes) const { std::ofstream(path, std::ios::binary) << bytes; }
  void write(const json& header, std::size_t numbers) const { write(header.dump(), numbers); }
  void write(const std::string& text, std::size_t numbers) const {
    std::string bytes;
    for (std::uint64_t n = text.size(), i = 0; i < 8; ++i) bytes += static_cast<char>(n >> (8 * i));
    write(bytes + text + std::string(4 * numbers, '\0'));
  }
};

host::calibration some() {
  return {.model = "m",
          .queries = {{1, 2, {1, 2}, {}, {3, 4, 5, 6, 7, 8}}, {1, 2, {9, 8}, {}, {7, 6, 5, 4, 3, 2}}},
          .importance = {{2, 3, 1, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10}}, {2, 3, 1, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}}},
          .head_importance = {{{3, 2, 1}, {6, 5, 4}}, {{9, 8, 7}, {1, 1, 0}}}};
}

TEST_F(CalibrationFile, HoldsWhatWasWritten) {
  const host::calibration c = some();
  for (const bool queries : {true, false})
    for (const bool importance : {true, false}) {
      host::calibration part = c;
      if (!queries) part.queries.clear();
      if (!importance) part.importance.clear(), part.head_importance.clear();
      host::write_calibration(path, part);
      if (!queries && !importance) {
        EXPECT_EQ(refusal(), path + ": holds neither queries nor importance");
        continue;
      }
      const auto numbers = host::calibration_numbers(path);  // the same, whatever else was counted
      EXPECT_EQ(numbers.size(), (queries ? 1U : 0U) + (importance ? 2U : 0U));
      if (queries) {
        EXPECT_EQ(numbers.at("queries"), std::vector<float>({1, 2, 3, 4, 5, 6, 7, 8, 9, 8, 7, 6, 5, 4, 3, 2}));
      }
      if (importance) {
        EXPECT_EQ(numbers.at("head_importance"), std::vector<float>({3, 2, 1, 6, 5, 4, 9, 8, 7, 1, 1, 0}));
        EXPECT_EQ(numbers.at("importance").size(), 20U);
      }
      const host::calibration read = host::read_calibration(path, "m");
      ASSERT_EQ(read.queries.size(), part.queries.size());
      ASSERT_EQ(read.importance.size(), part.importance.size());
      EXPECT_EQ(read.head_importance, part.head_importance);
      for (std::size_t i = 0; i < read.queries.size(); ++i) {
        EXPECT_EQ(read.queries[i].mean, c.queries[i].mean);
        EXPECT_EQ(read.queries[i].factors, c.queries[i].factors);
        EXPECT_EQ(read.queries[i].rank(), 3U);
      }
      for (std::size_t i = 0; i < read.importance.size(); ++i) {
        EXPECT_EQ(read.importance[i].weights, c.importance[i].weights);
        EXPECT_EQ(read.importance[i].key_channels, 3U);
        EXPECT_EQ(read.importance[i].value_channels, 1U);
      }
    }
}

TEST_F(CalibrationFile, IsRefusedForAnotherModelAndWhereANumberIsNotFinite) {
  host::write_calibration(path, some());
  EXPECT_EQ(refusal("another"), path + ": was made for m, not for another");
  for (const float bad : {std::nanf(""), HUGE_VALF, -HUGE_VALF}) {
    host::calibration c = some();
    c.queries[1].factors[3] = bad;
    host::write_calibration(path, c);
    EXPECT_EQ(refusal(), path + ": queries: number 5 of layer 1 is not finite");
    c = some();
    c.importance[1].weights[7] = bad;
    host::write_calibration(path, c);
    EXPECT_EQ(refusal(), path + ": importance: number 7 of layer 1 is not finite");
  }
}

TEST_F(CalibrationFile, OfAnyonesMakingIsRefusedByName) {
  EXPECT_EQ(refusal(), path + ": is no file");
  for (const std::string& bytes : {std::string(), std::string("text"), std::string(8, '\xff'), std::string(8, '\0')}) {
    write(bytes);
    EXPECT_EQ(refusal(), path + ": is not a safetensors file") << bytes.size();
  }
  write(std::string("[1, 2"), 0);
  EXPECT_EQ(refusal(), path + ": is not a safetensors file");
  const json good = {{"__metadata__", {{"format", "lagkv-calibration"}, {"version", "1"}, {"model", "m"}, {"key_channels", "2"}}},
                     {"importance", {{"dtype", "F32"}, {"shape", {1, 2, 4}}, {"data_offsets", {0, 32}}}}};
  write(good, 8);
  EXPECT_EQ(refusal(), "");
  const auto with = [&](const json::json_pointer& at, const json& value) {
    json changed = good;
    changed[at] = value;
    write(changed, 8);
    return refusal().substr(path.size() + 2);
  };
  using at = json::json_pointer;
  EXPECT_EQ(with(at("/__metadata__/version"), "2"), "has version 2: must be 1");
  EXPECT_EQ(with(at("/__metadata__/format"), "pt"), "is no calibration of lagkv's");
  EXPECT_EQ(with(at("/__metadata__"), 3), "is no calibration of lagkv's");
  EXPECT_EQ(with(at("/__metadata__/key_channels"), "4"), "key_channels=4: must be from 1 to 3");
  EXPECT_EQ(with(at("/__metadata__/key_channels"), "-"), "key_channels=-: must be from 1 to 3");
  const std::string wrong = "importance: must be F32 of 3 dimensions, each 1 or more",
                    away = "importance: its numbers are not in the file";
  for (const json& dtype : {json("F16"), json(32), json()}) EXPECT_EQ(with(at("/importance/dtype"), dtype), wrong);
  for (const json& shape : {json::array({2, 4}), json::array({1, 2, -4}), json::array({0, 2, 4}), json::array({1, 2, 4.5}),
                            json::array({4294967296, 4294967296, 4}), json(8), json()})
    EXPECT_EQ(with(at("/importance/shape"), shape), wrong) << shape;
  for (const json& offsets :
       {json::array({0, 28}), json::array({4, 36}), json::array({32, 0}), json::array({4294967296, 4294967328})})
    EXPECT_EQ(with(at("/importance/data_offsets"), offsets), away) << offsets;
  for (const json& offsets : {json::array({0}), json::array({-4, 28}), json("0"), json()})
    EXPECT_EQ(with(at("/importance/data_offsets"), offsets), wrong) << offsets;
  EXPECT_EQ(with(at("/importance"), "text"), wrong);
}

}  // namespace
