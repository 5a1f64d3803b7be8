#include "memory.h"

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

constexpr std::size_t kHugePage = std::size_t(2) << 20;
constexpr std::size_t kLine = 64;

void* allocate(std::size_t size) {
#ifdef _WIN32
    void* memory = _aligned_malloc(size, kHugePage);
    if (memory == nullptr) throw std::bad_alloc();
#else
    void* memory = nullptr;
    if (posix_memalign(&memory, kHugePage, size) != 0) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    madvise(memory, size, MADV_HUGEPAGE);  // failing costs speed only
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
    std::swap(bytes_, other.bytes_);
    return *this;
}

Arena::~Arena() {
    for (const Block& block : blocks_) release(block.memory);
}

float* Arena::floats(std::size_t count) {
    constexpr std::size_t kRoom = 2 * kLine;
    if (count > (std::size_t(1) << 60) / sizeof(float)) throw std::bad_alloc();
    const std::size_t size = (count * sizeof(float) + kRoom + kLine - 1) / kLine * kLine;
    if (blocks_.empty() || blocks_.back().size - blocks_.back().used < size) {
        const std::size_t least = 2 * kHugePage;
        const std::size_t wanted = ((size > least ? size : least) + kHugePage - 1) / kHugePage * kHugePage;
        blocks_.reserve(blocks_.size() + 1);
        blocks_.push_back({allocate(wanted), wanted, 0});
        bytes_ += wanted;
    }
    Block& block = blocks_.back();
    float* result = reinterpret_cast<float*>(static_cast<char*>(block.memory) + block.used);
    block.used += size;
    return result;
}

}  // namespace skipnets
