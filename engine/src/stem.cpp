#include "stem.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "openmp.h"
#include "training_norm.h"
#include "training_products.h"
#include "training_scratch.h"

namespace skipnets {
namespace {

// Pixels of a piece: the inputs of one pixel's convolution are a row of its own.
constexpr Size kPixels = 256;

/// Some lines of what the convolution makes of an image.
struct Piece {
    Size image, begin, end;

    Size lines() const { return end - begin; }
};

/// What a thread keeps for itself.
struct Own {
    float *lines, *patches;         // some lines of an image with its border; the inputs of each pixel's convolution
    float *product, *packed;
    float *masked, *incoming;       // gradients behind the norm, of a line, and before it, of a piece
    float *first, *second;          // a number a channel
    float* weight;                  // the share's gradient of the weights, (K, s·s·C), padded
    Moments moments;
    GradientSums sums;
};

class Pass {
public:
    Pass(const Stem& stem, const Kernels& kernels, int threads)
        : given_(stem), kernels_(kernels), training_(*kernels.training), shares_(threads), height_(stem.height()),
          width_(stem.width()), line_width_(((width_ - 1) * stem.stride + stem.size) * stem.images.channels),
          depth_(stem.size * stem.size * stem.images.channels), in_stride_(padded(depth_, kernels.lanes)),
          out_stride_(padded(stem.outputs, kernels.lanes)), scratch_(thread_scratch()),
          panels_(make_panels(scratch_, depth_, stem.outputs, kernels.lanes)), own_(std::size_t(threads)) {
        const Size lines = std::min(std::max<Size>(kPixels / width_, 1), height_);
        for (Size image = 0; image < stem.images.count; ++image)
            for (Size begin = 0; begin < height_; begin += lines)
                pieces_.push_back({image, begin, std::min(begin + lines, height_)});
        const Size pixels = lines * width_;
        for (Own& own : own_) {
            own.lines = scratch_.floats(((lines - 1) * stem.stride + stem.size) * line_width_);
            own.patches = scratch_.floats(pixels * in_stride_);
            own.product = scratch_.floats(pixels * out_stride_);
            own.packed = scratch_.floats(pixels * round_up(depth_, kernels.lanes));
            own.first = scratch_.floats(out_stride_);
            own.second = scratch_.floats(out_stride_);
        }
    }

protected:
    template <class Work>
    void for_pieces(int part, Work work) {
        const Range mine = share(Size(pieces_.size()), shares_, part);
        for (Size i = mine.begin; i < mine.end; ++i) work(pieces_[std::size_t(i)]);
    }

    Size first_row(const Piece& piece) const { return (piece.image * height_ + piece.begin) * width_; }

    void pack_weights(const Team& team, int member) {
        const Size channels = given_.images.channels, taps = Size(given_.size) * given_.size;
        const Range mine = share(given_.outputs, team.size(), member);
        for (Size o = mine.begin; o < mine.end; ++o) {
            float* to = panels_.column(o);
            const Size step = panels_.step(o);
            for (Size tap = 0; tap < taps; ++tap)
                for (Size c = 0; c < channels; ++c, to += step)
                    *to = given_.weight[o * given_.layout.output + c * given_.layout.input + tap * given_.layout.tap];
        }
    }

    /// The inputs of each pixel's convolution, in the order of the kernel's lines, columns and channels.
    Matrix read_patches(const Piece& piece, Own& own) {
        const Size channels = given_.images.channels, stride = given_.stride;
        for (Size line = 0; line < (piece.lines() - 1) * stride + given_.size; ++line)
            read_line(piece.image, piece.begin * stride + line - given_.size / 2, own.lines + line * line_width_);
        for (Size line = 0; line < piece.lines(); ++line) {
            const float* source[kLargestStemKernel];
            for (int i = 0; i < given_.size; ++i) source[i] = own.lines + (line * stride + i) * line_width_;
            training_.gather({own.patches + line * width_ * in_stride_, in_stride_}, source, given_.size,
                             given_.size * channels, stride * channels, width_);
        }
        return {own.patches, in_stride_};
    }

    /// u of a piece, and in the share its statistics.
    void convolve(const Piece& piece, Own& own) {
        const Size rows = piece.lines() * width_, outputs = given_.outputs;
        const Matrix product{own.product, out_stride_};
        multiply_panels(kernels_, read_patches(piece, own), rows, panels_, product, own.packed);
        training_.copy_with_statistics({given_.convolved + first_row(piece) * outputs, outputs}, product, rows,
                                       outputs, own.first, own.second);
        own.moments.add(double(rows), own.first, own.second);
    }

