// Training a transition between dense blocks: norm, ReLU, 1×1 convolution and 2×2 average pooling, with the mathematics
// of skipnets.ops.transition. Pooling comes before the convolution, which leaves a quarter of the product.
//
// Shapes: N images of H×W pixels, M of all; P = N·⌊H/2⌋·⌊W/2⌋ pooled pixels; C channels of the input, K of the output.

#pragma once

#include "kernels.h"

namespace skipnets {

struct Transition {
    std::ptrdiff_t images, height, width, inputs, outputs;
    const float* x;                  // (M, C)
    const float *mean, *variance;    // (C), of x
    const float *gamma, *beta;       // (C)
    double eps;
    const float* weight;             // (K, C)

    std::ptrdiff_t rows() const { return images * height * width; }
    std::ptrdiff_t pooled_rows() const { return images * (height / 2) * (width / 2); }
};

/// Fills in y (P, K).
void transition_forward(const Transition& transition, float* y, const Kernels& kernels, int threads);

struct TransitionGradients {
    const float* y;                  // (P, K): of y
    float* x;                        // (M, C)
    float *gamma, *beta, *weight;
};

void transition_backward(const Transition& transition, const TransitionGradients& gradients, const Kernels& kernels,
                         int threads);

}  // namespace skipnets
