/* The arithmetic of the operators, included once for each instruction set, with FUNCTION(name) and the blocks' sizes.

   The same bits on every CPU: each number is made by the same operations of IEEE 754 in the same order, whatever the
   width of the registers. So all sums over lanes have LANES lanes and are folded in one way, a product and a sum are
   either one fused operation (`fma`) or, under -ffp-contract=off, never fused, and powers and erf are of our own. */

static INLINE Floats FUNCTION(load)(const float *from) {
    Floats found;
    __builtin_memcpy(&found, from, sizeof found);
    return found;
}

static INLINE void FUNCTION(store)(float *to, Floats values) { __builtin_memcpy(to, &values, sizeof values); }

static INLINE Floats FUNCTION(all)(float value) { return (Floats)value; }

/* The second of two that are not ordered. */
static INLINE Floats FUNCTION(larger)(Floats a, Floats b) { return a > b ? a : b; }

static INLINE Floats FUNCTION(smaller)(Floats a, Floats b) { return a < b ? a : b; }

static INLINE Floats FUNCTION(fma)(Floats a, Floats b, Floats c) { return __builtin_elementwise_fma(a, b, c); }

static INLINE float FUNCTION(sum)(Floats v) {
    Half h = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
             __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
    Quarter q = __builtin_shufflevector(h, h, 0, 1, 2, 3) + __builtin_shufflevector(h, h, 4, 5, 6, 7);
    return (q[0] + q[2]) + (q[1] + q[3]);
}

