// The loops of training that inference does not have, as a table of functions: one table an instruction set.
//
// Shapes: L lanes of a vector. A matrix is rows (pixels) × columns (channels) with a stride, in floats, between its
// rows. "Padded" ones are scratch of this library: their rows are whole vectors, with zeros behind the last column.
// Of all others no more is read and written than their columns.

#pragma once

#include <cstddef>

#include "kernels.h"

namespace skipnets {

struct Matrix {
    float* data;
    std::ptrdiff_t stride;
};

struct ConstMatrix {
    const float* data;
    std::ptrdiff_t stride;

    ConstMatrix(const float* data, std::ptrdiff_t stride) : data(data), stride(stride) {}
    ConstMatrix(const Matrix& matrix) : data(matrix.data), stride(matrix.stride) {}
};

/// The pixels over which a sum of products goes: `lines` lines of `length` neighbors.
struct Lines {
    std::ptrdiff_t lines, length;
};

/// out[r][…] += Σ over pixels p of a[p][r] · b[p][…]: R rows of V vectors. `a_gap` and `b_gap` are what is skipped
/// between the end of a line and the next one, in floats.
using Outer = void (*)(const ConstMatrix& a, std::ptrdiff_t a_gap, const ConstMatrix& b, std::ptrdiff_t b_gap,
                       const Lines& pixels, const Matrix& out);

// Of the largest tile: elements, and lines of outputs.
constexpr int kMostElements = 36, kMostTile = 4;

/// Winograd's transforms (winograd.h) between a tile of H×W outputs and its E = (H+2)·(W+2) elements. In a tile
/// rows[i] + j·pixel is number (i, j); element e of the E is e·element floats behind the first.
struct TileKernels {
    int height, width;
    Kernels::WinogradInput input;
    Kernels::WinogradOutput output;
    /// G g Gᵀ of L filters, taps[9][L].
    void (*filter)(float* out, std::ptrdiff_t element, const float* taps);
    /// A g Aᵀ of the gradients of a tile's outputs, vector by vector to out + vector·step.
    void (*gradient)(float* out, std::ptrdiff_t element, std::ptrdiff_t step, const float* const* rows,
                     std::ptrdiff_t pixel, std::ptrdiff_t vectors);
    /// Gᵀ m G of L gradients of transformed filters: those of the filters, taps[9][L].
    void (*filter_gradient)(float* taps, const float* in, std::ptrdiff_t element);

    int elements() const { return (height + 2) * (width + 2); }
};

/// The place of a maximum that the ReLU made.
constexpr unsigned char kNowhere = 9;

struct TrainingKernels {
    Outer outer[kWidestPanel + 1][kMaxRows + 1];  // [V][R]; null where R is more than Kernels::rows[V]

    TileKernels square, wide, large;  // 2×2, 2×4 and 4×4

    /// Padded out = relu(scale · x + shift).
    void (*activate)(const Matrix& out, const ConstMatrix& x, std::ptrdiff_t rows, std::ptrdiff_t columns,
                     const float* scale, const float* shift);
    /// Padded out = a · scale + b · slope + offset; a null scale is 1.
    void (*combine)(const Matrix& out, const ConstMatrix& a, const ConstMatrix& b, std::ptrdiff_t rows,
                    std::ptrdiff_t columns, const float* scale, const float* slope, const float* offset);
    /// The same into a matrix that is not padded.
    void (*combine_exact)(const Matrix& out, const ConstMatrix& a, const ConstMatrix& b, std::ptrdiff_t rows,
                          std::ptrdiff_t columns, const float* scale, const float* slope, const float* offset);
    /// out = padded x, with the mean of each column and the sum of its squared deviations; out may be null.
    void (*copy_with_statistics)(const Matrix& out, const ConstMatrix& x, std::ptrdiff_t rows,
                                 std::ptrdiff_t columns, float* mean, float* squares);
    /// out = the padded gradient where scale · x + shift is positive, else 0; and for each column the sums of this
    /// and of its product with x - mean. out may be the gradient.
    void (*mask)(const Matrix& out, const ConstMatrix& gradient, const ConstMatrix& x, std::ptrdiff_t rows,
                 std::ptrdiff_t columns, const float* scale, const float* shift, const float* mean, float* sum,
                 float* product);
    /// The same, but out = base + scale · this; base may be out.
    void (*mask_and_add)(const Matrix& out, const ConstMatrix& base, const ConstMatrix& gradient,
                         const ConstMatrix& x, std::ptrdiff_t rows, std::ptrdiff_t columns, const float* scale,
                         const float* shift, const float* mean, float* sum, float* product);

