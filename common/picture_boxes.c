/* picture_boxes.c - AVIF and HEIC: the boxes (ISO/IEC 14496-12, 23008-12) down to the bytes of one
 * AV1 picture, which libavcodec decodes; whatever else is in such boxes through libheif, where
 * there is one. */
#include "common/picture_parts.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>

/* ---- boxes ---- */

typedef struct {
    const uint8_t *type;
    sl_span_of d; /* behind the head */
} box;

/* The box at *at, which moves on; false at the end, or for one that is not whole. */
static bool next_box(box *b, sl_span_of s, size_t *at)
{
    if (!sl_has(s, *at, 8)) return false;
    uint64_t n = sl_be32(s.at + *at), head = 8;
    if (n == 1) {
        if (!sl_has(s, *at, 16)) return false;
        head = 16;
        n = (uint64_t)sl_be32(s.at + *at + 8) << 32 | sl_be32(s.at + *at + 12);
    }
    if (n == 0) n = s.n - *at;
    if (n < head || n > s.n - *at) return false;
    *b = (box){s.at + *at + 4, sl_part(s, *at + head, n - head)};
    *at += n;
    return true;
}

static bool find_box(box *b, sl_span_of s, const char *type)
{
    for (size_t at = 0; next_box(b, s, &at);)
        if (!memcmp(b->type, type, 4)) return true;
    return false;
}

/* An unsigned number of 0, 1, 2, 4 or 8 bytes at *at, which moves on; *ok is false past the end. */
static uint64_t take(sl_span_of s, size_t *at, int bytes, bool *ok)
{
    uint64_t v = 0;
    if (!sl_has(s, *at, (size_t)bytes)) return *ok = false, 0;
    for (int i = 0; i < bytes; i++) v = v << 8 | s.at[(*at)++];
    return v;
}

typedef struct {
    sl_span_of file, meta, idat;
} boxes;

/* The bytes of an item that has one extent. False: not there, or in pieces. */
static bool item_bytes(sl_span_of *out, const boxes *b, uint32_t id, bool *whole)
{
    box iloc;
    if (!find_box(&iloc, b->meta, "iloc")) return false;
    bool ok = true;
    size_t at = 0;
    const int version = (int)take(iloc.d, &at, 1, &ok);
    at += 3;
    const int sizes = (int)take(iloc.d, &at, 2, &ok), offset_size = sizes >> 12,
              length_size = sizes >> 8 & 15, base_size = sizes >> 4 & 15,
              index_size = version ? sizes & 15 : 0;
    const size_t extent_size = (size_t)(index_size + offset_size + length_size);
    const uint64_t count = take(iloc.d, &at, version < 2 ? 2 : 4, &ok);
    for (uint64_t i = 0; i < count && ok; i++) {
        const uint64_t item = take(iloc.d, &at, version < 2 ? 2 : 4, &ok),
                       how = version ? take(iloc.d, &at, 2, &ok) & 15 : 0;
        take(iloc.d, &at, 2, &ok);
        const uint64_t base = take(iloc.d, &at, base_size, &ok),
                       extents = take(iloc.d, &at, 2, &ok);
        if (!ok || item != id) {
            at += extents * extent_size; /* each of 65,535 may take no byte at all */
            continue;
        }
        if (extents != 1 || how > 1) return false;
        take(iloc.d, &at, index_size, &ok);
        const uint64_t from = base + take(iloc.d, &at, offset_size, &ok),
                       n = take(iloc.d, &at, length_size, &ok);
        const sl_span_of in = how == 1 ? b->idat : b->file;
        if (!ok) return false;
        *whole = n ? sl_has(in, from, n) : from < in.n;
        *out = sl_part(in, from, n ? n : in.n);
        return true;
    }
    return false;
}

/* The type of an item, as "av01". False: not there, or it has none. */
static bool item_type(uint8_t out[4], const boxes *b, uint32_t id)
{
    box iinf, infe;
    if (!find_box(&iinf, b->meta, "iinf") || iinf.d.n < 6) return false;
    for (size_t at = iinf.d.at[0] ? 8 : 6; next_box(&infe, iinf.d, &at);) {
        bool ok = true;
        size_t k = 4;
        const int version = infe.d.n ? infe.d.at[0] : 0;
        const uint64_t item = take(infe.d, &k, version == 3 ? 4 : 2, &ok);
        k += 2;
        if (version < 2 || !ok || !sl_has(infe.d, k, 4) || item != id) continue;
        memcpy(out, infe.d.at + k, 4);
        return true;
    }
    return false;
}

