/* stage.c - what every stage program shares: start-up, the control socket in its own
 * thread, hand-overs, the spool writer. */
#include "stages/stage.h"

#include <errno.h>
#include <getopt.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include <zmq.h>

#include "common/log.h"
#include "stages/sizes/sizes.h"
#include "stages/turn.h"

#define MAX_POOLS 4
#define SPOOL_WAIT_S 120 /* longest wait for the disk before a job is given up */
#define CANCELS 64       /* remembered cancels of jobs that have not begun */
#define INBOX 256        /* messages set aside while the main thread looks for something else */

typedef struct {
    uint64_t job;
    uint32_t attempt;
} job_attempt;

/* One file to write, its tensors copied. */
typedef struct spool_item {
    struct spool_item *next;
    char path[SL_PATH], name[SL_STR16];
    uint64_t job;
    uint32_t attempt;
    bool announce;
    int n;
    char names[8][64];
    sl_tensor tensors[8];
    void *memory;
} spool_item;

struct sl_stage {
    char role[SL_STR16], device[SL_STR64];
    sl_conf conf;
    sl_model model;
    const sl_plugin *plugin; /* NULL: a CPU's stage, or not asked for yet */

    void *zmq, *in, *out; /* main thread's ends of the inproc pairs */
    pthread_t io_thread, spool_thread;
    bool io_runs, spool_runs;
    char endpoint[SL_PATH];
    atomic_bool quit; /* close() asks the io thread to end */

    pthread_mutex_t lock; /* below: shared with the io thread */
    job_attempt current, cancelled[CANCELS];
    int cancel_count;
    sl_pool *receive[MAX_POOLS];
    /* of each of their slots, the newest ticket that this process was told of */
    sl_ticket told[MAX_POOLS][SL_POOL_MAX_SLOTS];
    int receive_count;
    volatile int cancel_flag; /* set under the lock, read without: atomically */
    atomic_bool draining;
    sl_turn turn; /* has its own lock */

    struct { /* pools of receivers, main thread only */
        int handover;
        sl_pool_handle handle;
        sl_pool *pool;
    } send[MAX_POOLS];
    int send_count;

    sl_msg inbox[INBOX]; /* main thread only */
    int inbox_count;

    pthread_mutex_t spool_lock;
    pthread_cond_t spool_wake, spool_idle;
    spool_item *spool_head, **spool_tail;
    int spool_pending;
    bool spool_quit;
};

static volatile sig_atomic_t term_seen;

static void on_term(int sig)
{
    (void)sig;
    term_seen = 1;
}

/* ---- the io thread: owns the DEALER, passes messages on, beats, hears cancels at once ---- */

/* A ticket of ours exists somewhere: its slot is not lost when its sender dies. */
static void note_ticket(sl_stage *st, const sl_ticket *t)
{
    for (int i = 0; i < st->receive_count; i++)
        if (t->pool == sl_pool_id(st->receive[i]) && t->slot < SL_POOL_MAX_SLOTS)
            st->told[i][t->slot] = *t;
}

/* What the main thread need not be asked for. true: the message is dealt with.
 * reply->type: it is to be sent. */
