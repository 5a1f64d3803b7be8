#include "residual_block.h"

#include <algorithm>
#include <cstring>

#include "threads.h"
#include "training_norm.h"
#include "training_products.h"
#include "training_scratch.h"

namespace skipnets {
namespace {

// Pixels of a piece: fewer make too little of weights that have been fetched, more gain nothing.
constexpr Size kFewestPixels = 224, kMostPixels = 2048;
// Depth of a product at a time, and floats of the rows packed for it: these and a panel of weights fit the same cache.
constexpr Size kDepth = 512, kPackedFloats = 64 << 10;
// Register tiles of rows that use a panel of weights while it is in the cache.
constexpr Size kFewestTiles = 4, kMostTiles = 4;
// Channels of a map into which a product is written without scratch.
constexpr Size kFewestDirect = 64;
// Rows that are summed in single precision.
constexpr Size kRowsTogether = 256;

Norm norm_of(const NormedConvolution& given, const float* means, const float* variances) {
    Norm norm;
    norm.set(means, variances, given.gamma, given.beta, given.eps, given.outputs);
    return norm;
}

/// What is worked on at a time: some lines of an image, or several whole images; of the convolution's output.
struct Piece {
    Size image, images, begin, end;

    Size lines() const { return end - begin; }
};

/// A map with a border, in scratch, of a piece.
struct BorderedMap {
    float* data;
    Size stride;          // of pixels
    Size width, lines;    // of each image, with the border

    Size line() const { return width * stride; }
    float* at(Size image, Size line_number, Size x) const {
        return data + ((image * lines + line_number) * width + x) * stride;
    }
};

/// One convolution of the block: sizes, transformed weights and how its output is cut into pieces.
struct Stage {
    const NormedConvolution* given;
    Size images, height, width, out_height, out_width;  // of the input and of the output
    Size in_stride, out_stride;                          // of scratch
    bool winograd;
    Size taps;                        // products a pixel
    std::vector<Piece> pieces;
    std::vector<Panels> panels;       // of each tap, or one with all elements
    Size most_pixels = 0;             // of a piece, of the input or the output
    Size in_map = 0, out_map = 0;     // floats of its bordered maps
    Size filter_floats = 0;           // of the gradient of its (transformed) weights

    Size out_area() const { return out_height * out_width; }
    Size out_rows() const { return images * out_area(); }
    Size first_row(const Piece& piece) const { return piece.image * out_area() + piece.begin * out_width; }
    Size rows(const Piece& piece) const { return piece.images * piece.lines() * out_width; }
    Size in_begin(const Piece& piece) const { return piece.begin * given->stride; }
    Size in_lines(const Piece& piece) const {
        return std::min(piece.end * given->stride, height) - in_begin(piece);
    }
    /// Of the input map with its border: for stride 1 whole tiles.
    Size map_lines(Size lines) const { return given->stride == 1 ? whole_tiles(lines) + 2 : 2 * lines + 1; }
    Size map_width() const { return given->stride == 1 ? whole_tiles(width) + 2 : 2 * out_width + 1; }
    Size out_map_lines(Size lines) const { return whole_tiles(lines) + 2; }
    Size out_map_width() const { return whole_tiles(out_width) + 2; }

