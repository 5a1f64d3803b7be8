// Which set of kernels this processor runs.

#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace skipnets {

/// The kernels compiled into this library that the processor can run, the fastest first. Never empty.
std::vector<const Kernels*> usable_kernels();

/// The kernels named, or the fastest for an empty name. Throws std::invalid_argument with the names there are.
const Kernels& choose_kernels(const std::string& name);

}  // namespace skipnets
