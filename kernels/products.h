/* Dot products of QUAD unsigned and QUAD signed bytes, LANES at once, added to 32-bit sums: what differs by CPU.

   `read_codes` reads DEPTH codes of a row, and `dot` takes quad number q of them times the weights of LANES columns. */

#ifdef __x86_64__

typedef const uint8_t *Codes;
enum { CODE_SHIFT = 0, DEPTH = QUAD };

static INLINE Codes read_codes(const uint8_t *codes) { return codes; } /* a quad is broadcast from memory */

static INLINE int32_t quad_of(Codes codes, int q) {
    int32_t quad;
    __builtin_memcpy(&quad, codes + q * QUAD, sizeof quad);
    return quad;
}

__attribute__((target(AVX512 ",avx512vnni"))) static INLINE Ints dot_vnni(Ints sums, Codes codes, int q,
                                                                          const int8_t *weight) {
    return (Ints)_mm512_dpbusd_epi32((__m512i)sums, _mm512_set1_epi32(quad_of(codes, q)), _mm512_loadu_si512(weight));
}

/* The sums of pairs, of 16 bits, do not saturate: quantize/linear.py. */
__attribute__((target(AVX512))) static INLINE Ints dot_avx512(Ints sums, Codes codes, int q, const int8_t *weight) {
    const __m512i pairs = _mm512_maddubs_epi16(_mm512_set1_epi32(quad_of(codes, q)), _mm512_loadu_si512(weight));
    return sums + (Ints)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
}

typedef int32_t HalfInts __attribute__((ext_vector_type(LANES / 2)));

__attribute__((target(OLDEST))) static INLINE Ints dot_avx2(Ints sums, Codes codes, int q, const int8_t *weight) {
    const __m256i quads = _mm256_set1_epi32(quad_of(codes, q)), ones = _mm256_set1_epi16(1);
    const __m256i *half = (const __m256i *)weight;
    const HalfInts low = (HalfInts)_mm256_madd_epi16(_mm256_maddubs_epi16(quads, _mm256_loadu_si256(half)), ones);
    const HalfInts high = (HalfInts)_mm256_madd_epi16(_mm256_maddubs_epi16(quads, _mm256_loadu_si256(half + 1)), ones);
    return sums + __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}

#else

typedef int32x4_t Codes;
/* SDOT takes signed bytes alone: codes less 128, and so the sums lack 128 times those of the weights. */
enum { CODE_SHIFT = 128, DEPTH = 16 };

static INLINE Codes read_codes(const uint8_t *codes) {
    return vreinterpretq_s32_u8(veorq_u8(vld1q_u8(codes), vdupq_n_u8(CODE_SHIFT)));
}

#define NEON_DOT(i, ...)                                                                                              \
    vdotq_s32(__builtin_shufflevector(sums, sums, __VA_ARGS__), vld1q_s8(weight + 16 * i), quad)

__attribute__((target(OLDEST))) static INLINE Ints dot_neon(Ints sums, Codes codes, int q, const int8_t *weight) {
    const int8x16_t quad = vreinterpretq_s8_s32(vdupq_n_s32(codes[q]));
    const int32x4_t a = NEON_DOT(0, 0, 1, 2, 3), b = NEON_DOT(1, 4, 5, 6, 7);
    const int32x4_t c = NEON_DOT(2, 8, 9, 10, 11), d = NEON_DOT(3, 12, 13, 14, 15);
    return __builtin_shufflevector(__builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7),
                                   __builtin_shufflevector(c, d, 0, 1, 2, 3, 4, 5, 6, 7), 0, 1, 2, 3, 4, 5, 6, 7, 8, 9,
                                   10, 11, 12, 13, 14, 15);
}

#endif