    void convolve(Team& team, int member) {
        pack_weights(team, member);
        team.wait();
        for_shares(shares_, team, member, [&](int part) {
            Own& own = own_[std::size_t(part)];
            own.moments.clear(given_.outputs);
            for_pieces(part, [&](const Piece& piece) { convolve(piece, own); });
        });
        team.wait();
    }

    const Stem& given_;
    const Kernels& kernels_;
    const TrainingKernels& training_;
    const int shares_;
    const Size height_, width_;           // of what the convolution makes
    const Size line_width_, depth_;       // floats of a line of an image with its border; inputs of a pixel
    const Size in_stride_, out_stride_;
    std::vector<Piece> pieces_;
    Scratch& scratch_;
    const Panels panels_;
    std::vector<Own> own_;

private:
    /// A line of an image, its channels beside one another, with zeros around it.
    void read_line(Size image, Size line, float* to) {
        const Images& images = given_.images;
        const Size channels = images.channels, border = given_.size / 2 * channels;
        if (line < 0 || line >= images.height) {
            std::memset(to, 0, std::size_t(line_width_) * sizeof(float));
            return;
        }
        const Size pixels = std::min(images.width, (line_width_ - border) / channels);
        const Size end = border + pixels * channels;
        std::memset(to, 0, std::size_t(border) * sizeof(float));
        std::memset(to + end, 0, std::size_t(line_width_ - end) * sizeof(float));
        const float* from = images.data + image * images.image_step + line * images.line_step;
        if (images.channel_step == 1 && images.pixel_step == channels) {
            std::copy_n(from, pixels * channels, to + border);
            return;
        }
        for (Size c = 0; c < channels; ++c)
            for (Size x = 0; x < pixels; ++x)
                to[border + x * channels + c] = from[c * images.channel_step + x * images.pixel_step];
    }
};

class Forward : public Pass {
public:
    Forward(const Stem& stem, float* y, const Kernels& kernels, int threads) : Pass(stem, kernels, threads), y_(y) {}

    void run() {
        run_training_team(shares_, [this](Team& team, int member) { work(team, member); });
    }

private:
    void work(Team& team, int member) {
        convolve(team, member);
        const Size outputs = given_.outputs;
        Moments total;  // Every member merges the same partial sums into statistics of its own.
        total.clear(outputs);
        for (const Own& own : own_) total.add(own.moments);
        std::vector<float> mean(std::size_t(outputs), 0.0f), variance(std::size_t(outputs), 0.0f);
        total.write(mean.data(), variance.data());
        if (member == 0) {
            std::copy(mean.begin(), mean.end(), given_.mean);
            std::copy(variance.begin(), variance.end(), given_.variance);
        }
        Norm norm;
        norm.set(mean.data(), variance.data(), given_.gamma, given_.beta, given_.eps, outputs);
        for_shares(shares_, team, member, [&](int part) { given_.pools ? pool(part, norm) : activate(part, norm); });
    }

    void activate(int part, const Norm& norm) {
        const Size outputs = given_.outputs;
        const Range rows = share(given_.rows(), shares_, part);
        training_.add_and_activate({y_ + rows.begin * outputs, outputs},
                                   {given_.convolved + rows.begin * outputs, outputs}, norm.scale.data(),
                                   norm.shift.data(), {nullptr, 0}, nullptr, nullptr, rows.size(), outputs);
    }

    void pool(int part, const Norm& norm) {
        const Size outputs = given_.outputs, pooled = given_.pooled_height(), out_width = given_.pooled_width();
        const Range mine = share(given_.images.count * pooled, shares_, part);
        for (Size line = mine.begin; line < mine.end; ++line) {
            const float* x[3];
            for (Size i = 0; i < 3; ++i) {
                const Size y = 2 * (line % pooled) - 1 + i;
                const bool inside = y >= 0 && y < height_;
                x[i] = inside ? given_.convolved + (line / pooled * height_ + y) * width_ * outputs : nullptr;
            }
            const Size offset = line * out_width * outputs;
            training_.max_pool({y_ + offset, outputs}, given_.places + offset, x, width_, outputs, norm.scale.data(),
                               norm.shift.data());
        }
    }

    float* const y_;
};

class Backward : public Pass {
public:
    Backward(const Stem& stem, bool recompute, const StemGradients& gradients, const Kernels& kernels, int threads)
        : Pass(stem, kernels, threads), recompute_(recompute), gradients_(gradients) {
        norm_.set(stem.mean, stem.variance, stem.gamma, stem.beta, stem.eps, stem.outputs);
        const Size lines = pieces_.front().lines();
        for (Own& own : own_) {
            own.masked = scratch_.floats(width_ * out_stride_);
            own.incoming = scratch_.floats(lines * width_ * out_stride_);
            own.weight = scratch_.floats(stem.outputs * in_stride_);
        }
    }

