#include "openmp.h"

#include <atomic>

#ifndef _WIN32
#include <dlfcn.h>
#include <unistd.h>
#endif

namespace skipnets {

#ifdef _WIN32

bool share_openmp(const std::string&) { return false; }

void run_training_team(int wanted, const TeamWork& work) { run_team(wanted, work); }

#else

namespace {

/// What GCC's libgomp exports, and LLVM's libomp for its sake on Linux.
struct OpenMP {
    void (*parallel)(void (*)(void*), void*, unsigned threads, unsigned flags);
    int (*number)();
    int (*threads)();
    pid_t process;
};

std::atomic<const OpenMP*> shared{nullptr};

struct Region {
    const OpenMP& openmp;
    const TeamWork& work;
    Team team;
};

void run_member(void* data) noexcept {
    Region& region = *static_cast<Region*>(data);
    const int number = region.openmp.number();
    if (region.openmp.threads() == region.team.size()) return region.team.run(region.work, number);
    if (number != 0) return;
    // Within another region, or at a limit, there are fewer threads than were asked for.
    const auto by_one = [&](Team&, int) {
        Team alone(1);
        region.work(alone, 0);
    };
    region.team.run(by_one, 0);
}

template <class Function>
bool find(void* library, const char* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(library, name));
    return function != nullptr;
}

}  // namespace

bool share_openmp(const std::string& library) {
    if (library.empty()) return false;  // It would stand for the program itself.
    void* loaded = dlopen(library.c_str(), RTLD_LAZY | RTLD_NOLOAD);
    if (loaded == nullptr) return false;
    auto* openmp = new OpenMP{nullptr, nullptr, nullptr, getpid()};  // Calls may be using an earlier one for ever.
    // Searched in the library and in those that it was linked to, so that it is the OpenMP which that one uses.
    if (!find(loaded, "GOMP_parallel", openmp->parallel) || !find(loaded, "omp_get_thread_num", openmp->number) ||
        !find(loaded, "omp_get_num_threads", openmp->threads)) {
        delete openmp;
        return false;
    }
    shared.store(openmp, std::memory_order_release);
    return true;
}

void run_training_team(int wanted, const TeamWork& work) {
    const OpenMP* openmp = shared.load(std::memory_order_acquire);
    if (openmp == nullptr || wanted == 1 || openmp->process != getpid()) return run_team(wanted, work);
    Region region{*openmp, work, Team(wanted)};
    openmp->parallel(run_member, &region, unsigned(wanted), 0);
    region.team.rethrow();
}

#endif

}  // namespace skipnets
