#include "network.h"

#include <cstdint>
#include <stdexcept>

namespace skipnets {
namespace {

constexpr int kMaxChannels = 1 << 24;

void require(bool holds, const std::string& who, const char* what) {
    if (!holds) throw std::invalid_argument(who + ": " + what);
}

void check_node(const Node& node, const std::vector<int>& channels, const std::vector<bool>& written) {
    const auto is_value = [&](int value) { return value >= 0 && value < int(channels.size()); };
    const auto has = [&](int value, int first, int count) {
        return count > 0 && first >= 0 && first <= channels[value] - count;
    };
    const std::string& who = node.name;
    require(is_value(node.input) && is_value(node.output) && node.output != 0, who, "no such value");
    require(written[node.input], who, "reads a value that nothing has written yet");
    require(has(node.input, node.input_channel, node.input_channels) &&
                has(node.output, node.output_channel, node.output_channels),
            who, "channels outside of the value");
    const bool adds = node.kind == Kind::kConvolution || node.kind == Kind::kElementwise;
    const bool activates = adds || node.kind == Kind::kDepthwise || node.kind == Kind::kLayerNorm ||
                           node.kind == Kind::kAlongChannels;
    require(node.activation == Activation::kNone || activates, who, "this step has no activation");
    require(node.gate == -1 ||
                (adds && is_value(node.gate) && written[node.gate] && node.gate != node.output &&
                 has(node.gate, node.gate_channel, node.input_channels) &&
                 (node.gate_shift_channel == -1 ||
                  (node.kind == Kind::kElementwise && has(node.gate, node.gate_shift_channel, node.input_channels)))),
            who, "factors must be another value with these channels");
    const bool groups = node.kind == Kind::kConvolution || node.kind == Kind::kGroupNorm;
    require(node.groups == 1 || (groups && node.groups > 0 && node.input_channels % node.groups == 0), who,
            "groups must divide the channels");
    const bool norms = node.kind == Kind::kLayerNorm || node.kind == Kind::kGroupNorm;
    require(norms ? node.eps > 0 : node.eps == 0 || (node.kind == Kind::kDepthwise && node.eps > 0), who,
            "eps must be positive, and only norms have one");
    require((norms || node.kind == Kind::kDepthwise) ? (node.eps > 0) == !node.scale.empty() : true, who,
            "norms have scale and shift");
    const bool apart = node.input_channel + node.input_channels <= node.output_channel ||
                       node.output_channel + node.output_channels <= node.input_channel;
    require(node.input != node.output || (node.kind == Kind::kSubsample && apart), who, "writes over what it reads");
    require(node.scale.size() == node.shift.size(), who, "scale and shift of different sizes");
    require(node.scale.empty() || node.scale.size() == std::size_t(node.input_channels), who,
            "scale and shift must have one number an input channel");
    for (const auto* numbers : {&node.slope, &node.floor})
        require(numbers->empty() || (node.kind == Kind::kElementwise && numbers->size() == std::size_t(node.input_channels)),
                who, "only elementwise steps have slopes and floors, one an input channel");
    require(node.moments == Moments::kCentered || node.kind == Kind::kGroupNorm, who, "only group norms have moments");
    require(node.added == -1 || (adds && is_value(node.added) && written[node.added] && node.added != node.output &&
                                 has(node.added, node.added_channel, node.output_channels)),
            who, "what is added must be another value with these channels");
    require(node.stride >= 1 && node.stride <= 16, who, "stride out of range");
    require(node.kind == Kind::kConvolution || !node.pooled, who, "only convolutions pool");
    switch (node.kind) {
        case Kind::kConvolution: {
            require(node.kernel >= 1 && node.kernel <= 15, who, "kernel must be from 1 to 15");
            require(node.dilation >= 1 && node.dilation <= 4096 && node.padding >= 0 &&
                        node.padding <= node.dilation * (node.kernel - 1),
                    who, "dilation or padding out of range");
            require(!node.forced || *node.forced == Algorithm::kDirect || node.suits_winograd(), who,
                    "only 3×3 convolutions of stride 1 can be forced to Winograd's algorithm");
            require(node.output_channels % node.groups == 0, who, "groups must divide the channels");
            const std::uint64_t weights = std::uint64_t(node.output_channels) *
                                          std::uint64_t(node.input_channels / node.groups) *
                                          std::uint64_t(node.kernel * node.kernel);
            require(node.weight.size() == weights, who, "weight of a wrong size");
            require(node.bias.size() == std::size_t(node.output_channels), who, "bias of a wrong size");
            require(node.scale.empty() || node.kernel == 1, who, "only 1×1 convolutions take a scale and shift");
            require(!node.pooled || (node.kernel == 1 && node.stride == 1 && !node.scale.empty() && node.groups == 1),
                    who, "only activated 1×1 convolutions of stride 1 pool");
            require(node.gate == -1 || (node.kernel == 1 && node.groups == 1 && node.scale.empty()), who,
                    "only plain 1×1 convolutions take factors");
            break;
        }
        case Kind::kDepthwise:
            require(node.kernel >= 1 && node.kernel <= 15 && node.dilation >= 1 && node.dilation <= 4096 &&
                        node.padding >= 0 && node.padding <= node.dilation * (node.kernel - 1),
                    who, "kernel, dilation or padding out of range");
            require(node.output_channels == node.input_channels, who, "input and output channels do not fit");
            require(node.weight.size() == std::size_t(node.input_channels) * node.kernel * node.kernel, who,
                    "weight of a wrong size");
            require(node.bias.size() == std::size_t(node.output_channels), who, "bias of a wrong size");
            break;
        case Kind::kAlongChannels:
            require(node.kernel >= 1 && node.kernel <= 1 << 16 && node.kernel % 2 == 1, who,
                    "kernel must be odd and not too large");
            require(node.output_channels == node.input_channels, who, "input and output channels do not fit");
            require(node.weight.size() == std::size_t(node.kernel), who, "weight of a wrong size");
            break;
        case Kind::kGroupNorm:
            require(node.output_channels == 2 * node.input_channels, who, "input and output channels do not fit");
            break;
        case Kind::kMaxPool:
        case Kind::kAveragePool:
            // Then every window sees a pixel.
            require(node.kernel >= 1 && node.kernel <= 15 && node.padding >= 0 && node.padding <= node.kernel / 2, who,
                    "window or padding out of range");
            require(node.output_channels == node.input_channels, who, "input and output channels do not fit");
            break;
        case Kind::kSubsample:
            require(node.before >= 0 && node.before <= node.output_channels - node.input_channels, who,
                    "input and output channels do not fit");
            break;
        case Kind::kElementwise:
        case Kind::kCellMean:
        case Kind::kBlur:
        case Kind::kLayerNorm:
        case Kind::kMean:
        case Kind::kMax:
            require(node.output_channels == node.input_channels, who, "input and output channels do not fit");
            break;
    }
}

}  // namespace

void Network::check() const {
    require(!nodes.empty() && !channels.empty() && channels.size() < (1u << 20), "network", "empty or too large");
    for (int count : channels) require(count >= 1 && count <= kMaxChannels, "network", "channels out of range");
    std::vector<bool> written(channels.size(), false);
    written[0] = true;
    for (const Node& node : nodes) {
        check_node(node, channels, written);
        written[node.output] = true;
    }
    const auto is_written = [&](int value) {
        return value > 0 && value < int(channels.size()) && written[value];
    };
    require(is_written(features) && (logits == -1 || is_written(logits)), "network", "no features or logits");
}

}  // namespace skipnets
