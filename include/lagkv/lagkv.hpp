// lagkv: KV-cache compression without attention weights, per head and in place. MIT licence.
// Everything but the adapters and the methods that need Eigen (all_methods.hpp); docs/design.md shows how the parts fit.
#pragma once

#include <lagkv/detail/config.hpp>

#if defined(LAGKV_USABLE)
#include <lagkv/attention.hpp>
#include <lagkv/compact.hpp>
#include <lagkv/core.hpp>
#include <lagkv/dtype.hpp>
#include <lagkv/hadamard.hpp>
#include <lagkv/layer.hpp>
#include <lagkv/method.hpp>
#include <lagkv/paged.hpp>
#include <lagkv/parallel.hpp>
#include <lagkv/parse.hpp>
#include <lagkv/plan.hpp>
#include <lagkv/policies.hpp>
#include <lagkv/policy.hpp>
#include <lagkv/recipes.hpp>
#include <lagkv/rerotate.hpp>
#include <lagkv/retention.hpp>
#include <lagkv/ring.hpp>
#include <lagkv/rope.hpp>
#include <lagkv/scaled.hpp>
#include <lagkv/score/rows.hpp>
#include <lagkv/simd/target.hpp>
#include <lagkv/stacked.hpp>
#include <lagkv/strided.hpp>
#include <lagkv/tensor.hpp>
#include <lagkv/unrotate.hpp>
#include <lagkv/version.hpp>
#include <lagkv/workspace.hpp>
#endif
