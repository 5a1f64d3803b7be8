// The kernels of training (see training_kernels.h). This file is compiled once for each instruction set.

#include "training_kernels.h"

#include "vector.h"
#include "winograd_vectors.h"

namespace skipnets {
namespace {

// The first n < L floats, and 0 behind them.
inline Vector load_part(const float* p, Size n) {
#if SKIPNETS_LANES == 16
    return _mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p);
#else
    Vector x{};
    for (Size i = 0; i < n; ++i) x[i] = p[i];
    return x;
#endif
}

inline void store_part(float* p, Vector x, Size n) {
#if SKIPNETS_LANES == 16
    _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), x);
#else
    for (Size i = 0; i < n; ++i) p[i] = x[i];
#endif
}

// How the last vector of a row that is not padded is read and written.
struct Whole {
    Vector read(const float* p) const { return load(p); }
    void write(float* p, Vector x) const { store(p, x); }
};

struct Part {
    Size n;
    Vector read(const float* p) const { return load_part(p, n); }
    void write(float* p, Vector x) const { store_part(p, x, n); }
};

template <int N>
struct Count {
    constexpr int operator()() const { return N; }
};

// Calls work(first column, Whole or Part) for each vector of `columns`.
template <class Work>
inline void for_vectors(Size columns, Work work) {
    Size column = 0;
    for (; column + L <= columns; column += L) work(column, Whole{});
    if (column < columns) work(column, Part{columns - column});
}

// ---- weight gradients ----------------------------------------------------------------------------------------

template <int R, int V>
void outer(const ConstMatrix& a, Size a_gap, const ConstMatrix& b, Size b_gap, const Lines& pixels,
           const Matrix& out) {
    Vector sum[R][V]{};
    const float *left = a.data, *right = b.data;
    const Size left_stride = a.stride, right_stride = b.stride;
    for (Size line = 0; line < pixels.lines; ++line, left += a_gap, right += b_gap)
        for (Size i = 0; i < pixels.length; ++i, left += left_stride, right += right_stride) {
            Vector values[V];
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) values[v] = load(right + v * L);
#pragma GCC unroll 32
            for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
                for (int v = 0; v < V; ++v) sum[r][v] += left[r] * values[v];
        }
#pragma GCC unroll 32
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) {
            float* p = out.data + r * out.stride + v * L;
            store(p, load(p) + sum[r][v]);
        }
}

template <int V, int Most, int R = Most>
constexpr void list_outer(Outer* list) {
    list[R] = outer<R, V>;
    if constexpr (R > 1) list_outer<V, Most, R - 1>(list);
}

// ---- pixel by pixel ------------------------------------------------------------------------------------------

// Some neighboring vectors of each row, one row after another: lines of the cache that lie together are read together,
// and what is summed stays in registers.
constexpr int kTogether = 4;

// Calls work(how many vectors, first column, Whole or Part) for all columns, kTogether vectors at a time: what belongs
// to a column stays in registers.
template <class Work>
inline void for_columns(Size columns, Work work) {
    Size c = 0;
    for (; c + kTogether * L <= columns; c += kTogether * L) work(Count<kTogether>{}, c, Whole{});
    for (; c + L <= columns; c += L) work(Count<1>{}, c, Whole{});
    if (c < columns) work(Count<1>{}, c, Part{columns - c});
}

// The same for some rows at a time, few of them where rows are long, so that memory is walked through in one line.
template <class Work>
inline void for_rows(Size rows, Size columns, Work work) {
    const Size together = columns <= kTogether * L ? rows : 1;
    for (Size row = 0; row < rows; row += together)
        for_columns(columns, [&](auto count, Size c, auto part) { work(row, together, count, c, part); });
}

void activate(const Matrix& out, const ConstMatrix& x, Size rows, Size columns, const float* scale,
              const float* shift) {
    for_rows(rows, columns, [&](Size row, Size some, auto count, Size c, auto part) {
        constexpr int N = count();
        Vector s[N], t[N];
        for (int v = 0; v < N; ++v) s[v] = part.read(scale + c + v * L), t[v] = part.read(shift + c + v * L);
        float* to = out.data + row * out.stride + c;
        const float* from = x.data + row * x.stride + c;
        for (Size r = 0; r < some; ++r, to += out.stride, from += x.stride)
#pragma GCC unroll 4
            for (int v = 0; v < N; ++v) store(to + v * L, relu(part.read(from + v * L) * s[v] + t[v]));
    });
}

