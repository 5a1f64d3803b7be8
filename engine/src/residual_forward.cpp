// The forward pass of a residual block.

#include "residual_pass.h"

namespace skipnets {
namespace residual {
namespace {

class Forward : public Pass {
public:
    Forward(const ResidualBlock& block, const Kernels& kernels, int threads) : Pass(block, false, kernels, threads) {}

    void run() {
        run_training_team(shares_, [this](Team& team, int member) { work(team, member); });
    }

private:
    void work(Team& team, int member) {
        pack_weights(team, member, false);
        team.wait();
        std::vector<Norm> norms;  // Every member merges the same partial sums into statistics of its own.
        for (const Stage& stage : stages_) {
            const bool first = &stage == stages_.data() || (projects() && &stage == &projection());
            const float* x = first ? block_.x : stages_[norms.size() - 1].given->output;
            const Norm* norm = first ? nullptr : &norms.back();
            for_shares(shares_, team, member, [&](int part) { convolve(stage, part, x, norm); });
            team.wait();
            norms.push_back(merge(stage, member));
            team.wait();  // The partial sums have been read by all.
        }
        const Norm& own = norms[block_.branch.size() - 1];
        for_shares(shares_, team, member, [&](int part) { add(part, own, norms.back()); });
    }

    /// A convolution of this share's pieces and, in the share, the statistics of what it makes.
    void convolve(const Stage& stage, int part, const float* x, const Norm* norm) {
        Own& own = own_[part];
        const Size outputs = stage.given->outputs;
        own.moments.clear(outputs);
        for_pieces(stage, part, [&](const Piece& piece, const Piece* next) {
            const BorderedMap map = read_input(stage, piece, x, norm, own);
            look_ahead(stage, piece, next, x, own);
            const Size rows = stage.rows(piece);
            float* out = stage.given->output + stage.first_row(piece) * outputs;
            const bool direct = is_written_directly(outputs);
            const Matrix product = direct ? Matrix{out, outputs} : Matrix{own.product, stage.out_stride};
            if (stage.winograd())
                convolve_tiles(stage, map, piece, stage.out_width, stage.given->inputs, product, false, own);
            else
                convolve_taps(stage, piece, map, product, own);
            for (Size row = 0; row < rows; row += kRowsTogether) {
                const Size some = std::min(kRowsTogether, rows - row);
                training_.copy_with_statistics({direct ? nullptr : out + row * outputs, outputs},
                                               {product.data + row * product.stride, product.stride}, some, outputs,
                                               own.first, own.second);
                own.moments.add(double(some), own.first, own.second);
            }
        });
    }

    /// What the next piece reads and writes.
    void look_ahead(const Stage& stage, const Piece& piece, const Piece* next, const float* x, Own& own) {
        own.ahead.clear();
        if (next == nullptr) return;
        const Size inputs = stage.given->inputs, outputs = stage.given->outputs;
        own.ahead.add(stage.given->output + stage.first_row(*next) * outputs, stage.rows(*next) * outputs);
        own.ahead.add(x + stage.first_in_row(*next) * inputs, stage.in_rows(*next) * inputs);
        own.ahead.spread(products(stage, piece));
    }

    /// 1×1 convolutions, and 3×3 ones at stride 2, tap by tap.
    void convolve_taps(const Stage& stage, const Piece& piece, const BorderedMap& map, const Matrix& out, Own& own) {
        const Panels* panels[9];
        Size offsets[9];
        const int size = stage.given->size;
        for (int tap = 0; tap < size * size; ++tap) {
            panels[tap] = &stage.panels[tap];
            offsets[tap] = (tap / size * map.width + tap % size) * map.stride;
        }
        Size row = 0;
        const Size step = size == 1 ? 1 : stage.given->stride;
        for (Size image = 0; image < piece.images; ++image)
            for (Size y = 0; y < piece.lines(); ++y)
                for (Size x = 0; x < stage.out_width; ++x, ++row) {
                    own.source[row] = map.at(image, y * step, x * step);
                    own.target[row] = out.data + row * out.stride;
                }
        multiply(panels, offsets, size * size, row, own);
    }

    Norm merge(const Stage& stage, int member) {
        const Size channels = stage.given->outputs;
        Moments total;
        total.clear(channels);
        for (const Own& own : own_) total.add(own.moments);
        std::vector<float> mean(channels), variance(channels);
        total.write(mean.data(), variance.data());
        if (member == 0) {
            std::copy(mean.begin(), mean.end(), stage.given->mean);
            std::copy(variance.begin(), variance.end(), stage.given->variance);
        }
        return norm_of(*stage.given, mean.data(), variance.data());
    }

    /// y = relu(norm(last output) + shortcut).
    void add(int part, const Norm& norm, const Norm& projection_norm) {
        const Size outputs = last().given->outputs, width = last().out_width, step = stride(), inputs = channels();
        const float* from = last().given->output;
        const auto columns = [&](Size row, Size rows, Size begin, Size end, const ConstMatrix& added,
                                 const Norm* added_norm) {
            if (begin == end) return;
            training_.add_and_activate({block_.y + row * outputs + begin, outputs},
                                       {from + row * outputs + begin, outputs}, norm.scale.data() + begin,
                                       norm.shift.data() + begin, added,
                                       added_norm ? added_norm->scale.data() : nullptr,
                                       added_norm ? added_norm->shift.data() : nullptr, rows, end - begin);
        };
        if (projects() || (step == 1 && inputs == outputs)) {
            const float* added = projects() ? projection().given->output : block_.x;
            const Range rows = share(last().out_rows(), shares_, part);
            for (Size row = rows.begin; row < rows.end; row += kRowsTogether)
                columns(row, std::min(kRowsTogether, rows.end - row), 0, outputs, {added + row * outputs, outputs},
                        projects() ? &projection_norm : nullptr);
            return;
        }
        const Range lines = share(block_.images * last().out_height, shares_, part);
        const Size before = block_.zeros_before, after = before + inputs;
        for (Size line = lines.begin; line < lines.end; ++line) {
            const Size row = line * width, image = line / last().out_height, y = line % last().out_height * step;
            const ConstMatrix x{block_.x + (image * block_.height + y) * block_.width * inputs, step * inputs};
            columns(row, width, 0, before, {nullptr, 0}, nullptr);
            columns(row, width, before, after, x, nullptr);
            columns(row, width, after, outputs, {nullptr, 0}, nullptr);
        }
    }
};

}  // namespace
}  // namespace residual

void residual_block_forward(const ResidualBlock& block, const Kernels& kernels, int threads) {
    residual::Forward(block, kernels, threads).run();
}

}  // namespace skipnets
