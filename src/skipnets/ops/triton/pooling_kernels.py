"""The kernels of norm → ReLU → pooling: 2×2 means in a transition, 3×3 maxima at stride 2 in the stem.

Norm and ReLU are applied in registers. The backward pass is two kernels, as the norm's gradient needs sums
over all rows first; both find out again what reaches a row through the pooling.

Shapes: M = N·H·W rows of C channels before pooling, P rows after it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from skipnets.ops.triton.kernels import passes_relu, relu


@triton.jit(do_not_specialize=["P", "H", "W"])
def pool_activated(x, x_stride, scale, shift, out, P, C, H, W, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr):
    """A transition's pooled maps (P, C): 2×2 means of relu(norm(x (M, C))). Grid: (rows, columns)."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    column_mask = columns < C
    mask = (rows < P)[:, None] & column_mask[None, :]
    s = tl.load(scale + columns, mask=column_mask, other=0.0)
    t = tl.load(shift + columns, mask=column_mask, other=0.0)
    image = (rows // ((H // 2) * (W // 2))).to(tl.int64)
    first = (image * H + 2 * (rows // (W // 2) % (H // 2))) * W + 2 * (rows % (W // 2))
    total = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for place in tl.static_range(4):
        at = first + (place // 2) * W + place % 2
        values = tl.load(x + at[:, None] * x_stride + columns[None, :], mask=mask, other=0.0)
        total += relu(values.to(tl.float32) * s[None, :] + t[None, :])
    target = out + rows[:, None].to(tl.int64) * C + columns[None, :]
    tl.store(target, (0.25 * total).to(out.dtype.element_ty), mask=mask)


@triton.jit
def _unpooled_means(gradient, rows, columns, mask, C, H, W):
    """The gradient of 2×2 means (P, C) at rows of what was pooled: a quarter, and 0 of an odd last one."""
    h = rows // W % H
    w = rows % W
    pooled = mask & ((h < H // 2 * 2) & (w < W // 2 * 2))[:, None]
    image = (rows // (H * W)).to(tl.int64)
    at = (image * (H // 2) + h // 2) * (W // 2) + w // 2
    return 0.25 * tl.load(gradient + at[:, None] * C + columns[None, :], mask=pooled, other=0.0).to(
        tl.float32
    )


@triton.jit(do_not_specialize=["P", "H", "W"])
def max_pool_activated(
    x, x_stride, scale, shift, out, places, P, C, H, W, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr
):
    """The stem's pooled maps (P, C): maxima of relu(norm(x (M, C))) over 3×3 at stride 2, and where (0–8).

    Grid: (rows, columns).
    """
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    column_mask = columns < C
    mask = (rows < P)[:, None] & column_mask[None, :]
    s = tl.load(scale + columns, mask=column_mask, other=0.0)
    t = tl.load(shift + columns, mask=column_mask, other=0.0)
    pooled_h = (H + 1) // 2
    pooled_w = (W + 1) // 2
    image = (rows // (pooled_h * pooled_w)).to(tl.int64)
    top = 2 * (rows // pooled_w % pooled_h) - 1
    left = 2 * (rows % pooled_w) - 1
    best = tl.full((BLOCK_M, BLOCK_C), -1.0, tl.float32)
    where = tl.zeros((BLOCK_M, BLOCK_C), tl.int32)
    for place in tl.static_range(9):
        h = top + place // 3
        w = left + place % 3
        inside = (h >= 0) & (h < H) & (w >= 0) & (w < W)
        at = (image * H + h) * W + w
        source = x + at[:, None] * x_stride + columns[None, :]
        values = tl.load(source, mask=mask & inside[:, None], other=0.0).to(tl.float32)
        activated = relu(values * s[None, :] + t[None, :])
        # As in PyTorch, NaN is larger than all, and the last of several is the maximum.
        better = inside[:, None] & ((activated > best) | (activated != activated))
        best = tl.where(better, activated, best)
        where = tl.where(better, place, where)
    target = rows[:, None].to(tl.int64) * C + columns[None, :]
    tl.store(out + target, best.to(out.dtype.element_ty), mask=mask)
    tl.store(places + target, where.to(tl.uint8), mask=mask)


@triton.jit
def _unpooled_maxima(gradient, places, x, rows, columns, mask, C, H, W):
    """The gradient of maxima at rows of what was pooled: of each window whose maximum it is."""
    h = rows // W % H
    w = rows % W
    pooled_h = (H + 1) // 2
    pooled_w = (W + 1) // 2
    image = (rows // (H * W)).to(tl.int64)
    total = tl.zeros(x.shape, tl.float32)
    for window in tl.static_range(4):
        i = (h + window // 2) // 2
        j = (w + window % 2) // 2
        exists = (i < pooled_h) & (j < pooled_w)
        if window // 2 == 1:
            exists = exists & (h % 2 == 1)
        if window % 2 == 1:
            exists = exists & (w % 2 == 1)
        at = ((image * pooled_h + i) * pooled_w + j)[:, None] * C + columns[None, :]
        inside = mask & exists[:, None]
        g = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
        place = tl.load(places + at, mask=inside, other=255).to(tl.int32)
        own = (h - 2 * i + 1) * 3 + (w - 2 * j + 1)
        total += tl.where(place == own[:, None], g, 0.0)
    return total


@triton.jit
def _unpooled(gradient, places, x, scale, shift, rows, columns, mask, C, H, W, MAXIMA: tl.constexpr):
    """The gradient of a pooled map behind the ReLU at rows of x."""
    if MAXIMA:
        g = _unpooled_maxima(gradient, places, x, rows, columns, mask, C, H, W)
    else:
        g = _unpooled_means(gradient, rows, columns, mask, C, H, W)
    return tl.where(passes_relu(x * scale[None, :] + shift[None, :]), g, 0.0)


@triton.jit(do_not_specialize=["M", "H", "W", "rows_each"])
def pool_backward_sums(
    gradient,
    places,
    x,
    x_stride,
    mean,
    variance,
    eps,
    scale,
    shift,
    partial,
    M,
    C,
    H,
    W,
    rows_each,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    MAXIMA: tl.constexpr,
):
    """Sums for the norm's gradient over one share of the rows, in partial (2, programs, C).

    `places` says where the maxima were; it is read if `MAXIMA`, otherwise means were taken.

    Grid: (chunks of C, programs).
    """
    columns = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    program, programs = tl.program_id(1), tl.num_programs(1)
    column_mask = columns < C
    s = tl.load(scale + columns, mask=column_mask, other=0.0)
    t = tl.load(shift + columns, mask=column_mask, other=0.0)
    mu = tl.load(mean + columns, mask=column_mask, other=0.0)
    beta_sum = tl.zeros((BLOCK_C,), tl.float32)
    gamma_sum = tl.zeros((BLOCK_C,), tl.float32)
    end = tl.minimum(M, (program + 1) * rows_each)
    for start in range(program * rows_each, end, BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        mask = (rows < end)[:, None] & column_mask[None, :]
        source = x + rows[:, None].to(tl.int64) * x_stride + columns[None, :]
        values = tl.load(source, mask=mask, other=0.0).to(tl.float32)
        g = _unpooled(gradient, places, values, s, t, rows, columns, mask, C, H, W, MAXIMA)
        beta_sum += tl.sum(g, 0)
        gamma_sum += tl.sum(g * (values - mu[None, :]), 0)
    inverse_std = 1.0 / tl.sqrt(tl.load(variance + columns, mask=column_mask, other=0.0) + eps)
    tl.store(partial + program * C + columns, beta_sum, mask=column_mask)
    tl.store(partial + (programs + program) * C + columns, gamma_sum * inverse_std, mask=column_mask)


@triton.jit(do_not_specialize=["M", "H", "W"])
def pool_backward(
    gradient,
    places,
    x,
    x_stride,
    mean,
    variance,
    eps,
    scale,
    shift,
    sums,
    out,
    M,
    C,
    H,
    W,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    MAXIMA: tl.constexpr,
):
    """The gradient of x (M, C), through pooling, ReLU and norm; `sums` (2, C) are dβ and dγ.

    `places` and `MAXIMA` are those of `pool_backward_sums`. Grid: (rows, columns).
    """
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    column_mask = columns < C
    mask = (rows < M)[:, None] & column_mask[None, :]
    s = tl.load(scale + columns, mask=column_mask, other=0.0)
    t = tl.load(shift + columns, mask=column_mask, other=0.0)
    inverse_std = 1.0 / tl.sqrt(tl.load(variance + columns, mask=column_mask, other=0.0) + eps)
    slope = -s * inverse_std * tl.load(sums + C + columns, mask=column_mask, other=0.0) / M
    offset = -s * tl.load(sums + columns, mask=column_mask, other=0.0) / M
    offset -= tl.load(mean + columns, mask=column_mask, other=0.0) * slope
    source = x + rows[:, None].to(tl.int64) * x_stride + columns[None, :]
    values = tl.load(source, mask=mask, other=0.0).to(tl.float32)
    g = _unpooled(gradient, places, values, s, t, rows, columns, mask, C, H, W, MAXIMA)
    y = g * s[None, :] + (values * slope[None, :] + offset[None, :])
    target = out + rows[:, None].to(tl.int64) * C + columns[None, :]
    tl.store(target, y.to(out.dtype.element_ty), mask=mask)
