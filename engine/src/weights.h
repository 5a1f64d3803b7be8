// Weights in the order in which the kernels read them.

#pragma once

#include <cstddef>
#include <vector>

#include "kernels.h"
#include "map.h"
#include "memory.h"
#include "network.h"

namespace skipnets {

/// Output channels that one register tile makes: `vectors` vectors from vector `first` on.
struct Panel {
    int first, vectors;
};

/// A part of a convolution's depth whose packed rows stay in the first-level cache: `taps` whole taps, or some
/// channels of one tap.
struct DepthBlock {
    int first_tap, taps;
    int first_channel, channels;
    Size depth;    // taps · channels
    Size weights;  // where the block's weights begin
};

struct ConvolutionWeights {
    Algorithm algorithm;
    int inputs = 0, outputs = 0;  // channels
    int rows = 0;  // R of the register tiles
    int output_vectors = 0;
    std::vector<Panel> panels;
    std::vector<DepthBlock> blocks;  // direct only
    bool in_runs = false;            // the taps of a row are packed as runs, not vector by vector: see direct_weights
    int run_taps = 0;                // taps of a run
    const float* weights = nullptr;
    const float* bias = nullptr;                // padded with zeros to whole vectors
    const float *scale = nullptr, *shift = nullptr;
    std::size_t bytes = 0;  // of the weights
};

/// Groups of a convolution that are computed as one, with weights 0 between them: as many as fill a vector.
int groups_together(const Node& node, int lanes);

/// A convolution of some of a node's groups, the `part`-th so many.
Node part_of(const Node& node, int together, int part);

/// For the direct product: [block][panel][depth][L·V], taps before channels. `adjacent` says that the input's
/// pixels lie without padding between them, so that the taps of one kernel row are one run of memory (the first
/// convolution, over 1 or 3 channels).
ConvolutionWeights direct_weights(const Node& node, const Kernels& kernels, bool adjacent, Arena& arena);

/// For a filter of each channel: [vector][kernel²][L].
ConvolutionWeights depthwise_weights(const Node& node, const Kernels& kernels, Arena& arena);

/// For F(m×m, 3×3), m = 2 or 4: [panel][(m+2)²][depth][L·V], transformed in double precision.
ConvolutionWeights winograd_weights(const Node& node, const Kernels& kernels, int m, Arena& arena);

}  // namespace skipnets
