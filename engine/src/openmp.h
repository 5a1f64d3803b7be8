// The threads of another library's OpenMP.
//
// PyTorch computes in turns with training passes. Its OpenMP threads spin for some milliseconds after each of its
// operations, and would take the processor from threads of our own: with them, two threads were no faster than one.

#pragma once

#include <string>

#include "threads.h"

namespace skipnets {

/// From now on `run_training_team` uses the OpenMP threads that a loaded library uses. False, and nothing changes, if
/// the library is not loaded or there is no GNU interface of OpenMP behind it.
bool share_openmp(const std::string& library);

/// As `run_team`, with the threads of OpenMP where they are shared. A forked process has none, and takes its own.
void run_training_team(int wanted, const TeamWork& work);

}  // namespace skipnets
