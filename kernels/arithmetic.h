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

/* round(x factor) + zero, half to even, within 0..255: of a sum with ROUND the lowest byte is the rounded number's. */
static INLINE void FUNCTION(quantize)(uint8_t *to, Floats x, Floats factor, float zero) {
    Floats code = FUNCTION(fma)(x, factor, FUNCTION(all)(ROUND));
    code = FUNCTION(larger)(code, FUNCTION(all)(ROUND - zero));
    code = code < FUNCTION(all)(ROUND + 255 - zero) ? code : FUNCTION(all)(ROUND + 255 - zero);
    Bytes bytes = __builtin_convertvector((Ints)code + (int32_t)zero, Bytes);
    __builtin_memcpy(to, &bytes, sizeof bytes);
}

/* (y - mean) / sqrt(variance + epsilon) gain + shift into y, a row whose lanes' sums are `total`; codes unless NULL. */
static INLINE void FUNCTION(normalize)(const Normalization *of, float *y, Floats total, uint8_t *codes) {
    const int64_t size = of->size;
    Floats mean = FUNCTION(all)(FUNCTION(sum)(total) / (float)size), squares = {};
    for (int64_t i = 0; i < size; i += LANES) {
        Floats centred = FUNCTION(load)(y + i) - mean;
        squares = FUNCTION(fma)(centred, centred, squares);
    }
    Floats scale = FUNCTION(all)(1.0f / __builtin_sqrtf(FUNCTION(sum)(squares) / (float)size + of->epsilon));
    for (int64_t i = 0; i < size; i += LANES) {
        Floats normal = (FUNCTION(load)(y + i) - mean) * scale;
        Floats shifted = FUNCTION(fma)(normal, FUNCTION(load)(of->gain + i), FUNCTION(load)(of->shift + i));
        FUNCTION(store)(y + i, shifted);
        if (codes) FUNCTION(quantize)(codes + i, shifted, FUNCTION(load)(of->factor + i), of->zero);
    }
}

static void FUNCTION(embed)(const Embed *of) {
    const int64_t size = of->normalization.size;
    for (int64_t row = 0; row < of->texts * of->tokens; row++) {
        const int64_t id = of->ids[row];
        const int8_t *word = of->words + id * size;
        const float *place = of->places + row % of->tokens * size;
        Floats scale = FUNCTION(all)(of->scales[id]), total = {};
        float *y = of->y + row * size;
        for (int64_t i = 0; i < size; i += LANES) {
            SignedBytes codes;
            __builtin_memcpy(&codes, word + i, sizeof codes);
            Floats x = FUNCTION(fma)(__builtin_convertvector(codes, Floats), scale, FUNCTION(load)(place + i));
            total += x;
            FUNCTION(store)(y + i, x);
        }
        FUNCTION(normalize)(&of->normalization, y, total, of->codes + row * size);
    }
}

/* So many rows, whose codes follow one another, by WIDE x LANES columns from `column` on, into y, whose rows are `step`
   apart. All sums stay in registers until they are whole. */
