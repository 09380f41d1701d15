/* What the instruction sets of x86 share: a quad of codes is broadcast from memory. */
#pragma once
#include <immintrin.h>
#include "arithmetic.h"

typedef const uint8_t *Codes;

static INLINE Codes read_codes(const uint8_t *codes) { return codes; }

/* Four bytes, of any alignment. */
static INLINE int32_t quad_at(const void *from) {
    int32_t found;
    __builtin_memcpy(&found, from, sizeof found);
    return found;
}
