// The reader of .npy files by which the tests get their reference vectors: it believes no number of a file.
#include "support/npy.hpp"

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <tuple>

#include <sys/stat.h>
#include <unistd.h>

#include <gtest/gtest.h>

namespace {

namespace fs = std::filesystem;

/// A version 1.0 file with this header, and so many zeros behind it.
void write_npy(const fs::path& path, std::string header, std::size_t bytes, const std::string& start = {"\x93NUMPY\1\0", 8}) {
  header += '\n';
  std::ofstream(path, std::ios::binary) << start << static_cast<char>(header.size() & 255U)
                                        << static_cast<char>(header.size() >> 8U) << header << std::string(bytes, '\0');
}

TEST(npy, refuses_files_that_were_tampered_with) {
  const fs::path folder = fs::temp_directory_path() / ("lagkv-npy-" + std::to_string(getpid()));
  fs::create_directories(folder);
  const fs::path file = folder / "bad.npy";
  const auto refusal = [&] { return npy::load(file).message(); };
  EXPECT_NE(refusal().find("cannot be opened"), std::string::npos) << refusal();
  std::ofstream(file) << "not numpy";
  EXPECT_NE(refusal().find("is not a .npy file"), std::string::npos) << refusal();
  const auto with_shape = [&](const std::string& shape) {
    write_npy(file, "{'descr': '<f4', 'fortran_order': False, 'shape': " + shape + ", }", 64);
    return refusal();
  };
  EXPECT_EQ(with_shape("(2, 2, 4)"), "");
  EXPECT_EQ(with_shape("(2, 2, 4,)"), "");
  EXPECT_EQ(with_shape("(16,)"), "");
  EXPECT_EQ(with_shape("( 16 , )"), "");
  EXPECT_EQ(with_shape("()"), "");
  for (const char* shape : {"(-1, 2, 4)", "(2, -2, 4)", "(2, 2, 4", "(2 2 4)", "(2; 2)", "(16)", "(a, 2)", "[2, 2, 4]", "2, 2, 4",
                            "(2, 2.5, 4)", "(,)", "(2,,4)", "(18446744073709551617, 1)", "(99999999999999999999999999, 1)",
                            "(1, 1, 1, 1, 1, 1, 1, 1, 1)", "(0x2, 2)", "(+2, 2)"})
    EXPECT_NE(with_shape(shape).find("shape "), std::string::npos) << shape << with_shape(shape);
  for (const char* shape : {"(4294967296, 4294967296)", "(70368744177664, 2)", "(65536, 65536, 65536, 65536)"})
    EXPECT_NE(with_shape(shape).find("too large to be true"), std::string::npos) << shape << with_shape(shape);
  EXPECT_NE(with_shape("(3, 2, 4)").find("has 64 bytes of data: must be 96"), std::string::npos) << with_shape("(3, 2, 4)");

  const std::string good = "{'descr': '<f4', 'fortran_order': False, 'shape': (16,), }";
  for (const auto& [major, minor, said] : {std::tuple(0, 0, "has version 0.0"),
                                           {9, 0, "has version 9.0"},
                                           {1, 1, "has version 1.1"},
                                           {255, 7, "has version 255.7"}}) {
    write_npy(file, good, 64, std::string("\x93NUMPY") + static_cast<char>(major) + static_cast<char>(minor));
    EXPECT_NE(refusal().find(said), std::string::npos) << refusal();
  }
  for (const char* header :
       {"", "{", "{'descr': }", "{'descr': '<f4'", "{'descr': '<f8', 'fortran_order': False, 'shape': (8,), }",
        "{'descr': '>f4', 'fortran_order': False, 'shape': (16,), }", "{'descr': '<f4', 'fortran_order': True, 'shape': (16,), }",
        "{'descr': '<f4', 'fortran_order': False, }"}) {
    write_npy(file, header, 64);
    EXPECT_NE(refusal(), "") << header;
  }
  write_npy(file, good, 64);
  const auto size = fs::file_size(file);
  for (std::uintmax_t n = 0; n < size; ++n) {  // cut off anywhere
    fs::resize_file(file, size - 1 - n);
    EXPECT_NE(refusal(), "") << size - 1 - n;
  }
  fs::remove(file);
  ASSERT_EQ(mkfifo(file.c_str(), 0600), 0);
  EXPECT_NE(refusal().find("is no regular file"), std::string::npos) << "or this would wait for ever";
  EXPECT_NE(npy::load(folder).message().find("is no regular file"), std::string::npos);
  fs::remove_all(folder);
}

}  // namespace
