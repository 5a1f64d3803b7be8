// The Python module: networks in, arrays out. The GIL is released while anything computes.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <map>
#include <stdexcept>

#include "engine.h"
#include "isa.h"
#include "training_module.h"

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

/// Where a node reads and writes.
struct Ends {
    int input, output, input_channel, output_channel;
};

Node make_node(Kind kind, const std::string& name, const Ends& ends, int channels) {
    Node node;
    node.kind = kind;
    node.name = name;
    node.input = ends.input;
    node.output = ends.output;
    node.input_channel = ends.input_channel;
    node.output_channel = ends.output_channel;
    node.input_channels = node.output_channels = channels;
    return node;
}

void add_scale(Node& node, const std::optional<Numbers>& scale, const std::optional<Numbers>& shift) {
    if (scale) node.scale = copy(*scale);
    if (shift) node.shift = copy(*shift);
}

Activation activation_of(const std::string& name) {
    static const std::map<std::string, Activation> known = {
        {"", Activation::kNone},
        {"relu", Activation::kRelu},
        {"gelu", Activation::kGelu},
        {"silu", Activation::kSilu},
        {"hard_swish", Activation::kHardSwish},
        {"sigmoid", Activation::kSigmoid},
        {"hard_sigmoid", Activation::kHardSigmoid},
    };
    const auto found = known.find(name);
    if (found == known.end()) throw std::invalid_argument("unknown activation " + name);
    return found->second;
}

/// The square filters of a convolution or of single channels, and how they slide.
void add_filter(Node& node, const Weight& weight, const Numbers& bias, int stride, int dilation,
                std::optional<int> padding) {
    node.kernel = small(weight.shape(2), "kernel");
    if (weight.shape(3) != weight.shape(2)) throw std::invalid_argument(node.name + ": kernels must be square");
    if (dilation < 1 || dilation > 4096 || node.kernel > 15)
        throw std::invalid_argument(node.name + ": kernel or dilation out of range");
    node.stride = stride;
    node.dilation = dilation;
    node.padding = padding.value_or(dilation * (node.kernel / 2));
    node.weight.assign(weight.data(), weight.data() + weight.size());
    node.bias = copy(bias);
}

void add_convolution(Network& network, const std::string& name, int input, int output, const Weight& weight,
                     const Numbers& bias, int input_channel, int output_channel, int groups, int stride, int dilation,
                     std::optional<int> padding, const std::string& activation, bool pooled, int added,
                     int added_channel, int gate, int gate_channel, const std::optional<Numbers>& scale,
                     const std::optional<Numbers>& shift, const std::string& algorithm) {
    Node node = make_node(Kind::kConvolution, name, {input, output, input_channel, output_channel}, 0);
    if (algorithm == "direct")
        node.forced = Algorithm::kDirect;
    else if (algorithm == "winograd2")
        node.forced = Algorithm::kWinograd2;
    else if (algorithm == "winograd4")
        node.forced = Algorithm::kWinograd4;
    else if (algorithm != "auto")
        throw std::invalid_argument(name + ": unknown algorithm " + algorithm);
    node.output_channels = small(weight.shape(0), "output channels");
    if (groups < 1) throw std::invalid_argument(name + ": groups out of range");
    node.input_channels = small(weight.shape(1) * std::size_t(groups), "input channels");
    add_filter(node, weight, bias, stride, dilation, padding);
    node.groups = groups;
    node.activation = activation_of(activation);
    node.pooled = pooled;
    node.added = added;
    node.added_channel = added_channel;
    node.gate = gate;
    node.gate_channel = gate_channel;
    add_scale(node, scale, shift);
    network.nodes.push_back(std::move(node));
}

void add_depthwise(Network& network, const std::string& name, int input, int output, const Weight& weight,
                   const Numbers& bias, int input_channel, int output_channel, int stride, int dilation,
                   std::optional<int> padding, const std::string& activation, const std::optional<Numbers>& scale,
                   const std::optional<Numbers>& shift, float eps) {
    const int channels = small(weight.shape(0), "channels");
    Node node = make_node(Kind::kDepthwise, name, {input, output, input_channel, output_channel}, channels);
    if (weight.shape(1) != 1) throw std::invalid_argument(name + ": each channel has one filter");
    add_filter(node, weight, bias, stride, dilation, padding);
    node.activation = activation_of(activation);
    node.eps = eps;
    add_scale(node, scale, shift);
    network.nodes.push_back(std::move(node));
}

