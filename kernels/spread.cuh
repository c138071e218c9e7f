// What a buffer's elements are like: how many are zero, how many are not finite, and how many have which power of two.
#pragma once
#include "mantissa.cuh"

namespace mantissa {

/// Powers of two that are told apart, from the smallest subnormal f32 on.
constexpr int OCTAVES = 277;

/// table: elements that are zero, that are not finite, by how much the bits of the smallest magnitude are less than
/// infinity's, the bits of the largest, and OCTAVES counts. All zero to begin with.
template <class T> struct SpreadOf {
    const T* from;
    u64 n;
    u64* table;
};

/// Any number of blocks of 256 threads. Each warp counts by itself, so that fewer lanes want the same counter; whole numbers
/// are added, so the order does not show.
template <class T> __device__ __forceinline__ void spread(const SpreadOf<T>& k) {
    constexpr int WARPS = 8, WORDS = OCTAVES + 2;
    constexpr u32 INFINITE = 0x7f800000u;
    __shared__ u32 counts[WARPS][WORDS];
    for (int i = threadIdx.x; i < WARPS * WORDS; i += 256) counts[i / WORDS][i % WORDS] = 0;
    __syncthreads();
    u32* mine = counts[threadIdx.x / 32];
    u32 smallest = INFINITE, largest = 0;
    for (u64 i = blockIdx.x * u64(256) + threadIdx.x; i < k.n; i += gridDim.x * u64(256)) {
        const u32 bits = __float_as_uint(widen(k.from[i])) & 0x7fffffffu;
        const bool counted = bits != 0 && bits < INFINITE;
        const int octave = bits >> 23 ? int(bits >> 23) + 22 : 31 - __clz(int(bits));
        atomicAdd(mine + (counted ? 2 + octave : bits == 0 ? 0 : 1), 1u);
        if (counted) {
            smallest = bits < smallest ? bits : smallest;
            largest = bits > largest ? bits : largest;
        }
    }
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        const u32 s = __shfl_xor_sync(~0u, smallest, lanes), l = __shfl_xor_sync(~0u, largest, lanes);
        smallest = s < smallest ? s : smallest;
        largest = l > largest ? l : largest;
    }
    if (threadIdx.x % 32 == 0 && largest > 0) {
        atomicMax(k.table + 2, u64(INFINITE - smallest));
        atomicMax(k.table + 3, u64(largest));
    }
    __syncthreads();
    for (int i = threadIdx.x; i < WORDS; i += 256) {
        u64 sum = 0;
        for (int w = 0; w < WARPS; ++w) sum += counts[w][i];
        if (sum > 0) atomicAdd(k.table + (i < 2 ? i : i + 2), sum);
    }
}

}  // namespace mantissa
