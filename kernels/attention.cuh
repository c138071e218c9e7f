// Attention and its gradients, without a score in memory (Dao et al. 2022, 2023).
//
//   OUTPUT  o[i]    = sum over keys of p[i, j] v[j]           LSE  ln sum over keys of e^s[i, j]
//   GRAD_Q  dq[i]   = scale sum over keys of ds[i, j] k[j]
//   GRAD_K  dk[j]   = scale sum over queries of ds[i, j] q[i]
//   GRAD_V  dv[j]   = sum over queries of p[i, j] do[i]
//
// with s = scale q.k + mask, p = e^(s - lse), ds = p (do.v - delta). A block owns some rows (queries, or keys for GRAD_K and
// GRAD_V) and goes over the others in tiles ("columns"). Every sum has one order: no atomics, the same bits on every run.
#pragma once
#include "mantissa.cuh"

namespace mantissa {

enum AttentionPart { OUTPUT, LSE, GRAD_Q, GRAD_K, GRAD_V };

/// Elements from one index to the next.
struct Steps { u64 batch, head, row; };

__device__ __forceinline__ float infinity() { return __int_as_float(0x7f800000); }

/// The mask that there is not.
struct none { u8 bits; };

/// Q, K, V, G (the output's gradient), L and S (row statistics), M (the mask) and O (the result) are formats in memory; P is
/// what p and ds are rounded to before they are multiplied. D is the width of a row of q and k, E of v and do.
template <class Q, class K, class V, class G, class L, class S, class M, class P, class O, int PART, int D, int E, bool CAUSAL>
struct Attention {
    const Q* q;
    const K* k;
    const V* v;
    const G* g;
    const L* lse;
    const S* delta;
    const M* mask;
    O* out;
    Steps at_q, at_k, at_v, at_g, at_lse, at_delta, at_mask, at_out;
    u64 mask_column;
    u64 heads, groups, queries, keys;
    u64 scale_bits;
    /// Where OUTPUT leaves each row's LSE, row by row, or null.
    float* statistics;

    using Operand = Q;
    using Result = O;
    using Probability = P;
    static constexpr int Part = PART, Width = D, ValueWidth = E;
    static constexpr bool Causal = CAUSAL, Masked = sizeof(M) > 1;
    static constexpr bool OwnsKeys = PART == GRAD_K || PART == GRAD_V;
    static constexpr bool Differentiates = PART == GRAD_Q || PART == GRAD_K;
    static constexpr bool Normalises = PART == OUTPUT || PART == LSE;
    static constexpr int OutWidth = PART == LSE ? 1 : PART == OUTPUT || PART == GRAD_V ? E : D;

    __device__ __forceinline__ float scale() const { return __uint_as_float(u32(scale_bits)); }
    __device__ __forceinline__ u64 share() const { return heads / groups; }
    __device__ __forceinline__ u64 own_heads() const { return OwnsKeys ? groups : heads; }
    __device__ __forceinline__ u64 own_rows() const { return OwnsKeys ? keys : queries; }
    __device__ __forceinline__ u64 columns() const { return OwnsKeys ? queries : keys; }
    template <class T> static __device__ __forceinline__ const T* row(const T* p, const Steps& s, u64 b, u64 h, u64 r) {
        return p + b * s.batch + h * s.head + r * s.row;
    }

    __device__ __forceinline__ float added(u64 b, u64 h, u64 i, u64 j) const {
        if constexpr (Masked) return widen(row(mask, at_mask, b, h, i)[j * mask_column]);
        return 0.0f;
    }

    __device__ __forceinline__ float score(u64 b, u64 h, u64 i, u64 j) const {
        if (CAUSAL && j > i) return -infinity();
        const Q* x = row(q, at_q, b, h, i);
        const K* y = row(k, at_k, b, h / share(), j);
        float sum = 0.0f;
        for (int c = 0; c < D; ++c) sum += widen(x[c]) * widen(y[c]);
        return sum * scale() + added(b, h, i, j);
    }

