#include "transition.h"

#include <algorithm>
#include <vector>

#include "openmp.h"
#include "training_norm.h"
#include "training_products.h"
#include "training_scratch.h"

namespace skipnets {
namespace {

// Pooled pixels of which sums are taken in single precision: four times as many of the input.
constexpr Size kSummedTogether = 64;

/// What a thread keeps for itself.
struct Own {
    float *pooled, *incoming, *product, *packed;
    float *first, *second;  // a number a channel
    float* weight;          // the share's gradient of the weights, (K, C), padded
    GradientSums sums;
};

class Pass {
public:
    Pass(const Transition& transition, const Kernels& kernels, int threads)
        : given_(transition), kernels_(kernels), training_(*kernels.training), shares_(threads),
          height_(transition.height / 2), width_(transition.width / 2),
          in_stride_(padded(transition.inputs, kernels.lanes)), out_stride_(padded(transition.outputs, kernels.lanes)),
          scratch_(thread_scratch()), own_(std::size_t(threads)) {
        norm_.set(transition.mean, transition.variance, transition.gamma, transition.beta, transition.eps,
                  transition.inputs);
        const Size pixels = std::clamp<Size>(kScratchFloats / in_stride_, 4 * kMaxRows, 16 * kMaxRows);
        lines_ = std::max<Size>(pixels / width_, 1);
    }

protected:
    Size total_lines() const { return given_.images * height_; }

    /// Where the pixels of a pooled line begin in x.
    Size offset(Size line) const {
        return (line / height_ * given_.height + line % height_ * 2) * given_.width * given_.inputs;
    }

    Size x_line() const { return given_.width * given_.inputs; }

    /// Calls work(first pooled line, lines) for the chunks of a share.
    template <class Work>
    void for_chunks(int part, Work work) {
        const Range mine = share(total_lines(), shares_, part);
        const Size chunks = ceil_div(mine.size(), lines_);
        for (Size chunk = 0; chunk < chunks; ++chunk) {
            const Range range = share(mine.size(), chunks, chunk);
            work(mine.begin + range.begin, range.size());
        }
    }

    /// relu(norm(x)) of some lines, pooled.
    Matrix pool(Size first, Size lines, Own& own) {
        for (Size line = 0; line < lines; ++line)
            training_.pool_activated({own.pooled + line * width_ * in_stride_, in_stride_},
                                     {given_.x + offset(first + line), given_.inputs}, x_line(), width_, given_.inputs,
                                     norm_.scale.data(), norm_.shift.data());
        return {own.pooled, in_stride_};
    }

    void make_scratch(const Panels& panels, Size product_stride) {
        const Size pixels = lines_ * width_;
        for (Own& own : own_) {
            own.pooled = scratch_.floats(pixels * in_stride_);
            own.product = scratch_.floats(pixels * product_stride);
            own.packed =
                scratch_.floats(pixels * round_up(panels.depth, kernels_.lanes));
        }
    }

    const Transition& given_;
    const Kernels& kernels_;
    const TrainingKernels& training_;
    const int shares_;
    const Size height_, width_;  // of the pooled maps
    const Size in_stride_, out_stride_;
    Size lines_;                 // of a chunk
    Norm norm_;
    Scratch& scratch_;
    std::vector<Own> own_;
};

class Forward : public Pass {
public:
    Forward(const Transition& transition, float* y, const Kernels& kernels, int threads)
        : Pass(transition, kernels, threads), y_(y),
          panels_(make_panels(scratch_, transition.inputs, transition.outputs, kernels.lanes)) {
        make_scratch(panels_, out_stride_);
    }

    void run() {
        run_training_team(shares_, [this](Team& team, int member) { work(team, member); });
    }

private:
    void work(Team& team, int member) {
        const Size inputs = given_.inputs, outputs = given_.outputs;
        const Range mine = share(outputs, team.size(), member);
        for (Size o = mine.begin; o < mine.end; ++o) {
            float* to = panels_.column(o);
            const Size step = panels_.step(o);
            for (Size c = 0; c < inputs; ++c) to[c * step] = given_.weight[o * inputs + c];
        }
        team.wait();
        for_shares(shares_, team, member, [&](int part) {
            Own& own = own_[std::size_t(part)];
            for_chunks(part, [&](Size first, Size lines) {
                const Size rows = lines * width_;
                const Matrix product{own.product, out_stride_};
                multiply_panels(kernels_, pool(first, lines, own), rows, panels_, product, own.packed);
                training_.add({y_ + first * width_ * outputs, outputs}, product, rows, outputs, false);
            });
        });
    }

    float* const y_;
    const Panels panels_;
};

class Backward : public Pass {
public:
    Backward(const Transition& transition, const TransitionGradients& gradients, const Kernels& kernels, int threads)
        : Pass(transition, kernels, threads), gradients_(gradients),
          panels_(make_panels(scratch_, transition.outputs, transition.inputs, kernels.lanes)),
          zeros_(std::size_t(transition.inputs), 0.0f) {
        make_scratch(panels_, in_stride_);
        for (Own& own : own_) {
            own.incoming = scratch_.floats(lines_ * width_ * out_stride_);
            own.first = scratch_.floats(in_stride_);
            own.second = scratch_.floats(in_stride_);
            own.weight = scratch_.floats(transition.outputs * in_stride_);
        }
    }

