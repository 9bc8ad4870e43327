// lagkv: KV-cache compression without attention weights, per head and in place. MIT licence.
// Everything but the adapters and the methods that need Eigen (methods_with_eigen.hpp); docs/design.md shows how the parts fit.
#pragma once

#include <lagkv/detail/config.hpp>

#if defined(LAGKV_USABLE)
#include <lagkv/accumulate.hpp>
#include <lagkv/attention/attention.hpp>
#include <lagkv/attention/importance.hpp>
#include <lagkv/attention/query_statistics.hpp>
#include <lagkv/cache/cursor.hpp>
#include <lagkv/cache/extras.hpp>
#include <lagkv/cache/layer.hpp>
#include <lagkv/compress.hpp>
#include <lagkv/methods.hpp>
#include <lagkv/plan/candidates.hpp>
#include <lagkv/plan/compact.hpp>
#include <lagkv/plan/plan.hpp>
#include <lagkv/plan/rerotate.hpp>
#include <lagkv/policy/budget.hpp>
#include <lagkv/policy/method.hpp>
#include <lagkv/policy/options.hpp>
#include <lagkv/policy/parse.hpp>
#include <lagkv/policy/policy.hpp>
#include <lagkv/policy/registry.hpp>
#include <lagkv/result.hpp>
#include <lagkv/rows/rows.hpp>
#include <lagkv/simd/target.hpp>
#include <lagkv/version.hpp>
#include <lagkv/view/dtype.hpp>
#include <lagkv/view/hadamard.hpp>
#include <lagkv/view/paged.hpp>
#include <lagkv/view/range.hpp>
#include <lagkv/view/ring.hpp>
#include <lagkv/view/rope.hpp>
#include <lagkv/view/scaled.hpp>
#include <lagkv/view/stacked.hpp>
#include <lagkv/view/strided.hpp>
#include <lagkv/view/tensor.hpp>
#include <lagkv/workspace.hpp>
#endif
