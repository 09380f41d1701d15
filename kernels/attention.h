/* Attention in INT8, of an instruction set that has said how bytes are multiplied:

     KEYS             keys whose codes of weights share a word of 32 bits, and lie in it one after the other
     VALUE_SHIFT      what is added to the codes of values
     CHUNK            channels whose sums fill the registers
     score            products of LANES queries with some keys
     average          adds a word of LANES rows of weights times a word of values

   For each head of a text, and so independent of the other texts,

     query  = query_scale (query_code - 64)            7 bits, one scale a token
     key    = key_scale key_code                       -64 to 64, one scale a token: four products fit into 16 bits
     value  = middle + value_scale value_code          -127 to 127, one middle and scale a channel of the text
     weight = 2^(highest of 16 keys - highest) code    0 to 255: codes of 16 keys have a range of their own
     y      = middle + value_scale (sum of weight value_code) / (sum of weight)

   and a weight's power is that of query key and, where there is one, a bias of the distance between the two tokens.

   The weights' sum is that of their codes, so that they add up to 1 however they were rounded. Lanes are queries, so
   that no maximum and no sum goes across lanes. On AVX2 and NEON its speed is bound by multiplying bytes, on AVX-512 by
   exp. */
#pragma once
#include "vectors.h"

enum {
    GROUP = 16, /* keys whose weights share a range */
    LARGEST_QUERY = 63,
    QUERY_SHIFT = 64,
    LARGEST_KEY = 64,
    LARGEST_VALUE = 127,
    GROUPED = LANES * GROUP / KEYS,
};
/* The words that `weigh` adds up, of codes that are all 0. */
#define WITHOUT_CODES (KEYS == 4 ? ROUND_BITS * 0x01010101u : ROUND_BITS * 0x00010001u)
_Static_assert(GROUP == LANES, "rows are padded for both");

/* A head of one text. Rows are padded to LANES. */
typedef struct Head {
    int64_t tokens, stride;
    const float *qkv;             /* of the first token; queries, keys and values are `channels` apart */
    const float *bias;            /* of a query from its key on; it may be before it */
    int32_t *queries;             /* four codes each: (rows / LANES, size / QUAD, LANES) */
    float *query_scales;          /* (rows) */
    int8_t *keys;                 /* (rows, size) */
    float *key_scales;            /* (rows) */
    int32_t *key_starts;          /* (rows): what QUERY_SHIFT added to a product, to be taken from it */
    int32_t *values;              /* KEYS codes each: (rows / KEYS, size) */
    float *middle, *value_scales; /* (size) */
    int32_t *codes;               /* KEYS codes of weights each, of LANES queries: (rows / KEYS, LANES) */
    float *highest;               /* score of each group of keys, then the group's scale: (rows / GROUP, LANES) */
    int32_t *sums;                /* of codes, then those times -VALUE_SHIFT: (rows / GROUP, LANES) */
    float *averages;              /* (size, LANES) */
    float finite;                 /* 0, or NaN if a query or a key is not finite */
} Head;

static INLINE Ints load_ints(const int32_t *from) {
    Ints found;
    __builtin_memcpy(&found, from, sizeof found);
    return found;
}

static INLINE void store_ints(int32_t *to, Ints values) { __builtin_memcpy(to, &values, sizeof values); }

/* The largest magnitude in a row, and in `inverse` the factor that turns it into `largest_code`. */
static INLINE float reach(const float *row, const int64_t size, const float largest_code, float *inverse) {
    Floats largest = __builtin_elementwise_abs(load(row));
    for (int64_t d = LANES; d < size; d += LANES) largest = larger(__builtin_elementwise_abs(load(row + d)), largest);
    const float found = largest_lane(largest);
    *inverse = found > SMALLEST_RANGE ? largest_code / found : 0;
    return found;
}

