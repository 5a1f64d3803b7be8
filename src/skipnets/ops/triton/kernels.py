"""The kernels of a dense block: what `skipnets.ops.dense_block` derives, for a GPU.

One layer is six kernels' work besides the short ones that finish partial sums:

    bottleneck_forward          norm1 → ReLU → 1×1, read from the features, statistics of the result
    growth_forward              norm2 → ReLU → 3×3 into the features, statistics of the result
    complete_gradient           a layer's whole output gradient: what accumulated, and the norms' correction
    growth_input_gradient       back through the 3×3 and the ReLU, sums for norm2
    growth_weight_gradient      of the 3×3; on the way, back through norm2
    bottleneck_backward         back through the 1×1 and the ReLU into the gradient buffer; weight gradient
                                of the 1×1, sums for norm1

Norm and ReLU are applied in registers to what is loaded, never stored. Programs are persistent: each works
through many tiles of rows, so that there are few partial sums; these are finished in a fixed order, which
makes a step repeat bit for bit. Widths that are no powers of two are masked.

Shapes: M = N·H·W rows; C channels that the layer reads; K of its bottleneck; G of its growth, with KP and GP
    the next powers of two. Matrices are row-major; `…_stride` is the distance between rows.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _tile_statistics(values, valid):
    """Count, mean and sum of squared deviations of each column of a tile, over its valid rows."""
    count = tl.sum(valid.to(tl.float32), 0)
    values = tl.where(valid[:, None], values.to(tl.float32), 0.0)
    mean = tl.sum(values, 0) / count
    deviation = tl.where(valid[:, None], values - mean[None, :], 0.0)
    return count, mean, tl.sum(deviation * deviation, 0)


@triton.jit
def _merged(count, mean, squares, tile_count, tile_mean, tile_squares):
    """Chan's formula: the statistics of two sets of rows together."""
    total = count + tile_count
    share = tile_count / total
    delta = tile_mean - mean
    return total, mean + delta * share, squares + tile_squares + delta * delta * (count * share)


@triton.jit
def _add_statistics(partial, program, programs, columns, mask, width, is_first, values, valid):
    """Merge a tile's statistics into the program's own, in `partial` (3, programs, width).

    They wait in memory, not in registers, of which a matrix product leaves none to spare.
    """
    tile_count, tile_mean, tile_squares = _tile_statistics(values, valid)
    at = partial + program * width + columns
    size = programs * width
    has_own = mask & (is_first == 0)
    count = tl.load(at, mask=has_own, other=0.0)
    mean = tl.load(at + size, mask=has_own, other=0.0)
    squares = tl.load(at + 2 * size, mask=has_own, other=0.0)
    count, mean, squares = _merged(count, mean, squares, tile_count, tile_mean, tile_squares)
    tl.store(at, count, mask=mask)
    tl.store(at + size, mean, mask=mask)
    tl.store(at + 2 * size, squares, mask=mask)
    tl.debug_barrier()  # What one thread has stored, another loads for the next tile.


@triton.jit
def _add_sums(partial, program, programs, columns, mask, width, is_first, first_sum, second_sum):
    """Add a tile's two sums to the program's own, in `partial` (2, programs, width)."""
    at = partial + program * width + columns
    has_own = mask & (is_first == 0)
    first_sum += tl.load(at, mask=has_own, other=0.0)
    second_sum += tl.load(at + programs * width, mask=has_own, other=0.0)
    tl.store(at, first_sum, mask=mask)
    tl.store(at + programs * width, second_sum, mask=mask)
    tl.debug_barrier()


@triton.jit
def _total(partial, programs, width, columns, mask, BLOCK_P: tl.constexpr):
    """Sums over `programs` of columns of partial (programs, width), in a fixed order."""
    total = tl.zeros(columns.shape, tl.float32)
    for start in range(0, programs, BLOCK_P):
        parts = start + tl.arange(0, BLOCK_P)
        at = parts[:, None].to(tl.int64) * width + columns[None, :]
        total += tl.sum(tl.load(partial + at, mask=(parts < programs)[:, None] & mask[None, :], other=0.0), 0)
    return total


