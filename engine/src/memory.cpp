#include "memory.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#ifdef _WIN32
#include <malloc.h>
#else
#include <sys/mman.h>
#endif

namespace skipnets {
namespace {

constexpr std::size_t kPage = std::size_t(4) << 10, kHugePage = std::size_t(2) << 20;
constexpr std::size_t kLine = 64;

void* allocate(std::size_t size, std::size_t page) {
#ifdef _WIN32
    void* memory = _aligned_malloc(size, page);
    if (memory == nullptr) throw std::bad_alloc();
#else
    void* memory = nullptr;
    if (posix_memalign(&memory, page, size) != 0) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    if (page == kHugePage) madvise(memory, size, MADV_HUGEPAGE);  // failing costs speed only
#endif
#endif
    std::memset(memory, 0, size);
    return memory;
}

void release(void* memory) {
#ifdef _WIN32
    _aligned_free(memory);
#else
    std::free(memory);
#endif
}

}  // namespace

Arena& Arena::operator=(Arena&& other) noexcept {
    std::swap(blocks_, other.blocks_);
    return *this;
}

Arena::~Arena() {
    for (const Block& block : blocks_) release(block.memory);
}

float* Arena::floats(std::size_t count) {
    if (count > (std::size_t(1) << 60) / sizeof(float)) throw std::bad_alloc();
    const std::size_t size = ((count + kRoomBehind) * sizeof(float) + kLine - 1) / kLine * kLine;
    if (blocks_.empty() || blocks_.back().size - blocks_.back().used < size) {
        // The first block is often the only one: that of a thread's scratch, of which many callers have many.
        const std::size_t least = blocks_.empty() ? size : std::max(size, 2 * kHugePage);
        const std::size_t page = least < kHugePage ? kPage : kHugePage;
        const std::size_t wanted = (least + page - 1) / page * page;
        blocks_.reserve(blocks_.size() + 1);
        blocks_.push_back({allocate(wanted, page), wanted, 0});
    }
    Block& block = blocks_.back();
    float* result = reinterpret_cast<float*>(static_cast<char*>(block.memory) + block.used);
    block.used += size;
    return result;
}

}  // namespace skipnets
