// Winograd's minimal filtering F(m×m, 3×3) for m = 2 and m = 4 (Lavin and Gray 2016, arXiv 1509.09308, section 4):
//
//     Y = Aᵀ [ (G g Gᵀ) ∘ (Bᵀ d B) ] A
//
// with g a 3×3 filter, d a tile of (m+2)×(m+2) inputs and Y its m×m outputs. Summed over input channels, each of
// the (m+2)² elements is a matrix product of its own: 16 multiplications make 4 outputs that cost 36 directly
// (2.25 times fewer), 36 make 16 that cost 144 (4 times fewer).
//
// The polynomial is evaluated at 0, ±1, (±2,) ∞:
//
//     m = 2:  Bᵀ = | 1  0 −1  0 |    G = |  1    0    0  |    Aᵀ = | 1  1  1  0 |
//                  | 0  1  1  0 |        | 1/2  1/2  1/2 |         | 0  1 −1 −1 |
//                  | 0 −1  1  0 |        | 1/2 −1/2  1/2 |
//                  | 0  1  0 −1 |        |  0    0    1  |
//
//     m = 4:  Bᵀ = | 4  0 −5  0  1  0 |  G = |  1/4    0     0   |  Aᵀ = | 1  1  1  1  1  0 |
//                  | 0 −4 −4  1  1  0 |      | −1/6  −1/6  −1/6  |       | 0  1 −1  2 −2  0 |
//                  | 0  4 −4 −1  1  0 |      | −1/6   1/6  −1/6  |       | 0  1  1  4  4  0 |
//                  | 0 −2 −1  2  1  0 |      |  1/24  1/12  1/6  |       | 0  1 −1  8 −8  1 |
//                  | 0  2 −1 −2  1  0 |      |  1/24 −1/12  1/6  |
//                  | 0  4  0 −5  0  1 |      |   0     0     1   |
//
// G is applied here, in double precision, once; Bᵀ and Aᵀ are written out in kernels.cpp.

#pragma once

namespace skipnets {

constexpr double kFilter2[4][3] = {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}};

constexpr double kFilter4[6][3] = {{1. / 4, 0, 0},           {-1. / 6, -1. / 6, -1. / 6}, {-1. / 6, 1. / 6, -1. / 6},
                                   {1. / 24, 1. / 12, 1. / 6}, {1. / 24, -1. / 12, 1. / 6}, {0, 0, 1}};

/// G g Gᵀ, (m+2)² numbers row by row, of a 3×3 filter.
template <int T>
void transform_filter(const double (&g_matrix)[T][3], const float* filter, double* out) {
    double half[T][3];
    for (int i = 0; i < T; ++i)
        for (int column = 0; column < 3; ++column) {
            half[i][column] = 0;
            for (int row = 0; row < 3; ++row) half[i][column] += g_matrix[i][row] * filter[3 * row + column];
        }
    for (int i = 0; i < T; ++i)
        for (int j = 0; j < T; ++j) {
            double sum = 0;
            for (int column = 0; column < 3; ++column) sum += half[i][column] * g_matrix[j][column];
            out[i * T + j] = sum;
        }
}

}  // namespace skipnets
