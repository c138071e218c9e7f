// Rows written or accumulated at integer positions, without atomics: a block owns some rows, looks for all positions that
// name one of them, and takes these in in order, so sums have one order and the last write stays.
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
    /// Rows that a block owns.
    u64 owned;

    __device__ __forceinline__ u64 row(u64 p) const {
        const i64 i = i64(index[p]), r = i < 0 ? i + i64(rows) : i;
        return r < 0 ? 0 : u64(r) < rows ? u64(r) : rows - 1;
    }

    static __device__ __forceinline__ float combine(float old, float x) {
        return KIND == SET ? x : KIND == ADD ? old + x : KIND == MUL ? old * x : KIND == MAX ? maximum(old, x) : minimum(old, x);
    }
};

/// A block of 256 threads for each of lead x (rows / owned). A thread reads and writes the same columns of all its rows, so
/// that what it wrote is what it reads. Updates are read eight at a time: the reads do not wait for each other.
template <class S> __device__ __forceinline__ void scatter(const S& s) {
    constexpr int AHEAD = 8;
    __shared__ u32 hits[8];
    __shared__ u32 found[256], rows[256];
    const u64 across = (s.rows + s.owned - 1) / s.owned, lead = blockIdx.x / across, first = blockIdx.x % across * s.owned;
    const u64 end = first + s.owned < s.rows ? first + s.owned : s.rows;
    float* out = s.out + (lead * s.rows + first) * s.tail;
    for (u64 r = 0; r < end - first; ++r)
        for (u64 t = threadIdx.x; t < s.tail; t += 256)
            out[r * s.tail + t] = s.base ? widen(s.base[(lead * s.rows + first + r) * s.tail + t]) : 0.0f;
    for (u64 chunk = 0; chunk < s.positions; chunk += 256) {
        const u64 p = chunk + threadIdx.x, row = p < s.positions ? s.row(p) : s.rows;
        const bool hit = row >= first && row < end;
        const u32 ballot = __ballot_sync(0xffffffff, hit), lane = threadIdx.x % 32;
        if (lane == 0) hits[threadIdx.x / 32] = ballot;
        if (!__syncthreads_or(hit)) continue;
        u32 before = 0, count = 0;
        for (u32 w = 0; w < 8; ++w) {
            if (w < threadIdx.x / 32) before += __popc(hits[w]);
            count += __popc(hits[w]);
        }
        if (hit) {
            const u32 at = before + __popc(ballot & ((1u << lane) - 1));
            found[at] = threadIdx.x;
            rows[at] = u32(row - first);
        }
        __syncthreads();
        const auto* updates = s.updates + (lead * s.positions + chunk) * s.tail;
        for (u64 t = threadIdx.x; t < s.tail; t += 256) {
            for (u32 i = 0; i < count; i += AHEAD) {
                float x[AHEAD];
#pragma unroll
                for (int j = 0; j < AHEAD; ++j) x[j] = i + j < count ? widen(updates[found[i + j] * s.tail + t]) : 0.0f;
#pragma unroll
                for (int j = 0; j < AHEAD; ++j) {
                    if (i + j < count) {
                        float& place = out[rows[i + j] * s.tail + t];
                        place = S::combine(place, x[j]);
                    }
                }
            }
        }
        __syncthreads();
    }
}

}  // namespace mantissa