    Stage(const NormedConvolution& convolution, Size images, Size height, Size width, int lanes, int shares)
        : given(&convolution), images(images), height(height), width(width),
          out_height(ceil_div(height, convolution.stride)), out_width(ceil_div(width, convolution.stride)),
          in_stride(padded(convolution.inputs, lanes)), out_stride(padded(convolution.outputs, lanes)),
          winograd(convolution.size == 3 && convolution.stride == 1),
          taps(winograd ? kElements : convolution.size * convolution.size) {
        cut(shares);
        const bool bordered = convolution.size == 3;
        for (const Piece& piece : pieces) {
            most_pixels = std::max({most_pixels, rows(piece), piece.images * in_lines(piece) * width});
            const Size in = bordered ? map_lines(piece.lines()) * map_width() : piece.lines() * out_width;
            const Size out = bordered ? out_map_lines(piece.lines()) * out_map_width() : piece.lines() * out_width;
            in_map = std::max(in_map, piece.images * in * in_stride);
            out_map = std::max(out_map, piece.images * out * out_stride);
        }
        filter_floats = taps * convolution.outputs * in_stride;
    }

private:
    void cut(int shares) {
        const Size widest = std::max(in_stride, out_stride) * given->stride * given->stride;
        const Size pixels = std::clamp(kScratchFloats / widest, kFewestPixels, kMostPixels);
        const Size together = std::clamp<Size>(pixels / out_area(), 1, ceil_div(images, shares));
        if (out_area() <= pixels) {
            const Size groups = ceil_div(images, together);
            for (Size group = 0; group < groups; ++group) {
                const Range range = share(images, groups, group);
                pieces.push_back({range.begin, range.size(), 0, out_height});
            }
            return;
        }
        const Size fitting = std::max<Size>(pixels / out_width, 1), strips = ceil_div(out_height, fitting);
        const Size lines = winograd ? whole_tiles(ceil_div(out_height, strips)) : ceil_div(out_height, strips);
        for (Size image = 0; image < images; ++image)
            for (Size begin = 0; begin < out_height; begin += lines)
                pieces.push_back({image, 1, begin, std::min(begin + lines, out_height)});
    }
};

/// A tile of a piece's output: where it lies, how much of it is inside, its input and where it goes.
struct Tile {
    Size image, y, x;
    int height, width;
    const float* input;
    float* output;
};

/// What a thread keeps for itself.
struct Own {
    float *in_map, *out_map;      // with borders, of a piece
    float *product, *packed, *elements;
    float *in_tiles, *out_tiles;  // transformed, of the weights' gradient
    float *first, *second;        // a number a channel
    float *filter;                // the share's gradient of the (transformed) weights
    std::vector<const float*> source;
    std::vector<float*> target;
    std::vector<Tile> tiles;
    Moments moments;
    GradientSums sums, projection_sums;
};

class Pass {
public:
    Pass(const ResidualBlock& block, bool backward, const Kernels& kernels, int threads)
        : block_(block), kernels_(kernels), training_(*kernels.training), lanes_(kernels.lanes), shares_(threads),
          scratch_(thread_scratch()) {
        Size height = block.height, width = block.width;
        for (const NormedConvolution& convolution : block.branch) {
            stages_.emplace_back(convolution, block.images, height, width, lanes_, shares_);
            height = stages_.back().out_height, width = stages_.back().out_width;
        }
        for (const NormedConvolution& convolution : block.projection)
            stages_.emplace_back(convolution, block.images, block.height, block.width, lanes_, shares_);
        for (Stage& stage : stages_) make_panels(stage, backward);
        own_.resize(shares_);
        for (Own& own : own_) make_scratch(own, backward);
    }

protected:
    const Stage& last() const { return stages_[block_.branch.size() - 1]; }
    const Stage& projection() const { return stages_.back(); }
    bool projects() const { return !block_.projection.empty(); }
    Size stride() const { return ceil_div(block_.height, last().out_height); }
    Size channels() const { return block_.branch.front().inputs; }

    Size whole(Size channels) const { return ceil_div(channels, lanes_) * lanes_; }

    /// Whether a product goes where it belongs, and not by way of scratch: only whole vectors can, and short pieces of
    /// lines that are not in the cache cost more than the copy.
    bool is_written_directly(Size channels) const { return channels == whole(channels) && channels >= kFewestDirect; }

    /// Tiles of a product by Winograd's algorithm that are transformed before they are multiplied.
    Size tiles_together(const Panels& panels, Size depth) const {
        const Size rows = tile_rows(kernels_, panels.vectors);
        return std::clamp(2 * kPackedFloats / (kElements * whole(depth) * rows), kFewestTiles, kMostTiles) * rows;
    }

