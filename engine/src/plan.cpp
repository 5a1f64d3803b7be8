#include "plan.h"

#include <algorithm>
#include <stdexcept>
#include <tuple>

#include "ranges.h"
#include "steps.h"

namespace skipnets {
namespace {

// Images that a thread takes at once through a segment together fill about this much, in floats: more would fall
// out of its part of the shared cache between two steps.
constexpr Size kGroupFloats = Size(1) << 20;

// Maps larger than this, in floats, pass through the second-level cache strip by strip.
constexpr Size kStripFloats = Size(1) << 17;

// Weights of at most so many bytes are fetched again for each strip of a few register tiles' pixels.
constexpr std::size_t kStripWeights = std::size_t(2) << 20;

int shrunk(int size, const Node& node) {
    switch (node.kind) {
        case Kind::kMean:
        case Kind::kMax:
        case Kind::kGroupNorm: return 1;
        case Kind::kElementwise:
        case Kind::kLayerNorm:
        case Kind::kAlongChannels: return size;
        case Kind::kCellMean: return (size + 1) / 2;
        case Kind::kBlur: return size < 2 ? 0 : (size + 1) / 2;  // of one pixel there is no mirror image
        case Kind::kMaxPool:
        case Kind::kAveragePool:
        case Kind::kSubsample:
        case Kind::kDepthwise:
        case Kind::kConvolution: break;
    }
    if (node.pooled) return size / 2;
    const int places = size + 2 * node.padding - node.dilation * (node.kernel - 1);  // of the kernel at stride 1
    return places < 1 ? 0 : (places - 1) / node.stride + 1;
}

/// Heights and widths, from the image on.
void size_maps(const Network& network, Plan& plan) {
    plan.maps[0].height = plan.key.height;
    plan.maps[0].width = plan.key.width;
    for (const Node& node : network.nodes) {
        const Map& in = plan.maps[node.input];
        Map& out = plan.maps[node.output];
        const int height = shrunk(in.height, node), width = shrunk(in.width, node);
        if (height < 1 || width < 1)
            throw std::invalid_argument("images of " + std::to_string(plan.key.height) + "×" +
                                        std::to_string(plan.key.width) + " are too small for this network: " +
                                        node.name + " would have nothing left");
        if (out.height != 0 && (out.height != height || out.width != width))
            throw std::invalid_argument(node.name + ": its map does not fit beside the others");
        if (node.added >= 0 && (plan.maps[node.added].height != height || plan.maps[node.added].width != width))
            throw std::invalid_argument(node.name + ": what is added has another size");
        if (node.gate >= 0 && plan.maps[node.gate].pixels() != 1)
            throw std::invalid_argument(node.name + ": factors must have one pixel");
        out.height = height;
        out.width = width;
    }
    for (int value : {network.features, network.logits})
        if (value >= 0 && plan.maps[value].pixels() != 1)
            throw std::invalid_argument("features and logits must have one pixel");
}

/// Cycles that a 3×3 convolution, or each part of one, takes, roughly, on one thread: what the choice of its
/// algorithm minimizes.
///
/// Multiply-adds at one vector a cycle; a transform is about so many vector operations a tile and vector of
/// channels as were counted in the compiled code; weights come from the shared cache or memory at 8 bytes a
/// cycle, once for all images of a group. Register tiles with few rows wait for their weights: two vectors of
/// weights are loaded for `rows` broadcasts.
double cycles(int inputs, int outputs, const Map& out, int images, int m, const Kernels& kernels) {
    const double lanes = kernels.lanes;
    const double in_vectors = double((inputs + kernels.lanes - 1) / kernels.lanes);
    const double out_vectors = double((outputs + kernels.lanes - 1) / kernels.lanes);
    const int elements = m == 0 ? 9 : (m + 2) * (m + 2);
    const double positions =
        m == 0 ? double(out.pixels()) * images
               : double((out.height + m - 1) / m) * ((out.width + m - 1) / m) * images;
    const double product = positions * elements * inputs * out_vectors;
    const double few = positions < 8 ? 8 / positions : 1;
    const double transforms =
        m == 0 ? positions * 9 * in_vectors * 2.5
               : positions * (in_vectors * (m == 2 ? 100 : 280) + out_vectors * (m == 2 ? 60 : 170));
    const double weight_bytes = 4.0 * elements * inputs * out_vectors * lanes;
    return product * few + transforms + weight_bytes / 8;
}

Algorithm choose_algorithm(const Node& node, const Map& out, int images, const Kernels& kernels) {
    if (node.forced) return *node.forced;
    if (node.kind != Kind::kConvolution || !node.suits_winograd()) return Algorithm::kDirect;
    const int parts = node.groups / groups_together(node, kernels.lanes);
    const int inputs = node.input_channels / parts, outputs = node.output_channels / parts;
    const double direct = cycles(inputs, outputs, out, images, 0, kernels);
    const double two = cycles(inputs, outputs, out, images, 2, kernels);
    const double four = cycles(inputs, outputs, out, images, 4, kernels);
    if (direct <= two && direct <= four) return Algorithm::kDirect;
    return two <= four ? Algorithm::kWinograd2 : Algorithm::kWinograd4;
}

/// The border that every value needs, and the distances between its pixels, rows and images.
void lay_out_maps(const Network& network, const Kernels& kernels, Plan& plan) {
    std::vector<Size> pixel(plan.maps.size(), 1);
    const auto need = [&](int value, Size channels) {
        pixel[value] = std::max(pixel[value], round_up(channels, kernels.lanes));
    };
    for (const Step& step : plan.steps) {
        const Node& node = *step.node;
        if (node.input != 0) need(node.input, node.input_channel + round_up(node.input_channels, kernels.lanes));
        // Every part of a grouped convolution stores whole vectors.
        const Size last = Size(node.output_channels) / step.parts;
        need(node.output, node.output_channel + node.output_channels - last + round_up(last, kernels.lanes));
        if (node.added > 0) need(node.added, node.added_channel + round_up(node.output_channels, kernels.lanes));
        if (node.gate > 0) {
            need(node.gate, node.gate_channel + round_up(node.input_channels, kernels.lanes));
            need(node.gate, node.gate_shift_channel + round_up(node.input_channels, kernels.lanes));
        }
        const bool slides = node.kind == Kind::kConvolution || node.kind == Kind::kDepthwise;
        if (!slides || node.kernel == 1) continue;
        Map& in = plan.maps[node.input];
        const Map& out = plan.maps[node.output];
        const int before = node.padding;
        int height, width;  // rows and columns that are read, the border above and on the left among them
        if (step.weights->algorithm == Algorithm::kDirect) {
            const int reach = node.dilation * (node.kernel - 1) + 1;
            height = (out.height - 1) * node.stride + reach;
            width = (out.width - 1) * node.stride + reach;
        } else {
            const int m = step.weights->algorithm == Algorithm::kWinograd2 ? 2 : 4;
            height = (out.height + m - 1) / m * m + 2;
            width = (out.width + m - 1) / m * m + 2;
        }
        in.border = std::max(in.border, before);
        in.below = std::max(in.below, height - before - in.height);
        in.behind = std::max(in.behind, width - before - in.width);
    }
    for (std::size_t value = 0; value < plan.maps.size(); ++value) {
        Map& map = plan.maps[value];
        map.channels = network.channels[value];
        // An odd number of cache lines: at a power of two, neighboring pixels would compete for the same few
        // places in the first-level cache.
        map.pixel = value == 0 ? map.channels : round_up(std::max<Size>(pixel[value], map.channels), 16);
        if (value != 0 && map.pixel % 32 == 0) map.pixel += 16;
        map.row = map.pixel * (map.border + map.width + map.behind);
        const Size rows = map.border + map.height + map.below;
        if (double(map.row) * double(rows) > double(Size(1) << 36))  // the product may be more than a Size holds
            throw std::invalid_argument("images of " + std::to_string(plan.key.height) + "×" +
                                        std::to_string(plan.key.width) + " are too large");
        map.image = map.row * rows;
    }
}

/// Whether the second of two steps may read a strip of what the first, a 1×1 convolution, makes; and how.
Strips strips_of(const Step& second) {
    const Node& node = *second.node;
    if (node.kind != Kind::kConvolution || second.parts > 1) return Strips::kNone;
    if (second.weights->algorithm != Algorithm::kDirect) return Strips::kWinograd;
    const bool plain = node.kernel == 1 && node.stride == 1 && !node.pooled;
    // Every strip fetches all weights.
    return plain && second.weights->bytes <= kStripWeights ? Strips::kProducts : Strips::kNone;
}

/// Splits the steps where the largest map still to be read becomes smaller, and gives every segment its group.
void group_steps(const Network& network, Plan& plan) {
    const std::size_t count = plan.steps.size();
    std::vector<Size> area(count);
    for (std::size_t i = count; i-- > 0;) {
        area[i] = plan.maps[plan.steps[i].node->input].pixels();
        if (i + 1 < count) area[i] = std::max(area[i], area[i + 1]);
    }
    for (std::size_t i = 0; i < count; ++i) {
        if (i == 0 || area[i] < area[i - 1]) plan.segments.push_back({i, i, 1});
        plan.segments.back().end = i + 1;
    }
    int group = 1;
    for (Segment& segment : plan.segments) {
        Size floats = 1;
        for (std::size_t i = segment.begin; i < segment.end; ++i) {
            const Node& node = *plan.steps[i].node;
            floats = std::max(floats, plan.maps[node.input].image + plan.maps[node.output].image);
        }
        while (group * 2 <= plan.key.images && group * 2 * floats <= kGroupFloats) group *= 2;
        segment.group = group;
        for (std::size_t i = segment.begin; i < segment.end; ++i) {
            const Node& node = *plan.steps[i].node;
            for (int value : {node.input, node.output, node.added, node.gate})
                if (value >= 0) plan.maps[value].group = std::max(plan.maps[value].group, group);
        }
    }
    // Results are read after the last segment, for all of its images.
    for (int value : {network.features, network.logits})
        if (value >= 0) plan.maps[value].group = group;
}

/// Finds 1×1 convolutions whose result only the convolution behind them reads, and which is so large that the two had
/// better run strip by strip.
void pair_steps(Plan& plan) {
    const auto reads = [](const Node& node, int value) {
        return node.input == value || node.added == value || node.gate == value;
    };
    std::vector<bool> ends(plan.steps.size(), false);  // the last steps of segments
    for (const Segment& segment : plan.segments) ends[segment.end - 1] = true;
    for (std::size_t i = 0; i + 1 < plan.steps.size(); ++i) {
        const Node &node = *plan.steps[i].node, &next = *plan.steps[i + 1].node;
        // The first step of a segment runs on its own, for other images at a time than the last of the one before.
        if (plan.key.keep || ends[i] || node.kind != Kind::kConvolution || node.kernel != 1 || node.pooled ||
            node.output_channel != 0 || next.input != node.output || next.added == node.output ||
            next.gate == node.output || next.input_channel != 0 || next.input_channels > node.output_channels ||
            plan.steps[i].parts > 1)
            continue;
        // Other steps that read the value must find it written anew.
        bool read_later = false;
        for (std::size_t j = i + 2; j < plan.steps.size() && !read_later; ++j) {
            const Node& later = *plan.steps[j].node;
            read_later = reads(later, node.output);
            if (later.output == node.output && later.output_channel == 0 &&
                later.output_channels >= node.output_channels)
                break;
        }
        const Map& map = plan.maps[node.output];
        const bool large = map.image > kStripFloats && map.pixels() > 1;
        const Strips strips = strips_of(plan.steps[i + 1]);
        if (strips == Strips::kProducts && plan.steps[i].weights->bytes > kStripWeights) continue;
        if (large && !read_later) plan.steps[i].strips = strips;
    }
}

/// Lets values share memory where the one is read for the last time before the other is first written. Only values
/// laid out alike do, so that the zeros of their borders stay where they are.
void share_memory(const Network& network, Plan& plan) {
    const std::size_t count = plan.maps.size();
    std::vector<std::size_t> first(count, plan.steps.size()), last(count, 0);
    const auto use = [&](int value, std::size_t step) {
        first[value] = std::min(first[value], step);
        last[value] = std::max(last[value], step);
    };
    for (std::size_t i = 0; i < plan.steps.size(); ++i) {
        const Node& node = *plan.steps[i].node;
        // Strip by strip, one member may write the next step's output where another has yet to read this one's input.
        const std::size_t read_until = plan.steps[i].strips == Strips::kWinograd ? i + 1 : i;
        use(node.input, i);
        use(node.input, read_until);
        use(node.output, i);
        if (node.added >= 0) use(node.added, read_until);
        if (node.gate >= 0) use(node.gate, i);
    }
    for (int value : {network.features, network.logits})
        if (value >= 0) use(value, plan.steps.size() - 1);
    using Layout = std::tuple<int, int, int, int, Size, Size, Size, int>;
    std::map<Layout, std::vector<std::size_t>> free;  // slots of each layout
    std::vector<Layout> layouts;
    for (const Map& map : plan.maps)
        layouts.emplace_back(map.height, map.width, map.border, map.channels, map.pixel, map.row, map.image, map.group);
    plan.slots.assign(count, 0);
    const auto new_slot = [&](std::size_t value) {
        plan.slots[value] = plan.slot_sizes.size();
        plan.slot_sizes.push_back(std::size_t(plan.maps[value].image) * plan.maps[value].group);
    };
    new_slot(0);
    // A segment may write to a value that a later one has yet to read for other images: only values inside one
    // segment are ever shared.
    for (const Segment& segment : plan.segments) {
        free.clear();
        for (std::size_t i = segment.begin; i < segment.end; ++i) {
            const int out = plan.steps[i].node->output;
            if (first[out] == i) {
                auto& slots = free[layouts[out]];
                if (plan.key.keep || slots.empty() || last[out] >= segment.end) {
                    new_slot(out);
                } else {
                    plan.slots[out] = slots.back();
                    slots.pop_back();
                }
            }
            for (std::size_t value = 1; value < count; ++value)
                if (last[value] == i && first[value] >= segment.begin && i + 1 < plan.steps.size())
                    free[layouts[value]].push_back(plan.slots[value]);
        }
    }
}

}  // namespace

bool PlanKey::operator<(const PlanKey& other) const {
    return std::tie(height, width, images, keep) < std::tie(other.height, other.width, other.images, other.keep);
}

const std::vector<ConvolutionWeights>& WeightStore::get(std::size_t node, Algorithm algorithm) {
    const auto found = packed_.find({node, algorithm});
    if (found != packed_.end()) return found->second;
    std::vector<ConvolutionWeights> entry;  // kept only when every part of it has found memory
    const Node& whole = network_.nodes[node];
    const auto add = [&](const Node& which) {
        const bool adjacent = which.input == 0 && which.input_channels == network_.channels[0];
        entry.push_back(algorithm == Algorithm::kDirect
                            ? direct_weights(which, kernels_, adjacent, arena_)
                            : winograd_weights(which, kernels_, algorithm == Algorithm::kWinograd2 ? 2 : 4, arena_));
    };
    const int together = groups_together(whole, kernels_.lanes);
    if (whole.kind == Kind::kDepthwise)
        entry.push_back(depthwise_weights(whole, kernels_, arena_));
    else if (whole.groups == 1)
        add(whole);
    else
        for (int part = 0; part < whole.groups / together; ++part) add(part_of(whole, together, part));
    return packed_[{node, algorithm}] = std::move(entry);
}

std::unique_ptr<Plan> make_plan(const Network& network, const Kernels& kernels, const PlanKey& key,
                                WeightStore& store) {
    auto plan = std::make_unique<Plan>();
    plan->key = key;
    plan->maps.resize(network.channels.size());
    size_maps(network, *plan);
    for (std::size_t i = 0; i < network.nodes.size(); ++i) {
        const Node& node = network.nodes[i];
        Step step{&node};
        if (node.kind == Kind::kConvolution || node.kind == Kind::kDepthwise) {
            const auto& weights =
                store.get(i, choose_algorithm(node, plan->maps[node.output], key.images, kernels));
            step.weights = weights.data();
            step.parts = int(weights.size());
        }
        if (node.kind != Kind::kConvolution && !node.scale.empty()) {
            const std::size_t padded = round_up(Size(node.scale.size()), kernels.lanes);
            float* numbers = plan->arena.floats(2 * padded);
            std::copy(node.scale.begin(), node.scale.end(), numbers);
            std::copy(node.shift.begin(), node.shift.end(), numbers + padded);
            step.scale = numbers;
            step.shift = numbers + padded;
        }
        const auto padded = [&](const std::vector<float>& numbers) -> const float* {
            if (numbers.empty()) return nullptr;
            float* copy = plan->arena.floats(std::size_t(round_up(Size(numbers.size()), kernels.lanes)));
            std::copy(numbers.begin(), numbers.end(), copy);
            return copy;
        };
        step.slope = padded(node.slope);
        step.floor = padded(node.floor);
        plan->steps.push_back(step);
    }
    lay_out_maps(network, kernels, *plan);
    group_steps(network, *plan);
    pair_steps(*plan);
    share_memory(network, *plan);
    for (std::size_t i = 0; i < plan->steps.size(); ++i)
        plan->scratch = std::max(plan->scratch, scratch_floats(kernels, *plan, i));
    return plan;
}

Workspace::Workspace(const Plan& plan) {
    std::vector<std::size_t> begins;
    std::size_t floats = 0;
    for (std::size_t size : plan.slot_sizes) {
        begins.push_back(floats);
        floats += std::size_t(round_up(Size(size), 16)) + kRoomBehind;
    }
    float* const memory = arena.floats(floats);
    for (std::size_t slot : plan.slots) values.push_back(memory + begins[slot]);
}

double macs(const Plan& plan, const Step& step) {
    const Node& node = *step.node;
    if (node.kind != Kind::kConvolution && node.kind != Kind::kDepthwise) return 0;
    const double pixels = node.pooled ? double(plan.maps[node.input].pixels()) : double(plan.maps[node.output].pixels());
    const int inputs = node.kind == Kind::kDepthwise ? 1 : node.input_channels / node.groups;
    return pixels * node.kernel * node.kernel * inputs * node.output_channels;
}

const char* algorithm_name(const Step& step) {
    switch (step.node->kind) {
        case Kind::kElementwise:
            return step.node->gate >= 0                              ? "multiply"
                   : step.node->added >= 0                           ? "add"
                   : step.node->activation != Activation::kNone || step.floor ? "activate"
                                                                     : "scale";
        case Kind::kDepthwise: return step.node->eps > 0 ? "depthwise, norm" : "depthwise";
        case Kind::kLayerNorm: return "layer norm";
        case Kind::kGroupNorm: return "statistics";
        case Kind::kAlongChannels: return "along channels";
        case Kind::kCellMean: return "cell mean";
        case Kind::kBlur: return "blur";
        case Kind::kMax: return "max";
        case Kind::kMaxPool: return "max-pool";
        case Kind::kAveragePool: return "average-pool";
        case Kind::kSubsample:
            return step.node->stride == 1 && step.node->output_channels == step.node->input_channels ? "copy"
                                                                                                  : "subsample";
        case Kind::kMean: return "mean";
        case Kind::kConvolution: break;
    }
    switch (step.weights->algorithm) {
        case Algorithm::kWinograd2: return "winograd F(2×2)";
        case Algorithm::kWinograd4: return "winograd F(4×4)";
        case Algorithm::kDirect: break;
    }
    return step.node->pooled ? "pool, product" : step.node->kernel == 1 ? "product" : "direct";
}

}  // namespace skipnets