void add_layer_norm(Network& network, const std::string& name, int input, int output, int channels,
                    const Numbers& scale, const Numbers& shift, float eps, int input_channel, int output_channel,
                    const std::string& activation) {
    Node node = make_node(Kind::kLayerNorm, name, {input, output, input_channel, output_channel}, channels);
    node.activation = activation_of(activation);
    node.eps = eps;
    add_scale(node, scale, shift);
    network.nodes.push_back(std::move(node));
}

void add_group_norm(Network& network, const std::string& name, int input, int output, int channels, int groups,
                    const Numbers& scale, const Numbers& shift, float eps, const std::string& moments,
                    int input_channel) {
    static const std::map<std::string, Moments> known = {
        {"centered", Moments::kCentered}, {"variance", Moments::kVariance}, {"squares", Moments::kSquares}};
    const auto found = known.find(moments);
    if (found == known.end()) throw std::invalid_argument(name + ": unknown moments " + moments);
    Node node = make_node(Kind::kGroupNorm, name, {input, output, input_channel, 0}, channels);
    if (channels < 0 || channels > 1 << 24) throw std::invalid_argument(name + ": channels out of range");
    node.output_channels = 2 * channels;
    node.moments = found->second;
    node.groups = groups;
    node.eps = eps;
    add_scale(node, scale, shift);
    network.nodes.push_back(std::move(node));
}

void add_along_channels(Network& network, const std::string& name, int input, int output, int channels,
                        const Numbers& weight, int input_channel, int output_channel, const std::string& activation) {
    Node node = make_node(Kind::kAlongChannels, name, {input, output, input_channel, output_channel}, channels);
    node.kernel = small(weight.size(), "kernel");
    node.weight = copy(weight);
    node.activation = activation_of(activation);
    network.nodes.push_back(std::move(node));
}

void add_elementwise(Network& network, const std::string& name, int input, int output, int channels,
                     int input_channel, int output_channel, const std::optional<Numbers>& scale,
                     const std::optional<Numbers>& shift, int added, int added_channel, int gate, int gate_channel,
                     int gate_shift_channel, const std::optional<Numbers>& slope,
                     const std::optional<Numbers>& floor, const std::string& activation) {
    Node node = make_node(Kind::kElementwise, name, {input, output, input_channel, output_channel}, channels);
    add_scale(node, scale, shift);
    if (slope) node.slope = copy(*slope);
    if (floor) node.floor = copy(*floor);
    node.added = added;
    node.added_channel = added_channel;
    node.gate = gate;
    node.gate_channel = gate_channel;
    node.gate_shift_channel = gate_shift_channel;
    node.activation = activation_of(activation);
    network.nodes.push_back(std::move(node));
}

void add_pool(Network& network, const std::string& name, int input, int output, int channels, int input_channel,
              int output_channel, const std::string& mode, int kernel, int stride, int padding) {
    static const std::map<std::string, Kind> known = {
        {"max", Kind::kMaxPool}, {"average", Kind::kAveragePool}, {"cell", Kind::kCellMean}, {"blur", Kind::kBlur}};
    const auto found = known.find(mode);
    if (found == known.end()) throw std::invalid_argument(name + ": unknown mode " + mode);
    Node node = make_node(found->second, name, {input, output, input_channel, output_channel}, channels);
    node.kernel = kernel;
    node.stride = stride;
    node.padding = padding;
    network.nodes.push_back(std::move(node));
}

void add_subsample(Network& network, const std::string& name, int input, int output, int channels, int input_channel,
                   int output_channel, int stride, int before, int after) {
    Node node = make_node(Kind::kSubsample, name, {input, output, input_channel, output_channel}, channels);
    if (channels < 0 || channels > 1 << 24 || before < 0 || before > 1 << 24 || after < 0 || after > 1 << 24)
        throw std::invalid_argument(name + ": channels out of range");
    node.output_channels = before + channels + after;
    node.before = before;
    node.stride = stride;
    network.nodes.push_back(std::move(node));
}

