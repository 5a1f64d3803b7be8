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

struct TrainingKernels {
    Outer outer[kWidestPanel + 1][kMaxRows + 1];  // [V][R]; null where R is more than Kernels::rows[V]

    /// A g Aᵀ of a tile's 2×2 gradients, with Winograd's matrices (winograd.h): rows[i] + j·pixel is element (i, j);
    /// element e of the 16 goes to out + e·element + vector·step.
    void (*winograd_gradient)(float* out, std::ptrdiff_t element, std::ptrdiff_t step, const float* const* rows,
                              std::ptrdiff_t pixel, std::ptrdiff_t vectors);

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
    /// The same, but out += scale · this.
    void (*mask_and_add)(const Matrix& out, const ConstMatrix& gradient, const ConstMatrix& x, std::ptrdiff_t rows,
                         std::ptrdiff_t columns, const float* scale, const float* shift, const float* mean,
                         float* sum, float* product);

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
    /// For each column the sum of gradient · (x - mean).
    void (*sum_products)(const ConstMatrix& gradient, const ConstMatrix& x, std::ptrdiff_t rows,
                         std::ptrdiff_t columns, const float* mean, float* product);
    /// G g Gᵀ of L filters, taps[9][L]; element e of the 16 goes to out + e·element.
    void (*winograd_filter)(float* out, std::ptrdiff_t element, const float* taps);
    /// Gᵀ M G of L gradients of transformed filters: the other way round.
    void (*winograd_filter_gradient)(float* taps, const float* in, std::ptrdiff_t element);
};

}  // namespace skipnets
