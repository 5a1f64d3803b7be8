// What is done to the channels of pixels besides products: functions, norms and filters of single channels. One table
// an instruction set, like kernels.h.
//
// Shapes: L lanes of a vector, K×K taps of a filter. Numbers of channels are padded to whole vectors; what lies in the
// lanes beyond the last channel never reaches another one.

#pragma once

#include <cstddef>

#include "activation.h"

namespace skipnets {

struct PixelKernels {
    /// In place, `vectors` vectors at each of `count` pixels, rows[i] + offset; null where nothing is to be done.
    /// NaN stays NaN.
    using Activate = void (*)(float* const* rows, std::ptrdiff_t offset, int count, std::ptrdiff_t vectors);
    Activate activate[kActivations];

    /// in · gate + gate_shift, then · scale + shift, then + added, then ReLU; null pointers leave their part out.
    void (*gated)(float* out, const float* in, const float* gate, const float* gate_shift, const float* scale,
                  const float* shift, const float* added, bool relu, std::ptrdiff_t vectors);

    /// in · sigmoid(slope · in).
    void (*swish)(float* out, const float* in, const float* slope, std::ptrdiff_t vectors);

    /// max(x, floor), in place. NaN stays NaN.
    void (*at_least)(float* x, const float* floor, std::ptrdiff_t vectors);

    /// Of the `channels` of one pixel: (x − mean) / √(variance + eps) · scale + shift.
    void (*layer_norm)(float* out, const float* in, const float* scale, const float* shift, float eps,
                       std::ptrdiff_t channels);

    /// Σ (x − center)² over `count` pixels, for each channel.
    void (*squares)(float* out, const float* const* in, int count, const float* center, std::ptrdiff_t vectors);

    /// A filter of each channel for itself, at stride 1 over `pixels` neighbors of a row, whose first window begins
    /// at `in`; weights are [vector][K·K][L]. Null where K is neither 3, 5 nor 7.
    using Depthwise = void (*)(float* out, std::ptrdiff_t out_pixel, const float* in, std::ptrdiff_t in_pixel,
                               std::ptrdiff_t in_row, std::ptrdiff_t pixels, const float* weights, const float* bias,
                               std::ptrdiff_t vectors);
    Depthwise depthwise[8];  // [K]
    /// The same for one pixel, any stride and any K: its inputs are in[0], in[1], …
    void (*weighted)(float* out, const float* const* in, int count, const float* weights, const float* bias,
                     std::ptrdiff_t vectors);
};

}  // namespace skipnets
