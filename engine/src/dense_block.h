// Training a dense block: forward and backward pass of all its layers (norm, ReLU, 1×1 convolution, norm, ReLU, 3×3
// convolution), with the mathematics of skipnets.ops.dense_block.
//
// Shapes: M pixels (images × height × width), C₀ channels of the input, k growth rate, L layers, C = C₀ + L·k, K
// channels of the bottlenecks. Layer l reads columns [0, C₀ + l·k) of the features (M, C) and writes the next k.

#pragma once

#include <vector>

#include "kernels.h"

namespace skipnets {

struct DenseBlockShape {
    std::ptrdiff_t images, height, width, input_channels, growth, bottleneck, layers;

    std::ptrdiff_t area() const { return height * width; }
    std::ptrdiff_t rows() const { return images * area(); }
    std::ptrdiff_t channels() const { return input_channels + layers * growth; }
    std::ptrdiff_t seen(std::ptrdiff_t layer) const { return input_channels + layer * growth; }
};

/// A layer's parameters: of the first norm (c), weights (K, c), of the second norm (K), weights (k, K, 3, 3).
struct LayerParameters {
    const float *gamma1, *beta1, *weight1, *gamma2, *beta2, *weight2;
    double eps1, eps2;
};

struct LayerGradients {
    float *gamma1, *beta1, *weight1, *gamma2, *beta2, *weight2;
};

/// What a block's passes share. Means and variances are written by the forward pass and read by the backward pass.
struct DenseBlock {
    DenseBlockShape shape;
    std::vector<LayerParameters> layers;
    float* features;              // (M, C); the input's columns are given
    float *mean, *variance;       // (C)
    float *mean2, *variance2;     // (L, K)
    std::vector<float*> bottlenecks;  // (M, K) of each layer; the same memory for all where they are not kept
};

/// Fills in features, statistics and bottlenecks.
void dense_block_forward(const DenseBlock& block, const Kernels& kernels, int threads);

/// Memory of any content for the backward pass.
struct DenseBlockScratch {
    float *gradient, *masked;  // (M, C) and (M, K)
};

/// The gradients of all parameters and, if it is not null, of the input (M, C₀), from `gradient` (M, C), that of the
/// features. With `recompute` the bottlenecks are computed again first.
void dense_block_backward(const DenseBlock& block, bool recompute, const DenseBlockScratch& scratch,
                          const std::vector<LayerGradients>& gradients, const float* gradient, float* input_gradient,
                          const Kernels& kernels, int threads);

}  // namespace skipnets
