// Training a residual block (He et al. 2016, arXiv 1512.03385): forward and backward pass of its convolutions, norms,
// ReLUs and sum, with the mathematics of skipnets.ops.batch_norm.
//
//     u₁ = conv₁(x)   uᵢ = convᵢ(relu(normᵢ₋₁(uᵢ₋₁)))   y = relu(normₙ(uₙ) + shortcut(x))
//
// A basic block has two convolutions of 3×3, a bottleneck block 1×1, 3×3 and 1×1. The shortcut is x itself, every
// second pixel of it between channels of zeros, or norm(conv(x)) with a 1×1 convolution, the projection.
// For the backward pass x, the uᵢ, the projection's output and y are needed; what norms and ReLUs make is computed
// again where it is read.
//
// Shapes: N images of H×W pixels, M of all images; C channels of an input and K of an output.

#pragma once

#include <vector>

#include "kernels.h"

namespace skipnets {

/// Weights (K, C, s, s) in any memory format: `tap` numbers the s·s positions of the kernel.
struct FilterLayout {
    std::ptrdiff_t output = 0, input = 0, tap = 0;  // floats between neighbors
};

/// A convolution without bias, padded by half its size, and the norm behind it.
struct NormedConvolution {
    std::ptrdiff_t inputs, outputs;
    int size, stride;  // 1 or 3; 1 or 2
    const float* weight;
    FilterLayout layout;
    const float *gamma, *beta;
    double eps;
    float* output;            // (M, K), before the norm
    float *mean, *variance;   // (K): written by the forward pass and read by the backward pass
};

struct NormedConvolutionGradients {
    float* weight;
    FilterLayout layout;
    float *gamma, *beta;
};

struct ResidualBlock {
    std::ptrdiff_t images, height, width;      // of x
    const float* x;                            // (M, C)
    std::vector<NormedConvolution> branch;
    std::vector<NormedConvolution> projection;  // one or none
    std::ptrdiff_t zeros_before;                // channels of zeros before those of x, where there is no projection
    float* y;                                   // (M, K)
};

/// Fills in the outputs, statistics and y.
void residual_block_forward(const ResidualBlock& block, const Kernels& kernels, int threads);

struct ResidualGradients {
    const float* y;                                    // (M, K): of y
    float* sum;                                        // (M, K): scratch; may be x's where that has its shape
    std::vector<float*> outputs;                       // (M, K) of each convolution of the branch but the last: scratch
    float* x;                                          // (M, C) or null
    std::vector<NormedConvolutionGradients> branch, projection;
};

void residual_block_backward(const ResidualBlock& block, const ResidualGradients& gradients, const Kernels& kernels,
                             int threads);

}  // namespace skipnets
