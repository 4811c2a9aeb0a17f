/* pipeline.c - the pipeline's two lists, and what follows from them. */
#include "common/pipeline.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define SLOT_ALIGN 256 /* of a tensor in its slot, bytes: as lease_block.h */

/* All 21 chunks of 81 frames have a slot, so that a decode on a GPU never waits for the encoder and
 * a step of the next job does not come between. */
enum { WHOLE_SLOTS = 2, CHUNK_SLOTS = 24 };

static const char *const ROLE_NAMES[] = {
#define X(NAME, name, where) name,
    SL_ROLES(X)
#undef X
};

static const enum {
    DEVICE,
    TEAM,
    HOST
} ROLE_PLACES[] = {
#define X(NAME, name, where) where,
    SL_ROLES(X)
#undef X
};

#define X(NAME, name, from, to, file, how)                                                         \
    {name, SL_ROLE_##from, SL_ROLE_##to, file, SL_##how, SL_HANDOVER_##NAME, 1},
static const sl_handover_row LISTED[] = {SL_HANDOVERS(X)};

/* This process's pipeline: written before there are threads, if at all. */
static struct {
    int filters;
    char names[SL_FILTERS][SL_FILTER_NAME];
    sl_handover_row rows[SL_HANDOVERS_MOST];
} pipeline = {.rows = {SL_HANDOVERS(X)}};
#undef X

const sl_handover_row *const SL_HANDOVER = pipeline.rows;

int sl_role_count(void)
{
    return SL_ROLE_COUNT + pipeline.filters;
}

int sl_handover_count(void)
{
    return SL_HANDOVER_COUNT + pipeline.filters;
}

bool sl_role_is_filter(sl_role role)
{
    return (int)role >= SL_ROLE_COUNT && (int)role < sl_role_count();
}

sl_handover sl_filter_gives(sl_role filter)
{
    assert(sl_role_is_filter(filter));
    return (sl_handover)(SL_HANDOVER_COUNT + ((int)filter - SL_ROLE_COUNT));
}

sl_handover sl_filter_takes(sl_role filter)
{
    int h = 0;
    assert(sl_role_is_filter(filter));
    while (SL_HANDOVER[h].to != filter) h++;
    return (sl_handover)h;
}

/* The row of this kind that ends at no filter: whoever is put into it stands last. */
static sl_handover_row *last_of(sl_handover kind)
{
    sl_handover_row *row = &pipeline.rows[kind];
    for (int h = SL_HANDOVER_COUNT; h < sl_handover_count(); h++)
        if (pipeline.rows[h].kind == kind) row = &pipeline.rows[h];
    return row;
}

void sl_pipeline_use(const sl_filter_row filters[], int count)
{
    assert(count <= SL_FILTERS);
    pipeline.filters = 0;
    memcpy(pipeline.rows, LISTED, sizeof LISTED);
    for (int i = 0; i < count; i++) {
        const sl_filter_row *f = &filters[i];
        const sl_role self = (sl_role)(SL_ROLE_COUNT + i);
        sl_handover_row *before = last_of(f->on), *row = &pipeline.rows[SL_HANDOVER_COUNT + i];
        *row = *before;
        snprintf(pipeline.names[i], SL_FILTER_NAME, "%s", f->name);
        snprintf(row->name, sizeof row->name, "%.7s.%.15s", LISTED[f->on].name, f->name);
        snprintf(row->file, sizeof row->file, "%.7s.%.15s", LISTED[f->on].file, f->name);
        row->from = before->to = self;
        row->scale = before->scale * f->scale;
        pipeline.filters++;
    }
}

const char *sl_pipeline_text(char out[SL_FILTERS_TEXT])
{
    size_t used = 0;
    *out = 0;
    for (int i = 0; i < pipeline.filters; i++)
        used += (size_t)snprintf(out + used, SL_FILTERS_TEXT - used, "%s%s:%s", i ? " " : "",
                                 LISTED[pipeline.rows[SL_HANDOVER_COUNT + i].kind].name,
                                 pipeline.names[i]);
    return out;
}

int sl_handover_to(sl_role role, sl_handover kind)
{
    for (int h = 0; h < sl_handover_count(); h++)
        if (SL_HANDOVER[h].to == role && SL_HANDOVER[h].kind == kind) return h;
    return -1;
}

int64_t sl_scaled(int64_t side, double scale)
{
    return llround((double)side * scale);
}

sl_role sl_role_in_order(int i)
{
    for (int r = 0; r < SL_ROLE_COUNT; r++) {
        for (int f = SL_ROLE_COUNT; f < sl_role_count(); f++)
            if (last_of(SL_HANDOVER[sl_filter_gives((sl_role)f)].kind)->to == (sl_role)r && !i--)
                return (sl_role)f;
        if (!i--) return (sl_role)r;
    }
    return SL_ROLE_COUNT;
}

int sl_role_place(int role)
{
    int i = 0;
    while (i < sl_role_count() && (int)sl_role_in_order(i) != role) i++;
    return i;
}

const char *sl_role_name(sl_role role)
{
    if ((unsigned)role < SL_ROLE_COUNT) return ROLE_NAMES[role];
    return sl_role_is_filter(role) ? pipeline.names[(int)role - SL_ROLE_COUNT] : "?";
}

int sl_role_by_name(const char *name)
{
    for (int r = 0; r < sl_role_count(); r++)
        if (!strcmp(sl_role_name((sl_role)r), name)) return r;
    return -1;
}

bool sl_role_on_host(sl_role role)
{
    return (unsigned)role < SL_ROLE_COUNT && ROLE_PLACES[role] == HOST;
}

bool sl_role_has_teams(sl_role role)
{
    return (unsigned)role < SL_ROLE_COUNT && ROLE_PLACES[role] == TEAM;
}

bool sl_role_adapts(sl_role role)
{
    return role == SL_ROLE_DENOISE;
}

bool sl_team_fits(int heads, bool guided, int size)
{
    int share = guided && size % 2 == 0 ? size / 2 : size;
    return size > 0 && heads % share == 0;
}

sl_code sl_team_check(int heads, bool guided, int size, sl_err *err)
{
    char fit[96] = "";
    if (sl_team_fits(heads, guided, size)) return SL_OK;
    for (int n = 1; n <= SL_RANKS; n++)
        if (sl_team_fits(heads, guided, n))
            snprintf(fit + strlen(fit), sizeof fit - strlen(fit), "%s%d", n > 1 ? ", " : "", n);
    return sl_fail(err, SL_ARG, "denoise: a team of %d for %d heads%s, want one of %s", size, heads,
                   guided ? " with guidance" : "", fit);
}

int sl_handover_by_name(const char *name)
{
    for (int h = 0; h < sl_handover_count(); h++)
        if (!strcmp(SL_HANDOVER[h].name, name)) return h;
    return -1;
}

int sl_handover_by_file(const char *file)
{
    for (int h = 0; h < sl_handover_count(); h++)
        if (!strcmp(SL_HANDOVER[h].file, file)) return h;
    return -1;
}

int sl_chunks_to(sl_role role)
{
    for (int h = 0; h < sl_handover_count(); h++)
        if (SL_HANDOVER[h].to == role && SL_HANDOVER[h].how == SL_CHUNKS) return h;
    return -1;
}

sl_role sl_crew_of(sl_role role)
{
    const int h = sl_chunks_to(role);
    return h < 0 ? role : sl_crew_of(SL_HANDOVER[h].from);
}

bool sl_role_follows(sl_role role, sl_role from)
{
    for (int h = 0; h < sl_handover_count() && role != from; h++)
        if (SL_HANDOVER[h].to == role && sl_role_follows(SL_HANDOVER[h].from, from)) return true;
    return role == from;
}

int sl_default_slots(sl_role role)
{
    return sl_chunks_to(role) < 0 ? WHOLE_SLOTS : CHUNK_SLOTS;
}

int sl_handover_slots(sl_handover h)
{
    return SL_HANDOVER[h].how == SL_WHOLE ? WHOLE_SLOTS : CHUNK_SLOTS;
}

bool sl_handover_applies(sl_handover h, const sl_model *model, const sl_job *job)
{
    return SL_HANDOVER[h].kind != SL_HANDOVER_IMAGE || sl_takes_picture(&model->family, job);
}

/* ---- what a job takes ---- */

static bool is_taken(sl_when when, const char *given)
{
    return when == SL_ALWAYS || (when == SL_PER_JOB && (!given || *given));
}

bool sl_takes_picture(const sl_family *f, const sl_job *job)
{
    return is_taken(f->picture, job ? job->image : NULL);
}

bool sl_takes_last_picture(const sl_family *f, const sl_job *job)
{
    return f->last_picture != SL_NEVER && (!job || *job->last_image);
}

int sl_condition_frames(const sl_family *f, int frames)
{
    return f->time_per_token ? 1 : frames;
}

bool sl_job_guided(const sl_job *job)
{
    return job->guidance > 1;
}

int sl_image_tokens(const sl_model *model, const sl_job *job)
{
    if (!model->family.clip) return 0;
    return sl_clip_tokens(&model->clip) * (sl_takes_last_picture(&model->family, job) ? 2 : 1);
}

/* ---- grid ---- */

int sl_edge(const sl_family *f)
{
    return f->spatial * f->patch;
}

sl_grid sl_grid_of(const sl_family *f, int width, int height, int frames)
{
    sl_grid g = {.frames = frames,
                 .height = height,
                 .width = width,
                 .latent_frames = (frames - 1) / f->temporal + 1,
                 .latent_height = height / f->spatial,
                 .latent_width = width / f->spatial};
    g.token_height = g.latent_height / f->patch;
    g.token_width = g.latent_width / f->patch;
    g.tokens = g.latent_frames * g.token_height * g.token_width;
    g.chunks = (g.latent_frames + SL_CHUNK_LATENTS - 1) / SL_CHUNK_LATENTS;
    g.chunk_frames = SL_CHUNK_LATENTS * f->temporal;
    return g;
}

sl_grid sl_job_grid(const sl_model *model, const sl_job *job)
{
    return sl_grid_of(&model->family, job->width, job->height, job->frames);
}

sl_grid sl_grid_of_area(const sl_family *f, int64_t pixels, int frames)
{
    sl_grid g = sl_grid_of(f, 0, 0, frames);
    g.height = 1, g.width = pixels;
    g.latent_height = 1, g.latent_width = pixels / (f->spatial * f->spatial);
    g.token_height = 1, g.token_width = g.latent_width / (f->patch * f->patch);
    g.tokens = g.latent_frames * g.token_width;
    return g;
}

/* ---- tensors ---- */

static void add(sl_tensor_spec *out, int *n, const char *name, sl_dtype dtype, int rank, int64_t a,
                int64_t b, int64_t c, int64_t d)
{
    out[(*n)++] = (sl_tensor_spec){name, dtype, rank, {a, b, c, d}};
}

int sl_handover_tensors(sl_tensor_spec out[SL_HANDOVER_TENSORS], sl_handover h,
                        const sl_model *model, const sl_grid *g, const sl_job *job)
{
    const sl_dit_config *c = &model->dit[0];
    const double scale = SL_HANDOVER[h].scale, down = g->height == 1 ? 1 : scale; /* of an area */
    int n = 0;
    switch (SL_HANDOVER[h].kind) {
    case SL_HANDOVER_TEXT:
        add(out, &n, "cond", SL_F32, 2, SL_TEXT_TOKENS, c->text_dim, 0, 0);
        if (!job || sl_job_guided(job))
            add(out, &n, "uncond", SL_F32, 2, SL_TEXT_TOKENS, c->text_dim, 0, 0);
        break;
    case SL_HANDOVER_IMAGE:
        if (model->family.time_per_token)
            add(out, &n, "condition", SL_F32, 4, c->out_channels, 1, g->latent_height,
                g->latent_width);
        else
            add(out, &n, "condition", SL_F32, 4, c->in_channels - c->out_channels, g->latent_frames,
                g->latent_height, g->latent_width);
        if (model->family.clip)
            add(out, &n, "clip", SL_F32, 2, sl_image_tokens(model, job), c->image_dim, 0, 0);
        break;
    case SL_HANDOVER_LATENTS:
        add(out, &n, "latents", SL_F32, 4, c->out_channels, g->latent_frames, g->latent_height,
            g->latent_width);
        break;
    case SL_HANDOVER_FRAMES:
        add(out, &n, "rgb", SL_U8, 4, g->chunk_frames, sl_scaled(g->height, down),
            sl_scaled(g->width, scale * scale / down), 3);
        break;
    case SL_HANDOVER_COUNT: break;
    }
    return n;
}

size_t sl_handover_bytes(sl_handover h, const sl_model *model, const sl_grid *grid)
{
    sl_tensor_spec t[SL_HANDOVER_TENSORS];
    size_t bytes = 0;
    for (int i = 0, n = sl_handover_tensors(t, h, model, grid, NULL); i < n; i++) {
        sl_tensor view = sl_view(NULL, t[i].dtype, t[i].rank, t[i].shape);
        bytes += (sl_bytes(&view) + SLOT_ALIGN - 1) / SLOT_ALIGN * SLOT_ALIGN;
    }
    return bytes;
}
