// A convolution of a residual block, cut into pieces that fit the cache.

#pragma once

#include <algorithm>
#include <vector>

#include "residual_block.h"
#include "training_kernels.h"
#include "training_products.h"

namespace skipnets::residual {

// Pixels of a piece: fewer make too little of weights that have been fetched, more do not stay in the cache.
constexpr Size kFewestPixels = 224, kMostPixels = 512;
// Channels above which the rows of scratch need `padded`.
constexpr Size kMostDense = 128;

/// What is worked on at a time: some lines of an image, or several whole images; of the convolution's output.
struct Piece {
    Size image, images, begin, end;

    Size lines() const { return end - begin; }
};

/// A map with a border, in scratch, of a piece.
struct BorderedMap {
    float* data;
    Size stride;          // of pixels
    Size width, lines;    // of each image, with the border

    Size line() const { return width * stride; }
    float* at(Size image, Size line_number, Size x) const {
        return data + ((image * lines + line_number) * width + x) * stride;
    }
};

/// Sizes, transformed weights and pieces of one convolution.
struct Stage {
    const NormedConvolution* given;
    Size images, height, width, out_height, out_width;  // of the input and of the output
    Size in_stride, out_stride;                         // of scratch
    const TileKernels *tiles, *gradient_tiles;          // of Winograd's algorithm, and of it for the weights' gradient
    Size taps, gradient_taps;                           // products a pixel or tile
    std::vector<Piece> pieces;
    std::vector<Panels> panels;       // of each tap, or one with all elements
    Size most_pixels = 0;             // of a piece, of the input or the output
    Size in_map = 0, out_map = 0;     // floats of its bordered maps
    Size filter_floats = 0;           // of the gradient of its (transformed) weights

    Stage(const NormedConvolution& convolution, Size images, Size height, Size width, const Kernels& kernels,
          int shares)
        : given(&convolution), images(images), height(height), width(width),
          out_height(ceil_div(height, convolution.stride)), out_width(ceil_div(width, convolution.stride)),
          in_stride(stride_of(convolution.inputs, kernels.lanes)),
          out_stride(stride_of(convolution.outputs, kernels.lanes)), tiles(nullptr), gradient_tiles(nullptr),
          taps(convolution.size * convolution.size), gradient_taps(taps) {
        if (convolution.size == 3 && convolution.stride == 1) choose_tiles(*kernels.training);
        cut(shares);
        const bool bordered = convolution.size == 3;
        for (const Piece& piece : pieces) {
            most_pixels = std::max({most_pixels, rows(piece), piece.images * in_lines(piece) * width});
            const Size in = bordered ? map_lines(piece.lines()) * map_width() : piece.lines() * out_width;
            const Size out = bordered ? out_map_lines(piece.lines()) * out_map_width() : piece.lines() * out_width;
            in_map = std::max(in_map, piece.images * in * in_stride);
            out_map = std::max(out_map, piece.images * out * out_stride);
        }
        filter_floats = gradient_taps * convolution.outputs * in_stride;
    }

    bool winograd() const { return tiles != nullptr; }
    Size out_area() const { return out_height * out_width; }
    Size out_rows() const { return images * out_area(); }
    Size first_row(const Piece& piece) const { return piece.image * out_area() + piece.begin * out_width; }
    Size rows(const Piece& piece) const { return piece.images * piece.lines() * out_width; }
    Size in_begin(const Piece& piece) const { return piece.begin * given->stride; }
    Size in_lines(const Piece& piece) const {
        return std::min(piece.end * given->stride, height) - in_begin(piece);
    }
    Size first_in_row(const Piece& piece) const { return (piece.image * height + in_begin(piece)) * width; }
    Size in_rows(const Piece& piece) const { return piece.images * in_lines(piece) * width; }
    /// Of the input map with its border: for stride 1 whole tiles.
    Size map_lines(Size lines) const { return winograd() ? whole_lines(lines) + 2 : 2 * lines + 1; }
    Size map_width() const { return winograd() ? whole_columns(width) + 2 : 2 * out_width + 1; }
    Size out_map_lines(Size lines) const { return winograd() ? whole_lines(lines) + 2 : lines + 2; }
    Size out_map_width() const { return winograd() ? whole_columns(out_width) + 2 : out_width + 2; }

private:
    static Size stride_of(Size channels, int lanes) {
        return channels <= kMostDense ? round_up(channels, lanes) : padded(channels, lanes);
    }

    void choose_tiles(const TrainingKernels& training) {
        tiles = &tiles_for_outputs(training, height, width, std::max(given->inputs, given->outputs));
        gradient_tiles = &tiles_for_weights(training, height, width, given->inputs * given->outputs);
        taps = tiles->elements(), gradient_taps = gradient_tiles->elements();
    }

    Size whole_lines(Size lines) const {
        const Size most = std::max(tiles->height, gradient_tiles->height);
        return round_up(lines, most);
    }
    Size whole_columns(Size columns) const {
        const Size most = std::max(tiles->width, gradient_tiles->width);
        return round_up(columns, most);
    }

    void cut(int shares) {
        const Size widest = std::max(in_stride, out_stride) * given->stride * given->stride;
        const Size pixels = std::clamp(kScratchFloats / widest, kFewestPixels, kMostPixels);
        const Size together = std::clamp<Size>(pixels / out_area(), 1, ceil_div(images, shares));
        if (out_area() <= pixels) {
            const Size groups = ceil_div(images, together);
            for (Size group = 0; group < groups; ++group) {
                const Range range = share(images, groups, group);
                pieces.push_back({range.begin, range.size(), 0, out_height});
            }
            return;
        }
        const Size fitting = std::max<Size>(pixels / out_width, 1), strips = ceil_div(out_height, fitting);
        const Size equal = ceil_div(out_height, strips), lines = winograd() ? whole_lines(equal) : equal;
        for (Size image = 0; image < images; ++image)
            for (Size begin = 0; begin < out_height; begin += lines)
                pieces.push_back({image, 1, begin, std::min(begin + lines, out_height)});
    }
};

}  // namespace skipnets::residual