    // Of residual blocks.
    /// Padded out = x.
    void (*copy)(const Matrix& out, const ConstMatrix& x, std::ptrdiff_t rows, std::ptrdiff_t columns);
    /// out += x, or out = x.
    void (*add)(const Matrix& out, const ConstMatrix& x, std::ptrdiff_t rows, std::ptrdiff_t columns, bool adds);
    /// out = relu(x · scale + shift + added · added_scale + added_shift); without a scale `added` is taken as it is,
    /// without its data there is nothing to add.
    void (*add_and_activate)(const Matrix& out, const ConstMatrix& x, const float* scale, const float* shift,
                             const ConstMatrix& added, const float* added_scale, const float* added_shift,
                             std::ptrdiff_t rows, std::ptrdiff_t columns);
    /// out = the gradient where y is positive, else 0; and for each column the sums of this and of its product with
    /// x - mean.
    void (*mask_by_output)(const Matrix& out, const ConstMatrix& gradient, const ConstMatrix& y, const ConstMatrix& x,
                           std::ptrdiff_t rows, std::ptrdiff_t columns, const float* mean, float* sum, float* product);
    /// For each column the sum of gradient · (x - mean) and, unless it is null, that of the gradient.
    void (*sum_products)(const ConstMatrix& gradient, const ConstMatrix& x, std::ptrdiff_t rows,
                         std::ptrdiff_t columns, const float* mean, float* sum, float* product);

    // Of transitions: `count` squares of 2×2 pixels beside one another. Pixels of x follow each other at its stride, and
    // its second line is `line` floats behind the first.
    /// Padded out = the mean of relu(scale · x + shift) over each square.
    void (*pool_activated)(const Matrix& out, const ConstMatrix& x, std::ptrdiff_t line, std::ptrdiff_t count,
                           std::ptrdiff_t columns, const float* scale, const float* shift);
    /// A padded gradient for each square reaches those of its pixels where scale · x + shift is positive: adds to `sum`
    /// and `product`, for each column, what reaches them and its product with x - mean.
    void (*sum_spread)(const ConstMatrix& gradient, const ConstMatrix& x, std::ptrdiff_t line, std::ptrdiff_t count,
                       std::ptrdiff_t columns, const float* scale, const float* shift, const float* mean, float* sum,
                       float* product);
    /// out, of x's shape, = scale · (what reaches a pixel) + x · slope + offset. The gradients may lie in the first
    /// pixel of each square of out.
    void (*spread)(const Matrix& out, const ConstMatrix& gradient, const ConstMatrix& x, std::ptrdiff_t line,
                   std::ptrdiff_t count, std::ptrdiff_t columns, const float* scale, const float* shift,
                   const float* slope, const float* offset);

    // Of stems.
    /// Padded rows of `out`: row r is the `runs` runs of `length` floats at source[i] + r·step, and zeros behind them.
    void (*gather)(const Matrix& out, const float* const* source, int runs, std::ptrdiff_t length, std::ptrdiff_t step,
                   std::ptrdiff_t rows);
    /// A line of 3×3 max-pooling at stride 2 of relu(scale · x + shift). x has three lines of `width` pixels, of which
    /// the first and the last may be null: outside of the map. `places` tells which of the nine made each maximum,
    /// kNowhere where it is 0.
    void (*max_pool)(const Matrix& out, unsigned char* places, const float* const* x, std::ptrdiff_t width,
                     std::ptrdiff_t columns, const float* scale, const float* shift);
    /// The gradient of a line of its input, padded. Up to two lines of the output meet it; `gradient` and `places` are
    /// these, or null, and `first` the numbers that line has in their windows: 0, 3 or 6.
    void (*max_unpool)(const Matrix& out, const float* const* gradient, const unsigned char* const* places,
                       const int* first, std::ptrdiff_t width, std::ptrdiff_t columns);
};

}  // namespace skipnets
