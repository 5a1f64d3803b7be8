// What training passes take from Python: arrays or CPU tensors, checked.

#pragma once

#include <nanobind/ndarray.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "residual_block.h"

namespace skipnets {

namespace nb = nanobind;

// Contiguous arrays, torch tensors among them (as DLPack: nothing here needs libtorch). What is only read may be of
// another type or layout, and is copied; what is written must not be, or the result would go into the copy: every
// argument that holds non-const numbers is bound with noconvert().
using Array = nb::ndarray<float, nb::c_contig, nb::device::cpu>;
using Given = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;

[[noreturn]] inline void refuse(const std::string& what) { throw std::invalid_argument(what); }

template <class Numbers>
auto* data_of(const Numbers& numbers, std::size_t size, const char* name) {
    if (numbers.size() != size)
        refuse(std::string(name) + " must hold " + std::to_string(size) + " numbers, not " +
               std::to_string(numbers.size()));
    return numbers.data();
}

inline int check_threads(int threads) {
    if (threads < 1 || threads > 4096) refuse("threads must be 1 to 4096");
    return threads;
}

/// Images, height and width of maps.
inline void check_maps(const std::vector<std::ptrdiff_t>& maps) {
    if (maps.size() != 3) refuse("maps have images, height and width");
    for (std::ptrdiff_t side : maps)
        if (side < 1 || side > 1 << 24) refuse("images, height or width out of range");
}

/// Whether a matrix has as many rows as maps have pixels, which may be more than a number can hold.
template <class Matrix>
bool has_rows(const Matrix& matrix, double images, double height, double width) {
    return matrix.ndim() == 2 && double(matrix.shape(0)) == images * height * width;
}

// Weights (K, C, s, s) in any memory format.
using Filters = nb::ndarray<const float, nb::ndim<4>, nb::device::cpu>;
using FilterGradients = nb::ndarray<float, nb::ndim<4>, nb::device::cpu>;

template <class Weights>
FilterLayout layout_of(const Weights& weights) {
    if (weights.shape(3) > 1 && weights.stride(2) != std::int64_t(weights.shape(3)) * weights.stride(3))
        refuse("a kernel's lines must follow one another");
    return {weights.stride(0), weights.stride(1), weights.stride(3)};
}

}  // namespace skipnets