    /// Tiles over which the gradient of transformed weights is summed at a time.
    Size tiles_summed(const Stage& stage) const {
        return std::clamp<Size>(2 * kPackedFloats / (kElements * (stage.in_stride + stage.out_stride)), 64, 128);
    }

    template <class Work>
    void for_shares(const Team& team, int member, Work work) {
        for (int part = member; part < shares_; part += team.size()) work(part);
    }

    template <class Work>
    void for_pieces(const Stage& stage, int part, Work work) {
        const Range mine = share(Size(stage.pieces.size()), shares_, part);
        for (Size i = mine.begin; i < mine.end; ++i) work(stage.pieces[i]);
    }

    /// Packs this member's panels of all stages.
    void pack_weights(const Team& team, int member, bool backward) {
        Size number = 0;
        for (const Stage& stage : stages_)
            for (Size tap = 0; tap < Size(stage.panels.size()); ++tap)
                for (Size panel = 0; panel < stage.panels[tap].count(); ++panel)
                    if (number++ % team.size() == member) pack_panel(stage, tap, panel, backward);
    }

    /// The input of a convolution in scratch: relu(norm(x)) or, without a norm, x, with zeros around 3×3 convolutions'.
    BorderedMap read_input(const Stage& stage, const Piece& piece, const float* x, const Norm* norm, Own& own) {
        const Size channels = stage.given->inputs;
        const auto read = [&](const Matrix& to, Size row, Size count, Size step) {
            const ConstMatrix from{x + row * channels, step * channels};
            if (norm != nullptr)
                training_.activate(to, from, count, channels, norm->scale.data(), norm->shift.data());
            else
                training_.copy(to, from, count, channels);
        };
        if (stage.given->size == 1) {
            const BorderedMap map{own.in_map, stage.in_stride, stage.out_width, piece.lines()};
            for_input_lines(stage, piece, [&](Size to, Size row, Size count, Size step) {
                read({map.data + to * map.stride, map.stride}, row, count, step);
            });
            return map;
        }
        const BorderedMap map{own.in_map, stage.in_stride, stage.map_width(), stage.map_lines(piece.lines())};
        fill(map, piece, stage.in_begin(piece) - 1, stage.height, stage.width,
             [&](const Matrix& to, Size row, Size count) { read(to, row, count, 1); });
        return map;
    }

    /// Calls work(row of the piece, row of the input, count, distance between rows of the input) for the pixels that a
    /// 1×1 convolution reads.
    template <class Work>
    void for_input_lines(const Stage& stage, const Piece& piece, Work work) {
        if (stage.given->stride == 1) return work(0, stage.first_row(piece), stage.rows(piece), 1);
        Size to = 0;
        for (Size image = piece.image; image < piece.image + piece.images; ++image)
            for (Size y = piece.begin; y < piece.end; ++y, to += stage.out_width)
                work(to, (image * stage.height + y * stage.given->stride) * stage.width, stage.out_width,
                     stage.given->stride);
    }

    /// Writes the lines of a map from `first` on, and zeros where there are none and on the left and right.
    template <class Read>
    void fill(const BorderedMap& map, const Piece& piece, Size first, Size height, Size width, Read read) {
        const Size inside = std::min(width, map.width - 1);
        for (Size image = 0; image < piece.images; ++image)
            for (Size line = 0; line < map.lines; ++line) {
                const Size y = first + line;
                float* to = map.at(image, line, 0);
                if (y < 0 || y >= height) {
                    std::memset(to, 0, map.line() * sizeof(float));
                    continue;
                }
                std::memset(to, 0, map.stride * sizeof(float));
                std::memset(to + (inside + 1) * map.stride, 0, (map.width - inside - 1) * map.stride * sizeof(float));
                read({to + map.stride, map.stride}, ((piece.image + image) * height + y) * width, inside);
            }
    }