static bool io_deal(sl_stage *st, const sl_msg *m, sl_msg *reply)
{
    bool done = true;
    reply->type = (sl_msg_type)0;
    pthread_mutex_lock(&st->lock);
    switch (m->type) {
    case SL_MSG_JOB:
        for (uint32_t i = 0; i < m->job.in.count; i++)
            if (m->job.in.at[i].way == SL_BY_SLOT) note_ticket(st, &m->job.in.at[i].ticket);
        done = false;
        break;
    case SL_MSG_CHUNK:
        note_ticket(st, &m->chunk.slot);
        done = false;
        break;
    case SL_MSG_KEEP: note_ticket(st, &m->keep.ticket); break;
    case SL_MSG_CANCEL:
        if (st->current.job == m->cancel.job && st->current.attempt == m->cancel.attempt)
            __atomic_store_n(&st->cancel_flag, 1, __ATOMIC_RELAXED);
        else {
            st->cancelled[st->cancel_count % CANCELS] =
                (job_attempt){m->cancel.job, m->cancel.attempt};
            st->cancel_count++;
        }
        sl_turn_wake(&st->turn);
        done = false; /* the main thread sees it too: mux waits between messages */
        break;
    case SL_MSG_GRANT:
    case SL_MSG_REVOKE: sl_turn_hear(&st->turn, m, reply); break;
    case SL_MSG_REAP:
        for (int i = 0; i < st->receive_count; i++)
            sl_pool_reap_unsent(st->receive[i], m->reap.pid, st->told[i], SL_POOL_MAX_SLOTS);
        break;
    case SL_MSG_DISCARD:
        for (int i = 0; i < st->receive_count; i++)
            sl_pool_discard(st->receive[i], &m->discard.ticket);
        break;
    case SL_MSG_DRAIN: atomic_store(&st->draining, true); break;
    default: done = false;
    }
    pthread_mutex_unlock(&st->lock);
    return done;
}

static void *io_main(void *arg)
{
    sl_stage *st = arg;
    void *dealer = zmq_socket(st->zmq, ZMQ_DEALER), *to_main = zmq_socket(st->zmq, ZMQ_PAIR),
         *from_all = zmq_socket(st->zmq, ZMQ_PULL);
    int linger = 200, none = 0, beat_ms = st->conf.supervise.heartbeat_ms;
    int64_t next_beat = sl_now_ns() + (int64_t)beat_ms * 1000000; /* HELLO goes first */
    uint64_t beats = 0;
    sl_err err = {0};
    sl_msg m, reply;

    zmq_setsockopt(dealer, ZMQ_LINGER, &linger, sizeof linger);
    zmq_setsockopt(dealer, ZMQ_SNDHWM, &none, sizeof none);
    zmq_setsockopt(to_main, ZMQ_SNDHWM, &none, sizeof none);
    if (zmq_connect(dealer, st->endpoint) || zmq_connect(to_main, "inproc://to-main") ||
        zmq_bind(from_all, "inproc://from-all"))
        sl_log(SL_LOG_ERROR, "cannot connect to %s: %s", st->endpoint, zmq_strerror(errno));
    m = (sl_msg){.type = SL_MSG_HEARTBEAT};
    /* from_all is bound: the main thread may connect */
    sl_wire_send(to_main, NULL, 0, &m, NULL);

    while (true) {
        int64_t now = sl_now_ns(), wait_ms = (next_beat - now) / 1000000;
        zmq_pollitem_t items[] = {{dealer, 0, ZMQ_POLLIN, 0}, {from_all, 0, ZMQ_POLLIN, 0}};
        if (wait_ms <= 0) {
            m = (sl_msg){.type = SL_MSG_HEARTBEAT, .heartbeat = {.beats = ++beats}};
            pthread_mutex_lock(&st->lock);
            m.heartbeat.job = st->current.job;
            pthread_mutex_unlock(&st->lock);
            sl_wire_send(dealer, NULL, 0, &m, NULL);
            next_beat = now + (int64_t)beat_ms * 1000000;
            wait_ms = beat_ms;
        }
        if (zmq_poll(items, 2, wait_ms) < 0 && errno != EINTR) break;
        while (sl_wire_recv(from_all, NULL, NULL, &m, &err) == SL_OK)
            sl_wire_send(dealer, NULL, 0, &m, NULL);
        while (true) {
            sl_code rc = sl_wire_recv(dealer, NULL, NULL, &m, &err);
            if (rc == SL_FORMAT) sl_log_err("control socket", &err);
            else if (rc) break;
            else if (!io_deal(st, &m, &reply)) sl_wire_send(to_main, NULL, 0, &m, NULL);
            else if (reply.type) sl_wire_send(dealer, NULL, 0, &reply, NULL);
        }
        if (atomic_load(&st->quit)) break;
    }
    zmq_close(dealer);
    zmq_close(to_main);
    zmq_close(from_all);
    return NULL;
}

