// Teams of threads out of one pool for the whole process.
//
// A call computes with as many threads as its model was given, the caller among them, as far as workers are idle:
// when several models or callers run at once they share the workers and nobody starts more threads than were
// asked for. What a team computes does not depend on its size.

#pragma once

#include <atomic>
#include <functional>

namespace skipnets {

class Team {
public:
    explicit Team(int size) : size_(size) {}
    int size() const { return size_; }

    /// Returns when every member has called it. Spins for a while, then yields the processor between tries.
    void wait();

private:
    const int size_;
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<unsigned> generation_{0};
};

/// Calls work(team, member) for every member of a team of at most `wanted`, member 0 on this thread, and returns
/// when all are done. `work` must not throw.
void run_team(int wanted, const std::function<void(Team&, int)>& work);

/// Calls work(share) for the shares of a member, out of so many.
template <class Work>
void for_shares(int shares, const Team& team, int member, Work work) {
    for (int share = member; share < shares; share += team.size()) work(share);
}

}  // namespace skipnets
