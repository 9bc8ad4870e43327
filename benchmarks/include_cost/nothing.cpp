#include <lagkv/lagkv.hpp>
