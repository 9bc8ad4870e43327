// What a reader needs to know about a run: which model, which versions, which machine.
#pragma once

#include <map>
#include <string>
#include <string_view>

#include "host/model.hpp"
#include "results.hpp"

namespace eval {

/// SHA-256 of a text, hexadecimal.
[[nodiscard]] std::string sha256_of_text(std::string_view text);

/// The same of each tensor of a calibration file, by its name. Throws std::invalid_argument where it is no such file.
[[nodiscard]] std::map<std::string, std::string> sha256_of_calibration(const std::string& path);

/// Date, model, versions and machine of a run that begins now; the settings are the caller's to fill in.
[[nodiscard]] run_info facts(const host::model& m, const std::string& path);

}  // namespace eval
