// Winograd's transforms of one tile of H×W outputs, H and W being 2 or 4, over vectors of channels or filters; the
// matrices are in winograd.h. Written out because half of the multiplications are by ±1 and pairs of rows share sums.
//
// For the files that are compiled once for each instruction set (see vector.h). Element (i, j) of the (H+2)×(W+2) is
// number i·(W+2) + j; elements are `element` floats apart, pixels `pixel` floats.

#pragma once

#include "vector.h"

namespace skipnets {
namespace {

constexpr float kRoot = 0.70710678118654752440f;  // r in winograd.h

// ---- inputs: Bᵀ d B ------------------------------------------------------------------------------------------

// The rows of Bᵀ come in pairs: those two of the result need the same inputs. The transform of a tile goes pair by
// pair: both rows of Bᵀd for all columns stay in registers until they are multiplied by B, and nothing is spilled;
// the price is that inputs are loaded for each pair that needs them, from the first-level cache.
template <int M>
constexpr int kPairs = (M + 2) / 2;

// The result's rows that a pair makes: 0 and the last, then 1 and 2, then 3 and 4.
template <int M, int Pair>
constexpr int kFirstRow = Pair == 0 ? 0 : 2 * Pair - 1;
template <int M, int Pair>
constexpr int kSecondRow = Pair == 0 ? M + 1 : 2 * Pair;

// x(i) is input i of M + 2.
template <int M, int Pair, class Input>
inline void input_rows(Input x, Vector& first, Vector& second) {
    if constexpr (M == 2 && Pair == 0) {
        first = x(0) - x(2);
        second = x(1) - x(3);
    } else if constexpr (M == 2) {
        first = x(1) + x(2);
        second = x(2) - x(1);
    } else if constexpr (Pair == 0) {
        first = x(0) + (x(4) - 2.5f * x(2));
        second = x(1) + (x(5) - 2.5f * x(3));
    } else if constexpr (Pair == 1) {
        const Vector even = x(4) - 2 * x(2), odd = x(3) - 2 * x(1);
        first = even + kRoot * odd;
        second = even - kRoot * odd;
    } else {
        const Vector even = x(4) - 0.5f * x(2), odd = 2 * x(3) - x(1);
        first = even + kRoot * odd;
        second = even - kRoot * odd;
    }
}

// One row of Bᵀd times B.
template <int W, int Pair = 0>
inline void store_input_row(float* out, Size element, const Vector (&half)[W + 2]) {
    Vector first, second;
    input_rows<W, Pair>([&](int i) { return half[i]; }, first, second);
    store(out + kFirstRow<W, Pair> * element, first);
    store(out + kSecondRow<W, Pair> * element, second);
    if constexpr (Pair + 1 < kPairs<W>) store_input_row<W, Pair + 1>(out, element, half);
}

template <int H, int W, int Pair = 0>
inline void transform_input(float* out, Size element, const float* const* rows, Size offset, Size pixel) {
    constexpr int T = W + 2;
    Vector first[T], second[T];
#pragma GCC unroll 6
    for (int column = 0; column < T; ++column)
        input_rows<H, Pair>([&](int i) { return load(rows[i] + column * pixel + offset); }, first[column],
                            second[column]);
    store_input_row<W>(out + kFirstRow<H, Pair> * T * element, element, first);
    store_input_row<W>(out + kSecondRow<H, Pair> * T * element, element, second);
    if constexpr (Pair + 1 < kPairs<H>) transform_input<H, W, Pair + 1>(out, element, rows, offset, pixel);
}

// As Kernels::WinogradInput.
template <int H, int W>
void winograd_input(float* out, Size element, Size step, const float* const* rows, Size pixel, Size vectors) {
    // Four lines of a tile fit 32 registers: everything is loaded once.
    if constexpr (H == 2 && SKIPNETS_ROWS_1 == 24) {
        constexpr int T = W + 2;
        for (Size i = 0; i < vectors; ++i) {
            Vector half[4][T];
#pragma GCC unroll 6
            for (int column = 0; column < T; ++column) {
                const auto x = [&](int row) { return load(rows[row] + column * pixel + i * L); };
                input_rows<H, 0>(x, half[0][column], half[3][column]);
                input_rows<H, 1>(x, half[1][column], half[2][column]);
            }
#pragma GCC unroll 4
            for (int row = 0; row < 4; ++row) store_input_row<W>(out + i * step + row * T * element, element, half[row]);
        }
        return;
    }
    for (Size i = 0; i < vectors; ++i) transform_input<H, W>(out + i * step, element, rows, i * L, pixel);
}

// ---- outputs: Aᵀ m A -----------------------------------------------------------------------------------------

inline void output_line(const Vector (&m)[4], Vector (&y)[2]) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] - m[3];
}

inline void output_line(const Vector (&m)[6], Vector (&y)[4]) {
    const Vector sum = m[1] + m[2], difference = m[1] - m[2];
    const Vector sum2 = m[3] + m[4], difference2 = m[3] - m[4];
    y[0] = m[0] + (sum + sum2);
    y[1] = kRoot * (difference + 2 * difference2);
    y[2] = 0.5f * sum + 2 * sum2;
    y[3] = m[5] + (0.5f * kRoot) * (difference + 8 * difference2);
}