/* A PUSH end for the calling thread, to the io thread. */
static void *open_out(sl_stage *st)
{
    void *s = zmq_socket(st->zmq, ZMQ_PUSH);
    int none = 0, linger = 0;
    zmq_setsockopt(s, ZMQ_SNDHWM, &none, sizeof none);
    zmq_setsockopt(s, ZMQ_LINGER, &linger, sizeof linger);
    zmq_connect(s, "inproc://from-all");
    return s;
}

/* ---- the spool thread ---- */

static void *spool_main(void *arg)
{
    sl_stage *st = arg;
    void *out = open_out(st);
    pthread_mutex_lock(&st->spool_lock);
    while (true) {
        while (!st->spool_head && !st->spool_quit)
            pthread_cond_wait(&st->spool_wake, &st->spool_lock);
        spool_item *it = st->spool_head;
        if (!it) break;
        st->spool_head = it->next;
        if (!st->spool_head) st->spool_tail = &st->spool_head;
        pthread_mutex_unlock(&st->spool_lock);

        const char *names[8];
        sl_err err = {0};
        int64_t t0 = sl_now_ns();
        for (int i = 0; i < it->n; i++) names[i] = it->names[i];
        sl_code rc = sl_st_save(it->path, it->n, names, it->tensors, &err);
        if (rc && !it->announce) sl_log(SL_LOG_WARN, "spool: %s", err.msg);
        /* whether a failure matters, and is told, is the dispatcher's decision */
        if (it->announce) {
            sl_msg m = {.type = SL_MSG_SPOOLED,
                        .spooled = {.job = it->job, .attempt = it->attempt, .code = (int32_t)rc}};
            snprintf(m.spooled.name, sizeof m.spooled.name, "%s", it->name);
            snprintf(m.spooled.message, sizeof m.spooled.message, "%s", err.msg);
            sl_wire_send(out, NULL, 0, &m, NULL);
        }
        sl_log(SL_LOG_DEBUG, "spooled %s in %.1f ms", it->path, (double)(sl_now_ns() - t0) * 1e-6);
        free(it->memory);
        free(it);
        pthread_mutex_lock(&st->spool_lock);
        if (--st->spool_pending == 0) pthread_cond_broadcast(&st->spool_idle);
    }
    pthread_mutex_unlock(&st->spool_lock);
    zmq_close(out);
    return NULL;
}

void sl_stage_spool(sl_stage *st, const sl_msg_job *job, const char *name, bool announce, int n,
                    const char *const names[], const sl_tensor tensors[])
{
    spool_item *it = calloc(1, sizeof *it);
    size_t total = 0, at = 0;
    char file[64];
    sl_err err = {0};
    for (int i = 0; i < n; i++) total += (sl_bytes(&tensors[i]) + 63) / 64 * 64;
    if (it) it->memory = malloc(total + 1);
    snprintf(file, sizeof file, "%s.safetensors", name);
    if (!it || !it->memory || n > 8 || sl_path_join(it->path, job->dir, file, &err)) {
        sl_msg m = {.type = SL_MSG_SPOOLED,
                    .spooled = {.job = job->job, .attempt = job->attempt, .code = SL_NOMEM}};
        snprintf(m.spooled.name, sizeof m.spooled.name, "%.15s", name);
        snprintf(m.spooled.message, sizeof m.spooled.message, "%.15s: %.480s", name,
                 err.code ? err.msg : "no memory for a copy");
        if (announce) sl_stage_send(st, &m);
        else sl_log(SL_LOG_WARN, "spool: %s", m.spooled.message);
        if (it) free(it->memory);
        free(it);
        return;
    }
    it->job = job->job, it->attempt = job->attempt, it->announce = announce, it->n = n;
    snprintf(it->name, sizeof it->name, "%.15s", name);
    for (int i = 0; i < n; i++) {
        snprintf(it->names[i], sizeof it->names[i], "%s", names[i]);
        it->tensors[i] = tensors[i];
        it->tensors[i].data = (char *)it->memory + at;
        memcpy(it->tensors[i].data, tensors[i].data, sl_bytes(&tensors[i]));
        at += (sl_bytes(&tensors[i]) + 63) / 64 * 64;
    }
    pthread_mutex_lock(&st->spool_lock);
    *st->spool_tail = it;
    st->spool_tail = &it->next;
    st->spool_pending++;
    pthread_cond_signal(&st->spool_wake);
    pthread_mutex_unlock(&st->spool_lock);
}

