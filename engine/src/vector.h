// Vectors of SKIPNETS_LANES floats, over the vector extension that GCC and Clang share.
//
// For the files that are compiled once for each instruction set. Everything is in an anonymous namespace: an inline
// function compiled for AVX-512 could otherwise be the copy that the linker keeps for the whole program, also for
// processors without AVX-512.

#pragma once

#include <cstddef>

#ifdef __AVX__
#include <immintrin.h>
#endif

namespace skipnets {
namespace {

using Size = std::ptrdiff_t;

constexpr int L = SKIPNETS_LANES;
typedef float Vector __attribute__((vector_size(4 * L)));
typedef float UnalignedVector __attribute__((vector_size(4 * L), aligned(4), may_alias));

inline Vector load(const float* p) { return *reinterpret_cast<const UnalignedVector*>(p); }
inline void store(float* p, Vector x) { *reinterpret_cast<UnalignedVector*>(p) = x; }

// Comparing so that NaN stays NaN: an image with NaNs must not get a label that looks sound. Written as
// intrinsics because compilers may not turn the portable form into one instruction (it differs at -0).
inline Vector relu(Vector x) {
#if SKIPNETS_LANES == 16
    return _mm512_max_ps(Vector{}, x);
#elif SKIPNETS_LANES == 8
    return _mm256_max_ps(Vector{}, x);
#else
    return x < 0 ? Vector{} : x;
#endif
}

}  // namespace
}  // namespace skipnets
