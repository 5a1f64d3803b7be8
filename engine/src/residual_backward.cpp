// The backward pass of a residual block.

#include "residual_pass.h"

namespace skipnets {
namespace residual {
namespace {

class Backward : public Pass {
public:
    Backward(const ResidualBlock& block, const ResidualGradients& gradients, const Kernels& kernels, int threads)
        : Pass(block, true, kernels, threads), gradients_(gradients) {}

    void run() {
        run_training_team(shares_, [this](Team& team, int member) { work(team, member); });
    }

private:
    void work(Team& team, int member) {
        pack_weights(team, member, true);
        std::vector<Norm> norms;
        for (const Stage& stage : stages_)
            norms.push_back(norm_of(*stage.given, stage.given->mean, stage.given->variance));
        for_shares(shares_, team, member, [&](int part) { through_sum(part, norms); });
        team.wait();
        GradientSums sums;
        const auto line_of = [&](std::size_t number, GradientSums Own::* which) {
            const Stage& stage = stages_[number];
            sums.clear(stage.given->outputs);
            for (const Own& own : own_) sums.add(own.*which);
            const NormedConvolutionGradients& out = gradients_of(number);
            if (member == 0) sums.write(norms[number], out.gamma, out.beta);
            return NormLine(stage.given->gamma, norms[number], sums, stage.out_rows());
        };
        const std::size_t count = block_.branch.size();
        NormLine line = line_of(count - 1, &Own::sums);
        NormLine projection_line = projects() ? line_of(count, &Own::projection_sums) : line;
        team.wait();  // The sums have been read by all.
        for (std::size_t number = count; number-- > 0;) {
            const float* gradient = number + 1 == count ? gradients_.sum : gradients_.outputs[number];
            for_shares(shares_, team, member, [&](int part) {
                through_convolution(stages_[number], part, number == 0 ? nullptr : &norms[number - 1], gradient, line,
                                    number == 0 ? gradients_.x : gradients_.outputs[number - 1],
                                    number == 0 && is_added());
            });
            team.wait();
            reduce_weight(stages_[number], gradients_of(number), team, member);
            if (number > 0) line = line_of(number - 1, &Own::sums);
            team.wait();
        }
        if (projects()) {
            for_shares(shares_, team, member, [&](int part) {
                through_convolution(projection(), part, nullptr, gradients_.sum, projection_line, gradients_.x, true);
            });
            team.wait();
            reduce_weight(projection(), gradients_of(count), team, member);
        } else if (gradients_.x != nullptr && !is_added()) {
            for_shares(shares_, team, member, [&](int part) { add_shortcut(part); });
        }
    }

    const NormedConvolutionGradients& gradients_of(std::size_t number) const {
        return number < gradients_.branch.size() ? gradients_.branch[number] : gradients_.projection[0];
    }

    /// Whether the gradient of x is that of the sum, to which the branch's is added.
    bool is_added() const { return gradients_.x == gradients_.sum; }

    /// Back through the last ReLU: the gradient of the sum, and the sums that the norms before it need.
    void through_sum(int part, const std::vector<Norm>& norms) {
        Own& own = own_[part];
        const Size outputs = last().given->outputs;
        own.sums.clear(outputs);
        own.projection_sums.clear(projects() ? outputs : 0);
        const Range mine = share(last().out_rows(), shares_, part);
        for (Size row = mine.begin; row < mine.end; row += kRowsTogether) {
            const Size rows = std::min(kRowsTogether, mine.end - row), offset = row * outputs;
            const Matrix sum{gradients_.sum + offset, outputs};
            const float* mean = norms[block_.branch.size() - 1].mean.data();
            training_.mask_by_output(sum, {gradients_.y + offset, outputs}, {block_.y + offset, outputs},
                                     {last().given->output + offset, outputs}, rows, outputs, mean, own.first,
                                     own.second);
            own.sums.add(own.first, own.second);
            if (!projects()) continue;
            training_.sum_products(sum, {projection().given->output + offset, outputs}, rows, outputs,
                                   norms.back().mean.data(), nullptr, own.second);
            own.projection_sums.add(own.first, own.second);
        }
    }

