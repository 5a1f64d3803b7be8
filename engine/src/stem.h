// Training a stem: a convolution of the images, norm, ReLU and, in networks for ImageNet, 3×3 max-pooling of stride 2,
// with the mathematics of skipnets.ops.stem.
//
//     u = conv(images)   y = maxpool(relu(norm(u)))   or   y = relu(norm(u))
//
// For the backward pass u is needed, or computed again, and where each maximum was. There is no gradient of the images.
//
// Shapes: N images of C channels; M = N·H·W pixels after the convolution, P after the pooling; K channels of both.

#pragma once

#include "kernels.h"
#include "residual_block.h"

namespace skipnets {

/// Images in any memory format: floats between neighbors.
struct Images {
    const float* data;
    std::ptrdiff_t count, channels, height, width;
    std::ptrdiff_t image_step, channel_step, line_step, pixel_step;
};

constexpr int kLargestStemKernel = 15;

struct Stem {
    Images images;
    std::ptrdiff_t outputs;
    int size, stride;         // of the convolution: odd, padded by half of it
    bool pools;
    const float* weight;      // (K, C, s, s)
    FilterLayout layout;
    const float *gamma, *beta;
    double eps;
    float* convolved;         // (M, K)
    float *mean, *variance;   // (K): written by the forward pass and read by the backward pass
    unsigned char* places;    // (P, K): the same; null without pooling

    std::ptrdiff_t height() const { return (images.height - 1) / stride + 1; }
    std::ptrdiff_t width() const { return (images.width - 1) / stride + 1; }
    std::ptrdiff_t rows() const { return images.count * height() * width(); }
    std::ptrdiff_t pooled_height() const { return (height() + 1) / 2; }
    std::ptrdiff_t pooled_width() const { return (width() + 1) / 2; }
    std::ptrdiff_t out_rows() const { return pools ? images.count * pooled_height() * pooled_width() : rows(); }
};

/// Fills in what the convolution makes, statistics, places and y, (P, K) or (M, K).
void stem_forward(const Stem& stem, float* y, const Kernels& kernels, int threads);

struct StemGradients {
    const float* y;
    float* weight;
    FilterLayout layout;
    float *gamma, *beta;
};

/// With `recompute` what the convolution makes is computed again first.
void stem_backward(const Stem& stem, bool recompute, const StemGradients& gradients, const Kernels& kernels,
                   int threads);

}  // namespace skipnets
