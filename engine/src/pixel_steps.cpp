#include "pixel_steps.h"

#include <algorithm>
#include <cmath>

#include "place.h"

namespace skipnets {
namespace {

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
    const Place gate = gate_of(run, node, image);
    const Size vectors = ceil_div(node.input_channels, run.kernels.lanes);
    const Size to_shift = node.gate_shift_channel - node.gate_channel;
    const auto finish = finisher_of(run, node);
    const bool rectified = node.activation == Activation::kRelu;
    for_each_pixel(run, out.map, count, [&](const Walk& pixel) {
        float* result = out.at(pixel.number, pixel.y, pixel.x);
        const float* from = in.at(pixel.number, pixel.y, pixel.x);
        const float* other = added.base ? added.at(pixel.number, pixel.y, pixel.x) : nullptr;
        if (step.slope) {
            run.kernels.pixel->swish(result, from, step.slope, vectors);
            from = result;
        }
        if (gate.base) {
            const float* factors = gate.at(pixel.number, 0, 0);
            run.kernels.pixel->gated(result, from, factors, node.gate_shift_channel < 0 ? nullptr : factors + to_shift,
                                     step.scale, step.shift, other, rectified, vectors);
        } else {
            run.kernels.elementwise(result, from, step.scale, step.shift, other, rectified, vectors);
        }
        if (finish) finish(&result, 0, 1, vectors);
        if (step.floor) run.kernels.pixel->at_least(result, step.floor, vectors);
    });
}

/// Activates what a step without a ReLU of its own has written to a pixel.
void activate(const Execution& run, const Node& node, float* pixel, Size vectors) {
    const auto function = run.kernels.pixel->activate[int(node.activation)];
    if (function) function(&pixel, 0, 1, vectors);
}

/// A filter for each channel, row by row; a norm of the row's pixels while they are in the cache.
void run_depthwise(const Execution& run, const Step& step, int image, int count) {
    const Node& node = *step.node;
    const ConvolutionWeights& weights = *step.weights;
    const PixelKernels& kernels = *run.kernels.pixel;
    const Place in = place_of(run, node.input, image, node.input_channel);
    const Place out = place_of(run, node.output, image, node.output_channel);
    const Size vectors = ceil_div(node.input_channels, run.kernels.lanes), width = out.map.width;
    const auto along_rows =
        node.stride == 1 && node.dilation == 1 && node.kernel < 8 ? kernels.depthwise[node.kernel] : nullptr;
    const Range mine = share(Size(out.map.height) * width * count, run.team.size(), run.member);
    for (Size begin = mine.begin, end; begin < mine.end; begin = end) {
        const Walk first(out.map, begin);
        end = std::min(begin + width - first.x, mine.end);
        const Size pixels = end - begin, top = first.y * node.stride - node.padding;
        float* result = out.at(first.number, first.y, first.x);
        if (along_rows) {
            along_rows(result, out.map.pixel, in.at(first.number, top, first.x - node.padding), in.map.pixel,
                       in.map.row, pixels, weights.weights, weights.bias, vectors);
        } else {
            const float* taps[15 * 15];
            for (Size i = 0; i < pixels; ++i) {
                const float* corner = in.at(first.number, top, (first.x + i) * node.stride - node.padding);
                for (int tap = 0; tap < node.kernel * node.kernel; ++tap)
                    taps[tap] = corner + (tap / node.kernel) * node.dilation * in.map.row +
                                (tap % node.kernel) * node.dilation * in.map.pixel;
                kernels.weighted(result + i * out.map.pixel, taps, node.kernel * node.kernel, weights.weights,
                                 weights.bias, vectors);
            }
        }
        for (Size i = 0; i < pixels; ++i, result += out.map.pixel) {
            if (node.eps > 0) kernels.layer_norm(result, result, step.scale, step.shift, node.eps, node.input_channels);
            activate(run, node, result, vectors);
        }
    }
}

void run_layer_norm(const Execution& run, const Step& step, int image, int count) {
    const Node& node = *step.node;
    const Place in = place_of(run, node.input, image, node.input_channel);
    const Place out = place_of(run, node.output, image, node.output_channel);
    const Size vectors = ceil_div(node.input_channels, run.kernels.lanes);
    for_each_pixel(run, out.map, count, [&](const Walk& pixel) {
        float* result = out.at(pixel.number, pixel.y, pixel.x);
        run.kernels.pixel->layer_norm(result, in.at(pixel.number, pixel.y, pixel.x), step.scale, step.shift, node.eps,
                                      node.input_channels);
        activate(run, node, result, vectors);
    });
}

/// Calls `compute(pixels, count)` for pointers to some pixels of an image, from a channel on, until it has seen all:
/// nothing is allocated in a run, so they go through an array of fixed size.
template <class Compute>
void for_some_pixels(const Place& in, int number, Size channel, Compute compute) {
    constexpr int kPointers = 256;
    const float* pixels[kPointers];
    const Size total = in.map.pixels();
    Walk walk(in.map, number * total);
    for (Size done = 0; done < total;) {
        const int now = int(std::min<Size>(kPointers, total - done));
        for (int i = 0; i < now; ++i, walk.next(in.map)) pixels[i] = in.at(walk.number, walk.y, walk.x) + channel;
        compute(pixels, now);
        done += now;
    }
}

/// Statistics of groups of channels, as factors and shifts: γ / √(σ² + ε) and β − μ · factor, or what `Moments` says.
/// Sums of a channel are in single precision over some pixels, in double precision from there on.
void run_group_norm(const Execution& run, const Step& step, int image, int count) {
    const Node& node = *step.node;
    const Place in = place_of(run, node.input, image, node.input_channel);
    const Place out = place_of(run, node.output, image, node.output_channel);
    const Size lanes = run.kernels.lanes, channels = node.input_channels, size = channels / node.groups;
    const Range mine = share(node.groups, run.team.size(), run.member);
    const Size begin = mine.begin * size, own = mine.end * size - begin;
    if (own == 0) return;
    const Size vectors = ceil_div(own, lanes);
    float* some = run.scratch;                                        // of each channel
    float* center = some + vectors * lanes;
    double* sums = reinterpret_cast<double*>(center + vectors * lanes);
    const double numbers = double(in.map.pixels()) * double(size);
    for (int number = 0; number < count; ++number) {
        float* factor = out.at(number, 0, 0) + begin;
        const auto sum_groups = [&](auto sum_pixels) {
            std::fill(sums, sums + own, 0.0);
            for_some_pixels(in, number, begin, [&](const float* const* pixels, int now) {
                sum_pixels(pixels, now);
                for (Size c = 0; c < own; ++c) sums[c] += double(some[c]);
            });
            for (Size first = 0; first < own; first += size) {
                double total = 0;
                for (Size c = first; c < first + size; ++c) total += sums[c];
                std::fill(sums + first, sums + first + size, total / numbers);
            }
        };
        std::fill(center, center + vectors * lanes, 0.0f);
        if (node.moments != Moments::kSquares) {
            sum_groups([&](const float* const* pixels, int now) {
                run.kernels.mean(some, pixels, now, 1.0f, nullptr, nullptr, vectors);
            });
            for (Size c = 0; c < own; ++c) center[c] = float(sums[c]);
        }
        sum_groups([&](const float* const* pixels, int now) {
            run.kernels.pixel->squares(some, pixels, now, center, vectors);
        });
        for (Size c = 0; c < own; ++c) {
            const double scale = double(step.scale[begin + c]) / std::sqrt(sums[c] + double(node.eps));
            factor[c] = float(scale);
            const double moved = node.moments == Moments::kCentered ? double(center[c]) * scale : 0.0;
            factor[channels + c] = float(double(step.shift[begin + c]) - moved);
        }
    }
}

void run_along_channels(const Execution& run, const Step& step, int image, int count) {
    const Node& node = *step.node;
    const Place in = place_of(run, node.input, image, node.input_channel);
    const Place out = place_of(run, node.output, image, node.output_channel);
    const int channels = node.input_channels, half = node.kernel / 2;
    const Size vectors = ceil_div(channels, run.kernels.lanes);
    for_each_pixel(run, out.map, count, [&](const Walk& pixel) {
        const float* from = in.at(pixel.number, pixel.y, pixel.x);
        float* result = out.at(pixel.number, pixel.y, pixel.x);
        for (int c = 0; c < channels; ++c) {
            float sum = 0;
            for (int k = std::max(0, half - c); k < std::min(node.kernel, channels + half - c); ++k)
                sum += node.weight[k] * from[c + k - half];
            result[c] = sum;
        }
        activate(run, node, result, vectors);
    });
}

/// A binomial filter, (1, 2, 1)/4 in both directions, that halves the map: a mean of 16 pixels, some of them twice or
/// four times the same.
void run_blur(const Execution& run, const Step& step, int image, int count) {
    const Node& node = *step.node;
    const Place in = place_of(run, node.input, image, node.input_channel);
    const Place out = place_of(run, node.output, image, node.output_channel);
    const Size vectors = ceil_div(node.input_channels, run.kernels.lanes);
    const auto mirrored = [](Size at, Size size) { return at < 0 ? -at : at < size ? at : 2 * size - 2 - at; };
    constexpr Size kSteps[4] = {-1, 0, 0, 1};
    for_each_pixel(run, out.map, count, [&](const Walk& pixel) {
        const float* seen[16];
        for (int i = 0; i < 16; ++i)
            seen[i] = in.at(pixel.number, mirrored(2 * pixel.y + kSteps[i / 4], in.map.height),
                            mirrored(2 * pixel.x + kSteps[i % 4], in.map.width));
        run.kernels.mean(out.at(pixel.number, pixel.y, pixel.x), seen, 16, 16.0f, nullptr, nullptr, vectors);
    });
}

void run_cell_mean(const Execution& run, const Step& step, int image, int count) {
    const Node& node = *step.node;
    const Place in = place_of(run, node.input, image, node.input_channel);
    const Place out = place_of(run, node.output, image, node.output_channel);
    const Size vectors = ceil_div(node.input_channels, run.kernels.lanes);
    for_each_pixel(run, out.map, count, [&](const Walk& pixel) {
        const float* seen[4];
        int number = 0;
        for (Size y = 2 * pixel.y; y < std::min<Size>(2 * pixel.y + 2, in.map.height); ++y)
            for (Size x = 2 * pixel.x; x < std::min<Size>(2 * pixel.x + 2, in.map.width); ++x)
                seen[number++] = in.at(pixel.number, y, x);
        run.kernels.mean(out.at(pixel.number, pixel.y, pixel.x), seen, number, float(number), nullptr, nullptr, vectors);
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
    const Size offset = mine.begin * lanes, own = mine.end - mine.begin;
    // The means of some pixels, weighted by their number.
    for (int number = 0; number < count; ++number) {
        float *result = out.at(number, 0, 0) + offset, *part = run.scratch;
        std::fill(result, result + own * lanes, 0.0f);
        for_some_pixels(in, number, offset, [&](const float* const* pixels, int now) {
            run.kernels.mean(part, pixels, now, float(now), step.scale ? step.scale + offset : nullptr,
                             step.shift ? step.shift + offset : nullptr, own);
            const float weight = float(now) / float(in.map.pixels());
            for (Size c = 0; c < own * lanes; ++c) result[c] += weight * part[c];
        });
    }
}

void run_max(const Execution& run, const Step& step, int image, int count) {
    const Place in = place_of(run, step.node->input, image, step.node->input_channel);
    const Place out = place_of(run, step.node->output, image, step.node->output_channel);
    const int lanes = run.kernels.lanes;
    const Range mine = share(ceil_div(step.node->input_channels, lanes), run.team.size(), run.member);
    if (mine.begin == mine.end) return;
    const Size offset = mine.begin * lanes, own = mine.end - mine.begin;
    for (int number = 0; number < count; ++number) {
        float *result = out.at(number, 0, 0) + offset, *part = run.scratch;
        bool first = true;
        for_some_pixels(in, number, offset, [&](const float* const* pixels, int now) {
            run.kernels.largest(part, pixels, now, own);
            const float* both[2] = {result, part};
            run.kernels.largest(result, first ? both + 1 : both, first ? 1 : 2, own);
            first = false;
        });
    }
}
}  // namespace

std::size_t pixel_scratch_floats(const Kernels& kernels, const Node& node) {
    const Size padded = ceil_div(node.input_channels, kernels.lanes) * kernels.lanes;
    if (node.kind == Kind::kMean || node.kind == Kind::kMax) return std::size_t(padded);
    // Two sets of floats, and one of doubles.
    if (node.kind == Kind::kGroupNorm) return std::size_t(2 * padded + 2 * node.input_channels);
    return 0;
}

void execute_pixels(const Execution& run, const Step& step, int image, int count) {
    switch (step.node->kind) {
        case Kind::kConvolution: break;
        case Kind::kDepthwise: return run_depthwise(run, step, image, count);
        case Kind::kElementwise: return run_elementwise(run, step, image, count);
        case Kind::kMaxPool:
        case Kind::kAveragePool: return run_pool(run, step, image, count);
        case Kind::kCellMean: return run_cell_mean(run, step, image, count);
        case Kind::kBlur: return run_blur(run, step, image, count);
        case Kind::kSubsample: return run_subsample(run, step, image, count);
        case Kind::kMean: return run_mean(run, step, image, count);
        case Kind::kMax: return run_max(run, step, image, count);
        case Kind::kLayerNorm: return run_layer_norm(run, step, image, count);
        case Kind::kGroupNorm: return run_group_norm(run, step, image, count);
        case Kind::kAlongChannels: return run_along_channels(run, step, image, count);
    }
}

}  // namespace skipnets
