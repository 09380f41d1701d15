/* All operators but attention, of an instruction set that has said how bytes are multiplied:

     CODE_SHIFT       what is taken from each code before it is read
     DEPTH            codes of a row that it reads at once
     STEP             inputs that one `dot` multiplies, for LANES columns
     MR, NR           rows and columns whose sums fill the registers */
#pragma once
#include "vectors.h"

/* A row's codes and its rest, from the extremes of y factor in each lane. A difference from the lowest is at most the
   range, so that no code needs to be cut; the lowest byte of a sum with ROUND is that of the rounded number. */
static INLINE void encode(const Coding *coding, const int64_t row, const float *y, Floats lowest, Floats highest) {
    const float low = -largest_lane(-lowest), range = largest_lane(highest) - low;
    const Floats start = all(low), inverse = all(range > SMALLEST_RANGE ? LARGEST_CODE / range : 0);
    float *rest = coding->rest + row * (OUTLIERS + coding->outlier_count);
    uint8_t *codes = coding->codes + row * coding->size;
    rest[SCALE] = number(range) / LARGEST_CODE;
    rest[LOWEST] = number(low) + 0.0f; /* of two zeros the positive one, as CPUs differ in their order */
    for (int64_t j = 0; j < coding->outlier_count; j++) rest[OUTLIERS + j] = number(y[coding->outlier_channels[j]]);
    for (int64_t i = 0; i < coding->size; i += LANES) {
        Floats z = load(y + i);
        if (coding->factor) z *= load(coding->factor + i);
        Bytes bytes = __builtin_convertvector((Ints)fma(z - start, inverse, all(ROUND)), Bytes);
        __builtin_memcpy(codes + i, &bytes, sizeof bytes);
    }
}

/* The same for a row whose extremes are not known. Minima ignore a NaN, so it is looked for. */
static INLINE void encode_row(const Coding *coding, const int64_t row, const float *y) {
    Floats lowest = all(__builtin_inff()), highest = -lowest, finite = {};
    for (int64_t i = 0; i < coding->size; i += LANES) {
        Floats z = load(y + i);
        if (coding->factor) z *= load(coding->factor + i);
        lowest = smaller(z, lowest);
        highest = larger(z, highest);
        finite = fma(z, all(0), finite);
    }
    encode(coding, row, y, lowest + sum_of_lanes(finite), highest);
}

static void encode_rows(const Coding *coding, const float *x, const int64_t rows) {
    for (int64_t row = 0; row < rows; row++) encode_row(coding, row, x + row * coding->size);
}

/* (y - mean) / sqrt(variance + epsilon) gamma + beta into y, a row whose lanes' sums are `total`; codes unless NULL. */
static INLINE void normalize(const Normalization *norm, float *y, Floats total, const Coding *coding,
                             const int64_t row) {
    const int64_t size = norm->size;
    Floats mean = all(sum_of_lanes(total) / (float)size), squares = {};
    for (int64_t i = 0; i < size; i += LANES) {
        Floats centred = load(y + i) - mean;
        squares = fma(centred, centred, squares);
    }
    const float variance = sum_of_lanes(squares) / (float)size;
    /* NaN if the variance is infinite: divided by it, all would be 0 */
    Floats scale = all(1.0f / __builtin_sqrtf(variance + norm->epsilon) + variance * 0);
    Floats lowest = all(__builtin_inff()), highest = -lowest;
    for (int64_t i = 0; i < size; i += LANES) {
        Floats normal = (load(y + i) - mean) * scale;
        Floats shifted = fma(normal, load(norm->gamma + i), load(norm->beta + i));
        store(y + i, shifted);
        if (coding) {
            const Floats z = shifted * load(coding->factor + i);
            lowest = smaller(z, lowest);
            highest = larger(z, highest);
        }
    }
    if (coding) encode(coding, row, y, lowest, highest);
}

