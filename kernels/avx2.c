/* AVX2 and FMA: x86-64 since Haswell (2013), and the most that Lambda's x86 machines offer.

   Products of bytes are bound by the two ports that multiply integers (p0 and p1 of Skylake, FP0 and FP3 of Zen 3).
   VPMADDUBSW multiplies 32 pairs and adds the two of each in 16 bits, where they saturate; VPMADDWD widens. Weights are
   such that four products fit (quantize/linear.py), so two results of VPMADDUBSW are added by VPADDW and share one
   VPMADDWD: 3 instructions on those ports for 64 products, where pairs need 4. */
#include "arithmetic.h"
#include <immintrin.h>
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#include "x86.h"

enum { CODE_SHIFT = 0, STEP = 2 * QUAD, DEPTH = STEP };
#define MR 4
#define NR (1 * LANES)
enum { KEYS = 2, VALUE_SHIFT = 0, CHUNK = 4 };

typedef int32_t HalfInts __attribute__((ext_vector_type(LANES / 2)));

static INLINE __m256i broadcast(const void *quad) { return _mm256_set1_epi32(quad_at(quad)); }

static INLINE __m256i read(const void *from) { return _mm256_loadu_si256(from); }

static INLINE Ints both(__m256i low, __m256i high) {
    return __builtin_shufflevector((HalfInts)low, (HalfInts)high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}

static INLINE __m256i half_of(Ints of, const int half) {
    return half ? (__m256i)__builtin_shufflevector(of, of, 8, 9, 10, 11, 12, 13, 14, 15)
                : (__m256i)__builtin_shufflevector(of, of, 0, 1, 2, 3, 4, 5, 6, 7);
}

/* Eight products of each 32-bit lane added up: of unsigned bytes a and signed bytes b. */
static INLINE __m256i eight(__m256i a0, __m256i b0, __m256i a1, __m256i b1) {
    const __m256i fours = _mm256_add_epi16(_mm256_maddubs_epi16(a0, b0), _mm256_maddubs_epi16(a1, b1));
    return _mm256_madd_epi16(fours, _mm256_set1_epi16(1));
}

static INLINE Ints dot(Ints sums, Codes codes, int q, const int8_t *weight) {
    const __m256i first = broadcast(codes), second = broadcast(codes + QUAD);
    const int8_t *next = weight + BLOCK * QUAD;
    return sums + both(eight(first, read(weight), second, read(next)),
                       eight(first, read(weight + 32), second, read(next + 32)));
}

static INLINE void score(const int32_t *queries, const int8_t *keys, const int32_t *starts, const int count,
                         const int64_t size, Ints *products) {
    for (int half = 0; half < 2; half++) /* the queries of a head of 32 channels stay in eight registers */
        for (int key = 0; key < count; key++) {
            __m256i sums = _mm256_set1_epi32(starts[key]);
            for (int64_t d = 0; d < size; d += STEP) {
                const int32_t *query = queries + d / QUAD * LANES + half * LANES / 2;
                const int8_t *of = keys + key * size + d;
                sums = _mm256_add_epi32(sums,
                                        eight(read(query), broadcast(of), read(query + LANES), broadcast(of + QUAD)));
            }
            _mm256_storeu_si256((__m256i *)(products + key) + half, sums);
        }
}

/* Weights and values need all their 8 bits, and two such products do not fit into 16: so their codes have 16 bits. */
static INLINE Ints average(Ints sums, Ints weights, int32_t values) {
    const __m256i pair = _mm256_set1_epi32(values);
    return sums + both(_mm256_madd_epi16(half_of(weights, 0), pair), _mm256_madd_epi16(half_of(weights, 1), pair));
}

#include "layers.h"
#include "attention.h"

const Arithmetic arithmetic_avx2 = {embed,       linear, linear_add_normalize, linear_gelu_quantize,
                                    encode_rows, attend, CODE_SHIFT != 0};
#pragma clang attribute pop
