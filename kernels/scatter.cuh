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

/// One block of 256 threads per position and leading index. Updates are read eight at a time and taken in one by one: the
/// reads do not wait for each other.
template <class S> __device__ __forceinline__ void scatter_rows(const S& s) {
    constexpr int AHEAD = 8;
    __shared__ u32 hits[8];
    __shared__ u32 found[256];
    const u64 p = blockIdx.x % s.positions, lead = blockIdx.x / s.positions, row = s.row(p);
    int earlier = 0;
    for (u64 q = threadIdx.x; q < p; q += 256) earlier |= s.row(q) == row;
    if (__syncthreads_or(earlier)) return;
    float* out = s.out + (lead * s.rows + row) * s.tail;
    for (u64 chunk = p / 256 * 256; chunk < s.positions; chunk += 256) {
        const u64 q = chunk + threadIdx.x;
        const bool hit = q >= p && q < s.positions && s.row(q) == row;
        const u32 ballot = __ballot_sync(0xffffffff, hit), lane = threadIdx.x % 32;
        if (lane == 0) hits[threadIdx.x / 32] = ballot;
        __syncthreads();
        u32 before = 0, count = 0;
        for (u32 w = 0; w < 8; ++w) {
            if (w < threadIdx.x / 32) before += __popc(hits[w]);
            count += __popc(hits[w]);
        }
        if (hit) found[before + __popc(ballot & ((1u << lane) - 1))] = threadIdx.x;
        __syncthreads();
        const auto* updates = s.updates + (lead * s.positions + chunk) * s.tail;
        for (u64 t = threadIdx.x; count && t < s.tail; t += 256) {
            float sum = out[t];
            for (u32 i = 0; i < count; i += AHEAD) {
                float x[AHEAD];
#pragma unroll
                for (int j = 0; j < AHEAD; ++j) x[j] = i + j < count ? widen(updates[found[i + j] * s.tail + t]) : 0.0f;
#pragma unroll
                for (int j = 0; j < AHEAD; ++j) {
                    if (i + j < count) sum = S::combine(sum, x[j]);
                }
            }
            out[t] = sum;
        }
        __syncthreads();
    }
}

}  // namespace mantissa