static void embed(const Embed *embedding) {
    const int64_t size = embedding->normalization.size, first = embedding->padding != NO_TOKEN;
    int64_t next = first;
    for (int64_t row = 0; row < embedding->texts * embedding->tokens; row++) {
        const int64_t id = embedding->ids[row];
        const int8_t *word = embedding->words + id * size;
        if (row % embedding->tokens == 0) next = first;
        const float *place = embedding->positions + (id == embedding->padding ? 0 : next++) * size;
        Floats scale = all(embedding->word_scales[id]), total = {};
        float *y = embedding->y + row * size;
        for (int64_t i = 0; i < size; i += LANES) {
            SignedBytes codes;
            __builtin_memcpy(&codes, word + i, sizeof codes);
            Floats x = __builtin_convertvector(codes, Floats) * load(embedding->channel_scales + i);
            x = fma(x, scale, load(place + i));
            total += x;
            store(y + i, x);
        }
        normalize(&embedding->normalization, y, total, &embedding->coding, row);
    }
}

/* `rows` rows, whose codes follow one another, by NR columns from `column` on, into y, whose rows are `step` apart. All
   sums stay in registers until they are whole. */
static INLINE void multiply_block(const int rows, const Product *product, const int64_t row, const int64_t column,
                                  float *y, const int64_t step) {
    const int64_t size = product->size, first = column / BLOCK * BLOCK;
    const uint8_t *codes = product->codes + row * size;
    const int8_t *weight = product->weight + first * size + (column - first) * QUAD;
    Ints start[NR / LANES], sums[MR][NR / LANES];
    UNROLL
    for (int c = 0; c < NR / LANES; c++) {
        __builtin_memcpy(&start[c], product->sums + column + c * LANES, sizeof start[c]);
        start[c] *= CODE_SHIFT;
    }
    UNROLL
    for (int r = 0; r < rows; r++) {
        const Ints *from = start;
        REREAD(from);
        UNROLL
        for (int c = 0; c < NR / LANES; c++) sums[r][c] = from[c];
    }
    DO_NOT_UNROLL /* or codes are read ahead into registers that sums need */
    for (int64_t k = 0; k < size; k += DEPTH) {
        Codes read[MR];
        UNROLL
        for (int r = 0; r < rows; r++) read[r] = read_codes(codes + r * size + k);
        UNROLL
        for (int q = 0; q < DEPTH / STEP; q++, weight += BLOCK * STEP) {
            UNROLL /* few rows read as fast as memory gives, and would only be slowed */
            for (int c = 0; c < NR / LANES && rows > 4; c++) __builtin_prefetch(weight + c * LANES * QUAD + AHEAD);
            UNROLL
            for (int r = 0; r < rows; r++) {
                UNROLL
                for (int c = 0; c < NR / LANES; c++)
                    sums[r][c] = dot(sums[r][c], read[r], q, weight + c * LANES * QUAD);
            }
        }
    }
    const float *rest = product->rest + row * product->rest_size, *rest_weight = product->rest_weight + column;
    Floats found[MR][NR / LANES];
    UNROLL
    for (int c = 0; c < NR / LANES; c++) {
        const Floats scale = load(product->scale + column + c * LANES);
        UNROLL
        for (int r = 0; r < rows; r++) {
            const float *bias = product->bias + column + c * LANES;
            REREAD(bias);
            const Floats row_scale = all(rest[r * product->rest_size + SCALE]);
            found[r][c] = fma(__builtin_convertvector(sums[r][c], Floats) * row_scale, scale, load(bias));
        }
    }
    for (int64_t j = LOWEST; j < product->rest_size; j++, rest_weight += product->columns) {
        UNROLL
        for (int c = 0; c < NR / LANES; c++) {
            const Floats weight = load(rest_weight + c * LANES);
            UNROLL
            for (int r = 0; r < rows; r++)
                found[r][c] = fma(all(rest[r * product->rest_size + j]), weight, found[r][c]);
        }
    }
    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int c = 0; c < NR / LANES; c++) store(y + r * step + c * LANES, found[r][c]);
    }
}