template <bool Padded>
void combine(const Matrix& out, const ConstMatrix& a, const ConstMatrix& b, Size rows, Size columns,
             const float* scale, const float* slope, const float* offset) {
    for_rows(rows, columns, [&](Size row, Size some, auto count, Size c, auto part) {
        constexpr int N = count();
        Vector s[N], m[N], t[N];
        for (int v = 0; v < N; ++v) {
            s[v] = scale ? part.read(scale + c + v * L) : Vector{} + 1;
            m[v] = part.read(slope + c + v * L);
            t[v] = part.read(offset + c + v * L);
        }
        float* to = out.data + row * out.stride + c;
        const float *one = a.data + row * a.stride + c, *other = b.data + row * b.stride + c;
        for (Size r = 0; r < some; ++r, to += out.stride, one += a.stride, other += b.stride)
#pragma GCC unroll 4
            for (int v = 0; v < N; ++v) {
                const Vector y = part.read(one + v * L) * s[v] + (part.read(other + v * L) * m[v] + t[v]);
                Padded ? store(to + v * L, y) : part.write(to + v * L, y);
            }
    });
}

template <int N, class Part>
inline void copy_columns(const Matrix& out, const ConstMatrix& x, Size rows, Size c, Part part, float* mean,
                         float* squares) {
    Vector sum[N]{}, deviations[N]{}, average[N];
    for (Size r = 0; r < rows; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < N; ++v) {
            const Vector value = part.read(x.data + r * x.stride + c + v * L);
            sum[v] += value;
            if (out.data) part.write(out.data + r * out.stride + c + v * L, value);
        }
    for (int v = 0; v < N; ++v) average[v] = sum[v] / float(rows);
    for (Size r = 0; r < rows; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < N; ++v) {
            const Vector deviation = part.read(x.data + r * x.stride + c + v * L) - average[v];
            deviations[v] += deviation * deviation;
        }
    for (int v = 0; v < N; ++v) {
        part.write(mean + c + v * L, average[v]);
        part.write(squares + c + v * L, deviations[v]);
    }
}

void copy_with_statistics(const Matrix& out, const ConstMatrix& x, Size rows, Size columns, float* mean,
                          float* squares) {
    for_columns(columns, [&](auto count, Size c, auto part) {
        copy_columns<count()>(out, x, rows, c, part, mean, squares);
    });
}

template <bool Adds, int N, class Part>
inline void mask_columns(const Matrix& out, const ConstMatrix& base, const ConstMatrix& gradient,
                         const ConstMatrix& x, Size rows, Size c, Part part, const float* scale, const float* shift,
                         const float* mean, float* sum, float* product) {
    Vector s[N], t[N], center[N], total[N]{}, products[N]{};
    for (int v = 0; v < N; ++v) {
        s[v] = part.read(scale + c + v * L);
        t[v] = part.read(shift + c + v * L);
        center[v] = part.read(mean + c + v * L);
    }
    for (Size r = 0; r < rows; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < N; ++v) {
            const Vector value = part.read(x.data + r * x.stride + c + v * L);
            const Vector given = load(gradient.data + r * gradient.stride + c + v * L);
            // As PyTorch: where the norm's output is NaN the gradient passes.
            const Vector passed = value * s[v] + t[v] <= 0 ? Vector{} : given;
            total[v] += passed;
            products[v] += passed * (value - center[v]);
            const Vector added = Adds ? part.read(base.data + r * base.stride + c + v * L) + s[v] * passed : passed;
            part.write(out.data + r * out.stride + c + v * L, added);
        }
    for (int v = 0; v < N; ++v) {
        part.write(sum + c + v * L, total[v]);
        part.write(product + c + v * L, products[v]);
    }
}

void mask(const Matrix& out, const ConstMatrix& gradient, const ConstMatrix& x, Size rows, Size columns,
          const float* scale, const float* shift, const float* mean, float* sum, float* product) {
    for_columns(columns, [&](auto count, Size c, auto part) {
        mask_columns<false, count()>(out, out, gradient, x, rows, c, part, scale, shift, mean, sum, product);
    });
}

void mask_and_add(const Matrix& out, const ConstMatrix& base, const ConstMatrix& gradient, const ConstMatrix& x,
                  Size rows, Size columns, const float* scale, const float* shift, const float* mean, float* sum,
                  float* product) {
    for_columns(columns, [&](auto count, Size c, auto part) {
        mask_columns<true, count()>(out, base, gradient, x, rows, c, part, scale, shift, mean, sum, product);
    });
}

// ---- residual blocks -----------------------------------------------------------------------------------------

