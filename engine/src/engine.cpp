#include "engine.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <stdexcept>

#include "steps.h"

namespace skipnets {
namespace {

constexpr std::size_t kMaxPlans = 8;
constexpr int kMaxImagesTogether = 16;
constexpr int kMaxSide = 1 << 24;

// After each step, with its number in the plan; for measuring.
using Watch = std::function<void(std::size_t step)>;

/// Runs segment `number` for some images, and before it, group by group, the segments that it builds on.
void run_segment(const Execution& run, std::size_t number, const float* input, int image, int count,
                 const Watch* watch) {
    const Segment& segment = run.plan.segments[number];
    for (int done = 0; done < count; done += segment.group) {
        const int now = std::min(segment.group, count - done);
        const Map& input_map = run.plan.maps[0];
        const Size image_floats = input_map.pixels() * input_map.channels;
        if (number == 0) {
            copy_in(run, input + done * image_floats, image + done, now);
            run.team.wait();
        } else {
            run_segment(run, number - 1, input + done * image_floats, image + done, now, watch);
        }
        for (std::size_t i = segment.begin, steps; i < segment.end; i += steps) {
            steps = execute(run, i, image + done, now);
            run.team.wait();
            if (watch) (*watch)(i);
        }
    }
}

/// Runs a plan over images and copies out one of its values.
void run_plan(const Execution& run, const float* input, int count, int value, float* out, const Watch* watch) {
    const Map &input_map = run.plan.maps[0], &result = run.plan.maps[value];
    const Segment& last = run.plan.segments.back();
    for (int done = 0; done < count; done += last.group) {
        const int now = std::min(last.group, count - done);
        run_segment(run, run.plan.segments.size() - 1, input + done * input_map.pixels() * input_map.channels, 0, now,
                    watch);
        if (run.member == 0) copy_out(run, value, out + done * result.pixels() * result.channels, 0, now);
        run.team.wait();
    }
}

int power_of_two_up_to(int number) {
    int power = 1;
    while (power * 2 <= number) power *= 2;
    return power;
}

}  // namespace

/// Memory for `workspaces` runs and `scratches` threads of a plan, given back at the end.
class Engine::Lease {
public:
    Lease(std::shared_ptr<Prepared> prepared, int workspaces, int scratches) : prepared_(std::move(prepared)) {
        std::lock_guard<std::mutex> lock(prepared_->mutex);
        take(prepared_->workspaces, workspaces_, workspaces);
        take(prepared_->scratches, scratches_, scratches);
    }
    ~Lease() {
        std::lock_guard<std::mutex> lock(prepared_->mutex);
        give_back(prepared_->workspaces, workspaces_);
        give_back(prepared_->scratches, scratches_);
    }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;

    Execution execution(const Kernels& kernels, int workspace, Team& team, int member, int scratch) const {
        return {kernels, *prepared_->plan, *workspaces_[workspace], scratches_[scratch]->floats, team, member};
    }

private:
    template <class T>
    void take(std::vector<std::unique_ptr<T>>& from, std::vector<std::unique_ptr<T>>& to, int count) {
        from.reserve(from.size() + count);  // so that giving back cannot fail
        while (int(to.size()) < count) {
            if (from.empty()) {
                to.push_back(std::make_unique<T>(*prepared_->plan));
            } else {
                to.push_back(std::move(from.back()));
                from.pop_back();
            }
        }
    }
    template <class T>
    static void give_back(std::vector<std::unique_ptr<T>>& to, std::vector<std::unique_ptr<T>>& from) {
        for (auto& item : from) to.push_back(std::move(item));
    }

    std::shared_ptr<Prepared> prepared_;
    std::vector<std::unique_ptr<Workspace>> workspaces_;
    std::vector<std::unique_ptr<Scratch>> scratches_;
};

Engine::Engine(Network network, const Kernels& kernels, int threads)
    : network_(std::move(network)), kernels_(kernels), threads_(threads), store_(network_, kernels_) {
    network_.check();
    if (threads < 1 || threads > 1024) throw std::invalid_argument("threads must be from 1 to 1024");
}

std::shared_ptr<Engine::Prepared> Engine::prepare(const PlanKey& key) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto same = [&](const std::shared_ptr<Prepared>& other) {
        return !(other->plan->key < key) && !(key < other->plan->key);
    };
    auto found = std::find_if(prepared_.begin(), prepared_.end(), same);
    if (found == prepared_.end()) {
        auto made = std::make_shared<Prepared>();
        made->plan = make_plan(network_, kernels_, key, store_);
        if (prepared_.size() >= kMaxPlans) prepared_.pop_back();
        found = prepared_.insert(prepared_.begin(), std::move(made));
    }
    prepared_.splice(prepared_.begin(), prepared_, found);
    return prepared_.front();
}

