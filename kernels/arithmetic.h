/* What the operators ask of an instruction set: the jobs, and the table of functions that do them.

   Each instruction set has a file, compiled for it alone, that says how bytes are multiplied and includes the rest. Sizes
   of blocks have the names that BLIS gives them (Van Zee and van de Geijn, 2015): MR rows by NR columns of a product
   have their sums in registers, MC rows are a panel, which stays in a cache. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#define INLINE inline __attribute__((always_inline))
#define UNROLL _Pragma("clang loop unroll(full)")
#define DO_NOT_UNROLL _Pragma("clang loop unroll(disable)")

/* 1.5 * 2^23: between 2^23 and 2^24 float32 has only integers. */
#define ROUND 12582912.0f
#define ROUND_BITS 0x4b400000u

/* A row of a smaller range counts as one of equal numbers: 191 divided by it could overflow. */
#define SMALLEST_RANGE 1e-30f

/* quantize/linear.py tells why it is not 255. */
#define LARGEST_CODE 191.0f

/* Numbers beyond it count as NaN: a constant is refused, and a row becomes NaN. So all that is computed of other rows
   is finite in float32, 2^31 LARGEST^2 at most. Trained encoders stay below 1e4. */
#define LARGEST 1e12f

enum { LANES = 16 };
typedef float Floats __attribute__((ext_vector_type(LANES)));
typedef float Half __attribute__((ext_vector_type(LANES / 2)));
typedef float Quarter __attribute__((ext_vector_type(LANES / 4)));
typedef int32_t Ints __attribute__((ext_vector_type(LANES)));
typedef uint32_t Words __attribute__((ext_vector_type(LANES)));
typedef int8_t SignedBytes __attribute__((ext_vector_type(LANES)));
typedef uint8_t Bytes __attribute__((ext_vector_type(LANES)));

enum {
    QUAD = 4,     /* inputs whose products one instruction adds up */
    BLOCK = 32,   /* columns that lie together in the weights: two registers of AVX-512 */
    MC = 48,      /* rows of a panel, by which a block of columns is multiplied before the next one */
    AHEAD = 8192, /* bytes by which weights are fetched early */
    MOST_INPUTS_OF_A_PRODUCT = 1 << 16, /* whose sums, and 128 times those of their weights, fit into 32 bits */
};

typedef struct Normalization {
    int64_t size;
    float epsilon;
    const float *gamma, *beta;
} Normalization;

/* Where rows of codes and of the rest go. */
typedef struct Coding {
    int64_t size, outlier_count;
    const float *factor; /* NULL: 1 */
    const int64_t *outlier_channels;
    uint8_t *codes;
    float *rest;
} Coding;

enum { NO_TOKEN = -1 };

typedef struct Embed {
    int64_t texts, tokens;
    const int64_t *ids;
    const int8_t *words;
    const float *word_scales, *channel_scales, *positions;
    int64_t padding; /* a token id that has the first position, and after which the others' begin; or NO_TOKEN */
    Normalization normalization;
    float *y;
    Coding coding;
} Embed;

typedef struct Product {
    int64_t rows, size, columns, rest_size;
    const uint8_t *codes;
    const int8_t *weight;
    const int32_t *sums;
    const float *rest, *scale, *bias, *rest_weight;
    uint8_t *workspace; /* of a panel's codes, where needs_workspace says so */
} Product;

typedef struct AddNormalize {
    const float *residual;
    Normalization normalization;
    float *y;
    const Coding *coding; /* NULL: none */
} AddNormalize;

typedef struct Attention {
    int64_t texts, tokens, heads, size, positions;
    float alpha;
    const float *qkv;
    const float *bias; /* (heads, bias_size(positions)), or NULL */
    Coding coding;
    void *workspace; /* of attention_workspace bytes */
} Attention;

typedef struct Arithmetic {
    void (*embed)(const Embed *);
    void (*linear)(const Product *, float *y);
    void (*linear_add_normalize)(const Product *, const AddNormalize *);
    void (*linear_gelu_quantize)(const Product *, const Coding *, float *workspace);
    void (*quantize)(const Coding *, const float *x, int64_t rows);
    void (*attend)(const Attention *);
    int needs_workspace; /* whether products need a byte for each code of a panel */
} Arithmetic;

/* What a row's rest has before its outlier channels. */
enum { SCALE, LOWEST, OUTLIERS };

/* A number rounded up to a multiple of LANES. */
static INLINE int64_t padded(int64_t count) { return (count + LANES - 1) / LANES * LANES; }

/* Bytes of a head's queries, keys and values, of the codes of LANES rows of weights, and of the averages of all heads
   (attention.h). */
enum { MORE_BIASES = LANES - 2 };

/* Of each distance between two of so many positions one; and some that rows of padding read. */
static INLINE int64_t bias_size(int64_t positions) { return 2 * positions + MORE_BIASES; }

static INLINE int64_t attention_workspace(int64_t tokens, int64_t heads, int64_t size) {
    const int64_t rows = padded(tokens), of_a_head = rows * (size + 14) + (2 + LANES) * size;
    return (int64_t)sizeof(float) * (of_a_head + rows * heads * size);
}

#ifdef __x86_64__
extern const Arithmetic arithmetic_avx2, arithmetic_avx512, arithmetic_vnni;
#else
extern const Arithmetic arithmetic_neon;
#endif
