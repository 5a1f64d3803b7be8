// See pixel_kernels.h; compiled like kernels.cpp, and with the same rules.

#include "pixel_kernels.h"

#include "vector.h"

namespace skipnets {
namespace {

typedef unsigned Bits __attribute__((vector_size(4 * L)));

// Comparisons choose so that NaN is never replaced.
inline Vector at_least(Vector x, float bound) { return x < bound ? Vector{} + bound : x; }
inline Vector at_most(Vector x, float bound) { return x > bound ? Vector{} + bound : x; }

// ---- activations ---------------------------------------------------------------------------------------------

/// exp(x) for |x| ≤ 87: 2ⁿ · exp(r) with r = x − n · ln 2, |r| ≤ ln 2 / 2, by the series to r⁷ (the next term is below
/// 6e-9).
inline Vector exponential(Vector x) {
    // Adding 1.5 · 2²³ leaves a float without fraction: it rounds, and its last bits are the whole number.
    constexpr float kRounder = 12582912.0f;
    const Vector shifted = x * 1.44269504088896341f + kRounder;
    const Vector n = shifted - kRounder;
    // ln 2 in two parts, the first with few enough bits that its product with n is exact.
    const Vector r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Vector sum = Vector{} + 1.0f / 5040;
    sum = sum * r + 1.0f / 720;
    sum = sum * r + 1.0f / 120;
    sum = sum * r + 1.0f / 24;
    sum = sum * r + 1.0f / 6;
    sum = sum * r + 0.5f;
    sum = sum * r + 1;
    sum = sum * r + 1;
    Bits bits;
    __builtin_memcpy(&bits, &shifted, sizeof bits);
    const Bits power = (bits << 23) + (127u << 23);  // all but the last bits of the sum leave on the left
    Vector scale;
    __builtin_memcpy(&scale, &power, sizeof scale);
    return sum * scale;
}

/// 1 / (1 + exp(−x)); below −87 nothing is left.
inline Vector sigmoid(Vector x) {
    const Vector value = 1 / (1 + exponential(-at_most(x, 87)));
    return x < -87 ? Vector{} : value;
}

/// x · (1 + erf(x / √2)) / 2 of several vectors side by side: on its own each would wait for its own results.
///
/// erf(x / √2) is x · P(x²) / Q(x²), both of degree 5: fitted on |x| ≤ 5.6, where it differs by at most 2e-8; beyond, ±1
/// is the nearest float.
template <int N>
inline void gelu(Vector (&x)[N]) {
    constexpr float kP[] = {4.428829215e-08f, 1.2712072930e-05f, 3.476662387e-04f,
                            9.414304979e-03f, 6.874959916e-02f,  7.978844643e-01f};
    constexpr float kQ[] = {1.180140089e-06f, 7.509421744e-05f, 1.912882784e-03f,
                            2.893926948e-02f, 2.528305650e-01f, 1.0f};
    Vector t[N], p[N], q[N];
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) t[i] = x[i] * x[i];
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) p[i] = t[i] * kP[0] + kP[1], q[i] = t[i] * kQ[0] + kQ[1];
#pragma GCC unroll 4
    for (int k = 2; k < 6; ++k)
#pragma GCC unroll 4
        for (int i = 0; i < N; ++i) p[i] = p[i] * t[i] + kP[k], q[i] = q[i] * t[i] + kQ[k];
    const Vector one = Vector{} + 1;
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) p[i] = x[i] * p[i] / q[i];
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) {
        const Vector erf = x[i] > 5.6f ? one : x[i] < -5.6f ? -one : p[i], half = 0.5f * x[i];
        x[i] = half + half * erf;
    }
}

inline Vector hard_sigmoid(Vector x) { return at_most(at_least(x + 3, 0), 6) * (1.0f / 6); }

template <Activation F>
inline Vector activated(Vector x) {
    if constexpr (F == Activation::kRelu) return relu(x);
    if constexpr (F == Activation::kSilu) return x * sigmoid(x);
    if constexpr (F == Activation::kHardSwish) return x * hard_sigmoid(x);
    if constexpr (F == Activation::kSigmoid) return sigmoid(x);
    if constexpr (F == Activation::kHardSigmoid) return hard_sigmoid(x);
}

template <Activation F, int N>
inline void activate_all(Vector (&x)[N]) {
    if constexpr (F == Activation::kGelu)
        gelu(x);
    else
        for (int i = 0; i < N; ++i) x[i] = activated<F>(x[i]);
}

