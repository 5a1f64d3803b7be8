#include "training_module.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "dense_block.h"
#include "isa.h"
#include "openmp.h"
#include "residual_block.h"
#include "training_arrays.h"

namespace skipnets {
using namespace nb::literals;
namespace {

/// Sizes are those of memory that exists, so their products cannot overflow once they agree with it.
DenseBlock make_block(const Array& features, const std::vector<std::ptrdiff_t>& maps,
                      const std::vector<Given>& parameters, const std::vector<double>& eps1,
                      const std::vector<double>& eps2, const std::vector<Array>& statistics,
                      const std::vector<Array>& bottlenecks) {
    DenseBlock block{};
    DenseBlockShape& shape = block.shape;
    if (parameters.empty() || parameters.size() % 6 != 0 || statistics.size() != 4 ||
        features.ndim() != 2)
        refuse("wrong number of arguments of a dense block");
    check_maps(maps);
    shape.images = maps[0], shape.height = maps[1], shape.width = maps[2];
    shape.layers = std::ptrdiff_t(parameters.size() / 6);
    shape.input_channels = std::ptrdiff_t(parameters[0].size());
    if (parameters[5].ndim() != 4 || parameters[5].shape(2) != 3 || parameters[5].shape(3) != 3)
        refuse("the second convolution must be of 3×3");
    shape.growth = std::ptrdiff_t(parameters[5].shape(0)), shape.bottleneck = std::ptrdiff_t(parameters[5].shape(1));
    if (shape.input_channels < 1 || shape.growth < 1 || shape.bottleneck < 1) refuse("a layer has no channels");
    if (!has_rows(features, double(maps[0]), double(maps[1]), double(maps[2])) ||
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
              const std::vector<Array>& bottlenecks, bool recompute, const Given& gradient,
              const Array& collected, const Array& masked, const std::vector<Array>& gradients,
              const std::optional<Array>& input_gradient, const std::string& isa, int threads) {
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
    const float* given = data_of(gradient, rows * shape.channels(), "the gradient");
    const DenseBlockScratch scratch{data_of(collected, rows * shape.channels(), "collected"),
                                    data_of(masked, rows * shape.bottleneck, "masked")};
    float* inputs = input_gradient ? data_of(*input_gradient, rows * shape.input_channels, "the input's gradient")
                                   : nullptr;
    nb::gil_scoped_release release;
    dense_block_backward(block, recompute, scratch, out, given, inputs, kernels, threads);
}

/// A convolution of a residual block; its input has `inputs` channels and `rows` is the size of its output.
NormedConvolution make_convolution(const Filters& weight, const Given* norm, double eps, int stride,
                                   std::ptrdiff_t inputs, std::size_t rows, const Array* output) {
    NormedConvolution made{};
    made.inputs = std::ptrdiff_t(weight.shape(1)), made.outputs = std::ptrdiff_t(weight.shape(0));
    made.size = int(weight.shape(2)), made.stride = stride;
    if (weight.shape(2) != weight.shape(3) || (made.size != 1 && made.size != 3))
        refuse("convolutions must be of 1×1 or 3×3");
    if (made.inputs != inputs || inputs < 1 || made.outputs < 1)
        refuse("a convolution's channels are not those of its input");
    made.weight = weight.data(), made.layout = layout_of(weight);
    const std::size_t outputs = std::size_t(made.outputs);
    made.gamma = data_of(norm[0], outputs, "gamma"), made.beta = data_of(norm[1], outputs, "beta"), made.eps = eps;
    made.output = data_of(output[0], rows * outputs, "an output");
    made.mean = data_of(output[1], outputs, "mean"), made.variance = data_of(output[2], outputs, "variance");
    return made;
}

/// `norms` are γ and β of each convolution, `outputs` its output, mean and variance; the last convolution is the
/// projection if `projects`.
ResidualBlock make_residual_block(const Given& x, const std::vector<std::ptrdiff_t>& maps,
                                  const std::vector<Filters>& weights, const std::vector<Given>& norms,
                                  const std::vector<double>& eps, const std::vector<int>& strides, bool projects,
                                  std::ptrdiff_t zeros_before, const std::vector<Array>& outputs, const Array& y) {
    const std::size_t count = weights.size(), branch = count - (projects ? 1 : 0);
    if (branch < 1 || branch > count || norms.size() != 2 * count || eps.size() != count ||
        strides.size() != count || outputs.size() != 3 * count || x.ndim() != 2)
        refuse("wrong number of arguments of a residual block");
    ResidualBlock block{};
    check_maps(maps);
    block.images = maps[0], block.height = maps[1], block.width = maps[2];
    if (!has_rows(x, double(maps[0]), double(maps[1]), double(maps[2])))
        refuse("x must be a matrix of pixels and channels");
    for (int stride : strides)
        if (stride != 1 && stride != 2) refuse("strides must be 1 or 2");
    const std::ptrdiff_t inputs = std::ptrdiff_t(x.shape(1));
    std::ptrdiff_t height = block.height, width = block.width, channels = inputs;
    const auto rows = [&](int stride) {
        height = (height + stride - 1) / stride, width = (width + stride - 1) / stride;
        return std::size_t(block.images) * height * width;
    };
    for (std::size_t i = 0; i < branch; ++i) {
        const std::size_t size = rows(strides[i]);
        block.branch.push_back(
            make_convolution(weights[i], &norms[2 * i], eps[i], strides[i], channels, size, &outputs[3 * i]));
        channels = block.branch.back().outputs;
    }
    const std::size_t out_rows = std::size_t(block.images) * height * width;
    const std::ptrdiff_t out_height = height, out_width = width;
    if (projects) {
        height = block.height, width = block.width;
        const std::size_t size = rows(strides[branch]);
        block.projection.push_back(make_convolution(weights[branch], &norms[2 * branch], eps[branch], strides[branch],
                                                    inputs, size, &outputs[3 * branch]));
        if (height != out_height || width != out_width || block.projection[0].outputs != channels)
            refuse("the projection and the branch make maps of different shapes");
        if (block.projection[0].size != 1) refuse("the projection must be of 1×1");
    } else {
        std::ptrdiff_t stride = 1;
        for (int each : strides) stride *= each;
        if (stride > 2 || zeros_before < 0 || zeros_before > channels - inputs)
            refuse("the shortcut does not fit the branch");
    }
    block.zeros_before = zeros_before;
    block.x = x.data();
    block.y = data_of(y, out_rows * channels, "y");
    return block;
}

void residual_forward(const Given& x, const std::vector<std::ptrdiff_t>& maps, const std::vector<Filters>& weights,
                      const std::vector<Given>& norms, const std::vector<double>& eps, const std::vector<int>& strides,
                      bool projects, std::ptrdiff_t zeros_before, const std::vector<Array>& outputs, const Array& y,
                      const std::string& isa, int threads) {
    const ResidualBlock block =
        make_residual_block(x, maps, weights, norms, eps, strides, projects, zeros_before, outputs, y);
    const Kernels& kernels = choose_kernels(isa);
    check_threads(threads);
    nb::gil_scoped_release release;
    residual_block_forward(block, kernels, threads);
}

void residual_backward(const Given& x, const std::vector<std::ptrdiff_t>& maps, const std::vector<Filters>& weights,
                       const std::vector<Given>& norms, const std::vector<double>& eps, const std::vector<int>& strides,
                       bool projects, std::ptrdiff_t zeros_before, const std::vector<Array>& outputs, const Array& y,
                       const Given& gradient, const Array& sum_gradient, const std::vector<Array>& output_gradients,
                       const std::optional<Array>& x_gradient, const std::vector<FilterGradients>& weight_gradients,
                       const std::vector<Array>& norm_gradients, const std::string& isa, int threads) {
    const ResidualBlock block =
        make_residual_block(x, maps, weights, norms, eps, strides, projects, zeros_before, outputs, y);
    const Kernels& kernels = choose_kernels(isa);
    check_threads(threads);
    const std::size_t count = weights.size(), branch = block.branch.size();
    if (output_gradients.size() != branch - 1 || weight_gradients.size() != count || norm_gradients.size() != 2 * count)
        refuse("there must be a gradient for each parameter and output");
    ResidualGradients gradients{};
    gradients.y = data_of(gradient, y.size(), "the gradient");
    gradients.sum = data_of(sum_gradient, y.size(), "the sum's gradient");
    for (std::size_t i = 0; i + 1 < branch; ++i)
        gradients.outputs.push_back(data_of(output_gradients[i], outputs[3 * i].size(), "an output's gradient"));
    if (x_gradient) gradients.x = data_of(*x_gradient, x.size(), "the gradient of x");
    // The branch's gradient is then added to the sum's, which nothing may have to read any more.
    if (gradients.x == gradients.sum && (projects || branch < 2))
        refuse("the gradient of x can only be the sum's memory where the shortcut is x and the branch has two parts");
    for (std::size_t i = 0; i < count; ++i) {
        const FilterGradients& weight = weight_gradients[i];
        for (std::size_t side = 0; side < 4; ++side)
            if (weight.shape(side) != weights[i].shape(side)) refuse("a weight's gradient has another shape");
        const std::size_t channels = weights[i].shape(0);
        (i < branch ? gradients.branch : gradients.projection)
            .push_back({weight.data(), layout_of(weight), data_of(norm_gradients[2 * i], channels, "gamma"),
                        data_of(norm_gradients[2 * i + 1], channels, "beta")});
    }
    nb::gil_scoped_release release;
    residual_block_backward(block, gradients, kernels, threads);
}

}  // namespace

void add_training(nb::module_& m) {
    m.def("share_openmp", &share_openmp, "library"_a);
    m.def("dense_block_forward", &forward, "features"_a.noconvert(), "maps"_a, "parameters"_a, "eps1"_a, "eps2"_a,
          "statistics"_a.noconvert(), "bottlenecks"_a.noconvert(), "isa"_a, "threads"_a);
    m.def("dense_block_backward", &backward, "features"_a.noconvert(), "maps"_a, "parameters"_a, "eps1"_a, "eps2"_a,
          "statistics"_a.noconvert(), "bottlenecks"_a.noconvert(), "recompute"_a, "gradient"_a,
          "collected"_a.noconvert(), "masked"_a.noconvert(), "gradients"_a.noconvert(),
          "input_gradient"_a.none().noconvert(), "isa"_a, "threads"_a);
    m.def("residual_block_forward", &residual_forward, "x"_a, "maps"_a, "weights"_a, "norms"_a, "eps"_a, "strides"_a,
          "projects"_a, "zeros_before"_a, "outputs"_a.noconvert(), "y"_a.noconvert(), "isa"_a, "threads"_a);
    m.def("residual_block_backward", &residual_backward, "x"_a, "maps"_a, "weights"_a, "norms"_a, "eps"_a,
          "strides"_a, "projects"_a, "zeros_before"_a, "outputs"_a.noconvert(), "y"_a.noconvert(), "gradient"_a,
          "sum_gradient"_a.noconvert(), "output_gradients"_a.noconvert(), "x_gradient"_a.none().noconvert(),
          "weight_gradients"_a.noconvert(), "norm_gradients"_a.noconvert(), "isa"_a, "threads"_a);
}

}  // namespace skipnets
