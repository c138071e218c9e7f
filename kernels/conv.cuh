// Convolutions and their gradients as tiled matrix products whose operands are gathered on the way ("implicit GEMM").
//
// With x [N, C, spatial], w [M, C / groups, kernel], y [N, M, places], per group:
//   FORWARD  y[m, (n, o)]    = sum over (c, k) of w[m, (c, k)]  x[(c, k), (n, o)]
//   INPUT    x[c, (n, p)]    = sum over (m, k) of w[(m, k), c]  y[(m, k), (n, p)]
//   WEIGHT   w[m, (c, k)]    = sum over (n, o) of y[m, (n, o)]  x[(n, o), (c, k)]
// Every element is one thread's sum in f32, in one order: no atomics, the same bits on every run.
#pragma once
#include "mantissa.cuh"

namespace mantissa {

enum ConvKind { FORWARD, INPUT, WEIGHT };

template <int S> struct Axis {
    u64 x[S], w[S], y[S], stride[S], dilation[S], lo[S];
};

/// A and B are the formats of the operands, O that of the result, S the number of spatial axes.
template <class A, class B, class O, int KIND, int S> struct Conv {
    const A* a;
    const B* b;
    O* out;
    u64 samples, groups, channels, outputs;  // channels and outputs of one group
    Axis<S> s;

    __device__ __forceinline__ u64 area() const { return product(s.x); }
    __device__ __forceinline__ u64 places() const { return product(s.y); }
    __device__ __forceinline__ u64 kernel() const { return product(s.w); }
    static __device__ __forceinline__ u64 product(const u64 (&d)[S]) {
        u64 p = 1;
        for (int i = 0; i < S; ++i) p *= d[i];
        return p;
    }

    __device__ __forceinline__ u64 rows() const { return KIND == INPUT ? channels : outputs; }
    __device__ __forceinline__ u64 columns() const {
        return KIND == FORWARD ? samples * places() : KIND == INPUT ? samples * area() : channels * kernel();
    }
    __device__ __forceinline__ u64 depth() const {
        return KIND == FORWARD ? channels * kernel() : KIND == INPUT ? outputs * kernel() : samples * places();
    }

    /// The element of x under kernel element k of place o, or none.
    __device__ __forceinline__ bool under(u64 o, u64 k, u64& at) const {
        u64 step = 1;
        at = 0;
        for (int i = S - 1; i >= 0; --i) {
            const i64 p = i64(o % s.y[i] * s.stride[i] + k % s.w[i] * s.dilation[i]) - i64(s.lo[i]);
            if (p < 0 || p >= i64(s.x[i])) return false;
            at += u64(p) * step;
            step *= s.x[i];
            o /= s.y[i];
            k /= s.w[i];
        }
        return true;
    }

    /// The place whose kernel element k lies over element p of x, or none.
    __device__ __forceinline__ bool over(u64 p, u64 k, u64& at) const {
        u64 step = 1;
        at = 0;
        for (int i = S - 1; i >= 0; --i) {
            const i64 q = i64(p % s.x[i] + s.lo[i]) - i64(k % s.w[i] * s.dilation[i]);
            if (q < 0 || q % i64(s.stride[i]) != 0 || q / i64(s.stride[i]) >= i64(s.y[i])) return false;
            at += u64(q) / s.stride[i] * step;
            step *= s.y[i];
            p /= s.x[i];
            k /= s.w[i];
        }
        return true;
    }

    /// Element (row, d) of the left operand of group g.
    __device__ __forceinline__ float left(u64 g, u64 row, u64 d) const {
        if constexpr (KIND == FORWARD) return widen(b[(g * outputs + row) * channels * kernel() + d]);
        if constexpr (KIND == INPUT) {
            const u64 k = d % kernel(), m = d / kernel();
            return widen(b[((g * outputs + m) * channels + row) * kernel() + k]);
        }
        const u64 n = d / places(), o = d % places();
        return widen(b[((n * groups + g) * outputs + row) * places() + o]);
    }

    /// Element (d, column) of the right operand.
    __device__ __forceinline__ float right(u64 g, u64 d, u64 column) const {
        u64 at;
        if constexpr (KIND == FORWARD) {
            const u64 c = d / kernel(), k = d % kernel(), n = column / places(), o = column % places();
            return under(o, k, at) ? widen(a[((n * groups + g) * channels + c) * area() + at]) : 0.0f;
        }
        if constexpr (KIND == INPUT) {
            const u64 m = d / kernel(), k = d % kernel(), n = column / area(), p = column % area();
            return over(p, k, at) ? widen(a[((n * groups + g) * outputs + m) * places() + at]) : 0.0f;
        }
        const u64 n = d / places(), o = d % places(), c = column / kernel(), k = column % kernel();
        return under(o, k, at) ? widen(a[((n * groups + g) * channels + c) * area() + at]) : 0.0f;
    }

    __device__ __forceinline__ void put(u64 g, u64 row, u64 column, float v) const {
        u64 at;
        if constexpr (KIND == FORWARD) {
            at = ((column / places() * groups + g) * outputs + row) * places() + column % places();
        } else if constexpr (KIND == INPUT) {
            at = ((column / area() * groups + g) * channels + row) * area() + column % area();
        } else {
            at = (g * outputs + row) * channels * kernel() + column;
        }
        out[at] = Narrow<O>::of(v);
    }
};

constexpr int CONV_TILE = 64, CONV_DEPTH = 16;

/// A block of 256 threads computes a 64 x 64 tile, each thread 4 x 4 elements of it.
template <class C> __device__ __forceinline__ void conv(const C& c) {
    __shared__ float l[CONV_DEPTH][CONV_TILE + 1], r[CONV_DEPTH][CONV_TILE + 1];
    const u64 across = (c.columns() + CONV_TILE - 1) / CONV_TILE, down = (c.rows() + CONV_TILE - 1) / CONV_TILE;
    const u64 g = blockIdx.x / (across * down), tile = blockIdx.x % (across * down);
    const u64 row = tile / across * CONV_TILE, column = tile % across * CONV_TILE;
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    float sum[4][4] = {};
    for (u64 d = 0; d < c.depth(); d += CONV_DEPTH) {
        for (int i = threadIdx.x; i < CONV_DEPTH * CONV_TILE; i += 256) {
            // Neighbouring threads read neighbouring columns on the right, neighbouring depths on the left.
            const int ld = i % CONV_DEPTH, lr = i / CONV_DEPTH, rd = i / CONV_TILE, rc = i % CONV_TILE;
            l[ld][lr] = d + ld < c.depth() && row + lr < c.rows() ? c.left(g, row + lr, d + ld) : 0.0f;
            r[rd][rc] = d + rd < c.depth() && column + rc < c.columns() ? c.right(g, d + rd, column + rc) : 0.0f;
        }
        __syncthreads();
        for (int k = 0; k < CONV_DEPTH; ++k) {
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) sum[i][j] += l[k][ty + 16 * i] * r[k][tx + 16 * j];
        }
        __syncthreads();
    }
    for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 4; ++j)
            if (row + ty + 16 * i < c.rows() && column + tx + 16 * j < c.columns())
                c.put(g, row + ty + 16 * i, column + tx + 16 * j, sum[i][j]);
}

}  // namespace mantissa
