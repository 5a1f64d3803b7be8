// The kernels (see kernels.h), written over vectors of SKIPNETS_LANES floats with the compilers' vector extension.
//
// This file is compiled once for each instruction set, with the flags that CMakeLists.txt gives. Everything but
// the table is in an anonymous namespace, and nothing from the standard library is called: an inline function
// compiled here for AVX-512 could otherwise be the copy that the linker keeps for the whole program, also for
// processors without AVX-512.

#include "kernels.h"
#include "vector.h"

namespace skipnets {

extern const PixelKernels SKIPNETS_PIXEL_TABLE;
extern const TrainingKernels SKIPNETS_TRAINING_TABLE;

namespace {

// NaN is larger than all, as in PyTorch and for relu()'s reason.
inline Vector larger(Vector a, Vector b) { return (a > b) | (a != a) ? a : b; }

// ---- products ------------------------------------------------------------------------------------------------

// One register tile: R·V sums stay in registers for the whole depth. Each step loads V vectors of weights, and for
// each row broadcasts one float. On AVX-512, 14·2 sums, 2 weights and 1 broadcast fill 31 of the 32 registers,
// and 28 multiply-adds hide both their own latency and 16 loads.
template <int R, int V>
void multiply(const float* __restrict rows, const float* __restrict panel, Size depth, const Rows& io) {
    Vector sum[R][V];
#pragma GCC unroll 32
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) sum[r][v] = load(io.start[r] + io.start_offset + v * L);

    const auto step = [&](Size k) __attribute__((always_inline)) {
        Vector weights[V];
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) weights[v] = load(panel + v * L);
        // Eight steps ahead: the panel comes from the second-level cache.
        __builtin_prefetch(panel + 8 * V * L);
        if (V * L > 16) __builtin_prefetch(panel + 8 * V * L + 16);
        panel += V * L;
#pragma GCC unroll 32
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) sum[r][v] += rows[r * L + k] * weights[v];
    };
    for (; depth >= L; depth -= L, rows += R * L)
#pragma GCC unroll 4
        for (Size k = 0; k < L; ++k) step(k);
    for (Size k = 0; k < depth; ++k) step(k);

    // Asked once, not for every vector: the compiler must assume that a store changes what `io` points to.
    if (const float* const* added = io.added)
#pragma GCC unroll 32
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) sum[r][v] += load(added[r] + io.added_offset + v * L);
    if (io.relu)
#pragma GCC unroll 32
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) sum[r][v] = relu(sum[r][v]);
    float* const* out = io.out;
    const Size offset = io.out_offset;
#pragma GCC unroll 32
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) store(out[r] + offset + v * L, sum[r][v]);
}

template <int V, int Most, int R = Most>
constexpr void list_products(Multiply* list) {
    list[R] = multiply<R, V>;
    if constexpr (R > 1) list_products<V, Most, R - 1>(list);
}

// ---- packing -------------------------------------------------------------------------------------------------

template <class Take>
inline void pack_with(float* __restrict packed, int rows, Size vectors, Take take) {
    for (Size i = 0; i < vectors; ++i)
        for (int r = 0; r < rows; ++r) store(packed + (i * rows + r) * L, take(r, i));
}

void pack(float* packed, int rows, const float* const* source, Size offset, Size vectors) {
    pack_with(packed, rows, vectors, [=](int r, Size i) { return load(source[r] + offset + i * L); });
}

void pack_activated(float* packed, int rows, const float* const* source, Size offset, Size vectors,
                    const float* scale, const float* shift) {
    for (Size i = 0; i < vectors; ++i, offset += L, packed += rows * L) {
        const Vector s = load(scale + i * L), t = load(shift + i * L);
        for (int r = 0; r < rows; ++r) store(packed + r * L, relu(load(source[r] + offset) * s + t));
    }
}

void pack_gated(float* packed, int rows, const float* const* source, const float* const* factors, Size offset,
                Size vectors) {
    pack_with(packed, rows, vectors, [=](int r, Size i) {
        return load(source[r] + offset + i * L) * load(factors[r] + offset + i * L);
    });
}

