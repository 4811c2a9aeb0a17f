/* t_lease.h - what the lease tests share: the kind of pool under test, second processes,
 * small hand-overs, what is left behind.
 *
 * A program sets K in its kind_open(), which runs in the test and in every second
 * process. Those are the program run again with `--child NAME LETTER` (a device's context
 * does not survive a fork): a handle comes on their stdin, they answer on stdout. */
#ifndef T_LEASE_H
#define T_LEASE_H

#include "tests/t.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "common/lease_block.h"
#include "common/lease_device.h"
#include "common/trace.h"

extern char **environ;

/* The kind under test. put and get move a tensor's bytes from and to host memory; get has
 * them when it returns. */
static struct {
    sl_pool_kind pool;
    cudaStream_t stream;
    void (*put)(const sl_tensor *t, const void *bytes);
    void (*get)(const sl_tensor *t, void *bytes);
    int hand_overs, kills;
    int64_t kill_within_ns; /* a child that is busy is killed so soon after its start */
    const char *shm;        /* names in /dev/shm that count as left behind hold this */
    bool outlives_owner;    /* a slot may still be written when its owner has died or closed */
    bool tell_times;        /* print after each test how long it took */
} K;

static inline void put_host(const sl_tensor *t, const void *bytes)
{
    memcpy(t->data, bytes, sl_bytes(t));
}
static inline void get_host(const sl_tensor *t, void *bytes)
{
    memcpy(bytes, t->data, sl_bytes(t));
}

static void kind_open(void); /* the program's own */

/* ---- pools and small hand-overs ---- */

static inline void expect_counts(const sl_pool *p, int free, int writing, int ready, int reading,
                                 int quarantined)
{
    sl_pool_counts c;
    sl_pool_count(p, &c);
    if (c.free != free || c.writing != writing || c.ready != ready || c.reading != reading ||
        c.quarantined != quarantined)
        fail_msg("free %d writing %d ready %d reading %d quarantined %d, want %d %d %d %d %d",
                 c.free, c.writing, c.ready, c.reading, c.quarantined, free, writing, ready,
                 reading, quarantined);
}

static inline sl_pool *new_pool_of(sl_pool_kind kind, int slots, size_t bytes)
{
    sl_err err = {0};
    sl_pool *p;
    T_OK(sl_pool_create(&p, "test", kind, slots, bytes, &err));
    return p;
}
static inline sl_pool *new_pool(int slots, size_t bytes)
{
    return new_pool_of(K.pool, slots, bytes);
}
static inline sl_pool *open_again(const sl_pool *owner)
{
    sl_err err = {0};
    sl_pool_handle h;
    sl_pool *p;
    sl_pool_export(owner, &h);
    T_OK(sl_pool_open(&p, &h, &err));
    return p;
}

/* One hand-over of a small tensor holding `value`. */
static inline sl_ticket send_one(sl_pool *p, float value)
{
    sl_err err = {0};
    sl_lease *l;
    sl_tensor t;
    sl_ticket ticket;
    float x[1000];
    for (int i = 0; i < 1000; i++) x[i] = value;
    /* not 0: the slot may rest, or its last reader's work be under way */
    T_OK(sl_lease_reserve(&l, p, 2000, &err));
    T_OK(sl_lease_add(l, "x", SL_F32, 1, (int64_t[]){1000}, &t, &err));
    K.put(&t, x);
    T_OK(sl_lease_seal(l, K.stream, &ticket, &err));
    sl_lease_drop(&l, K.stream);
    assert_null(l);
    return ticket;
}
static inline float receive_one(sl_pool *p, const sl_ticket *ticket)
{
    sl_err err = {0};
    sl_lease *l;
    sl_tensor t;
    float x[1000];
    T_OK(sl_lease_open(&l, p, ticket, K.stream, &err));
    T_OK(sl_lease_tensor(l, "x", &t, &err));
    K.get(&t, x);
    sl_lease_drop(&l, K.stream);
    for (int i = 0; i < 1000; i++)
        if (!(x[i] == x[0]))
            fail_msg("element %d is %g, element 0 %g: want them alike", i, (double)x[i],
                     (double)x[0]);
    return x[0];
}

/* A second mapping of the block, as another process of the user could have. */
static inline sl_block *scribbler(const sl_pool *p)
{
    sl_pool_handle h;
    sl_pool_export(p, &h);
    sl_block *b = mmap(NULL, sizeof *b, PROT_READ | PROT_WRITE, MAP_SHARED, h.fd, 0);
    assert_ptr_not_equal(b, MAP_FAILED);
    return b;
}

static inline uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 31) * 0x7fb5d329728ea185u;
    x = (x ^ x >> 27) * 0x81dadef4bc2dd44du;
    return x ^ x >> 33;
}

/* ---- second processes ---- */

