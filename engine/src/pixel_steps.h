// Steps other than products: each computes pixel by pixel, or channels over a whole map.

#pragma once

#include "steps.h"

namespace skipnets {

/// Floats that a thread needs for itself in such a step.
std::size_t pixel_scratch_floats(const Kernels& kernels, const Node& node);

/// The member's share of such a step over `count` images from `image` on.
void execute_pixels(const Execution& run, const Step& step, int image, int count);

}  // namespace skipnets
