/* Numbers in LANES lanes, by the same operations on every CPU.

   The same bits on every CPU: each number is made by the same operations of IEEE 754 in the same order, whatever the
   width of the registers. So all sums over lanes have LANES lanes and are folded in one way, a product and a sum are
   either one fused operation (`fma`) or, under -ffp-contract=off, never fused, and powers and erf are of our own. */
#pragma once
#include "arithmetic.h"

static INLINE Floats load(const float *from) {
    Floats found;
    __builtin_memcpy(&found, from, sizeof found);
    return found;
}

static INLINE void store(float *to, Floats values) { __builtin_memcpy(to, &values, sizeof values); }

/* On NEON a fused product overwrites the register that it adds to, so that a number that is needed again must be copied
   first, by an instruction as dear as the product. Reading it from memory again costs nothing: REREAD makes the compiler
   forget that it knows what is at a pointer. */
#ifdef __x86_64__
#define REREAD(pointer)
#else
#define REREAD(pointer) __asm__ volatile("" : "+r"(pointer))
#endif

static INLINE Floats all(float value) { return (Floats)value; }

/* If `a` is NaN, the result is `b`. One instruction each. */
#ifdef __x86_64__
static INLINE Floats larger(Floats a, Floats b) { return a > b ? a : b; }

static INLINE Floats smaller(Floats a, Floats b) { return a < b ? a : b; }
#else
static INLINE Floats larger(Floats a, Floats b) { return __builtin_elementwise_maxnum(a, b); }

static INLINE Floats smaller(Floats a, Floats b) { return __builtin_elementwise_minnum(a, b); }
#endif

static INLINE Floats fma(Floats a, Floats b, Floats c) { return __builtin_elementwise_fma(a, b, c); }

/* NaN if it is not finite, or beyond LARGEST. */
static INLINE float number(float x) { return x >= -LARGEST && x <= LARGEST ? x : __builtin_nanf(""); }

static INLINE float sum_of_lanes(Floats v) {
    Half h = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
             __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
    Quarter q = __builtin_shufflevector(h, h, 0, 1, 2, 3) + __builtin_shufflevector(h, h, 4, 5, 6, 7);
    return (q[0] + q[2]) + (q[1] + q[3]);
}

static INLINE float largest_lane(Floats v) {
    v = larger(v, __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
    v = larger(v, __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
    v = larger(v, __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
    return v[0] > v[1] ? v[0] : v[1];
}

/* 2^x of numbers that are not positive, at least 2^-126: 2^n 2^r of n = round(x), a minimax polynomial off by at most
   8e-8. Added to ROUND, x loses all but n, which stays in the lowest bits. */
static INLINE Floats exp2(Floats x) {
    const Floats clipped = larger(x, all(-126.0f));
    const Floats n = clipped + ROUND, r = clipped - (n - ROUND);
    Floats p = all(1.3276471e-3f);
    p = fma(p, r, all(9.6755409e-3f));
    p = fma(p, r, all(5.5507131e-2f));
    p = fma(p, r, all(2.4022120e-1f));
    p = fma(p, r, all(6.9314694e-1f));
    p = fma(p, r, all(1.0000001f));
    return (Floats)((Words)p + ((Words)n << 23));
}

/* Whole numbers near 255 2^(x scale), of products that are not positive, each in the lowest bits of ROUND. The
   polynomial is off by at most 1.8e-3 of the number, which codes of attention do not tell from their own rounding. */
static INLINE Words weight_codes(Floats x, Floats scale) {
    static const Floats table[] = {
        (Floats)7.99435344f,
        (Floats)0.70344801f,
        (Floats)1.00044314f, /* the first is log2 255 */
    };
    const Floats *c = table;
    REREAD(c);
    const Floats clipped = larger(fma(x, scale, c[0]), all(-20.0f));
    const Floats n = clipped + ROUND, r = clipped - (n - ROUND);
    const Floats p = fma(fma(all(0.23842893f), r, c[1]), r, c[2]);
    const Floats power = (Floats)((Words)p + ((Words)n << 23));
    return (Words)(power + ROUND);
}

/* max(x, 0) - |x| (1 - erf(|x| / sqrt 2)) / 2, the latter by a minimax polynomial up to 3.9, where it is nearly 0: off
   by at most 1.2e-4, a hundredth of the step between two codes. NaN gives NaN. */
static INLINE Floats gelu(Floats x) {
    static const Floats table[] = {
        (Floats)3.251474e-5f,  (Floats)-1.2082409e-3f, (Floats)1.3909920e-2f, (Floats)-7.222161e-2f,
        (Floats)1.6986367e-1f, (Floats)-7.600672e-2f,  (Floats)-3.727715e-1f, (Floats)4.9696392e-1f,
    };
    const Floats *c = table;
    REREAD(c);
    const Floats size = __builtin_elementwise_abs(x), a = smaller(size, all(3.9f));
    Floats p = c[0];
    UNROLL
    for (int i = 1; i < 8; i++) p = fma(p, a, c[i]);
    return fma(x + size, all(0.5f), p * -a);
}

/* LANES x LANES numbers, rows into columns. Each of four rounds interleaves the first half of the rows with the second.
   */
static INLINE void transpose(const float *from, const int64_t from_step, float *to, const int64_t to_step) {
    Floats m[LANES], next[LANES];
    UNROLL
    for (int i = 0; i < LANES; i++) m[i] = load(from + i * from_step);
    UNROLL
    for (int round = 0; round < 4; round++) {
        UNROLL
        for (int i = 0; i < LANES / 2; i++) {
            const Floats a = m[i], b = m[i + LANES / 2];
            next[2 * i] = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            next[2 * i + 1] =
                __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
        }
        UNROLL
        for (int i = 0; i < LANES; i++) m[i] = next[i];
    }
    UNROLL
    for (int i = 0; i < LANES; i++) store(to + i * to_step, m[i]);
}
