// Reductions: over rows (a team of threads per outer index), over columns (neighbouring threads take neighbouring outer
// indices), and over few long rows or to a scalar (many blocks to each, the last of which finishes). The order of every sum
// is fixed, so the same input gives the same bits.
//
// A generated K has SUMS accumulators and PASSES passes over its inner axes:
//   K::Real                               the type of registers: float, or double
//   K::identity(s), K::combine(s, a, b)   of accumulator s
//   K::pass_of(s)                         the pass that completes it
//   k.settle(s, x)                        the sum made the result: a mean divides
//   k.element<P, W>(o, i, done, sum)      inner elements i .. i + W of outer index o
//   k.finish(o, done)                     stores what has one value per outer index
// Of a held row, `element` takes K::KEPT * W registers more, where a pass keeps what later ones need.
#pragma once
#include "mantissa.cuh"

namespace mantissa {

/// Rounds of a loop whose loads are made at once. The cost model counts waits by it.
constexpr int UNROLLED = 4;

/// Combines over the 32 threads of a warp; every thread gets the result.
template <class K> __device__ __forceinline__ typename K::Real warp_reduce(int s, typename K::Real x) {
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) x = K::combine(s, x, __shfl_xor_sync(0xffffffffu, x, d));
    return x;
}

/// Combines over a team: a thread, a warp, or a block of T threads; every thread gets the result.
template <class K, int T>
__device__ __forceinline__ typename K::Real team_reduce(int s, typename K::Real x, typename K::Real* shared) {
    if constexpr (T == 1) return x;
    x = warp_reduce<K>(s, x);
    if constexpr (T > 32) {
        __syncthreads();
        if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
        __syncthreads();
        x = threadIdx.x % 32 < T / 32 ? shared[threadIdx.x % 32] : K::identity(s);
        x = warp_reduce<K>(s, x);
    }
    return x;
}

template <class K, int T, int P>
__device__ __forceinline__ void row_passes(const K& k, u64 o, typename K::Real* done, typename K::Real* shared) {
    if constexpr (P < K::PASSES) {
        typename K::Real sum[K::SUMS];
#pragma unroll
        for (int s = 0; s < K::SUMS; ++s) sum[s] = K::identity(s);
        u64 i = u64(threadIdx.x % T) * K::WIDTH;
        // Several loads at once: a thread has little else to wait with.
#pragma unroll UNROLLED
        for (; i + K::WIDTH <= k.n; i += T * K::WIDTH) k.template element<P, K::WIDTH>(o, i, done, sum);
        for (; i < k.n; ++i) k.template element<P, 1>(o, i, done, sum);
#pragma unroll
        for (int s = 0; s < K::SUMS; ++s) {
            if (K::pass_of(s) == P) done[s] = k.settle(s, team_reduce<K, T>(s, sum[s], shared));
        }
        row_passes<K, T, P + 1>(k, o, done, shared);
    }
}

/// One row per team of T threads: one alone, a warp, or a whole block.
template <int T, class K, int N> __device__ __forceinline__ void row(const Group<K, N>& g) {
    using R = typename K::Real;
    __shared__ R shared[32];
    const K& k = part_of(g);
    const u64 o = (blockIdx.x - k.first_block) * u64(blockDim.x / T) + threadIdx.x / T;
    if (o >= k.rows) return;  // teams leave together: a thread, a warp, or the block with its one row
    R done[K::SUMS];
    row_passes<K, T, 0>(k, o, done, shared);
    if (threadIdx.x % T == 0) k.finish(o, done);
}

template <class K, int T, int ROUNDS, int P>
__device__ __forceinline__ void held_passes(const K& k, u64 o, typename K::Real* done, typename K::Real* shared,
                                            typename K::Real (&kept)[ROUNDS][K::KEPT * K::WIDTH]) {
    if constexpr (P < K::PASSES) {
        typename K::Real sum[K::SUMS];
#pragma unroll
        for (int s = 0; s < K::SUMS; ++s) sum[s] = K::identity(s);
#pragma unroll
        for (int r = 0; r < ROUNDS; ++r) {
            const u64 i = u64(threadIdx.x % T + r * T) * K::WIDTH;
            if (i < k.n) k.template element<P, K::WIDTH>(o, i, done, sum, kept[r]);
        }
#pragma unroll
        for (int s = 0; s < K::SUMS; ++s) {
            if (K::pass_of(s) == P) done[s] = k.settle(s, team_reduce<K, T>(s, sum[s], shared));
        }
        held_passes<K, T, ROUNDS, P + 1>(k, o, done, shared, kept);
    }
}

/// One row per team of T threads, as in `row`, each of which takes ROUNDS times K::WIDTH elements: what several passes need
/// of them is computed once and kept in registers. The width divides the row.
template <int T, int ROUNDS, class K, int N> __device__ __forceinline__ void held(const Group<K, N>& g) {
    using R = typename K::Real;
    __shared__ R shared[32];
    const K& k = part_of(g);
    const u64 o = (blockIdx.x - k.first_block) * u64(blockDim.x / T) + threadIdx.x / T;
    if (o >= k.rows) return;
    R done[K::SUMS], kept[ROUNDS][K::KEPT * K::WIDTH];
    held_passes<K, T, ROUNDS, 0>(k, o, done, shared, kept);
    if (threadIdx.x % T == 0) k.finish(o, done);
}

