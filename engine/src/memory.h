// Memory for weights and maps: zeroed, aligned to cache lines, in large blocks on huge pages where the system has
// them; a single small piece takes small pages. (Weights are walked through once an image; with pages of 4 KiB every
// one of them costs a translation and stops the hardware's prefetcher.)

#pragma once

#include <cstddef>
#include <vector>

namespace skipnets {

// Floats behind a piece of memory, so that one vector too far can be read.
constexpr std::size_t kRoomBehind = 32;

class Arena {
public:
    Arena() = default;
    Arena(Arena&& other) noexcept { *this = static_cast<Arena&&>(other); }
    Arena& operator=(Arena&& other) noexcept;
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;
    ~Arena();

    /// `count` zeros, aligned to 64 bytes, with room behind them for reading one vector too far.
    /// Throws std::bad_alloc.
    float* floats(std::size_t count);

private:
    struct Block {
        void* memory;
        std::size_t size, used;
    };
    std::vector<Block> blocks_;
};

}  // namespace skipnets