/* BLOCK columns from `column` on of a panel's rows, into y, whose rows are `step` apart. */
static void multiply_columns(const Product *panel, const int64_t column, float *y, const int64_t step) {
    const int64_t blocks = (panel->rows + MR - 1) / MR;
    for (int64_t c = 0; c < BLOCK; c += NR)
        for (int64_t block = 0; block < blocks; block++) {
            const int64_t from = panel->rows * block / blocks, to = panel->rows * (block + 1) / blocks;
            switch (to - from) {
#define CASE(n)                                                                                                        \
    case n: multiply_block(n, panel, from, column + c, y + from * step + c, step); break;
                CASE(1)
                CASE(2)
                CASE(3)
                CASE(4)
#if MR > 4
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
            default: __builtin_unreachable();
            }
        }
}

/* Up to MC rows from `first` on, as a product of its own. */
static INLINE Product panel_of(const Product *product, const int64_t first) {
    Product panel = *product;
    panel.rows = product->rows - first < MC ? product->rows - first : MC;
    panel.codes += first * product->size;
    panel.rest += first * product->rest_size;
    if (CODE_SHIFT) { /* once, and not each time that a code is read */
        for (int64_t i = 0; i < panel.rows * product->size; i += LANES) {
            Bytes codes;
            __builtin_memcpy(&codes, panel.codes + i, sizeof codes);
            codes ^= (Bytes)CODE_SHIFT;
            __builtin_memcpy(product->workspace + i, &codes, sizeof codes);
        }
        panel.codes = product->workspace;
    }
    return panel;
}

static INLINE void multiply_panel(const Product *product, const int64_t first, float *y) {
    const Product panel = panel_of(product, first);
    for (int64_t column = 0; column < product->columns; column += BLOCK)
        multiply_columns(&panel, column, y + first * product->columns + column, product->columns);
}

static void linear(const Product *product, float *y) {
    for (int64_t first = 0; first < product->rows; first += MC) multiply_panel(product, first, y);
}

static void linear_add_normalize(const Product *product, const AddNormalize *residual_norm) {
    const int64_t size = residual_norm->normalization.size;
    for (int64_t row = 0; row < product->rows; row++) {
        if (row % MC == 0) multiply_panel(product, row, residual_norm->y);
        const float *residual = residual_norm->residual + row * size;
        float *y = residual_norm->y + row * size;
        Floats total = {};
        for (int64_t i = 0; i < size; i += LANES) {
            Floats x = load(residual + i) + load(y + i);
            total += x;
            store(y + i, x);
        }
        normalize(&residual_norm->normalization, y, total, residual_norm->coding, row);
    }
}

/* A row's range is known when all its columns are, so a panel of rows waits in `workspace`, which stays in L2. */
static void linear_gelu_quantize(const Product *product, const Coding *coding, float *workspace) {
    const int64_t step = coding->size + LANES; /* rows a multiple of 2 kB apart would share a few sets of the cache */
    float part[MC * BLOCK];
    for (int64_t first = 0; first < product->rows; first += MC) {
        const Product panel = panel_of(product, first);
        const int64_t rows = panel.rows;
        Floats lowest[MC], highest[MC];
        for (int64_t row = 0; row < rows; row++) {
            lowest[row] = all(__builtin_inff());
            highest[row] = -lowest[row];
        }
        for (int64_t column = 0; column < coding->size; column += BLOCK) {
            multiply_columns(&panel, column, part, BLOCK);
            for (int64_t row = 0; row < rows; row++)
                for (int64_t i = 0; i < BLOCK; i += LANES) {
                    const Floats y = gelu(load(part + row * BLOCK + i));
                    const Floats z = y * load(coding->factor + column + i);
                    store(workspace + row * step + column + i, y);
                    lowest[row] = smaller(z, lowest[row]);
                    highest[row] = larger(z, highest[row]);
                }
        }
        for (int64_t row = 0; row < rows; row++)
            encode(coding, first + row, workspace + row * step, lowest[row], highest[row]);
    }
}
