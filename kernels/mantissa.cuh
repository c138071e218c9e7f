// What every generated kernel starts from: number formats in memory, conversions, vector access, groups.
//
// Arithmetic is f32 in registers. A value is rounded only where the plan says so, with the conversions below, which
// round to nearest even as IEEE 754 asks. No CUDA header is needed.
#pragma once

namespace mantissa {

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i64 = long long;

// Formats in memory.
struct f16 { u16 bits; };
struct bf16 { u16 bits; };
struct boolean { u8 bits; };

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(double x) { return float(x); }
__device__ __forceinline__ float widen(i64 x) { return float(x); }
__device__ __forceinline__ float widen(int x) { return float(x); }
__device__ __forceinline__ float widen(short x) { return float(x); }
__device__ __forceinline__ float widen(signed char x) { return float(x); }
__device__ __forceinline__ float widen(u64 x) { return float(x); }
__device__ __forceinline__ float widen(u32 x) { return float(x); }
__device__ __forceinline__ float widen(u16 x) { return float(x); }
__device__ __forceinline__ float widen(u8 x) { return float(x); }
__device__ __forceinline__ float widen(boolean x) { return x.bits ? 1.0f : 0.0f; }
__device__ __forceinline__ float widen(bf16 x) { return __uint_as_float(u32(x.bits) << 16); }
__device__ __forceinline__ float widen(f16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}

// Registers of kernels that compute in 64 bits.
template <class T> __device__ __forceinline__ double widen64(T x) { return double(widen(x)); }
__device__ __forceinline__ double widen64(double x) { return x; }
__device__ __forceinline__ double widen64(i64 x) { return double(x); }
__device__ __forceinline__ double widen64(u64 x) { return double(x); }
__device__ __forceinline__ double widen64(int x) { return double(x); }
__device__ __forceinline__ double widen64(u32 x) { return double(x); }

/// Whole numbers wrap around.
template <class T> struct Narrow {
    static __device__ __forceinline__ T of(double x) { return T(i64(x)); }
};
template <> struct Narrow<float> { static __device__ __forceinline__ float of(float x) { return x; } };
template <> struct Narrow<double> { static __device__ __forceinline__ double of(double x) { return x; } };
template <> struct Narrow<u64> {
    static __device__ __forceinline__ u64 of(double x) { return x < 0 ? u64(i64(x)) : u64(x); }
};
template <> struct Narrow<boolean> { static __device__ __forceinline__ boolean of(float x) { return {u8(x != 0.0f)}; } };
template <> struct Narrow<f16> {
    static __device__ __forceinline__ f16 of(float x) {
        f16 y;
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
        return y;
    }
};
template <> struct Narrow<bf16> {
    static __device__ __forceinline__ bf16 of(float x) {
#if __CUDA_ARCH__ >= 800
        bf16 y;
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
        return y;
#else
        // Add half of the last kept place, and one more if that place is odd; NaN stays NaN.
        u32 b = __float_as_uint(x);
        if (x != x) return {u16(b >> 16 | 0x40)};
        return {u16((b + 0x7fff + (b >> 16 & 1)) >> 16)};
#endif
    }
};

/// x as it would read back from memory in format T.
template <class T> __device__ __forceinline__ float round_to(float x) { return widen(Narrow<T>::of(x)); }
template <class T> __device__ __forceinline__ double round_to(double x) { return widen64(Narrow<T>::of(x)); }

/// W neighbouring elements, moved by the widest access that their alignment allows.
template <class T, int W> struct alignas(sizeof(T) * W <= 16 ? sizeof(T) * W : 16) Pack { T v[W]; };

template <int W, class T> __device__ __forceinline__ void load(const T* from, float (&to)[W]) {
    const Pack<T, W> p = *reinterpret_cast<const Pack<T, W>*>(from);
#pragma unroll
    for (int w = 0; w < W; ++w) to[w] = widen(p.v[w]);
}

template <int W, class T> __device__ __forceinline__ void store(T* to, const float (&from)[W]) {
    Pack<T, W> p;
#pragma unroll
    for (int w = 0; w < W; ++w) p.v[w] = Narrow<T>::of(from[w]);
    *reinterpret_cast<Pack<T, W>*>(to) = p;
}

// Functions that CUDA does not have in this form.
__device__ __forceinline__ float maximum(float a, float b) { return a != a || a > b ? a : b; }
__device__ __forceinline__ float minimum(float a, float b) { return -maximum(-a, -b); }
__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
// Philox4x32-10 (Salmon et al. 2011): position and step are the counter, seed and salt the key. The upper 24 bits of its
// first word, in [0, 1).
__device__ __forceinline__ float uniform(u64 position, u32 step, u32 seed, u32 salt) {
    u32 c0 = u32(position), c1 = u32(position >> 32), c2 = step, c3 = 0;
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const u64 p = u64(c0) * 0xD2511F53u, q = u64(c2) * 0xCD9E8D57u;
        c0 = u32(q >> 32) ^ c1 ^ seed;
        c1 = u32(q);
        c2 = u32(p >> 32) ^ c3 ^ salt;
        c3 = u32(p);
        seed += 0x9E3779B9u;
        salt += 0xBB67AE85u;
    }
    return float(c0 >> 8) * (1.0f / 16777216.0f);
}
__device__ __forceinline__ float softplus(float x) { return fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x))); }
__device__ __forceinline__ float sign(float x) { return x == 0.0f || x != x ? x : copysignf(1.0f, x); }
__device__ __forceinline__ float truth(bool c) { return c ? 1.0f : 0.0f; }
__device__ __forceinline__ float modulo(float a, float b) {
    const float r = fmodf(a, b);
    return r != 0.0f && (r < 0.0f) != (b < 0.0f) ? r + b : r;
}
__device__ __forceinline__ double maximum(double a, double b) { return a != a || a > b ? a : b; }
__device__ __forceinline__ double minimum(double a, double b) { return -maximum(-a, -b); }
__device__ __forceinline__ double sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }
__device__ __forceinline__ double softplus(double x) { return fmax(x, 0.0) + log1p(exp(-fabs(x))); }
__device__ __forceinline__ double sign(double x) { return x == 0.0 || x != x ? x : copysign(1.0, x); }
__device__ __forceinline__ double modulo(double a, double b) {
    const double r = fmod(a, b);
    return r != 0.0 && (r < 0.0) != (b < 0.0) ? r + b : r;
}
__device__ __forceinline__ u64 resolve(double i, u64 extent) {
    const double row = i < 0.0 ? i + double(extent) : i;
    const u64 r = row > 0.0 ? u64(row) : 0;
    return r < extent ? r : extent - 1;
}
__device__ __forceinline__ u64 resolve(float i, u64 extent) {
    const float row = i < 0.0f ? i + float(extent) : i;
    const u64 r = row > 0.0f ? u64(row) : 0;
    return r < extent ? r : extent - 1;
}

/// Several kernels of the same code in one launch. Each part has its first block, in ascending order.
template <class K, int N> struct Group { K part[N]; };

template <class K, int N> __device__ __forceinline__ const K& part_of(const Group<K, N>& g) {
    int low = 0, high = N;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (blockIdx.x < g.part[middle].first_block) high = middle;
        else low = middle;
    }
    return g.part[low];
}

}  // namespace mantissa