void copy(const Matrix& out, const ConstMatrix& x, Size rows, Size columns) {
    for (Size r = 0; r < rows; ++r) {
        float* to = out.data + r * out.stride;
        const float* from = x.data + r * x.stride;
        for_vectors(columns, [&](Size c, auto part) { store(to + c, part.read(from + c)); });
    }
}

void add(const Matrix& out, const ConstMatrix& x, Size rows, Size columns, bool adds) {
    for (Size r = 0; r < rows; ++r) {
        float* to = out.data + r * out.stride;
        const float* from = x.data + r * x.stride;
        for_vectors(columns, [&](Size c, auto part) {
            part.write(to + c, adds ? part.read(to + c) + part.read(from + c) : part.read(from + c));
        });
    }
}

void add_and_activate(const Matrix& out, const ConstMatrix& x, const float* scale, const float* shift,
                      const ConstMatrix& added, const float* added_scale, const float* added_shift, Size rows,
                      Size columns) {
    for_rows(rows, columns, [&](Size row, Size some, auto count, Size c, auto part) {
        constexpr int N = count();
        Vector s[N], t[N], m[N];
        for (int v = 0; v < N; ++v) {
            s[v] = part.read(scale + c + v * L), t[v] = part.read(shift + c + v * L);
            m[v] = added_scale ? part.read(added_scale + c + v * L) : Vector{} + 1;
            if (added_scale) t[v] += part.read(added_shift + c + v * L);
        }
        float* to = out.data + row * out.stride + c;
        const float* from = x.data + row * x.stride + c;
        const float* other = added.data ? added.data + row * added.stride + c : nullptr;
        for (Size r = 0; r < some; ++r, to += out.stride, from += x.stride)
#pragma GCC unroll 4
            for (int v = 0; v < N; ++v) {
                Vector y = part.read(from + v * L) * s[v] + t[v];
                if (other) y += part.read(other + r * added.stride + v * L) * m[v];
                part.write(to + v * L, relu(y));
            }
    });
}

template <int N, class Part>
inline void mask_columns_by_output(const Matrix& out, const ConstMatrix& gradient, const ConstMatrix& y,
                                   const ConstMatrix& x, Size rows, Size c, Part part, const float* mean, float* sum,
                                   float* product) {
    Vector center[N], total[N]{}, products[N]{};
    for (int v = 0; v < N; ++v) center[v] = part.read(mean + c + v * L);
    for (Size r = 0; r < rows; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < N; ++v) {
            const Vector output = part.read(y.data + r * y.stride + c + v * L);
            const Vector given = part.read(gradient.data + r * gradient.stride + c + v * L);
            const Vector passed = output <= 0 ? Vector{} : given;  // NaN passes, as in `mask`
            total[v] += passed;
            products[v] += passed * (part.read(x.data + r * x.stride + c + v * L) - center[v]);
            part.write(out.data + r * out.stride + c + v * L, passed);
        }
    for (int v = 0; v < N; ++v) {
        part.write(sum + c + v * L, total[v]);
        part.write(product + c + v * L, products[v]);
    }
}

void mask_by_output(const Matrix& out, const ConstMatrix& gradient, const ConstMatrix& y, const ConstMatrix& x,
                    Size rows, Size columns, const float* mean, float* sum, float* product) {
    for_columns(columns, [&](auto count, Size c, auto part) {
        mask_columns_by_output<count()>(out, gradient, y, x, rows, c, part, mean, sum, product);
    });
}

void sum_products(const ConstMatrix& gradient, const ConstMatrix& x, Size rows, Size columns, const float* mean,
                  float* sum, float* product) {
    for_columns(columns, [&](auto count, Size c, auto part) {
        constexpr int N = count();
        Vector center[N], total[N]{}, products[N]{};
        for (int v = 0; v < N; ++v) center[v] = part.read(mean + c + v * L);
        for (Size r = 0; r < rows; ++r)
#pragma GCC unroll 4
            for (int v = 0; v < N; ++v) {
                const Vector given = part.read(gradient.data + r * gradient.stride + c + v * L);
                total[v] += given;
                products[v] += given * (part.read(x.data + r * x.stride + c + v * L) - center[v]);
            }
        for (int v = 0; v < N; ++v) {
            if (sum) part.write(sum + c + v * L, total[v]);
            part.write(product + c + v * L, products[v]);
        }
    });
}

// ---- transitions ---------------------------------------------------------------------------------------------

// Where the four pixels of a square are, from its first one.
struct Square {
    Size pixel[4];