sl_code sl_stage_spool_flush(sl_stage *st, sl_err *err)
{
    struct timespec by;
    int rc = 0;
    clock_gettime(CLOCK_REALTIME, &by);
    by.tv_sec += SPOOL_WAIT_S;
    pthread_mutex_lock(&st->spool_lock);
    while (st->spool_pending && rc != ETIMEDOUT)
        rc = pthread_cond_timedwait(&st->spool_idle, &st->spool_lock, &by);
    int left = st->spool_pending;
    pthread_mutex_unlock(&st->spool_lock);
    return left ? sl_fail(err, SL_TIMEOUT, "spool: %d files are not on disk after %d s", left,
                          SPOOL_WAIT_S)
                : SL_OK;
}

/* ---- opening ---- */

static sl_code parse_args(sl_stage *st, int argc, char **argv, const char **conf,
                          const char **model, sl_err *err)
{
    static const struct option OPTIONS[] = {{"connect", 1, 0, 'c'},
                                            {"conf", 1, 0, 'f'},
                                            {"model", 1, 0, 'm'},
                                            {"device", 1, 0, 'd'},
                                            {0}};
    int o;
    opterr = 0;
    optind = 1;
    snprintf(st->device, sizeof st->device, "cpu");
    while ((o = getopt_long(argc, argv, "", OPTIONS, NULL)) >= 0) {
        if (o == 'c') snprintf(st->endpoint, sizeof st->endpoint, "%s", optarg);
        else if (o == 'f') *conf = optarg;
        else if (o == 'm') *model = optarg;
        else if (o == 'd') snprintf(st->device, sizeof st->device, "%s", optarg);
        else
            return sl_fail(
                err, SL_ARG,
                "%s: unknown or incomplete option %s, want --connect --conf --model --device",
                argv[0], argv[optind - 1]);
    }
    if (!*st->endpoint || !*model)
        return sl_fail(err, SL_ARG,
                       "%s: want --connect ENDPOINT and --model DIR (the dispatcher starts stages)",
                       argv[0]);
    return SL_OK;
}

static sl_code start_threads(sl_stage *st, sl_err *err)
{
    int none = 0, linger = 0;
    sl_msg first;
    if (!(st->zmq = zmq_ctx_new()) || !(st->in = zmq_socket(st->zmq, ZMQ_PAIR)))
        return sl_fail(err, SL_SYS, "zmq: %s", zmq_strerror(errno));
    zmq_setsockopt(st->in, ZMQ_RCVHWM, &none, sizeof none);
    zmq_setsockopt(st->in, ZMQ_LINGER, &linger, sizeof linger);
    if (zmq_bind(st->in, "inproc://to-main"))
        return sl_fail(err, SL_SYS, "zmq: %s", zmq_strerror(errno));
    if (pthread_create(&st->io_thread, NULL, io_main, st))
        return sl_fail(err, SL_SYS, "io thread: %s", strerror(errno));
    st->io_runs = true;
    zmq_pollitem_t item = {st->in, 0, ZMQ_POLLIN, 0};
    int ready;
    do ready = zmq_poll(&item, 1, 5000);
    /* SIGTERM: the dispatcher may end before we have begun */
    while (ready < 0 && errno == EINTR);
    if (ready < 1 || sl_wire_recv(st->in, NULL, NULL, &first, err))
        return sl_fail(err, SL_SYS, "io thread did not start");
    st->out = open_out(st);
    if (pthread_create(&st->spool_thread, NULL, spool_main, st))
        return sl_fail(err, SL_SYS, "spool thread: %s", strerror(errno));
    st->spool_runs = true;
    return SL_OK;
}