static INLINE void encode_query_and_key(Head *head, const int64_t size, const int64_t token, const int64_t channels,
                                        const float alpha) {
    const float *query = head->qkv + token * head->stride, *key = query + channels;
    int32_t *to = head->queries + token / LANES * LANES * size / QUAD + token % LANES;
    float to_query, to_key;
    Floats total = {}, finite = {};
    head->query_scales[token] = reach(query, size, LARGEST_QUERY, &to_query) * (alpha / LARGEST_QUERY);
    head->key_scales[token] = reach(key, size, LARGEST_KEY, &to_key) * (1.0f / LARGEST_KEY);
    for (int64_t d = 0; d < size; d += LANES) {
        const Floats shifted = fma(load(query + d), all(to_query), all(ROUND + QUERY_SHIFT));
        const Floats rounded = fma(load(key + d), all(to_key), all(ROUND));
        const Bytes codes = __builtin_convertvector((Words)shifted, Bytes);
        const SignedBytes key_codes = __builtin_convertvector((Ints)rounded, SignedBytes);
        int32_t quads[LANES / QUAD];
        __builtin_memcpy(quads, &codes, sizeof quads);
        UNROLL
        for (int i = 0; i < LANES / QUAD; i++) to[(d / QUAD + i) * LANES] = quads[i];
        __builtin_memcpy(head->keys + token * size + d, &key_codes, sizeof key_codes);
        total += rounded - ROUND;
        finite = fma(shifted, all(0), finite);
    }
    const float sum = sum_of_lanes(total + finite);
    head->key_starts[token] = sum == sum ? -QUERY_SHIFT * (int32_t)sum : 0;
    head->finite += (sum + number(head->query_scales[token]) + number(head->key_scales[token])) * 0;
}

/* Codes of LANES channels of the values. */
static INLINE void encode_values(Head *head, const int64_t size, const int64_t channel, const float *values) {
    Floats lowest = load(values), highest = lowest;
    for (int64_t token = 1; token < head->tokens; token++) {
        const Floats value = load(values + token * head->stride);
        lowest = smaller(value, lowest);
        highest = larger(value, highest);
    }
    const Floats middle = (lowest + highest) * 0.5f, half = highest - middle;
    const Floats inverse = half > SMALLEST_RANGE ? LARGEST_VALUE / half : 0;
    store(head->middle + channel, middle);
    Floats finite = {};
    for (int64_t token = 0; token < padded(head->tokens); token += KEYS) {
        Words word = {};
        for (int64_t i = 0; i < KEYS && token + i < head->tokens; i++) {
            const Floats value = load(values + (token + i) * head->stride) - middle;
            const Words code = (Words)fma(value, inverse, all(ROUND + VALUE_SHIFT)) & (KEYS == 4 ? 0xff : 0xffff);
            word |= code << (32 / KEYS * i);
            finite = fma(value, all(0), finite);
        }
        store_ints(head->values + token / KEYS * size + channel, (Ints)word);
    }
    store(head->value_scales + channel, fma(half, all(1.0f / LARGEST_VALUE), finite));
}

/* Scores and codes of `count` keys of a group from `first` on; the group's other keys get code 0. */
static INLINE void weigh(Head *head, const int64_t size, const int64_t query, const int64_t first, const int count,
                         const int biased) {
    const int32_t *queries = head->queries + query * size / QUAD;
    int32_t *codes = head->codes + first / KEYS * LANES;
    const Floats query_scale = load(head->query_scales + query), scale = biased ? all(1) : query_scale;
    Floats scores[GROUP], highest = all(-__builtin_inff());
    Ints products[GROUP];
    Words total = {};
    score(queries, head->keys + first * size, head->key_starts + first, count, size, products);
    for (int key = 0; key < count; key++) {
        scores[key] = __builtin_convertvector(products[key], Floats) * head->key_scales[first + key];
        if (biased) scores[key] = fma(scores[key], query_scale, load(head->bias + query - first - key));
        highest = larger(scores[key], highest);
    }
    for (int key = 0; key < GROUP; key += KEYS) {
        Words word = {};
        UNROLL
        for (int i = 0; i < KEYS; i++) {
            const Words code = key + i < count ? weight_codes(scores[key + i] - highest, scale) : (Words)ROUND_BITS;
            total += code;
            word += code << (32 / KEYS * i);
        }
        store_ints(codes + key / KEYS * LANES, (Ints)(word - WITHOUT_CODES));
    }
    store(head->highest + first / GROUP * LANES, highest);
    store_ints(head->sums + first / GROUP * LANES, (Ints)(total - GROUP * ROUND_BITS));
}