    /// p or ds of a gradient.
    __device__ __forceinline__ float weight(u64 b, u64 h, u64 i, u64 j) const {
        const float l = widen(*row(lse, at_lse, b, h, i));
        const float s = score(b, h, i, j);
        const float p = s == -infinity() ? 0.0f : expf(s - l);
        if constexpr (!Differentiates) return p;
        const G* x = row(g, at_g, b, h, i);
        const V* y = row(v, at_v, b, h / share(), j);
        float sum = 0.0f;
        for (int c = 0; c < E; ++c) sum += widen(x[c]) * widen(y[c]);
        return p * (sum - widen(*row(delta, at_delta, b, h, i)));
    }

    /// What a weight multiplies.
    __device__ __forceinline__ float factor(u64 b, u64 h, u64 i, u64 j, u64 c) const {
        if constexpr (PART == OUTPUT) return widen(row(v, at_v, b, h / share(), j)[c]);
        if constexpr (PART == GRAD_Q) return widen(row(k, at_k, b, h / share(), j)[c]);
        if constexpr (PART == GRAD_K) return widen(row(q, at_q, b, h, i)[c]);
        return widen(row(g, at_g, b, h, i)[c]);
    }
};

/// The sum of, or the largest, of one number a thread; 32 words of shared memory.
template <bool MAX> __device__ __forceinline__ float over_block(float x, float* words) {
    for (int step = 16; step > 0; step /= 2) {
        const float y = __shfl_xor_sync(~0u, x, step);
        x = MAX ? maximum(x, y) : x + y;
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) words[threadIdx.x / 32] = x;
    __syncthreads();
    x = words[0];
    for (int w = 1; w < int(blockDim.x / 32); ++w) x = MAX ? maximum(x, words[w]) : x + words[w];
    return x;
}

/// One row by the threads of a block, in scalar registers: any format and width.
template <class A> __device__ __noinline__ void attention_row(const A& a, u64 b, u64 h, u64 r) {
    using O = typename A::Result;
    __shared__ float w[256], words[32];
    O* out = a.out + b * a.at_out.batch + h * a.at_out.head + r * a.at_out.row;
    float max = -infinity(), sum = 0.0f;
    if constexpr (A::Normalises) {
        for (u64 j = threadIdx.x; j < a.keys; j += blockDim.x) max = maximum(max, a.score(b, h, r, j));
        max = over_block<true>(max, words);
        if (max != -infinity()) {
            for (u64 j = threadIdx.x; j < a.keys; j += blockDim.x) sum += expf(a.score(b, h, r, j) - max);
            sum = over_block<false>(sum, words);
        }
        const float power = max == -infinity() ? max : max + logf(sum);
        if (A::Part == OUTPUT && a.statistics && threadIdx.x == 0) a.statistics[(b * a.heads + h) * a.queries + r] = power;
        if (A::Part == LSE && threadIdx.x == 0) *out = Narrow<O>::of(power);
    }
    if constexpr (A::Part == LSE) return;
    for (u64 first = 0; first < A::OutWidth; first += blockDim.x) {
        const u64 c = first + threadIdx.x;
        float total = 0.0f;
        for (u64 n = 0; n < (A::OwnsKeys ? a.share() : 1); ++n) {
            const u64 head = A::OwnsKeys ? h * a.share() + n : h;
            for (u64 start = 0; start < a.columns(); start += blockDim.x) {
                const u64 x = start + threadIdx.x;
                float p = 0.0f;
                if (x < a.columns()) {
                    const u64 i = A::OwnsKeys ? x : r, j = A::OwnsKeys ? r : x;
                    if constexpr (A::Normalises) {
                        p = max == -infinity() ? 0.0f : expf(a.score(b, head, i, j) - max);
                    } else {
                        p = a.weight(b, head, i, j);
                    }
                    p = round_to<typename A::Probability>(p);
                }
                __syncthreads();
                w[threadIdx.x] = p;
                __syncthreads();
                for (u64 t = 0; c < A::OutWidth && t < blockDim.x && start + t < a.columns(); ++t) {
                    const u64 i = A::OwnsKeys ? start + t : r, j = A::OwnsKeys ? r : start + t;
                    total += w[t] * a.factor(b, head, i, j, c);
                }
            }
        }
        if (A::Part == OUTPUT) total = max == -infinity() ? 0.0f : total / sum;
        if (A::Differentiates) total *= a.scale();
        if (c < A::OutWidth) out[c] = Narrow<O>::of(total);
    }
}

/// A block a row.
template <class A> __device__ __forceinline__ void attention_plain(const A& a) {
    const u64 r = blockIdx.x % a.own_rows(), h = blockIdx.x / a.own_rows();
    attention_row(a, h / a.own_heads(), h % a.own_heads(), r);
}

// Tensor cores: m16n8k16 products of 16-bit operands, accumulated in f32.

template <class T> __device__ __forceinline__ void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1);
template <class T> __device__ __forceinline__ u32 pair(float low, float high);
#if __CUDA_ARCH__ >= 800
template <> __device__ __forceinline__ void multiply<f16>(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <> __device__ __forceinline__ void multiply<bf16>(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <> __device__ __forceinline__ u32 pair<f16>(float low, float high) {
    u32 y;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}
template <> __device__ __forceinline__ u32 pair<bf16>(float low, float high) {
    u32 y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}

__device__ __forceinline__ u32 shared_address(const void* p) { return u32(__cvta_generic_to_shared(p)); }

/// 16 bytes of global memory to shared memory while the block goes on, or zeros.
__device__ __forceinline__ void copy16(u32 to, const void* from, bool is_there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(is_there ? 16 : 0));
}
__device__ __forceinline__ void copies_end() { asm volatile("cp.async.commit_group;"); }
template <int LEFT> __device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_group %0;" ::"n"(LEFT)); }

/// Four 8 x 8 matrices of 16-bit numbers, one row's address a thread.
__device__ __forceinline__ void matrices(u32 (&to)[4], u32 from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
        : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(from));
}
__device__ __forceinline__ void transposed_matrices(u32 (&to)[4], u32 from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
        : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(from));
}