void pack_pooled(float* packed, int rows, const float* const* source, Size offset, Size vectors, const float* scale,
                 const float* shift, Size pixel, Size row) {
    for (Size i = 0; i < vectors; ++i, offset += L, packed += rows * L) {
        const Vector s = load(scale + i * L), t = load(shift + i * L);
        for (int r = 0; r < rows; ++r) {
            const float* p = source[r] + offset;
            store(packed + r * L, (relu(load(p) * s + t) + relu(load(p + pixel) * s + t)) +
                                      (relu(load(p + row) * s + t) + relu(load(p + row + pixel) * s + t)));
        }
    }
}

void pack_runs(float* packed, int rows, const float* const* source, const Size* offsets, int count, int length,
               float* lines) {
    const Size vectors = (Size(count) * length + L - 1) / L, stride = (vectors + 1) * L;
    // All lines are written before the first is read: a load that spans two stores still under way would wait.
    for (int r = 0; r < rows; ++r) {
        float* end = lines + r * stride;
        for (int i = 0; i < count; ++i, end += length)
            // Whole vectors: what is written too far is overwritten by the next run.
            for (int k = 0; k < length; k += L) store(end + k, load(source[r] + offsets[i] + k));
    }
    for (Size i = 0; i < vectors; ++i)
        for (int r = 0; r < rows; ++r) store(packed + (i * rows + r) * L, load(lines + r * stride + i * L));
}

// ---- Winograd ------------------------------------------------------------------------------------------------

// Bᵀd and Aᵀm of one column or row; the matrices are in winograd.h. Written out because half of the multiplications
// are by ±1 and pairs of rows share their sums.
//
// The rows of Bᵀ come in pairs: those two of the result need the same inputs. The transform of a tile goes pair by
// pair: both rows of Bᵀd for all columns stay in registers until they are multiplied by B, and nothing is spilled;
// the price is that inputs are loaded for each pair that needs them, from the first-level cache.
constexpr float kRoot = 0.70710678118654752440f;  // r in winograd.h

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

// One row of Bᵀd times B.
template <int M, int Pair = 0>
inline void store_input_row(float* out, Size element, const Vector (&half)[M + 2]) {
    Vector first, second;
    input_rows<M, Pair>([&](int i) { return half[i]; }, first, second);
    store(out + kFirstRow<M, Pair> * element, first);
    store(out + kSecondRow<M, Pair> * element, second);
    if constexpr (Pair + 1 < kPairs<M>) store_input_row<M, Pair + 1>(out, element, half);
}

template <int M, int Pair = 0>
inline void transform_input(float* out, Size element, const float* const* rows, Size offset, Size pixel) {
    constexpr int T = M + 2;
    Vector first[T], second[T];
#pragma GCC unroll 6
    for (int column = 0; column < T; ++column)
        input_rows<M, Pair>([&](int i) { return load(rows[i] + column * pixel + offset); }, first[column],
                            second[column]);
    store_input_row<M>(out + kFirstRow<M, Pair> * T * element, element, first);
    store_input_row<M>(out + kSecondRow<M, Pair> * T * element, element, second);
    if constexpr (Pair + 1 < kPairs<M>) transform_input<M, Pair + 1>(out, element, rows, offset, pixel);
}

template <int M>
void winograd_input(float* out, Size element, Size step, const float* const* rows, Size pixel, Size vectors) {
    // A tile of 4×4 fits 32 registers: everything is loaded once.
    if constexpr (M == 2 && SKIPNETS_ROWS_1 == 24) {
        for (Size i = 0; i < vectors; ++i) {
            Vector half[4][4];
#pragma GCC unroll 4
            for (int column = 0; column < 4; ++column) {
                const auto x = [&](int row) { return load(rows[row] + column * pixel + i * L); };
                input_rows<M, 0>(x, half[0][column], half[3][column]);
                input_rows<M, 1>(x, half[1][column], half[2][column]);
            }
#pragma GCC unroll 4
            for (int row = 0; row < 4; ++row) store_input_row<M>(out + i * step + row * 4 * element, element, half[row]);
        }
        return;
    }
    for (Size i = 0; i < vectors; ++i) transform_input<M>(out + i * step, element, rows, i * L, pixel);
}

