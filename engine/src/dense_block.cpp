#include "dense_block.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "openmp.h"
#include "training_norm.h"
#include "training_products.h"
#include "training_scratch.h"

namespace skipnets {
namespace {

/// Padded out = a · panels for neighboring rows, or with a scale relu(a · scale + shift) · panels.
void multiply(const Kernels& kernels, const ConstMatrix& a, Size rows, const Panels& panels, const Matrix& out,
              float* packed, const float* scale = nullptr, const float* shift = nullptr) {
    const Size vectors = ceil_div(panels.depth, kernels.lanes);
    const Size tiles = ceil_div(rows, tile_rows(kernels, panels.vectors));
    const float* source[kMaxRows];
    float* target[kMaxRows];
    Rows io{kZeroRows, 0, target, 0, nullptr, 0, false};
    for (Size tile = 0; tile < tiles; ++tile) {
        const Range range = share(rows, tiles, tile);
        for (Size r = range.begin; r < range.end; ++r) {
            source[r - range.begin] = a.data + r * a.stride;
            target[r - range.begin] = out.data + r * out.stride;
        }
        if (scale != nullptr)
            kernels.pack_activated(packed, int(range.size()), source, 0, vectors, scale, shift);
        else
            kernels.pack(packed, int(range.size()), source, 0, vectors);
        for (Size panel = 0; panel < panels.count(); ++panel) {
            io.out_offset = panels.first(panel);
            kernels.multiply[panels.width(panel)][range.size()](packed, panels.at(panel), panels.depth, io);
        }
    }
}

// Tiles over which a weight gradient is summed at a time.
constexpr Size kTilesTogether = 32;

/// The strips into which images are cut for 3×3 convolutions: some lines of one image.
struct Strips {
    Size tile;                             // height and width whose multiples a map is made of
    Size width, lines, each_image, total;  // of a strip's map with its border; lines of a strip without it

    Strips(const DenseBlockShape& shape, int lanes, Size tile) : tile(tile), width(round_up(shape.width, tile) + 2) {
        const Size fitting = kScratchFloats / (width * padded(shape.bottleneck, lanes)) - 2;
        lines = std::clamp<Size>(fitting / tile * tile, tile, round_up(shape.height, tile));
        each_image = ceil_div(shape.height, lines);
        total = shape.images * each_image;
    }
};

struct Strip {
    Size image, begin, end;  // lines

    Size lines() const { return end - begin; }
};

/// What a share of the work has for itself.
struct Own {
    float *left, *right;      // chunks of rows or a strip of a map with its border, of bottlenecks or features
    float *map;               // a strip of a map of k channels with its border
    float *product, *packed, *elements;
    float *first, *second;    // a number a channel
    Norm norm;
};

/// What is summed over a share of the pixels. There are as many shares as threads were asked for, however many there
/// are: the result depends on the former alone.
struct Partial {
    Moments moments;
    GradientSums sums;
    float *weight1 = nullptr, *weight2 = nullptr;  // (K, c) and (9, k, K), padded
};

class Pass {
public:
    /// `tiles` are those of the 3×3 convolution, maps are made of whole ones of `largest`.
    Pass(const DenseBlock& block, const Kernels& kernels, int threads, const TileKernels& tiles,
         const TileKernels& largest)
        : block_(block), shape_(block.shape), kernels_(kernels), training_(*kernels.training), tiles_(tiles),
          shares_(threads),
          strips_(block.shape, kernels.lanes, std::max<Size>({tiles.height, tiles.width, largest.height, largest.width})),
          scratch_(thread_scratch()) {
        const Size lanes = kernels.lanes, widest = std::max(shape_.channels(), shape_.bottleneck);
        wide_ = padded(widest, lanes), narrow_ = padded(shape_.bottleneck, lanes), grown_ = padded(shape_.growth, lanes);
        chunk_ = std::clamp<Size>(kScratchFloats / wide_, 2 * kMaxRows, 8 * kMaxRows);
        partials_.resize(shares_);
        own_.resize(shares_);
        const Size strip = (strips_.lines + 2) * strips_.width;
        const Size pixels = std::max(chunk_, strips_.lines * shape_.width);
        for (Own& own : own_) {
            own.left = scratch_.floats(std::max(chunk_ * wide_, strip * narrow_));
            own.right = scratch_.floats(chunk_ * narrow_);
            own.map = scratch_.floats(strip * grown_);
            own.product = scratch_.floats(std::max(chunk_ * wide_, pixels * std::max(narrow_, grown_)));
            const Size deepest = std::max(whole(shape_.bottleneck), whole(shape_.growth));
            own.packed = scratch_.floats(std::max(whole(widest) * kMaxRows,
                                                    tiles_.elements() * (deepest * kMaxRows + kElementGap)));
            own.elements = scratch_.floats(tiles_.elements() * kMaxRows * kWidestPanel * lanes);
            own.first = scratch_.floats(wide_);
            own.second = scratch_.floats(wide_);
        }
    }

protected:
    /// Channels, rounded up to whole vectors.
    Size whole(Size channels) const { return round_up(channels, kernels_.lanes); }