    /// out = Σ over taps of rows · weights. Rows start at own.source, each tap at its offset from there, and go to
    /// own.target.
    void multiply(const Panels* const* panels, const Size* offsets, int taps, Size rows, Own& own) {
        const Size depth = panels[0]->depth, each = tile_rows(kernels_, panels[0]->vectors);
        const Size most = std::max(kFewestTiles, kPackedFloats / (whole(std::min(depth, kDepth)) * each)) * each;
        const Size blocks = ceil_div(rows, most);
        for (Size block = 0; block < blocks; ++block) {
            const Range mine = share(rows, blocks, block);
            const Size tiles = ceil_div(mine.size(), each);
            bool adds = false;
            for (int tap = 0; tap < taps; ++tap)
                for (Size begin = 0; begin < depth; begin += kDepth, adds = true) {
                    const Size deep = std::min(kDepth, depth - begin), vectors = ceil_div(deep, lanes_);
                    for (Size tile = 0; tile < tiles; ++tile) {
                        const Range range = share(mine.size(), tiles, tile);
                        kernels_.pack(own.packed + range.begin * vectors * lanes_, int(range.size()),
                                      own.source.data() + mine.begin + range.begin, offsets[tap] + begin, vectors);
                    }
                    for (Size panel = 0; panel < panels[tap]->count(); ++panel) {
                        const int width = panels[tap]->width(panel);
                        const Size channel = panels[tap]->first(panel);
                        const float* weights = panels[tap]->at(panel) + begin * width * lanes_;
                        for (Size tile = 0; tile < tiles; ++tile) {
                            const Range range = share(mine.size(), tiles, tile);
                            float* const* out = own.target.data() + mine.begin + range.begin;
                            const Rows io{adds ? out : kZeroRows, adds ? channel : 0, out, channel, nullptr, 0, false};
                            kernels_.multiply[width][range.size()](own.packed + range.begin * vectors * lanes_,
                                                                   weights, deep, io);
                        }
                    }
                }
        }
    }

    /// A 3×3 convolution at stride 1 of a map with a border: a row of the product for each pixel.
    void convolve_tiles(const BorderedMap& map, const Piece& piece, Size width, Size channels, const Panels& panels,
                        const Matrix& out, Own& own) {
        const Size each = tile_rows(kernels_, panels.vectors), vectors = whole(channels) / lanes_;
        list_tiles(piece, width, own);
        for (Tile& tile : own.tiles) {
            tile.input = map.at(tile.image, tile.y, tile.x);
            tile.output = out.data + ((tile.image * piece.lines() + tile.y) * width + tile.x) * out.stride;
        }
        const Size total = Size(own.tiles.size()), together = tiles_together(panels, channels);
        const Size groups = std::max<Size>((total + together / 2) / together, 1);
        for (Size group = 0; group < groups; ++group) {
            const Range mine = share(total, groups, group);
            const Tile* const tiles = own.tiles.data() + mine.begin;
            const Size count = ceil_div(mine.size(), each);
            const auto packed = [&](Size number, const Range& range) {
                return own.packed + kElements * (range.begin * vectors * lanes_ + number * kElementGap);
            };
            const auto element = [&](const Range& range) { return vectors * range.size() * lanes_ + kElementGap; };
            for (Size number = 0; number < count; ++number) {
                const Range range = share(mine.size(), count, number);
                float* to = packed(number, range);
                for (Size r = range.begin; r < range.end; ++r, to += lanes_) {
                    const float* source[kTile + 2];
                    for (int i = 0; i < kTile + 2; ++i) source[i] = tiles[r].input + i * map.line();
                    kernels_.winograd_input[0](to, element(range), range.size() * lanes_, source, map.stride, vectors);
                }
            }
            for (Size panel = 0; panel < panels.count(); ++panel) {
                const int wide = panels.width(panel);
                const Size columns = wide * lanes_, step = mine.size() * columns + kElementGap;
                for (Size r = 0; r < mine.size(); ++r) own.target[r] = own.elements + r * columns;
                for (int e = 0; e < kElements; ++e)
                    for (Size number = 0; number < count; ++number) {
                        const Range range = share(mine.size(), count, number);
                        const Rows io{kZeroRows, 0, own.target.data() + range.begin, e * step, nullptr, 0, false};
                        kernels_.multiply[wide][range.size()](packed(number, range) + e * element(range),
                                                              panels.at(panel) + e * channels * columns, channels, io);
                    }
                for (Size r = 0; r < mine.size(); ++r) {
                    float* const first = tiles[r].output + panels.first(panel);
                    float* const target[kTile] = {first, first + width * out.stride};
                    kernels_.winograd_output[0](own.target[r], step, wide, target, out.stride, tiles[r].height,
                                                tiles[r].width, kZeros, nullptr, 0, false);
                }
            }
        }
    }

