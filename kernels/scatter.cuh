// Rows written or accumulated at integer positions, without atomics: the first position of a row owns it and takes in
// every later one in order, so sums have one order and the last write stays.
#pragma once
#include "mantissa.cuh"

namespace mantissa {

enum ScatterKind { SET, ADD, MUL, MAX, MIN };

/// updates is [lead, positions, tail], out and base are [lead, rows, tail]; base may be null, for zeros.
template <class B, class I, class U, int KIND> struct Scatter {
    const B* base;
    const I* index;
    const U* updates;
    float* out;
    u64 lead, rows, positions, tail;

    __device__ __forceinline__ u64 row(u64 p) const {
        const i64 i = i64(index[p]), r = i < 0 ? i + i64(rows) : i;
        return r < 0 ? 0 : u64(r) < rows ? u64(r) : rows - 1;
    }

    static __device__ __forceinline__ float combine(float old, float x) {
        return KIND == SET ? x : KIND == ADD ? old + x : KIND == MUL ? old * x : KIND == MAX ? maximum(old, x) : minimum(old, x);
    }
};

template <class S> __device__ __forceinline__ void scatter_base(const S& s) {
    const u64 i = u64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < s.lead * s.rows * s.tail) s.out[i] = s.base ? widen(s.base[i]) : 0.0f;
}

/// One block of 256 threads per position and leading index.
template <class S> __device__ __forceinline__ void scatter_rows(const S& s) {
    __shared__ u32 hits[8];
    const u64 p = blockIdx.x % s.positions, lead = blockIdx.x / s.positions, row = s.row(p);
    int earlier = 0;
    for (u64 q = threadIdx.x; q < p; q += 256) earlier |= s.row(q) == row;
    if (__syncthreads_or(earlier)) return;
    float* out = s.out + (lead * s.rows + row) * s.tail;
    for (u64 chunk = p / 256 * 256; chunk < s.positions; chunk += 256) {
        const u64 q = chunk + threadIdx.x;
        const u32 ballot = __ballot_sync(0xffffffff, q >= p && q < s.positions && s.row(q) == row);
        if (threadIdx.x % 32 == 0) hits[threadIdx.x / 32] = ballot;
        __syncthreads();
        for (int w = 0; w < 8; ++w) {
            for (u32 mask = hits[w]; mask; mask &= mask - 1) {
                const u64 from = (lead * s.positions + chunk + w * 32 + __ffs(mask) - 1) * s.tail;
                for (u64 t = threadIdx.x; t < s.tail; t += 256) out[t] = S::combine(out[t], widen(s.updates[from + t]));
            }
        }
        __syncthreads();
    }
}

}  // namespace mantissa
