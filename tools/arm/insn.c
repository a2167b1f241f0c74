/* qemu TCG plugin: counts the AArch64 instructions, by kind, that a program executes between two calls of getppid (a
 * system call that does nothing, here a mark). At every second call it writes a line
 * "all fma dot vector-loads scalar-loads prefetches stores" to the file named in INSN_OUT, at once, so that the counts
 * of what ran before a crash are kept.
 * Written for plugin API version 1 (qemu 6.0 to 8.2). Debian ships no qemu-plugin.h, hence the declarations.
 * The counters are plain adds: exact for programs that compute in one thread. */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum { INLINE_ADD_U64 = 0 };
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id id, void (*callback)(plugin_id, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *tb, int op, void *counter, uint64_t amount);
void qemu_plugin_register_vcpu_syscall_cb(plugin_id id, void (*callback)(plugin_id, unsigned vcpu, int64_t number,
    uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t));
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t i);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *insn);

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

enum { ALL, FMA, DOT, VECTOR_LOAD, SCALAR_LOAD, PREFETCH, STORE, KINDS };
static uint64_t executed[KINDS], at_mark[KINDS];
static int marks;
static FILE *counts;

#define IS(mask, value) ((w & (mask)) == (value))

static int kind(uint32_t w) /* Arm Architecture Reference Manual, A64 instruction set encoding */
{
    if (IS(0xBF20FC00, 0x0E20CC00) || IS(0xBF80B400, 0x0F801000)     /* FMLA, FMLS: f32/f64 vectors, by element */
        || IS(0xBF60FC00, 0x0E400C00) || IS(0xBFC0B400, 0x0F001000)  /* the same on f16 */
        || IS(0xFF000000, 0x1F000000))                               /* FMADD, FMSUB, FNMADD, FNMSUB */
        return FMA;
    if (IS(0x9FE0FC00, 0x0E809400) || IS(0x9FC0F400, 0x0F80E000))    /* SDOT, UDOT: vectors, by element */
        return DOT;
    if (!IS(0x0A000000, 0x08000000)) return ALL;                     /* not in the loads-and-stores group */
    int vector = w >> 26 & 1, size = w >> 30, opc = w >> 22 & 3, load = opc & 1;
    if (IS(0x3B000000, 0x18000000)) {                                /* literal */
        if (size == 3 && !vector) return PREFETCH;
        load = 1;
    } else if (IS(0x3A000000, 0x38000000) && !vector) {              /* one general register */
        if (size == 3 && opc == 2) return PREFETCH;
        load = opc != 0;
    }
    return !load ? STORE : vector ? VECTOR_LOAD : SCALAR_LOAD;
}

static void translated(plugin_id id, struct qemu_plugin_tb *tb)
{
    uint64_t n[KINDS] = {0};
    (void)id;
    n[ALL] = qemu_plugin_tb_n_insns(tb);
    for (size_t i = 0; i < n[ALL]; i++) {
        uint32_t word;
        memcpy(&word, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(tb, i)), sizeof word);
        int k = kind(word);
        if (k != ALL) n[k]++;
    }
    for (int k = 0; k < KINDS; k++)
        if (n[k]) qemu_plugin_register_vcpu_tb_exec_inline(tb, INLINE_ADD_U64, &executed[k], n[k]);
}

static void system_call(plugin_id id, unsigned vcpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3, uint64_t a4,
                        uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8)
{
    (void)id, (void)vcpu, (void)a1, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (number != 173) return; /* getppid */
    if (++marks % 2) {
        memcpy(at_mark, executed, sizeof executed);
        return;
    }
    for (int k = 0; k < KINDS; k++)
        fprintf(counts, "%llu%c", (unsigned long long)(executed[k] - at_mark[k]), k == KINDS - 1 ? '\n' : ' ');
    fflush(counts);
}

__attribute__((visibility("default"))) int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv)
{
    (void)info; (void)argc; (void)argv;
    char *out = getenv("INSN_OUT");
    if (!out) { fprintf(stderr, "insn: INSN_OUT is not set\n"); return -1; }
    counts = fopen(out, "w");
    if (!counts) { perror(out); return -1; }
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, system_call);
    return 0;
}
