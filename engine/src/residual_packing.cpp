// Scratch of a residual block's passes, and its weights in the order in which products read them.

#include "residual_pass.h"

namespace skipnets::residual {

Pass::Pass(const ResidualBlock& block, bool backward, const Kernels& kernels, int threads)
    : block_(block), kernels_(kernels), training_(*kernels.training), lanes_(kernels.lanes), shares_(threads),
      scratch_(thread_scratch()) {
    Size height = block.height, width = block.width;
    for (const NormedConvolution& convolution : block.branch) {
        stages_.emplace_back(convolution, block.images, height, width, kernels, shares_);
        height = stages_.back().out_height, width = stages_.back().out_width;
    }
    for (const NormedConvolution& convolution : block.projection)
        stages_.emplace_back(convolution, block.images, block.height, block.width, kernels, shares_);
    for (Stage& stage : stages_) make_panels(stage, backward);
    own_.resize(shares_);
    for (Own& own : own_) make_scratch(own, backward);
}

void Pass::make_panels(Stage& stage, bool backward) {
    Size depth = stage.given->inputs, outputs = stage.given->outputs;
    if (backward) std::swap(depth, outputs);
    if (stage.winograd()) depth *= stage.taps;
    for (Size tap = 0; tap < (stage.winograd() ? 1 : stage.taps); ++tap) {
        stage.panels.push_back({depth, ceil_div(outputs, lanes_), lanes_, nullptr});
        stage.panels.back().data = scratch_.floats(stage.panels.back().size());
    }
}

void Pass::make_scratch(Own& own, bool backward) {
    Size in_map = 0, out_map = 0, product = 0, packed = 0, elements = 0, in_tiles = 0, out_tiles = 0, filter = 0,
         widest = 0, pixels = 0;
    for (const Stage& stage : stages_) {
        const Size depth = backward ? stage.given->outputs : stage.given->inputs;
        const Size rows = tile_rows(kernels_, stage.panels[0].vectors), deep = whole(std::min(depth, kDepth));
        in_map = std::max(in_map, stage.in_map);
        pixels = std::max(pixels, stage.most_pixels);
        product = std::max(product, stage.most_pixels * (backward ? stage.in_stride : stage.out_stride));
        widest = std::max({widest, stage.in_stride, stage.out_stride});
        packed = std::max(packed, std::max(kTilesTogether * deep * rows, kPackedFloats) + deep * rows);
        if (stage.winograd()) {  // Groups are of half as many tiles more, at most, and one register tile for the rest.
            const Size together = kTilesTogether * rows * 3 / 2 + 1, gaps = 2 * kTilesTogether * kElementGap;
            packed = std::max(packed, stage.taps * (together * whole(depth) + gaps));
            elements = std::max(elements, stage.taps * (together * kWidestPanel * lanes_ + kElementGap));
        }
        if (!backward) continue;
        out_map = std::max(out_map, stage.out_map);
        filter = std::max(filter, stage.filter_floats);
        if (!stage.winograd()) continue;
        in_tiles = std::max(in_tiles, stage.gradient_taps * (tiles_summed(stage) * stage.in_stride + kElementGap));
        out_tiles = std::max(out_tiles, stage.gradient_taps * (tiles_summed(stage) * stage.out_stride + kElementGap));
    }
    own.in_map = scratch_.floats(in_map);
    own.out_map = scratch_.floats(out_map);
    own.product = scratch_.floats(product);
    own.packed = scratch_.floats(packed);
    own.elements = scratch_.floats(elements);
    own.in_tiles = scratch_.floats(in_tiles);
    own.out_tiles = scratch_.floats(out_tiles);
    own.first = scratch_.floats(widest);
    own.second = scratch_.floats(widest);
    own.filter = scratch_.floats(filter);
    own.source.resize(pixels);
    own.target.resize(pixels);
}

void Pass::pack_weights(const Team& team, int member, bool backward) {
    Size number = 0;
    for (const Stage& stage : stages_)
        for (Size tap = 0; tap < Size(stage.panels.size()); ++tap)
            for (Size panel = 0; panel < stage.panels[tap].count(); ++panel)
                if (number++ % team.size() == member)
                    stage.winograd() ? pack_tiles(stage, panel, backward) : pack_panel(stage, tap, panel, backward);
}

/// A panel of the weights of one tap; for the backward pass inputs and outputs change places.
void Pass::pack_panel(const Stage& stage, Size tap, Size panel, bool backward) {
    const NormedConvolution& given = *stage.given;
    const Panels& panels = stage.panels[tap];
    const Size outputs = backward ? given.inputs : given.outputs, depth = backward ? given.outputs : given.inputs;
    const Size output_step = backward ? given.layout.input : given.layout.output;
    const Size depth_step = backward ? given.layout.output : given.layout.input;
    const Size width = panels.width(panel) * lanes_, first = panels.first(panel);
    const Size filled = std::min(width, outputs - first);
    float* to = panels.at(panel);
    const float* from = given.weight + first * output_step + tap * given.layout.tap;
    for (Size begin = 0; begin < depth; begin += lanes_) {  // Blocks: whole lines of the cache are used at once.
        const Size end = std::min<Size>(begin + lanes_, depth);
        for (Size o = 0; o < filled; ++o)
            for (Size d = begin; d < end; ++d) to[d * width + o] = from[o * output_step + d * depth_step];
        for (Size d = begin; d < end; ++d) std::fill(to + d * width + filled, to + (d + 1) * width, 0.0f);
    }
}

/// A panel of all elements of transformed weights; for the backward pass the kernel is turned, too.
void Pass::pack_tiles(const Stage& stage, Size panel, bool backward) {
    const NormedConvolution& given = *stage.given;
    const Panels& panels = stage.panels[0];
    const Size outputs = backward ? given.inputs : given.outputs, depth = backward ? given.outputs : given.inputs;
    const Size output_step = backward ? given.layout.input : given.layout.output;
    const Size depth_step = backward ? given.layout.output : given.layout.input;
    const Size width = panels.width(panel) * lanes_, first = panels.first(panel);
    const Size filled = std::min(width, outputs - first);
    float* to = panels.at(panel);
    const float* from = given.weight + first * output_step;
    // Blocks of 16 × 16 filters: of those lines of the cache that they lie on all is used while they are there.
    alignas(64) float taps[16][9 * 16] = {};
    const Size tap_step = given.layout.tap;
    for (Size begin = 0; begin < width; begin += lanes_) {
        const Size some = std::clamp<Size>(filled - begin, 0, lanes_);
        if (some < lanes_) std::memset(taps, 0, sizeof taps);
        for (Size first_depth = 0; first_depth < depth; first_depth += 16) {
            const Size deep = std::min<Size>(16, depth - first_depth);
            const float* block = from + begin * output_step + first_depth * depth_step;
            const auto copy = [&](Size d, int t, Size o) {
                taps[d][t * lanes_ + o] =
                    block[o * output_step + d * depth_step + (backward ? 8 - t : t) * tap_step];
            };
            if (output_step < depth_step) {
                for (Size d = 0; d < deep; ++d)
                    for (int t = 0; t < 9; ++t)
                        for (Size o = 0; o < some; ++o) copy(d, t, o);
            } else {
                for (Size o = 0; o < some; ++o)
                    for (int t = 0; t < 9; ++t)
                        for (Size d = 0; d < deep; ++d) copy(d, t, o);
            }
            for (Size d = 0; d < deep; ++d)
                stage.tiles->filter(to + (first_depth + d) * width + begin, depth * width, taps[d]);
        }
    }
}

}  // namespace skipnets::residual
