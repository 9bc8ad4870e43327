// Part of lagkv (MIT). The version, in one place: CMake reads it here.
#pragma once

#define LAGKV_VERSION_MAJOR 0
#define LAGKV_VERSION_MINOR 2
#define LAGKV_VERSION_PATCH 0

/// One number to compare with: #if LAGKV_VERSION >= 200 is version 0.2.0 or later.
#define LAGKV_VERSION (LAGKV_VERSION_MAJOR * 10000 + LAGKV_VERSION_MINOR * 100 + LAGKV_VERSION_PATCH)
