// How the values of a network lie in memory.
//
// Maps are (image, y, x, channel) with the channels of a pixel side by side, so that a vector is some channels of
// one pixel. Each pixel is padded to whole vectors: a kernel may read and write up to the end of the vector in
// which a pixel's (or a layer's) last channel lies. Around the pixels lies a border of zeros, written once when the
// memory is made, so that no convolution asks whether it is at an edge.

#pragma once

#include <cstddef>

namespace skipnets {

using Size = std::ptrdiff_t;

struct Map {
    int height = 0, width = 0, channels = 0;
    int border = 0;              // pixels above and on the left
    int below = 0, behind = 0;   // pixels of zeros below and on the right, the border among them
    Size pixel = 0, row = 0, image = 0;  // floats between neighbors
    int group = 1;               // images that lie one after another

    Size pixels() const { return Size(height) * width; }
    Size at(Size number, Size y, Size x) const {
        return number * image + (y + border) * row + (x + border) * pixel;
    }
};

/// A walk over the pixels of several images in the order of memory.
struct Walk {
    Size number, y, x;

    Walk(const Map& map, Size position) {
        number = position / map.pixels();
        const Size inside = position % map.pixels();
        y = inside / map.width;
        x = inside % map.width;
    }
    void next(const Map& map) {
        if (++x < map.width) return;
        x = 0;
        if (++y < map.height) return;
        y = 0;
        ++number;
    }
};

}  // namespace skipnets