    /// Back through a norm, a convolution and the ReLU and norm before it, if there are such: the share's part of the
    /// weights' gradient, the gradient before the convolution (masked by the ReLU), and the sums that the norm needs.
    void through_convolution(const Stage& stage, int part, const Norm* before, const float* gradient,
                             const NormLine& line, float* out, bool adds) {
        Own& own = own_[part];
        const Size inputs = stage.given->inputs;
        const float* x = before == nullptr ? block_.x : (&stage - 1)->given->output;
        std::fill(own.filter, own.filter + stage.filter_floats, 0.0f);
        own.sums.clear(before == nullptr ? 0 : inputs);
        for_pieces(stage, part, [&](const Piece& piece, const Piece* next) {
            const BorderedMap in = read_input(stage, piece, x, before, own);
            const BorderedMap incoming = read_gradient(stage, piece, gradient, line, own);
            look_ahead(stage, piece, next, x, gradient, out, own);
            const bool gathers = stage.given->size == 1 && stage.given->stride > 1;
            const bool added =
                adds && out != nullptr && before == nullptr && stage.winograd() && inputs == whole(inputs);
            const bool direct = added || (out != nullptr && !adds && !gathers && is_written_directly(inputs));
            const Size first = stage.first_in_row(piece);
            const Matrix product =
                direct ? Matrix{out + first * inputs, inputs} : Matrix{own.product, stage.in_stride};
            add_weight_gradient(stage, piece, in, incoming, own);
            if (out == nullptr) return;
            if (stage.winograd())
                convolve_tiles(stage, incoming, piece, stage.width, stage.given->outputs, product, added, own);
            else
                convolve_back(stage, piece, incoming, product, own);
            if (direct && before == nullptr) return;
            const Size rows = stage.in_rows(piece);
            if (gathers) {
                if (!adds) std::fill_n(out + first * inputs, rows * inputs, 0.0f);  // of pixels that are not read
                for_input_lines(stage, piece, [&](Size from, Size row, Size count, Size step) {
                    write(out, row, step, product, from, count, inputs, before, x, adds, own);
                });
            } else {
                write(out, first, 1, product, 0, rows, inputs, before, x, adds, own);
            }
        });
    }

    /// What the next piece reads and writes.
    void look_ahead(const Stage& stage, const Piece& piece, const Piece* next, const float* x, const float* gradient,
                    const float* out, Own& own) {
        own.ahead.clear();
        if (next == nullptr) return;
        const Size inputs = stage.given->inputs, outputs = stage.given->outputs;
        const Size first = stage.first_in_row(*next) * inputs, read = stage.in_rows(*next) * inputs;
        const Size begin = stage.first_row(*next) * outputs, made = stage.rows(*next) * outputs;
        if (out != nullptr) own.ahead.add(out + first, read);
        own.ahead.add(stage.given->output + begin, made);
        own.ahead.add(gradient + begin, made);
        own.ahead.add(x + first, read);
        own.ahead.spread(products(stage, piece));
    }

    /// Writes, or adds, rows of a product to the gradient before a convolution.
    void write(float* out, Size row, Size step, const Matrix& product, Size from, Size count, Size channels,
               const Norm* before, const float* x, bool adds, Own& own) {
        for (Size done = 0; done < count; done += kRowsTogether) {
            const Size rows = std::min(kRowsTogether, count - done), offset = (row + done * step) * channels;
            const Matrix to{out + offset, step * channels};
            const ConstMatrix made{product.data + (from + done) * product.stride, product.stride};
            if (before == nullptr) {
                training_.add(to, made, rows, channels, adds);
                continue;
            }
            training_.mask(to, made, {x + offset, step * channels}, rows, channels, before->scale.data(),
                           before->shift.data(), before->mean.data(), own.first, own.second);
            own.sums.add(own.first, own.second);
        }
    }

