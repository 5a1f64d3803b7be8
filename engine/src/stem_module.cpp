#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "isa.h"
#include "stem.h"
#include "training_arrays.h"
#include "training_module.h"
#include "transition.h"

namespace skipnets {
using namespace nb::literals;
namespace {

/// `norm` is γ and β, `statistics` mean and variance of x.
Transition make_transition(const Given& x, const std::vector<std::ptrdiff_t>& maps, const std::vector<Given>& norm,
                           double eps, const std::vector<Given>& statistics, const Given& weight) {
    check_maps(maps);
    if (!has_rows(x, double(maps[0]), double(maps[1]), double(maps[2])))
        refuse("x must be a matrix of pixels and channels");
    if (maps[1] < 2 || maps[2] < 2) refuse("the maps are too small to pool");
    if (norm.size() != 2 || statistics.size() != 2 || weight.ndim() != 2)
        refuse("wrong number of arguments of a transition");
    Transition made{};
    made.images = maps[0], made.height = maps[1], made.width = maps[2];
    made.inputs = std::ptrdiff_t(x.shape(1)), made.outputs = std::ptrdiff_t(weight.shape(0));
    if (made.inputs < 1 || made.outputs < 1) refuse("a transition has no channels");
    const std::size_t inputs = x.shape(1);
    made.x = x.data(), made.eps = eps;
    made.gamma = data_of(norm[0], inputs, "gamma"), made.beta = data_of(norm[1], inputs, "beta");
    made.mean = data_of(statistics[0], inputs, "mean"), made.variance = data_of(statistics[1], inputs, "variance");
    made.weight = data_of(weight, inputs * weight.shape(0), "the weights");
    return made;
}

void forward_transition(const Given& x, const std::vector<std::ptrdiff_t>& maps, const std::vector<Given>& norm,
                        double eps, const std::vector<Given>& statistics, const Given& weight, const Array& y,
                        const std::string& isa, int threads) {
    const Transition transition = make_transition(x, maps, norm, eps, statistics, weight);
    float* const out = data_of(y, std::size_t(transition.pooled_rows() * transition.outputs), "y");
    const Kernels& kernels = choose_kernels(isa);
    check_threads(threads);
    nb::gil_scoped_release release;
    transition_forward(transition, out, kernels, threads);
}

void backward_transition(const Given& x, const std::vector<std::ptrdiff_t>& maps, const std::vector<Given>& norm,
                         double eps, const std::vector<Given>& statistics, const Given& weight, const Given& gradient,
                         const Array& x_gradient, const std::vector<Array>& norm_gradients,
                         const Array& weight_gradient, const std::string& isa, int threads) {
    const Transition transition = make_transition(x, maps, norm, eps, statistics, weight);
    if (norm_gradients.size() != 2) refuse("there must be a gradient for each parameter");
    const std::size_t inputs = x.shape(1);
    const TransitionGradients gradients{
        data_of(gradient, std::size_t(transition.pooled_rows() * transition.outputs), "the gradient"),
        data_of(x_gradient, x.size(), "the gradient of x"), data_of(norm_gradients[0], inputs, "gamma"),
        data_of(norm_gradients[1], inputs, "beta"), data_of(weight_gradient, weight.size(), "a weight's gradient")};
    const Kernels& kernels = choose_kernels(isa);
    check_threads(threads);
    nb::gil_scoped_release release;
    transition_backward(transition, gradients, kernels, threads);
}

// In any memory format.
using GivenImages = nb::ndarray<const float, nb::ndim<4>, nb::device::cpu>;
using Places = nb::ndarray<unsigned char, nb::c_contig, nb::device::cpu>;

Stem make_stem(const GivenImages& images, const Filters& weight, int stride, const std::vector<Given>& norm,
               double eps, const std::vector<Array>& statistics, const Array& convolved,
               const std::optional<Places>& places) {
    if (norm.size() != 2 || statistics.size() != 2) refuse("wrong number of arguments of a stem");
    check_maps({std::ptrdiff_t(images.shape(0)), std::ptrdiff_t(images.shape(2)), std::ptrdiff_t(images.shape(3))});
    Stem made{};
    made.images = {images.data(), std::ptrdiff_t(images.shape(0)), std::ptrdiff_t(images.shape(1)),
                   std::ptrdiff_t(images.shape(2)), std::ptrdiff_t(images.shape(3)), images.stride(0),
                   images.stride(1), images.stride(2), images.stride(3)};
    made.outputs = std::ptrdiff_t(weight.shape(0)), made.size = int(weight.shape(2)), made.stride = stride;
    if (weight.shape(2) != weight.shape(3) || weight.shape(2) > std::size_t(kLargestStemKernel) || made.size % 2 != 1)
        refuse("the convolution must be of 1×1, 3×3, …, 15×15");
    if (stride != 1 && stride != 2) refuse("strides must be 1 or 2");
    if (weight.shape(1) != images.shape(1) || images.shape(1) < 1 || made.outputs < 1)
        refuse("the convolution's channels are not those of the images");
    made.weight = weight.data(), made.layout = layout_of(weight), made.eps = eps;
    const std::size_t outputs = weight.shape(0);
    made.gamma = data_of(norm[0], outputs, "gamma"), made.beta = data_of(norm[1], outputs, "beta");
    made.mean = data_of(statistics[0], outputs, "mean"), made.variance = data_of(statistics[1], outputs, "variance");
    // Images may repeat the same memory, so their size alone says nothing: what holds every pixel does.
    if (!has_rows(convolved, double(made.images.count), double(made.height()), double(made.width())) ||
        convolved.shape(1) != outputs)
        refuse("what the convolution makes must be a matrix of pixels and channels");
    made.convolved = convolved.data();
    made.pools = places.has_value();
    if (places) made.places = data_of(*places, std::size_t(made.out_rows()) * outputs, "places");
    return made;
}

void forward_stem(const GivenImages& images, const Filters& weight, int stride, const std::vector<Given>& norm,
                  double eps, const std::vector<Array>& statistics, const Array& convolved,
                  const std::optional<Places>& places, const Array& y, const std::string& isa, int threads) {
    const Stem stem = make_stem(images, weight, stride, norm, eps, statistics, convolved, places);
    float* const out = data_of(y, std::size_t(stem.out_rows() * stem.outputs), "y");
    const Kernels& kernels = choose_kernels(isa);
    check_threads(threads);
    nb::gil_scoped_release release;
    stem_forward(stem, out, kernels, threads);
}

void backward_stem(const GivenImages& images, const Filters& weight, int stride, const std::vector<Given>& norm,
                   double eps, const std::vector<Array>& statistics, const Array& convolved,
                   const std::optional<Places>& places, bool recompute, const Given& gradient,
                   const FilterGradients& weight_gradient, const std::vector<Array>& norm_gradients,
                   const std::string& isa, int threads) {
    const Stem stem = make_stem(images, weight, stride, norm, eps, statistics, convolved, places);
    if (norm_gradients.size() != 2) refuse("there must be a gradient for each parameter");
    for (std::size_t side = 0; side < 4; ++side)
        if (weight_gradient.shape(side) != weight.shape(side)) refuse("a weight's gradient has another shape");
    const std::size_t outputs = weight.shape(0);
    const StemGradients gradients{data_of(gradient, std::size_t(stem.out_rows() * stem.outputs), "the gradient"),
                                  weight_gradient.data(), layout_of(weight_gradient),
                                  data_of(norm_gradients[0], outputs, "gamma"),
                                  data_of(norm_gradients[1], outputs, "beta")};
    const Kernels& kernels = choose_kernels(isa);
    check_threads(threads);
    nb::gil_scoped_release release;
    stem_backward(stem, recompute, gradients, kernels, threads);
}

}  // namespace

void add_stem_and_transition(nb::module_& m) {
    m.def("transition_forward", &forward_transition, "x"_a, "maps"_a, "norm"_a, "eps"_a, "statistics"_a, "weight"_a,
          "y"_a.noconvert(), "isa"_a, "threads"_a);
    m.def("transition_backward", &backward_transition, "x"_a, "maps"_a, "norm"_a, "eps"_a, "statistics"_a,
          "weight"_a, "gradient"_a, "x_gradient"_a.noconvert(), "norm_gradients"_a.noconvert(),
          "weight_gradient"_a.noconvert(), "isa"_a, "threads"_a);
    m.def("stem_forward", &forward_stem, "images"_a, "weight"_a, "stride"_a, "norm"_a, "eps"_a,
          "statistics"_a.noconvert(), "convolved"_a.noconvert(), "places"_a.none().noconvert(), "y"_a.noconvert(),
          "isa"_a, "threads"_a);
    m.def("stem_backward", &backward_stem, "images"_a, "weight"_a, "stride"_a, "norm"_a, "eps"_a,
          "statistics"_a.noconvert(), "convolved"_a.noconvert(), "places"_a.none().noconvert(), "recompute"_a,
          "gradient"_a, "weight_gradient"_a.noconvert(), "norm_gradients"_a.noconvert(), "isa"_a, "threads"_a);
}

}  // namespace skipnets
