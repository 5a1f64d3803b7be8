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

/// erf(x / √2) as x · P(x²) / Q(x²), both of degree 5: fitted on |x| ≤ 5.6, where it differs by at most 2e-8; beyond,
/// ±1 is the nearest float.
inline Vector erf_of_scaled(Vector x) {
    const Vector t = x * x;
    Vector p = Vector{} + 4.428829215e-08f;
    p = p * t + 1.2712072930e-05f;
    p = p * t + 3.476662387e-04f;
    p = p * t + 9.414304979e-03f;
    p = p * t + 6.874959916e-02f;
    p = p * t + 7.978844643e-01f;
    Vector q = Vector{} + 1.180140089e-06f;
    q = q * t + 7.509421744e-05f;
    q = q * t + 1.912882784e-03f;
    q = q * t + 2.893926948e-02f;
    q = q * t + 2.528305650e-01f;
    q = q * t + 1;
    const Vector one = Vector{} + 1, value = x * p / q;
    return x > 5.6f ? one : x < -5.6f ? -one : value;
}

inline Vector hard_sigmoid(Vector x) { return at_most(at_least(x + 3, 0), 6) * (1.0f / 6); }

template <Activation F>
inline Vector activated(Vector x) {
    if constexpr (F == Activation::kRelu) return relu(x);
    if constexpr (F == Activation::kGelu) return 0.5f * x * (1 + erf_of_scaled(x));
    if constexpr (F == Activation::kSilu) return x * sigmoid(x);
    if constexpr (F == Activation::kHardSwish) return x * hard_sigmoid(x);
    if constexpr (F == Activation::kSigmoid) return sigmoid(x);
    if constexpr (F == Activation::kHardSigmoid) return hard_sigmoid(x);
}

template <Activation F>
void activate(float* const* rows, Size offset, int count, Size vectors) {
    for (int r = 0; r < count; ++r)
        for (float *p = rows[r] + offset, *end = p + vectors * L; p < end; p += L) store(p, activated<F>(load(p)));
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

void layer_norm(float* out, const float* in, const float* scale, const float* shift, float eps, Size channels) {
    const Size whole = channels / L * L, rest = channels - whole;
    const Vector zero{}, mask = first_lanes(rest);
    // What lies behind the last channel may be anything, also NaN: it is replaced, not multiplied by 0.
    const auto last = [&](Vector x) { return mask > 0 ? x : zero; };
    Vector sum0{}, sum1{};
    Size i = 0;
    for (; i + 2 * L <= whole; i += 2 * L) sum0 += load(in + i), sum1 += load(in + i + L);
    if (i < whole) sum0 += load(in + i);
    if (rest > 0) sum1 += last(load(in + whole));
    const float mean = sum_of(sum0 + sum1) / float(channels);
    sum0 = sum1 = zero;
    for (i = 0; i + 2 * L <= whole; i += 2 * L) {
        const Vector a = load(in + i) - mean, b = load(in + i + L) - mean;
        sum0 += a * a, sum1 += b * b;
    }
    if (i < whole) {
        const Vector a = load(in + i) - mean;
        sum0 += a * a;
    }
    if (rest > 0) {
        const Vector a = last(load(in + whole) - mean);
        sum1 += a * a;
    }
    const float factor = 1 / __builtin_sqrtf(sum_of(sum0 + sum1) / float(channels) + eps);
    for (i = 0; i < channels; i += L) {
        const Vector x = (load(in + i) - mean) * factor;
        store(out + i, x * load(scale + i) + load(shift + i));
    }
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