__device__ __forceinline__ float exp2_of(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
#endif

constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;

/// How a block of the tensor-core kernel is laid out: W warps of M x 16 own rows, tiles of N columns.
template <class A> struct Tiles {
    static constexpr int D = (A::Width + 15) / 16 * 16;
    // Rows of shared memory begin an odd number of 16-byte words apart, so that eight of them are read at once.
    static constexpr int Row = D + 8;
    // Twice the rows halve the reads of a tile, as long as registers for sums and scores suffice.
    static constexpr int M = (A::Differentiates && D > 64) || (A::Part == GRAD_V && D <= 64) ? 1 : 2;
    static constexpr int W = 8 / M;
    static constexpr int Own = 16 * M * W;
    static constexpr int N = D > 64 && M == 2 ? 16 : D > 64 || A::Differentiates ? 32 : 64;
    static constexpr int Tensors = A::Part == LSE ? 1 : 2;
    static constexpr int Words = Tensors * 2 * N * Row > Own * Row ? Tensors * 2 * N * Row : Own * Row;
};

#if __CUDA_ARCH__ >= 800
/// So many rows from `first` on of a tensor's head into shared memory; zeros from `end` on.
template <class A, int ROWS, class T>
__device__ __forceinline__ void fetch(u16* to, const T* from, u64 step, int first, int end) {
    using S = Tiles<A>;
    constexpr int chunks = S::D / 8, threads = 32 * S::W;
#pragma unroll
    for (int k = 0; k < (ROWS * chunks + threads - 1) / threads; ++k) {
        const int n = threadIdx.x + k * threads, r = n / chunks, c = n % chunks;
        if (ROWS * chunks % threads != 0 && n >= ROWS * chunks) break;
        const bool is_there = first + r < end && c * 8 < A::Width;
        copy16(shared_address(to + r * S::Row + c * 8), from + (is_there ? u64(first + r) * step + c * 8 : 0), is_there);
    }
}

/// The warp's own rows as left operands.
template <class A> __device__ __forceinline__ void own_rows(u32 (&to)[Tiles<A>::M][Tiles<A>::D / 16][4], const u16* from) {
    using S = Tiles<A>;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int m = 0; m < S::M; ++m)
#pragma unroll
        for (int d = 0; d < S::D / 16; ++d) {
            const int r = (warp * S::M + m) * 16 + lane % 16;
            matrices(to[m][d], shared_address(from + r * S::Row + d * 16 + lane / 16 * 8));
        }
}

