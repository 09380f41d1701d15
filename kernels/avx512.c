/* AVX-512 without VNNI: Skylake-SP (2017).

   As avx2.c, in registers twice as wide: bound by the two ports that multiply integers of 512 bits (p0 and p5). */
#include "arithmetic.h"
#include <immintrin.h>
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl"))),                   \
                             apply_to = function)
#include "x86.h"

enum { CODE_SHIFT = 0, STEP = 2 * QUAD, DEPTH = STEP };
#define MR 12
#define NR (2 * LANES)
enum { KEYS = 2, VALUE_SHIFT = 0, CHUNK = 8 };

static INLINE __m512i broadcast(const void *quad) { return _mm512_set1_epi32(quad_at(quad)); }

static INLINE __m512i read(const void *from) { return _mm512_loadu_si512(from); }

/* Eight products of each 32-bit lane added up: of unsigned bytes a and signed bytes b. */
static INLINE Ints eight(__m512i a0, __m512i b0, __m512i a1, __m512i b1) {
    const __m512i fours = _mm512_add_epi16(_mm512_maddubs_epi16(a0, b0), _mm512_maddubs_epi16(a1, b1));
    return (Ints)_mm512_madd_epi16(fours, _mm512_set1_epi16(1));
}

static INLINE Ints dot(Ints sums, Codes codes, int q, const int8_t *weight) {
    return sums + eight(broadcast(codes), read(weight), broadcast(codes + QUAD), read(weight + BLOCK * QUAD));
}

static INLINE void score(const int32_t *queries, const int8_t *keys, const int32_t *starts, const int count,
                         const int64_t size, Ints *products) {
    for (int key = 0; key < count; key++) {
        Ints sums = (Ints)starts[key];
        for (int64_t d = 0; d < size; d += STEP) {
            const int32_t *query = queries + d / QUAD * LANES;
            const int8_t *of = keys + key * size + d;
            sums += eight(read(query), broadcast(of), read(query + LANES), broadcast(of + QUAD));
        }
        products[key] = sums;
    }
}

/* Weights and values need all their 8 bits, and two such products do not fit into 16: so their codes have 16 bits. */
static INLINE Ints average(Ints sums, Ints weights, int32_t values) {
    return sums + (Ints)_mm512_madd_epi16((__m512i)weights, _mm512_set1_epi32(values));
}

#include "layers.h"
#include "attention.h"

const Arithmetic arithmetic_avx512 = {embed,       linear, linear_add_normalize, linear_gelu_quantize,
                                      encode_rows, attend, CODE_SHIFT != 0};
#pragma clang attribute pop
