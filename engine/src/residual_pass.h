// What the forward and the backward pass of a residual block share: scratch, transformed weights and products.

#pragma once

#include <cstring>
#include <vector>

#include "openmp.h"
#include "residual_stage.h"
#include "training_norm.h"
#include "training_scratch.h"

namespace skipnets::residual {

// Depth of a product at a time, and floats of the rows packed for it: these and a panel of weights fit the same cache.
constexpr Size kDepth = 512, kPackedFloats = 64 << 10;
// Register tiles of rows that use a panel of weights while it is in the cache.
constexpr Size kTilesTogether = 4;
// Rows that are summed in single precision.
constexpr Size kRowsTogether = 256;

inline Norm norm_of(const NormedConvolution& given, const float* means, const float* variances) {
    Norm norm;
    norm.set(means, variances, given.gamma, given.beta, given.eps, given.outputs);
    return norm;
}

/// A tile of a piece's output: where it lies, how much of it is inside, its input and where it goes.
struct Tile {
    Size image, y, x;
    int height, width;
    const float* input;
    float* output;
};

/// Memory that the next piece needs, which is fetched into the second-level cache while products of this one keep the
/// processor busy.
class Ahead {
public:
    void clear() { ranges_.clear(), lines_ = at_once_ = 0; }
    void add(const float* begin, Size floats) {
        if (begin == nullptr || floats == 0) return;
        ranges_.push_back({begin, begin + floats});
        lines_ += ceil_div(floats, kLine);
    }
    /// All of it will be fetched in so many calls.
    void spread(Size calls) { at_once_ = ceil_div(lines_, std::max<Size>(calls, 1)); }
    void fetch() {
        for (Size left = at_once_; left > 0 && !ranges_.empty();) {
            Addresses& next = ranges_.back();
            for (; left > 0 && next.begin < next.end; --left, next.begin += kLine) __builtin_prefetch(next.begin, 0, 2);
            if (next.begin >= next.end) ranges_.pop_back();
        }
    }

private:
    struct Addresses {
        const float *begin, *end;
    };
    static constexpr Size kLine = 16;  // floats of a line of the cache

    std::vector<Addresses> ranges_;
    Size lines_ = 0, at_once_ = 0;
};

/// What a thread keeps for itself.
struct Own {
    float *in_map, *out_map;      // with borders, of a piece
    float *product, *packed, *elements;
    float *in_tiles, *out_tiles;  // transformed, of the weights' gradient
    float *first, *second;        // a number a channel
    float *filter;                // the share's gradient of the (transformed) weights
    std::vector<const float*> source;
    std::vector<float*> target;
    std::vector<Tile> tiles;
    Moments moments;
    GradientSums sums, projection_sums;
    Ahead ahead;
};

class Pass {
public:
    Pass(const ResidualBlock& block, bool backward, const Kernels& kernels, int threads);

protected:
    const Stage& last() const { return stages_[block_.branch.size() - 1]; }
    const Stage& projection() const { return stages_.back(); }
    bool projects() const { return !block_.projection.empty(); }
    /// Of the whole branch: what a shortcut without a projection leaves out. Sizes do not tell: one pixel stays one.
    Size stride() const {
        Size product = 1;
        for (const NormedConvolution& convolution : block_.branch) product *= convolution.stride;
        return product;
    }
    Size channels() const { return block_.branch.front().inputs; }
    Size whole(Size channels) const { return round_up(channels, lanes_); }

    /// Whether a product goes where it belongs, and not by way of scratch: only whole vectors can, and short pieces of
    /// lines that are not in the cache cost more than the copy.
    bool is_written_directly(Size channels) const;

    /// Calls work(piece, the next one or null) for the pieces of a share.
    template <class Work>
    void for_pieces(const Stage& stage, int part, Work work) {
        const Range mine = share(Size(stage.pieces.size()), shares_, part);
        for (Size i = mine.begin; i < mine.end; ++i)
            work(stage.pieces[i], i + 1 < mine.end ? &stage.pieces[i + 1] : nullptr);
    }

