// Says which class an image shows: predict FOLDER HEIGHT WIDTH < pixels
// FOLDER is what `skipnets export MODEL --format openvino` wrote; the pixels are height × width × 3 bytes of RGB.
#include <openvino/openvino.hpp>

#include <algorithm>
#include <cstdint>
#include <iostream>
#include <string>
#include <vector>

int main(int argc, char** argv) {
    if (argc != 4) {
        std::cerr << "usage: predict FOLDER HEIGHT WIDTH < pixels\n";
        return 2;
    }
    const std::size_t height = std::stoul(argv[2]), width = std::stoul(argv[3]);
    std::vector<std::uint8_t> pixels(height * width * 3);
    if (!std::cin.read(reinterpret_cast<char*>(pixels.data()), static_cast<std::streamsize>(pixels.size()))) {
        std::cerr << "too few pixels\n";
        return 2;
    }

    // Without the hint, OpenVINO computes in bfloat16 where the processor can, and the numbers change.
    ov::Core core;
    auto model = core.compile_model(std::string(argv[1]) + "/model.xml", "CPU",
                                    ov::hint::inference_precision(ov::element::f32));
    auto request = model.create_infer_request();

    // The graph takes planes: all red values, then all green, then all blue. It normalizes by itself.
    ov::Tensor images(ov::element::u8, {1, 3, height, width});
    for (std::size_t channel = 0; channel < 3; ++channel)
        for (std::size_t at = 0; at < height * width; ++at)
            images.data<std::uint8_t>()[channel * height * width + at] = pixels[3 * at + channel];

    request.set_tensor("images", images);
    request.infer();
    const ov::Tensor logits = request.get_tensor("logits");
    const float* first = logits.data<float>();
    std::cout << std::max_element(first, first + logits.get_size()) - first << "\n";
}
