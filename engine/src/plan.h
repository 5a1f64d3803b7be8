// A network at one size of images: every node with the algorithm, the maps and the packed weights that it uses.

#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels.h"
#include "map.h"
#include "memory.h"
#include "network.h"
#include "weights.h"

namespace skipnets {

/// Packed weights, made once for each node and algorithm that some plan uses.
class WeightStore {
public:
    WeightStore(const Network& network, const Kernels& kernels) : network_(network), kernels_(kernels) {}
    /// One for each part of a grouped convolution: see groups_together().
    const std::vector<ConvolutionWeights>& get(std::size_t node, Algorithm algorithm);

private:
    const Network& network_;
    const Kernels& kernels_;
    Arena arena_;
    std::map<std::pair<std::size_t, Algorithm>, std::vector<ConvolutionWeights>> packed_;
};

/// Whether a 1×1 convolution may run strip by strip together with the next step, which alone reads it.
enum class Strips { kNone, kWinograd, kProducts };

struct Step {
    const Node* node;
    const ConvolutionWeights* weights = nullptr;  // of convolutions, of each part
    int parts = 1;
    const float *scale = nullptr, *shift = nullptr;  // of all other steps, padded
    const float *slope = nullptr, *floor = nullptr;  // padded, too
    Strips strips = Strips::kNone;
};

/// Steps that run over the same number of images at a time. Later segments have smaller maps, so they take more:
/// their weights are then read once for several images.
struct Segment {
    std::size_t begin, end;  // steps
    int group;
};

/// What a plan is for.
struct PlanKey {
    int height, width;
    int images;  // at most so many for one team
    bool keep;   // every value keeps its own memory, so that all can be looked at afterwards

    bool operator<(const PlanKey& other) const;
};

struct Plan {
    PlanKey key;
    std::vector<Map> maps;              // of every value
    std::vector<std::size_t> slots;     // of every value: values that never live at the same time share one
    std::vector<std::size_t> slot_sizes;
    std::vector<Step> steps;
    std::vector<Segment> segments;
    Arena arena;                        // padded scales and shifts
    std::size_t scratch = 0;            // floats that each thread needs for itself
};

/// Throws std::invalid_argument where the images are too small for the network.
std::unique_ptr<Plan> make_plan(const Network& network, const Kernels& kernels, const PlanKey& key,
                                WeightStore& store);

/// Memory for the values of one run of a plan.
struct Workspace {
    explicit Workspace(const Plan& plan);
    std::vector<float*> values;
    Arena arena;
};

struct Scratch {
    explicit Scratch(const Plan& plan) : floats(arena.floats(plan.scratch)) {}
    Arena arena;
    float* floats;
};

/// Multiply-accumulates of a step for one image, as a direct convolution counts them.
double macs(const Plan& plan, const Step& step);

const char* algorithm_name(const Step& step);

}  // namespace skipnets