    void run() {
        run_training_team(shares_, [this](Team& team, int member) { work(team, member); });
    }

private:
    void work(Team& team, int member) {
        const Size inputs = given_.inputs, outputs = given_.outputs;
        const Range columns = share(inputs, team.size(), member);
        for (Size c = columns.begin; c < columns.end; ++c) {
            float* to = panels_.column(c);
            const Size step = panels_.step(c);
            // The quarter that each pixel of a square gets.
            for (Size o = 0; o < outputs; ++o) to[o * step] = 0.25f * given_.weight[o * inputs + c];
        }
        team.wait();
        for_shares(shares_, team, member, [&](int part) { back_through_convolution(own_[std::size_t(part)], part); });
        team.wait();
        GradientSums sums;
        sums.clear(inputs);
        for (const Own& own : own_) sums.add(own.sums);
        if (member == 0) sums.write(norm_, gradients_.gamma, gradients_.beta);
        const Range rows = share(outputs, team.size(), member);
        for (Size o = rows.begin; o < rows.end; ++o)
            for (Size c = 0; c < inputs; ++c) {
                float sum = 0;
                for (const Own& own : own_) sum += own.weight[o * in_stride_ + c];
                gradients_.weight[o * inputs + c] = sum;
            }
        const NormLine line(given_.gamma, norm_, sums, given_.rows());
        for_shares(shares_, team, member, [&](int part) { back_through_norm(part, line); });
    }

    /// The share's gradient of the weights and the sums that the norm needs. The gradient of each square of pixels waits
    /// in the first of them.
    void back_through_convolution(Own& own, int part) {
        const Size inputs = given_.inputs, outputs = given_.outputs;
        own.sums.clear(inputs);
        std::fill_n(own.weight, outputs * in_stride_, 0.0f);
        for_chunks(part, [&](Size first, Size lines) {
            const Size rows = lines * width_;
            const Matrix incoming{own.incoming, out_stride_}, product{own.product, in_stride_};
            training_.copy(incoming, {gradients_.y + first * width_ * outputs, outputs}, rows, outputs);
            multiply_transposed(kernels_, incoming, 0, outputs, pool(first, lines, own), 0, inputs, {1, rows},
                                {own.weight, in_stride_});
            multiply_panels(kernels_, incoming, rows, panels_, product, own.packed);
            Size summed = 0;
            for (Size line = 0; line < lines; ++line) {
                const Matrix squares{product.data + line * width_ * in_stride_, in_stride_};
                const Size begin = offset(first + line);
                if (summed == 0) {
                    std::fill_n(own.first, inputs, 0.0f);
                    std::fill_n(own.second, inputs, 0.0f);
                }
                training_.sum_spread(squares, {given_.x + begin, inputs}, x_line(), width_, inputs, norm_.scale.data(),
                                     norm_.shift.data(), norm_.mean.data(), own.first, own.second);
                training_.add({gradients_.x + begin, 2 * inputs}, squares, width_, inputs, false);
                summed += width_;
                if (summed < kSummedTogether && line + 1 < lines) continue;
                own.sums.add(own.first, own.second);
                summed = 0;
            }
        });
    }

    void back_through_norm(int part, const NormLine& line) {
        const Size inputs = given_.inputs;
        // What is not pooled has no gradient but that of the statistics.
        const auto leave_out = [&](Size begin, Size step, Size rows) {
            const ConstMatrix x{given_.x + begin, step};
            training_.combine_exact({gradients_.x + begin, step}, x, x, rows, inputs, zeros_.data(), line.slope.data(),
                                    line.offset.data());
        };
        const Range mine = share(total_lines(), shares_, part);
        for (Size number = mine.begin; number < mine.end; ++number) {
            const Size begin = offset(number);
            training_.spread({gradients_.x + begin, inputs}, {gradients_.x + begin, 2 * inputs},
                             {given_.x + begin, inputs}, x_line(), width_, inputs, norm_.scale.data(),
                             norm_.shift.data(), line.slope.data(), line.offset.data());
            if (given_.width % 2 == 1) leave_out(begin + 2 * width_ * inputs, x_line(), 2);
            if (given_.height % 2 == 1 && number % height_ == height_ - 1)
                leave_out(begin + 2 * x_line(), inputs, given_.width);
        }
    }

    const TransitionGradients& gradients_;
    const Panels panels_;
    const std::vector<float> zeros_;
};

}  // namespace

void transition_forward(const Transition& transition, float* y, const Kernels& kernels, int threads) {
    Forward(transition, y, kernels, threads).run();
}

void transition_backward(const Transition& transition, const TransitionGradients& gradients, const Kernels& kernels,
                         int threads) {
    Backward(transition, gradients, kernels, threads).run();
}

}  // namespace skipnets
