// Matrix products and 3×3 convolutions in training: scratch, panels of weights and register tiles.

#pragma once

#include <algorithm>

#include "kernels.h"
#include "ranges.h"
#include "training_kernels.h"

namespace skipnets {

// Floats of the maps and matrices that are worked on at a time: three quarters of a second-level cache of one megabyte
// hold two of them.
constexpr Size kScratchFloats = 96 << 10;

/// Floats between two rows of scratch: whole vectors, and a cache line more, so that the rows' columns do not fall on
/// the same few places of the first-level cache.
inline Size padded(Size columns, int lanes) { return round_up(columns, lanes) + 16; }

alignas(64) inline constexpr float kZeros[kWidestPanel * 16] = {};
/// Where the sums of a product start from if nothing is added to it.
inline constexpr const float* kZeroRows[kMaxRows] = {kZeros, kZeros, kZeros, kZeros, kZeros, kZeros, kZeros, kZeros,
                                                     kZeros, kZeros, kZeros, kZeros, kZeros, kZeros, kZeros, kZeros,
                                                     kZeros, kZeros, kZeros, kZeros, kZeros, kZeros, kZeros, kZeros};
static_assert(kMaxRows == 24, "a row of zeros for each");

/// A matrix of weights as the products read it: panels of one or two vectors of outputs, [depth][width] each.
struct Panels {
    Size depth = 0, vectors = 0;
    int lanes = 0;
    float* data = nullptr;

    Size size() const { return depth * vectors * lanes; }
    Size count() const { return ceil_div(vectors, kWidestPanel); }
    /// Vectors of a panel, its first output and its memory.
    int width(Size panel) const { return int(std::min<Size>(kWidestPanel, vectors - panel * kWidestPanel)); }
    Size first(Size panel) const { return panel * kWidestPanel * lanes; }
    float* at(Size panel) const { return data + first(panel) * depth; }
    /// The first weight of an output, and the floats between two of its weights.
    float* column(Size output) const { return at(panel_of(output)) + output - first(panel_of(output)); }
    Size step(Size output) const { return width(panel_of(output)) * lanes; }

private:
    Size panel_of(Size output) const { return output / lanes / kWidestPanel; }
};

/// Rows of a register tile for products with so many vectors of outputs.
inline int tile_rows(const Kernels& kernels, Size vectors) {
    return kernels.rows[std::min<Size>(vectors, kWidestPanel)];
}

/// Padded out = a · panels for neighboring rows; `packed` has room for all of them. A panel is used for all rows while
/// it is in the cache.
inline void multiply_panels(const Kernels& kernels, const ConstMatrix& a, Size rows, const Panels& panels,
                            const Matrix& out, float* packed) {
    const Size vectors = ceil_div(panels.depth, kernels.lanes);
    const Size tiles = ceil_div(rows, tile_rows(kernels, panels.vectors));
    const auto pack_of = [&](Size row) { return packed + row * vectors * kernels.lanes; };
    for (Size tile = 0; tile < tiles; ++tile) {
        const Range range = share(rows, tiles, tile);
        const float* source[kMaxRows];
        for (Size r = range.begin; r < range.end; ++r) source[r - range.begin] = a.data + r * a.stride;
        kernels.pack(pack_of(range.begin), int(range.size()), source, 0, vectors);
    }
    for (Size panel = 0; panel < panels.count(); ++panel)
        for (Size tile = 0; tile < tiles; ++tile) {
            const Range range = share(rows, tiles, tile);
            float* target[kMaxRows];
            for (Size r = range.begin; r < range.end; ++r) target[r - range.begin] = out.data + r * out.stride;
            kernels.multiply[panels.width(panel)][range.size()](
                pack_of(range.begin), panels.at(panel), panels.depth,
                {kZeroRows, 0, target, panels.first(panel), nullptr, 0, false});
        }
}

/// out (R, columns) += aᵀ b over the pixels, in register tiles.
inline void multiply_transposed(const Kernels& kernels, const ConstMatrix& a, Size a_gap, Size a_columns,
                                const ConstMatrix& b, Size b_gap, Size b_columns, const Lines& pixels,
                                const Matrix& out) {
    const Size vectors = ceil_div(b_columns, kernels.lanes);
    const Size tiles = ceil_div(a_columns, tile_rows(kernels, vectors));
    for (Size first = 0; first < vectors; first += kWidestPanel) {
        const int width = int(std::min<Size>(kWidestPanel, vectors - first));
        const Size column = first * kernels.lanes;
        for (Size tile = 0; tile < tiles; ++tile) {
            const Range range = share(a_columns, tiles, tile);
            kernels.training->outer[width][range.size()]({a.data + range.begin, a.stride}, a_gap,
                                                         {b.data + column, b.stride}, b_gap, pixels,
                                                         {out.data + range.begin * out.stride + column, out.stride});
        }
    }
}

// Tiles of 2×4 outputs need a quarter less products than 2×2 and round twice as much, which grows with the channels.
constexpr Size kMostWide = 32;
// Weights whose gradient is summed over tiles of 4×4: it takes 36 numbers for each.
constexpr Size kMostLarge = 128 * 128;

/// Elements of the tiles that cover a map.
inline Size elements(const TileKernels& tiles, Size height, Size width) {
    return ceil_div(height, tiles.height) * ceil_div(width, tiles.width) * tiles.elements();
}

/// The tiles of Winograd's algorithm for a 3×3 convolution at stride 1 that sums over so many channels.
inline const TileKernels& tiles_for_outputs(const TrainingKernels& training, Size height, Size width, Size channels) {
    const bool fewer = elements(training.wide, height, width) < elements(training.square, height, width);
    return channels <= kMostWide && fewer ? training.wide : training.square;
}

/// The same for the gradient of so many filters.
inline const TileKernels& tiles_for_weights(const TrainingKernels& training, Size height, Size width, Size filters) {
    const bool fewer = elements(training.large, height, width) < elements(training.square, height, width);
    return filters <= kMostLarge && fewer ? training.large : training.square;
}

// Between the elements of transformed tiles, in floats, so that those of one tile lie on different places of the cache.
constexpr Size kElementGap = 16;

}  // namespace skipnets
