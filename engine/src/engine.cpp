#include "engine.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <iterator>
#include <mutex>
#include <optional>
#include <stdexcept>

#ifndef _WIN32
#include <pthread.h>
#endif

#include "ranges.h"
#include "steps.h"

namespace skipnets {
namespace {

constexpr std::size_t kMaxPlans = 8;
constexpr int kMaxImagesTogether = 16;
constexpr int kMaxSide = 1 << 24;

// Of all engines: held while a plan is made, which may take long, and for a moment where plans and their free memory
// are looked up. Who holds the latter takes no other.
std::mutex making, looking_up;

/// A fork waits until no other thread has these mutexes: in the child, nobody would ever give them back.
void hold_while_forking() {
#ifndef _WIN32
    const auto lock = [] { making.lock(), looking_up.lock(); };
    const auto unlock = [] { looking_up.unlock(), making.unlock(); };
    [[maybe_unused]] static const int registered = pthread_atfork(lock, unlock, unlock);
#endif
}

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
        {
            std::lock_guard<std::mutex> lock(looking_up);
            take(prepared_->workspaces, workspaces_, workspaces);
            take(prepared_->scratches, scratches_, scratches);
        }
        while (int(workspaces_.size()) < workspaces) workspaces_.emplace_back(*prepared_->plan);
        while (int(scratches_.size()) < scratches) scratches_.emplace_back(*prepared_->plan);
    }
    ~Lease() {
        std::lock_guard<std::mutex> lock(looking_up);
        prepared_->workspaces.splice(prepared_->workspaces.end(), workspaces_);
        prepared_->scratches.splice(prepared_->scratches.end(), scratches_);
    }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;

    Execution execution(const Kernels& kernels, int workspace, Team& team, int member, int scratch) const {
        return {kernels, *prepared_->plan, *std::next(workspaces_.begin(), workspace),
                std::next(scratches_.begin(), scratch)->floats, team, member};
    }

private:
    /// At most `count`, the last given back first: they may still be in the cache.
    template <class T>
    static void take(std::list<T>& from, std::list<T>& to, int count) {
        while (!from.empty() && int(to.size()) < count) to.splice(to.end(), from, std::prev(from.end()));
    }

    std::shared_ptr<Prepared> prepared_;
    std::list<Workspace> workspaces_;
    std::list<Scratch> scratches_;
};

Engine::Engine(Network network, const Kernels& kernels, int threads)
    : network_(std::move(network)), kernels_(kernels), threads_(threads), store_(network_, kernels_) {
    hold_while_forking();
    network_.check();
    if (threads < 1 || threads > 1024) throw std::invalid_argument("threads must be from 1 to 1024");
}

std::shared_ptr<Engine::Prepared> Engine::prepare(int height, int width, int own) {
    return prepare({height, width, power_of_two_up_to(std::clamp(own, 1, kMaxImagesTogether)), false});
}

std::shared_ptr<Engine::Prepared> Engine::prepare(const PlanKey& key) {
    if (auto found = find(key)) return found;
    std::lock_guard<std::mutex> lock(making);
    if (auto found = find(key)) return found;  // Another thread has made it meanwhile.
    auto made = std::make_shared<Prepared>();
    made->plan = make_plan(network_, kernels_, key, store_);
    std::list<std::shared_ptr<Prepared>> added{made}, dropped;  // whose memory is freed after the lock
    std::lock_guard<std::mutex> short_lock(looking_up);
    if (prepared_.size() >= kMaxPlans) dropped.splice(dropped.end(), prepared_, std::prev(prepared_.end()));
    prepared_.splice(prepared_.begin(), added);
    return made;
}

/// The plan that there is, or null.
std::shared_ptr<Engine::Prepared> Engine::find(const PlanKey& key) {
    std::lock_guard<std::mutex> lock(looking_up);
    const auto same = [&](const std::shared_ptr<Prepared>& other) {
        return !(other->plan->key < key) && !(key < other->plan->key);
    };
    const auto found = std::find_if(prepared_.begin(), prepared_.end(), same);
    if (found == prepared_.end()) return nullptr;
    prepared_.splice(prepared_.begin(), prepared_, found);
    return *found;
}