/// c += own rows x (tile's rows) transposed
template <class A>
__device__ __forceinline__ void across(float (&c)[Tiles<A>::M][Tiles<A>::N / 8][4], const u32 (&own)[Tiles<A>::M][Tiles<A>::D / 16][4], const u16* tile) {
    using S = Tiles<A>;
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int d = 0; d < S::D / 16; ++d)
#pragma unroll
        for (int n = 0; n < S::N / 16; ++n) {
            u32 b[4];
            matrices(b, shared_address(tile + (n * 16 + lane / 16 * 8 + lane % 8) * S::Row + d * 16 + lane / 8 % 2 * 8));
#pragma unroll
            for (int m = 0; m < S::M; ++m) {
                multiply<typename A::Operand>(c[m][2 * n], own[m][d], b[0], b[1]);
                multiply<typename A::Operand>(c[m][2 * n + 1], own[m][d], b[2], b[3]);
            }
        }
}

/// c += w x (tile's rows), w rounded to 16 bits
template <class A>
__device__ __forceinline__ void along(float (&c)[Tiles<A>::M][Tiles<A>::D / 8][4], const float (&w)[Tiles<A>::M][Tiles<A>::N / 8][4], const u16* tile) {
    using S = Tiles<A>;
    using T = typename A::Operand;
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < S::N / 16; ++n) {
        u32 a[S::M][4];
#pragma unroll
        for (int m = 0; m < S::M; ++m)
#pragma unroll
            for (int i = 0; i < 4; ++i) a[m][i] = pair<T>(w[m][2 * n + i / 2][i % 2 * 2], w[m][2 * n + i / 2][i % 2 * 2 + 1]);
#pragma unroll
        for (int d = 0; d < S::D / 16; ++d) {
            u32 b[4];
            transposed_matrices(b, shared_address(tile + (n * 16 + lane / 8 % 2 * 8 + lane % 8) * S::Row + d * 16 + lane / 16 * 8));
#pragma unroll
            for (int m = 0; m < S::M; ++m) {
                multiply<T>(c[m][2 * d], a[m], b[0], b[1]);
                multiply<T>(c[m][2 * d + 1], a[m], b[2], b[3]);
            }
        }
    }
}

/// A row's statistic as a power of two, which e^(s - lse) is computed from; rows that see nothing have probabilities of 0.
__device__ __forceinline__ float as_power(float lse) { return lse == -infinity() ? infinity() : lse * LOG2E; }
#endif

/// Scores of a tile that has columns beyond the end, or that rows do not see, or that a mask is added to.
template <class A>
__device__ __forceinline__ void hide(float (&s)[Tiles<A>::M][Tiles<A>::N / 8][4], const A& a, u64 b, int head, int row0, int start, float scale) {
#if __CUDA_ARCH__ >= 800
    using S = Tiles<A>;
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int m = 0; m < S::M; ++m)
#pragma unroll
        for (int n = 0; n < S::N / 8; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int r = row0 + m * 16 + lane / 4 + e / 2 * 8, c = start + n * 8 + lane % 4 * 2 + e % 2;
                const int i = A::OwnsKeys ? c : r, j = A::OwnsKeys ? r : c;
                const bool is_there = i < int(a.queries) && j < int(a.keys);
                float& x = s[m][n][e];
                if constexpr (A::Masked) x = fmaf(x, scale, is_there ? a.added(b, head, i, j) * LOG2E : 0.0f);
                if (j >= int(a.keys) || A::Causal && j > i) x = -infinity();
            }
#endif
}

