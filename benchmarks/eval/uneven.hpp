// Policies under which heads keep different numbers of rows: what they lose, in a cache that cannot hold that.
#pragma once

#include <string>

#include "host/compressor.hpp"
#include "host/model.hpp"

namespace eval {

/// Why such a policy cannot be measured in this session; empty where it can.
[[nodiscard]] std::string uneven_obstacle(const host::named_policy& policy, host::session& s, bool transposed, bool chunks);

/// Has each head of sequence 0, which has just been restored from `saved`, not see what the policy would drop there; tokens and
/// bytes are means over layers and heads. s.hidden().clear() ends it. Throws std::invalid_argument where the policy cannot work.
host::compression hide_what_goes(host::session& s, const host::named_policy& policy, const host::saved_sequence& saved);

}  // namespace eval