    Panels make_panels(Size depth, Size outputs) {
        return skipnets::make_panels(scratch_, depth, outputs, kernels_.lanes);
    }

    template <class Work>
    void for_chunks(int part, Work work) {
        const Range mine = share(shape_.rows(), shares_, part);
        const Size chunks = ceil_div(mine.size(), chunk_);
        for (Size chunk = 0; chunk < chunks; ++chunk) {
            const Range range = share(mine.size(), chunks, chunk);
            work(mine.begin + range.begin, range.size());
        }
    }

    template <class Work>
    void for_strips(int part, Work work) {
        const Range mine = share(strips_.total, shares_, part);
        for (Size strip = mine.begin; strip < mine.end; ++strip) {
            const Size first = strip % strips_.each_image * strips_.lines;
            work(Strip{strip / strips_.each_image, first, std::min(first + strips_.lines, shape_.height)});
        }
    }

    /// relu(norm) of a strip and of the lines above and below that its tiles read, with zeros around the image; or
    /// gradient + x · slope + offset where there is a gradient.
    void fill_map(float* map, Size stride, const Strip& strip, const float* x, Size x_stride, Size channels,
                  const float* scale_or_slope, const float* shift_or_offset, const float* gradient = nullptr) {
        const Size line = strips_.width * stride;
        for (Size y = strip.begin - 1; y <= strip.begin + round_up(strip.lines(), strips_.tile); ++y) {
            float* to = map + (y - strip.begin + 1) * line;
            if (y < 0 || y >= shape_.height) {
                std::memset(to, 0, line * sizeof(float));
                continue;
            }
            std::memset(to, 0, stride * sizeof(float));
            std::memset(to + (shape_.width + 1) * stride, 0, (strips_.width - shape_.width - 1) * stride * sizeof(float));
            const Size offset = ((strip.image * shape_.height + y) * shape_.width) * x_stride;
            const Matrix inside{to + stride, stride};
            if (gradient == nullptr)
                training_.activate(inside, {x + offset, x_stride}, shape_.width, channels, scale_or_slope,
                                   shift_or_offset);
            else
                training_.combine(inside, {gradient + offset, x_stride}, {x + offset, x_stride}, shape_.width,
                                  channels, nullptr, scale_or_slope, shift_or_offset);
        }
    }

