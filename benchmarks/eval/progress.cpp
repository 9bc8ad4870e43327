#include "progress.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <iostream>

namespace eval {

std::string duration(double seconds) {
  const auto s = static_cast<long>(seconds + 0.5);
  if (s < 60) return fmt::format("{} s", s);
  if (s < 3600) return fmt::format("{} min {:02} s", s / 60, s % 60);
  return fmt::format("{} h {:02} min", s / 3600, s % 3600 / 60);
}

progress::progress(std::size_t total) : total_(total), terminal_(isatty(fileno(stderr)) != 0) {}

progress::~progress() {
  if (terminal_ && done_ > 0) std::cerr << '\n';
}

void progress::step(const std::string& what) {
  ++done_;
  using namespace std::chrono_literals;
  const auto now = std::chrono::steady_clock::now();
  if (done_ < total_ && now - drawn_ < (terminal_ ? 200ms : 20000ms)) return;
  drawn_ = now;
  draw(what);
}

void progress::draw(const std::string& what) {
  const double passed = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  const double share = static_cast<double>(done_) / static_cast<double>(total_);
  const std::string left = done_ == total_ ? "took " + duration(passed) : duration(passed / share - passed) + " left";
  constexpr std::size_t width = 30;
  const std::string bar(static_cast<std::size_t>(share * width), '#');
  const std::string line = fmt::format("[{:<{}}] {}/{}, {}: {}", bar, width, done_, total_, left, what);
  std::cerr << (terminal_ ? "\r\033[K" : "") << line.substr(0, terminal_ ? 110 : line.size()) << (terminal_ ? "" : "\n")
            << std::flush;
}

}  // namespace eval
