#include "steps.h"

#include <algorithm>

#include "ranges.h"

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
};

/// A value in memory: all of its images, or a ring of rows of one image, which a thread keeps for itself while it
/// computes strip after strip. Rows outside of a ring's image are one row of zeros.
struct Place {
    Map map;
    float* base;
    int ring = 0;  // rows; 0 for a whole value
    float* zeros = nullptr;

    float* at(Size number, Size y, Size x) const {
        if (ring == 0) return base + map.at(number, y, x);
        if (y < 0 || y >= map.height) return zeros + (x + map.border) * map.pixel;
        return base + (y % ring) * map.row + (x + map.border) * map.pixel;
    }
};

Place place_of(const Execution& run, int value, int image, int channel) {
    return {run.plan.maps[value], run.value(value, image) + channel};
}

// ---- products ------------------------------------------------------------------------------------------------

void pack_rows(const Execution& run, const Step& step, const DepthBlock& block, const float* const* source, int rows,
               float* packed, float* lines) {
    const Node& node = *step.node;
    const ConvolutionWeights& weights = *step.weights;
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

/// A convolution as a product: rows of pixels, gathered and packed block by block, with panels of weights.
void convolve(const Execution& run, const Step& step, int image, Range positions, Range panels, const Place& out,
              float* scratch) {
    const Node& node = *step.node;
    const ConvolutionWeights& weights = *step.weights;
    const Kernels& kernels = run.kernels;
    const Place in = place_of(run, node.input, image, node.input_channel);
    const Place added = node.added >= 0 ? place_of(run, node.added, image, node.added_channel) : Place{};
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
        }
        for (const DepthBlock& block : weights.blocks) {
            const bool is_first = &block == &weights.blocks.front(), is_last = &block == &weights.blocks.back();
            for (Size tile = first; tile < last; ++tile) {
                const Range range = share(total, tiles, tile);
                const Size offset = range.begin - begin;
                const int rows = int(range.end - range.begin);
                float* lines = packed + (block.depth + kernels.lanes) * rows;
                pack_rows(run, step, block, at.source + offset, rows, packed, lines);
                // Each block is summed for itself and added to what was there: shorter sums round less.
                const float* const* residual = added.base && is_last ? at.added + offset : nullptr;
                Rows io{is_first ? bias : residual ? residual : zeros, 0, at.out + offset, 0,
                        is_first ? residual : const_cast<const float* const*>(at.out + offset), 0, node.relu && is_last};
                const bool from_zero = io.start == zeros;
                for (Size i = panels.begin; i < panels.end; ++i) {
                    const Panel& panel = weights.panels[i];
                    const Size channel = Size(panel.first) * kernels.lanes;
                    io.out_offset = io.added_offset = channel;
                    io.start_offset = from_zero ? 0 : channel;
                    kernels.multiply[panel.vectors][rows](
                        packed, weights.weights + block.weights + channel * block.depth, block.depth, io);
                }
            }
        }
    }
}

void run_direct(const Execution& run, const Step& step, int image, int count) {
    const ConvolutionWeights& weights = *step.weights;
    const Map& out = run.plan.maps[step.node->output];
    double depth = 0;
    for (const DepthBlock& block : weights.blocks) depth += double(block.depth);
    const int lanes = run.kernels.lanes, vectors = weights.panels.front().vectors;
    const Share mine = split(run.team, run.member, out.pixels() * count, Size(weights.panels.size()), weights.rows,
                             depth * weights.rows * vectors, depth / lanes * weights.rows * 3,
                             depth * vectors * lanes * sizeof(float) / 8);
    convolve(run, step, image, mine.positions, mine.panels,
             place_of(run, step.node->output, image, step.node->output_channel), run.scratch);
}

// ---- Winograd ------------------------------------------------------------------------------------------------

// Between the elements of transformed tiles, in floats: without it the elements of one tile, which are written one
// after another, would fall on the same few places of the first-level cache.
constexpr Size kElementGap = 16;

int winograd_size(const Step& step) { return step.weights->algorithm == Algorithm::kWinograd2 ? 2 : 4; }

/// A 3×3 convolution of stride 1, a register tile's worth of Winograd tiles at a time: transform the inputs,
/// multiply each of the (m+2)² elements, transform the outputs.
void convolve_by_winograd(const Execution& run, const Step& step, int image, Range tiles, Range panels,
                          const Place& in, float* scratch) {
    const Node& node = *step.node;
    const ConvolutionWeights& weights = *step.weights;
    const Kernels& kernels = run.kernels;
    const Place out = place_of(run, node.output, image, node.output_channel);
    const Place added = node.added >= 0 ? place_of(run, node.added, image, node.added_channel) : Place{};

    const int m = winograd_size(step), side = m + 2, elements = side * side, which = m / 4;
    const int lanes = kernels.lanes, depth = node.input_channels;
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
                kernels.winograd_output[which](products + r * width, Size(rows) * width, panel.vectors, target,
                                               out.map.pixel, int(std::min<Size>(m, out.map.height - y)),
                                               int(std::min<Size>(m, out.map.width - x)), weights.bias + channel,
                                               added.base ? other : nullptr, added.map.pixel, node.relu);
            }
        }
    }
}