    /// A 3×3 convolution of a strip with its border: padded out, a row for each pixel.
    void convolve(const float* map, Size stride, Size channels, const Strip& strip, const Panels& panels,
                  const Matrix& out, Own& own) {
        const Size line = strips_.width * stride, lanes = kernels_.lanes, vectors = ceil_div(channels, lanes);
        const Size across = ceil_div(shape_.width, tiles_.width);
        const Size tiles = across * ceil_div(strip.lines(), tiles_.height);
        const Size groups = ceil_div(tiles, tile_rows(kernels_, panels.vectors));
        const auto place = [&](Size tile) {
            return std::pair{tile / across * tiles_.height, tile % across * tiles_.width};
        };
        for (Size group = 0; group < groups; ++group) {
            const Range range = share(tiles, groups, group);
            const int rows = int(range.size());
            const Size element = vectors * rows * lanes + kElementGap;
            for (int r = 0; r < rows; ++r) {
                const auto [y, x] = place(range.begin + r);
                const float* source[kMostTile + 2];
                for (int i = 0; i < tiles_.height + 2; ++i) source[i] = map + (y + i) * line + x * stride;
                tiles_.input(own.packed + r * lanes, element, rows * lanes, source, stride, vectors);
            }
            for (Size panel = 0; panel < panels.count(); ++panel) {
                const Size width = panels.width(panel) * lanes;
                float* row[kMaxRows];
                for (int r = 0; r < rows; ++r) row[r] = own.elements + r * width;
                Rows io{kZeroRows, 0, row, 0, nullptr, 0, false};
                for (int e = 0; e < tiles_.elements(); ++e) {
                    io.out_offset = e * rows * width;
                    kernels_.multiply[panels.width(panel)][rows](
                        own.packed + e * element, panels.at(panel) + e * channels * width, channels, io);
                }
                for (int r = 0; r < rows; ++r) {
                    const auto [y, x] = place(range.begin + r);
                    float* target[kMostTile];
                    for (int i = 0; i < tiles_.height; ++i)
                        target[i] = out.data + ((y + i) * shape_.width + x) * out.stride + panels.first(panel);
                    tiles_.output(row[r], rows * width, panels.width(panel), target, out.stride,
                                  int(std::min<Size>(tiles_.height, strip.lines() - y)),
                                  int(std::min<Size>(tiles_.width, shape_.width - x)), kZeros, nullptr, 0, false);
                }
            }
        }
    }

    /// Memory for the transformed filters of a 3×3 convolution.
    Panels make_filters(Size channels, Size outputs) { return make_panels(tiles_.elements() * channels, outputs); }

    /// Transforms the filters between `channels` and `outputs`, which are some floats apart each; turned for the
    /// gradient of the input.
    void pack_filters(const Panels& panels, Size channels, Size outputs, const float* filters, Size channel_step,
                      Size output_step, bool turned) {
        const Size lanes = kernels_.lanes;
        alignas(64) float taps[9 * 16] = {};
        for (Size begin = 0; begin < outputs; begin += lanes) {
            const Size some = std::min(lanes, outputs - begin);
            const Size step = panels.step(begin);
            float* const to = panels.column(begin);
            if (some < lanes) std::fill(taps, taps + 9 * lanes, 0.0f);
            for (Size channel = 0; channel < channels; ++channel) {
                const float* from = filters + begin * output_step + channel * channel_step;
                for (Size o = 0; o < some; ++o, from += output_step)
                    for (int t = 0; t < 9; ++t) taps[t * lanes + o] = from[turned ? 8 - t : t];
                tiles_.filter(to + channel * step, channels * step, taps);
            }
        }
    }

    Size first_row(const Strip& strip) const { return (strip.image * shape_.height + strip.begin) * shape_.width; }

    /// Norm, ReLU and 1×1 convolution of a share's rows: the bottleneck. Calls then(rows of a chunk, where it belongs,
    /// and where it is: there already, or in scratch).
    template <class Then>
    void make_bottleneck(Size layer, int part, const Norm& norm, const Panels& panels, Then then) {
        Own& own = own_[part];
        const Size seen = shape_.seen(layer), channels = shape_.channels(), bottleneck = shape_.bottleneck;
        const float *scale = norm.scale.data(), *shift = norm.shift.data();
        for_chunks(part, [&](Size first, Size rows) {
            const Matrix out{block_.bottlenecks[layer] + first * bottleneck, bottleneck};
            const Matrix product = bottleneck == whole(bottleneck) ? out : Matrix{own.product, narrow_};
            const ConstMatrix x{block_.features + first * channels, channels};
            if (whole(seen) <= channels) {  // Whole vectors are read, but nothing behind a row.
                multiply(kernels_, x, rows, panels, product, own.packed, scale, shift);
            } else {
                const Matrix activated{own.left, padded(seen, kernels_.lanes)};
                training_.activate(activated, x, rows, seen, scale, shift);
                multiply(kernels_, activated, rows, panels, product, own.packed);
            }
            then(rows, out, product);
        });
    }

    Panels make_weight1(Size layer) { return make_panels(shape_.seen(layer), shape_.bottleneck); }

