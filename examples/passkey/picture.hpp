// A picture of which tokens survive.
#pragma once

#include "prompt.hpp"
#include "trial.hpp"

#include <iosfwd>
#include <vector>

namespace passkey {

/// Draws one panel a policy as SVG: a row per layer and KV head, from the first token at the left to the last at the
/// right, darker where more of the tokens under a pixel are kept, and the needle between two lines. Policies that
/// keep everything are left out.
void draw_kept(std::ostream& out, const prompt& p, const std::vector<trial>& trials);

}  // namespace passkey
