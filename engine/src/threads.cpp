#include "threads.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#ifndef _WIN32
#include <unistd.h>
#endif

namespace skipnets {
namespace {

// A try with a pause takes 15 to 40 ns. A step takes tens of microseconds, so a member that is later than that has
// probably lost its processor.
constexpr int kBarrierSpins = 2000;
// Between two calls of a busy service a worker stays awake for about 0.1 ms, then it sleeps.
constexpr int kIdleSpins = 4000;

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

/// What ends the other members of a team in which one has thrown.
struct Abandoned {};

long process_id() {
#ifdef _WIN32
    return 0;
#else
    return getpid();
#endif
}

}  // namespace

struct Job {
    const TeamWork* work;
    Team* team;
    std::atomic<int> running;
};

class Worker {
public:
    void give(Job* job, int member) {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            member_ = member;
            job_.store(job, std::memory_order_release);
        }
        wake_.notify_one();
    }

    template <class Done>
    [[noreturn]] void loop(Done done) {
        for (;;) {
            Job* job = next();
            job->team->run(*job->work, member_);
            job_.store(nullptr, std::memory_order_relaxed);
            done(this);  // idle again before the caller goes on, so that its next call finds this worker
            job->running.fetch_sub(1, std::memory_order_release);
        }
    }

private:
    Job* next() {
        for (int spin = 0; spin < kIdleSpins; ++spin) {
            if (Job* job = job_.load(std::memory_order_acquire)) return job;
            pause();
        }
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [this] { return job_.load(std::memory_order_acquire) != nullptr; });
        return job_.load(std::memory_order_acquire);
    }

    std::mutex mutex_;
    std::condition_variable wake_;
    std::atomic<Job*> job_{nullptr};
    int member_ = 0;
};

namespace {

class Pool {
public:
    explicit Pool(long process) : process(process) {}

    const long process;

    /// Up to `wanted` idle workers; new ones are started while there are fewer than `wanted` altogether.
    std::vector<Worker*> take(int wanted) {
        std::lock_guard<std::mutex> lock(mutex_);
        while (int(idle_.size()) < wanted && started_ < wanted && start()) {
        }
        const auto count = std::min<std::size_t>(wanted, idle_.size());
        std::vector<Worker*> taken(idle_.end() - count, idle_.end());
        idle_.resize(idle_.size() - count);
        return taken;
    }

    void give_back(Worker* worker) {
        std::lock_guard<std::mutex> lock(mutex_);
        idle_.push_back(worker);
    }

private:
    bool start() {
        idle_.reserve(std::size_t(started_) + 1);  // so that giving back cannot fail
        auto* worker = new Worker;                 // lives as long as the process, like its thread
        try {
            std::thread([this, worker] {
                worker->loop([this](Worker* done) { give_back(done); });
            }).detach();
        } catch (const std::system_error&) {  // the system has no thread to give: fewer will do
            delete worker;
            return false;
        }
        idle_.push_back(worker);
        ++started_;
        return true;
    }

    std::mutex mutex_;
    std::vector<Worker*> idle_;
    int started_ = 0;
};

// The pool is never destroyed: its threads may outlive main. After a fork the child has none of them, so it gets
// a pool of its own; it takes no lock for that, which a thread that the child lacks may have held.
Pool& pool() {
    static std::atomic<Pool*> current{nullptr};
    const long process = process_id();
    Pool* found = current.load(std::memory_order_acquire);
    if (found != nullptr && found->process == process) return *found;
    auto* made = new Pool(process);
    if (current.compare_exchange_strong(found, made, std::memory_order_acq_rel)) return *made;
    delete made;  // another thread was faster
    return *found;
}

}  // namespace

void Team::wait() {
    if (size_ == 1) return;
    const unsigned generation = generation_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
        arrived_.store(0, std::memory_order_relaxed);
        generation_.store(generation + 1, std::memory_order_release);
        return;
    }
    for (int spin = 0; generation_.load(std::memory_order_acquire) == generation; ++spin) {
        if (failed_.load(std::memory_order_acquire)) throw Abandoned{};
        if (spin < kBarrierSpins)
            pause();
        else
            std::this_thread::yield();
    }
}

void Team::run(const TeamWork& work, int member) noexcept {
    try {
        work(*this, member);
    } catch (...) {
        if (!failed_.exchange(true, std::memory_order_acq_rel)) error_ = std::current_exception();
    }
}

void Team::rethrow() const {
    if (error_) std::rethrow_exception(error_);
}

Members::Members(int wanted) {
    if (wanted > 1) workers_ = pool().take(wanted - 1);
}

Members::~Members() {
    for (Worker* worker : workers_) pool().give_back(worker);
}

void Members::run(const TeamWork& work) {
    Team team(count());
    Job job{&work, &team, {int(workers_.size())}};
    for (std::size_t i = 0; i < workers_.size(); ++i) workers_[i]->give(&job, int(i) + 1);
    workers_.clear();  // they go back by themselves
    team.run(work, 0);
    for (int spin = 0; job.running.load(std::memory_order_acquire) != 0; ++spin) {
        if (spin < kBarrierSpins)
            pause();
        else
            std::this_thread::yield();
    }
    team.rethrow();
}

}  // namespace skipnets