    void pack_weight1(Size layer, const Panels& panels) {
        const Size seen = shape_.seen(layer), lanes = kernels_.lanes;
        const float* weight = block_.layers[layer].weight1;
        for (Size begin = 0; begin < seen; begin += lanes)  // Blocks: lines of the cache are used while they are there.
            for (Size o = 0; o < shape_.bottleneck; ++o) {
                float* to = panels.column(o);
                const Size step = panels.step(o);
                for (Size c = begin; c < std::min(begin + lanes, seen); ++c) to[c * step] = weight[o * seen + c];
            }
    }

    const DenseBlock& block_;
    const DenseBlockShape shape_;
    const Kernels& kernels_;
    const TrainingKernels& training_;
    const TileKernels& tiles_;
    const int shares_;
    const Strips strips_;
    Size wide_, narrow_, grown_, chunk_;  // strides of scratch; rows of a chunk
    Scratch& scratch_;
    std::vector<Partial> partials_;
    std::vector<Own> own_;
};

class Forward : public Pass {
public:
    Forward(const DenseBlock& block, const Kernels& kernels, int threads)
        : Forward(block, kernels, threads,
                  tiles_for_outputs(*kernels.training, block.shape.height, block.shape.width, block.shape.bottleneck)) {}

    void run() {
        for (Size layer = 0; layer < shape_.layers; ++layer) {
            weights1_.push_back(make_weight1(layer));
            weights2_.push_back(make_filters(shape_.bottleneck, shape_.growth));
        }
        run_training_team(shares_, [this](Team& team, int member) { work(team, member); });
    }

private:
    Forward(const DenseBlock& block, const Kernels& kernels, int threads, const TileKernels& tiles)
        : Pass(block, kernels, threads, tiles, tiles) {}

    void pack(Size layer) {
        pack_weight1(layer, weights1_[layer]);
        pack_filters(weights2_[layer], shape_.bottleneck, shape_.growth, block_.layers[layer].weight2, 9,
                     shape_.bottleneck * 9, false);
    }

    void work(Team& team, int member) {
        // Every member merges the same partial sums into statistics of its own.
        std::vector<float> mean(shape_.channels()), variance(shape_.channels());
        std::vector<float> mean2(shape_.bottleneck), variance2(shape_.bottleneck);
        Norm norm;
        for (Size layer = member; layer < shape_.layers; layer += team.size()) pack(layer);
        for_shares(shares_, team, member, [&](int part) { measure_input(part); });
        team.wait();
        merge(mean.data(), variance.data(), shape_.input_channels);
        if (member == 0) publish(mean, variance, 0, shape_.input_channels);
        for (Size layer = 0; layer < shape_.layers; ++layer) {
            const LayerParameters& given = block_.layers[layer];
            const Size seen = shape_.seen(layer), bottleneck = shape_.bottleneck;
            norm.set(mean.data(), variance.data(), given.gamma1, given.beta1, given.eps1, seen);
            team.wait();  // The partial sums have been read by all.
            for_shares(shares_, team, member, [&](int part) { measure_bottleneck(layer, part, norm); });
            team.wait();
            merge(mean2.data(), variance2.data(), bottleneck);
            if (member == 0) {
                std::copy(mean2.begin(), mean2.end(), block_.mean2 + layer * bottleneck);
                std::copy(variance2.begin(), variance2.end(), block_.variance2 + layer * bottleneck);
            }
            norm.set(mean2.data(), variance2.data(), given.gamma2, given.beta2, given.eps2, bottleneck);
            team.wait();
            for_shares(shares_, team, member, [&](int part) { grow(layer, part, norm); });
            team.wait();
            merge(mean.data() + seen, variance.data() + seen, shape_.growth);
            if (member == 0) publish(mean, variance, seen, seen + shape_.growth);
        }
    }

    void measure_input(int part) {
        Own& own = own_[part];
        Moments& moments = partials_[part].moments;
        const Size channels = shape_.channels();
        moments.clear(shape_.input_channels);
        for_chunks(part, [&](Size first, Size rows) {
            training_.copy_with_statistics({nullptr, 0}, {block_.features + first * channels, channels}, rows,
                                           shape_.input_channels, own.first, own.second);
            moments.add(double(rows), own.first, own.second);
        });
    }

