// Pointwise kernels: every thread computes K::WIDTH neighbouring elements.
#pragma once
#include "mantissa.cuh"

namespace mantissa {

/// K::run<W>(i) computes elements i .. i + W. K::n is their number.
template <class K, int N> __device__ __forceinline__ void pointwise(const Group<K, N>& g) {
    const K& k = part_of(g);
    u64 i = ((blockIdx.x - k.first_block) * u64(blockDim.x) + threadIdx.x) * K::WIDTH;
    if (i + K::WIDTH <= k.n) {
        k.template run<K::WIDTH>(i);
    } else {
        for (; i < k.n; ++i) k.template run<1>(i);
    }
}

}  // namespace mantissa