    /// The tiles of a piece, image by image and line by line.
    void list_tiles(const Piece& piece, Size width, Own& own) {
        own.tiles.clear();
        for (Size image = 0; image < piece.images; ++image)
            for (Size y = 0; y < piece.lines(); y += kTile)
                for (Size x = 0; x < width; x += kTile)
                    own.tiles.push_back({image, y, x, int(std::min<Size>(kTile, piece.lines() - y)),
                                         int(std::min<Size>(kTile, width - x)), nullptr, nullptr});
    }

    const ResidualBlock& block_;
    const Kernels& kernels_;
    const TrainingKernels& training_;
    const int lanes_, shares_;
    Scratch& scratch_;
    std::vector<Stage> stages_;
    std::vector<Own> own_;

private:
    void make_panels(Stage& stage, bool backward) {
        Size depth = stage.given->inputs, outputs = stage.given->outputs;
        if (backward) std::swap(depth, outputs);
        if (stage.winograd) depth *= kElements;
        for (Size tap = 0; tap < (stage.winograd ? 1 : stage.taps); ++tap) {
            stage.panels.push_back({depth, ceil_div(outputs, lanes_), lanes_, nullptr});
            stage.panels.back().data = scratch_.floats(stage.panels.back().size());
        }
    }

    void make_scratch(Own& own, bool backward) {
        Size in_map = 0, out_map = 0, product = 0, packed = 0, elements = 0, tiles = 0, filter = 0, widest = 0, pixels = 0;
        for (const Stage& stage : stages_) {
            const Size depth = backward ? stage.given->outputs : stage.given->inputs;
            const Size rows = tile_rows(kernels_, stage.panels[0].vectors);
            in_map = std::max(in_map, stage.in_map);
            if (backward) out_map = std::max(out_map, stage.out_map);
            pixels = std::max(pixels, stage.most_pixels);
            product = std::max(product, stage.most_pixels * (backward ? stage.in_stride : stage.out_stride));
            widest = std::max({widest, stage.in_stride, stage.out_stride});
            const Size deep = whole(std::min(depth, kDepth));
            packed = std::max(packed, std::max(kFewestTiles * deep * rows, kPackedFloats) + deep * rows);
            if (stage.winograd) {
                const Size together = tiles_together(stage.panels[0], depth) * 3 / 2 + 1;
                packed = std::max(packed, kElements * (together * whole(depth) + 2 * kMostTiles * kElementGap));
                elements = std::max(elements, kElements * (together * kWidestPanel * lanes_ + kElementGap));
            }
            if (backward) {
                filter = std::max(filter, stage.filter_floats);
                if (stage.winograd) tiles = std::max(tiles, tiles_summed(stage));
            }
        }
        own.in_map = scratch_.floats(in_map);
        own.out_map = scratch_.floats(out_map);
        own.product = scratch_.floats(product);
        own.packed = scratch_.floats(packed);
        own.elements = scratch_.floats(elements);
        own.in_tiles = scratch_.floats(tiles == 0 ? 0 : kElements * (tiles * widest + kElementGap));
        own.out_tiles = scratch_.floats(tiles == 0 ? 0 : kElements * (tiles * widest + kElementGap));
        own.first = scratch_.floats(widest);
        own.second = scratch_.floats(widest);
        own.filter = scratch_.floats(filter);
        own.source.resize(pixels);
        own.target.resize(pixels);
    }