    void measure_bottleneck(Size layer, int part, const Norm& norm) {
        Own& own = own_[part];
        Moments& moments = partials_[part].moments;
        moments.clear(shape_.bottleneck);
        make_bottleneck(layer, part, norm, weights1_[layer], [&](Size rows, const Matrix& out, const Matrix& product) {
            const Matrix copy = product.data == out.data ? Matrix{nullptr, 0} : out;
            training_.copy_with_statistics(copy, product, rows, shape_.bottleneck, own.first, own.second);
            moments.add(double(rows), own.first, own.second);
        });
    }

    /// Norm, ReLU and 3×3 convolution of a share's strips: the layer's columns and, in the partial, their statistics.
    void grow(Size layer, int part, const Norm& norm) {
        Own& own = own_[part];
        Moments& moments = partials_[part].moments;
        const Size channels = shape_.channels(), bottleneck = shape_.bottleneck;
        moments.clear(shape_.growth);
        for_strips(part, [&](const Strip& strip) {
            fill_map(own.left, narrow_, strip, block_.bottlenecks[layer], bottleneck, bottleneck,
                     norm.scale.data(), norm.shift.data());
            const Matrix grown{own.product, grown_};
            convolve(own.left, narrow_, bottleneck, strip, weights2_[layer], grown, own);
            const Size first = first_row(strip), rows = strip.lines() * shape_.width;
            training_.copy_with_statistics({block_.features + first * channels + shape_.seen(layer), channels}, grown,
                                           rows, shape_.growth, own.first, own.second);
            moments.add(double(rows), own.first, own.second);
        });
    }

    void merge(float* mean, float* variance, Size channels) {
        Moments total;
        total.clear(channels);
        for (const Partial& partial : partials_) total.add(partial.moments);
        total.write(mean, variance);
    }

    void publish(const std::vector<float>& mean, const std::vector<float>& variance, Size begin, Size end) {
        std::copy(mean.begin() + begin, mean.begin() + end, block_.mean + begin);
        std::copy(variance.begin() + begin, variance.begin() + end, block_.variance + begin);
    }

    std::vector<Panels> weights1_, weights2_;
};

class Backward : public Pass {
public:
    Backward(const DenseBlock& block, bool recompute, const DenseBlockScratch& scratch,
             const std::vector<LayerGradients>& gradients, const float* gradient, float* input_gradient,
             const Kernels& kernels, int threads)
        : Backward(block, recompute, scratch, gradients, gradient, input_gradient, kernels, threads,
                   tiles_for_outputs(*kernels.training, block.shape.height, block.shape.width, block.shape.growth),
                   tiles_for_weights(*kernels.training, block.shape.height, block.shape.width,
                                     block.shape.growth * block.shape.bottleneck)) {}

    void run() {
        run_training_team(shares_, [this](Team& team, int member) { work(team, member); });
    }

private:
    Backward(const DenseBlock& block, bool recompute, const DenseBlockScratch& scratch,
             const std::vector<LayerGradients>& gradients, const float* gradient, float* input_gradient,
             const Kernels& kernels, int threads, const TileKernels& tiles, const TileKernels& gradient_tiles)
        : Pass(block, kernels, threads, tiles, gradient_tiles), recompute_(recompute), gradient_(scratch.gradient),
          masked_(scratch.masked), given_(gradient), gradients_(gradients), input_gradient_(input_gradient),
          gradient_tiles_(gradient_tiles) {
        for (Size layer = 0; layer < shape_.layers; ++layer) {
            if (recompute) forward1_.push_back(make_weight1(layer));
            weights1_.push_back(make_panels(shape_.bottleneck, shape_.seen(layer)));
            weights2_.push_back(make_filters(shape_.growth, shape_.bottleneck));
        }
        const Size elements = gradient_tiles_.elements();
        for (Partial& partial : partials_) {
            partial.weight1 = scratch_.floats(shape_.bottleneck * wide_);
            partial.weight2 = scratch_.floats(elements * shape_.growth * narrow_);
        }
        for (int part = 0; part < shares_; ++part) {
            inputs_.push_back(scratch_.floats(elements * (kTilesTogether * narrow_ + kElementGap)));
            outputs_.push_back(scratch_.floats(elements * (kTilesTogether * grown_ + kElementGap)));
        }
    }

    // What the members compute alike, each for itself: the correction of every feature (see Correction in
    // skipnets.ops.batch_norm), and the same as slope and offset.
    struct State {
        std::vector<double> mean_term, projection;
        std::vector<float> slope, offset;
        Norm norm;
    };

