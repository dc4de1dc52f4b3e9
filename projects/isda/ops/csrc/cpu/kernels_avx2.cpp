// For x86 processors with AVX2, FMA and F16C (Haswell, Zen and later).

#if defined(__x86_64__)
#include <immintrin.h>

#include <cstdint>

#include "kernels.h"

// Below all headers, so that nothing of theirs is compiled for this set.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,popcnt"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,popcnt")
#endif

#define ISDA_ARCHITECTURE avx2
#define ISDA_AVX2  // not __AVX2__: GCC 12 does not define it after the pragma
#include "kernels_impl.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