    /// A panel of the weights of one tap, or of all elements of transformed weights; for the backward pass inputs and
    /// outputs change places, and the kernel is turned.
    void pack_panel(const Stage& stage, Size tap, Size panel, bool backward) {
        const NormedConvolution& given = *stage.given;
        const Panels& panels = stage.panels[tap];
        const Size outputs = backward ? given.inputs : given.outputs, depth = backward ? given.outputs : given.inputs;
        const Size output_step = backward ? given.layout.input : given.layout.output;
        const Size depth_step = backward ? given.layout.output : given.layout.input;
        const Size width = panels.width(panel) * lanes_, first = panels.first(panel);
        const Size filled = std::min(width, outputs - first);
        float* to = panels.at(panel);
        const float* from = given.weight + first * output_step;
        if (!stage.winograd) {
            from += tap * given.layout.tap;
            for (Size begin = 0; begin < depth; begin += lanes_) {  // Blocks: whole lines of the cache are used at once.
                const Size end = std::min<Size>(begin + lanes_, depth);
                for (Size o = 0; o < filled; ++o)
                    for (Size d = begin; d < end; ++d) to[d * width + o] = from[o * output_step + d * depth_step];
                for (Size d = begin; d < end; ++d) std::fill(to + d * width + filled, to + (d + 1) * width, 0.0f);
            }
            return;
        }
        // Blocks of 16 × 16 filters: of those lines of the cache that they lie on all is used while they are there.
        alignas(64) float taps[16][9 * 16] = {};
        const Size tap_step = given.layout.tap;
        for (Size begin = 0; begin < width; begin += lanes_) {
            const Size some = std::clamp<Size>(filled - begin, 0, lanes_);
            if (some < lanes_) std::memset(taps, 0, sizeof taps);
            for (Size first_depth = 0; first_depth < depth; first_depth += 16) {
                const Size deep = std::min<Size>(16, depth - first_depth);
                const float* block = from + begin * output_step + first_depth * depth_step;
                const auto copy = [&](Size d, int t, Size o) {
                    taps[d][t * lanes_ + o] =
                        block[o * output_step + d * depth_step + (backward ? 8 - t : t) * tap_step];
                };
                if (output_step < depth_step) {
                    for (Size d = 0; d < deep; ++d)
                        for (int t = 0; t < 9; ++t)
                            for (Size o = 0; o < some; ++o) copy(d, t, o);
                } else {
                    for (Size o = 0; o < some; ++o)
                        for (int t = 0; t < 9; ++t)
                            for (Size d = 0; d < deep; ++d) copy(d, t, o);
                }
                for (Size d = 0; d < deep; ++d)
                    training_.winograd_filter(to + (first_depth + d) * width + begin, depth * width, taps[d]);
            }
        }
    }
};

class Forward : public Pass {
public:
    Forward(const ResidualBlock& block, const Kernels& kernels, int threads) : Pass(block, false, kernels, threads) {}

    void run() {
        run_team(shares_, [this](Team& team, int member) { work(team, member); });
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
            for_shares(team, member, [&](int part) { convolve(stage, part, x, norm); });
            team.wait();
            norms.push_back(merge(stage, member));
            team.wait();  // The partial sums have been read by all.
        }
        const Norm& own = norms[block_.branch.size() - 1];
        for_shares(team, member, [&](int part) { add(part, own, norms.back()); });
    }