    void pack(Size layer) {
        const Size seen = shape_.seen(layer), bottleneck = shape_.bottleneck;
        const LayerParameters& given = block_.layers[layer];
        if (recompute_) pack_weight1(layer, forward1_[layer]);
        const Panels& panels = weights1_[layer];
        for (Size panel = 0; panel < panels.count(); ++panel) {
            const Size first = panels.first(panel), width = panels.width(panel) * kernels_.lanes;
            const Size filled = std::min(width, seen - first);
            for (Size o = 0; o < bottleneck; ++o)
                std::copy_n(given.weight1 + o * seen + first, filled, panels.at(panel) + o * width);
        }
        pack_filters(weights2_[layer], shape_.growth, bottleneck, given.weight2, bottleneck * 9, 9, true);
    }

    void work(Team& team, int member) {
        State state;
        const Size channels = shape_.channels();
        state.mean_term.assign(channels, 0.0), state.projection.assign(channels, 0.0);
        state.slope.resize(channels), state.offset.resize(channels);
        for (Size layer = member; layer < shape_.layers; layer += team.size()) pack(layer);
        team.wait();
        for (Size layer = shape_.layers - 1; layer >= 0; --layer) back_through(layer, state, team, member);
        if (input_gradient_ == nullptr) return;
        set_line(state, 0, shape_.input_channels);
        for_shares(shares_, team, member, [&](int part) {
            const Range rows = share(shape_.rows(), shares_, part);
            const Size offset = rows.begin * channels, inputs = shape_.input_channels;
            training_.combine_exact({input_gradient_ + rows.begin * inputs, inputs}, {gradient_ + offset, channels},
                                    {block_.features + offset, channels}, rows.size(), inputs, nullptr,
                                    state.slope.data(), state.offset.data());
        });
    }

    void back_through(Size layer, State& state, Team& team, int member) {
        const LayerParameters& given = block_.layers[layer];
        const LayerGradients& out = gradients_[layer];
        const Size seen = shape_.seen(layer), bottleneck = shape_.bottleneck, growth = shape_.growth;
        Norm& norm = state.norm;
        if (recompute_) {
            norm.set(block_.mean, block_.variance, given.gamma1, given.beta1, given.eps1, seen);
            for_shares(shares_, team, member, [&](int part) { repeat_bottleneck(layer, part, norm); });
            team.wait();
        }

        set_line(state, seen, seen + growth);
        norm.set(block_.mean2 + layer * bottleneck, block_.variance2 + layer * bottleneck, given.gamma2, given.beta2,
                 given.eps2, bottleneck);
        for_shares(shares_, team, member, [&](int part) { back_through_growth(layer, part, state); });
        team.wait();
        GradientSums sums;
        merge(sums, bottleneck);
        std::vector<float> slope(bottleneck), offset(bottleneck);
        for (Size c = 0; c < bottleneck; ++c) {
            const double projection = given.gamma2[c] * sums.product[c] * std::pow(norm.inverse_deviation[c], 3);
            slope[c] = float(-projection / double(shape_.rows()));
            offset[c] = float(-(norm.scale[c] * sums.sum[c]) / double(shape_.rows()) - double(norm.mean[c]) * slope[c]);
        }
        if (member == 0) sums.write(norm, out.gamma2, out.beta2);
        reduce_weight2(out.weight2, share(growth, team.size(), member));
        const std::vector<float> scale2 = norm.scale;
        norm.set(block_.mean, block_.variance, given.gamma1, given.beta1, given.eps1, seen);
        team.wait();

        for_shares(shares_, team, member, [&](int part) {
            back_through_bottleneck(layer, part, norm, scale2.data(), slope.data(), offset.data());
        });
        team.wait();
        merge(sums, seen);
        for (Size c = 0; c < seen; ++c) {
            state.mean_term[c] += norm.scale[c] * sums.sum[c];
            state.projection[c] += given.gamma1[c] * sums.product[c] * std::pow(norm.inverse_deviation[c], 3);
        }
        if (member == 0) sums.write(norm, out.gamma1, out.beta1);
        reduce_weight1(out.weight1, seen, share(bottleneck, team.size(), member));
        team.wait();
    }

