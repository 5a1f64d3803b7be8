// The gradients of a residual block's weights.

#include "residual_pass.h"

namespace skipnets::residual {

void Pass::add_weight_gradient(const Stage& stage, const Piece& piece, const BorderedMap& in,
                               const BorderedMap& incoming, Own& own) {
    stage.winograd() ? add_tiles(stage, piece, in, incoming, own) : add_taps(stage, piece, in, incoming, own);
}

/// The weights' gradient of a piece, tap by tap.
void Pass::add_taps(const Stage& stage, const Piece& piece, const BorderedMap& in, const BorderedMap& incoming,
                    Own& own) {
    const Size inputs = stage.given->inputs, outputs = stage.given->outputs;
    if (stage.given->size == 1)
        return multiply_transposed(kernels_, {incoming.data, incoming.stride}, 0, outputs, {in.data, in.stride}, 0,
                                   inputs, {1, stage.rows(piece)}, {own.filter, stage.in_stride});
    const Size width = stage.out_width, step = stage.given->stride;
    for (Size image = 0; image < piece.images; ++image)
        for (int tap = 0; tap < 9; ++tap)
            multiply_transposed(kernels_, {incoming.at(image, 1, 1), incoming.stride},
                                (incoming.width - width) * incoming.stride, outputs,
                                {in.at(image, tap / 3, tap % 3), step * in.stride},
                                step * (in.width - width) * in.stride, inputs, {piece.lines(), width},
                                {own.filter + tap * outputs * stage.in_stride, stage.in_stride});
}

/// Tiles over which the gradient of transformed weights is summed at a time.
Size Pass::tiles_summed(const Stage& stage) const {
    return std::clamp<Size>(2 * kPackedFloats / (stage.gradient_taps * (stage.in_stride + stage.out_stride)), 32, 128);
}

/// The gradient of the transformed weights of a piece: for each element, the product of the transformed gradients
/// and inputs, summed over the tiles.
void Pass::add_tiles(const Stage& stage, const Piece& piece, const BorderedMap& in, const BorderedMap& incoming,
                     Own& own) {
    const Size inputs = stage.given->inputs, outputs = stage.given->outputs;
    const TileKernels& size = *stage.gradient_tiles;
    list_tiles(piece, stage.width, size, own);
    const Size total = Size(own.tiles.size()), groups = ceil_div(total, tiles_summed(stage));
    for (Size group = 0; group < groups; ++group) {
        const Range range = share(total, groups, group);
        const Size in_element = range.size() * stage.in_stride + kElementGap;
        const Size out_element = range.size() * stage.out_stride + kElementGap;
        for (Size number = range.begin; number < range.end; ++number) {
            const Tile& tile = own.tiles[number];
            const float *input[kMostTile + 2], *output[kMostTile];
            for (int i = 0; i < size.height + 2; ++i) input[i] = in.at(tile.image, tile.y + i, tile.x);
            for (int i = 0; i < size.height; ++i) output[i] = incoming.at(tile.image, tile.y + i + 1, tile.x + 1);
            size.input(own.in_tiles + (number - range.begin) * stage.in_stride, in_element, lanes_, input, in.stride,
                       ceil_div(inputs, lanes_));
            size.gradient(own.out_tiles + (number - range.begin) * stage.out_stride, out_element, lanes_, output,
                          incoming.stride, ceil_div(outputs, lanes_));
        }
        for (int e = 0; e < size.elements(); ++e)
            multiply_transposed(kernels_, {own.out_tiles + e * out_element, stage.out_stride}, 0, outputs,
                                {own.in_tiles + e * in_element, stage.in_stride}, 0, inputs, {1, range.size()},
                                {own.filter + e * outputs * stage.in_stride, stage.in_stride});
    }
}

void Pass::reduce_weight(const Stage& stage, const NormedConvolutionGradients& out, const Team& team, int member) {
    const Size inputs = stage.given->inputs, outputs = stage.given->outputs;
    const Range mine = share(outputs, team.size(), member);
    alignas(64) float sums[kMostElements * 16], taps[9 * 16];
    for (Size o = mine.begin; o < mine.end; ++o)
        for (Size begin = 0; begin < inputs; begin += lanes_) {
            for (Size tap = 0; tap < stage.gradient_taps; ++tap) {
                const Size place = (tap * outputs + o) * stage.in_stride + begin;
                std::copy_n(own_[0].filter + place, lanes_, sums + tap * lanes_);
                for (std::size_t part = 1; part < own_.size(); ++part)
                    for (int lane = 0; lane < lanes_; ++lane) sums[tap * lanes_ + lane] += own_[part].filter[place + lane];
            }
            if (stage.winograd()) stage.gradient_tiles->filter_gradient(taps, sums, lanes_);
            const float* from = stage.winograd() ? taps : sums;
            const Size some = std::min<Size>(lanes_, inputs - begin);
            for (Size tap = 0; tap < stage.given->size * stage.given->size; ++tap)
                for (Size lane = 0; lane < some; ++lane)
                    out.weight[o * out.layout.output + (begin + lane) * out.layout.input + tap * out.layout.tap] =
                        from[tap * lanes_ + lane];
        }
}

}  // namespace skipnets::residual