// As Kernels::WinogradOutput.
template <int H, int W>
void winograd_output(const float* in, Size element, Size vectors, float* const* out, Size pixel, int height, int width,
                     const float* bias, const float* const* added, Size added_pixel, bool rectified) {
    constexpr int T = W + 2;
    for (Size i = 0; i < vectors * L; i += L) {
        Vector half[H][T];
#pragma GCC unroll 6
        for (int column = 0; column < T; ++column) {
            Vector m[H + 2], y[H];
#pragma GCC unroll 6
            for (int row = 0; row < H + 2; ++row) m[row] = load(in + (row * T + column) * element + i);
            output_line(m, y);
#pragma GCC unroll 4
            for (int row = 0; row < H; ++row) half[row][column] = y[row];
        }
        const Vector b = load(bias + i);
#pragma GCC unroll 4
        for (int row = 0; row < H; ++row) {
            if (row >= height) break;
            Vector y[W];
            output_line(half[row], y);
#pragma GCC unroll 4
            for (int column = 0; column < W; ++column) {
                if (column >= width) break;
                Vector x = y[column] + b;
                if (added) x += load(added[row] + column * added_pixel + i);
                store(out[row] + column * pixel + i, rectified ? relu(x) : x);
            }
        }
    }
}

// ---- gradients of outputs: A g Aᵀ ----------------------------------------------------------------------------

inline void gradient_line(const Vector (&g)[2], Vector (&line)[4]) {
    line[0] = g[0];
    line[1] = g[0] + g[1];
    line[2] = g[0] - g[1];
    line[3] = -g[1];
}

inline void gradient_line(const Vector (&g)[4], Vector (&line)[6]) {
    const Vector even = g[0] + 0.5f * g[2], odd = kRoot * (g[1] + 0.5f * g[3]);
    const Vector even2 = g[0] + 2 * g[2], odd2 = (2 * kRoot) * (g[1] + 2 * g[3]);
    line[0] = g[0];
    line[1] = even + odd;
    line[2] = even - odd;
    line[3] = even2 + odd2;
    line[4] = even2 - odd2;
    line[5] = g[3];
}

template <int H, int W>
void winograd_gradient(float* out, Size element, Size step, const float* const* rows, Size pixel, Size vectors) {
    constexpr int T = W + 2;
    for (Size i = 0; i < vectors; ++i, out += step) {
        Vector half[H + 2][W];
#pragma GCC unroll 4
        for (int column = 0; column < W; ++column) {
            Vector g[H], line[H + 2];
#pragma GCC unroll 4
            for (int row = 0; row < H; ++row) g[row] = load(rows[row] + column * pixel + i * L);
            gradient_line(g, line);
#pragma GCC unroll 6
            for (int row = 0; row < H + 2; ++row) half[row][column] = line[row];
        }
#pragma GCC unroll 6
        for (int row = 0; row < H + 2; ++row) {
            Vector line[T];
            gradient_line(half[row], line);
#pragma GCC unroll 6
            for (int column = 0; column < T; ++column) store(out + (row * T + column) * element, line[column]);
        }
    }
}

// ---- filters: G g Gᵀ, and back: Gᵀ m G -----------------------------------------------------------------------

inline void filter_line(const Vector (&g)[3], Vector (&line)[4]) {
    const Vector ends = 0.5f * (g[0] + g[2]), middle = 0.5f * g[1];
    line[0] = g[0];
    line[1] = ends + middle;
    line[2] = ends - middle;
    line[3] = g[2];
}

inline void filter_line(const Vector (&g)[3], Vector (&line)[6]) {
    const Vector even = (2 * g[0] + g[2]) / -3, odd = (kRoot * 2 / 3) * g[1];
    const Vector even2 = (g[0] + 2 * g[2]) / 6, odd2 = (kRoot / 3) * g[1];
    line[0] = g[0];
    line[1] = even - odd;
    line[2] = even + odd;
    line[3] = even2 + odd2;
    line[4] = even2 - odd2;
    line[5] = g[2];
}

inline void filter_gradient_line(const Vector (&m)[4], Vector (&line)[3]) {
    const Vector sum = 0.5f * (m[1] + m[2]);
    line[0] = m[0] + sum;
    line[1] = 0.5f * (m[1] - m[2]);
    line[2] = sum + m[3];
}

inline void filter_gradient_line(const Vector (&m)[6], Vector (&line)[3]) {
    const Vector sum = m[1] + m[2], difference = m[1] - m[2];
    const Vector sum2 = m[3] + m[4], difference2 = m[3] - m[4];
    line[0] = m[0] + (sum2 - 4 * sum) / 6;
    line[1] = (kRoot / 3) * (difference2 - 2 * difference);
    line[2] = m[5] + (sum2 - sum) / 3;
}

// Of L filters: taps[9][L].
template <int H, int W>
void winograd_filter(float* out, Size element, const float* taps) {
    constexpr int T = W + 2;
    Vector half[3][H + 2];
    for (int column = 0; column < 3; ++column) {
        const Vector g[3] = {load(taps + column * L), load(taps + (3 + column) * L), load(taps + (6 + column) * L)};
        filter_line(g, half[column]);
    }
    for (int row = 0; row < H + 2; ++row) {
        const Vector g[3] = {half[0][row], half[1][row], half[2][row]};
        Vector line[T];
        filter_line(g, line);
        for (int column = 0; column < T; ++column) store(out + (row * T + column) * element, line[column]);
    }
}

template <int H, int W>
void winograd_filter_gradient(float* taps, const float* in, Size element) {
    constexpr int T = W + 2;
    Vector half[T][3];
    for (int column = 0; column < T; ++column) {
        Vector m[H + 2];
        for (int row = 0; row < H + 2; ++row) m[row] = load(in + (row * T + column) * element);
        filter_gradient_line(m, half[column]);
    }
    for (int row = 0; row < 3; ++row) {
        Vector m[T], line[3];
        for (int column = 0; column < T; ++column) m[column] = half[column][row];
        filter_gradient_line(m, line);
        for (int column = 0; column < 3; ++column) store(taps + (row * 3 + column) * L, line[column]);
    }
}

}  // namespace
}  // namespace skipnets
