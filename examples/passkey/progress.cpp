#include "progress.hpp"

#include <fmt/format.h>

#include <ostream>
#include <utility>

namespace passkey {

void progress::begin(std::string what) {
  what_ = std::move(what);
  if (terminal_) return show(what_);
  out_ << what_ << std::endl;
}

void progress::step(std::size_t done, std::size_t all) {
  if (terminal_) show(fmt::format("{}: {} of {} tokens", what_, done, all));
}

void progress::wipe() {
  if (shown_ == 0) return;
  show("");
  out_ << '\r' << std::flush;
}

// Blanks cover what a longer line has left.
void progress::show(const std::string& line) {
  out_ << fmt::format("\r{:<{}}", line, shown_) << std::flush;
  shown_ = line.size();
}

}  // namespace passkey
