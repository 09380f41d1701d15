/* All operators but attention, of an instruction set that has said how bytes are multiplied:

     CODE_SHIFT       what is taken from each code before it is read
     DEPTH            codes of a row that it reads at once
     STEP             inputs that one `dot` multiplies, for LANES columns
     TALL, WIDE       rows, and LANES of columns, whose sums fill the registers */
#pragma once
#include "vectors.h"

/* A row's codes and its rest, from the extremes that the lanes of y factor have seen. A difference from the lowest is
   at most the range, so that no code needs to be cut; of a sum with ROUND the lowest byte is the rounded number's. */
static INLINE void encode(const Coding *of, const int64_t row, const float *y, Floats lowest, Floats highest) {
    const float low = -largest_lane(-lowest), range = largest_lane(highest) - low;
    const Floats start = all(low), inverse = all(range > SMALLEST_RANGE ? LARGEST_CODE / range : 0);
    float *rest = of->rest + row * (OUTLIERS + of->outlier_count);
    uint8_t *codes = of->codes + row * of->size;
    rest[SCALE] = number(range) / LARGEST_CODE;
    rest[LOWEST] = number(low) + 0.0f; /* of two zeros the positive one, as CPUs differ in their order */
    for (int64_t j = 0; j < of->outlier_count; j++) rest[OUTLIERS + j] = number(y[of->outlier_channels[j]]);
    for (int64_t i = 0; i < of->size; i += LANES) {
        Floats z = load(y + i);
        if (of->factor) z *= load(of->factor + i);
        Bytes bytes = __builtin_convertvector((Ints)fma(z - start, inverse, all(ROUND)), Bytes);
        __builtin_memcpy(codes + i, &bytes, sizeof bytes);
    }
}

/* The same of a row whose extremes are not known. No minimum shows a value that is none, so it is looked for. */
static INLINE void encode_row(const Coding *of, const int64_t row, const float *y) {
    Floats lowest = all(__builtin_inff()), highest = -lowest, finite = {};
    for (int64_t i = 0; i < of->size; i += LANES) {
        Floats z = load(y + i);
        if (of->factor) z *= load(of->factor + i);
        lowest = smaller(z, lowest);
        highest = larger(z, highest);
        finite = fma(z, all(0), finite);
    }
    encode(of, row, y, lowest + sum_of_lanes(finite), highest);
}

static void encode_rows(const Coding *of, const float *x, const int64_t rows) {
    for (int64_t row = 0; row < rows; row++) encode_row(of, row, x + row * of->size);
}

/* (y - mean) / sqrt(variance + epsilon) gain + shift into y, a row whose lanes' sums are `total`; codes unless NULL. */
static INLINE void normalize(const Normalization *of, float *y, Floats total, const Coding *coding, const int64_t row) {
    const int64_t size = of->size;
    Floats mean = all(sum_of_lanes(total) / (float)size), squares = {};
    for (int64_t i = 0; i < size; i += LANES) {
        Floats centred = load(y + i) - mean;
        squares = fma(centred, centred, squares);
    }
    const float variance = sum_of_lanes(squares) / (float)size;
    /* none if the variance is infinite: divided by it, all would be 0 */
    Floats scale = all(1.0f / __builtin_sqrtf(variance + of->epsilon) + variance * 0);
    Floats lowest = all(__builtin_inff()), highest = -lowest;
    for (int64_t i = 0; i < size; i += LANES) {
        Floats normal = (load(y + i) - mean) * scale;
        Floats shifted = fma(normal, load(of->gain + i), load(of->shift + i));
        store(y + i, shifted);
        if (coding) {
            const Floats z = shifted * load(coding->factor + i);
            lowest = smaller(z, lowest);
            highest = larger(z, highest);
        }
    }
    if (coding) encode(coding, row, y, lowest, highest);
}

static void embed(const Embed *of) {
    const int64_t size = of->normalization.size;
    for (int64_t row = 0; row < of->texts * of->tokens; row++) {
        const int64_t id = of->ids[row];
        const int8_t *word = of->words + id * size;
        const float *place = of->places + row % of->tokens * size;
        Floats scale = all(of->word_scales[id]), total = {};
        float *y = of->y + row * size;
        for (int64_t i = 0; i < size; i += LANES) {
            SignedBytes codes;
            __builtin_memcpy(&codes, word + i, sizeof codes);
            Floats x = __builtin_convertvector(codes, Floats) * load(of->channel_scales + i);
            x = fma(x, scale, load(place + i));
            total += x;
            store(y + i, x);
        }
        normalize(&of->normalization, y, total, &of->coding, row);
    }
}

/* So many rows, whose codes follow one another, by WIDE x LANES columns from `column` on, into y, whose rows are `step`
   apart. All sums stay in registers until they are whole. */
