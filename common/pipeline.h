/* pipeline.h - the pipeline, written once: its roles, and what is handed from whom to whom.
 *
 * Two lists decide. SL_ROLES are the kinds of stage; SL_HANDOVERS the ways between them. The
 * scheduler, sizes, plan, replay, dump, checks, slot defaults and the stages' own names are
 * derived from them: a new stage is a row in each, and a program (stages/README.md, "To add").
 * A hand-over's tensors, shapes and bytes follow from the model, the video's grid and the job.
 * Nothing here owns memory. */
#ifndef SL_PIPELINE_H
#define SL_PIPELINE_H

#include "common/job.h"
#include "common/tensor.h"

/* ---- roles ---- */

/* NAME, name, where. In the order in which a job meets them.
 *   name    the folder in stages/, the program sluice-NAME and the configuration's name
 *   where   DEVICE  computes on the device that the configuration gives it
 *           TEAM    as DEVICE, and several instances may work on one attempt together: ranks of a
 *                   team (kernels/comm.h)
 *           HOST    works on the CPU, whatever device the others have */
#define SL_ROLES(X)                                                                                \
    X(TEXT, "text", DEVICE)                                                                        \
    X(IMAGE, "image", DEVICE)                                                                      \
    X(DENOISE, "denoise", TEAM)                                                                    \
    X(DECODE, "decode", DEVICE)                                                                    \
    X(MUX, "mux", HOST)

typedef enum {
#define X(NAME, name, where) SL_ROLE_##NAME,
    SL_ROLES(X)
#undef X
        SL_ROLE_COUNT
} sl_role; /* from SL_ROLE_COUNT on: filters, below */

#define SL_FILTERS 8 /* most filters of a pipeline */
#define SL_ROLES_MOST (SL_ROLE_COUNT + SL_FILTERS)

/* Roles of this process's pipeline: those above, and its filters. */
int sl_role_count(void);
/* The i-th role, from 0, in the order in which a job meets them: a filter stands before who takes
 * what it gives. */
sl_role sl_role_in_order(int i);
int sl_role_place(int role); /* its place there; sl_role_count() of a number that is no role */
/* "text", a filter's name; "?" for a number that is no role. */
const char *sl_role_name(sl_role role);
/* Errors: -1 no role has this name. */
int sl_role_by_name(const char *name);
/* The role works on the CPU alone. */
bool sl_role_on_host(sl_role role);
bool sl_role_is_filter(sl_role role);
/* Several instances of the role may work on one attempt. */
bool sl_role_has_teams(sl_role role);
/* The role's weights are those that a job asks for: a LoRA is merged into them between two jobs. */
bool sl_role_adapts(sl_role role);
#define SL_RANKS 16 /* most instances of such a role, and members of a team */
/* So many members can share a forward of so many heads. With guidance an even team is two halves,
 * a branch each, whose members share the heads; any other shares them as a whole. One always
 * can. */
bool sl_team_fits(int heads, bool guided, int size);
/* Errors: SL_ARG a team that does not fit, with the sizes that do. */
sl_code sl_team_check(int heads, bool guided, int size, sl_err *err);

/* ---- hand-overs ---- */

/* NAME, name, from, to, file, how.
 *   name   of the pools in which the receiver takes it, and in the log
 *   file   FILE.safetensors in the job's folder and in a dump; chunks have none of their own: the
 *          mux dumps what it encodes as FRAMES
 *   how    WHOLE   one slot or one file a job; the receiver may begin when it is there
 *          CHUNKS  slot by slot while the sender works, in order, never spooled: sender and
 *                  receiver work on one attempt together (a crew) and fall together
 * Numbers travel in messages: rows are added at the end. */
#define SL_HANDOVERS(X)                                                                            \
    X(TEXT, "text", TEXT, DENOISE, "text", WHOLE)                                                  \
    X(IMAGE, "image", IMAGE, DENOISE, "image", WHOLE)                                              \
    X(LATENTS, "latents", DENOISE, DECODE, "denoise", WHOLE)                                       \
    X(FRAMES, "frames", DECODE, MUX, "frames", CHUNKS)

typedef enum {
#define X(NAME, name, from, to, file, how) SL_HANDOVER_##NAME,
    SL_HANDOVERS(X)
#undef X
        SL_HANDOVER_COUNT
} sl_handover;

typedef enum { SL_WHOLE, SL_CHUNKS } sl_how;

#define SL_HANDOVER_NAME 24 /* bytes of a hand-over's name, and of its file's, NULs included */
#define SL_HANDOVERS_MOST (SL_HANDOVER_COUNT + SL_FILTERS)

typedef struct {
    char name[SL_HANDOVER_NAME];
    sl_role from, to;
    char file[SL_HANDOVER_NAME]; /* without .safetensors */
    sl_how how;
    sl_handover kind; /* the row of SL_HANDOVERS whose tensors it has: itself, unless a filter's */
    double scale;     /* of frames: times the job's width and height */
} sl_handover_row;

/* Of this process's pipeline; sl_handover_count() of them. Rows of SL_HANDOVERS come first. */
extern const sl_handover_row *const SL_HANDOVER;
int sl_handover_count(void);

/* ---- filters ---- */

/* A FILTER is a role of a configuration's own, put into a hand-over: it takes what `from` gives and
 * gives the like of it to `to`. Several on one hand-over stand one behind the other.
 *
 *     denoise --"latents"--> soften --"latents.soften"--> sharpen --"latents.sharpen"--> decode
 *               denoise        file   denoise.soften                denoise.sharpen
 *
 * The sender's row keeps its name and file, and ends at the first filter; each filter adds a role
 * and a row, numbered behind those of the lists in the configuration's order. */
