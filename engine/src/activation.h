// Functions of each value on its own, which may end a step.

#pragma once

namespace skipnets {

enum class Activation { kNone, kRelu, kGelu, kSilu, kHardSwish, kSigmoid, kHardSigmoid };

constexpr int kActivations = 7;

}  // namespace skipnets