sl_code sl_stage_open(sl_stage **out, const char *role, int argc, char **argv, sl_err *err)
{
    const char *conf = NULL, *model = NULL;
    struct sigaction drain = {.sa_handler = on_term}, ignore = {.sa_handler = SIG_IGN};
    sl_msg hello = {.type = SL_MSG_HELLO};
    sl_stage *st = calloc(1, sizeof *st);
    sl_code rc;
    *out = st;
    if (!st) return sl_fail(err, SL_NOMEM, "stage %s: no memory", role);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    sigaction(SIGTERM, &drain, NULL);
    sigaction(SIGINT, &ignore, NULL); /* Ctrl-C is the client's business */
    sigaction(SIGPIPE, &ignore, NULL);
    snprintf(st->role, sizeof st->role, "%s", role);
    pthread_mutex_init(&st->lock, NULL);
    pthread_mutex_init(&st->spool_lock, NULL);
    pthread_cond_init(&st->spool_wake, NULL);
    pthread_cond_init(&st->spool_idle, NULL);
    st->spool_tail = &st->spool_head;
    sl_log_open(role, SL_LOG_INFO);
    sl_conf_defaults(&st->conf);
    if ((rc = parse_args(st, argc, argv, &conf, &model, err))) return rc;
    if (conf && (rc = sl_conf_read_file(&st->conf, conf, err))) return rc;
    sl_log_open(role, st->conf.run.log);
    if ((rc = sl_model_open(&st->model, model, err))) return rc;
    sl_turn_open(&st->turn, &st->conf, st->device);
    if (strcmp(st->device, "cpu"))
        /* a process keeps the kernels that it uses; before there are threads */
        setenv("CUDA_MODULE_LOADING", "LAZY", 0);
    if ((rc = start_threads(st, err))) return rc;
    if (term_seen) return sl_fail(err, SL_GONE, "drained before it began");
    snprintf(hello.hello.role, sizeof hello.hello.role, "%s", role);
    snprintf(hello.hello.device, sizeof hello.hello.device, "%s", st->device);
    hello.hello.pid = getpid();
    sl_stage_send(st, &hello);
    return SL_OK;
}

void sl_stage_close(sl_stage **stp)
{
    sl_stage *st = *stp;
    if (!st) return;
    *stp = NULL;
    if (st->spool_runs) {
        pthread_mutex_lock(&st->spool_lock);
        st->spool_quit = true;
        pthread_cond_signal(&st->spool_wake);
        pthread_mutex_unlock(&st->spool_lock);
        pthread_join(st->spool_thread, NULL);
    }
    if (st->io_runs) {
        sl_msg last = {.type = SL_MSG_HEARTBEAT};
        atomic_store(&st->quit, true);
        /* wakes the io thread, behind all that was said */
        if (st->out) sl_wire_send(st->out, NULL, 0, &last, NULL);
        pthread_join(st->io_thread, NULL);
    }
    for (int i = 0; i < st->send_count; i++) sl_pool_close(&st->send[i].pool);
    for (int i = 0; i < st->receive_count; i++) sl_pool_close(&st->receive[i]);
    if (st->out) zmq_close(st->out);
    if (st->in) zmq_close(st->in);
    if (st->zmq) zmq_ctx_term(st->zmq);
    sl_turn_close(&st->turn);
    pthread_mutex_destroy(&st->lock);
    pthread_mutex_destroy(&st->spool_lock);
    pthread_cond_destroy(&st->spool_wake);
    pthread_cond_destroy(&st->spool_idle);
    free(st);
}

int sl_stage_exit(sl_stage **st, const sl_err *err)
{
    bool bad = err->code != SL_OK && err->code != SL_GONE;
    bool told = bad && *st && (*st)->out;
    if (bad && !told) sl_log_err("stopping", err);
    if (told) { /* the dispatcher tells the user why, once, instead of an exit status */
        sl_msg m = {.type = SL_MSG_FAILED, .failed = {.code = (int32_t)err->code}};
        snprintf(m.failed.message, sizeof m.failed.message, "%s", err->msg);
        sl_stage_send(*st, &m);
    }
    sl_stage_close(st);
    return bad;
}