/* irot turns anticlockwise by quarters, then imir mirrors (0: top and bottom change places, 1: left
 * and right): as an EXIF orientation, which is the table of libavif's users. */
static int as_orientation(int quarters, int mirror)
{
    static const uint8_t TABLE[4][3] = {{1, 4, 2}, {8, 5, 7}, {3, 2, 4}, {6, 7, 5}};
    return TABLE[quarters & 3][mirror < 0 ? 0 : mirror ? 2 : 1];
}

/* One property of the primary item. */
static void take_property(sl_boxes *out, const box *p, int *quarters, int *mirror)
{
    if (!memcmp(p->type, "ispe", 4) && p->d.n >= 12) {
        out->w = sl_be32(p->d.at + 4);
        out->h = sl_be32(p->d.at + 8);
    } else if (!memcmp(p->type, "irot", 4) && p->d.n) *quarters = p->d.at[0] & 3;
    else if (!memcmp(p->type, "imir", 4) && p->d.n) *mirror = p->d.at[0] & 1;
    else if (!memcmp(p->type, "av1C", 4) && p->d.n >= 4)
        out->configuration = sl_part(p->d, 4, p->d.n);
    else if (!memcmp(p->type, "colr", 4) && sl_starts(p->d, 0, "nclx", 4) && p->d.n >= 11) {
        out->matrix = (int)sl_be16(p->d.at + 8);
        out->range = p->d.at[10] >> 7;
    }
}

static void take_properties(sl_boxes *out, const boxes *b, uint32_t id)
{
    box iprp, ipco, ipma, property = {0};
    int quarters = 0, mirror = -1;
    bool ok = true;
    size_t at = 0;
    if (!find_box(&iprp, b->meta, "iprp") || !find_box(&ipco, iprp.d, "ipco") ||
        !find_box(&ipma, iprp.d, "ipma"))
        return;
    const int version = (int)take(ipma.d, &at, 1, &ok);
    const bool wide = take(ipma.d, &at, 3, &ok) & 1;
    const uint64_t items = take(ipma.d, &at, 4, &ok);
    for (uint64_t i = 0; i < items && ok; i++) {
        const uint64_t item = take(ipma.d, &at, version ? 4 : 2, &ok),
                       n = take(ipma.d, &at, 1, &ok);
        for (uint64_t k = 0; k < n && ok; k++) {
            uint64_t index = take(ipma.d, &at, wide ? 2 : 1, &ok) & (wide ? 0x7fff : 0x7f);
            size_t from = 0;
            if (item != id || !index) continue;
            while (index && next_box(&property, ipco.d, &from)) index--;
            if (!index) take_property(out, &property, &quarters, &mirror);
        }
        if (item == id) break; /* an item stands there once: each property is a walk through ipco */
    }
    out->turned = as_orientation(quarters, mirror);
}

bool sl_boxes_read(sl_boxes *out, sl_span_of file)
{
    boxes b = {.file = file};
    box at;
    uint8_t type[4] = {0};
    *out = (sl_boxes){.turned = 1, .matrix = -1, .range = -1};
    if (!sl_starts(file, 4, "ftyp", 4)) return false;
    if (!find_box(&at, file, "meta") || at.d.n < 4) return true;
    b.meta = sl_part(at.d, 4, at.d.n);
    if (find_box(&at, b.meta, "idat")) b.idat = at.d;
    if (!find_box(&at, b.meta, "pitm") || at.d.n < 6) return true;
    if (at.d.at[0] && at.d.n < 8) return true;
    const uint32_t id = at.d.at[0] ? sl_be32(at.d.at + 4) : sl_be16(at.d.at + 4);
    take_properties(out, &b, id);
    if (!item_type(type, &b, id)) return true;
    const bool found = item_bytes(&out->sample, &b, id, &out->whole);
    out->av1 = found && !memcmp(type, "av01", 4);
    return true;
}

/* ---- libheif ---- */

/* What is used of libheif/heif.h, unchanged since 1.0; the library is opened when the first HEIC
 * comes, for its decoders are not in every distribution. */
typedef struct {
    int code, subcode;
    const char *message;
} heif_error;

static struct {
    pthread_once_t once;
    bool there;
    void *(*context_alloc)(void);
    void (*context_free)(void *);
    heif_error (*read)(void *, const void *, size_t, const void *);
    heif_error (*primary)(void *, void **);
    void (*handle_release)(const void *);
    heif_error (*decode)(const void *, void **, int colour, int chroma, const void *);
    void (*image_release)(const void *);
    const uint8_t *(*plane)(const void *, int channel, int *pitch);
    int (*width)(const void *, int channel);
    int (*height)(const void *, int channel);
} heif = {.once = PTHREAD_ONCE_INIT};