@triton.jit
def relu(z):
    """As PyTorch's, NaN of NaN: `tl.maximum` by itself would make it 0."""
    return tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def passes_relu(z):
    """Where the gradient of relu(z) passes: as PyTorch's also where z is NaN."""
    return (z > 0) | (z != z)


@triton.jit(do_not_specialize=["M", "C"])
def input_columns(
    x,
    x_stride,
    features,
    features_stride,
    partial,
    M,
    C,
    BLOCK_C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    COPIES: tl.constexpr,
):
    """Partial statistics of x (M, C); copy it into the first columns of the features if `COPIES`.

    Grid: (columns, programs).
    """
    columns = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    program, programs = tl.program_id(1), tl.num_programs(1)
    column_mask = columns < C
    for tile in range(program, tl.cdiv(M, BLOCK_M), programs):
        rows = tl.cast(tile, tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
        valid = rows < M
        mask = valid[:, None] & column_mask[None, :]
        values = tl.load(x + rows[:, None] * x_stride + columns[None, :], mask=mask, other=0.0)
        if COPIES:
            tl.store(features + rows[:, None] * features_stride + columns[None, :], values, mask=mask)
        is_first = tile == program
        _add_statistics(partial, program, programs, columns, column_mask, C, is_first, values, valid)


@triton.jit(do_not_specialize=["programs", "first", "width", "C"])
def finish_statistics(
    partial,
    programs,
    mean,
    variance,
    first,
    width,
    gamma,
    beta,
    eps,
    scale,
    shift,
    C,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    HAS_NORM: tl.constexpr,
):
    """Statistics of columns [first, first + width) from their parts; scale and shift of a norm of all C.

    A program whose columns are older only makes scale and shift. Grid: (columns / BLOCK_C,).
    """
    columns = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = columns < C
    new = (columns >= first) & mask
    if (tl.program_id(0) + 1) * BLOCK_C > first:
        total = tl.zeros((BLOCK_C,), tl.float32)
        weighted = tl.zeros((BLOCK_C,), tl.float32)
        for start in range(0, programs, BLOCK_P):
            parts = start + tl.arange(0, BLOCK_P)
            at = parts[:, None] * width + (columns - first)[None, :]
            inside = (parts < programs)[:, None] & new[None, :]
            count = tl.load(partial + at, mask=inside, other=0.0)
            part_mean = tl.load(partial + programs * width + at, mask=inside, other=0.0)
            total += tl.sum(count, 0)
            weighted += tl.sum(count * part_mean, 0)
        total = tl.maximum(total, 1.0)  # Older columns have no parts here.
        new_mean = weighted / total
        squares = tl.zeros((BLOCK_C,), tl.float32)
        for start in range(0, programs, BLOCK_P):
            parts = start + tl.arange(0, BLOCK_P)
            at = parts[:, None] * width + (columns - first)[None, :]
            inside = (parts < programs)[:, None] & new[None, :]
            count = tl.load(partial + at, mask=inside, other=0.0)
            part_mean = tl.load(partial + programs * width + at, mask=inside, other=0.0)
            part_squares = tl.load(partial + 2 * programs * width + at, mask=inside, other=0.0)
            delta = part_mean - new_mean[None, :]
            squares += tl.sum(part_squares + tl.where(inside, delta * delta * count, 0.0), 0)
        tl.store(mean + columns, new_mean, mask=new)
        tl.store(variance + columns, squares / total, mask=new)
        tl.debug_barrier()
    if HAS_NORM:
        own_mean = tl.load(mean + columns, mask=mask, other=0.0)
        own_variance = tl.load(variance + columns, mask=mask, other=0.0)
        own_scale = tl.load(gamma + columns, mask=mask, other=0.0) / tl.sqrt(own_variance + eps)
        tl.store(scale + columns, own_scale, mask=mask)
        tl.store(
            shift + columns, tl.load(beta + columns, mask=mask, other=0.0) - own_mean * own_scale, mask=mask
        )


@triton.jit(do_not_specialize=["M", "C"])
def bottleneck_forward(
    features,
    features_stride,
    scale,
    shift,
    weight,
    weight_stride,
    out,
    partial,
    M,
    C,
    C16,
    K: tl.constexpr,
    KP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STATISTICS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The bottleneck (M, K) = relu(norm1(features[:, :C])) · weightᵀ (K, C); partial statistics of it.

    Columns up to C16, C rounded up, may be read: they count as 0. Grid: (programs,).
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    outputs = tl.arange(0, KP)
    output_mask = outputs < K
    for tile in range(program, tl.cdiv(M, BLOCK_M), programs):
        start = tl.cast(tile, tl.int64) * BLOCK_M
        lines = tl.arange(0, BLOCK_M)
        valid = lines < M - start
        source = features + start * features_stride + lines[:, None] * features_stride
        total = tl.zeros((BLOCK_M, KP), tl.float32)
        for first in range(0, C16, BLOCK_C):
            columns = first + tl.arange(0, BLOCK_C)
            readable = columns < C16
            x = tl.load(source + columns[None, :], mask=valid[:, None] & readable[None, :], other=0.0)
            w = tl.load(
                weight + outputs[None, :] * weight_stride + columns[:, None],
                mask=readable[:, None] & output_mask[None, :],
                other=0.0,
            )
            s = tl.load(scale + columns, mask=columns < C, other=0.0)
            t = tl.load(shift + columns, mask=columns < C, other=0.0)
            x = tl.where((columns < C)[None, :], x.to(tl.float32), 0.0)
            activated = relu(x * s[None, :] + t[None, :]).to(w.dtype)
            total = tl.dot(activated, w, total, input_precision=PRECISION)
        y = total.to(out.dtype.element_ty)
        tl.store(
            out + start * K + lines[:, None] * K + outputs[None, :],
            y,
            mask=valid[:, None] & output_mask[None, :],
        )
        if STATISTICS:
            is_first = tile == program
            _add_statistics(partial, program, programs, outputs, output_mask, K, is_first, y, valid)


@triton.jit(do_not_specialize=["M", "H", "W"])
def growth_forward(
    bottleneck,
    scale,
    shift,
    weight,
    features,
    features_stride,
    partial,
    M,
    H,
    W,
    K: tl.constexpr,
    G: tl.constexpr,
    GP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """features[:, :G] = conv3×3(relu(norm2(bottleneck (M, K)))), weight (G, 9, K); partial statistics of it.

    `features` begins at the layer's own columns. For each of the kernel's three rows, a tile of positions
    is loaded and normalized once and multiplied by the weights of three columns; the three products belong
    to neighboring positions and are moved there at the end. Tiles therefore overlap by a position on
    either side. Grid: (programs,).
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    lines = tl.arange(0, BLOCK_M)
    outputs = tl.arange(0, GP)
    output_mask = outputs < G
    to_left = tl.maximum(lines - 1, 0)[:, None] + tl.zeros((BLOCK_M, GP), tl.int32)
    to_right = tl.minimum(lines + 1, BLOCK_M - 1)[:, None] + tl.zeros((BLOCK_M, GP), tl.int32)
    chunks: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    for tile in range(program, tl.cdiv(M, BLOCK_M - 2), programs):
        start = tile * (BLOCK_M - 2) - 1
        rows = start + lines
        h = (rows // W) % H
        w = rows % W
        left = tl.zeros((BLOCK_M, GP), tl.float32)
        middle = tl.zeros((BLOCK_M, GP), tl.float32)
        right = tl.zeros((BLOCK_M, GP), tl.float32)
        source = bottleneck + tl.cast(start, tl.int64) * K + lines[:, None] * K
        for step in range(3 * chunks):
            dh = step // chunks - 1
            inputs = step % chunks * BLOCK_K + tl.arange(0, BLOCK_K)
            input_mask = inputs < K
            inside = (rows >= 0) & (rows < M) & (h + dh >= 0) & (h + dh < H)
            b = tl.load(
                source + dh * W * K + inputs[None, :], mask=inside[:, None] & input_mask[None, :], other=0.0
            )
            s = tl.load(scale + inputs, mask=input_mask, other=0.0)
            t = tl.load(shift + inputs, mask=input_mask, other=0.0)
            taps = weight + outputs[None, :] * (9 * K) + (dh + 1) * 3 * K + inputs[:, None]
            weight_mask = input_mask[:, None] & output_mask[None, :]
            left_weight = tl.load(taps, mask=weight_mask, other=0.0)
            middle_weight = tl.load(taps + K, mask=weight_mask, other=0.0)
            right_weight = tl.load(taps + 2 * K, mask=weight_mask, other=0.0)
            activated = relu(b.to(tl.float32) * s[None, :] + t[None, :])
            activated = tl.where(inside[:, None], activated, 0.0).to(b.dtype)
            left = tl.dot(activated, left_weight, left, input_precision=PRECISION)
            middle = tl.dot(activated, middle_weight, middle, input_precision=PRECISION)
            right = tl.dot(activated, right_weight, right, input_precision=PRECISION)
        left = tl.where((w > 0)[:, None], tl.gather(left, to_left, 0), 0.0)
        right = tl.where((w < W - 1)[:, None], tl.gather(right, to_right, 0), 0.0)
        y = (left + middle + right).to(features.dtype.element_ty)
        valid = (lines > 0) & (lines < BLOCK_M - 1) & (rows < M)
        target = features + tl.cast(start, tl.int64) * features_stride + lines[:, None] * features_stride
        tl.store(target + outputs[None, :], y, mask=valid[:, None] & output_mask[None, :])
        _add_statistics(partial, program, programs, outputs, output_mask, G, tile == program, y, valid)


@triton.jit(do_not_specialize=["M"])
def complete_gradient(
    gradient,
    gradient_stride,
    features,
    features_stride,
    slope,
    offset,
    out,
    out_stride,
    M,
    C,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Gradient + features·slope + offset, (M, C) each, into `out`, padded with 0. Grid: (rows, columns)."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    column_mask = columns < C
    mask = (rows < M)[:, None] & column_mask[None, :]
    g = tl.load(gradient + rows[:, None] * gradient_stride + columns[None, :], mask=mask, other=0.0)
    x = tl.load(features + rows[:, None] * features_stride + columns[None, :], mask=mask, other=0.0)
    a = tl.load(slope + columns, mask=column_mask, other=0.0)
    b = tl.load(offset + columns, mask=column_mask, other=0.0)
    y = g.to(tl.float32) + (x.to(tl.float32) * a[None, :] + b[None, :])
    out_mask = (rows < M)[:, None] & (columns < out_stride)[None, :]
    y = tl.where(column_mask[None, :], y, 0.0)
    tl.store(out + rows[:, None] * out_stride + columns[None, :], y.to(out.dtype.element_ty), mask=out_mask)


@triton.jit(do_not_specialize=["M", "H", "W"])
def growth_input_gradient(
    gradient,
    weight,
    bottleneck,
    mean,
    variance,
    eps,
    scale,
    shift,
    out,
    partial,
    M,
    H,
    W,
    K: tl.constexpr,
    KP: tl.constexpr,
    G: tl.constexpr,
    GP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Take the gradient (M, GP) back through the 3×3 convolution and the ReLU of norm2, into out (M, K).

    Its sums and those of out·x̂ go to `partial` (2, programs, K). Grid: (programs,).
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    lines = tl.arange(0, BLOCK_M)
    inputs = tl.arange(0, KP)
    input_mask = inputs < K
    outputs = tl.arange(0, GP)
    weight_mask = (outputs < G)[:, None] & input_mask[None, :]
    for tile in range(program, tl.cdiv(M, BLOCK_M), programs):
        start = tile * BLOCK_M
        rows = start + lines
        h = (rows // W) % H
        w = rows % W
        valid = rows < M
        source = gradient + tl.cast(start, tl.int64) * GP + lines[:, None] * GP + outputs[None, :]
        total = tl.zeros((BLOCK_M, KP), tl.float32)
        for tap in range(9):
            dh = 1 - tap // 3
            dw = 1 - tap % 3
            inside = valid & (h + dh >= 0) & (h + dh < H) & (w + dw >= 0) & (w + dw < W)
            d = tl.load(source + (dh * W + dw) * GP, mask=inside[:, None], other=0.0)
            taps = tl.load(
                weight + outputs[:, None] * (9 * K) + tap * K + inputs[None, :], mask=weight_mask, other=0.0
            )
            total = tl.dot(d, taps, total, input_precision=PRECISION)
        at = tl.cast(start, tl.int64) * K + lines[:, None] * K + inputs[None, :]
        mask = valid[:, None] & input_mask[None, :]
        b = tl.load(bottleneck + at, mask=mask, other=0.0).to(tl.float32)
        s = tl.load(scale + inputs, mask=input_mask, other=0.0)
        t = tl.load(shift + inputs, mask=input_mask, other=0.0)
        masked = tl.where(passes_relu(b * s[None, :] + t[None, :]) & mask, total, 0.0)
        tl.store(out + at, masked.to(out.dtype.element_ty), mask=mask)
        mu = tl.load(mean + inputs, mask=input_mask, other=0.0)
        inverse_std = 1.0 / tl.sqrt(tl.load(variance + inputs, mask=input_mask, other=0.0) + eps)
        beta_sum = tl.sum(masked, 0)
        gamma_sum = tl.sum(masked * (b - mu[None, :]), 0) * inverse_std
        is_first = tile == program
        _add_sums(partial, program, programs, inputs, input_mask, K, is_first, beta_sum, gamma_sum)


@triton.jit(do_not_specialize=["programs", "width"])
def finish_sums(
    partial,
    programs,
    out,
    width,
    BLOCK_P: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Rows of out (n, width): sums over `programs` of partial (n, programs, width). Grid: (columns, n)."""
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.program_id(1)
    mask = columns < width
    first = partial + row.to(tl.int64) * programs * width
    total = _total(first, programs, width, columns, mask, BLOCK_P)
    tl.store(out + row * width + columns, total, mask=mask)


@triton.jit(do_not_specialize=["M", "H", "W", "rows_each"])
def growth_weight_gradient(
    bottleneck,
    scale,
    shift,
    gradient,
    partial,
    masked,
    mean,
    variance,
    eps,
    sums,
    out,
    M,
    H,
    W,
    rows_each,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    G: tl.constexpr,
    GP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The 3×3 weights' gradient over one share of the rows, in partial (programs, G, 9, K).

    As the bottleneck is loaded, `masked` (M, K), the gradient behind norm2's ReLU, is taken back through
    norm2 into `out`, too; `sums` (2, K) are dβ₂ and dγ₂. The activated bottleneck is loaded once and meets
    the gradient at nine neighbors: eight side by side in one product, the last in another.
    Grid: (chunks of K, programs).
    """
    inputs = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    program = tl.program_id(1)
    input_mask = inputs < K
    s = tl.load(scale + inputs, mask=input_mask, other=0.0)
    t = tl.load(shift + inputs, mask=input_mask, other=0.0)
    inverse_std = 1.0 / tl.sqrt(tl.load(variance + inputs, mask=input_mask, other=0.0) + eps)
    slope = -s * inverse_std * tl.load(sums + K + inputs, mask=input_mask, other=0.0) / M
    offset = -s * tl.load(sums + inputs, mask=input_mask, other=0.0) / M
    offset -= tl.load(mean + inputs, mask=input_mask, other=0.0) * slope
    lines = tl.arange(0, BLOCK_M)
    pairs = tl.arange(0, 8 * GP)
    dh = pairs // GP // 3 - 1
    dw = pairs // GP % 3 - 1
    pair_output = pairs % GP
    outputs = tl.arange(0, GP)
    eight = tl.zeros((BLOCK_K, 8 * GP), tl.float32)
    ninth = tl.zeros((BLOCK_K, GP), tl.float32)
    end = tl.minimum(M, (program + 1) * rows_each)
    for start in range(program * rows_each, end, BLOCK_M):
        rows = start + lines
        valid = rows < end
        h = (rows // W) % H
        w = rows % W
        base = tl.cast(start, tl.int64)
        at = base * K + lines[:, None] * K + inputs[None, :]
        mask = valid[:, None] & input_mask[None, :]
        b = tl.load(bottleneck + at, mask=mask, other=0.0)
        g = tl.load(masked + at, mask=mask, other=0.0).to(tl.float32)
        x = b.to(tl.float32)
        through_norm = g * s[None, :] + (x * slope[None, :] + offset[None, :])
        tl.store(out + at, through_norm.to(b.dtype), mask=mask)
        activated = relu(x * s[None, :] + t[None, :])
        activated = tl.trans(tl.where(valid[:, None], activated, 0.0).to(b.dtype))
        from_h = h[:, None] - dh[None, :]
        from_w = w[:, None] - dw[None, :]
        inside = valid[:, None] & (from_h >= 0) & (from_h < H) & (from_w >= 0) & (from_w < W)
        moved = lines[:, None] - (dh * W + dw)[None, :]
        d = tl.load(gradient + base * GP + moved * GP + pair_output[None, :], mask=inside, other=0.0)
        eight = tl.dot(activated, d, eight, input_precision=PRECISION)
        inside = valid & (h >= 1) & (w >= 1)
        d = tl.load(
            gradient + base * GP + (lines - W - 1)[:, None] * GP + outputs[None, :],
            mask=inside[:, None],
            other=0.0,
        )
        ninth = tl.dot(activated, d, ninth, input_precision=PRECISION)
    target = partial + program.to(tl.int64) * (G * 9 * K)
    tl.store(
        target + pair_output[None, :] * (9 * K) + (pairs // GP)[None, :] * K + inputs[:, None],
        eight,
        mask=input_mask[:, None] & (pair_output < G)[None, :],
    )
    tl.store(
        target + outputs[None, :] * (9 * K) + 8 * K + inputs[:, None],
        ninth,
        mask=input_mask[:, None] & (outputs < G)[None, :],
    )


@triton.jit(do_not_specialize=["M", "C", "rows_each"])
def bottleneck_backward(
    bottleneck_gradient,
    weight,
    weight_stride,
    features,
    features_stride,
    mean,
    variance,
    eps,
    scale,
    shift,
    gradient,
    gradient_stride,
    gradient_columns,
    out,
    out_stride,
    weight_partial,
    sums_partial,
    M,
    C,
    C16,
    rows_each,
    K: tl.constexpr,
    KP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Back through the 1×1 convolution and norm1's ReLU for one chunk of columns and one share of the rows.

    With g the result behind the ReLU: out[:, :C] = gradient + γ₁ s₁ g (out may be gradient); the weights'
    gradient to weight_partial (programs, K, C); Σ g and Σ g x̂ to sums_partial (2, programs, C). Columns from
    C to C16, which later layers have done with, may be read and written: wide accesses need rows of 16.
    Grid: (chunks of C, programs).
    """
    columns = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    program, programs = tl.program_id(1), tl.num_programs(1)
    column_mask = columns < C
    readable = columns < C16
    inputs = tl.arange(0, KP)
    input_mask = inputs < K
    lines = tl.arange(0, BLOCK_M)
    s = tl.load(scale + columns, mask=column_mask, other=0.0)
    t = tl.load(shift + columns, mask=column_mask, other=0.0)
    mu = tl.load(mean + columns, mask=column_mask, other=0.0)
    w = tl.load(
        weight + inputs[:, None] * weight_stride + columns[None, :],
        mask=input_mask[:, None] & readable[None, :],
        other=0.0,
    )
    weight_gradient = tl.zeros((BLOCK_C, KP), tl.float32)
    beta_sum = tl.zeros((BLOCK_C,), tl.float32)
    gamma_sum = tl.zeros((BLOCK_C,), tl.float32)
    end = tl.minimum(M, (program + 1) * rows_each)
    for start in range(program * rows_each, end, BLOCK_M):
        valid = lines < end - start
        base = tl.cast(start, tl.int64)
        d = tl.load(
            bottleneck_gradient + base * K + lines[:, None] * K + inputs[None, :],
            mask=valid[:, None] & input_mask[None, :],
            other=0.0,
        )
        x = tl.load(
            features + base * features_stride + lines[:, None] * features_stride + columns[None, :],
            mask=valid[:, None] & readable[None, :],
            other=0.0,
        )
        x = tl.where(column_mask[None, :], x.to(tl.float32), 0.0)
        z = x * s[None, :] + t[None, :]
        incoming = tl.dot(d, w, input_precision=PRECISION)
        g = tl.where(passes_relu(z) & valid[:, None], incoming, 0.0)
        beta_sum += tl.sum(g, 0)
        gamma_sum += tl.sum(g * (x - mu[None, :]), 0)
        old = tl.load(
            gradient + base * gradient_stride + lines[:, None] * gradient_stride + columns[None, :],
            mask=valid[:, None] & (columns < gradient_columns)[None, :],
            other=0.0,
        )
        tl.store(
            out + base * out_stride + lines[:, None] * out_stride + columns[None, :],
            (tl.where(column_mask[None, :], old.to(tl.float32), 0.0) + g * s[None, :]).to(
                out.dtype.element_ty
            ),
            mask=valid[:, None] & readable[None, :],
        )
        activated = tl.trans(tl.where(valid[:, None], relu(z), 0.0).to(w.dtype))
        weight_gradient = tl.dot(activated, d, weight_gradient, input_precision=PRECISION)
    tl.store(
        weight_partial + program.to(tl.int64) * (K * C) + inputs[None, :] * C + columns[:, None],
        weight_gradient,
        mask=column_mask[:, None] & input_mask[None, :],
    )
    inverse_std = 1.0 / tl.sqrt(tl.load(variance + columns, mask=column_mask, other=0.0) + eps)
    tl.store(sums_partial + program * C + columns, beta_sum, mask=column_mask)
    tl.store(sums_partial + (programs + program) * C + columns, gamma_sum * inverse_std, mask=column_mask)


@triton.jit(do_not_specialize=["programs1", "programs2", "width2", "M", "C"])
def finish_layer(
    sums_partial,
    weight1_partial,
    programs1,
    weight2_partial,
    programs2,
    sums,
    weight1_gradient,
    weight2_gradient,
    width2,
    mean,
    variance,
    eps,
    scale,
    slope,
    offset,
    M,
    C,
    K: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """All of a layer's partial sums: dβ₁, dγ₁ (2, C), both weights' gradients, and the correction lines.

    Grid: (blocks of C + blocks of C·K + blocks of width2,).
    """
    program = tl.program_id(0)
    norm_blocks = tl.cdiv(C, BLOCK)
    weight1_blocks = tl.cdiv(C * K, BLOCK)
    if program < norm_blocks:
        columns = program * BLOCK + tl.arange(0, BLOCK)
        mask = columns < C
        beta_sum = _total(sums_partial, programs1, C, columns, mask, BLOCK_P)
        gamma_sum = _total(sums_partial + programs1 * C, programs1, C, columns, mask, BLOCK_P)
        tl.store(sums + columns, beta_sum, mask=mask)
        tl.store(sums + C + columns, gamma_sum, mask=mask)
        s = tl.load(scale + columns, mask=mask, other=0.0)
        inverse_std = 1.0 / tl.sqrt(tl.load(variance + columns, mask=mask, other=0.0) + eps)
        mu = tl.load(mean + columns, mask=mask, other=0.0)
        own_slope = -s * inverse_std * gamma_sum / M
        own_offset = -s * beta_sum / M - mu * own_slope
        tl.store(slope + columns, tl.load(slope + columns, mask=mask, other=0.0) + own_slope, mask=mask)
        tl.store(offset + columns, tl.load(offset + columns, mask=mask, other=0.0) + own_offset, mask=mask)
    elif program < norm_blocks + weight1_blocks:
        columns = (program - norm_blocks) * BLOCK + tl.arange(0, BLOCK)
        mask = columns < C * K
        total = _total(weight1_partial, programs1, C * K, columns, mask, BLOCK_P)
        tl.store(weight1_gradient + columns, total, mask=mask)
    else:
        columns = (program - norm_blocks - weight1_blocks) * BLOCK + tl.arange(0, BLOCK)
        mask = columns < width2
        total = _total(weight2_partial, programs2, width2, columns, mask, BLOCK_P)
        tl.store(weight2_gradient + columns, total, mask=mask)
