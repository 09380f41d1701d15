/* NEON with the dot products of ARMv8.2: Graviton2 (Neoverse N1, 2019) and newer, all of Apple's.

   SDOT multiplies 16 bytes and adds four products of each lane to its sum. Two run in a cycle on Neoverse N1 (Arm's
   Software Optimization Guide, "ASIMD dot product"), as do two reads of 16 bytes. 4 rows by 16 columns keep 16 sums in
   registers and read 4 times for 16 SDOT. */
#include <arm_neon.h>
#include "arithmetic.h"
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)

/* SDOT takes only signed bytes: codes have 128 taken off, so sums lack 128 times the sum of the weights. UDOT takes only
   unsigned ones: values have 128 added, so sums have 128 times the sum of the weights too much. */
enum { CODE_SHIFT = 128, STEP = QUAD, DEPTH = 16 };
#define MR 4
#define NR (1 * LANES)
enum { KEYS = 4, VALUE_SHIFT = 128, CHUNK = 2 };

typedef int32x4_t Codes;

static INLINE Codes read_codes(const uint8_t *codes) { return vreinterpretq_s32_u8(vld1q_u8(codes)); }

static INLINE Ints all_of(int32x4_t a, int32x4_t b, int32x4_t c, int32x4_t d) {
    return __builtin_shufflevector(__builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7),
                                   __builtin_shufflevector(c, d, 0, 1, 2, 3, 4, 5, 6, 7), 0, 1, 2, 3, 4, 5, 6, 7, 8, 9,
                                   10, 11, 12, 13, 14, 15);
}

#define QUARTER(of, i) __builtin_shufflevector((of), (of), 4 * (i), 4 * (i) + 1, 4 * (i) + 2, 4 * (i) + 3)

static INLINE Ints dot(Ints sums, Codes codes, int q, const int8_t *weight) {
    const int8x16_t quad = vreinterpretq_s8_s32(vdupq_n_s32(codes[q]));
    return all_of(vdotq_s32(QUARTER(sums, 0), vld1q_s8(weight), quad),
                  vdotq_s32(QUARTER(sums, 1), vld1q_s8(weight + 16), quad),
                  vdotq_s32(QUARTER(sums, 2), vld1q_s8(weight + 32), quad),
                  vdotq_s32(QUARTER(sums, 3), vld1q_s8(weight + 48), quad));
}

/* Codes of queries, of 7 bits, are signed bytes too. */
static INLINE void score(const int32_t *queries, const int8_t *keys, const int32_t *starts, const int count,
                         const int64_t size, Ints *products) {
    for (int quarter = 0; quarter < 4; quarter++) /* the queries of a head of 32 channels stay in eight registers */
        for (int key = 0; key < count; key++) {
            int32x4_t sums = vdupq_n_s32(starts[key]);
            for (int64_t d = 0; d < size; d += 16) {
                const int32_t *query = queries + d / QUAD * LANES + quarter * 4;
                const int8x16_t of = vld1q_s8(keys + key * size + d);
                sums = vdotq_laneq_s32(sums, vreinterpretq_s8_s32(vld1q_s32(query)), of, 0);
                sums = vdotq_laneq_s32(sums, vreinterpretq_s8_s32(vld1q_s32(query + LANES)), of, 1);
                sums = vdotq_laneq_s32(sums, vreinterpretq_s8_s32(vld1q_s32(query + 2 * LANES)), of, 2);
                sums = vdotq_laneq_s32(sums, vreinterpretq_s8_s32(vld1q_s32(query + 3 * LANES)), of, 3);
            }
            vst1q_s32((int32_t *)(products + key) + quarter * 4, sums);
        }
}

#define AVERAGE(i)                                                                                                     \
    vreinterpretq_s32_u32(                                                                                             \
        vdotq_u32(vreinterpretq_u32_s32(QUARTER(sums, i)), vreinterpretq_u8_s32(QUARTER(weights, i)), quad))

static INLINE Ints average(Ints sums, Ints weights, int32_t values) {
    const uint8x16_t quad = vreinterpretq_u8_s32(vdupq_n_s32(values));
    return all_of(AVERAGE(0), AVERAGE(1), AVERAGE(2), AVERAGE(3));
}

#include "layers.h"
#include "attention.h"

const Arithmetic arithmetic_neon = {embed,       linear, linear_add_normalize, linear_gelu_quantize,
                                    encode_rows, attend, CODE_SHIFT != 0};
#pragma clang attribute pop
