// The products of a residual block's convolutions with their weights.

#include "residual_pass.h"

namespace skipnets::residual {
namespace {

// Channels of a map into which a product is written without scratch.
constexpr Size kFewestDirect = 64;

}  // namespace

bool Pass::is_written_directly(Size channels) const {
    return channels == whole(channels) && channels >= kFewestDirect;
}

BorderedMap Pass::read_input(const Stage& stage, const Piece& piece, const float* x, const Norm* norm, Own& own) {
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

Size Pass::products(const Stage& stage, const Piece& piece) const {
    const Size rows = stage.rows(piece) / (stage.winograd() ? stage.tiles->height * stage.tiles->width : 1);
    const Panels& panels = stage.panels[0];
    return stage.taps * ceil_div(rows, tile_rows(kernels_, panels.vectors)) * panels.count();
}

void Pass::multiply(const Panels* const* panels, const Size* offsets, int taps, Size rows, Own& own) {
    const Size depth = panels[0]->depth, each = tile_rows(kernels_, panels[0]->vectors);
    const Size most = std::max(kTilesTogether, kPackedFloats / (whole(std::min(depth, kDepth)) * each)) * each;
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
                        own.ahead.fetch();
                        float* const* out = own.target.data() + mine.begin + range.begin;
                        const Rows io{adds ? out : kZeroRows, adds ? channel : 0, out, channel, nullptr, 0, false};
                        kernels_.multiply[width][range.size()](own.packed + range.begin * vectors * lanes_,
                                                               weights, deep, io);
                    }
                }
            }
    }
}

void Pass::convolve_tiles(const Stage& stage, const BorderedMap& map, const Piece& piece, Size width, Size channels,
                          const Matrix& out, bool adds, Own& own) {
    const Panels& panels = stage.panels[0];
    const TileKernels& size = *stage.tiles;
    const Size elements = size.elements();
    const Size each = tile_rows(kernels_, panels.vectors), vectors = whole(channels) / lanes_;
    list_tiles(piece, width, size, own);
    for (Tile& tile : own.tiles) {
        tile.input = map.at(tile.image, tile.y, tile.x);
        tile.output = out.data + ((tile.image * piece.lines() + tile.y) * width + tile.x) * out.stride;
    }
    const Size total = Size(own.tiles.size()), together = kTilesTogether * each;
    const Size groups = std::max<Size>((total + together / 2) / together, 1);
    for (Size group = 0; group < groups; ++group) {
        const Range mine = share(total, groups, group);
        const Tile* const tiles = own.tiles.data() + mine.begin;
        const Size count = ceil_div(mine.size(), each);
        const auto packed = [&](Size number, const Range& range) {
            return own.packed + elements * (range.begin * vectors * lanes_ + number * kElementGap);
        };
        const auto element = [&](const Range& range) { return vectors * range.size() * lanes_ + kElementGap; };
        for (Size number = 0; number < count; ++number) {
            const Range range = share(mine.size(), count, number);
            float* to = packed(number, range);
            for (Size r = range.begin; r < range.end; ++r, to += lanes_) {
                const float* source[kMostTile + 2];
                for (int i = 0; i < size.height + 2; ++i) source[i] = tiles[r].input + i * map.line();
                size.input(to, element(range), range.size() * lanes_, source, map.stride, vectors);
            }
        }
        for (Size panel = 0; panel < panels.count(); ++panel) {
            const int wide = panels.width(panel);
            const Size columns = wide * lanes_, step = mine.size() * columns + kElementGap;
            for (Size r = 0; r < mine.size(); ++r) own.target[r] = own.elements + r * columns;
            for (Size e = 0; e < elements; ++e)
                for (Size number = 0; number < count; ++number) {
                    const Range range = share(mine.size(), count, number);
                    own.ahead.fetch();
                    const Rows io{kZeroRows, 0, own.target.data() + range.begin, e * step, nullptr, 0, false};
                    kernels_.multiply[wide][range.size()](packed(number, range) + e * element(range),
                                                          panels.at(panel) + e * channels * columns, channels, io);
                }
            for (Size r = 0; r < mine.size(); ++r) {
                float* const first = tiles[r].output + panels.first(panel);
                float* target[kMostTile];
                for (int i = 0; i < size.height; ++i) target[i] = first + i * width * out.stride;
                size.output(own.target[r], step, wide, target, out.stride, tiles[r].height, tiles[r].width, kZeros,
                            adds ? target : nullptr, out.stride, false);
            }
        }
    }
}

/// The tiles of a piece, image by image and line by line.
void Pass::list_tiles(const Piece& piece, Size width, const TileKernels& size, Own& own) {
    own.tiles.clear();
    for (Size image = 0; image < piece.images; ++image)
        for (Size y = 0; y < piece.lines(); y += size.height)
            for (Size x = 0; x < width; x += size.width)
                own.tiles.push_back({image, y, x, int(std::min<Size>(size.height, piece.lines() - y)),
                                     int(std::min<Size>(size.width, width - x)), nullptr, nullptr});
}

}  // namespace skipnets::residual
