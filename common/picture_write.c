/* picture_write.c - 8-bit RGB to a PNG file, through zlib. */
#include "common/picture.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <zlib.h>

#include "common/temporary.h"

/* zlib's level. Of differences 3 saves a seventh more in smooth pictures, nothing in photographs,
 * for twice the time. */
#define COMPRESSION 1

/* The bytes of the file so far. */
typedef struct {
    uint8_t *at;
    size_t n;
} file;

static void put_be32(uint8_t *to, size_t v)
{
    for (int i = 0; i < 4; i++) to[i] = (uint8_t)(v >> (24 - 8 * i));
}

/* The chunk whose n bytes of body lie where they belong, 8 bytes behind the file's end. */
static void end_chunk(file *f, const char *type, size_t n)
{
    uint8_t *head = f->at + f->n;
    put_be32(head, n);
    memcpy(head + 4, type, 4);
    put_be32(head + 8 + n, crc32_z(0, head + 4, n + 4));
    f->n += 12 + n;
}

/* A line behind its filter's byte: differences from the pixel to the left. */
static void filter_line(uint8_t *to, const uint8_t *rgb, size_t n)
{
    *to++ = 1;
    memcpy(to, rgb, 3);
    for (size_t i = 3; i < n; i++) to[i] = (uint8_t)(rgb[i] - rgb[i - 3]);
}

/* All lines as one stream of zlib's, into the `room` bytes from `to` on; 0: no memory. */
static size_t deflate_lines(uint8_t *to, size_t room, const sl_picture *p)
{
    const size_t line = (size_t)p->w * 3;
    z_stream z = {.next_out = to, .avail_out = (uInt)room};
    uint8_t *filtered = malloc(line + 1);
    int e = filtered ? deflateInit(&z, COMPRESSION) : Z_MEM_ERROR;
    size_t n = 0;
    if (e == Z_OK) {
        for (int y = 0; y < p->h && e == Z_OK; y++) {
            filter_line(filtered, p->rgb + (size_t)y * line, line);
            z.next_in = filtered;
            z.avail_in = (uInt)line + 1;
            e = deflate(&z, y + 1 < p->h ? Z_NO_FLUSH : Z_FINISH);
        }
        n = e == Z_STREAM_END ? z.total_out : 0;
        deflateEnd(&z);
    }
    free(filtered);
    return n;
}

/* PNG (ISO/IEC 15948), as few chunks as there can be. */
static sl_code encode(file *f, const sl_picture *p, sl_err *err)
{
    const uLong bytes = ((uLong)p->w * 3 + 1) * (uLong)p->h, room = bytes + bytes / 512 + 1024;
    size_t n = 0;
    if (p->w < 1 || p->h < 1 || p->h > SL_PICTURE_MAX_PIXELS / p->w)
        return sl_fail(err, SL_ARG, "picture: %dx%d pixels, want 1 to %d", p->w, p->h,
                       SL_PICTURE_MAX_PIXELS);
    *f = (file){malloc(room + 128), 8};
    if (f->at) {
        memcpy(f->at, "\x89PNG\r\n\x1a\n", 8);
        put_be32(f->at + f->n + 8, (size_t)p->w);
        put_be32(f->at + f->n + 12, (size_t)p->h);
        memcpy(f->at + f->n + 16, "\x08\x02\0\0\0", 5); /* 8 bits a colour, not interlaced */
        end_chunk(f, "IHDR", 13);
        n = deflate_lines(f->at + f->n + 8, room, p);
    }
    if (!n)
        return sl_fail(err, SL_NOMEM, "picture: no memory to encode %dx%d pixels as PNG", p->w,
                       p->h);
    end_chunk(f, "IDAT", n);
    end_chunk(f, "IEND", 0);
    return SL_OK;
}

/* Beside `path`, then under its name. */
static sl_code replace(const char *path, const uint8_t *bytes, size_t n, sl_err *err)
{
    char *tmp = NULL;
    int fd, why = 0;
    sl_code rc = sl_temporary_make(&tmp, &fd, path, err);
    if (rc) return rc;
    while (n && !why) {
        ssize_t put = write(fd, bytes, n);
        if (put > 0) bytes += put, n -= (size_t)put;
        else if (put == 0) why = ENOSPC;
        else if (errno != EINTR) why = errno;
    }
    if (!why && rename(tmp, path)) why = errno;
    if (close(fd) && !why) why = errno;
    if (why) unlink(tmp);
    free(tmp);
    return why ? sl_fail_errno(err, why, "%s", path) : SL_OK;
}

sl_code sl_picture_write(const sl_picture *p, const char *path, sl_err *err)
{
    file f = {0};
    sl_code rc = encode(&f, p, err);
    if (!rc) rc = replace(path, f.at, f.n, err);
    free(f.at);
    return rc;
}