void run_winograd(const Execution& run, const Step& step, int image, int count) {
    const ConvolutionWeights& weights = *step.weights;
    const Map& out = run.plan.maps[step.node->output];
    const int m = winograd_size(step), elements = (m + 2) * (m + 2), lanes = run.kernels.lanes;
    const double depth = step.node->input_channels, vectors = weights.panels.front().vectors;
    const Size tiles = ceil_div(out.width, m) * ceil_div(out.height, m) * count;
    const Share mine = split(run.team, run.member, tiles, Size(weights.panels.size()), weights.rows,
                             (elements * depth + 100) * weights.rows * vectors,
                             depth / lanes * weights.rows * (m == 2 ? 100 : 280),
                             elements * depth * vectors * lanes * sizeof(float) / 8);
    convolve_by_winograd(run, step, image, mine.positions, mine.panels,
                         place_of(run, step.node->input, image, step.node->input_channel), run.scratch);
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

    const Range own = share(tile_rows, run.team.size(), run.member);
    const Range first_panels{0, Size(first.weights->panels.size())}, panels{0, Size(second.weights->panels.size())};
    for (Size number = 0; number < count; ++number) {
        const Size pixels = number * map.pixels(), tiles = number * tile_rows * across;
        Size done = std::max<Size>(own.begin * m - 1, 0);
        for (Size row = own.begin; row < own.end; row += strip) {
            const Size end = std::min<Size>(row + strip, own.end);
            const Size needed = std::min<Size>(end * m + 1, map.height);
            convolve(run, first, image, {pixels + done * map.width, pixels + needed * map.width}, first_panels, inner,
                     scratch);
            done = needed;
            convolve_by_winograd(run, second, image, {tiles + row * across, tiles + end * across}, panels, inner,
                                 scratch);
        }
    }
}

/// Strips pay where the map between the two is too large for the second-level cache, and where the members' parts
/// are equal and much higher than the two rows that each computes besides.
bool by_strips(const Execution& run, const Step& step) {
    if (!step.by_strips) return false;
    const Map& map = run.plan.maps[step.node->output];
    const int size = run.team.size();
    return size == 1 || (map.height / 4 % size == 0 && map.height / size >= 24);
}

// ---- elementwise ---------------------------------------------------------------------------------------------

/// Calls `compute(pixel)` for the member's share of the output's pixels.
template <class Compute>
void for_each_pixel(const Execution& run, const Map& out, int count, Compute compute) {
    const Range mine = share(out.pixels() * count, run.team.size(), run.member);
    Walk walk(out, mine.begin);
    for (Size i = mine.begin; i < mine.end; ++i, walk.next(out)) compute(walk);
}

void run_elementwise(const Execution& run, const Step& step, int image, int count) {
    const Node& node = *step.node;
    const Place in = place_of(run, node.input, image, node.input_channel);
    const Place out = place_of(run, node.output, image, node.output_channel);
    const Place added = node.added >= 0 ? place_of(run, node.added, image, node.added_channel) : Place{};
    const Size vectors = ceil_div(node.input_channels, run.kernels.lanes);
    for_each_pixel(run, out.map, count, [&](const Walk& pixel) {
        run.kernels.elementwise(out.at(pixel.number, pixel.y, pixel.x), in.at(pixel.number, pixel.y, pixel.x),
                                step.scale, step.shift,
                                added.base ? added.at(pixel.number, pixel.y, pixel.x) : nullptr, node.relu, vectors);
    });
}

void run_pool(const Execution& run, const Step& step, int image, int count) {
    const Node& node = *step.node;
    const Place in = place_of(run, node.input, image, node.input_channel);
    const Place out = place_of(run, node.output, image, node.output_channel);
    const Size vectors = ceil_div(node.input_channels, run.kernels.lanes);
    for_each_pixel(run, out.map, count, [&](const Walk& pixel) {
        const float* seen[15 * 15];
        int count_seen = 0;
        const Size top = pixel.y * node.stride - node.padding, left = pixel.x * node.stride - node.padding;
        for (Size y = std::max<Size>(top, 0); y < std::min<Size>(top + node.kernel, in.map.height); ++y)
            for (Size x = std::max<Size>(left, 0); x < std::min<Size>(left + node.kernel, in.map.width); ++x)
                seen[count_seen++] = in.at(pixel.number, y, x);
        float* result = out.at(pixel.number, pixel.y, pixel.x);
        if (node.kind == Kind::kMaxPool)
            run.kernels.largest(result, seen, count_seen, vectors);
        else
            run.kernels.mean(result, seen, count_seen, float(node.kernel * node.kernel), nullptr, nullptr, vectors);
    });
}