    Square(Size stride, Size line) : pixel{0, stride, line, line + stride} {}
};

void pool_activated(const Matrix& out, const ConstMatrix& x, Size line, Size count, Size columns, const float* scale,
                    const float* shift) {
    const Square square(x.stride, line);
    for_rows(count, columns, [&](Size first, Size some, auto together, Size c, auto part) {
        constexpr int N = together();
        Vector s[N], t[N];
        for (int v = 0; v < N; ++v) s[v] = part.read(scale + c + v * L), t[v] = part.read(shift + c + v * L);
        for (Size i = first; i < first + some; ++i)
#pragma GCC unroll 4
            for (int v = 0; v < N; ++v) {
                const float* from = x.data + 2 * i * x.stride + c + v * L;
                Vector y[4];
                for (int p = 0; p < 4; ++p) y[p] = relu(part.read(from + square.pixel[p]) * s[v] + t[v]);
                store(out.data + i * out.stride + c + v * L, 0.25f * ((y[0] + y[1]) + (y[2] + y[3])));
            }
    });
}

void sum_spread(const ConstMatrix& gradient, const ConstMatrix& x, Size line, Size count, Size columns,
                const float* scale, const float* shift, const float* mean, float* sum, float* product) {
    const Square square(x.stride, line);
    for_columns(columns, [&](auto together, Size c, auto part) {
        constexpr int N = together();
        Vector s[N], t[N], center[N], total[N], products[N];
        for (int v = 0; v < N; ++v) {
            s[v] = part.read(scale + c + v * L), t[v] = part.read(shift + c + v * L);
            center[v] = part.read(mean + c + v * L);
            total[v] = part.read(sum + c + v * L), products[v] = part.read(product + c + v * L);
        }
        for (Size i = 0; i < count; ++i)
#pragma GCC unroll 4
            for (int v = 0; v < N; ++v) {
                const Vector given = load(gradient.data + i * gradient.stride + c + v * L);
                const float* from = x.data + 2 * i * x.stride + c + v * L;
                // The four are summed first, which rounds less.
                Vector some[2]{}, multiplied[2]{};
                for (int p = 0; p < 4; ++p) {
                    const Vector value = part.read(from + square.pixel[p]);
                    const Vector passed = value * s[v] + t[v] <= 0 ? Vector{} : given;  // NaN passes, as in `mask`
                    some[p / 2] += passed;
                    multiplied[p / 2] += passed * (value - center[v]);
                }
                total[v] += some[0] + some[1];
                products[v] += multiplied[0] + multiplied[1];
            }
        for (int v = 0; v < N; ++v) {
            part.write(sum + c + v * L, total[v]);
            part.write(product + c + v * L, products[v]);
        }
    });
}

void spread(const Matrix& out, const ConstMatrix& gradient, const ConstMatrix& x, Size line, Size count, Size columns,
            const float* scale, const float* shift, const float* slope, const float* offset) {
    const Square square(x.stride, line);
    for_rows(count, columns, [&](Size first, Size some, auto together, Size c, auto part) {
        constexpr int N = together();
        Vector s[N], t[N], m[N], o[N];
        for (int v = 0; v < N; ++v) {
            s[v] = part.read(scale + c + v * L), t[v] = part.read(shift + c + v * L);
            m[v] = part.read(slope + c + v * L), o[v] = part.read(offset + c + v * L);
        }
        for (Size i = first; i < first + some; ++i)
#pragma GCC unroll 4
            for (int v = 0; v < N; ++v) {
                const Vector given = s[v] * part.read(gradient.data + i * gradient.stride + c + v * L);
                const Size place = 2 * i * x.stride + c + v * L;
                for (int p = 0; p < 4; ++p) {
                    const Vector value = part.read(x.data + place + square.pixel[p]);
                    const Vector passed = value * s[v] + t[v] <= 0 ? Vector{} : given;
                    part.write(out.data + place + square.pixel[p], passed + (value * m[v] + o[v]));
                }
            }
    });
}

// ---- stems ---------------------------------------------------------------------------------------------------

void gather(const Matrix& out, const float* const* source, int runs, Size length, Size step, Size rows) {
    for (Size r = 0; r < rows; ++r) {
        float* to = out.data + r * out.stride;
        // Whole vectors: what is written too far is overwritten by the next run.
        for (int i = 0; i < runs; ++i, to += length)
            for (Size k = 0; k < length; k += L) store(to + k, load(source[i] + r * step + k));
        store(to, Vector{});
    }
}