    /// Packs this member's panels of all stages.
    void pack_weights(const Team& team, int member, bool backward);

    /// The input of a convolution in scratch: relu(norm(x)) or, without a norm, x, with zeros around 3×3 convolutions'.
    BorderedMap read_input(const Stage& stage, const Piece& piece, const float* x, const Norm* norm, Own& own);

    /// Calls work(row of the piece, row of the input, count, distance between rows of the input) for the pixels that a
    /// 1×1 convolution reads.
    template <class Work>
    void for_input_lines(const Stage& stage, const Piece& piece, Work work) {
        if (stage.given->stride == 1) return work(0, stage.first_row(piece), stage.rows(piece), 1);
        Size to = 0;
        for (Size image = piece.image; image < piece.image + piece.images; ++image)
            for (Size y = piece.begin; y < piece.end; ++y, to += stage.out_width)
                work(to, (image * stage.height + y * stage.given->stride) * stage.width, stage.out_width,
                     stage.given->stride);
    }

    /// Writes the lines of a map from `first` on, and zeros where there are none and on the left and right.
    template <class Read>
    void fill(const BorderedMap& map, const Piece& piece, Size first, Size height, Size width, Read read) {
        const Size inside = std::min(width, map.width - 1);
        for (Size image = 0; image < piece.images; ++image)
            for (Size line = 0; line < map.lines; ++line) {
                const Size y = first + line;
                float* to = map.at(image, line, 0);
                if (y < 0 || y >= height) {
                    std::memset(to, 0, map.line() * sizeof(float));
                    continue;
                }
                std::memset(to, 0, map.stride * sizeof(float));
                std::memset(to + (inside + 1) * map.stride, 0, (map.width - inside - 1) * map.stride * sizeof(float));
                read({to + map.stride, map.stride}, ((piece.image + image) * height + y) * width, inside);
            }
    }

    /// Products of a piece with the panels of a stage, roughly: as often memory can be fetched meanwhile.
    Size products(const Stage& stage, const Piece& piece) const;

    /// out = Σ over taps of rows · weights. Rows start at own.source, each tap at its offset from there, and go to
    /// own.target.
    void multiply(const Panels* const* panels, const Size* offsets, int taps, Size rows, Own& own);

    /// A 3×3 convolution at stride 1 of a map with a border: writes, or adds, a row of the product for each pixel.
    void convolve_tiles(const Stage& stage, const BorderedMap& map, const Piece& piece, Size width, Size channels,
                        const Matrix& out, bool adds, Own& own);

    /// The weights' gradient of a piece, from the input with its border and the gradient behind the convolution.
    void add_weight_gradient(const Stage& stage, const Piece& piece, const BorderedMap& in, const BorderedMap& incoming,
                             Own& own);

    /// Adds the shares' gradients of the weights, for this member's part of the outputs.
    void reduce_weight(const Stage& stage, const NormedConvolutionGradients& out, const Team& team, int member);

    const ResidualBlock& block_;
    const Kernels& kernels_;
    const TrainingKernels& training_;
    const int lanes_, shares_;
    Scratch& scratch_;
    std::vector<Stage> stages_;
    std::vector<Own> own_;

private:
    void make_panels(Stage& stage, bool backward);
    void make_scratch(Own& own, bool backward);
    void pack_panel(const Stage& stage, Size tap, Size panel, bool backward);
    void pack_tiles(const Stage& stage, Size panel, bool backward);
    void list_tiles(const Piece& piece, Size width, const TileKernels& size, Own& own);
    void add_taps(const Stage& stage, const Piece& piece, const BorderedMap& in, const BorderedMap& incoming, Own& own);
    void add_tiles(const Stage& stage, const Piece& piece, const BorderedMap& in, const BorderedMap& incoming, Own& own);
    Size tiles_summed(const Stage& stage) const;
};

}  // namespace skipnets::residual
