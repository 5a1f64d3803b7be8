// The Python module: networks in, arrays out. The GIL is released while anything computes.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <stdexcept>

#include "engine.h"
#include "isa.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace skipnets {
namespace {

using Numbers = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Weight = nb::ndarray<const float, nb::ndim<4>, nb::c_contig, nb::device::cpu>;
using Input = nb::ndarray<const float, nb::ndim<4>, nb::c_contig, nb::device::cpu>;

std::vector<float> copy(const Numbers& numbers) { return {numbers.data(), numbers.data() + numbers.size()}; }

int small(std::size_t number, const char* what) {
    if (number > std::size_t(1) << 24) throw std::invalid_argument(std::string(what) + " out of range");
    return int(number);
}

nb::object new_array(std::vector<float> numbers, const std::vector<std::size_t>& shape) {
    auto* owned = new std::vector<float>(std::move(numbers));
    nb::capsule owner(owned, [](void* p) noexcept { delete static_cast<std::vector<float>*>(p); });
    return nb::cast(nb::ndarray<nb::numpy, float>(owned->data(), shape.size(), shape.data(), owner));
}

int add_value(Network& network, int channels) {
    network.channels.push_back(channels);
    return int(network.channels.size()) - 1;
}

void add_convolution(Network& network, const std::string& name, int input, int output, const Weight& weight,
                     const Numbers& bias, int input_channel, int output_channel, int stride, int dilation, bool relu,
                     bool pooled, int added, const std::optional<Numbers>& scale,
                     const std::optional<Numbers>& shift, const std::string& algorithm) {
    Node node;
    if (algorithm == "direct")
        node.forced = Algorithm::kDirect;
    else if (algorithm == "winograd2")
        node.forced = Algorithm::kWinograd2;
    else if (algorithm == "winograd4")
        node.forced = Algorithm::kWinograd4;
    else if (algorithm != "auto")
        throw std::invalid_argument(name + ": unknown algorithm " + algorithm);
    node.name = name;
    node.input = input;
    node.output = output;
    node.input_channel = input_channel;
    node.output_channel = output_channel;
    node.output_channels = small(weight.shape(0), "output channels");
    node.input_channels = small(weight.shape(1), "input channels");
    node.kernel = small(weight.shape(2), "kernel");
    if (weight.shape(3) != weight.shape(2)) throw std::invalid_argument(name + ": kernels must be square");
    if (dilation < 1 || dilation > 4096) throw std::invalid_argument(name + ": dilation out of range");
    node.stride = stride;
    node.dilation = dilation;
    node.padding = dilation * (node.kernel / 2);
    node.relu = relu;
    node.pooled = pooled;
    node.added = added;
    node.weight.assign(weight.data(), weight.data() + weight.size());
    node.bias = copy(bias);
    if (scale) node.scale = copy(*scale);
    if (shift) node.shift = copy(*shift);
    network.nodes.push_back(std::move(node));
}

void add_simple(Network& network, Kind kind, const std::string& name, int input, int output, int stride,
                const std::optional<Numbers>& scale, const std::optional<Numbers>& shift) {
    const auto is_value = [&](int value) { return value >= 0 && value < int(network.channels.size()); };
    if (!is_value(input) || !is_value(output)) throw std::invalid_argument(name + ": no such value");
    Node node;
    node.kind = kind;
    node.name = name;
    node.input = input;
    node.output = output;
    if (scale) node.scale = copy(*scale);
    if (shift) node.shift = copy(*shift);
    // An activation reads as many channels as it has scales; all but subsampling write as many as they read.
    node.input_channels = scale ? int(node.scale.size()) : network.channels[input];
    node.output_channels = kind == Kind::kSubsample ? network.channels[output] : node.input_channels;
    node.stride = stride;
    network.nodes.push_back(std::move(node));
}

void check_input(const Engine& engine, const Input& input) {
    const auto channels = std::size_t(engine.network().channels[0]);
    if (input.shape(1) != channels)
        throw std::invalid_argument("the input must have " + std::to_string(channels) + " channels, not " +
                                    std::to_string(input.shape(1)));
    small(input.shape(0), "batch");
    if (small(input.shape(2), "height") < 1 || small(input.shape(3), "width") < 1)
        throw std::invalid_argument("images must have at least one pixel");
}

nb::object run(Engine& engine, const Input& input, bool want_logits) {
    check_input(engine, input);
    const Network& network = engine.network();
    const int value = want_logits && network.logits >= 0 ? network.logits : network.features;
    const std::size_t count = input.shape(0), width = std::size_t(network.channels[value]);
    std::vector<float> out(count * width);
    {
        nb::gil_scoped_release release;
        engine.run(input.data(), int(count), int(input.shape(2)), int(input.shape(3)), want_logits,
                   out.data());
    }
    return new_array(std::move(out), {count, width});
}

nb::list values(Engine& engine, const Input& input, const std::vector<int>& wanted) {
    check_input(engine, input);
    const std::size_t count = input.shape(0), floats = input.size() / (count ? count : 1);
    const int height = int(input.shape(2)), width = int(input.shape(3));
    std::vector<std::vector<float>> out(wanted.size());
    std::vector<Map> maps;
    {
        nb::gil_scoped_release release;
        for (int value : wanted) maps.push_back(engine.map_of(value, height, width));
        for (std::size_t i = 0; i < count; ++i) {
            const auto one = engine.values(input.data() + i * floats, height, width, wanted);
            for (std::size_t j = 0; j < one.size(); ++j) out[j].insert(out[j].end(), one[j].begin(), one[j].end());
        }
    }
    nb::list result;
    for (std::size_t j = 0; j < wanted.size(); ++j)
        result.append(new_array(std::move(out[j]), {count, std::size_t(maps[j].channels),
                                                    std::size_t(maps[j].height), std::size_t(maps[j].width)}));
    return result;
}

nb::list measure(Engine& engine, int height, int width, int images, int rounds) {
    if (height < 1 || width < 1 || height > 1 << 20 || width > 1 << 20)
        throw std::invalid_argument("height or width out of range");
    std::vector<StepReport> reports;
    {
        nb::gil_scoped_release release;
        reports = engine.measure(height, width, images, rounds);
    }
    nb::list result;
    for (const StepReport& report : reports) {
        nb::dict line;
        line["name"] = report.name;
        line["algorithm"] = report.algorithm;
        line["shape"] = nb::make_tuple(report.channels, report.height, report.width);
        line["macs"] = report.macs;
        line["bytes"] = report.bytes;
        line["seconds"] = report.seconds;
        result.append(line);
    }
    return result;
}

/// Multiply-accumulates a second that one thread could do if nothing but them took time: the best of a few tries.
double peak_macs(const std::string& isa) {
    const Kernels& kernels = choose_kernels(isa);
    nb::gil_scoped_release release;
    constexpr long kRounds = 200000;
    double best = 0;
    for (int attempt = 0; attempt < 15; ++attempt) {
        const auto begin = std::chrono::steady_clock::now();
        volatile float result = kernels.peak(kRounds);
        (void)result;
        const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
        best = std::max(best, double(kRounds) * 2 * kernels.rows[2] * kernels.lanes / seconds);
    }
    return best;
}

}  // namespace
}  // namespace skipnets

