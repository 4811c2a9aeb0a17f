/* network.h - what the computing stages share around a network: open its weights, size the arena, name bad weights. */
#ifndef SL_NETWORK_H
#define SL_NETWORK_H

#include "graphs/weights.h"
#include "stages/stage.h"

/* Weights of component `name` of the stage's checkpoint (safetensors stem `stem`) through ctx. *out is the caller's to close. */
sl_code sl_network_open(sl_loader **out, const sl_stage *st, sl_ctx *ctx, const char *name, const char *stem, sl_err *err);

/* A result is not finite: say so, and if a weight of these loaders (NULL ends the list) is the reason, name that weight instead. SL_NUMERIC. */
sl_code sl_network_blame(sl_loader *const loaders[], const sl_err *found, sl_err *err);

/* Read DIR/job.json of a JOB message. The job is the caller's to free. */
sl_code sl_network_job(const sl_msg_job *msg, sl_job *job, sl_err *err);

/* Host copy of tensor `name`, float32, of exactly this shape, from an opened lease or, when it is NULL, from an opened file. *out is malloc'd. */
sl_code sl_network_input(float **out, const sl_lease *lease, const sl_st *file, const char *name, int rank, const int64_t *shape, sl_err *err);

/* Upload n host float32 values as t (F32 or act dtype). `scratch` is host memory of sl_bytes(t), used when t is not F32; may be NULL then. */
void sl_network_upload(sl_ctx *ctx, const sl_tensor *t, const float *values);

#endif