void add_mean(Network& network, const std::string& name, int input, int output, int channels, int input_channel,
              int output_channel, const std::optional<Numbers>& scale, const std::optional<Numbers>& shift) {
    Node node = make_node(Kind::kMean, name, {input, output, input_channel, output_channel}, channels);
    add_scale(node, scale, shift);
    network.nodes.push_back(std::move(node));
}

void add_max(Network& network, const std::string& name, int input, int output, int channels, int input_channel,
             int output_channel) {
    network.nodes.push_back(make_node(Kind::kMax, name, {input, output, input_channel, output_channel}, channels));
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
    add_training(m);
    add_stem_and_transition(m);

    nb::class_<Network>(m, "Network")
        .def(nb::init<>())
        .def("add_value", &add_value, "channels"_a)
        .def("add_convolution", &add_convolution, "name"_a, "input"_a, "output"_a, "weight"_a, "bias"_a, nb::kw_only(),
             "input_channel"_a = 0, "output_channel"_a = 0, "groups"_a = 1, "stride"_a = 1, "dilation"_a = 1,
             "padding"_a = nb::none(), "activation"_a = "", "pooled"_a = false, "added"_a = -1, "added_channel"_a = 0,
             "gate"_a = -1, "gate_channel"_a = 0, "scale"_a = nb::none(), "shift"_a = nb::none(),
             "algorithm"_a = "auto")
        .def("add_depthwise", &add_depthwise, "name"_a, "input"_a, "output"_a, "weight"_a, "bias"_a, nb::kw_only(),
             "input_channel"_a = 0, "output_channel"_a = 0, "stride"_a = 1, "dilation"_a = 1,
             "padding"_a = nb::none(), "activation"_a = "", "scale"_a = nb::none(), "shift"_a = nb::none(),
             "eps"_a = 0.0f)
        .def("add_layer_norm", &add_layer_norm, "name"_a, "input"_a, "output"_a, "channels"_a, "scale"_a, "shift"_a,
             nb::kw_only(), "eps"_a, "input_channel"_a = 0, "output_channel"_a = 0, "activation"_a = "")
        .def("add_group_norm", &add_group_norm, "name"_a, "input"_a, "output"_a, "channels"_a, "groups"_a, "scale"_a,
             "shift"_a, nb::kw_only(), "eps"_a, "moments"_a = "centered", "input_channel"_a = 0)
        .def("add_along_channels", &add_along_channels, "name"_a, "input"_a, "output"_a, "channels"_a, "weight"_a,
             nb::kw_only(), "input_channel"_a = 0, "output_channel"_a = 0, "activation"_a = "")
        .def("add_elementwise", &add_elementwise, "name"_a, "input"_a, "output"_a, "channels"_a, nb::kw_only(),
             "input_channel"_a = 0, "output_channel"_a = 0, "scale"_a = nb::none(), "shift"_a = nb::none(),
             "added"_a = -1, "added_channel"_a = 0, "gate"_a = -1, "gate_channel"_a = 0, "gate_shift_channel"_a = -1,
             "slope"_a = nb::none(), "floor"_a = nb::none(), "activation"_a = "")
        .def("add_pool", &add_pool, "name"_a, "input"_a, "output"_a, "channels"_a, nb::kw_only(),
             "input_channel"_a = 0, "output_channel"_a = 0, "mode"_a, "kernel"_a, "stride"_a, "padding"_a = 0)
        .def("add_subsample", &add_subsample, "name"_a, "input"_a, "output"_a, "channels"_a, nb::kw_only(),
             "input_channel"_a = 0, "output_channel"_a = 0, "stride"_a = 1, "before"_a = 0, "after"_a = 0)
        .def("add_mean", &add_mean, "name"_a, "input"_a, "output"_a, "channels"_a, nb::kw_only(),
             "input_channel"_a = 0, "output_channel"_a = 0, "scale"_a = nb::none(), "shift"_a = nb::none())
        .def("add_max", &add_max, "name"_a, "input"_a, "output"_a, "channels"_a, nb::kw_only(), "input_channel"_a = 0,
             "output_channel"_a = 0)
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
        .def("value_bytes", &Engine::value_bytes, "height"_a, "width"_a, "images"_a)
        .def("measure", &measure, "height"_a, "width"_a, "images"_a, "rounds"_a)
        .def_prop_ro("isa", [](const Engine& engine) { return std::string(engine.kernels().name); })
        .def_prop_ro("threads", &Engine::threads);
}
