#include "weights.h"

#include <algorithm>

#include "ranges.h"
#include "winograd.h"

namespace skipnets {
namespace {

// 14 rows of 416 floats are 23 KiB: most of a first-level cache; a panel passes by in what is left. Every part of the
// depth costs another walk over the sums.
constexpr int kMaxDepth = 416;

const float* copy_padded(const std::vector<float>& numbers, int lanes, float factor, Arena& arena) {
    float* copy = arena.floats(std::size_t(round_up(Size(numbers.size()), lanes)) + kWidestPanel * lanes);
    for (std::size_t i = 0; i < numbers.size(); ++i) copy[i] = numbers[i] * factor;
    return copy;
}

/// What both algorithms share: panels of two vectors, a last one of what is left.
ConvolutionWeights outline(const Node& node, const Kernels& kernels, Algorithm algorithm, Arena& arena) {
    ConvolutionWeights result{};
    result.algorithm = algorithm;
    result.inputs = node.input_channels;
    result.outputs = node.output_channels;
    result.output_vectors = int(ceil_div(node.output_channels, kernels.lanes));
    for (int first = 0; first < result.output_vectors; first += kWidestPanel)
        result.panels.push_back({first, std::min(kWidestPanel, result.output_vectors - first)});
    result.rows = kernels.rows[result.panels.front().vectors];
    result.bias = copy_padded(node.bias, kernels.lanes, 1, arena);
    if (!node.scale.empty()) {
        result.scale = copy_padded(node.scale, kernels.lanes, 1, arena);
        result.shift = copy_padded(node.shift, kernels.lanes, 1, arena);
    }
    return result;
}

void add_blocks_of_channels(std::vector<DepthBlock>& blocks, int taps, int channels, int lanes) {
    const int vectors = int(ceil_div(channels, lanes));
    const int parts = int(ceil_div(channels, kMaxDepth));
    for (int tap = 0; tap < taps; ++tap)
        for (int part = 0; part < parts; ++part) {
            const int first = vectors * part / parts * lanes;
            const int end = std::min(channels, vectors * (part + 1) / parts * lanes);
            blocks.push_back({tap, 1, first, end - first, end - first, 0});
        }
}

void add_blocks_of_taps(std::vector<DepthBlock>& blocks, int taps, int channels, int unit) {
    const int units = taps / unit;
    const int parts = int(std::min<Size>(units, ceil_div(taps * channels, kMaxDepth)));
    for (int part = 0; part < parts; ++part) {
        const int first = units * part / parts * unit, end = units * (part + 1) / parts * unit;
        blocks.push_back({first, end - first, 0, channels, Size(end - first) * channels, 0});
    }
}

}  // namespace

int groups_together(const Node& node, int lanes) {
    const int outputs = node.output_channels / node.groups;
    int together = 1;
    for (int some = 2; some <= node.groups && some * outputs <= lanes; ++some)
        if (node.groups % some == 0) together = some;
    return together;
}

Node part_of(const Node& node, int together, int part) {
    const int inputs = node.input_channels / node.groups, outputs = node.output_channels / node.groups;
    const std::size_t taps = std::size_t(node.kernel) * node.kernel;
    Node result;
    result.name = node.name;
    result.input = node.input;
    result.kernel = node.kernel;
    result.stride = node.stride;
    result.padding = node.padding;
    result.dilation = node.dilation;
    result.forced = node.forced;
    result.input_channels = inputs * together;
    result.output_channels = outputs * together;
    result.weight.assign(std::size_t(result.output_channels) * result.input_channels * taps, 0.0f);
    for (int o = 0; o < result.output_channels; ++o) {
        const auto from = node.weight.begin() + (std::size_t(part) * result.output_channels + o) * inputs * taps;
        const std::size_t group = std::size_t(o / outputs);
        std::copy(from, from + inputs * taps,
                  result.weight.begin() + (std::size_t(o) * result.input_channels + group * inputs) * taps);
    }
    const auto slice = [&](const std::vector<float>& all, int count) {
        if (all.empty()) return all;
        return std::vector<float>(all.begin() + std::size_t(part) * count, all.begin() + std::size_t(part + 1) * count);
    };
    result.bias = slice(node.bias, result.output_channels);
    result.scale = slice(node.scale, result.input_channels);
    result.shift = slice(node.shift, result.input_channels);
    return result;
}

ConvolutionWeights direct_weights(const Node& node, const Kernels& kernels, bool adjacent, Arena& arena) {
    ConvolutionWeights result = outline(node, kernels, Algorithm::kDirect, arena);
    const int lanes = kernels.lanes, taps = node.kernel * node.kernel;
    const bool whole_vectors = node.input_channels % lanes == 0;
    result.in_runs = taps > 1 && !whole_vectors;
    result.run_taps = adjacent && node.dilation == 1 ? node.kernel : 1;
    if (!result.in_runs && (taps == 1 || node.input_channels > kMaxDepth))
        add_blocks_of_channels(result.blocks, taps, node.input_channels, lanes);
    else
        add_blocks_of_taps(result.blocks, taps, node.input_channels, result.in_runs ? result.run_taps : 1);

    const Size width = Size(result.output_vectors) * lanes;
    const Size total = Size(taps) * node.input_channels * width;
    float* weights = arena.floats(total);
    // Pooling sums four pixels; their mean is a quarter of it.
    const float factor = node.pooled ? 0.25f : 1.0f;
    Size begin = 0;
    for (DepthBlock& block : result.blocks) {
        block.weights = begin;
        for (const Panel& panel : result.panels) {
            float* out = weights + begin + panel.first * lanes * block.depth;
            const int panel_width = panel.vectors * lanes;
            const int outputs = std::min(panel_width, node.output_channels - panel.first * lanes);
            for (int tap = block.first_tap; tap < block.first_tap + block.taps; ++tap)
                for (int c = block.first_channel; c < block.first_channel + block.channels; ++c, out += panel_width)
                    for (int o = 0; o < outputs; ++o)
                        out[o] = factor *
                                 node.weight[(std::size_t(panel.first * lanes + o) * node.input_channels + c) * taps + tap];
        }
        begin += block.depth * width;
    }
    result.weights = weights;
    result.bytes = std::size_t(total) * sizeof(float);
    return result;
}

ConvolutionWeights depthwise_weights(const Node& node, const Kernels& kernels, Arena& arena) {
    ConvolutionWeights result{};
    result.algorithm = Algorithm::kDirect;
    result.inputs = result.outputs = node.input_channels;
    const int lanes = kernels.lanes, taps = node.kernel * node.kernel;
    const Size total = round_up(node.input_channels, lanes) * taps;
    float* weights = arena.floats(total);
    for (int c = 0; c < node.input_channels; ++c)
        for (int tap = 0; tap < taps; ++tap)
            weights[(Size(c / lanes) * taps + tap) * lanes + c % lanes] = node.weight[std::size_t(c) * taps + tap];
    result.weights = weights;
    result.bias = copy_padded(node.bias, lanes, 1, arena);
    result.bytes = std::size_t(total) * sizeof(float);
    return result;
}

ConvolutionWeights winograd_weights(const Node& node, const Kernels& kernels, int m, Arena& arena) {
    ConvolutionWeights result =
        outline(node, kernels, m == 2 ? Algorithm::kWinograd2 : Algorithm::kWinograd4, arena);
    const int lanes = kernels.lanes, elements = (m + 2) * (m + 2), depth = node.input_channels;
    const Size total = Size(elements) * depth * result.output_vectors * lanes;
    float* weights = arena.floats(total);
    for (const Panel& panel : result.panels) {
        const int width = panel.vectors * lanes;
        float* out = weights + Size(panel.first) * lanes * elements * depth;
        const int outputs = std::min(width, node.output_channels - panel.first * lanes);
        // Channels outside: the outputs of one channel lie side by side in the result.
        for (int c = 0; c < depth; ++c)
            for (int o = 0; o < outputs; ++o) {
                const float* filter = &node.weight[(std::size_t(panel.first * lanes + o) * depth + c) * 9];
                double transformed[36];
                if (m == 2)
                    transform_filter(kFilter2, filter, transformed);
                else
                    transform_filter(kFilter4, filter, transformed);
                for (int e = 0; e < elements; ++e) out[(Size(e) * depth + c) * width + o] = float(transformed[e]);
            }
    }
    result.weights = weights;
    result.bytes = std::size_t(total) * sizeof(float);
    return result;
}

}  // namespace skipnets
