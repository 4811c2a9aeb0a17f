/* own.h - what the files of stages/own share: one's own stage, opened up. */
#ifndef SL_OWN_H
#define SL_OWN_H

#include "stages/own/stage.h"
#include "stages/seat/chunk.h"
#include "stages/seat/kept.h"

/* A hand-over that the job hands to this stage whole, once it is looked at. */
typedef struct {
    bool open;
    sl_lease *lease;     /* NULL: of a file */
    bool on_device;      /* tensors lie in the lease's slot of device memory */
    cudaStream_t stream; /* on which a device reads them */
    int count;
    sl_tensor_spec spec[SL_HANDOVER_TENSORS];
    sl_tensor t[SL_HANDOVER_TENSORS];
    float *copy[SL_HANDOVER_TENSORS]; /* t's memory, where it is neither in a slot nor a device's */
} sl_own_input;

struct sl_stage {
    sl_seat *seat;
    const char *model; /* a word of main's */
    int64_t opened_ns;

    /* the job that runs */
    bool running;
    bool given_up; /* another attempt has come: nobody waits for an answer */
    sl_msg_job msg;
    sl_job job;
    sl_grid grid;
    int64_t computing_ns; /* since then the caller computes */
    sl_own_input in[SL_HANDOVERS_MOST];
    float *noise; /* NULL: not asked for */

    /* what it hands on */
    sl_tickets out;
    bool given[SL_HANDOVERS_MOST];
    sl_lease *slot; /* reserved, of this hand-over */
    sl_handover slot_of;
    sl_chunk sending; /* lease NULL: none is open */
    int sent;         /* chunks so far */
    int64_t sent_ns;  /* when the last one was */

    /* chunks that it is handed */
    sl_chunk awaited;
    int came;
    sl_kept kept; /* those that came, for a dump */

    bool has_next; /* a JOB that came while another was under way */
    sl_msg_job next;
};

/* A span of computing ends now; and computing begins again. */
void sl_own_pause(sl_stage *s);
void sl_own_go_on(sl_stage *s);
/* The hand-over that this job's role hands on chunk by chunk; -1: none. */
int sl_own_chunks_from(const sl_stage *s);
/* The tensors of h, of this stage's, into a slot of the receiver unless one was sealed, and into
 * the job's folder, unless `written` says that they lie there. Errors: as sl_stage_give. */
sl_code sl_own_give(sl_stage *s, sl_handover h, const sl_tensor tensors[], bool written,
                    sl_err *err);
/* Views end, slots are free, copies too. */
void sl_own_drop_inputs(sl_stage *s);

#endif