enum { HEIF_RGB = 1, HEIF_INTERLEAVED_RGB = 10, HEIF_INTERLEAVED = 10, HEIF_UNSUPPORTED = 4 };

static void open_heif(void)
{
    void *so = dlopen("libheif.so.1", RTLD_NOW | RTLD_LOCAL);
    static const char *const NAMES[] = {"heif_context_alloc",
                                        "heif_context_free",
                                        "heif_context_read_from_memory_without_copy",
                                        "heif_context_get_primary_image_handle",
                                        "heif_image_handle_release",
                                        "heif_decode_image",
                                        "heif_image_release",
                                        "heif_image_get_plane_readonly",
                                        "heif_image_get_width",
                                        "heif_image_get_height"};
    void *f[10];
    heif.there = so != NULL;
    for (int i = 0; i < 10 && so; i++) heif.there &= (f[i] = dlsym(so, NAMES[i])) != NULL;
    if (!heif.there) return;
    memcpy(&heif.context_alloc, &f[0], sizeof(void *));
    memcpy(&heif.context_free, &f[1], sizeof(void *));
    memcpy(&heif.read, &f[2], sizeof(void *));
    memcpy(&heif.primary, &f[3], sizeof(void *));
    memcpy(&heif.handle_release, &f[4], sizeof(void *));
    memcpy(&heif.decode, &f[5], sizeof(void *));
    memcpy(&heif.image_release, &f[6], sizeof(void *));
    memcpy(&heif.plane, &f[7], sizeof(void *));
    memcpy(&heif.width, &f[8], sizeof(void *));
    memcpy(&heif.height, &f[9], sizeof(void *));
}

static sl_code copy_plane(sl_picture *out, const void *image, const char *name, sl_err *err)
{
    int pitch = 0;
    const uint8_t *p = heif.plane(image, HEIF_INTERLEAVED, &pitch);
    const int w = heif.width(image, HEIF_INTERLEAVED), h = heif.height(image, HEIF_INTERLEAVED);
    if (!p || w < 1 || h < 1 || w > SL_PICTURE_MAX_SIDE || h > SL_PICTURE_MAX_PIXELS / w)
        return sl_fail(err, SL_FORMAT, "%s: libheif gives %dx%d pixels, at most %d are read", name,
                       w, h, SL_PICTURE_MAX_PIXELS);
    uint8_t *rgb = malloc((size_t)w * (size_t)h * 3);
    if (!rgb) return sl_fail(err, SL_NOMEM, "%s: no memory for %dx%d pixels", name, w, h);
    for (int y = 0; y < h; y++)
        memcpy(rgb + (size_t)y * (size_t)w * 3, p + (ptrdiff_t)y * pitch, (size_t)w * 3);
    *out = (sl_picture){w, h, rgb};
    return SL_OK;
}

sl_code sl_heif_decode(sl_picture *out, sl_span_of file, const char *name, sl_err *err)
{
    void *context = NULL, *handle = NULL, *image = NULL;
    sl_code rc = SL_OK;
    heif_error e = {0};
    pthread_once(&heif.once, open_heif);
    if (!heif.there)
        return sl_fail(err, SL_ARG,
                       "%s: a HEIC, which wants libheif on this machine (package libheif1, on "
                       "Ubuntu libheif-plugin-libde265 too); or convert it to PNG or JPEG",
                       name);
    if (!(context = heif.context_alloc()))
        return sl_fail(err, SL_NOMEM, "%s: no memory to decode a HEIC", name);
    if (!(e = heif.read(context, file.at, file.n, NULL)).code &&
        !(e = heif.primary(context, &handle)).code &&
        !(e = heif.decode(handle, &image, HEIF_RGB, HEIF_INTERLEAVED_RGB, NULL)).code)
        rc = copy_plane(out, image, name, err);
    else if (e.code == HEIF_UNSUPPORTED)
        rc = sl_fail(err, SL_ARG,
                     "%s: a HEIC for which this machine's libheif has no decoder (%.100s), want "
                     "package libheif-plugin-libde265, or a PNG or JPEG",
                     name, e.message);
    else
        rc = sl_fail(err, SL_FORMAT, "%s: the HEIC picture is damaged: %.100s", name,
                     e.message ? e.message : "?");
    if (image) heif.image_release(image);
    if (handle) heif.handle_release(handle);
    heif.context_free(context);
    return rc;
}