void run_subsample(const Execution& run, const Step& step, int image, int count) {
    const Node& node = *step.node;
    const Place in = place_of(run, node.input, image, node.input_channel);
    const Place out = place_of(run, node.output, image, node.output_channel);
    for_each_pixel(run, out.map, count, [&](const Walk& pixel) {
        const float* from = in.at(pixel.number, pixel.y * node.stride, pixel.x * node.stride);
        float* to = out.at(pixel.number, pixel.y, pixel.x);
        // The zeros too: another value may have used this memory.
        std::fill(to, to + node.before, 0.0f);
        std::copy(from, from + node.input_channels, to + node.before);
        std::fill(to + node.before + node.input_channels, to + node.output_channels, 0.0f);
    });
}

void run_mean(const Execution& run, const Step& step, int image, int count) {
    const Place in = place_of(run, step.node->input, image, step.node->input_channel);
    const Place out = place_of(run, step.node->output, image, step.node->output_channel);
    const int lanes = run.kernels.lanes;
    const Size vectors = ceil_div(step.node->input_channels, lanes);
    const Range mine = share(vectors, run.team.size(), run.member);
    if (mine.begin == mine.end) return;
    // Nothing is allocated in a run, so the pointers to the pixels go through an array of fixed size: the means of so
    // many pixels, weighted by their number.
    const Size offset = mine.begin * lanes, own = mine.end - mine.begin;
    constexpr int kPointers = 256;
    const float* pixels[kPointers];
    for (int number = 0; number < count; ++number) {
        float* result = out.at(number, 0, 0) + offset;
        const Size total = in.map.pixels();
        Walk walk(in.map, number * total);
        float* part = run.scratch;
        std::fill(result, result + own * lanes, 0.0f);
        for (Size done = 0; done < total;) {
            const int now = int(std::min<Size>(kPointers, total - done));
            for (int i = 0; i < now; ++i, walk.next(in.map)) pixels[i] = in.at(walk.number, walk.y, walk.x) + offset;
            run.kernels.mean(part, pixels, now, float(now), step.scale ? step.scale + offset : nullptr,
                             step.shift ? step.shift + offset : nullptr, own);
            const float weight = float(now) / float(total);
            for (Size c = 0; c < own * lanes; ++c) result[c] += weight * part[c];
            done += now;
        }
    }
}

}  // namespace

std::size_t scratch_floats(const Kernels& kernels, const Plan& plan, std::size_t number) {
    const Step& step = plan.steps[number];
    const Node& node = *step.node;
    const Size lanes = kernels.lanes;
    if (node.kind == Kind::kMean) return std::size_t(ceil_div(node.input_channels, lanes) * lanes);
    if (node.kind != Kind::kConvolution) return 0;
    const ConvolutionWeights& weights = *step.weights;
    if (weights.algorithm != Algorithm::kDirect) {
        const int m = winograd_size(step), elements = (m + 2) * (m + 2);
        const Size width = weights.rows * lanes * (ceil_div(node.input_channels, lanes) + kWidestPanel);
        return std::size_t(elements) * std::size_t(width + kElementGap);
    }
    Size most = 0;
    for (const DepthBlock& block : weights.blocks) most = std::max(most, block.depth);
    const Size own = (most + lanes) * weights.rows + (weights.in_runs ? (most + 2 * lanes) * weights.rows : 0) + lanes;
    if (!step.by_strips) return std::size_t(own);
    const Step& next = plan.steps[number + 1];
    const Map& map = plan.maps[node.output];
    const int m = winograd_size(next);
    const Size ring = (strip_rows(*next.weights, map, m) * m + 3) * map.row;
    return std::size_t(ring) + std::max(std::size_t(own), scratch_floats(kernels, plan, number + 1));
}

std::size_t execute(const Execution& run, std::size_t number, int image, int count) {
    const Step& step = run.plan.steps[number];
    if (by_strips(run, step)) {
        run_strips(run, step, run.plan.steps[number + 1], image, count);
        return 2;
    }
    switch (step.node->kind) {
        case Kind::kElementwise: run_elementwise(run, step, image, count); break;
        case Kind::kMaxPool:
        case Kind::kAveragePool: run_pool(run, step, image, count); break;
        case Kind::kSubsample: run_subsample(run, step, image, count); break;
        case Kind::kMean: run_mean(run, step, image, count); break;
        case Kind::kConvolution:
            if (step.weights->algorithm == Algorithm::kDirect)
                run_direct(run, step, image, count);
            else
                run_winograd(run, step, image, count);
    }
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