NB_MODULE(_engine, m) {
    using namespace skipnets;
    m.attr("__version__") = SKIPNETS_ENGINE_VERSION;
    m.def("isas", [] {
        std::vector<std::string> names;
        for (const Kernels* kernels : usable_kernels()) names.emplace_back(kernels->name);
        return names;
    });
    m.def("peak_macs", &peak_macs, "isa"_a = "");

    nb::class_<Network>(m, "Network")
        .def(nb::init<>())
        .def("add_value", &add_value, "channels"_a)
        .def("add_convolution", &add_convolution, "name"_a, "input"_a, "output"_a, "weight"_a, "bias"_a, nb::kw_only(),
             "input_channel"_a = 0, "output_channel"_a = 0, "stride"_a = 1, "dilation"_a = 1, "relu"_a = false,
             "pooled"_a = false, "added"_a = -1, "scale"_a = nb::none(), "shift"_a = nb::none(),
             "algorithm"_a = "auto")
        .def("add_activation",
             [](Network& n, const std::string& name, int input, int output, const Numbers& scale,
                const Numbers& shift) { add_simple(n, Kind::kActivation, name, input, output, 1, scale, shift); },
             "name"_a, "input"_a, "output"_a, "scale"_a, "shift"_a)
        .def("add_max_pool",
             [](Network& n, const std::string& name, int input, int output) {
                 add_simple(n, Kind::kMaxPool, name, input, output, 2, {}, {});
             },
             "name"_a, "input"_a, "output"_a)
        .def("add_subsample",
             [](Network& n, const std::string& name, int input, int output, int stride) {
                 add_simple(n, Kind::kSubsample, name, input, output, stride, {}, {});
             },
             "name"_a, "input"_a, "output"_a, "stride"_a)
        .def("add_mean",
             [](Network& n, const std::string& name, int input, int output, const std::optional<Numbers>& scale,
                const std::optional<Numbers>& shift) {
                 add_simple(n, Kind::kMean, name, input, output, 1, scale, shift);
             },
             "name"_a, "input"_a, "output"_a, "scale"_a = nb::none(), "shift"_a = nb::none())
        .def_rw("features", &Network::features)
        .def_rw("logits", &Network::logits);

    nb::class_<Engine>(m, "Engine")
        .def("__init__",
             [](Engine* self, const Network& network, const std::string& isa, int threads) {
                 new (self) Engine(network, choose_kernels(isa), threads);
             },
             "network"_a, "isa"_a, "threads"_a)
        .def("run", &run, "input"_a, "logits"_a)
        .def("values", &values, "input"_a, "wanted"_a)
        .def("measure", &measure, "height"_a, "width"_a, "images"_a, "rounds"_a)
        .def_prop_ro("isa", [](const Engine& engine) { return std::string(engine.kernels().name); })
        .def_prop_ro("threads", &Engine::threads);
}