#define SL_FILTER_NAME 16 /* bytes of a filter's name, its NUL included */
typedef struct {
    char name[SL_FILTER_NAME];
    sl_handover on; /* of SL_HANDOVERS */
    double scale;   /* of frames: width and height of what it gives, by what it takes */
} sl_filter_row;

/* The pipeline of this process from now on: the lists, with `count` filters in this order. Once,
 * before there are threads; a process that never calls it has none. */
void sl_pipeline_use(const sl_filter_row filters[], int count);
/* The filters as one line, "latents:soften latents:sharpen": what a job's results stand for beside
 * its other parameters. "": there are none. */
#define SL_FILTERS_TEXT (SL_FILTERS * (SL_HANDOVER_NAME + SL_FILTER_NAME))
const char *sl_pipeline_text(char out[SL_FILTERS_TEXT]);
/* The row by which this role is handed what is of that kind; -1: none. */
int sl_handover_to(sl_role role, sl_handover kind);
/* The row that the filter takes, and the one that it gives. */
sl_handover sl_filter_takes(sl_role filter);
sl_handover sl_filter_gives(sl_role filter);
/* Width or height of frames that are `scale` times as large. Sides are multiples of 16 and scales
 * of 1 / SL_SCALES, so it is even, and never rounded. */
int64_t sl_scaled(int64_t side, double scale);
#define SL_SCALES 8

/* Errors: -1 no hand-over has this name, or this file. */
int sl_handover_by_name(const char *name);
int sl_handover_by_file(const char *file);
/* The hand-over whose chunks this role takes; -1: it takes none, and begins a crew. */
int sl_chunks_to(sl_role role);
/* The first role of the crew that this role works in: those that chunks join. */
sl_role sl_crew_of(sl_role role);
/* The role is `from`, or works on what comes of it: a replay from there runs it again. */
bool sl_role_follows(sl_role role, sl_role from);
/* Slots of the pool in which this role receives, unless the configuration says otherwise: 2, or as
 * many chunks as let the sender work ahead (24). */
int sl_default_slots(sl_role role);
int sl_handover_slots(sl_handover h); /* likewise, of the pool for h */
/* The job has this hand-over: IMAGE only where a picture is taken. job NULL: some job may. */
bool sl_handover_applies(sl_handover h, const sl_model *model, const sl_job *job);

/* ---- what a job takes ---- */

/* The job gives a first picture, a last one, to a model that takes it. job NULL: some job may. */
bool sl_takes_picture(const sl_family *f, const sl_job *job);
bool sl_takes_last_picture(const sl_family *f, const sl_job *job);
/* How many frames of video, of `frames`, the picture is encoded as: all, grey after it, or it
 * alone (timesteps per token). */
int sl_condition_frames(const sl_family *f, int frames);
/* Guidance is on: there is an unconditional branch too. */
bool sl_job_guided(const sl_job *job);
/* Tokens that CLIP makes of the job's picture(s): 257 or 514; 0 for a model that attends to none.
 * job NULL: the most. */
int sl_image_tokens(const sl_model *model, const sl_job *job);

/* ---- grid: pixels, latents, tokens ---- */

#define SL_TEXT_TOKENS 512 /* of a prompt, padded */
#define SL_CHUNK_LATENTS 1 /* latent frames that the decoder takes at a time */

/* A video's extents in pixels, in latents of the VAE and in tokens of the transformer. */
typedef struct {
    int64_t frames, height, width;                      /* pixels */
    int64_t latent_frames, latent_height, latent_width; /* latents */
    int64_t token_height, token_width, tokens;          /* tokens of a frame's rows, of all */
    int64_t chunks;       /* of SL_CHUNK_LATENTS, the last may be less */
    int64_t chunk_frames; /* frames of the largest chunk */
} sl_grid;

/* Pixels of a token's edge, 16 or 32: width and height of videos are multiples of it. */
int sl_edge(const sl_family *f);
/* width and height are multiples of sl_edge, frames is temporal * n + 1: checked by
 * sl_job_check_family for what users ask. */
sl_grid sl_grid_of(const sl_family *f, int width, int height, int frames);
sl_grid sl_job_grid(const sl_model *model, const sl_job *job);
/* The largest grid of videos of at most `pixels` a frame, in whatever aspect: a frame as one row of
 * latents. For bytes, not for shapes. */
sl_grid sl_grid_of_area(const sl_family *f, int64_t pixels, int frames);

/* ---- tensors of a hand-over ---- */

#define SL_HANDOVER_TENSORS 2 /* most tensors of one */

typedef struct {
    const char *name;
    sl_dtype dtype;
    int rank;
    int64_t shape[SL_MAX_RANK];
} sl_tensor_spec;

/* What the receiver takes, in order; returns how many.
 *   TEXT     cond [512, text_dim], with guidance uncond likewise, F32
 *   IMAGE    condition [temporal + z, T, h/s, w/s] F32, mask and latents, or with timesteps per
 *            token [z, 1, h/s, w/s], the picture's latent frame; with CLIP clip [257 or 514,
 *            image_dim] F32
 *   LATENTS  latents [z, T, h/s, w/s] F32
 *   FRAMES   rgb [n, h, w, 3] U8, of the largest chunk; h and w as filters have scaled them
 * What a filter gives has the tensors of its kind.
 * s: family's `spatial`. job NULL: all that the model may ask for. Source: spec 3.3, 3.4, 3.6, 7,
 * 9.3. */
int sl_handover_tensors(sl_tensor_spec out[SL_HANDOVER_TENSORS], sl_handover h,
                        const sl_model *model, const sl_grid *grid, const sl_job *job);
/* Bytes of a slot that holds all of them, each aligned as common/lease.h aligns it. */
size_t sl_handover_bytes(sl_handover h, const sl_model *model, const sl_grid *grid);

#endif
