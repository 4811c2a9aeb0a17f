/* safetensors.h - read and write tensor files: one file, or shards with an index.
 *
 * Reading maps the files; every header field is checked against the file before it is
 * used (offsets inside the file, sizes equal shape * dtype, no overlap and no hole, no
 * duplicate name, header at most 100 MB and at most the file, valid JSON and UTF-8).
 * Opening reads the headers only. Tensor views point into the mapping: they live until
 * sl_st_close, are read-only, and may be unaligned for their dtype (sl_to_floats copes).
 * A file that is cut short while it is mapped raises SIGBUS, as with any mapping.
 * Source of the format: huggingface/safetensors README and safetensors/src/tensor.rs. */
#ifndef SL_SAFETENSORS_H
#define SL_SAFETENSORS_H

#include "common/coding.h"
#include "common/tensor.h"

typedef struct sl_st sl_st; /* opaque: one open set of files */

typedef struct {
    const char *name; /* owned by the sl_st */
    sl_tensor t;      /* rank 0 in the file (a scalar) is seen as [1] */
    /* The file's tag. Of the format but not of SL_DTYPES (F64, BOOL, I8, F8 ...): t.rank is 0, the
     * tensor is listed and cannot be viewed. A tag that is none of the format's is refused. */
    const char *dtype;
    int shard; /* index into the set's files */
    /* Numbers in a coding: t.rank is 0, `coded` has the shape, dtype F32 (what they are decoded
     * to, by sl_st_floats) and the codes as data. Each row of the first index has a scale, or all
     * have one (scale_count 1), or none (0). */
    sl_coding coding;
    sl_tensor coded;
    const float *scales;
    int64_t scale_count;
} sl_st_entry;

/* Open one file: safetensors, GGUF (common/gguf.c), or a .pth as torch.save writes it
 * (common/pth.c), by its first bytes. *out is the caller's to close. Errors: SL_SYS cannot be
 * opened or mapped; SL_FORMAT with what is wrong. */
sl_code sl_st_open_file(sl_st **out, const char *path, sl_err *err);
/* Open a component folder: the shards named by <stem>.safetensors.index.json, or, if there is
 * none, <stem>.safetensors; stem "model" or "diffusion_pytorch_model". A tensor of the index
 * that no shard holds is a warning to the log. Errors also: SL_FORMAT an index that names a
 * missing shard, a shard outside the folder, or another shard than a tensor's; a tensor in two
 * shards. */
sl_code sl_st_open_dir(sl_st **out, const char *dir, const char *stem, sl_err *err);
void sl_st_close(sl_st **st); /* NULL is fine */

int sl_st_size(const sl_st *st);
/* The i-th entry by name; entries are consecutive in memory. */
const sl_st_entry *sl_st_at(const sl_st *st, int i);
const sl_st_entry *sl_st_find(const sl_st *st, const char *name); /* NULL: none of that name */
int sl_st_shards(const sl_st *st);
const char *sl_st_path(const sl_st *st, int shard);
/* Where an entry's first byte lies in its file. e->t.rank is not 0. */
int64_t sl_st_offset(const sl_st *st, const sl_st_entry *e);
/* What a loader sees of an entry: `t`, or of a coded one `coded`, which is not to be read through
 * its data; rank 0: neither. */
const sl_tensor *sl_st_shape(const sl_st_entry *e);
/* Elements [first, first + n) of an entry of a float dtype or a coding, as float32. */
void sl_st_floats(float *dst, const sl_st_entry *e, int64_t first, int64_t n);
/* Bytes that it takes in its file; 0 for a dtype that is no sl_dtype. */
size_t sl_st_stored(const sl_st_entry *e);
/* The value of a string in the header's __metadata__, NULL if there is none. First file
 * only. */
const char *sl_st_metadata(const sl_st *st, const char *key);

/* As sl_st_find, but the tensor must exist with this dtype and shape; a negative extent
 * accepts any. One clear error ("FILE: noise has shape [16, 3, 8, 12], want [16, 3, 8,
 * 8]"). */
sl_code sl_st_want(const sl_st *st, const char *name, sl_dtype dtype, int rank,
                   const int64_t *shape, sl_tensor *out, sl_err *err);

/* Check a whole file, or an index, that lies in memory (the fuzz target's entries). No
 * view of it is kept. */
sl_code sl_st_parse(const void *bytes, size_t length, sl_err *err);
sl_code sl_st_parse_index(const void *bytes, size_t length, sl_err *err);

/* ---- writing: all tensors are declared first, then their bytes arrive in any order ---- */

typedef struct sl_st_writer sl_st_writer;

/* Write to a temporary name beside `path` (PATH.tmp-PID-N); sl_stw_finish syncs and
 * renames, so that a file which has its final name is whole. *out is the caller's to
 * finish or abandon. Tensors lie in the file in the order they were declared. */
sl_code sl_stw_open(sl_st_writer **out, const char *path, sl_err *err);
/* Before the first write. Errors: SL_ARG a name that is taken, empty, "__metadata__" or
 * not UTF-8; SL_SHAPE. */
sl_code sl_stw_declare(sl_st_writer *w, const char *name, sl_dtype dtype, int rank,
                       const int64_t *shape, sl_err *err);
sl_code sl_stw_metadata(sl_st_writer *w, const char *key, const char *value, sl_err *err);
/* A row of __metadata__. */
typedef struct {
    const char *key, *value;
} sl_st_note;
sl_code sl_stw_notes(sl_st_writer *w, int n, const sl_st_note notes[], sl_err *err);
/* Let the data section begin at a multiple of `align` bytes in the file (a power of two,
 * 8 unless asked for): the header is filled up with spaces. Before the first write. */
void sl_stw_align(sl_st_writer *w, size_t align);
/* Bytes [offset, offset + length) of a declared tensor's data. The first call writes the
 * header. Errors: SL_ARG an unknown name or bytes past the tensor's end; SL_SYS with the
 * path (a full disk); after an error the writer can only be abandoned. */
sl_code sl_stw_write(sl_st_writer *w, const char *name, const void *data, size_t offset,
                     size_t length, sl_err *err);
/* The tensor that was declared last has only so many entries of its first index: what was written
 * behind them goes. Errors: SL_ARG another tensor, or more entries than it has; SL_SYS. */
sl_code sl_stw_cut(sl_st_writer *w, const char *name, int64_t entries, sl_err *err);
/* *w becomes NULL; after an error nothing is left. Errors: SL_SYS (a full disk);
 * SL_FORMAT if a declared tensor has bytes that were never written. */
sl_code sl_stw_finish(sl_st_writer **w, sl_err *err);
void sl_stw_abandon(sl_st_writer **w); /* removes the temporary; NULL is fine */

/* One call for a handful of dense host tensors. Errors: as the calls above; SL_ARG a
 * tensor that is not dense. */
sl_code sl_st_save(const char *path, int n, const char *const names[], const sl_tensor tensors[],
                   sl_err *err);
/* Likewise, with rows of __metadata__. */
sl_code sl_st_save_noted(const char *path, int n, const char *const names[],
                         const sl_tensor tensors[], int note_count, const sl_st_note notes[],
                         sl_err *err);

#endif