static INLINE void FUNCTION(block)(const int rows, const Product *of, const uint8_t *codes, const int64_t column,
                                   float *y, const int64_t step) {
    const int64_t size = of->size, first = column / BLOCK * BLOCK;
    const int8_t *weight = of->weight + first * size + (column - first) * QUAD;
    Ints sums[TALL][WIDE];
    UNROLL
    for (int c = 0; c < WIDE; c++) {
        Ints start;
        __builtin_memcpy(&start, of->sums + column + c * LANES, sizeof start);
        start *= CODE_SHIFT - of->zero;
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
    UNROLL
    for (int c = 0; c < WIDE; c++) {
        const Floats scale = FUNCTION(load)(of->scale + column + c * LANES);
        const Floats bias = FUNCTION(load)(of->bias + column + c * LANES);
        UNROLL
        for (int r = 0; r < rows; r++)
            FUNCTION(store)(y + r * step + c * LANES,
                            FUNCTION(fma)(__builtin_convertvector(sums[r][c], Floats), scale, bias));
    }
}

/* BLOCK columns from `column` on of the rows from `first` on, into y, whose rows are `step` apart. */
static void FUNCTION(columns)(const Product *of, const int64_t first, const int64_t rows, const int64_t column,
                              float *y, const int64_t step) {
    const int64_t blocks = (rows + TALL - 1) / TALL;
    for (int64_t c = 0; c < BLOCK; c += WIDE * LANES)
        for (int64_t block = 0; block < blocks; block++) {
            const int64_t from = rows * block / blocks, to = rows * (block + 1) / blocks;
            const uint8_t *codes = of->codes + (first + from) * of->size;
            switch (to - from) {
#define CASE(n)                                                                                                       \
    case n: FUNCTION(block)(n, of, codes, column + c, y + from * step + c, step); break;
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
        const float *stream = of->stream + row * size, *outliers = of->outliers + row * of->outlier_count;
        float *y = of->y + row * size;
        Floats total = {};
        for (int64_t i = 0; i < size; i += LANES) {
            Floats x = FUNCTION(load)(stream + i) + FUNCTION(load)(y + i);
            for (int64_t j = 0; j < of->outlier_count; j++)
                x = FUNCTION(fma)(FUNCTION(all)(outliers[j]), FUNCTION(load)(of->outlier_weight + j * size + i), x);
            total += x;
            FUNCTION(store)(y + i, x);
        }
        FUNCTION(normalize)(&of->normalization, y, total, of->codes ? of->codes + row * size : NULL);
    }
}

/* Some columns of some rows; those of x are `step` apart. */
static INLINE void FUNCTION(quantize_part)(const int with_gelu, const Quantize *of, const float *x, const int64_t step,
                                           const int64_t first, const int64_t rows, const int64_t column,
                                           const int64_t columns) {
    for (int64_t row = first; row < first + rows; row++, x += step) {
        for (int64_t i = 0; i < columns; i += LANES) {
            const Floats y = with_gelu ? FUNCTION(gelu)(FUNCTION(load)(x + i)) : FUNCTION(load)(x + i);
            FUNCTION(quantize)(of->codes + row * of->size + column + i, y, FUNCTION(load)(of->factor + column + i),
                               of->zero);
        }
        for (int64_t j = 0; j < of->outlier_count; j++) {
            const int64_t channel = of->outlier_channels[j] - column;
            if (channel < 0 || channel >= columns) continue;
            const Floats y = FUNCTION(all)(x[channel]);
            of->outliers[row * of->outlier_count + j] = (with_gelu ? FUNCTION(gelu)(y) : y)[0];
        }
    }
}

static void FUNCTION(quantize_all)(const Quantize *of, const float *x) {
    FUNCTION(quantize_part)(0, of, x, of->size, 0, of->rows, 0, of->size);
}

static void FUNCTION(linear_gelu_quantize)(const Product *product, const Quantize *of) {
    float part[PANEL * BLOCK];
    for (int64_t first = 0; first < of->rows; first += PANEL) {
        const int64_t rows = panel_rows(product, first);
        for (int64_t column = 0; column < of->size; column += BLOCK) {
            FUNCTION(columns)(product, first, rows, column, part, BLOCK);
            FUNCTION(quantize_part)(1, of, part, BLOCK, first, rows, column, BLOCK);
        }
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

/* The codes of so many queries' averages of the values, `width` x LANES channels of them. */
static INLINE void FUNCTION(average)(const int queries, const int width, const Attention *of, const int64_t size,
                                     const float *weights, const float *totals, const float *values,
                                     const float *factor, uint8_t *codes) {
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
            FUNCTION(quantize)(codes + q * of->heads * size + i * LANES, y[q][i] * (1 / totals[q]),
                               FUNCTION(load)(factor + i * LANES), of->zero);
}

/* So many queries of a head. */
static INLINE void FUNCTION(queries)(const int queries, const Attention *of, const int64_t size, const float *query,
                                     const float *keys, const float *values, float *scores, const float *factor,
                                     uint8_t *codes) {
    float totals[ROWS];
    FUNCTION(score)(queries, size, of->padded, 3 * of->heads * size, query, keys, scores);
    for (int q = 0; q < queries; q++)
        totals[q] = FUNCTION(weigh)(scores + q * of->padded, of->tokens, of->padded, of->alpha);
    const int step = queries < AVERAGES ? queries : AVERAGES;
    for (int q = 0; q < queries; q += step) {
        const float *weights = scores + q * of->padded;
        uint8_t *to = codes + q * of->heads * size;
        int64_t d = 0;
        for (; d + LANES < size; d += 2 * LANES)
            FUNCTION(average)(step, 2, of, size, weights, totals + q, values + d, factor + d, to + d);
        if (d < size) FUNCTION(average)(step, 1, of, size, weights, totals + q, values + d, factor + d, to + d);
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

/* A head of one text. Keys, values and scores have room in `of`. */
static INLINE void FUNCTION(head)(const Attention *of, const int64_t size, const float *qkv, const float *factor,
                                  uint8_t *codes) {
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
            FUNCTION(queries)(1, of, size, qkv + q * stride, keys, values, scores, factor, codes + q * channels);
            q++;
        } else { /* the last queries of a text may be computed twice */
            q = q + ROWS > tokens ? tokens - ROWS : q;
            FUNCTION(queries)(ROWS, of, size, qkv + q * stride, keys, values, scores, factor, codes + q * channels);
            q += ROWS;
        }
    }
}

static void FUNCTION(attend)(const Attention *of) {
    const int64_t size = of->size, channels = of->heads * size;
    for (int64_t text = 0; text < of->texts; text++)
        for (int64_t head = 0; head < of->heads; head++) {
            const float *qkv = of->qkv + text * of->tokens * 3 * channels + head * size;
            uint8_t *codes = of->codes + text * of->tokens * channels + head * size;
            if (size == 32)
                FUNCTION(head)(of, 32, qkv, of->factor + head * size, codes);
            else
                FUNCTION(head)(of, size, qkv, of->factor + head * size, codes);
        }
}

static const Arithmetic FUNCTION(arithmetic) = {
    FUNCTION(embed),        FUNCTION(linear), FUNCTION(linear_add_normalize), FUNCTION(linear_gelu_quantize),
    FUNCTION(quantize_all), FUNCTION(attend),
};