template <class A> __device__ __forceinline__ void attention(const A& a) {
    using S = Tiles<A>;
    const int blocks = (int(a.own_rows()) + S::Own - 1) / S::Own;
    const u64 bh = blockIdx.x / blocks, b = bh / a.own_heads();
    const int h = bh % a.own_heads(), tile = blockIdx.x % blocks;
    // The longest first, so that the last to run are short.
    const int first = (A::Causal && !A::OwnsKeys ? blocks - 1 - tile : tile) * S::Own, own_end = a.own_rows();
#if __CUDA_ARCH__ < 800
    for (int r = first; r < own_end && r < first + S::Own; ++r) attention_row(a, b, h, r);
#else
    __shared__ __align__(16) u16 memory[S::Words];
    __shared__ float statistics[2][2][S::N];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, share = a.share();

    // The block's own rows stay in registers.
    u32 own[S::M][S::D / 16][4], own2[S::M][S::D / 16][4];
    auto keep = [&](auto& to, const auto* from, u64 step) {
        fetch<A, S::Own>(memory, from, step, first, own_end);
        copies_end();
        wait_for_copies<0>();
        __syncthreads();
        own_rows<A>(to, memory);
        __syncthreads();
    };
    if constexpr (A::OwnsKeys) {
        keep(own, A::row(a.k, a.at_k, b, h, 0), a.at_k.row);
        if constexpr (A::Part == GRAD_K) keep(own2, A::row(a.v, a.at_v, b, h, 0), a.at_v.row);
    } else {
        keep(own, A::row(a.q, a.at_q, b, h, 0), a.at_q.row);
        if constexpr (A::Part == GRAD_Q) keep(own2, A::row(a.g, a.at_g, b, h, 0), a.at_g.row);
    }

    // Two numbers a row of the warp's 16: rows lane / 4 and lane / 4 + 8.
    const int row0 = first + warp * S::M * 16;
    float max[S::M][2], sum[S::M][2], lse[S::M][2], delta[S::M][2];
    float total[S::M][S::D / 8][4];
#pragma unroll
    for (int m = 0; m < S::M; ++m) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            max[m][e] = -infinity(), sum[m][e] = 0.0f, lse[m][e] = infinity(), delta[m][e] = 0.0f;
            const int r = row0 + m * 16 + lane / 4 + 8 * e;
            if (A::Part == GRAD_Q && r < own_end) {
                lse[m][e] = as_power(widen(*A::row(a.lse, a.at_lse, b, h, r)));
                delta[m][e] = widen(*A::row(a.delta, a.at_delta, b, h, r));
            }
        }
#pragma unroll
        for (int d = 0; d < S::D / 8; ++d)
