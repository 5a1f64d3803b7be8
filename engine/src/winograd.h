// Winograd's minimal filtering F(m×m, 3×3) for m = 2 and m = 4 (Lavin and Gray 2016, arXiv 1509.09308, section 4):
//
//     Y = Aᵀ [ (G g Gᵀ) ∘ (Bᵀ d B) ] A
//
// with g a 3×3 filter, d a tile of (m+2)×(m+2) inputs and Y its m×m outputs. Summed over input channels, each of
// the (m+2)² elements is a matrix product of its own: 16 multiplications make 4 outputs that cost 36 directly
// (2.25 times fewer), 36 make 16 that cost 144 (4 times fewer).
//
// The products are evaluated at 0, ±1, ∞ for m = 2 and, with r = 1/√2, at 0, ±r, ±2r, ∞ for m = 4:
//
//     m = 2:  Bᵀ = | 1  0 −1  0 |    G = |  1    0    0  |    Aᵀ = | 1  1  1  0 |
//                  | 0  1  1  0 |        | 1/2  1/2  1/2 |         | 0  1 −1 −1 |
//                  | 0 −1  1  0 |        | 1/2 −1/2  1/2 |
//                  | 0  1  0 −1 |        |  0    0    1  |
//
//     m = 4:  Bᵀ = | 1   0  −5/2   0   1  0 |  G = |   1     0     0   |  Aᵀ = | 1   1    1   1   1  0 |
//                  | 0 −2r  −2     r   1  0 |      | −2/3 −2r/3  −1/3  |       | 0   r   −r  2r −2r  0 |
//                  | 0  2r  −2    −r   1  0 |      | −2/3  2r/3  −1/3  |       | 0  1/2  1/2  2   2  0 |
//                  | 0  −r  −1/2  2r   1  0 |      |  1/6   r/3   1/3  |       | 0  r/2 −r/2 4r −4r  1 |
//                  | 0   r  −1/2 −2r   1  0 |      |  1/6  −r/3   1/3  |
//                  | 0   1   0   −5/2  0  1 |      |   0     0     1   |
//
// The usual points for m = 4 are 0, ±1, ±2, ∞. Scaled by r their squares have the product 1, no entry is larger than
// 5/2, and the rounding errors are 2.3 times smaller: over 512 channels 1.6e-6 instead of 3.7e-6 of the result, where
// the direct sum in single precision has 0.8e-6.
//
// G is applied here, in double precision, once; Bᵀ and Aᵀ are written out in kernels.cpp.

#pragma once

namespace skipnets {

constexpr double kFilter2[4][3] = {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}};

constexpr double kRoot = 0.70710678118654752440;  // r

constexpr double kFilter4[6][3] = {{1, 0, 0},
                                   {-2. / 3, -2. / 3 * kRoot, -1. / 3},
                                   {-2. / 3, 2. / 3 * kRoot, -1. / 3},
                                   {1. / 6, 1. / 3 * kRoot, 1. / 3},
                                   {1. / 6, -1. / 3 * kRoot, 1. / 3},
                                   {0, 0, 1}};

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