/// Is this block the last of `blocks` to get here? What the others wrote before is then there to be read. The counter is
/// left as it was found, for the next run.
__device__ __forceinline__ bool arrives_last(u32* arrived, u64 blocks) {
    __shared__ bool last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(arrived, 1u) == blocks - 1;
        if (last) *arrived = 0;
    }
    __syncthreads();
    __threadfence();
    return last;
}

/// TX threads side by side, each with K::WIDTH columns, and TY threads sharing each column's rows. One pass;
/// element<P, W> takes W neighbouring columns, and accumulator s of column w is sum[s * W + w]. Where few columns would
/// leave a GPU idle, k.parts blocks share them; the last to arrive combines their sums in order.
template <int TX, int TY, class K, int N> __device__ __forceinline__ void column(const Group<K, N>& g) {
    using R = typename K::Real;
    constexpr int W = K::WIDTH, C = TX * W;
    __shared__ R shared[K::SUMS][TY][C + 1];
    const K& k = part_of(g);
    const u32 x = threadIdx.x % TX, y = threadIdx.x / TX;
    const u64 block = blockIdx.x - k.first_block, part = block % k.parts;
    const u64 first = block / k.parts * u64(C);
    const u64 o = first + x * W;
    R sum[K::SUMS * W];
#pragma unroll
    for (int s = 0; s < K::SUMS * W; ++s) sum[s] = K::identity(s / W);
    if (o < k.rows) {
        // Rows next to each other: with a step known at compile time, addresses take fewer registers.
        const u64 share = (k.n + k.parts - 1) / k.parts, end = min(k.n, (part + 1) * share);
#pragma unroll UNROLLED
        for (u64 i = part * share + y; i < end; i += TY) k.template element<0, W>(o, i, nullptr, sum);
    }
#pragma unroll
    for (int s = 0; s < K::SUMS * W; ++s) shared[s / W][y][x * W + s % W] = sum[s];
    __syncthreads();
    for (int s = 0; s < K::SUMS; ++s) {
        for (int c = threadIdx.x; c < C; c += TX * TY) {
            R all = shared[s][0][c];
            for (int j = 1; j < TY; ++j) all = K::combine(s, all, shared[s][j][c]);
            shared[s][0][c] = all;
            if (k.parts > 1) k.partials[(block * K::SUMS + s) * C + c] = all;
        }
    }
    if (k.parts > 1) {
        if (!arrives_last(k.arrived + block / k.parts, k.parts)) return;
        for (int s = 0; s < K::SUMS; ++s) {
            for (int c = threadIdx.x; c < C; c += TX * TY) {
                const R* at = k.partials + ((block - part) * K::SUMS + s) * C + c;
                R all = __ldcg(at);
                for (u64 j = 1; j < k.parts; ++j) all = K::combine(s, all, __ldcg(at + j * K::SUMS * C));
                shared[s][0][c] = all;
            }
        }
    }
    // Each thread finishes the columns that it summed.
    for (int c = threadIdx.x; c < C && first + c < k.rows; c += TX * TY) {
        R done[K::SUMS];
#pragma unroll
        for (int s = 0; s < K::SUMS; ++s) done[s] = k.settle(s, shared[s][0][c]);
        k.finish(first + c, done);
    }
}

/// Rows that are too few for a GPU, or one alone, which k.parts blocks of T threads share. Each leaves its partial result in
/// k.partials; the last of a row to arrive combines them in order. One pass.
template <int T, class K, int N> __device__ __forceinline__ void split(const Group<K, N>& g) {
    using R = typename K::Real;
    __shared__ R shared[32];
    const K& k = part_of(g);
    const u64 block = blockIdx.x - k.first_block, o = block / k.parts, part = block % k.parts;
    R sum[K::SUMS];
#pragma unroll
    for (int s = 0; s < K::SUMS; ++s) sum[s] = K::identity(s);
    const u64 step = k.parts * T * K::WIDTH;
    u64 i = (part * T + threadIdx.x) * K::WIDTH;
#pragma unroll UNROLLED
    for (; i + K::WIDTH <= k.n; i += step) k.template element<0, K::WIDTH>(o, i, nullptr, sum);
    for (; i < k.n; ++i) k.template element<0, 1>(o, i, nullptr, sum);
#pragma unroll
    for (int s = 0; s < K::SUMS; ++s) sum[s] = team_reduce<K, T>(s, sum[s], shared);
    if (threadIdx.x == 0) {
#pragma unroll
        for (int s = 0; s < K::SUMS; ++s) k.partials[block * K::SUMS + s] = sum[s];
    }
    if (!arrives_last(k.arrived + o, k.parts)) return;
    R done[K::SUMS];
#pragma unroll
    for (int s = 0; s < K::SUMS; ++s) {
        const R* at = k.partials + (block - part) * K::SUMS + s;
        R x = K::identity(s);
        for (u64 b = threadIdx.x; b < k.parts; b += T) x = K::combine(s, x, __ldcg(at + b * K::SUMS));
        done[s] = k.settle(s, team_reduce<K, T>(s, x, shared));
    }
    if (threadIdx.x == 0) k.finish(o, done);
}

}  // namespace mantissa