static INLINE void multiply_block(const int rows, const Product *of, const int64_t row, const int64_t column, float *y,
                                  const int64_t step) {
    const int64_t size = of->size, first = column / BLOCK * BLOCK;
    const uint8_t *codes = of->codes + row * size;
    const int8_t *weight = of->weight + first * size + (column - first) * QUAD;
    Ints start[WIDE], sums[TALL][WIDE];
    UNROLL
    for (int c = 0; c < WIDE; c++) {
        __builtin_memcpy(&start[c], of->sums + column + c * LANES, sizeof start[c]);
        start[c] *= CODE_SHIFT;
    }
    UNROLL
    for (int r = 0; r < rows; r++) {
        const Ints *from = start;
        REREAD(from);
        UNROLL
        for (int c = 0; c < WIDE; c++) sums[r][c] = from[c];
    }
    DO_NOT_UNROLL /* or codes are read ahead into registers that sums need */
    for (int64_t k = 0; k < size; k += DEPTH) {
        Codes read[TALL];
        UNROLL
        for (int r = 0; r < rows; r++) read[r] = read_codes(codes + r * size + k);
        UNROLL
        for (int q = 0; q < DEPTH / STEP; q++, weight += BLOCK * STEP) {
            UNROLL /* few rows read as fast as memory gives, and would only be slowed */
            for (int c = 0; c < WIDE && rows > 4; c++) __builtin_prefetch(weight + c * LANES * QUAD + AHEAD);
            UNROLL
            for (int r = 0; r < rows; r++) {
                UNROLL
                for (int c = 0; c < WIDE; c++) sums[r][c] = dot(sums[r][c], read[r], q, weight + c * LANES * QUAD);
            }
        }
    }
    const float *rest = of->rest + row * of->rest_size, *rest_weight = of->rest_weight + column;
    Floats found[TALL][WIDE];
    UNROLL
    for (int c = 0; c < WIDE; c++) {
        const Floats scale = load(of->scale + column + c * LANES);
        UNROLL
        for (int r = 0; r < rows; r++) {
            const float *bias = of->bias + column + c * LANES;
            REREAD(bias);
            const Floats row_scale = all(rest[r * of->rest_size + SCALE]);
            found[r][c] = fma(__builtin_convertvector(sums[r][c], Floats) * row_scale, scale, load(bias));
        }
    }
    for (int64_t j = LOWEST; j < of->rest_size; j++, rest_weight += of->columns) {
        UNROLL
        for (int c = 0; c < WIDE; c++) {
            const Floats weight = load(rest_weight + c * LANES);
            UNROLL
            for (int r = 0; r < rows; r++) found[r][c] = fma(all(rest[r * of->rest_size + j]), weight, found[r][c]);
        }
    }
    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int c = 0; c < WIDE; c++) store(y + r * step + c * LANES, found[r][c]);
    }
}

/* BLOCK columns from `column` on of a panel's rows, into y, whose rows are `step` apart. */
static void multiply_columns(const Product *panel, const int64_t column, float *y, const int64_t step) {
    const int64_t blocks = (panel->rows + TALL - 1) / TALL;
    for (int64_t c = 0; c < BLOCK; c += WIDE * LANES)
        for (int64_t block = 0; block < blocks; block++) {
            const int64_t from = panel->rows * block / blocks, to = panel->rows * (block + 1) / blocks;
            switch (to - from) {
#define CASE(n)                                                                                                        \
    case n: multiply_block(n, panel, from, column + c, y + from * step + c, step); break;
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
            default: __builtin_unreachable();
            }
        }
}

/* Up to PANEL rows from `first` on, as a product of its own. */
static INLINE Product panel_of(const Product *of, const int64_t first) {
    Product panel = *of;
    panel.rows = of->rows - first < PANEL ? of->rows - first : PANEL;
    panel.codes += first * of->size;
    panel.rest += first * of->rest_size;
    if (CODE_SHIFT) { /* once, and not each time that a code is read */
        for (int64_t i = 0; i < panel.rows * of->size; i += LANES) {
            Bytes codes;
            __builtin_memcpy(&codes, panel.codes + i, sizeof codes);
            codes ^= (Bytes)CODE_SHIFT;
            __builtin_memcpy(of->room + i, &codes, sizeof codes);
        }
        panel.codes = of->room;
    }
    return panel;
}

static INLINE void multiply_panel(const Product *of, const int64_t first, float *y) {
    const Product panel = panel_of(of, first);
    for (int64_t column = 0; column < of->columns; column += BLOCK)
        multiply_columns(&panel, column, y + first * of->columns + column, of->columns);
}

static void linear(const Product *of, float *y) {
    for (int64_t first = 0; first < of->rows; first += PANEL) multiply_panel(of, first, y);
}

static void linear_add_normalize(const Product *product, const AddNormalize *of) {
    const int64_t size = of->normalization.size;
    for (int64_t row = 0; row < product->rows; row++) {
        if (row % PANEL == 0) multiply_panel(product, row, of->y);
        const float *stream = of->stream + row * size;
        float *y = of->y + row * size;
        Floats total = {};
        for (int64_t i = 0; i < size; i += LANES) {
            Floats x = load(stream + i) + load(y + i);
            total += x;
            store(y + i, x);
        }
        normalize(&of->normalization, y, total, of->coding, row);
    }
}

/* A row's range is known when all its columns are, so a panel of rows waits in `room`, which stays in the L2 cache. */
static void linear_gelu_quantize(const Product *product, const Coding *of, float *room) {
    const int64_t step = of->size + LANES; /* rows a multiple of 2 kB apart would share a few sets of the cache */
    float part[PANEL * BLOCK];
    for (int64_t first = 0; first < product->rows; first += PANEL) {
        const Product panel = panel_of(product, first);
        const int64_t rows = panel.rows;
        Floats lowest[PANEL], highest[PANEL];
        for (int64_t row = 0; row < rows; row++) {
            lowest[row] = all(__builtin_inff());
            highest[row] = -lowest[row];
        }
        for (int64_t column = 0; column < of->size; column += BLOCK) {
            multiply_columns(&panel, column, part, BLOCK);
            for (int64_t row = 0; row < rows; row++)
                for (int64_t i = 0; i < BLOCK; i += LANES) {
                    const Floats y = gelu(load(part + row * BLOCK + i));
                    const Floats z = y * load(of->factor + column + i);
                    store(room + row * step + column + i, y);
                    lowest[row] = smaller(z, lowest[row]);
                    highest[row] = larger(z, highest[row]);
                }
        }
        for (int64_t row = 0; row < rows; row++) encode(of, first + row, room + row * step, lowest[row], highest[row]);
    }
}
