// Batch norms in training, in double precision: what is summed over the pixels and what follows from the sums.

#pragma once

#include <cmath>
#include <cstddef>
#include <vector>

#include "ranges.h"

namespace skipnets {

/// A norm with known statistics.
struct Norm {
    std::vector<float> scale, shift;  // y = x · scale + shift; whole vectors, with zeros behind the last channel
    std::vector<float> mean;
    std::vector<double> inverse_deviation;

    void set(const float* means, const float* variances, const float* gamma, const float* beta, double eps,
             std::ptrdiff_t channels) {
        scale.assign(round_up(channels, 16), 0.0f), shift.assign(scale.size(), 0.0f);
        inverse_deviation.resize(channels);
        mean.assign(means, means + channels);
        for (std::ptrdiff_t c = 0; c < channels; ++c) {
            inverse_deviation[c] = 1 / std::sqrt(double(variances[c]) + eps);
            scale[c] = float(gamma[c] * inverse_deviation[c]);
            shift[c] = float(beta[c] - double(means[c]) * scale[c]);
        }
    }
};

/// Mean and sum of squared deviations of channels, merged by the formula of Chan, Golub and LeVeque (1979).
struct Moments {
    std::vector<double> mean, squares;
    double count = 0;

    void clear(std::ptrdiff_t channels) {
        mean.assign(channels, 0.0), squares.assign(channels, 0.0);
        count = 0;
    }
    template <class Number>
    void add(double other_count, const Number* other_mean, const Number* other_squares) {
        if (other_count == 0) return;
        const double total = count + other_count;
        for (std::size_t c = 0; c < mean.size(); ++c) {
            const double difference = other_mean[c] - mean[c];
            squares[c] += other_squares[c] + difference * difference * (count * other_count / total);
            mean[c] += difference * (other_count / total);
        }
        count = total;
    }
    void add(const Moments& other) { add(other.count, other.mean.data(), other.squares.data()); }

    /// Means and variances in single precision.
    void write(float* means, float* variances) const {
        for (std::size_t c = 0; c < mean.size(); ++c) {
            means[c] = float(mean[c]);
            variances[c] = float(squares[c] / count);
        }
    }
};

/// Sums of a norm's gradient g over pixels: Σ g and Σ g · (x − mean).
struct GradientSums {
    std::vector<double> sum, product;

    void clear(std::ptrdiff_t channels) { sum.assign(channels, 0.0), product.assign(channels, 0.0); }
    template <class Number>
    void add(const Number* other_sum, const Number* other_product) {
        for (std::size_t c = 0; c < sum.size(); ++c) sum[c] += other_sum[c], product[c] += other_product[c];
    }
    void add(const GradientSums& other) { add(other.sum.data(), other.product.data()); }

    /// dγ and dβ.
    void write(const Norm& norm, float* gamma, float* beta) const {
        for (std::size_t c = 0; c < sum.size(); ++c) {
            gamma[c] = float(product[c] * norm.inverse_deviation[c]);
            beta[c] = float(sum[c]);
        }
    }
};

/// The gradient before a norm, of the gradient g behind it: g · scale + x · slope + offset.
struct NormLine {
    std::vector<float> scale, slope, offset;

    NormLine(const float* gamma, const Norm& norm, const GradientSums& sums, std::ptrdiff_t count)
        : scale(norm.scale), slope(norm.mean.size()), offset(norm.mean.size()) {
        for (std::size_t c = 0; c < slope.size(); ++c) {
            const double inverse = norm.inverse_deviation[c];
            const double projection = gamma[c] * sums.product[c] * inverse * inverse * inverse;
            slope[c] = float(-projection / double(count));
            offset[c] =
                float(-(gamma[c] * inverse * sums.sum[c]) / double(count) - double(norm.mean[c]) * slope[c]);
        }
    }
};

}  // namespace skipnets