static INLINE float FUNCTION(highest)(Floats v) {
    v = FUNCTION(larger)(v, __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
    v = FUNCTION(larger)(v, __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
    v = FUNCTION(larger)(v, __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
    return v[0] > v[1] ? v[0] : v[1];
}

/* 2^x of numbers that are not positive, at least 2^-126: 2^n 2^r of n = round(x), a minimax polynomial off by at most
   8e-8. Added to ROUND, x loses all but n, which stays in the lowest bits. */
static INLINE Floats FUNCTION(exp2)(Floats x) {
    const Floats clipped = FUNCTION(larger)(x, FUNCTION(all)(-126.0f));
    const Floats n = clipped + ROUND, r = clipped - (n - ROUND);
    Floats p = FUNCTION(all)(1.3276471e-3f);
    p = FUNCTION(fma)(p, r, FUNCTION(all)(9.6755409e-3f));
    p = FUNCTION(fma)(p, r, FUNCTION(all)(5.5507131e-2f));
    p = FUNCTION(fma)(p, r, FUNCTION(all)(2.4022120e-1f));
    p = FUNCTION(fma)(p, r, FUNCTION(all)(6.9314694e-1f));
    p = FUNCTION(fma)(p, r, FUNCTION(all)(1.0000001f));
    return (Floats)((Ints)p + ((Ints)n << 23));
}

/* max(x, 0) - |x| (1 - erf(|x| / sqrt 2)) / 2, with erf by Abramowitz and Stegun's 7.1.28: off by at most 3e-7. */
static INLINE Floats FUNCTION(gelu)(Floats x) {
    Floats size = __builtin_elementwise_abs(x);
    Floats p = FUNCTION(all)(5.3829750e-6f);
    p = FUNCTION(fma)(p, size, FUNCTION(all)(4.8890634e-5f));
    p = FUNCTION(fma)(p, size, FUNCTION(all)(3.8003575e-5f));
    p = FUNCTION(fma)(p, size, FUNCTION(all)(3.2776263e-3f));
    p = FUNCTION(fma)(p, size, FUNCTION(all)(2.1141006e-2f));
    p = FUNCTION(fma)(p, size, FUNCTION(all)(4.9867347e-2f));
    p = FUNCTION(fma)(p, size, FUNCTION(all)(1.0f));
    p = p * p;
    p = p * p;
    p = p * p;
    p = p * p;
    return FUNCTION(larger)(x, FUNCTION(all)(0.0f)) - size * 0.5f / p;
}

/* A row's codes and its rest, from the extremes that the lanes of y factor have seen. A difference from the lowest is
   at most the range, so that no code needs to be cut; of a sum with ROUND the lowest byte is the rounded number's. */
static INLINE void FUNCTION(encode)(const Coding *of, const int64_t row, const float *y, Floats lowest,
                                    Floats highest) {
    const float low = -FUNCTION(highest)(-lowest), range = FUNCTION(highest)(highest) - low;
    const Floats start = FUNCTION(all)(low), inverse = FUNCTION(all)(range > SMALLEST_RANGE ? LARGEST_CODE / range : 0);
    float *rest = of->rest + row * (OUTLIERS + of->outlier_count);
    uint8_t *codes = of->codes + row * of->size;
    rest[SCALE] = range / LARGEST_CODE;
    rest[LOWEST] = low;
    for (int64_t j = 0; j < of->outlier_count; j++) rest[OUTLIERS + j] = y[of->outlier_channels[j]];
    for (int64_t i = 0; i < of->size; i += LANES) {
        Floats z = FUNCTION(load)(y + i);
        if (of->factor) z *= FUNCTION(load)(of->factor + i);
        Bytes bytes = __builtin_convertvector((Ints)FUNCTION(fma)(z - start, inverse, FUNCTION(all)(ROUND)), Bytes);
        __builtin_memcpy(codes + i, &bytes, sizeof bytes);
    }
}

/* The same of a row whose extremes are not known. */
static INLINE void FUNCTION(encode_row)(const Coding *of, const int64_t row, const float *y) {
    Floats lowest = FUNCTION(all)(__builtin_inff()), highest = -lowest;
    for (int64_t i = 0; i < of->size; i += LANES) {
        Floats z = FUNCTION(load)(y + i);
        if (of->factor) z *= FUNCTION(load)(of->factor + i);
        lowest = FUNCTION(smaller)(z, lowest);
        highest = FUNCTION(larger)(z, highest);
    }
    FUNCTION(encode)(of, row, y, lowest, highest);
}

static void FUNCTION(encode_rows)(const Coding *of, const float *x, const int64_t rows) {
    for (int64_t row = 0; row < rows; row++) FUNCTION(encode_row)(of, row, x + row * of->size);
}

/* (y - mean) / sqrt(variance + epsilon) gain + shift into y, a row whose lanes' sums are `total`; codes unless NULL. */
static INLINE void FUNCTION(normalize)(const Normalization *of, float *y, Floats total, const Coding *coding,
                                       const int64_t row) {
    const int64_t size = of->size;
    Floats mean = FUNCTION(all)(FUNCTION(sum)(total) / (float)size), squares = {};
    for (int64_t i = 0; i < size; i += LANES) {
        Floats centred = FUNCTION(load)(y + i) - mean;
        squares = FUNCTION(fma)(centred, centred, squares);
    }
    Floats scale = FUNCTION(all)(1.0f / __builtin_sqrtf(FUNCTION(sum)(squares) / (float)size + of->epsilon));
    Floats lowest = FUNCTION(all)(__builtin_inff()), highest = -lowest;
    for (int64_t i = 0; i < size; i += LANES) {
        Floats normal = (FUNCTION(load)(y + i) - mean) * scale;
        Floats shifted = FUNCTION(fma)(normal, FUNCTION(load)(of->gain + i), FUNCTION(load)(of->shift + i));
        FUNCTION(store)(y + i, shifted);
        if (coding) {
            const Floats z = shifted * FUNCTION(load)(coding->factor + i);
            lowest = FUNCTION(smaller)(z, lowest);
            highest = FUNCTION(larger)(z, highest);
        }
    }
    if (coding) FUNCTION(encode)(coding, row, y, lowest, highest);
}

static void FUNCTION(embed)(const Embed *of) {
    const int64_t size = of->normalization.size;
    for (int64_t row = 0; row < of->texts * of->tokens; row++) {
        const int64_t id = of->ids[row];
        const int8_t *word = of->words + id * size;
        const float *place = of->places + row % of->tokens * size;
        Floats scale = FUNCTION(all)(of->word_scales[id]), total = {};
        float *y = of->y + row * size;
        for (int64_t i = 0; i < size; i += LANES) {
            SignedBytes codes;
            __builtin_memcpy(&codes, word + i, sizeof codes);
            Floats x = __builtin_convertvector(codes, Floats) * FUNCTION(load)(of->channel_scales + i);
            x = FUNCTION(fma)(x, scale, FUNCTION(load)(place + i));
            total += x;
            FUNCTION(store)(y + i, x);
        }
        FUNCTION(normalize)(&of->normalization, y, total, &of->coding, row);
    }
}

/* So many rows, whose codes follow one another, by WIDE x LANES columns from `column` on, into y, whose rows are `step`
   apart. All sums stay in registers until they are whole. */
static INLINE void FUNCTION(block)(const int rows, const Product *of, const int64_t row, const int64_t column,
                                   float *y, const int64_t step) {
    const int64_t size = of->size, first = column / BLOCK * BLOCK;
    const uint8_t *codes = of->codes + row * size;
    const int8_t *weight = of->weight + first * size + (column - first) * QUAD;
    Ints sums[TALL][WIDE];
    UNROLL
    for (int c = 0; c < WIDE; c++) {
        Ints start;
        __builtin_memcpy(&start, of->sums + column + c * LANES, sizeof start);
        start *= CODE_SHIFT;
        UNROLL
        for (int r = 0; r < rows; r++) sums[r][c] = start;
    }
    _Pragma("clang loop unroll(disable)") /* or codes are read ahead into registers that sums need */
    for (int64_t k = 0; k < size; k += DEPTH) {
        Codes read[TALL];
        UNROLL
        for (int r = 0; r < rows; r++) read[r] = read_codes(codes + r * size + k);
        UNROLL
        for (int q = 0; q < DEPTH / QUAD; q++, weight += BLOCK * QUAD) {
            UNROLL /* few rows read as fast as memory gives, and would only be slowed */
            for (int c = 0; c < WIDE && rows > 4; c++) __builtin_prefetch(weight + c * LANES * QUAD + AHEAD);
            UNROLL
            for (int r = 0; r < rows; r++) {
                UNROLL
                for (int c = 0; c < WIDE; c++)
                    sums[r][c] = FUNCTION(dot)(sums[r][c], read[r], q, weight + c * LANES * QUAD);
            }
        }
    }
    const float *rest = of->rest + row * of->rest_size, *rest_weight = of->rest_weight + column;
    Floats found[TALL][WIDE];
    UNROLL
    for (int c = 0; c < WIDE; c++) {
        const Floats scale = FUNCTION(load)(of->scale + column + c * LANES);
        const Floats bias = FUNCTION(load)(of->bias + column + c * LANES);
        UNROLL
        for (int r = 0; r < rows; r++) {
            const Floats row_scale = FUNCTION(all)(rest[r * of->rest_size + SCALE]);
            found[r][c] = FUNCTION(fma)(__builtin_convertvector(sums[r][c], Floats) * row_scale, scale, bias);
        }
    }
    for (int64_t j = LOWEST; j < of->rest_size; j++, rest_weight += of->columns) {
        UNROLL
        for (int c = 0; c < WIDE; c++) {
            const Floats weight = FUNCTION(load)(rest_weight + c * LANES);
            UNROLL
            for (int r = 0; r < rows; r++)
                found[r][c] = FUNCTION(fma)(FUNCTION(all)(rest[r * of->rest_size + j]), weight, found[r][c]);
        }
    }
    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int c = 0; c < WIDE; c++) FUNCTION(store)(y + r * step + c * LANES, found[r][c]);
    }
}

/* BLOCK columns from `column` on of the rows from `first` on, into y, whose rows are `step` apart. */
static void FUNCTION(columns)(const Product *of, const int64_t first, const int64_t rows, const int64_t column,
                              float *y, const int64_t step) {
    const int64_t blocks = (rows + TALL - 1) / TALL;
    for (int64_t c = 0; c < BLOCK; c += WIDE * LANES)
        for (int64_t block = 0; block < blocks; block++) {
            const int64_t from = rows * block / blocks, to = rows * (block + 1) / blocks;
            switch (to - from) {
#define CASE(n)                                                                                                       \
    case n: FUNCTION(block)(n, of, first + from, column + c, y + from * step + c, step); break;
                CASE(1)
                CASE(2)
                CASE(3)
                CASE(4)
#if TALL > 4
                CASE(5)
                CASE(6)
                CASE(7)
                CASE(8)
                CASE(9)
                CASE(10)
                CASE(11)
                CASE(12)
#endif
#undef CASE
            }
        }
}

/* The panel of rows from `first` on. */
static INLINE void FUNCTION(panel)(const Product *of, const int64_t first, float *y) {
    for (int64_t column = 0; column < of->columns; column += BLOCK)
        FUNCTION(columns)(of, first, panel_rows(of, first), column, y + first * of->columns + column, of->columns);
}

static void FUNCTION(linear)(const Product *of, float *y) {
    for (int64_t first = 0; first < of->rows; first += PANEL) FUNCTION(panel)(of, first, y);
}

static void FUNCTION(linear_add_normalize)(const Product *product, const AddNormalize *of) {
    const int64_t size = of->normalization.size;
    for (int64_t row = 0; row < product->rows; row++) {
        if (row % PANEL == 0) FUNCTION(panel)(product, row, of->y);
        const float *stream = of->stream + row * size;
        float *y = of->y + row * size;
        Floats total = {};
        for (int64_t i = 0; i < size; i += LANES) {
            Floats x = FUNCTION(load)(stream + i) + FUNCTION(load)(y + i);
            total += x;
            FUNCTION(store)(y + i, x);
        }
        FUNCTION(normalize)(&of->normalization, y, total, of->coding, row);
    }
}

/* A row's range is known when all its columns are, so a panel of rows waits in `room`, which stays in the L2 cache. */
static void FUNCTION(linear_gelu_quantize)(const Product *product, const Coding *of, float *room) {
    const int64_t step = of->size + LANES; /* rows a multiple of 2 kB apart would share a few sets of the cache */
    float part[PANEL * BLOCK];
    for (int64_t first = 0; first < product->rows; first += PANEL) {
        const int64_t rows = panel_rows(product, first);
        Floats lowest[PANEL], highest[PANEL];
        for (int64_t row = 0; row < rows; row++) {
            lowest[row] = FUNCTION(all)(__builtin_inff());
            highest[row] = -lowest[row];
        }
        for (int64_t column = 0; column < of->size; column += BLOCK) {
            FUNCTION(columns)(product, first, rows, column, part, BLOCK);
            for (int64_t row = 0; row < rows; row++)
                for (int64_t i = 0; i < BLOCK; i += LANES) {
                    const Floats y = FUNCTION(gelu)(FUNCTION(load)(part + row * BLOCK + i));
                    const Floats z = y * FUNCTION(load)(of->factor + column + i);
                    FUNCTION(store)(room + row * step + column + i, y);
                    lowest[row] = FUNCTION(smaller)(z, lowest[row]);
                    highest[row] = FUNCTION(larger)(z, highest[row]);
                }
        }
        for (int64_t row = 0; row < rows; row++)
            FUNCTION(encode)(of, first + row, room + row * step, lowest[row], highest[row]);
    }
}

/* Scores of so many queries with all keys, which lie channel by channel, `padded` apart. */
static INLINE void FUNCTION(score)(const int queries, const int64_t size, const int64_t padded, const int64_t stride,
                                   const float *query, const float *keys, float *scores) {
    for (int64_t key = 0; key < padded; key += COLUMNS * LANES) {
        Floats s[ROWS][COLUMNS] = {};
        for (int64_t d = 0; d < size; d++) {
            UNROLL
            for (int q = 0; q < queries; q++) {
                const Floats broadcast = FUNCTION(all)(query[q * stride + d]);
                UNROLL
                for (int k = 0; k < COLUMNS; k++)
                    s[q][k] = FUNCTION(fma)(broadcast, FUNCTION(load)(keys + d * padded + key + k * LANES), s[q][k]);
            }
        }
        UNROLL
        for (int q = 0; q < queries; q++)
            for (int k = 0; k < COLUMNS; k++) FUNCTION(store)(scores + q * padded + key + k * LANES, s[q][k]);
    }
}

/* Scores to 2^(alpha (score - highest)); returns their sum. */
static INLINE float FUNCTION(weigh)(float *scores, const int64_t tokens, const int64_t padded, const float alpha) {
    for (int64_t key = tokens; key < padded; key++) scores[key] = -__builtin_inff();
    Floats highest = FUNCTION(load)(scores), total = {};
    for (int64_t key = LANES; key < padded; key += LANES)
        highest = FUNCTION(larger)(highest, FUNCTION(load)(scores + key));
    const Floats factor = FUNCTION(all)(alpha), top = FUNCTION(all)(-FUNCTION(highest)(highest) * alpha);
    for (int64_t key = 0; key < padded; key += LANES) {
        const Floats weights = FUNCTION(exp2)(FUNCTION(fma)(FUNCTION(load)(scores + key), factor, top));
        total += weights;
        FUNCTION(store)(scores + key, weights);
    }
    return FUNCTION(sum)(total);
}

/* So many queries' averages of the values, `width` x LANES channels of them. */
static INLINE void FUNCTION(average)(const int queries, const int width, const Attention *of, const int64_t size,
                                     const float *weights, const float *totals, const float *values, float *to) {
    Floats y[AVERAGES][2] = {};
    for (int64_t key = 0; key < of->tokens; key++) {
        UNROLL
        for (int q = 0; q < queries; q++) {
            const Floats weight = FUNCTION(all)(weights[q * of->padded + key]);
            UNROLL
            for (int i = 0; i < width; i++)
                y[q][i] = FUNCTION(fma)(weight, FUNCTION(load)(values + key * size + i * LANES), y[q][i]);
        }
    }
    UNROLL
    for (int q = 0; q < queries; q++)
        for (int i = 0; i < width; i++)
            FUNCTION(store)(to + q * of->heads * size + i * LANES, y[q][i] * (1 / totals[q]));
}

/* So many queries of a head. */
static INLINE void FUNCTION(queries)(const int queries, const Attention *of, const int64_t size, const float *query,
                                     const float *keys, const float *values, float *scores, float *y) {
    float totals[ROWS];
    FUNCTION(score)(queries, size, of->padded, 3 * of->heads * size, query, keys, scores);
    for (int q = 0; q < queries; q++)
        totals[q] = FUNCTION(weigh)(scores + q * of->padded, of->tokens, of->padded, of->alpha);
    const int step = queries < AVERAGES ? queries : AVERAGES;
    for (int q = 0; q < queries; q += step) {
        const float *weights = scores + q * of->padded;
        float *to = y + q * of->heads * size;
        int64_t d = 0;
        for (; d + LANES < size; d += 2 * LANES)
            FUNCTION(average)(step, 2, of, size, weights, totals + q, values + d, to + d);
        if (d < size) FUNCTION(average)(step, 1, of, size, weights, totals + q, values + d, to + d);
    }
}

/* LANES x LANES numbers, of which only so many rows are there and others count as 0, into columns. Each of four rounds
   interleaves the first half of the rows with the second. */
static INLINE void FUNCTION(transpose)(const float *from, const int64_t from_step, const int64_t rows, float *to,
                                       const int64_t to_step) {
    Floats m[LANES], next[LANES];
    UNROLL
    for (int i = 0; i < LANES; i++) m[i] = i < rows ? FUNCTION(load)(from + i * from_step) : FUNCTION(all)(0);
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
    for (int i = 0; i < LANES; i++) FUNCTION(store)(to + i * to_step, m[i]);
}

/* A head of one text into y. Keys, values and scores have room in `of`. */
static INLINE void FUNCTION(head)(const Attention *of, const int64_t size, const float *qkv, float *y) {
    const int64_t tokens = of->tokens, channels = of->heads * size, stride = 3 * channels, padded = of->padded;
    float *keys = of->room, *values = keys + size * padded, *scores = values + size * padded;
    for (int64_t token = 0; token < tokens; token++)
        for (int64_t d = 0; d < size; d += LANES)
            FUNCTION(store)(values + token * size + d, FUNCTION(load)(qkv + token * stride + 2 * channels + d));
    for (int64_t token = 0; token < padded; token += LANES)
        for (int64_t d = 0; d < size; d += LANES)
            FUNCTION(transpose)(qkv + token * stride + channels + d, stride, tokens - token, keys + d * padded + token,
                                padded);
    for (int64_t q = 0; q < tokens;) {
        if (tokens < ROWS) {
            FUNCTION(queries)(1, of, size, qkv + q * stride, keys, values, scores, y + q * channels);
            q++;
        } else { /* the last queries of a text may be computed twice */
            q = q + ROWS > tokens ? tokens - ROWS : q;
            FUNCTION(queries)(ROWS, of, size, qkv + q * stride, keys, values, scores, y + q * channels);
            q += ROWS;
        }
    }
}

static void FUNCTION(attend)(const Attention *of) {
    const int64_t size = of->size, channels = of->heads * size, tokens = of->tokens;
    float *y = of->room + (2 * size + TALLEST) * of->padded;
    for (int64_t text = 0; text < of->texts; text++) {
        for (int64_t head = 0; head < of->heads; head++) {
            const float *qkv = of->qkv + text * tokens * 3 * channels + head * size;
            if (size == 32)
                FUNCTION(head)(of, 32, qkv, y + head * size);
            else
                FUNCTION(head)(of, size, qkv, y + head * size);
        }
        for (int64_t token = 0; token < tokens; token++)
            FUNCTION(encode_row)(&of->coding, text * tokens + token, y + token * channels);
    }
}

static const Arithmetic FUNCTION(arithmetic) = {
    FUNCTION(embed),        FUNCTION(linear), FUNCTION(linear_add_normalize), FUNCTION(linear_gelu_quantize),
    FUNCTION(encode_rows),  FUNCTION(attend),
};