    void repeat_bottleneck(Size layer, int part, const Norm& norm) {
        make_bottleneck(layer, part, norm, forward1_[layer], [&](Size rows, const Matrix& out, const Matrix& product) {
            if (product.data != out.data) training_.add(out, product, rows, shape_.bottleneck, false);
        });
    }

    /// Back through the 3×3 convolution, ReLU and the second norm's scale and shift.
    void back_through_growth(Size layer, int part, const State& state) {
        Own& own = own_[part];
        Partial& partial = partials_[part];
        const Norm& norm = state.norm;
        const Size channels = shape_.channels(), bottleneck = shape_.bottleneck, seen = shape_.seen(layer);
        const Size growth = shape_.growth;
        partial.sums.clear(bottleneck);
        std::fill(partial.weight2, partial.weight2 + gradient_tiles_.elements() * growth * narrow_, 0.0f);
        for_strips(part, [&](const Strip& strip) {
            fill_map(own.left, narrow_, strip, block_.bottlenecks[layer], bottleneck, bottleneck,
                     norm.scale.data(), norm.shift.data());
            fill_map(own.map, grown_, strip, block_.features + seen, channels, growth, state.slope.data() + seen,
                     state.offset.data() + seen, gradient_of(layer) + seen);
            add_filter_gradient(part, strip);
            const Matrix product{own.product, narrow_};
            convolve(own.map, grown_, growth, strip, weights2_[layer], product, own);
            const Size offset = first_row(strip) * bottleneck;
            training_.mask({masked_ + offset, bottleneck}, product, {block_.bottlenecks[layer] + offset, bottleneck},
                           strip.lines() * shape_.width, bottleneck, norm.scale.data(), norm.shift.data(), norm.mean.data(),
                           own.first, own.second);
            partial.sums.add(own.first, own.second);
        });
    }

    /// The gradient of the transformed filters from a strip in the share's scratch: for each element, the product of
    /// the transformed gradients and inputs, summed over the tiles.
    void add_filter_gradient(int part, const Strip& strip) {
        const Own& own = own_[part];
        const Size lanes = kernels_.lanes, growth = shape_.growth, bottleneck = shape_.bottleneck;
        const TileKernels& size = gradient_tiles_;
        const Size across = ceil_div(shape_.width, size.width), tiles = across * ceil_div(strip.lines(), size.height);
        const Size groups = ceil_div(tiles, kTilesTogether);
        for (Size group = 0; group < groups; ++group) {
            const Range range = share(tiles, groups, group);
            const Size input_element = range.size() * narrow_ + kElementGap;
            const Size output_element = range.size() * grown_ + kElementGap;
            for (Size tile = range.begin; tile < range.end; ++tile) {
                const Size y = tile / across * size.height, x = tile % across * size.width;
                const float *input[kMostTile + 2], *output[kMostTile];
                for (int i = 0; i < size.height + 2; ++i)
                    input[i] = own.left + ((y + i) * strips_.width + x) * narrow_;
                for (int i = 0; i < size.height; ++i)
                    output[i] = own.map + ((y + i + 1) * strips_.width + x + 1) * grown_;
                size.input(inputs_[part] + (tile - range.begin) * narrow_, input_element, lanes, input, narrow_,
                           ceil_div(bottleneck, lanes));
                size.gradient(outputs_[part] + (tile - range.begin) * grown_, output_element, lanes, output, grown_,
                              ceil_div(growth, lanes));
            }
            for (int e = 0; e < size.elements(); ++e)
                multiply_transposed(kernels_, {outputs_[part] + e * output_element, grown_}, 0, growth,
                                    {inputs_[part] + e * input_element, narrow_}, 0, bottleneck, {1, range.size()},
                                    {partials_[part].weight2 + e * growth * narrow_, narrow_});
        }
    }

