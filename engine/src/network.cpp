#include "network.h"

#include <cstdint>
#include <stdexcept>

namespace skipnets {
namespace {

constexpr int kMostChannels = 1 << 24;

void require(bool holds, const std::string& who, const char* what) {
    if (!holds) throw std::invalid_argument(who + ": " + what);
}

void check_node(const Node& node, const std::vector<int>& channels, const std::vector<bool>& written) {
    const auto is_value = [&](int value) { return value >= 0 && value < int(channels.size()); };
    const std::string& who = node.name;
    require(is_value(node.input) && is_value(node.output) && node.output != 0, who, "no such value");
    require(written[node.input], who, "reads a value that nothing has written yet");
    require(node.input_channels > 0 && node.output_channels > 0 && node.input_channel >= 0 &&
                node.output_channel >= 0 && node.input_channel <= channels[node.input] - node.input_channels &&
                node.output_channel <= channels[node.output] - node.output_channels,
            who, "channels outside of the value");
    require(node.input != node.output, who, "writes over what it reads");
    require(node.scale.size() == node.shift.size(), who, "scale and shift of different sizes");
    require(node.scale.empty() || node.scale.size() == std::size_t(node.input_channels), who,
            "scale and shift must have one number an input channel");
    if (node.kind == Kind::kConvolution) {
        require(node.kernel >= 1 && node.kernel <= 15 && node.kernel % 2 == 1, who, "kernel must be odd, up to 15");
        require(node.stride >= 1 && node.stride <= 16 && node.dilation >= 1 && node.dilation <= 4096 &&
                    node.padding == node.dilation * (node.kernel / 2),
                who, "stride, dilation or padding out of range");
        require(!node.forced || *node.forced == Algorithm::kDirect || node.suits_winograd(), who,
                "only 3×3 convolutions of stride 1 can be forced to Winograd's algorithm");
        const std::uint64_t weights = std::uint64_t(node.output_channels) * std::uint64_t(node.input_channels) *
                                      std::uint64_t(node.kernel * node.kernel);
        require(node.weight.size() == weights, who, "weight of a wrong size");
        require(node.bias.size() == std::size_t(node.output_channels), who, "bias of a wrong size");
        require(node.scale.empty() || node.kernel == 1, who, "only 1×1 convolutions take a scale and shift");
        require(!node.pooled || (node.kernel == 1 && node.stride == 1 && !node.scale.empty()), who,
                "only activated 1×1 convolutions of stride 1 pool");
        require(node.added == -1 || (is_value(node.added) && written[node.added] && node.added != node.output &&
                                     channels[node.added] == node.output_channels && node.output_channel == 0),
                who, "what is added must be another value of the same channels");
    } else {
        require(node.added == -1 && !node.pooled, who, "only convolutions add and pool");
        require(node.kind == Kind::kSubsample ? node.output_channels >= node.input_channels
                                              : node.output_channels == node.input_channels,
                who, "input and output channels do not fit");
        require(node.kind != Kind::kActivation || !node.scale.empty(), who, "an activation needs scale and shift");
        require(node.kind != Kind::kSubsample || (node.stride >= 1 && node.stride <= 16), who, "stride out of range");
        require(node.input_channel == 0 && node.output_channel == 0, who,
                "only convolutions begin inside of a value");
    }
}

}  // namespace

void Network::check() const {
    require(!nodes.empty() && !channels.empty() && channels.size() < (1u << 20), "network", "empty or too large");
    for (int count : channels) require(count >= 1 && count <= kMostChannels, "network", "channels out of range");
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