template <Activation F>
void activate(float* const* rows, Size offset, int count, Size vectors) {
    constexpr int N = SKIPNETS_ROWS_1 == 24 ? 4 : 2;
    Size vector = 0;
    for (Size left = count * vectors; left > 0; left -= N) {
        float* at[N];
        Vector x[N];
#pragma GCC unroll 4
        for (int i = 0; i < N; ++i) {
            if (i < left) {
                at[i] = *rows + offset + vector * L;
                if (++vector == vectors) vector = 0, ++rows;
            } else {
                at[i] = at[0];  // once more: all are loaded before one is stored
            }
            x[i] = load(at[i]);
        }
        activate_all<F>(x);
#pragma GCC unroll 4
        for (int i = 0; i < N; ++i) store(at[i], x[i]);
    }
}

// ---- pixels --------------------------------------------------------------------------------------------------

void gated(float* out, const float* in, const float* gate, const float* gate_shift, const float* scale,
           const float* shift, const float* added, bool rectified, Size vectors) {
    for (Size i = 0; i < vectors * L; i += L) {
        Vector x = load(in + i) * load(gate + i);
        if (gate_shift) x += load(gate_shift + i);
        if (scale) x = x * load(scale + i) + load(shift + i);
        if (added) x += load(added + i);
        store(out + i, rectified ? relu(x) : x);
    }
}

void swish(float* out, const float* in, const float* slope, Size vectors) {
    for (Size i = 0; i < vectors * L; i += L) {
        const Vector x = load(in + i);
        store(out + i, x * sigmoid(x * load(slope + i)));
    }
}

void at_least(float* x, const float* floor, Size vectors) {
    for (Size i = 0; i < vectors * L; i += L) {
        const Vector value = load(x + i), least = load(floor + i);
        store(x + i, value < least ? least : value);
    }
}

template <int N>
struct Lanes {
    typedef float Type __attribute__((vector_size(4 * N)));
};

/// By halves: one lane after another would wait for each addition.
template <int N = L>
inline float sum_of(typename Lanes<N>::Type x) {
    if constexpr (N == 2) {
        return x[0] + x[1];
#if SKIPNETS_LANES == 16
    } else if constexpr (N == 16) {
        // Copied through memory, as below, the sum would stay there while it is made.
        return sum_of<8>(_mm512_castps512_ps256(x) + _mm512_extractf32x8_ps(x, 1));
#endif
    } else {
        typename Lanes<N / 2>::Type low, high;
        __builtin_memcpy(&low, &x, sizeof low);
        __builtin_memcpy(&high, reinterpret_cast<const char*>(&x) + sizeof low, sizeof high);
        return sum_of<N / 2>(low + high);
    }
}

/// Ones in the first `lanes` lanes.
inline Vector first_lanes(Size lanes) {
    Vector ones{};
    for (Size i = 0; i < L; ++i) ones[i] = i < lanes ? 1.0f : 0.0f;
    return ones;
}

/// Of N neighbors, side by side: on its own each would wait for its own sums.
template <int N>
inline void layer_norm_of(float* out, Size out_pixel, const float* in, Size in_pixel, const float* scale,
                          const float* shift, float eps, Size channels, Vector mask) {
    const Size whole = channels / L * L, rest = channels - whole;
    const Vector zero{};
    // What lies behind the last channel may be anything, also NaN: it is replaced, not multiplied by 0.
    const auto last = [&](Vector x) { return mask > 0 ? x : zero; };
    const auto at = [&](int n, Size i) { return load(in + n * in_pixel + i); };
    Vector sum[N]{};
    float mean[N], factor[N];
    for (Size i = 0; i < whole; i += L)
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) sum[n] += at(n, i);
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
        if (rest > 0) sum[n] += last(at(n, whole));
        mean[n] = sum_of(sum[n]) / float(channels);
        sum[n] = zero;
    }
    for (Size i = 0; i < whole; i += L)
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
            const Vector x = at(n, i) - mean[n];
            sum[n] += x * x;
        }
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
        if (rest > 0) {
            const Vector x = last(at(n, whole) - mean[n]);
            sum[n] += x * x;
        }
        factor[n] = 1 / __builtin_sqrtf(sum_of(sum[n]) / float(channels) + eps);
    }
    for (Size i = 0; i < channels; i += L) {
        const Vector s = load(scale + i), t = load(shift + i);
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) store(out + n * out_pixel + i, (at(n, i) - mean[n]) * factor[n] * s + t);
    }
}

void layer_norm(float* out, Size out_pixel, const float* in, Size in_pixel, Size pixels, const float* scale,
                const float* shift, float eps, Size channels) {
    constexpr int N = 4;
    const Vector mask = first_lanes(channels % L);
    for (; pixels >= N; pixels -= N, out += N * out_pixel, in += N * in_pixel)
        layer_norm_of<N>(out, out_pixel, in, in_pixel, scale, shift, eps, channels, mask);
    for (; pixels > 0; --pixels, out += out_pixel, in += in_pixel)
        layer_norm_of<1>(out, out_pixel, in, in_pixel, scale, shift, eps, channels, mask);
}

