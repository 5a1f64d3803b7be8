// How the steps of a plan are carried out by a team of threads.

#pragma once

#include "kernels.h"
#include "plan.h"
#include "threads.h"

namespace skipnets {

/// One thread's view of a run.
struct Execution {
    const Kernels& kernels;
    const Plan& plan;
    const Workspace& workspace;
    float* scratch;
    Team& team;
    int member;

    float* value(int number, int image) const {
        const Map& map = plan.maps[number];
        return workspace.values[number] + Size(image % map.group) * map.image;
    }
};

/// Floats that a thread needs for itself in a step.
std::size_t scratch_floats(const Kernels& kernels, const Plan& plan, std::size_t step);

/// The member's share of a step over `count` images from `image` on. All members must call it, and wait for one
/// another before the next step. Returns how many steps that were: two where the next was done along with it.
std::size_t execute(const Execution& run, std::size_t step, int image, int count);

/// Puts images (count, C, H, W) into value 0.
void copy_in(const Execution& run, const float* input, int image, int count);

/// Copies a value's (C, H, W) for each image out of the workspace.
void copy_out(const Execution& run, int value, float* out, int image, int count);

}  // namespace skipnets
