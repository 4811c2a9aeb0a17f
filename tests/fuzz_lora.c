/* fuzz_lora.c - libFuzzer target: any bytes as a LoRA file, and as what a user or a job says of it.
 *
 * The first byte picks. L: the rest is a safetensors file; N: names, a line each, of tensors that a
 * file is made of, with extents by their first two bytes; else FILE[:STRENGTH] and rows. */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/lora.h"
#include "common/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(int holds)
{
    if (!holds) __builtin_trap();
}

/* What is opened keeps its promises. */
static void look(const char *path)
{
    sl_lora *l = NULL;
    sl_err err = {0};
    const sl_lora_change *c;
    uint64_t id;
    sl_lora_facts f;
    sl_code rc = sl_lora_open(&l, path, &err);
    check(!rc == (l != NULL));
    if (rc) {
        check(*err.msg && !strchr(err.msg, '\n'));
        return;
    }
    check(sl_lora_at(l, 0) != NULL);
    for (int i = 0; (c = sl_lora_at(l, i)); i++) {
        check(*c->target && c->down.rank > 0);
        if (!c->up.rank) continue;
        check(c->up.rank == 2 && c->down.rank == 2 && c->up.shape[1] == c->down.shape[0] &&
              c->up.dtype == c->down.dtype);
    }
    sl_lora_describe(l, &f);
    check(f.rank_lo <= f.rank_hi && f.products + f.differences > 0);
    rc = sl_lora_read(l, &id, &err);
    check(rc ? *err.msg && !strchr(err.msg, '\n') : id != 0);
    sl_lora_close(&l);
}

/* A file in memory under a name of its own. */
static int memory_file(char path[64])
{
    int fd = memfd_create("lora", MFD_CLOEXEC);
    check(fd >= 0);
    snprintf(path, 64, "/proc/self/fd/%d", fd);
    return fd;
}

static void write_all(int fd, const void *p, size_t n)
{
    check(write(fd, p, n) == (ssize_t)n);
}

/* Lines "AB name": rank, extents and dtype by A and B. */
static void make(const char *text, size_t n)
{
    static const char *const DTYPES[] = {"F32", "BF16", "F16", "I64"};
    static const int BYTES[] = {4, 2, 2, 8};
    char path[64], header[1 << 14] = "{", zeros[1 << 13] = {0};
    size_t at = 1, data = 0;
    int fd = memory_file(path);
    for (size_t i = 0; i + 4 < n && at + 400 < sizeof header;) {
        const size_t line = strcspn(text + i, "\n");
        const int a = text[i], b = text[i + 1], dtype = b & 3;
        const long rows = a & 15, cols = (a >> 4 & 7) + 1;
        const size_t bytes = (size_t)(rows * cols * BYTES[dtype]);
        char name[200] = "";
        size_t k = 0;
        for (size_t j = 2; j < line && k + 1 < sizeof name; j++)
            if (text[i + j] >= ' ' && text[i + j] < 127 && text[i + j] != '"' &&
                text[i + j] != '\\')
                name[k++] = text[i + j];
        name[k] = 0;
        if (k && data + bytes < sizeof zeros) {
            at += (size_t)snprintf(header + at, sizeof header - at,
                                   "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%ld,%ld],"
                                   "\"data_offsets\":[%zu,%zu]}",
                                   at > 1 ? "," : "", name, DTYPES[dtype], rows, cols, data,
                                   data + bytes);
            data += bytes;
        }
        i += line + 1;
    }
    header[at++] = '}';
    const uint64_t length = at;
    write_all(fd, &length, 8);
    write_all(fd, header, at);
    write_all(fd, zeros, data);
    look(path);
    close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!size || size > 1 << 14) return 0;
    char *text = malloc(size);
    check(text != NULL);
    memcpy(text, data + 1, size - 1);
    text[size - 1] = 0;
    if (*data == 'L') {
        char path[64];
        int fd = memory_file(path);
        write_all(fd, text, size - 1);
        look(path);
        close(fd);
    } else if (*data == 'N') make(text, strlen(text));
    else {
        sl_lora_use use, rows[SL_LORA_MOST];
        sl_err err = {0};
        if (!sl_lora_use_parse(&use, text, &err)) {
            char *field = sl_lora_field(&use, 1);
            check(field && sl_lora_uses(rows, field, &err) == 1);
            check(!strcmp(rows[0].file, use.file) && rows[0].strength == use.strength);
            free(field);
        }
        const int n = sl_lora_uses(rows, text, &err);
        check(n >= -1 && n <= SL_LORA_MOST);
        sl_lora_key(text);
    }
    free(text);
    return 0;
}