void Engine::run(const float* input, int count, int height, int width, bool want_logits, float* out) {
    const int value = want_logits && network_.logits >= 0 ? network_.logits : network_.features;
    const Size image_floats = Size(network_.channels[0]) * height * width, result = network_.channels[value];
    if (count < 1) return;

    // As many images as every thread can have of its own; what is left over they compute together, one by one.
    const int each = threads_ > 1 || count > 1 ? count / threads_ : 0;
    std::unique_ptr<Lease> apart, together;
    if (each > 0) {
        const int images = power_of_two_up_to(std::min(each, kMaxImagesTogether));
        apart = std::make_unique<Lease>(prepare({height, width, images, false}), threads_, threads_);
    }
    if (each == 0 || threads_ > 1)
        together = std::make_unique<Lease>(prepare({height, width, 1, false}), 1, threads_);

    run_team(threads_, [&](Team& team, int member) {
        const int own = apart ? count / team.size() : 0, shared = own * team.size();
        if (own > 0) {
            Team alone(1);
            const Execution run = apart->execution(kernels_, member, alone, 0, member);
            const Size first = Size(member) * own;
            run_plan(run, input + first * image_floats, own, value, out + first * result, nullptr);
        }
        if (shared == count) return;
        const Execution run = together->execution(kernels_, 0, team, member, member);
        run_plan(run, input + shared * image_floats, count - shared, value, out + shared * result, nullptr);
    });
}

std::vector<std::vector<float>> Engine::values(const float* input, int height, int width,
                                               const std::vector<int>& wanted) {
    const Lease lease(prepare({height, width, 1, true}), 1, threads_);
    std::vector<std::vector<float>> result;
    for (int value : wanted) {
        const Map map = map_of(value, height, width);
        result.emplace_back(std::size_t(map.pixels()) * map.channels);
    }
    std::vector<float> unused(network_.channels[network_.features]);
    run_team(threads_, [&](Team& team, int member) {
        const Execution run = lease.execution(kernels_, 0, team, member, member);
        run_plan(run, input, 1, network_.features, unused.data(), nullptr);
        if (member != 0) return;
        for (std::size_t i = 0; i < wanted.size(); ++i) copy_out(run, wanted[i], result[i].data(), 0, 1);
    });
    return result;
}

Map Engine::map_of(int value, int height, int width) {
    if (value < 0 || value >= int(network_.channels.size())) throw std::invalid_argument("no such value");
    return prepare({height, width, 1, true})->plan->maps[value];
}

std::size_t Engine::value_bytes(int height, int width, int images) {
    if (height < 1 || height > kMaxSide || width < 1 || width > kMaxSide || images < 1)
        throw std::invalid_argument("height, width or images out of range");
    std::size_t floats = 0;
    for (std::size_t size : prepare({height, width, images, false})->plan->slot_sizes) floats += size;
    return floats * sizeof(float);
}

std::vector<StepReport> Engine::measure(int height, int width, int images, int rounds) {
    if (images < 1 || images > 4096 || rounds < 1 || rounds > 100000)
        throw std::invalid_argument("images or rounds out of range");
    const auto prepared =
        prepare({height, width, power_of_two_up_to(std::min(images, kMaxImagesTogether)), false});
    const Plan& plan = *prepared->plan;
    const bool alone = images > 1;  // as in run(): every thread its own images, or all threads one
    const Lease lease(prepared, alone ? threads_ : 1, threads_);
    const std::vector<float> input(std::size_t(images) * network_.channels[0] * height * width);
    std::vector<std::vector<float>> results(threads_, std::vector<float>(
                                                          std::size_t(images) * network_.channels[network_.features]));

    std::vector<std::vector<double>> seconds(rounds, std::vector<double>(plan.steps.size()));
    for (std::vector<double>& round : seconds)
        run_team(threads_, [&](Team& team, int member) {
            using Clock = std::chrono::steady_clock;
            Clock::time_point last = Clock::now();
            const Watch watch = [&](std::size_t step) {
                const Clock::time_point now = Clock::now();
                round[step] += std::chrono::duration<double>(now - last).count();
                last = now;
            };
            Team one(1);
            const Execution run = alone ? lease.execution(kernels_, member, one, 0, member)
                                        : lease.execution(kernels_, 0, team, member, member);
            run_plan(run, input.data(), images, network_.features, results[member].data(),
                     member == 0 ? &watch : nullptr);
        });

    std::vector<StepReport> reports;
    for (std::size_t i = 0; i < plan.steps.size(); ++i) {
        const Step& step = plan.steps[i];
        const Map &in = plan.maps[step.node->input], &out = plan.maps[step.node->output];
        std::vector<double> times;
        for (const auto& round : seconds) times.push_back(round[i] / images);
        std::nth_element(times.begin(), times.begin() + rounds / 2, times.end());
        const double moved = 4.0 * (double(in.pixels()) * step.node->input_channels +
                                    double(out.pixels()) * step.node->output_channels) +
                             (step.weights ? double(step.weights->bytes) * step.parts : 0);
        reports.push_back({step.node->name, algorithm_name(step), step.node->output_channels, out.height, out.width,
                           macs(plan, step), moved, times[rounds / 2]});
    }
    return reports;
}

}  // namespace skipnets
