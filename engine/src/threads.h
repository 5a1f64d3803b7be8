// Teams of threads out of one pool for the whole process.
//
// A call computes with as many threads as its model was given, the caller among them, as far as workers are idle:
// when several models or callers run at once they share the workers and nobody starts more threads than were
// asked for. What a team computes does not depend on its size.

#pragma once

#include <atomic>
#include <exception>
#include <functional>
#include <vector>

namespace skipnets {

class Team;
class Worker;
using TeamWork = std::function<void(Team& team, int member)>;

class Team {
public:
    explicit Team(int size) : size_(size) {}
    int size() const { return size_; }

    /// Returns when every member has called it. Spins for a while, then yields the processor between tries.
    /// Throws where another member's work has thrown, so that this one's ends too.
    void wait();

    /// Calls work(team, member). What it throws is kept for rethrow().
    void run(const TeamWork& work, int member) noexcept;

    /// Throws what the first member's work threw, if any did. For when all have ended.
    void rethrow() const;

private:
    const int size_;
    std::exception_ptr error_;
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<unsigned> generation_{0};
    std::atomic<bool> failed_{false};
};

/// The calling thread and idle workers, reserved for one piece of work.
class Members {
public:
    /// At most `wanted` members. Throws std::bad_alloc.
    explicit Members(int wanted);
    ~Members();
    Members(const Members&) = delete;
    Members& operator=(const Members&) = delete;

    int count() const { return int(workers_.size()) + 1; }

    /// Calls work(team, member) for every member, member 0 on this thread, and returns when all are done. Only once.
    /// Throws what the work throws in a member.
    void run(const TeamWork& work);

private:
    std::vector<Worker*> workers_;
};

/// The same with the members that there are now, at most `wanted`.
inline void run_team(int wanted, const TeamWork& work) { Members(wanted).run(work); }

/// Calls work(share) for the shares of a member, out of so many.
template <class Work>
void for_shares(int shares, const Team& team, int member, Work work) {
    for (int share = member; share < shares; share += team.size()) work(share);
}

}  // namespace skipnets
