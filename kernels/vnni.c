/* AVX-512 with VNNI: Cascade Lake (2019), Zen 4 (2022) and newer servers.

   VPDPBUSD multiplies 64 bytes, adds four products of each lane to its sum, and never saturates. Two run in a cycle, so
   reading bounds products: 12 rows by 2 registers of columns read 14 times for 24 multiplications. */
#include "arithmetic.h"
#include <immintrin.h>
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"))),        \
                             apply_to = function)
#include "x86.h"

enum { CODE_SHIFT = 0, STEP = QUAD, DEPTH = STEP };
#define MR 12
#define NR (2 * LANES)
enum { KEYS = 4, VALUE_SHIFT = 0, CHUNK = 8 };

static INLINE __m512i broadcast(const void *quad) { return _mm512_set1_epi32(quad_at(quad)); }

static INLINE Ints dot(Ints sums, Codes codes, int q, const int8_t *weight) {
    return (Ints)_mm512_dpbusd_epi32((__m512i)sums, broadcast(codes), _mm512_loadu_si512(weight));
}

static INLINE void score(const int32_t *queries, const int8_t *keys, const int32_t *starts, const int count,
                         const int64_t size, Ints *products) {
    for (int key = 0; key < count; key++) {
        __m512i sums = _mm512_set1_epi32(starts[key]);
        for (int64_t d = 0; d < size; d += QUAD)
            sums = _mm512_dpbusd_epi32(sums, _mm512_loadu_si512(queries + d / QUAD * LANES),
                                       broadcast(keys + key * size + d));
        products[key] = (Ints)sums;
    }
}

static INLINE Ints average(Ints sums, Ints weights, int32_t values) {
    return (Ints)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)weights, _mm512_set1_epi32(values));
}

#include "layers.h"
#include "attention.h"

const Arithmetic arithmetic_vnni = {embed,       linear, linear_add_normalize, linear_gelu_quantize,
                                    encode_rows, attend, CODE_SHIFT != 0};
#pragma clang attribute pop
