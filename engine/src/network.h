// What is to be computed: a list of nodes over values (maps of channels), without sizes. Python builds it from an
// architecture and its tensors (skipnets_engine/network.py), with every batch norm already folded into the
// convolution before it or given as the scale and shift of the convolution after it.

#pragma once

#include <optional>
#include <string>
#include <vector>

namespace skipnets {

enum class Kind {
    kConvolution,
    kActivation,   // relu(scale · x + shift)
    kMaxPool,      // 3×3 max-pooling of stride 2, padding 1
    kSubsample,    // every stride-th pixel; channels beyond the input's are 0
    kMean,         // over the whole map, of relu(scale · x + shift) where there is a scale
};

enum class Algorithm { kDirect, kWinograd2, kWinograd4 };

struct Node {
    Kind kind = Kind::kConvolution;
    std::string name;
    int input = 0, output = 0;                   // values
    int input_channel = 0, output_channel = 0;   // where in them this node reads and writes …
    int input_channels = 0, output_channels = 0; // … and how many channels
    int kernel = 1, stride = 1, padding = 0, dilation = 1;
    bool relu = false;    // after the convolution
    bool pooled = false;  // the convolution reads means over 2×2 pixels (of what scale and shift leave)
    int added = -1;       // a value that is added before the ReLU, channel for channel
    std::optional<Algorithm> forced;  // for tests; otherwise the plan chooses
    std::vector<float> weight;        // (output_channels, input_channels, kernel, kernel)
    std::vector<float> bias;          // (output_channels)
    std::vector<float> scale, shift;  // (input_channels) or empty: applied with a ReLU to the input

    bool suits_winograd() const { return kernel == 3 && stride == 1 && dilation == 1; }
};

/// Value 0 is the image.
struct Network {
    std::vector<int> channels;  // of every value
    std::vector<Node> nodes;    // in an order in which they can run
    int features = -1, logits = -1;

    /// Throws std::invalid_argument unless every node reads what is there and fits its values and arrays. Only
    /// then may the rest of the engine see a network.
    void check() const;
};

}  // namespace skipnets
