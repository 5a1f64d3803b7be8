// A network ready to run: its plans, its memory, and how images are divided among threads.

#pragma once

#include <list>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "plan.h"

namespace skipnets {

/// What a step costs: one line of a printed plan.
struct StepReport {
    std::string name, algorithm;
    int channels, height, width;  // of what it makes
    double macs;                  // for one image
    double bytes;                 // weights, input and output, for one image
    double seconds;               // for one image, of all threads
};

class Engine {
public:
    /// Throws std::invalid_argument for a network that is not sound.
    Engine(Network network, const Kernels& kernels, int threads);

    /// (count, C, H, W) images → (count, classes) logits, or (count, features). Any number of threads may call
    /// this at once. Throws std::invalid_argument where the images are too small.
    void run(const float* input, int count, int height, int width, bool want_logits, float* out);

    /// Some values for one image: (C, H, W) each. For tests and for stages.
    std::vector<std::vector<float>> values(const float* input, int height, int width,
                                           const std::vector<int>& wanted);
    /// The size of a value's map for images of a size.
    Map map_of(int value, int height, int width);

    /// Runs all-zero images, divided among the threads as run() divides a batch of `count`, and measures every step:
    /// medians over `rounds`. What is left over when each thread has had as many as the others is not measured.
    std::vector<StepReport> measure(int height, int width, int count, int rounds);

    /// Bytes of the values of one run over at most `images` images at a time.
    std::size_t value_bytes(int height, int width, int images);

    const Network& network() const { return network_; }
    const Kernels& kernels() const { return kernels_; }
    int threads() const { return threads_; }

private:
    // A plan with memory for its runs. Runs take what is free and give it back; more is made when several run.
    struct Prepared {
        std::unique_ptr<Plan> plan;
        std::list<Workspace> workspaces;
        std::list<Scratch> scratches;
    };
    class Lease;

    /// For `own` images on each thread alone, or for one on all together where that is 0.
    std::shared_ptr<Prepared> prepare(int height, int width, int own);
    std::shared_ptr<Prepared> prepare(const PlanKey& key);
    std::shared_ptr<Prepared> find(const PlanKey& key);

    const Network network_;
    const Kernels& kernels_;
    const int threads_;
    WeightStore store_;
    std::list<std::shared_ptr<Prepared>> prepared_;  // the last used first
};

}  // namespace skipnets
