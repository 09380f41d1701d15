/* A plugin of QEMU's user mode: how often each block of instructions ran, a line each at the end:

     address (hex)  times  bytes (hex)

   What it takes of qemu-plugin.h, version 1 (QEMU, "QEMU TCG Plugins"), is declared here. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

typedef uint64_t Id;
typedef struct Block Block;
typedef struct Instruction Instruction;
enum { ADD = 0 };

void qemu_plugin_register_vcpu_tb_trans_cb(Id, void (*)(Id, Block *));
void qemu_plugin_register_vcpu_tb_exec_inline(Block *, int operation, void *counter, uint64_t by);
void qemu_plugin_register_atexit_cb(Id, void (*)(Id, void *), void *);
size_t qemu_plugin_tb_n_insns(const Block *);
uint64_t qemu_plugin_tb_vaddr(const Block *);
Instruction *qemu_plugin_tb_get_insn(const Block *, size_t);
const void *qemu_plugin_insn_data(const Instruction *);
size_t qemu_plugin_insn_size(const Instruction *);

EXPORT int qemu_plugin_version = 1;

typedef struct Counted {
    struct Counted *next;
    uint64_t address, times;
    size_t size;
    unsigned char code[];
} Counted;

static Counted *all;
static const char *target;

static void translated(Id id, Block *block) {
    (void)id;
    size_t size = 0;
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(block); i++)
        size += qemu_plugin_insn_size(qemu_plugin_tb_get_insn(block, i));
    Counted *counted = calloc(1, sizeof *counted + size);
    if (!counted) abort();
    counted->address = qemu_plugin_tb_vaddr(block);
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(block); i++) {
        const Instruction *instruction = qemu_plugin_tb_get_insn(block, i);
        const size_t bytes = qemu_plugin_insn_size(instruction);
        memcpy(counted->code + counted->size, qemu_plugin_insn_data(instruction), bytes);
        counted->size += bytes;
    }
    counted->next = all;
    all = counted;
    qemu_plugin_register_vcpu_tb_exec_inline(block, ADD, &counted->times, 1);
}

static void write_all(Id id, void *unused) {
    (void)id, (void)unused;
    FILE *file = fopen(target, "w");
    if (!file) return;
    for (const Counted *each = all; each; each = each->next) {
        if (!each->times) continue;
        fprintf(file, "%llx %llu ", (unsigned long long)each->address, (unsigned long long)each->times);
        for (size_t i = 0; i < each->size; i++) fprintf(file, "%02x", each->code[i]);
        fputc('\n', file);
    }
    fclose(file);
}

EXPORT int qemu_plugin_install(Id id, const void *info, int count, char **arguments) {
    (void)info;
    if (count != 1 || strncmp(arguments[0], "target=", 7) != 0) return 1;
    target = strdup(arguments[0] + 7);
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_atexit_cb(id, write_all, NULL);
    return 0;
}
