#include "facts.hpp"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <ggml.h>
#include <openssl/evp.h>
#include <sys/utsname.h>
#include <lagkv_eval_revision.hpp>

#include <array>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <stdexcept>
#include <thread>
#include <vector>

#include "host/calibration_file.hpp"

namespace eval {
namespace {

std::string processor() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  return "unknown processor";
}

std::string machine() {
  utsname system{};
  uname(&system);
  return fmt::format("{}, {} cores, {} {} {}", processor(), std::thread::hardware_concurrency(), system.sysname, system.release,
                     system.machine);
}

std::string name_of(const llama_model* m) {
  std::array<char, 128> text{};
  llama_model_desc(m, text.data(), text.size());
  return text.data();
}

using hash = std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)>;

hash begin_hash() {
  hash made(EVP_MD_CTX_new(), EVP_MD_CTX_free);
  EVP_DigestInit_ex(made.get(), EVP_sha256(), nullptr);
  return made;
}

std::string end_hash(const hash& h) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned int size = 0;
  EVP_DigestFinal_ex(h.get(), digest.data(), &size);
  std::string text;
  for (unsigned int i = 0; i < size; ++i) text += fmt::format("{:02x}", digest[i]);
  return text;
}

std::string sha256_of_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const hash context = begin_hash();
  std::vector<char> block(1 << 20);
  while (file.read(block.data(), static_cast<std::streamsize>(block.size())), file.gcount() > 0)
    EVP_DigestUpdate(context.get(), block.data(), static_cast<std::size_t>(file.gcount()));
  if (!file.eof()) throw std::runtime_error(path + ": cannot be read");
  return end_hash(context);
}

}  // namespace

std::string sha256_of_text(std::string_view text) {
  const hash context = begin_hash();
  EVP_DigestUpdate(context.get(), text.data(), text.size());
  return end_hash(context);
}

std::map<std::string, std::string> sha256_of_calibration(const std::string& path) {
  std::map<std::string, std::string> made;
  for (const auto& [name, numbers] : host::calibration_numbers(path))
    made[name] = sha256_of_text({reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(float)});
  return made;
}

run_info facts(const host::model& m, const std::string& path) {
  run_info run;
  run.date = fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)));
  run.model = std::filesystem::path(path).filename().string();
  run.model_sha256 = sha256_of_file(path);
  run.model_name = name_of(m.get());
  run.lagkv = fmt::format("{} ({})", LAGKV_EVAL_VERSION, LAGKV_EVAL_REVISION);
  run.llama = fmt::format("ggml {} ({})", ggml_version(), ggml_commit());
  run.compiler = fmt::format("{} {}", LAGKV_COMPILER, __VERSION__);
  run.machine = machine();
  return run;
}

}  // namespace eval