    /// A convolution of this share's pieces and, in the share, the statistics of what it makes.
    void convolve(const Stage& stage, int part, const float* x, const Norm* norm) {
        Own& own = own_[part];
        const Size outputs = stage.given->outputs;
        own.moments.clear(outputs);
        for_pieces(stage, part, [&](const Piece& piece) {
            const BorderedMap map = read_input(stage, piece, x, norm, own);
            const Size rows = stage.rows(piece);
            float* out = stage.given->output + stage.first_row(piece) * outputs;
            const bool direct = is_written_directly(outputs);
            const Matrix product = direct ? Matrix{out, outputs} : Matrix{own.product, stage.out_stride};
            if (stage.winograd)
                convolve_tiles(map, piece, stage.out_width, stage.given->inputs, stage.panels[0], product, own);
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

class Backward : public Pass {
public:
    Backward(const ResidualBlock& block, const ResidualGradients& gradients, const Kernels& kernels, int threads)
        : Pass(block, true, kernels, threads), gradients_(gradients) {}

    void run() {
        run_team(shares_, [this](Team& team, int member) { work(team, member); });
    }

private:
    void work(Team& team, int member) {
        pack_weights(team, member, true);
        std::vector<Norm> norms;
        for (const Stage& stage : stages_) norms.push_back(norm_of(*stage.given, stage.given->mean, stage.given->variance));
        for_shares(team, member, [&](int part) { through_sum(part, norms); });
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
            for_shares(team, member, [&](int part) {
                through_convolution(stages_[number], part, number == 0 ? nullptr : &norms[number - 1], gradient, line,
                                    number == 0 ? gradients_.x : gradients_.outputs[number - 1],
                                    number == 0 && is_added());
            });
            team.wait();
            reduce_weight(number, team, member);
            if (number > 0) line = line_of(number - 1, &Own::sums);
            team.wait();
        }
        if (projects()) {
            for_shares(team, member, [&](int part) {
                through_convolution(projection(), part, nullptr, gradients_.sum, projection_line, gradients_.x, true);
            });
            team.wait();
            reduce_weight(count, team, member);
        } else if (gradients_.x != nullptr && !is_added()) {
            for_shares(team, member, [&](int part) { add_shortcut(part); });
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
        for_pieces(stage, part, [&](const Piece& piece) {
            const BorderedMap in = read_input(stage, piece, x, before, own);
            const BorderedMap incoming = read_gradient(stage, piece, gradient, line, own);
            const bool gathers = stage.given->size == 1 && stage.given->stride > 1;
            const bool direct = out != nullptr && !adds && !gathers && is_written_directly(inputs);
            const Size first = (piece.image * stage.height + stage.in_begin(piece)) * stage.width;
            const Matrix product =
                direct ? Matrix{out + first * inputs, inputs} : Matrix{own.product, stage.in_stride};
            if (stage.winograd) {
                add_tiles(stage, piece, in, incoming, own);
                if (out == nullptr) return;
                convolve_tiles(incoming, piece, stage.width, stage.given->outputs, stage.panels[0], product, own);
            } else {
                add_taps(stage, piece, in, incoming, own);
                if (out == nullptr) return;
                convolve_back(stage, piece, incoming, product, own);
            }
            if (direct && before == nullptr) return;
            const Size rows = piece.images * stage.in_lines(piece) * stage.width;
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

    /// The weights' gradient of a piece, tap by tap.
    void add_taps(const Stage& stage, const Piece& piece, const BorderedMap& in, const BorderedMap& incoming, Own& own) {
        const Size inputs = stage.given->inputs, outputs = stage.given->outputs;
        if (stage.given->size == 1)
            return multiply_transposed(kernels_, {incoming.data, incoming.stride}, 0, outputs, {in.data, in.stride}, 0,
                                       inputs, {1, stage.rows(piece)}, {own.filter, stage.in_stride});
        const Size width = stage.out_width, step = stage.given->stride;
        for (Size image = 0; image < piece.images; ++image)
            for (int tap = 0; tap < 9; ++tap)
                multiply_transposed(kernels_, {incoming.at(image, 1, 1), incoming.stride},
                                    (incoming.width - width) * incoming.stride, outputs,
                                    {in.at(image, tap / 3, tap % 3), step * in.stride},
                                    step * (in.width - width) * in.stride, inputs, {piece.lines(), width},
                                    {own.filter + tap * outputs * stage.in_stride, stage.in_stride});
    }

    /// The gradient of the transformed weights of a piece: for each element, the product of the transformed gradients
    /// and inputs, summed over the tiles.
    void add_tiles(const Stage& stage, const Piece& piece, const BorderedMap& in, const BorderedMap& incoming, Own& own) {
        const Size inputs = stage.given->inputs, outputs = stage.given->outputs;
        list_tiles(piece, stage.width, own);
        const Size total = Size(own.tiles.size()), groups = ceil_div(total, tiles_summed(stage));
        for (Size group = 0; group < groups; ++group) {
            const Range range = share(total, groups, group);
            const Size in_element = range.size() * stage.in_stride + kElementGap;
            const Size out_element = range.size() * stage.out_stride + kElementGap;
            for (Size number = range.begin; number < range.end; ++number) {
                const Tile& tile = own.tiles[number];
                const float *input[kTile + 2], *output[kTile];
                for (int i = 0; i < kTile + 2; ++i) input[i] = in.at(tile.image, tile.y + i, tile.x);
                for (int i = 0; i < kTile; ++i) output[i] = incoming.at(tile.image, tile.y + i + 1, tile.x + 1);
                kernels_.winograd_input[0](own.in_tiles + (number - range.begin) * stage.in_stride, in_element, lanes_,
                                           input, in.stride, ceil_div(inputs, lanes_));
                training_.winograd_gradient(own.out_tiles + (number - range.begin) * stage.out_stride, out_element,
                                            lanes_, output, incoming.stride, ceil_div(outputs, lanes_));
            }
            for (int e = 0; e < kElements; ++e)
                multiply_transposed(kernels_, {own.out_tiles + e * out_element, stage.out_stride}, 0, outputs,
                                    {own.in_tiles + e * in_element, stage.in_stride}, 0, inputs, {1, range.size()},
                                    {own.filter + e * outputs * stage.in_stride, stage.in_stride});
        }
    }

    /// Adds the shares' gradients of the weights, for this member's part of the outputs.
    void reduce_weight(std::size_t number, const Team& team, int member) {
        const Stage& stage = stages_[number];
        const NormedConvolutionGradients& out = gradients_of(number);
        const Size inputs = stage.given->inputs, outputs = stage.given->outputs;
        const Range mine = share(outputs, team.size(), member);
        alignas(64) float sums[kElements * 16], taps[9 * 16];
        for (Size o = mine.begin; o < mine.end; ++o)
            for (Size begin = 0; begin < inputs; begin += lanes_) {
                for (Size tap = 0; tap < stage.taps; ++tap) {
                    const Size place = (tap * outputs + o) * stage.in_stride + begin;
                    std::copy_n(own_[0].filter + place, lanes_, sums + tap * lanes_);
                    for (std::size_t part = 1; part < own_.size(); ++part)
                        for (int lane = 0; lane < lanes_; ++lane)
                            sums[tap * lanes_ + lane] += own_[part].filter[place + lane];
                }
                if (stage.winograd) training_.winograd_filter_gradient(taps, sums, lanes_);
                const float* from = stage.winograd ? taps : sums;
                const Size some = std::min<Size>(lanes_, inputs - begin);
                for (Size tap = 0; tap < stage.given->size * stage.given->size; ++tap)
                    for (Size lane = 0; lane < some; ++lane)
                        out.weight[o * out.layout.output + (begin + lane) * out.layout.input + tap * out.layout.tap] =
                            from[tap * lanes_ + lane];
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

void residual_block_forward(const ResidualBlock& block, const Kernels& kernels, int threads) {
    Forward(block, kernels, threads).run();
}

void residual_block_backward(const ResidualBlock& block, const ResidualGradients& gradients, const Kernels& kernels,
                             int threads) {
    Backward(block, gradients, kernels, threads).run();
}

}  // namespace skipnets
