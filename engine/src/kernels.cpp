// The kernels (see kernels.h), written over vectors of SKIPNETS_LANES floats with the compilers' vector extension.
//
// This file is compiled once for each instruction set, with the flags that CMakeLists.txt gives. Everything but
// the table is in an anonymous namespace, and nothing from the standard library is called: an inline function
// compiled here for AVX-512 could otherwise be the copy that the linker keeps for the whole program, also for
// processors without AVX-512.

#include "kernels.h"
#include "vector.h"
#include "winograd_vectors.h"

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

#pragma GCC unroll 32
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) {
            if (io.added) sum[r][v] += load(io.added[r] + io.added_offset + v * L);
            if (io.relu) sum[r][v] = relu(sum[r][v]);
            store(io.out[r] + io.out_offset + v * L, sum[r][v]);
        }
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
    table.winograd_input[0] = winograd_input<2, 2>;
    table.winograd_input[1] = winograd_input<4, 4>;
    table.winograd_output[0] = winograd_output<2, 2>;
    table.winograd_output[1] = winograd_output<4, 4>;
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