const sl_conf *sl_stage_conf(const sl_stage *st)
{
    return &st->conf;
}
const sl_model *sl_stage_model(const sl_stage *st)
{
    return &st->model;
}
const char *sl_stage_device(const sl_stage *st)
{
    return st->device;
}
sl_turn *sl_stage_turn(sl_stage *st)
{
    return &st->turn;
}
uint64_t sl_stage_job(const sl_stage *st)
{
    return st->current.job;
}

sl_code sl_stage_ops(sl_stage *st, const sl_ops **out, sl_err *err)
{
    sl_code rc;
    *out = &sl_ops_cpu;
    if (!strcmp(st->device, "cpu")) return SL_OK;
    if (strncmp(st->device, "cuda:", 5))
        return sl_fail(err, SL_ARG, "%s: device %s is unknown, want cpu or cuda:N", st->role,
                       st->device);
    const sl_plugin *p = sl_plugin_cuda(err);
    if (!p) return sl_context(err, err->code, "%s: device %s", st->role, st->device);
    int n = atoi(st->device + 5), there = p->devices();
    if (n >= there)
        return sl_fail(err, SL_ARG, "%s: device %s: found %d CUDA devices, want at least %d",
                       st->role, st->device, there, n + 1);
    if ((rc = p->use(n, err))) return sl_context(err, rc, "%s: device %s", st->role, st->device);
    sl_pool_use_cuda(p->slabs);
    st->plugin = p;
    *out = p->ops;
    return SL_OK;
}

const sl_plugin *sl_stage_plugin(const sl_stage *st)
{
    return st->plugin;
}

void *sl_stage_host_alloc(const sl_stage *st, size_t bytes)
{
    return st->plugin ? st->plugin->host_alloc(bytes + 1) : malloc(bytes + 1);
}

void sl_stage_host_free(const sl_stage *st, void *p)
{
    if (!st->plugin) free(p);
    else if (p) st->plugin->host_free(p);
}

/* ---- pools ---- */

sl_code sl_stage_receive_pool(sl_stage *st, sl_handover h, int slots, size_t slot_bytes,
                              sl_pool **out, sl_err *err)
{
    sl_msg m = {.type = SL_MSG_POOL};
    sl_pool *pool = NULL;
    sl_pool_kind kind = st->plugin ? sl_slot_kind(&st->conf, h) : SL_POOL_HOST;
    sl_code rc = sl_pool_create(&pool, SL_HANDOVER[h].name, kind, slots, slot_bytes, err);
    if (rc == SL_CUDA && kind == SL_POOL_CUDA) { /* a device or container without IPC */
        sl_log(SL_LOG_WARN, "%s goes through host memory: %s", SL_HANDOVER[h].name, err->msg);
        *err = (sl_err){0};
        rc = sl_pool_create(&pool, SL_HANDOVER[h].name, SL_POOL_HOST, slots, slot_bytes, err);
    }
    if (rc) return rc;
    pthread_mutex_lock(&st->lock);
    st->receive[st->receive_count++] = pool; /* at most one a hand-over, MAX_POOLS of them */
    pthread_mutex_unlock(&st->lock);
    snprintf(m.pool.handover, sizeof m.pool.handover, "%s", SL_HANDOVER[h].name);
    sl_pool_export(pool, &m.pool.handle);
    sl_stage_send(st, &m);
    *out = pool;
    return SL_OK;
}

/* Note a receiver's pool; a newer one of the same purpose replaces it. It is opened when
 * first needed. */
static void note_pool(sl_stage *st, const sl_msg_pool *m)
{
    int i = 0;
    int h = sl_handover_by_name(m->handover);
    while (i < st->send_count && st->send[i].handover != h) i++;
    if (i == MAX_POOLS) {
        sl_log(SL_LOG_WARN, "pool for %s ignored: at most %d receivers", m->handover, MAX_POOLS);
        return;
    }
    if (i == st->send_count) st->send_count++;
    sl_pool_close(&st->send[i].pool);
    st->send[i].handover = h;
    st->send[i].handle = m->handle;
}