    /// The gradient behind a convolution, back through its norm, with zeros around that of 3×3 convolutions.
    BorderedMap read_gradient(const Stage& stage, const Piece& piece, const float* gradient, const NormLine& line,
                              Own& own) {
        const Size channels = stage.given->outputs;
        const auto read = [&](const Matrix& to, Size row, Size count) {
            training_.combine(to, {gradient + row * channels, channels},
                              {stage.given->output + row * channels, channels}, count, channels, line.scale.data(),
                              line.slope.data(), line.offset.data());
        };
        if (stage.given->size == 1) {
            const BorderedMap map{own.out_map, stage.out_stride, stage.out_width, piece.lines()};
            read({map.data, map.stride}, stage.first_row(piece), stage.rows(piece));
            return map;
        }
        const BorderedMap map{own.out_map, stage.out_stride, stage.out_map_width(), stage.out_map_lines(piece.lines())};
        fill(map, piece, piece.begin - 1, stage.out_height, stage.out_width, read);
        return map;
    }

    /// The gradient before a 1×1 convolution, or a 3×3 one at stride 2: a row of the product for each pixel (of those
    /// that a 1×1 convolution reads).
    void convolve_back(const Stage& stage, const Piece& piece, const BorderedMap& map, const Matrix& out, Own& own) {
        const Panels* panels[9];
        Size offsets[9];
        if (stage.given->size == 1) {
            const Size rows = stage.rows(piece);
            for (Size row = 0; row < rows; ++row) {
                own.source[row] = map.data + row * map.stride;
                own.target[row] = out.data + row * out.stride;
            }
            panels[0] = &stage.panels[0], offsets[0] = 0;
            return multiply(panels, offsets, 1, rows, own);
        }
        // Lines of the input with even numbers meet only the kernel's middle line, others the first one, of the output's
        // next line, and the last one; columns likewise.
        const Size lines = stage.in_lines(piece);
        for (int odd_y = 0; odd_y < 2; ++odd_y)
            for (int odd_x = 0; odd_x < 2; ++odd_x) {
                int taps = 0;
                for (int y = odd_y ? 0 : 1; y < 3; y += 2)
                    for (int x = odd_x ? 0 : 1; x < 3; x += 2, ++taps) {
                        panels[taps] = &stage.panels[3 * y + x];
                        offsets[taps] = ((y == 0) * map.width + (x == 0)) * map.stride;
                    }
                Size row = 0;
                for (Size image = 0; image < piece.images; ++image)
                    for (Size y = odd_y; y < lines; y += 2)
                        for (Size x = odd_x; x < stage.width; x += 2, ++row) {
                            own.source[row] = map.at(image, y / 2 + 1, x / 2 + 1);
                            own.target[row] = out.data + ((image * lines + y) * stage.width + x) * out.stride;
                        }
                if (row > 0) multiply(panels, offsets, taps, row, own);
            }
    }

    /// Adds the gradient of a shortcut that leaves pixels out, or adds channels of zeros, to x's.
    void add_shortcut(int part) {
        const Size outputs = last().given->outputs, inputs = channels(), step = stride(), width = last().out_width;
        const Range lines = share(block_.images * last().out_height, shares_, part);
        for (Size line = lines.begin; line < lines.end; ++line) {
            const Size image = line / last().out_height, y = line % last().out_height * step;
            const ConstMatrix from{gradients_.sum + line * width * outputs + block_.zeros_before, outputs};
            const Matrix to{gradients_.x + (image * block_.height + y) * block_.width * inputs, step * inputs};
            training_.add(to, from, width, inputs, true);
        }
    }

    const ResidualGradients& gradients_;
};

}  // namespace
}  // namespace residual

void residual_block_backward(const ResidualBlock& block, const ResidualGradients& gradients, const Kernels& kernels,
                             int threads) {
    residual::Backward(block, gradients, kernels, threads).run();
}

}  // namespace skipnets