typedef int Integers __attribute__((vector_size(4 * L)));
typedef unsigned char Bytes __attribute__((vector_size(L)));

inline Integers load_bytes(const unsigned char* p, Size n) {
    Bytes bytes{};
    if (n == L)
        __builtin_memcpy(&bytes, p, L);
    else
        for (Size i = 0; i < n; ++i) bytes[i] = p[i];
    return __builtin_convertvector(bytes, Integers);
}

inline void store_bytes(unsigned char* p, Integers x, Size n) {
    const Bytes bytes = __builtin_convertvector(x, Bytes);
    if (n == L)
        __builtin_memcpy(p, &bytes, L);
    else
        for (Size i = 0; i < n; ++i) p[i] = bytes[i];
}

inline Size lanes_of(const Whole&) { return L; }
inline Size lanes_of(const Part& part) { return part.n; }

void max_pool(const Matrix& out, unsigned char* places, const float* const* x, Size width, Size columns,
              const float* scale, const float* shift) {
    for (Size i = 0; 2 * i < width; ++i, places += columns) {
        const Size first = i == 0 ? 0 : 2 * i - 1, last = 2 * i + 1 < width ? 2 * i + 1 : 2 * i;
        for_vectors(columns, [&](Size c, auto part) {
            const Vector s = part.read(scale + c), t = part.read(shift + c);
            Vector largest{};  // Where nothing is above 0 the ReLU lets no gradient through.
            Integers place = Integers{} + kNowhere;
            for (int line = 0; line < 3; ++line) {
                if (x[line] == nullptr) continue;
                for (Size pixel = first; pixel <= last; ++pixel) {
                    const Vector value = part.read(x[line] + pixel * columns + c) * s + t;
                    const Integers number = Integers{} + int(3 * line + pixel - (2 * i - 1));
                    // As PyTorch: the first of equal ones, and NaN before all.
                    const Integers taken = (value > largest) | (value != value);
                    largest = taken ? value : largest;
                    place = taken ? number : place;
                }
            }
            part.write(out.data + i * out.stride + c, largest);
            store_bytes(places + c, place, lanes_of(part));
        });
    }
}

void max_unpool(const Matrix& out, const float* const* gradient, const unsigned char* const* places, const int* first,
                Size width, Size columns) {
    const Size pooled = (width + 1) / 2;
    for (Size pixel = 0; pixel < width; ++pixel) {
        const Size begin = pixel / 2, end = pixel % 2 == 1 && begin + 1 < pooled ? begin + 2 : begin + 1;
        for_vectors(columns, [&](Size c, auto part) {
            Vector sum{};
            for (int line = 0; line < 2; ++line) {
                if (gradient[line] == nullptr) continue;
                for (Size i = begin; i < end; ++i) {
                    const Integers number = Integers{} + int(first[line] + pixel - (2 * i - 1));
                    const Integers place = load_bytes(places[line] + i * columns + c, lanes_of(part));
                    sum += place == number ? part.read(gradient[line] + i * columns + c) : Vector{};
                }
            }
            store(out.data + pixel * out.stride + c, sum);
        });
    }
}

template <int H, int W>
constexpr TileKernels tile_kernels() {
    return {H, W, winograd_input<H, W>, winograd_output<H, W>, winograd_filter<H, W>, winograd_gradient<H, W>,
            winograd_filter_gradient<H, W>};
}

constexpr TrainingKernels make_table() {
    TrainingKernels table{};
    list_outer<1, SKIPNETS_ROWS_1>(table.outer[1]);
    list_outer<2, SKIPNETS_ROWS_2>(table.outer[2]);
    table.square = tile_kernels<2, 2>();
    table.wide = tile_kernels<2, 4>();
    table.large = tile_kernels<4, 4>();
    table.activate = activate;
    table.combine = combine<true>;
    table.combine_exact = combine<false>;
    table.copy_with_statistics = copy_with_statistics;
    table.mask = mask;
    table.mask_and_add = mask_and_add;
    table.copy = copy;
    table.add = add;
    table.add_and_activate = add_and_activate;
    table.mask_by_output = mask_by_output;
    table.sum_products = sum_products;
    table.pool_activated = pool_activated;
    table.sum_spread = sum_spread;
    table.spread = spread;
    table.gather = gather;
    table.max_pool = max_pool;
    table.max_unpool = max_unpool;
    return table;
}

}  // namespace

extern const TrainingKernels SKIPNETS_TRAINING_TABLE;
const TrainingKernels SKIPNETS_TRAINING_TABLE = make_table();

}  // namespace skipnets
