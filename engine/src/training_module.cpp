#include "training_module.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "dense_block.h"
#include "isa.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace skipnets {
namespace {

// Contiguous arrays, torch tensors among them (as DLPack: nothing here needs libtorch).
using Array = nb::ndarray<float, nb::c_contig, nb::device::cpu>;
using Given = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

template <class Numbers>
auto* data_of(const Numbers& numbers, std::size_t size, const char* name) {
    if (numbers.size() != size)
        refuse(std::string(name) + " must hold " + std::to_string(size) + " numbers, not " +
               std::to_string(numbers.size()));
    return numbers.data();
}

/// Sizes are those of memory that exists, so their products cannot overflow once they agree with it.
DenseBlock make_block(const Array& features, const std::vector<std::ptrdiff_t>& maps,
                      const std::vector<Given>& parameters, const std::vector<double>& eps1,
                      const std::vector<double>& eps2, const std::vector<Array>& statistics,
                      const std::vector<Array>& bottlenecks) {
    DenseBlock block{};
    DenseBlockShape& shape = block.shape;
    if (maps.size() != 3 || parameters.empty() || parameters.size() % 6 != 0 || statistics.size() != 4 ||
        features.ndim() != 2)
        refuse("wrong number of arguments of a dense block");
    for (std::ptrdiff_t side : maps)
        if (side < 1 || side > 1 << 24) refuse("images, height or width out of range");
    shape.images = maps[0], shape.height = maps[1], shape.width = maps[2];
    shape.layers = std::ptrdiff_t(parameters.size() / 6);
    shape.input_channels = std::ptrdiff_t(parameters[0].size());
    if (parameters[5].ndim() != 4 || parameters[5].shape(2) != 3 || parameters[5].shape(3) != 3)
        refuse("the second convolution must be of 3×3");
    shape.growth = std::ptrdiff_t(parameters[5].shape(0)), shape.bottleneck = std::ptrdiff_t(parameters[5].shape(1));
    if (shape.input_channels < 1 || shape.growth < 1 || shape.bottleneck < 1) refuse("a layer has no channels");
    if (features.shape(0) != std::size_t(shape.images) * shape.height * shape.width ||
        features.shape(1) != std::size_t(shape.channels()))
        refuse("the features must be a matrix of pixels and channels");
    if (eps1.size() != std::size_t(shape.layers) || eps2.size() != eps1.size()) refuse("each norm has one ε");
    const std::size_t width = std::size_t(shape.bottleneck), growth = std::size_t(shape.growth);
    for (std::ptrdiff_t i = 0; i < shape.layers; ++i) {
        const std::size_t seen = std::size_t(shape.seen(i));
        const Given* own = &parameters[std::size_t(i) * 6];
        block.layers.push_back({data_of(own[0], seen, "gamma1"), data_of(own[1], seen, "beta1"),
                                data_of(own[2], width * seen, "weight1"), data_of(own[3], width, "gamma2"),
                                data_of(own[4], width, "beta2"), data_of(own[5], growth * width * 9, "weight2"),
                                eps1[std::size_t(i)], eps2[std::size_t(i)]});
    }
    block.features = features.data();
    const std::size_t channels = std::size_t(shape.channels()), layers = std::size_t(shape.layers);
    block.mean = data_of(statistics[0], channels, "mean");
    block.variance = data_of(statistics[1], channels, "variance");
    block.mean2 = data_of(statistics[2], layers * width, "mean2");
    block.variance2 = data_of(statistics[3], layers * width, "variance2");
    if (bottlenecks.size() != 1 && bottlenecks.size() != layers) refuse("there must be one bottleneck, or one a layer");
    for (std::size_t i = 0; i < layers; ++i)
        block.bottlenecks.push_back(
            data_of(bottlenecks[bottlenecks.size() == 1 ? 0 : i], std::size_t(shape.rows()) * width, "bottleneck"));
    return block;
}

int check_threads(int threads) {
    if (threads < 1 || threads > 4096) refuse("threads must be 1 to 4096");
    return threads;
}

void forward(const Array& features, const std::vector<std::ptrdiff_t>& maps, const std::vector<Given>& parameters,
             const std::vector<double>& eps1, const std::vector<double>& eps2, const std::vector<Array>& statistics,
             const std::vector<Array>& bottlenecks, const std::string& isa, int threads) {
    const DenseBlock block = make_block(features, maps, parameters, eps1, eps2, statistics, bottlenecks);
    const Kernels& kernels = choose_kernels(isa);
    check_threads(threads);
    nb::gil_scoped_release release;
    dense_block_forward(block, kernels, threads);
}

void backward(const Array& features, const std::vector<std::ptrdiff_t>& maps, const std::vector<Given>& parameters,
              const std::vector<double>& eps1, const std::vector<double>& eps2, const std::vector<Array>& statistics,
              const std::vector<Array>& bottlenecks, bool recompute, const Array& gradient, const Array& masked,
              const std::vector<Array>& gradients, const std::optional<Array>& input_gradient, const std::string& isa,
              int threads) {
    const DenseBlock block = make_block(features, maps, parameters, eps1, eps2, statistics, bottlenecks);
    const Kernels& kernels = choose_kernels(isa);
    check_threads(threads);
    const DenseBlockShape& shape = block.shape;
    if (bottlenecks.size() == 1 && shape.layers > 1 && !recompute) refuse("the bottlenecks were not kept");
    if (gradients.size() != parameters.size()) refuse("there must be a gradient for each parameter");
    std::vector<LayerGradients> out;
    for (std::size_t i = 0; i < gradients.size(); i += 6) {
        float* each[6];
        for (std::size_t j = 0; j < 6; ++j)
            each[j] = data_of(gradients[i + j], parameters[i + j].size(), "a gradient");
        out.push_back({each[0], each[1], each[2], each[3], each[4], each[5]});
    }
    const std::size_t rows = std::size_t(shape.rows());
    float* all = data_of(gradient, rows * shape.channels(), "the gradient");
    float* scratch = data_of(masked, rows * shape.bottleneck, "masked");
    float* inputs = input_gradient ? data_of(*input_gradient, rows * shape.input_channels, "the input's gradient")
                                   : nullptr;
    nb::gil_scoped_release release;
    dense_block_backward(block, recompute, all, scratch, out, inputs, kernels, threads);
}

}  // namespace

void add_training(nb::module_& m) {
    m.def("dense_block_forward", &forward, "features"_a, "maps"_a, "parameters"_a, "eps1"_a, "eps2"_a,
          "statistics"_a, "bottlenecks"_a, "isa"_a, "threads"_a);
    m.def("dense_block_backward", &backward, "features"_a, "maps"_a, "parameters"_a, "eps1"_a, "eps2"_a,
          "statistics"_a, "bottlenecks"_a, "recompute"_a, "gradient"_a, "masked"_a, "gradients"_a,
          "input_gradient"_a.none(), "isa"_a, "threads"_a);
}

}  // namespace skipnets
