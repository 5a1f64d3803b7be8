// What the loops around the kernels share: where values lie, and what ends a step.

#pragma once

#include "pixel_kernels.h"
#include "ranges.h"
#include "steps.h"

namespace skipnets {

/// A value in memory: all of its images, or what a thread keeps for itself while it computes strip after strip. That is
/// a ring of rows of one image, outside of which there is one row of zeros, or a list of pixels, from `first` on.
struct Place {
    Map map;
    float* base;
    int ring = 0;  // rows; 0 for a whole value
    float* zeros = nullptr;
    Size first = -1;  // of a list; -1 for anything else

    float* at(Size number, Size y, Size x) const {
        if (first >= 0) return base + ((number * map.height + y) * map.width + x - first) * map.pixel;
        if (ring == 0) return base + map.at(number, y, x);
        if (y < 0 || y >= map.height) return zeros + (x + map.border) * map.pixel;
        return base + (y % ring) * map.row + (x + map.border) * map.pixel;
    }
};

inline Place place_of(const Execution& run, int value, int image, int channel) {
    return {run.plan.maps[value], run.value(value, image) + channel};
}

/// Where the factors of an image's channels lie.
inline Place gate_of(const Execution& run, const Node& node, int image) {
    return node.gate >= 0 ? place_of(run, node.gate, image, node.gate_channel) : Place{};
}

/// What ends a step and is done where it has just written, in the first-level cache; null for nothing and for a ReLU,
/// which the kernels do as they write.
inline PixelKernels::Activate finisher_of(const Execution& run, const Node& node) {
    return node.activation == Activation::kRelu ? nullptr : run.kernels.pixel->activate[int(node.activation)];
}

}  // namespace skipnets