void squares(float* out, const float* const* in, int count, const float* center, Size vectors) {
    for (Size i = 0; i < vectors * L; i += L) {
        const Vector c = load(center + i);
        Vector sum{};
        for (int j = 0; j < count; ++j) {
            const Vector x = load(in[j] + i) - c;
            sum += x * x;
        }
        store(out + i, sum);
    }
}

// ---- filters of single channels --------------------------------------------------------------------------------

// Sums of so many neighboring pixels stay in registers, beside a row of the filter and one input, which is loaded once
// for all of the sums that it is part of.
constexpr int kTogether = SKIPNETS_ROWS_1 == 24 ? 14 : 7;

template <int K, int T>
inline void depthwise_tile(float* __restrict out, Size out_pixel, const float* __restrict in, Size in_pixel, Size in_row,
                           const float* __restrict weights, Vector bias) {
    Vector sum[T];
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) sum[t] = bias;
    for (int row = 0; row < K; ++row, in += in_row, weights += K * L) {
        Vector tap[K];
#pragma GCC unroll 8
        for (int k = 0; k < K; ++k) tap[k] = load(weights + k * L);
#pragma GCC unroll 24
        for (int column = 0; column < T + K - 1; ++column) {
            const Vector x = load(in + column * in_pixel);
#pragma GCC unroll 8
            for (int k = 0; k < K; ++k)
                if (column - k >= 0 && column - k < T) sum[column - k] += x * tap[k];
        }
    }
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) store(out + t * out_pixel, sum[t]);
}

/// A tile of `count` ≤ T pixels.
template <int K, int T>
inline void depthwise_tile_of(Size count, float* out, Size out_pixel, const float* in, Size in_pixel, Size in_row,
                              const float* weights, Vector bias) {
    if (count == T) {
        depthwise_tile<K, T>(out, out_pixel, in, in_pixel, in_row, weights, bias);
    } else if constexpr (T > 1) {
        depthwise_tile_of<K, T - 1>(count, out, out_pixel, in, in_pixel, in_row, weights, bias);
    }
}

template <int K>
void depthwise(float* out, Size out_pixel, const float* in, Size in_pixel, Size in_row, Size pixels,
               const float* weights, const float* bias, Size vectors) {
    const Size tiles = (pixels + kTogether - 1) / kTogether;
    for (Size i = 0; i < vectors; ++i) {
        const Vector start = load(bias + i * L);
        for (Size tile = 0; tile < tiles; ++tile) {
            const Size begin = pixels * tile / tiles, end = pixels * (tile + 1) / tiles;
            depthwise_tile_of<K, kTogether>(end - begin, out + begin * out_pixel + i * L, out_pixel,
                                            in + begin * in_pixel + i * L, in_pixel, in_row, weights + i * K * K * L,
                                            start);
        }
    }
}

void weighted(float* out, const float* const* in, int count, const float* weights, const float* bias, Size vectors) {
    for (Size i = 0; i < vectors * L; i += L) {
        Vector sum = load(bias + i);
        const float* tap = weights + i * count;
        for (int j = 0; j < count; ++j) sum += load(in[j] + i) * load(tap + j * L);
        store(out + i, sum);
    }
}

constexpr PixelKernels make_table() {
    PixelKernels table{};
    const auto at = [](Activation function) { return int(function); };
    table.activate[at(Activation::kRelu)] = activate<Activation::kRelu>;
    table.activate[at(Activation::kGelu)] = activate<Activation::kGelu>;
    table.activate[at(Activation::kSilu)] = activate<Activation::kSilu>;
    table.activate[at(Activation::kHardSwish)] = activate<Activation::kHardSwish>;
    table.activate[at(Activation::kSigmoid)] = activate<Activation::kSigmoid>;
    table.activate[at(Activation::kHardSigmoid)] = activate<Activation::kHardSigmoid>;
    table.gated = gated;
    table.swish = swish;
    table.at_least = at_least;
    table.layer_norm = layer_norm;
    table.squares = squares;
    table.depthwise[3] = depthwise<3>;
    table.depthwise[5] = depthwise<5>;
    table.depthwise[7] = depthwise<7>;
    table.weighted = weighted;
    return table;
}

}  // namespace

extern const PixelKernels SKIPNETS_PIXEL_TABLE;
const PixelKernels SKIPNETS_PIXEL_TABLE = make_table();

}  // namespace skipnets
