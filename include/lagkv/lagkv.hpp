// lagkv: KV-cache compression without attention weights, per head and in place. MIT licence.
// Everything but the adapters; docs/design.md shows how the parts fit.
#pragma once

#include <lagkv/compact.hpp>
#include <lagkv/core.hpp>
#include <lagkv/paged.hpp>
#include <lagkv/parse.hpp>
#include <lagkv/plan.hpp>
#include <lagkv/policy.hpp>
#include <lagkv/recipes.hpp>
#include <lagkv/retention.hpp>
#include <lagkv/score/lag_relative.hpp>
#include <lagkv/score/random.hpp>
#include <lagkv/score/rank.hpp>
#include <lagkv/score/rows.hpp>
#include <lagkv/select/top_k.hpp>
#include <lagkv/simd/dispatch.hpp>
#include <lagkv/strided.hpp>
#include <lagkv/tensor.hpp>
#include <lagkv/workspace.hpp>
