// How work is cut into parts, and numbers rounded to whole ones.

#pragma once

#include <cstddef>

namespace skipnets {

using Size = std::ptrdiff_t;

struct Range {
    Size begin, end;

    Size size() const { return end - begin; }
};

/// Part number `part` of `parts` of nearly the same size.
inline Range share(Size total, Size parts, Size part) {
    return {total * part / parts, total * (part + 1) / parts};
}

inline Size ceil_div(Size a, Size b) { return (a + b - 1) / b; }

inline Size round_up(Size a, Size b) { return ceil_div(a, b) * b; }

}  // namespace skipnets
