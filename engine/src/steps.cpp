#include "steps.h"

#include <algorithm>

#include "pixel_steps.h"
#include "place.h"

namespace skipnets {
namespace {

// Tiles of rows packed and multiplied before the next block of the depth: they share its weights.
constexpr int kTilesTogether = 8;

alignas(64) const float kZeros[kWidestPanel * 16] = {};

/// What the members of a team compute of a convolution: positions (pixels or tiles) × panels.
struct Share {
    Range positions, panels;
};

/// Splits positions × panels over the team as a grid with the least time for its slowest member. More rows of the
/// grid mean that more members read the same weights; more columns, that more pack the same pixels.
Share split(const Team& team, int member, Size positions, Size panels, int rows, double product_cycles,
            double pack_cycles, double weight_cycles) {
    int best = team.size();
    double least = 0;
    for (int down = team.size(); down >= 1; --down) {
        if (team.size() % down != 0) continue;
        const int across = team.size() / down;
        const double tiles = double(ceil_div(ceil_div(positions, down), rows));
        const double time = tiles * (double(ceil_div(panels, across)) * product_cycles + pack_cycles) +
                            double(ceil_div(panels, across)) * weight_cycles;
        if (down == team.size() || time < least) {
            least = time;
            best = down;
        }
    }
    const int across = team.size() / best;
    return {share(positions, best, member / across), share(panels, across, member % across)};
}

/// The rows of a few register tiles: where each reads, writes and what it adds.
struct Pointers {
    static constexpr int kMax = kTilesTogether * kMaxRows;
    const float* source[kMax];
    float* out[kMax];
    const float* added[kMax];
    const float* factors[kMax];
};

// ---- products ------------------------------------------------------------------------------------------------

void pack_rows(const Execution& run, const Node& node, const ConvolutionWeights& weights, const DepthBlock& block,
               const float* const* source, const float* const* factors, int rows, float* packed, float* lines) {
    const Kernels& kernels = run.kernels;
    const Map& in = run.plan.maps[node.input];
    const Size vectors = ceil_div(block.channels, kernels.lanes);
    const auto tap_offset = [&](int tap) {
        return (tap / node.kernel) * node.dilation * in.row + (tap % node.kernel) * node.dilation * in.pixel;
    };
    if (weights.in_runs) {
        Size offsets[15 * 15];
        const int runs = block.taps / weights.run_taps;
        for (int i = 0; i < runs; ++i) offsets[i] = tap_offset(block.first_tap + i * weights.run_taps);
        kernels.pack_runs(packed, rows, source, offsets, runs, weights.run_taps * block.channels, lines);
    } else if (node.pooled) {
        kernels.pack_pooled(packed, rows, source, block.first_channel, vectors, weights.scale + block.first_channel,
                            weights.shift + block.first_channel, in.pixel, in.row);
    } else if (node.gate >= 0) {
        kernels.pack_gated(packed, rows, source, factors, block.first_channel, vectors);
    } else if (weights.scale) {
        kernels.pack_activated(packed, rows, source, block.first_channel, vectors,
                               weights.scale + block.first_channel, weights.shift + block.first_channel);
    } else {
        for (int tap = block.first_tap; tap < block.first_tap + block.taps; ++tap) {
            kernels.pack(packed, rows, source, tap_offset(tap) + block.first_channel, vectors);
            packed += vectors * rows * kernels.lanes;
        }
    }
}

/// A part of a value that is added to that part of a convolution's result.
Place added_of(const Execution& run, const Node& node, int image, int channel) {
    return node.added >= 0 ? place_of(run, node.added, image, node.added_channel + channel) : Place{};
}

/// A convolution as a product: rows of pixels, gathered and packed block by block, with panels of weights.
void convolve(const Execution& run, const Step& step, int part, int image, Range positions, Range panels,
              const Place& in, const Place& out, float* scratch) {
    const Node& node = *step.node;
    const ConvolutionWeights& weights = step.weights[part];
    const Kernels& kernels = run.kernels;
    const Place added = added_of(run, node, image, part * weights.outputs), gate = gate_of(run, node, image);
    const auto finish = finisher_of(run, node);
    const bool rectified = node.activation == Activation::kRelu;
    const int step_of_input = node.pooled ? 2 : node.stride;

    Pointers at;
    const float *bias[kMaxRows], *zeros[kMaxRows];
    std::fill(bias, bias + kMaxRows, weights.bias);
    std::fill(zeros, zeros + kMaxRows, kZeros);
    const Size total = positions.size(), tiles = ceil_div(total, weights.rows);
    float* packed = scratch;
    Walk walk(out.map, positions.begin);
    for (Size first = 0; first < tiles; first += kTilesTogether) {
        const Size last = std::min<Size>(first + kTilesTogether, tiles);
        const Size begin = share(total, tiles, first).begin;
        const Size end = share(total, tiles, last - 1).end;
        for (Size i = 0; i < end - begin; ++i, walk.next(out.map)) {
            at.source[i] = in.at(walk.number, walk.y * step_of_input - node.padding,
                                 walk.x * step_of_input - node.padding);
            at.out[i] = out.at(walk.number, walk.y, walk.x);
            if (added.base) at.added[i] = added.at(walk.number, walk.y, walk.x);
            if (gate.base) at.factors[i] = gate.at(walk.number, 0, 0);
        }
        for (const DepthBlock& block : weights.blocks) {
            const bool is_first = &block == &weights.blocks.front(), is_last = &block == &weights.blocks.back();
            for (Size tile = first; tile < last; ++tile) {
                const Range range = share(total, tiles, tile);
                const Size offset = range.begin - begin;
                const int rows = int(range.end - range.begin);
                float* lines = packed + (block.depth + kernels.lanes) * rows;
                pack_rows(run, node, weights, block, at.source + offset, at.factors + offset, rows, packed, lines);
                // Each block is summed for itself and added to what was there: shorter sums round less.
                const float* const* residual = added.base && is_last ? at.added + offset : nullptr;
                Rows io{is_first ? bias : residual ? residual : zeros, 0, at.out + offset, 0,
                        is_first ? residual : const_cast<const float* const*>(at.out + offset), 0, rectified && is_last};
                const bool from_zero = io.start == zeros;
                for (Size i = panels.begin; i < panels.end; ++i) {
                    const Panel& panel = weights.panels[i];
                    const Size channel = Size(panel.first) * kernels.lanes;
                    io.out_offset = io.added_offset = channel;
                    io.start_offset = from_zero ? 0 : channel;
                    kernels.multiply[panel.vectors][rows](
                        packed, weights.weights + block.weights + channel * block.depth, block.depth, io);
                    if (finish && is_last) finish(io.out, channel, rows, panel.vectors);
                }
            }
        }
    }
}

/// The member's share of a convolution's parts: compute(part, share). All parts are alike.
///
/// A part that does not fill its last vector stores beyond its channels, where the next part's lie: whoever computes a
/// position must then compute all of its parts, in their order. Otherwise members take whole parts, and share the
/// last few.
template <class Compute>
void for_each_part(const Execution& run, const Step& step, Size positions, const Share& shared, Compute compute) {
    const int parts = step.parts, size = run.team.size();
    const Range panels{0, Size(step.weights->panels.size())};
    if (parts == 1) return compute(0, shared);
    if (step.weights->outputs % run.kernels.lanes != 0) {
        const Share mine{share(positions, size, run.member), panels};
        for (int part = 0; part < parts; ++part) compute(part, mine);
        return;
    }
    const int apart = parts / size * size;
    const Range mine = share(apart, size, run.member);
    for (Size part = mine.begin; part < mine.end; ++part) compute(int(part), Share{{0, positions}, panels});
    for (int part = apart; part < parts; ++part) compute(part, shared);
}

void run_direct(const Execution& run, const Step& step, int image, int count) {
    const ConvolutionWeights& weights = *step.weights;
    const Map& out = run.plan.maps[step.node->output];
    double depth = 0;
    for (const DepthBlock& block : weights.blocks) depth += double(block.depth);
    const int lanes = run.kernels.lanes, vectors = weights.panels.front().vectors;
    const Size positions = out.pixels() * count;
    const Share shared = split(run.team, run.member, positions, Size(weights.panels.size()), weights.rows,
                               depth * weights.rows * vectors, depth / lanes * weights.rows * 3,
                               depth * vectors * lanes * sizeof(float) / 8);
    for_each_part(run, step, positions, shared, [&](int part, const Share& mine) {
        const Place in = place_of(run, step.node->input, image, step.node->input_channel + part * weights.inputs);
        const Place place = place_of(run, step.node->output, image, step.node->output_channel + part * weights.outputs);
        convolve(run, step, part, image, mine.positions, mine.panels, in, place, run.scratch);
    });
}

// ---- Winograd ------------------------------------------------------------------------------------------------

// Between the elements of transformed tiles, in floats: without it the elements of one tile, which are written one
// after another, would fall on the same few places of the first-level cache.
constexpr Size kElementGap = 16;

int winograd_size(const Step& step) { return step.weights->algorithm == Algorithm::kWinograd2 ? 2 : 4; }

/// A 3×3 convolution of stride 1, a register tile's worth of Winograd tiles at a time: transform the inputs,
/// multiply each of the (m+2)² elements, transform the outputs.
void convolve_by_winograd(const Execution& run, const Step& step, int part, int image, Range tiles, Range panels,
                          const Place& in, float* scratch) {
    const Node& node = *step.node;
    const ConvolutionWeights& weights = step.weights[part];
    const Kernels& kernels = run.kernels;
    const Place out = place_of(run, node.output, image, node.output_channel + part * weights.outputs);
    const Place added = added_of(run, node, image, part * weights.outputs);
    const auto finish = finisher_of(run, node);

    const int m = winograd_size(step), side = m + 2, elements = side * side, which = m / 4;
    const int lanes = kernels.lanes, depth = weights.inputs;
    const Size vectors = ceil_div(depth, lanes);
    const int across = (out.map.width + m - 1) / m;
    const Size in_image = Size(across) * ((out.map.height + m - 1) / m);
    float* transformed = scratch;  // [element][vector][row][L]
    float* products = transformed + elements * (vectors * weights.rows * lanes + kElementGap);  // [element][row][width]
    const float* zeros[kMaxRows];
    std::fill(zeros, zeros + kMaxRows, kZeros);

    struct {
        Size number, y, x;
    } corner[kMaxRows];  // of the outputs of each tile
    const Size total = tiles.size(), groups = ceil_div(total, weights.rows);
    for (Size group = 0; group < groups; ++group) {
        const Range range = share(total, groups, group);
        const int rows = int(range.end - range.begin);
        const Size element = vectors * rows * lanes + kElementGap;
        for (int r = 0; r < rows; ++r) {
            const Size tile = tiles.begin + range.begin + r, inside = tile % in_image;
            corner[r] = {tile / in_image, inside / across * m, inside % across * m};
            const float* source[6];
            for (int i = 0; i < side; ++i) source[i] = in.at(corner[r].number, corner[r].y + i - 1, corner[r].x - 1);
            kernels.winograd_input[which](transformed + r * lanes, element, Size(rows) * lanes, source, in.map.pixel,
                                          vectors);
        }
        for (Size i = panels.begin; i < panels.end; ++i) {
            const Panel& panel = weights.panels[i];
            const Size width = Size(panel.vectors) * lanes, channel = Size(panel.first) * lanes;
            const float* panel_weights = weights.weights + channel * elements * depth;
            float* out_rows[kMaxRows];
            for (int r = 0; r < rows; ++r) out_rows[r] = products + r * width;
            Rows io{zeros, 0, out_rows, 0, nullptr, 0, false};
            for (int e = 0; e < elements; ++e) {
                io.out_offset = e * rows * width;
                kernels.multiply[panel.vectors][rows](transformed + e * element, panel_weights + e * width * depth,
                                                      depth, io);
            }
            for (int r = 0; r < rows; ++r) {
                const auto& [number, y, x] = corner[r];
                float* target[4];
                const float* other[4];
                for (int row = 0; row < m; ++row) {
                    target[row] = out.at(number, y + row, x) + channel;
                    if (added.base) other[row] = added.at(number, y + row, x) + channel;
                }
                const int height = int(std::min<Size>(m, out.map.height - y));
                const int across_tile = int(std::min<Size>(m, out.map.width - x));
                kernels.winograd_output[which](products + r * width, Size(rows) * width, panel.vectors, target,
                                               out.map.pixel, height, across_tile, weights.bias + channel,
                                               added.base ? other : nullptr, added.map.pixel,
                                               node.activation == Activation::kRelu);
                if (finish)
                    for (int column = 0; column < across_tile; ++column)
                        finish(target, column * out.map.pixel, height, panel.vectors);
            }
        }
    }
}

void run_winograd(const Execution& run, const Step& step, int image, int count) {
    const ConvolutionWeights& weights = *step.weights;
    const Map& out = run.plan.maps[step.node->output];
    const int m = winograd_size(step), elements = (m + 2) * (m + 2), lanes = run.kernels.lanes;
    const double depth = weights.inputs, vectors = weights.panels.front().vectors;
    const Size tiles = ceil_div(out.width, m) * ceil_div(out.height, m) * count;
    const Share shared = split(run.team, run.member, tiles, Size(weights.panels.size()), weights.rows,
                             (elements * depth + 100) * weights.rows * vectors,
                             depth / lanes * weights.rows * (m == 2 ? 100 : 280),
                             elements * depth * vectors * lanes * sizeof(float) / 8);
    for_each_part(run, step, tiles, shared, [&](int part, const Share& mine) {
        const Place in = place_of(run, step.node->input, image, step.node->input_channel + part * weights.inputs);
        convolve_by_winograd(run, step, part, image, mine.positions, mine.panels, in, run.scratch);
    });
}

// ---- both, by strips -----------------------------------------------------------------------------------------

/// Rows of Winograd tiles that fill about one register tile.
int strip_rows(const ConvolutionWeights& weights, const Map& out, int m) {
    const int across = (out.width + m - 1) / m;
    return std::max(1, weights.rows / across);
}

/// A 1×1 convolution and the Winograd convolution that reads it, strip by strip: what the first writes is read by
/// the second while it is still in the second-level cache, and takes memory for a few rows only. At the edge
/// between two members both compute the rows that both need, so neither waits for the other.
void run_strips(const Execution& run, const Step& first, const Step& second, int image, int count) {
    const int m = winograd_size(second);
    Place inner{run.plan.maps[first.node->output], run.scratch};
    const Map& map = inner.map;
    const int tile_rows = (map.height + m - 1) / m, across = (map.width + m - 1) / m;
    const int strip = strip_rows(*second.weights, map, m);
    inner.ring = strip * m + 2;
    inner.zeros = inner.base + inner.ring * map.row;
    float* scratch = inner.zeros + map.row;
    std::fill(inner.zeros, inner.zeros + map.row, 0.0f);
    for (int row = 0; row < inner.ring; ++row) {
        float* begin = inner.base + row * map.row;
        std::fill(begin, begin + map.border * map.pixel, 0.0f);
        std::fill(begin + (map.border + map.width) * map.pixel, begin + map.row, 0.0f);
    }

    const Place in = place_of(run, first.node->input, image, first.node->input_channel);
    const Range own = share(tile_rows, run.team.size(), run.member);
    const Range first_panels{0, Size(first.weights->panels.size())}, panels{0, Size(second.weights->panels.size())};
    for (Size number = 0; number < count; ++number) {
        const Size pixels = number * map.pixels(), tiles = number * tile_rows * across;
        Size done = std::max<Size>(own.begin * m - 1, 0);
        for (Size row = own.begin; row < own.end; row += strip) {
            const Size end = std::min<Size>(row + strip, own.end);
            const Size needed = std::min<Size>(end * m + 1, map.height);
            convolve(run, first, 0, image, {pixels + done * map.width, pixels + needed * map.width}, first_panels, in,
                     inner, scratch);
            done = needed;
            convolve_by_winograd(run, second, 0, image, {tiles + row * across, tiles + end * across}, panels, inner,
                                 scratch);
        }
    }
}

/// Pixels of a strip of two 1×1 convolutions: few enough that what lies between the two stays in the cache, many enough
/// that weights are not fetched for nothing.
Size strip_pixels(const Step& first, const Step& second) {
    constexpr Size kPixels = 56;
    return round_up(kPixels, std::max(first.weights->rows, second.weights->rows));
}

/// Two 1×1 convolutions, the second of which alone reads the first, some pixels at a time.
void run_product_strips(const Execution& run, const Step& first, const Step& second, int image, int count) {
    Place inner{run.plan.maps[first.node->output], run.scratch};
    const Size pixels = strip_pixels(first, second), total = inner.map.pixels() * count;
    float* scratch = run.scratch + pixels * inner.map.pixel;
    const Range own = share(total, run.team.size(), run.member);
    const Range first_panels{0, Size(first.weights->panels.size())}, panels{0, Size(second.weights->panels.size())};
    const Place in = place_of(run, first.node->input, image, first.node->input_channel);
    const Place out = place_of(run, second.node->output, image, second.node->output_channel);
    for (inner.first = own.begin; inner.first < own.end; inner.first += pixels) {
        const Range strip{inner.first, std::min(inner.first + pixels, own.end)};
        convolve(run, first, 0, image, strip, first_panels, in, inner, scratch);
        convolve(run, second, 0, image, strip, panels, inner, out, scratch);
    }
}

/// Strips pay where the map between the two is too large for the second-level cache, and where the members' parts
/// are equal and much higher than the two rows that each computes besides.
bool by_strips(const Execution& run, const Step& step) {
    if (step.strips == Strips::kNone) return false;
    const Map& map = run.plan.maps[step.node->output];
    const int size = run.team.size();
    if (step.strips == Strips::kProducts) return true;
    return size == 1 || (map.height / 4 % size == 0 && map.height / size >= 24);
}
}  // namespace

std::size_t scratch_floats(const Kernels& kernels, const Plan& plan, std::size_t number) {
    const Step& step = plan.steps[number];
    const Node& node = *step.node;
    const Size lanes = kernels.lanes;
    if (node.kind != Kind::kConvolution) return pixel_scratch_floats(kernels, node);
    const ConvolutionWeights& weights = *step.weights;
    if (weights.algorithm != Algorithm::kDirect) {
        const int m = winograd_size(step), elements = (m + 2) * (m + 2);
        const Size width = weights.rows * lanes * (ceil_div(weights.inputs, lanes) + kWidestPanel);
        return std::size_t(elements) * std::size_t(width + kElementGap);
    }
    Size most = 0;
    for (const DepthBlock& block : weights.blocks) most = std::max(most, block.depth);
    const Size own = (most + lanes) * weights.rows + (weights.in_runs ? (most + 2 * lanes) * weights.rows : 0) + lanes;
    if (step.strips == Strips::kNone) return std::size_t(own);
    const Step& next = plan.steps[number + 1];
    const Map& map = plan.maps[node.output];
    if (step.strips == Strips::kProducts)
        return std::size_t(strip_pixels(step, next) * map.pixel) +
               std::max(std::size_t(own), scratch_floats(kernels, plan, number + 1));
    const int m = winograd_size(next);
    const Size ring = (strip_rows(*next.weights, map, m) * m + 3) * map.row;
    return std::size_t(ring) + std::max(std::size_t(own), scratch_floats(kernels, plan, number + 1));
}

std::size_t execute(const Execution& run, std::size_t number, int image, int count) {
    const Step& step = run.plan.steps[number];
    if (by_strips(run, step)) {
        const auto run_both = step.strips == Strips::kProducts ? run_product_strips : run_strips;
        run_both(run, step, run.plan.steps[number + 1], image, count);
        return 2;
    }
    if (step.node->kind != Kind::kConvolution)
        execute_pixels(run, step, image, count);
    else if (step.weights->algorithm == Algorithm::kDirect)
        run_direct(run, step, image, count);
    else
        run_winograd(run, step, image, count);
    return 1;
}

void copy_in(const Execution& run, const float* input, int image, int count) {
    const Map& map = run.plan.maps[0];
    float* base = run.value(0, image);
    const Range mine = share(Size(map.height) * count, run.team.size(), run.member);
    for (Size i = mine.begin; i < mine.end; ++i) {
        const Size number = i / map.height, y = i % map.height;
        float* out = base + map.at(number, y, 0);
        for (int c = 0; c < map.channels; ++c) {
            const float* in = input + ((number * map.channels + c) * map.height + y) * map.width;
            for (int x = 0; x < map.width; ++x) out[Size(x) * map.channels + c] = in[x];
        }
    }
}

void copy_out(const Execution& run, int value, float* out, int image, int count) {
    const Map& map = run.plan.maps[value];
    const float* base = run.value(value, image);
    for (Size number = 0; number < count; ++number)
        for (int c = 0; c < map.channels; ++c)
            for (int y = 0; y < map.height; ++y)
                for (int x = 0; x < map.width; ++x) *out++ = base[map.at(number, y, x) + c];
}

}  // namespace skipnets