#pragma unroll
            for (int e = 0; e < 4; ++e) total[m][d][e] = 0.0f;
    }

    // Columns in tiles: keys that the rows see, or queries that see them, in each head that shares the keys.
    const int end = a.columns(), from = A::Causal && A::OwnsKeys ? first / S::N * S::N : 0;
    const int seen = A::Causal && !A::OwnsKeys && first + S::Own < end ? first + S::Own : end;
    const int tiles = seen > from ? (seen - from + S::N - 1) / S::N : 0, rounds = tiles * (A::OwnsKeys ? share : 1);
    // Scores are powers of two: log2 e is part of the scale.
    const float scale = a.scale() * LOG2E, by = A::Masked ? 1.0f : scale;
    int next = from, next_head = A::OwnsKeys ? h * share : h;
    auto fetch_next = [&](int half) {
        u16* to = memory + half * S::Tensors * S::N * S::Row;
        if constexpr (A::OwnsKeys) {
            fetch<A, S::N>(to, A::row(a.q, a.at_q, b, next_head, 0), a.at_q.row, next, end);
            fetch<A, S::N>(to + S::N * S::Row, A::row(a.g, a.at_g, b, next_head, 0), a.at_g.row, next, end);
            if (threadIdx.x < S::N) {
                const int r = next + threadIdx.x;
                statistics[half][0][threadIdx.x] = r < end ? as_power(widen(*A::row(a.lse, a.at_lse, b, next_head, r))) : infinity();
                if constexpr (A::Differentiates)
                    statistics[half][1][threadIdx.x] = r < end ? widen(*A::row(a.delta, a.at_delta, b, next_head, r)) : 0.0f;
            }
        } else {
            fetch<A, S::N>(to, A::row(a.k, a.at_k, b, h / share, 0), a.at_k.row, next, end);
            if constexpr (A::Part != LSE)
                fetch<A, S::N>(to + S::N * S::Row, A::row(a.v, a.at_v, b, h / share, 0), a.at_v.row, next, end);
        }
        copies_end();
        next += S::N;
        if (A::OwnsKeys && next >= seen) next = from, ++next_head;
    };
    if (rounds > 0) fetch_next(0);
    int start = from, head = A::OwnsKeys ? h * share : h;
    for (int round = 0; round < rounds; ++round) {
        if (round + 1 < rounds) {
            fetch_next((round + 1) % 2);
            wait_for_copies<1>();
        } else {
            wait_for_copies<0>();
        }
        __syncthreads();
        const u16* tile1 = memory + round % 2 * S::Tensors * S::N * S::Row;
        const u16* tile2 = tile1 + S::N * S::Row;

        float s[S::M][S::N / 8][4] = {};
        across<A>(s, own, tile1);
        const bool is_whole = A::OwnsKeys ? !A::Causal || row0 + S::M * 16 <= start + 1
                                          : start + S::N <= end && (!A::Causal || start + S::N <= row0 + 1);
        if (A::Masked || !is_whole) hide(s, a, b, head, row0, start, scale);

        if constexpr (A::Normalises) {
#pragma unroll
            for (int m = 0; m < S::M; ++m)
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    float top = max[m][e];
#pragma unroll
                    for (int n = 0; n < S::N / 8; ++n) top = fmaxf(top, fmaxf(s[m][n][2 * e], s[m][n][2 * e + 1]));
                    top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
                    top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
                    const float base = top == -infinity() ? 0.0f : top * by;
                    const float kept = exp2_of(fmaf(max[m][e], by, -base));
                    max[m][e] = top;
                    sum[m][e] *= kept;
                    if constexpr (A::Part == OUTPUT) {
#pragma unroll
                        for (int d = 0; d < S::D / 8; ++d) total[m][d][2 * e] *= kept, total[m][d][2 * e + 1] *= kept;
                    }
#pragma unroll
                    for (int n = 0; n < S::N / 8; ++n)
#pragma unroll
                        for (int i = 2 * e; i < 2 * e + 2; ++i) sum[m][e] += s[m][n][i] = exp2_of(fmaf(s[m][n][i], by, -base));
                }
            if constexpr (A::Part == OUTPUT) along<A>(total, s, tile2);
        } else {
            float dp[S::M][S::N / 8][4] = {};
            if constexpr (A::Differentiates) across<A>(dp, own2, tile2);
#pragma unroll
            for (int m = 0; m < S::M; ++m)
#pragma unroll
                for (int n = 0; n < S::N / 8; ++n)
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        const int c = n * 8 + lane % 4 * 2 + e % 2;
                        const float l = A::OwnsKeys ? statistics[round % 2][0][c] : lse[m][e / 2];
                        const float p = exp2_of(fmaf(s[m][n][e], by, -l));
                        if constexpr (A::Differentiates) {
                            s[m][n][e] = p * (dp[m][n][e] - (A::OwnsKeys ? statistics[round % 2][1][c] : delta[m][e / 2]));
                        } else {
                            s[m][n][e] = p;
                        }
                    }
            along<A>(total, s, A::Part == GRAD_V ? tile2 : tile1);
        }
        start += S::N;
        if (A::OwnsKeys && start >= seen) start = from, ++head;
        __syncthreads();
    }

    using O = typename A::Result;
#pragma unroll
    for (int m = 0; m < S::M; ++m)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            const int r = row0 + m * 16 + lane / 4 + 8 * e;
            float factor = A::Part == GRAD_V ? 1.0f : a.scale();
            if constexpr (A::Normalises) {
                sum[m][e] += __shfl_xor_sync(~0u, sum[m][e], 1);
                sum[m][e] += __shfl_xor_sync(~0u, sum[m][e], 2);
                factor = sum[m][e] == 0.0f ? 0.0f : 1.0f / sum[m][e];
            }
            if (r >= own_end) continue;
            const float power = sum[m][e] == 0.0f ? -infinity() : (max[m][e] * by + log2f(sum[m][e])) * LN2;
            if (A::Part == OUTPUT && a.statistics && lane % 4 == 0) a.statistics[bh * a.queries + r] = power;
            O* out = a.out + b * a.at_out.batch + h * a.at_out.head + r * a.at_out.row;
            if constexpr (A::Part == LSE) {
                if (lane % 4 == 0) *out = Narrow<O>::of(power);
            } else {
#pragma unroll
                for (int d = 0; d < S::D / 8; ++d) {
                    const int c = d * 8 + lane % 4 * 2;
                    const float two[2] = {total[m][d][2 * e] * factor, total[m][d][2 * e + 1] * factor};
                    if (c < A::Width) store<2>(out + c, two);
                }
            }
        }
#endif
}

}  // namespace mantissa
