// The few loops that do the work, as a table of functions: one table an instruction set, made from one source.
//
// Shapes: L lanes of a vector, R rows (pixels or tiles) of a register tile, D depth of a product (channels × taps).
//
// A product multiplies R packed rows with one panel of weights:
//   rows    [⌈D/L⌉][R][L]  every vector of a row lies beside the same vector of its neighbors, so that the
//                          multiplication walks through memory in one straight line and every address in its
//                          inner loop is one register plus a constant;
//   panel   [D][L·V]       V ∈ {1, 2} vectors of output channels.
// Lanes beyond D in the last vector of packed rows are never read; lanes beyond a layer's last output channel
// are computed with weights 0 and stored into the padding that every map has (see map.h).

#pragma once

#include <cstddef>

namespace skipnets {

constexpr int kWidestPanel = 2;  // vectors
constexpr int kMaxRows = 24;

/// Where the rows of a product start from and where they go. All rows use the same offsets into their arrays.
struct Rows {
    const float* const* start;  // the sums begin with start[r][start_offset…]
    std::ptrdiff_t start_offset;
    float* const* out;
    std::ptrdiff_t out_offset;
    const float* const* added;  // added at the end, at out_offset - out_channel + …; null where there is none
    std::ptrdiff_t added_offset;
    bool relu;
};

using Multiply = void (*)(const float* rows, const float* panel, std::ptrdiff_t depth, const Rows& io);

struct PixelKernels;     // pixel_kernels.h
struct TrainingKernels;  // training_kernels.h

struct Kernels {
    const char* name;
    int lanes;
    int rows[kWidestPanel + 1];  // [V]: the R at which panels of at most V vectors run best
    Multiply multiply[kWidestPanel + 1][kMaxRows + 1];  // [V][R]; null where R is more than rows[V]

    // Packing: R rows from source[r] + offset, `vectors` vectors each, into the layout above.
    void (*pack)(float* packed, int rows, const float* const* source, std::ptrdiff_t offset, std::ptrdiff_t vectors);
    /// relu(scale · x + shift): a batch norm and a ReLU in front of the convolution.
    void (*pack_activated)(float* packed, int rows, const float* const* source, std::ptrdiff_t offset,
                           std::ptrdiff_t vectors, const float* scale, const float* shift);
    /// Each row times the factors of its own image.
    void (*pack_gated)(float* packed, int rows, const float* const* source, const float* const* factors,
                       std::ptrdiff_t offset, std::ptrdiff_t vectors);
    /// The sum over 2×2 neighbors of relu(scale · x + shift) (the quarter is in the weights).
    void (*pack_pooled)(float* packed, int rows, const float* const* source, std::ptrdiff_t offset,
                        std::ptrdiff_t vectors, const float* scale, const float* shift, std::ptrdiff_t pixel,
                        std::ptrdiff_t row);
    /// Row r is the concatenation of `count` runs of `length` floats at source[r] + offsets[i]. `lines` has room
    /// for the rows, each rounded up to whole vectors and a vector more.
    void (*pack_runs)(float* packed, int rows, const float* const* source, const std::ptrdiff_t* offsets, int count,
                      int length, float* lines);

    // Winograd's transforms of one tile, F(m×m, 3×3) with m = 2 or 4: see winograd.h for the matrices.
    /// rows[i] + j·pixel is element (i, j) of the (m+2)×(m+2) input tile; element e of the result goes to
    /// out + e·element + vector·step.
    using WinogradInput = void (*)(float* out, std::ptrdiff_t element, std::ptrdiff_t step, const float* const* rows,
                                   std::ptrdiff_t pixel, std::ptrdiff_t vectors);
    /// Element e of the product is at in + e·element; pixel (i, j) of the result goes to out[i] + j·pixel for
    /// i < height, j < width. `added` as in Rows, with its own distance between pixels.
    using WinogradOutput = void (*)(const float* in, std::ptrdiff_t element, std::ptrdiff_t vectors, float* const* out,
                                    std::ptrdiff_t pixel, int height, int width, const float* bias,
                                    const float* const* added, std::ptrdiff_t added_pixel, bool relu);
    WinogradInput winograd_input[2];    // [0]: m = 2, [1]: m = 4
    WinogradOutput winograd_output[2];

    // Over `vectors` vectors of one pixel.
    /// scale · x + shift, then + added, then ReLU; null pointers leave their part out.
    void (*elementwise)(float* out, const float* in, const float* scale, const float* shift, const float* added,
                        bool relu, std::ptrdiff_t vectors);
    void (*largest)(float* out, const float* const* in, int count, std::ptrdiff_t vectors);
    /// The sum over `count` pixels at in[0], in[1], …, of relu(scale · x + shift) or, without a scale, of x, divided
    /// by `divisor`.
    void (*mean)(float* out, const float* const* in, int count, float divisor, const float* scale,
                 const float* shift, std::ptrdiff_t vectors);

    /// Fused multiply-adds in registers alone, `rounds` times rows[2]·2 of them: what the processor could do.
    float (*peak)(long rounds);

    const PixelKernels* pixel;
    const TrainingKernels* training;
};

}  // namespace skipnets