    /// Back through the second norm, the 1×1 convolution, ReLU and the first norm's scale and shift.
    void back_through_bottleneck(Size layer, int part, const Norm& norm, const float* scale2, const float* slope,
                                 const float* offset) {
        Own& own = own_[part];
        Partial& partial = partials_[part];
        const Size channels = shape_.channels(), bottleneck = shape_.bottleneck, seen = shape_.seen(layer);
        const Size stride = padded(seen, kernels_.lanes);
        partial.sums.clear(seen);
        std::fill(partial.weight1, partial.weight1 + bottleneck * stride, 0.0f);
        for_chunks(part, [&](Size first, Size rows) {
            const Matrix incoming{own.right, narrow_}, activated{own.left, stride};
            const Matrix product{own.product, stride};
            const ConstMatrix x{block_.features + first * channels, channels};
            training_.combine(incoming, {masked_ + first * bottleneck, bottleneck},
                              {block_.bottlenecks[layer] + first * bottleneck, bottleneck}, rows, bottleneck, scale2,
                              slope, offset);
            training_.activate(activated, x, rows, seen, norm.scale.data(), norm.shift.data());
            multiply_transposed(kernels_, incoming, 0, bottleneck, activated, 0, seen, {1, rows},
                                {partial.weight1, stride});
            multiply(kernels_, incoming, rows, weights1_[layer], product, own.packed);
            training_.mask_and_add({gradient_ + first * channels, channels},
                                   {gradient_of(layer) + first * channels, channels}, product, x, rows, seen,
                                   norm.scale.data(), norm.shift.data(), norm.mean.data(), own.first,
                                   own.second);
            partial.sums.add(own.first, own.second);
        });
    }

    /// The gradient of the features that arrived before a layer: at first what was given.
    const float* gradient_of(Size layer) const { return layer == shape_.layers - 1 ? given_ : gradient_; }

    void set_line(State& state, Size begin, Size end) {
        const double rows = double(shape_.rows());
        for (Size c = begin; c < end; ++c) {
            state.slope[c] = float(-state.projection[c] / rows);
            state.offset[c] = float(-state.mean_term[c] / rows - double(block_.mean[c]) * state.slope[c]);
        }
    }

    void merge(GradientSums& sums, Size channels) {
        sums.clear(channels);
        for (const Partial& partial : partials_) sums.add(partial.sums);
    }

    void reduce_weight1(float* out, Size seen, const Range& outputs) {
        const Size stride = padded(seen, kernels_.lanes);
        for (Size o = outputs.begin; o < outputs.end; ++o)
            for (Size c = 0; c < seen; ++c) {
                float sum = 0;
                for (const Partial& partial : partials_) sum += partial.weight1[o * stride + c];
                out[o * seen + c] = sum;
            }
    }

    void reduce_weight2(float* out, const Range& outputs) {
        const Size lanes = kernels_.lanes, bottleneck = shape_.bottleneck;
        alignas(64) float sums[kMostElements * 16], taps[9 * 16];
        for (Size o = outputs.begin; o < outputs.end; ++o)
            for (Size begin = 0; begin < bottleneck; begin += lanes) {
                for (int e = 0; e < gradient_tiles_.elements(); ++e) {
                    const Size place = (e * shape_.growth + o) * narrow_ + begin;
                    std::copy_n(partials_[0].weight2 + place, lanes, sums + e * lanes);
                    for (std::size_t part = 1; part < partials_.size(); ++part)
                        for (Size lane = 0; lane < lanes; ++lane)
                            sums[e * lanes + lane] += partials_[part].weight2[place + lane];
                }
                gradient_tiles_.filter_gradient(taps, sums, lanes);
                for (Size lane = 0; lane < std::min(lanes, bottleneck - begin); ++lane)
                    for (int t = 0; t < 9; ++t)
                        out[(o * bottleneck + begin + lane) * 9 + t] = taps[t * lanes + lane];
            }
    }

    const bool recompute_;
    float *const gradient_, *const masked_;
    const float* const given_;
    const std::vector<LayerGradients>& gradients_;
    float* const input_gradient_;
    const TileKernels& gradient_tiles_;
    std::vector<Panels> forward1_, weights1_, weights2_;
    std::vector<float*> inputs_, outputs_;  // transformed tiles of each share
};

}  // namespace

void dense_block_forward(const DenseBlock& block, const Kernels& kernels, int threads) {
    Forward(block, kernels, threads).run();
}

void dense_block_backward(const DenseBlock& block, bool recompute, const DenseBlockScratch& scratch,
                          const std::vector<LayerGradients>& gradients, const float* gradient, float* input_gradient,
                          const Kernels& kernels, int threads) {
    Backward(block, recompute, scratch, gradients, gradient, input_gradient, kernels, threads).run();
}

}  // namespace skipnets