void Engine::run(const float* input, int count, int height, int width, bool want_logits, float* out) {
    const int value = want_logits && network_.logits >= 0 ? network_.logits : network_.features;
    const Size image_floats = Size(network_.channels[0]) * height * width, result = network_.channels[value];
    if (count < 1) return;

    // As many images as every thread can have of its own; what is left over they compute together, one by one. Which
    // image is computed how depends on the number of threads, not on how many of them are free: bits would differ.
    const int own = count / threads_, divided = own * threads_;
    std::shared_ptr<Prepared> for_divided, for_others;
    if (divided > 0) for_divided = prepare(height, width, own);
    if (divided < count) for_others = prepare(height, width, 0);
    Members members(threads_);
    std::optional<Lease> apart, together;
    if (divided > 0) apart.emplace(for_divided, members.count(), members.count());
    if (divided < count) together.emplace(for_others, 1, members.count());

    members.run([&](Team& team, int member) {
        const Range mine = share(divided, team.size(), member);
        if (mine.size() > 0) {
            Team alone(1);
            const Execution run = apart->execution(kernels_, member, alone, 0, member);
            run_plan(run, input + mine.begin * image_floats, int(mine.size()), value, out + mine.begin * result,
                     nullptr);
        }
        if (divided == count) return;
        const Execution run = together->execution(kernels_, 0, team, member, member);
        run_plan(run, input + divided * image_floats, count - divided, value, out + divided * result, nullptr);
    });
}

std::vector<std::vector<float>> Engine::values(const float* input, int height, int width,
                                               const std::vector<int>& wanted) {
    const auto prepared = prepare({height, width, 1, true});
    std::vector<std::vector<float>> result;
    for (int value : wanted) {
        const Map map = map_of(value, height, width);
        result.emplace_back(std::size_t(map.pixels()) * map.channels);
    }
    std::vector<float> unused(network_.channels[network_.features]);
    Members members(threads_);
    const Lease lease(prepared, 1, members.count());
    members.run([&](Team& team, int member) {
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

std::vector<StepReport> Engine::measure(int height, int width, int count, int rounds) {
    if (count < 1 || count > 4096 || rounds < 1 || rounds > 100000)
        throw std::invalid_argument("images or rounds out of range");
    const int own = count / threads_, images = std::max(own, 1);  // as in run()
    const auto prepared = prepare(height, width, own);
    const Plan& plan = *prepared->plan;
    const std::vector<float> input(std::size_t(images) * network_.channels[0] * height * width);
    std::vector<std::vector<float>> results(threads_, std::vector<float>(
                                                          std::size_t(images) * network_.channels[network_.features]));

    std::vector<std::vector<double>> seconds(rounds, std::vector<double>(plan.steps.size()));
    for (std::vector<double>& round : seconds) {
        Members members(threads_);
        const int computed = own > 0 ? images * members.count() : 1;
        const Lease lease(prepared, own > 0 ? members.count() : 1, members.count());
        members.run([&](Team& team, int member) {
            using Clock = std::chrono::steady_clock;
            Clock::time_point last = Clock::now();
            const Watch watch = [&](std::size_t step) {
                const Clock::time_point now = Clock::now();
                round[step] += std::chrono::duration<double>(now - last).count();
                last = now;
            };
            Team alone(1);
            const Execution run = own > 0 ? lease.execution(kernels_, member, alone, 0, member)
                                          : lease.execution(kernels_, 0, team, member, member);
            run_plan(run, input.data(), images, network_.features, results[member].data(),
                     member == 0 ? &watch : nullptr);
        });
        for (double& step : round) step /= computed;
    }

    std::vector<StepReport> reports;
    for (std::size_t i = 0; i < plan.steps.size(); ++i) {
        const Step& step = plan.steps[i];
        const Map &in = plan.maps[step.node->input], &out = plan.maps[step.node->output];
        std::vector<double> times;
        for (const auto& round : seconds) times.push_back(round[i]);
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