static inline void put(int fd, const void *data, size_t bytes)
{
    if (write(fd, data, bytes) != (ssize_t)bytes) _exit(90);
}
static inline bool get(int fd, void *data, size_t bytes)
{
    char *at = data;
    while (bytes) {
        ssize_t n = read(fd, at, bytes);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        at += n;
        bytes -= (size_t)n;
    }
    return true;
}

typedef struct {
    pid_t pid;
    int to, from;
} child;
/* What a second process does with the pool of this handle; `how` is the letter it was
 * started with. */
typedef void child_body(const sl_pool_handle *h, char how);
typedef struct {
    const char *name;
    child_body *body;
} child_entry;

static const char *self_path;
static bool in_child;

static inline child start(const char *name, char how, const sl_pool *pool)
{
    sl_pool_handle h = {0};
    int to[2], from[2];
    child c;
    posix_spawn_file_actions_t fa;
    char letter[2] = {how, 0};
    char *argv[] = {(char *)self_path, "--child", (char *)name, letter, NULL};
    if (pool) sl_pool_export(pool, &h);
    assert_int_equal(pipe2(to, O_CLOEXEC), 0);
    assert_int_equal(pipe2(from, O_CLOEXEC), 0);
    posix_spawn_file_actions_init(&fa);
    posix_spawn_file_actions_adddup2(&fa, to[0], 0);
    posix_spawn_file_actions_adddup2(&fa, from[1], 1);
    fflush(NULL);
    assert_int_equal(posix_spawn(&c.pid, self_path, &fa, NULL, argv, environ), 0);
    posix_spawn_file_actions_destroy(&fa);
    close(to[0]);
    close(from[1]);
    c.to = to[1];
    c.from = from[0];
    put(c.to, &h, sizeof h);
    return c;
}
static inline int finish(child *c, int sig)
{
    int status;
    if (sig) kill(c->pid, sig);
    close(c->to);
    close(c->from);
    assert_int_equal(waitpid(c->pid, &status, 0), c->pid);
    return status;
}
static inline void hear(const child *c, char want)
{
    char got = 0;
    if (!get(c->from, &got, 1) || got != want) fail_msg("the child says %d, want '%c'", got, want);
}
static inline void tell(const child *c, char what)
{
    put(c->to, &what, 1);
}

/* What a second process does when a call fails: say why and end with a status that no
 * signal has. */
#define C_OK(call)                                                                                 \
    do {                                                                                           \
        if ((call) != SL_OK) {                                                                     \
            fprintf(stderr, "child: %s: %s\n", #call, err.msg);                                    \
            _exit(91);                                                                             \
        }                                                                                          \
    } while (0)

/* The first thing that main does: in a second process it does not return. */
static inline void begin(int argc, char **argv, const child_entry *entries, int count)
{
    static char path[4096];
    sl_pool_handle h;
    if (!realpath("/proc/self/exe", path)) _exit(89);
    self_path = path;
    if (argc < 4 || strcmp(argv[1], "--child")) return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    in_child = true;
    kind_open();
    for (int i = 0; i < count; i++)
        if (!strcmp(entries[i].name, argv[2])) {
            if (!get(0, &h, sizeof h)) _exit(92);
            entries[i].body(&h, argv[3][0]);
            _exit(0);
        }
    fprintf(stderr, "child: nobody is called %s\n", argv[2]);
    _exit(88);
}

/* ---- nothing is left ---- */

typedef struct {
    int fds, shm, maps;
} left;

static inline int entries_of(const char *dir, const char *part)
{
    DIR *d = opendir(dir);
    int n = 0;
    if (!d) return 0;
    for (struct dirent *e; (e = readdir(d));) n += e->d_name[0] != '.' && strstr(e->d_name, part);
    closedir(d);
    return n;
}
static inline left count_left(void)
{
    left l = {.fds = entries_of("/proc/self/fd", ""),
              .shm = entries_of("/dev/shm", K.shm ? K.shm : "sluice")};
    char line[4096];
    FILE *f = fopen("/proc/self/maps", "r");
    while (f && fgets(line, sizeof line, f)) l.maps += strstr(line, "memfd:sluice") != NULL;
    if (f) fclose(f);
    return l;
}

static left before;
static int64_t begun_ns;
static inline int count_before(void **state)
{
    (void)state;
    before = count_left();
    begun_ns = sl_now_ns();
    return 0;
}
static inline int count_after(void **state)
{
    (void)state;
    left after = count_left();
    if (K.tell_times) printf("    %.2f s\n", (double)(sl_now_ns() - begun_ns) / 1e9);
    if (after.fds == before.fds && after.shm <= before.shm && after.maps <= before.maps) return 0;
    fprintf(stderr,
            "left behind: descriptors %d (%d before), /dev/shm %d (%d before), mappings %d (%d "
            "before)\n",
            after.fds, before.fds, after.shm, before.shm, after.maps, before.maps);
    return -1;
}
#define T(name) cmocka_unit_test_setup_teardown(name, count_before, count_after)

#endif
