// What is to be computed: a list of nodes over values (maps of channels), without sizes. Python compiles it from a
// graph and its tensors (skipnets_engine/compiler.py): batch norms are folded into the convolution before them or
// have become a scale and a shift, and concatenated maps lie in ranges of channels of one value.
//
// A node stores whole vectors of channels (see map.h), so it may overwrite up to 15 channels behind its own: the
// nodes that write into one value must run in the order of their channels. Only kSubsample writes its own alone.

#pragma once

#include <optional>
#include <string>
#include <vector>

#include "activation.h"

namespace skipnets {

enum class Kind {
    kConvolution,
    kDepthwise,     // a filter for each channel, then a layer norm where there is an eps
    kElementwise,   // · sigmoid(slope · x), · gate, scale · x + shift, + added, at least floor; where they are asked for
    kMaxPool,       // over a window
    kAveragePool,   // over a window; pixels of the padding count as 0
    kCellMean,      // over cells of 2×2, of those pixels that lie inside of the map
    kBlur,          // a binomial filter of 3×3, mirrored at the edges
    kSubsample,     // every stride-th pixel, with channels of 0 before and after; a copy where the stride is 1
    kMean,          // over the whole map, of relu(scale · x + shift) where there is a scale
    kMax,           // over the whole map
    kLayerNorm,     // of each pixel's channels, with scale and shift
    kGroupNorm,     // of groups of channels over the whole map: makes factors, and after them shifts, of all channels
    kAlongChannels, // a filter along the channels of a pixel
};

/// What the factors of a group norm divide by, and whether its shifts take away the mean: the deviation and they do; the
/// deviation and they do not; the root mean square and they do not.
enum class Moments { kCentered, kVariance, kSquares };

enum class Algorithm { kDirect, kWinograd2, kWinograd4 };

struct Node {
    Kind kind = Kind::kConvolution;
    std::string name;
    int input = 0, output = 0;                   // values
    int input_channel = 0, output_channel = 0;   // where in them this node reads and writes …
    int input_channels = 0, output_channels = 0; // … and how many channels
    int kernel = 1, stride = 1, padding = 0, dilation = 1;
    int before = 0;       // channels of 0 before those that a subsampling copies
    int groups = 1;       // of a convolution or a group norm
    float eps = 0;        // of a norm
    Moments moments = Moments::kCentered;  // of a group norm
    Activation activation = Activation::kNone;  // of the result
    bool pooled = false;  // the convolution reads means over 2×2 pixels (of what scale and shift leave)
    int added = -1;       // a value that is added before the ReLU, from `added_channel` on
    int added_channel = 0;
    // A value of one pixel: factors of an elementwise step's channels or of what a 1×1 convolution reads; shifts lie in
    // the same value, from `gate_shift_channel` on, if that is not -1.
    int gate = -1;
    int gate_channel = 0, gate_shift_channel = -1;
    std::optional<Algorithm> forced;  // for tests; otherwise the plan chooses
    // (output_channels, input_channels / groups, kernel, kernel); of a filter for each channel (channels, kernel,
    // kernel), of one along the channels (kernel)
    std::vector<float> weight;
    std::vector<float> bias;  // (output_channels)
    // (input_channels) or empty; convolutions and means apply them with a ReLU to what they read.
    std::vector<float> scale, shift;
    // (input_channels) or empty, of an elementwise step: a gate of each value by itself, and the least of the result.
    std::vector<float> slope, floor;

    bool suits_winograd() const { return kernel == 3 && stride == 1 && dilation == 1 && padding == 1; }
};

/// Value 0 is the image. `features` and `logits` are maps of one pixel.
struct Network {
    std::vector<int> channels;  // of every value
    std::vector<Node> nodes;    // in an order in which they can run
    int features = -1, logits = -1;

    /// Throws std::invalid_argument unless every node reads what is there and fits its values and arrays. Only
    /// then may the rest of the engine see a network.
    void check() const;
};

}  // namespace skipnets
