// Memory for one training pass.

#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "memory.h"
#include "training_products.h"

namespace skipnets {

/// Memory of any content for one call, kept for the thread's next one: fresh memory costs more than writing to it.
class Scratch {
public:
    /// From now on everything lent before is free.
    void reset() {
        if (arenas_.size() > 1) {  // One piece that holds all of it next time.
            const Size total = total_;
            arenas_.clear();
            memory_ = nullptr, capacity_ = total_ = 0;
            add(total);
        }
        used_ = total_ = 0;
    }

    /// Aligned to 64 bytes, with room behind them for reading one vector too far.
    float* floats(Size count) {
        const Size size = round_up(count, 16) + Size(kRoomBehind);
        if (used_ + size > capacity_) add(std::max(size, 2 * capacity_));
        float* result = memory_ + used_;
        used_ += size;
        total_ += size;
        return result;
    }

private:
    /// Changes nothing if there is no memory left: the thread's next call finds everything as it was.
    void add(Size size) {
        Arena arena;
        float* memory = arena.floats(std::size_t(size));
        arenas_.push_back(std::move(arena));
        memory_ = memory, capacity_ = size, used_ = 0;
    }

    std::vector<Arena> arenas_;
    float* memory_ = nullptr;
    Size capacity_ = 0, used_ = 0, total_ = 0;  // of the last arena; of all since the last reset
};

inline Scratch& thread_scratch() {
    thread_local Scratch scratch;
    scratch.reset();
    return scratch;
}

/// Panels in scratch, with zeros where the last one has no outputs.
inline Panels make_panels(Scratch& scratch, Size depth, Size outputs, int lanes) {
    Panels panels{depth, ceil_div(outputs, lanes), lanes, nullptr};
    panels.data = scratch.floats(panels.size());
    if (outputs < panels.vectors * lanes) std::fill(panels.at(panels.count() - 1), panels.data + panels.size(), 0.0f);
    return panels;
}

}  // namespace skipnets