/* Take everything that has come: pools are noted, the rest set aside for sl_stage_next. */
static void drain_inbox(sl_stage *st)
{
    sl_msg m;
    sl_err err = {0};
    while (st->inbox_count < INBOX && sl_wire_recv(st->in, NULL, NULL, &m, &err) == SL_OK) {
        if (m.type == SL_MSG_POOL) note_pool(st, &m.pool);
        else if (m.type == SL_MSG_JOB || m.type == SL_MSG_CHUNK || m.type == SL_MSG_CANCEL)
            st->inbox[st->inbox_count++] = m;
        else sl_log(SL_LOG_WARN, "%s is not for a stage: ignored", sl_wire_name(m.type));
    }
}

sl_code sl_stage_send_pool(sl_stage *st, sl_handover h, sl_pool **out, sl_err *err)
{
    drain_inbox(st);
    for (int i = 0; i < st->send_count; i++)
        if (st->send[i].handover == (int)h) {
            if (!st->send[i].pool) {
                sl_code rc = sl_pool_open(&st->send[i].pool, &st->send[i].handle, err);
                if (rc && rc != SL_GONE) sl_log_err("hand-over", err);
                if (rc)
                    return sl_fail(err, SL_GONE, "receiver of %s is gone, or cannot be reached",
                                   SL_HANDOVER[h].name);
            }
            *out = st->send[i].pool;
            return SL_OK;
        }
    return sl_fail(err, SL_GONE, "nobody receives %s yet", SL_HANDOVER[h].name);
}

sl_code sl_stage_hand_over(sl_stage *st, sl_ctx *ctx, sl_handover h, int n,
                           const char *const names[], const sl_tensor host[],
                           const sl_tensor device[], sl_ticket *ticket, sl_err *err)
{
    sl_pool *pool;
    sl_lease *lease = NULL;
    sl_code rc;
    if ((rc = sl_stage_send_pool(st, h, &pool, err))) return rc;
    if ((rc = sl_lease_reserve(&lease, pool, 1000, err))) return rc;
    bool on_device = sl_pool_kind_of(pool) == SL_POOL_CUDA;
    cudaStream_t stream = on_device ? ctx->stream : NULL;
    for (int i = 0; i < n && !rc; i++) {
        sl_tensor t;
        if ((rc = sl_lease_add(lease, names[i], host[i].dtype, host[i].rank, host[i].shape, &t,
                               err)))
            break;
        if (!on_device) memcpy(t.data, host[i].data, sl_bytes(&host[i]));
        else if (device[i].rank) sl_copy(ctx, &t, &device[i]);
        else sl_upload(ctx, &t, host[i].data);
    }
    if (!rc && on_device && !sl_ok(ctx)) rc = sl_ctx_error(ctx, err);
    if (!rc) rc = sl_lease_seal(lease, stream, ticket, err);
    sl_lease_drop(&lease, stream);
    return rc;
}

/* ---- messages ---- */

void sl_stage_send(sl_stage *st, const sl_msg *msg)
{
    sl_err err = {0};
    if (sl_wire_send(st->out, NULL, 0, msg, &err)) sl_log_err("control socket", &err);
}

void sl_stage_span(sl_stage *st, uint64_t job, sl_span_kind kind, int64_t t0_ns)
{
    sl_msg m = {.type = SL_MSG_SPAN,
                .span = {.job = job, .kind = kind, .t0_ns = t0_ns, .t1_ns = sl_now_ns()}};
    snprintf(m.span.stage, sizeof m.span.stage, "%s", st->role);
    sl_stage_send(st, &m);
}

void sl_stage_ready(sl_stage *st, int64_t load_t0_ns, size_t weight_bytes, size_t arena_bytes)
{
    sl_msg m = {.type = SL_MSG_READY};
    m.ready.load_s = (double)(sl_now_ns() - load_t0_ns) * 1e-9;
    m.ready.weight_bytes = weight_bytes;
    m.ready.arena_bytes = arena_bytes;
    sl_stage_span(st, 0, SL_SPAN_LOAD, load_t0_ns);
    sl_stage_send(st, &m);
}

