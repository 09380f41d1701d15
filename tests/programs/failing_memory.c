/* Preloaded, it lets the operators' n-th request for memory from now on fail, once. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <string.h>

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_memalign(size_t alignment, size_t size);

static long left = -1;

void fail_at(long n) { left = n; }

long not_failed_yet(void) { return left >= 0; }

static int fails(void *caller) {
    Dl_info found;
    if (left < 0 || !dladdr(caller, &found) || !strstr(found.dli_fname, "operators-")) return 0;
    return left-- == 0;
}

void *malloc(size_t size) { return fails(__builtin_return_address(0)) ? NULL : __libc_malloc(size); }

void *calloc(size_t count, size_t size) {
    return fails(__builtin_return_address(0)) ? NULL : __libc_calloc(count, size);
}

void *aligned_alloc(size_t alignment, size_t size) {
    return fails(__builtin_return_address(0)) ? NULL : __libc_memalign(alignment, size);
}