/* LANES queries from `query` on, into rows of y, which may be more than the text has. */
static INLINE void attend_group(Head *head, const int64_t size, const int64_t query, float *y, const int64_t y_step,
                                const int biased) {
    const int64_t whole = head->tokens / GROUP * GROUP, groups = padded(head->tokens) / GROUP;
    for (int64_t first = 0; first < whole; first += GROUP) weigh(head, size, query, first, GROUP, biased);
    if (whole < head->tokens) weigh(head, size, query, whole, (int)(head->tokens - whole), biased);

    const Floats scale = biased ? all(1) : load(head->query_scales + query);
    Floats highest = load(head->highest), total = all(head->finite);
    for (int64_t i = 1; i < groups; i++) highest = larger(load(head->highest + i * LANES), highest);
    for (int64_t i = 0; i < groups; i++) {
        const Floats of_group = exp2((load(head->highest + i * LANES) - highest) * scale);
        total = fma(__builtin_convertvector(load_ints(head->sums + i * LANES), Floats), of_group, total);
        store(head->highest + i * LANES, of_group);
        if (VALUE_SHIFT) store_ints(head->sums + i * LANES, load_ints(head->sums + i * LANES) * -VALUE_SHIFT);
    }
    const Floats inverse = 1 / total;
    for (int64_t d = 0; d < size; d += CHUNK) {
        Floats y[CHUNK] = {};
        for (int64_t i = 0; i < groups; i++) {
            const int32_t *codes = head->codes + i * GROUPED, *values = head->values + i * GROUP / KEYS * size + d;
            const Ints start = VALUE_SHIFT ? load_ints(head->sums + i * LANES) : (Ints)0;
            const Floats of_group = load(head->highest + i * LANES);
            Ints sums[CHUNK];
            UNROLL
            for (int c = 0; c < CHUNK; c++) sums[c] = start;
            UNROLL
            for (int k = 0; k < GROUP / KEYS; k++) {
                const Ints word = load_ints(codes + k * LANES);
                UNROLL
                for (int c = 0; c < CHUNK; c++) sums[c] = average(sums[c], word, values[k * size + c]);
            }
            UNROLL
            for (int c = 0; c < CHUNK; c++) y[c] = fma(__builtin_convertvector(sums[c], Floats), of_group, y[c]);
        }
        UNROLL
        for (int c = 0; c < CHUNK; c++)
            store(head->averages + (d + c) * LANES,
                  fma(y[c] * inverse, all(head->value_scales[d + c]), all(head->middle[d + c])));
    }
    for (int64_t d = 0; d < size; d += LANES) transpose(head->averages + d * LANES, LANES, y + d, y_step);
}

static INLINE void *take(char **workspace, const int64_t words) {
    void *found = *workspace;
    *workspace += words * (int64_t)sizeof(float);
    return found;
}

/* A head of one text into rows of y. */
static INLINE void attend_head(Head *head, const int64_t size, const int64_t channels, const float alpha, float *y,
                               const int biased) {
    head->finite = 0;
    for (int64_t token = 0; token < head->tokens; token++) encode_query_and_key(head, size, token, channels, alpha);
    for (int64_t d = 0; d < size; d += LANES) encode_values(head, size, d, head->qkv + 2 * channels + d);
    for (int64_t query = 0; query < head->tokens; query += LANES)
        attend_group(head, size, query, y + query * channels, channels, biased);
}

static void attend(const Attention *attention) {
    const int64_t size = attention->size, channels = attention->heads * size, tokens = attention->tokens,
                  rows = padded(tokens);
    char *workspace = attention->workspace;
    float *y = take(&workspace, rows * channels);
    Head head = {
        .tokens = tokens,
        .stride = 3 * channels,
        .queries = take(&workspace, rows * size / QUAD),
        .query_scales = take(&workspace, rows),
        .keys = take(&workspace, rows * size / QUAD),
        .key_scales = take(&workspace, rows),
        .key_starts = take(&workspace, rows),
        .values = take(&workspace, rows * size / KEYS),
        .middle = take(&workspace, size),
        .value_scales = take(&workspace, size),
        .codes = take(&workspace, rows / KEYS * LANES),
        .highest = take(&workspace, rows),
        .sums = take(&workspace, rows),
        .averages = take(&workspace, size * LANES),
    };
    __builtin_memset(head.queries, 0, rows * size);
    __builtin_memset(head.query_scales, 0, rows * sizeof(float));
    for (int64_t text = 0; text < attention->texts; text++) {
        for (int64_t i = 0; i < attention->heads; i++) {
            head.qkv = attention->qkv + text * tokens * 3 * channels + i * size;
            if (attention->bias) {
                head.bias = attention->bias + i * bias_size(attention->positions) + attention->positions - 1;
                attend_head(&head, size, channels, attention->alpha, y + i * size, 1);
            } else if (size == 32)
                attend_head(&head, 32, channels, attention->alpha, y + i * size, 0);
            else
                attend_head(&head, size, channels, attention->alpha, y + i * size, 0);
        }
        for (int64_t token = 0; token < tokens; token++)
            encode_row(&attention->coding, text * tokens + token, y + token * channels);
    }
}
