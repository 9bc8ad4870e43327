// A view around another one. CMakeLists.txt compiles this file once for each NESTED: in the wrong order it is an error that says
// what goes where, since the meaning of the inner view would be lost.
#include <cstdint>

#include <lagkv/view/hadamard.hpp>
#include <lagkv/view/ring.hpp>
#include <lagkv/view/scaled.hpp>
#include <lagkv/view/stacked.hpp>
#include <lagkv/view/strided.hpp>

namespace lagkv {

using bytes = strided<std::int8_t>;
using floats = strided<float>;
template <class Scales>
using bytes_by = scaled<bytes, Scales>;

tensor shown(const NESTED& view) { return view; }

}  // namespace lagkv