template <int M>
void winograd_output(const float* in, Size element, Size vectors, float* const* out, Size pixel, int height, int width,
                     const float* bias, const float* const* added, Size added_pixel, bool rectified) {
    constexpr int T = M + 2;
    for (Size i = 0; i < vectors * L; i += L) {
        Vector half[M][T];
#pragma GCC unroll 6
        for (int column = 0; column < T; ++column) {
            Vector m[T], y[M];
#pragma GCC unroll 6
            for (int row = 0; row < T; ++row) m[row] = load(in + (row * T + column) * element + i);
            output_line(m, y);
#pragma GCC unroll 4
            for (int row = 0; row < M; ++row) half[row][column] = y[row];
        }
        const Vector b = load(bias + i);
#pragma GCC unroll 4
        for (int row = 0; row < M; ++row) {
            if (row >= height) break;
            Vector y[M];
            output_line(half[row], y);
#pragma GCC unroll 4
            for (int column = 0; column < M; ++column) {
                if (column >= width) break;
                Vector x = y[column] + b;
                if (added) x += load(added[row] + column * added_pixel + i);
                store(out[row] + column * pixel + i, rectified ? relu(x) : x);
            }
        }
    }
}

// ---- elementwise ---------------------------------------------------------------------------------------------

void elementwise(float* out, const float* in, const float* scale, const float* shift, const float* added,
                 bool rectified, Size vectors) {
    for (Size i = 0; i < vectors * L; i += L) {
        Vector x = load(in + i);
        if (scale) x = x * load(scale + i) + load(shift + i);
        if (added) x += load(added + i);
        store(out + i, rectified ? relu(x) : x);
    }
}

void largest(float* out, const float* const* in, int count, Size vectors) {
    for (Size i = 0; i < vectors * L; i += L) {
        Vector x = load(in[0] + i);
        for (int j = 1; j < count; ++j) x = larger(x, load(in[j] + i));
        store(out + i, x);
    }
}

void mean(float* out, const float* const* in, int count, float divisor, const float* scale, const float* shift,
          Size vectors) {
    for (Size i = 0; i < vectors * L; i += L) {
        Vector sum{};
        if (scale) {
            const Vector s = load(scale + i), t = load(shift + i);
            for (int j = 0; j < count; ++j) sum += relu(load(in[j] + i) * s + t);
        } else {
            for (int j = 0; j < count; ++j) sum += load(in[j] + i);
        }
        store(out + i, sum / divisor);
    }
}

float peak(long rounds) {
    constexpr int N = 2 * SKIPNETS_ROWS_2;
    Vector sum[N];
    for (int i = 0; i < N; ++i) sum[i] = Vector{} + float(i);
    Vector x = Vector{} + 0.5f, y = Vector{} + 0.25f;
    for (long round = 0; round < rounds; ++round) {
#pragma GCC unroll 32
        for (int i = 0; i < N; ++i) sum[i] = sum[i] * x + y;
    }
    Vector total{};
    for (int i = 0; i < N; ++i) total += sum[i];
    float result = 0;
    for (int i = 0; i < L; ++i) result += total[i];
    return result;
}

constexpr Kernels make_table() {
    Kernels table{};
    table.name = SKIPNETS_ISA;
    table.lanes = L;
    table.rows[1] = SKIPNETS_ROWS_1;
    table.rows[2] = SKIPNETS_ROWS_2;
    list_products<1, SKIPNETS_ROWS_1>(table.multiply[1]);
    list_products<2, SKIPNETS_ROWS_2>(table.multiply[2]);
    table.pack = pack;
    table.pack_activated = pack_activated;
    table.pack_gated = pack_gated;
    table.pack_pooled = pack_pooled;
    table.pack_runs = pack_runs;
    table.winograd_input[0] = winograd_input<2>;
    table.winograd_input[1] = winograd_input<4>;
    table.winograd_output[0] = winograd_output<2>;
    table.winograd_output[1] = winograd_output<4>;
    table.elementwise = elementwise;
    table.largest = largest;
    table.mean = mean;
    table.peak = peak;
    table.pixel = &SKIPNETS_PIXEL_TABLE;
    table.training = &SKIPNETS_TRAINING_TABLE;
    return table;
}

}  // namespace

extern const Kernels SKIPNETS_TABLE;
const Kernels SKIPNETS_TABLE = make_table();

}  // namespace skipnets
