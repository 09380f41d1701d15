/* A plugin of QEMU's user mode: how often each block of instructions ran, a line each at the end:

     address (hex)  times  bytes of each instruction (hex)

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
const Instruction *qemu_plugin_tb_get_insn(const Block *, size_t);
const void *qemu_plugin_insn_data(const Instruction *);
size_t qemu_plugin_insn_size(const Instruction *);

EXPORT int qemu_plugin_version = 1;

typedef struct Counted {
    struct Counted *next;
    uint64_t address, times;
    char text[];
} Counted;

static Counted *all;
static const char *target;

static void translated(Id id, Block *block) {
    (void)id;
    size_t size = 1;
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(block); i++)
        size += 2 * qemu_plugin_insn_size(qemu_plugin_tb_get_insn(block, i)) + 1;
    Counted *counted = calloc(1, sizeof *counted + size);
    if (!counted) abort();
    char *text = counted->text;
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(block); i++) {
        const Instruction *instruction = qemu_plugin_tb_get_insn(block, i);
        const unsigned char *bytes = qemu_plugin_insn_data(instruction);
        *text++ = ' ';
        for (size_t j = 0; j < qemu_plugin_insn_size(instruction); j++) text += sprintf(text, "%02x", bytes[j]);
    }
    counted->address = qemu_plugin_tb_vaddr(block);
    counted->next = all;
    all = counted;
    qemu_plugin_register_vcpu_tb_exec_inline(block, ADD, &counted->times, 1);
}

static void write_all(Id id, void *unused) {
    (void)id, (void)unused;
    FILE *file = fopen(target, "w");
    if (!file) return;
    for (const Counted *each = all; each; each = each->next)
        if (each->times)
            fprintf(file, "%llx %llu%s\n", (unsigned long long)each->address, (unsigned long long)each->times,
                    each->text);
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