sl_code sl_stage_next(sl_stage *st, bool busy, sl_msg *out, sl_err *err)
{
    while (true) {
        drain_inbox(st);
        if (st->inbox_count) {
            *out = st->inbox[0];
            memmove(st->inbox, st->inbox + 1, (size_t)--st->inbox_count * sizeof *st->inbox);
            return SL_OK;
        }
        if (!busy && (term_seen || atomic_load(&st->draining)))
            return sl_fail(err, SL_GONE, "drained");
        zmq_pollitem_t item = {st->in, 0, ZMQ_POLLIN, 0};
        zmq_poll(&item, 1, 100); /* wakes at once for a message; the tick is for SIGTERM */
    }
}

bool sl_stage_begin(sl_stage *st, uint64_t job, uint32_t attempt)
{
    bool was = false;
    sl_stage_turn_end(st, false); /* whatever became of the job before */
    pthread_mutex_lock(&st->lock);
    st->current = (job_attempt){job, attempt};
    for (int i = 0; job && i < CANCELS && i < st->cancel_count; i++)
        was |= st->cancelled[i].job == job && st->cancelled[i].attempt == attempt;
    __atomic_store_n(&st->cancel_flag, was, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&st->lock);
    return was;
}

bool sl_stage_cancelled(const sl_stage *st)
{
    return __atomic_load_n(&st->cancel_flag, __ATOMIC_RELAXED) != 0;
}

const volatile int *sl_stage_cancel_flag(const sl_stage *st)
{
    return &st->cancel_flag;
}

void sl_stage_progress(sl_stage *st, const sl_msg_job *job, int done, int total, double seconds)
{
    sl_msg m = {.type = SL_MSG_PROGRESS};
    m.progress = (sl_msg_progress){.job = job->job,
                                   .attempt = job->attempt,
                                   .done = (uint32_t)done,
                                   .total = (uint32_t)total,
                                   .seconds = seconds};
    snprintf(m.progress.stage, sizeof m.progress.stage, "%s", st->role);
    sl_stage_send(st, &m);
}

void sl_stage_done(sl_stage *st, const sl_msg_job *job, const sl_ticket *out, size_t arena_bytes,
                   uint64_t bytes)
{
    sl_msg m = {.type = SL_MSG_DONE};
    m.done = (sl_msg_done){.job = job->job,
                           .attempt = job->attempt,
                           .peak_bytes = sl_stage_peak_bytes(),
                           .arena_bytes = arena_bytes,
                           .bytes = bytes};
    for (int h = 0; out && h < SL_HANDOVER_COUNT; h++)
        if (SL_HANDOVER[h].from == (sl_role)sl_role_by_name(st->role))
            sl_tickets_add(&m.done.out, (uint32_t)h, out);
    sl_stage_begin(st, 0, 0);
    sl_stage_send(st, &m);
}

void sl_stage_failed(sl_stage *st, const sl_msg_job *job, const sl_err *err)
{
    sl_msg m = {.type = SL_MSG_FAILED};
    m.failed =
        (sl_msg_failed){.job = job->job, .attempt = job->attempt, .code = (int32_t)err->code};
    snprintf(m.failed.message, sizeof m.failed.message, "%s", err->msg);
    sl_err late = {0};
    /* the job's folder may be removed once this is said */
    if (sl_stage_spool_flush(st, &late)) sl_log_err("spool", &late);
    sl_stage_begin(st, 0, 0);
    sl_stage_send(st, &m);
}

size_t sl_stage_peak_bytes(void)
{
    FILE *f = fopen("/proc/self/status", "re");
    char line[256];
    unsigned long kb = 0;
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "VmHWM: %lu", &kb) == 1) break;
    if (f) fclose(f);
    return (size_t)kb << 10;
}

sl_code sl_stage_check_finite(const char *name, const sl_tensor *t, sl_err *err)
{
    int64_t at = sl_first_nonfinite(t->data, t->dtype, sl_count(t));
    char shape[96];
    if (at < 0) return SL_OK;
    return sl_fail(err, SL_NUMERIC, "%s %s has NaN or infinity at element %lld", name,
                   sl_shape_text(t, shape, sizeof shape), (long long)at);
}