    void run() {
        run_training_team(shares_, [this](Team& team, int member) { work(team, member); });
    }

private:
    void work(Team& team, int member) {
        if (recompute_) convolve(team, member);
        const Size outputs = given_.outputs;
        for_shares(shares_, team, member, [&](int part) {
            Own& own = own_[std::size_t(part)];
            own.sums.clear(outputs);
            for_pieces(part, [&](const Piece& piece) {
                for (Size line = piece.begin; line < piece.end; ++line) {
                    training_.sum_products(back_through_pooling(piece.image, line, own), convolved(piece.image, line),
                                           width_, outputs, norm_.mean.data(), own.first, own.second);
                    own.sums.add(own.first, own.second);
                }
            });
        });
        team.wait();
        GradientSums sums;
        sums.clear(outputs);
        for (const Own& own : own_) sums.add(own.sums);
        if (member == 0) sums.write(norm_, gradients_.gamma, gradients_.beta);
        const NormLine line(given_.gamma, norm_, sums, given_.rows());
        for_shares(shares_, team, member, [&](int part) {
            Own& own = own_[std::size_t(part)];
            std::fill_n(own.weight, outputs * in_stride_, 0.0f);
            for_pieces(part, [&](const Piece& piece) { add_weight_gradient(piece, line, own); });
        });
        team.wait();
        reduce_weight(share(outputs, team.size(), member));
    }

    ConstMatrix convolved(Size image, Size line) const {
        return {given_.convolved + (image * height_ + line) * width_ * given_.outputs, given_.outputs};
    }

    /// The gradient behind the norm, of a line: back through the pooling, if there is one, and the ReLU.
    Matrix back_through_pooling(Size image, Size line, Own& own) {
        const Size outputs = given_.outputs, pooled = given_.pooled_height(), out_width = given_.pooled_width();
        const Matrix masked{own.masked, out_stride_};
        if (!given_.pools) {
            const float* gradient = gradients_.y + (image * height_ + line) * width_ * outputs;
            training_.copy(masked, {gradient, outputs}, width_, outputs);
            training_.mask(masked, masked, convolved(image, line), width_, outputs, norm_.scale.data(),
                           norm_.shift.data(), norm_.mean.data(), own.first, own.second);
            return masked;
        }
        // Window i sees lines 2i - 1 to 2i + 1.
        const float* gradient[2] = {};
        const unsigned char* places[2] = {};
        int first[2] = {};
        for (Size i = line / 2, count = 0; i <= (line + 1) / 2 && i < pooled; ++i, ++count) {
            const Size offset = (image * pooled + i) * out_width * outputs;
            gradient[count] = gradients_.y + offset, places[count] = given_.places + offset;
            first[count] = 3 * int(line - (2 * i - 1));
        }
        training_.max_unpool(masked, gradient, places, first, width_, outputs);
        return masked;
    }

    void add_weight_gradient(const Piece& piece, const NormLine& norm_line, Own& own) {
        for (Size line = piece.begin; line < piece.end; ++line) {
            const Matrix masked = back_through_pooling(piece.image, line, own);
            training_.combine({own.incoming + (line - piece.begin) * width_ * out_stride_, out_stride_}, masked,
                              convolved(piece.image, line), width_, given_.outputs, norm_line.scale.data(),
                              norm_line.slope.data(), norm_line.offset.data());
        }
        multiply_transposed(kernels_, {own.incoming, out_stride_}, 0, given_.outputs, read_patches(piece, own), 0,
                            depth_, {1, piece.lines() * width_}, {own.weight, in_stride_});
    }

    void reduce_weight(const Range& outputs) {
        const FilterLayout& layout = gradients_.layout;
        const Size channels = given_.images.channels;
        for (Size o = outputs.begin; o < outputs.end; ++o)
            for (Size place = 0; place < depth_; ++place) {
                float sum = 0;
                for (const Own& own : own_) sum += own.weight[o * in_stride_ + place];
                gradients_.weight[o * layout.output + place % channels * layout.input +
                                  place / channels * layout.tap] = sum;
            }
    }

    const bool recompute_;
    const StemGradients& gradients_;
    Norm norm_;
};

}  // namespace

void stem_forward(const Stem& stem, float* y, const Kernels& kernels, int threads) {
    Forward(stem, y, kernels, threads).run();
}

void stem_backward(const Stem& stem, bool recompute, const StemGradients& gradients, const Kernels& kernels,
                   int threads) {
    Backward(stem, recompute, gradients, kernels, threads).run();
}

}  // namespace skipnets
