/* dispatcher.h - the dispatcher of a pipeline, as the process that starts it sees it: started,
 * spoken to, started again when it dies, stopped.
 *
 *     sl_dispatcher_open     the run directory's settings, signals of its children
 *     sl_dispatcher_start    a process, a socket to it, HELLO
 *     sl_dispatcher_send, _recv
 *     sl_dispatcher_ended    d->pidfd is readable: collect it and its stages; start again?
 *     sl_dispatcher_stop     DRAIN, wait, collect
 *
 * The stages die with their dispatcher; those that outlive it by a moment become this process's
 * children, which is their subreaper from sl_dispatcher_open on, and are waited for. One thread;
 * one of it in a process. */
#ifndef SL_DISPATCHER_H
#define SL_DISPATCHER_H

#include <stdbool.h>
#include <sys/types.h>

#include "common/conf.h"
#include "common/path.h"
#include "common/wire.h"

typedef struct {
    const sl_conf *conf;
    const char *model_dir;
    char run_dir[SL_PATH]; /* "": not opened */
    char conf_path[SL_PATH], bin_dir[SL_PATH], endpoint[SL_PATH];
    int endpoint_fd; /* common/endpoint.h */
    bool keep;  /* the jobs' folders outlive this process: a dispatcher that is left alone removes
                  * nothing */
    bool hurry; /* nobody waits for what the stages still do: sl_dispatcher_stop kills soon */
    const char *attach;   /* name of the role whose stage has this process's terminal, and may take
                           * its time; NULL: none */
    char *const *wrapper; /* words before that stage's program, NULL-terminated; NULL: none */
    const char *wire;     /* file to which all its messages are appended; NULL: none */
    int nice;     /* added to the niceness of the processes: who answers people goes first */
    void *zmq;    /* context */
    void *socket; /* to poll; NULL: there is none */
    pid_t pid;
    int pidfd;  /* of the dispatcher, to poll; -1: none runs */
    int deaths; /* in a row; the owner sets 0 when something got further */
} sl_dispatcher;

/* Write the settings into run_dir, which is there and stays the caller's; *d is filled.
 * conf and model_dir outlive d. sl_dispatcher_stop, also after an error. Errors: SL_SYS. */
sl_code sl_dispatcher_open(sl_dispatcher *d, const sl_conf *conf, const char *model_dir,
                           const char *run_dir, bool keep, sl_err *err);
/* Start a process (none runs), connect, say HELLO. Jobs are to be submitted anew. Errors:
 * SL_SYS. */
sl_code sl_dispatcher_start(sl_dispatcher *d, sl_err *err);
sl_code sl_dispatcher_send(sl_dispatcher *d, const sl_msg *m, sl_err *err);
/* As sl_wire_recv: SL_BUSY none is there. */
sl_code sl_dispatcher_recv(sl_dispatcher *d, sl_msg *m, sl_err *err);
/* The process has ended: it and its stages are collected. SL_OK: it may be started again; SL_SYS:
 * it cannot run, or died too often in a row (*err says which). */
sl_code sl_dispatcher_ended(sl_dispatcher *d, sl_err *err);
/* SIGKILL. */
void sl_dispatcher_kill(sl_dispatcher *d);
/* Ask it to end and to end its stages, wait (8 s, in a hurry 1 s, then SIGKILL; for a stage behind
 * a wrapper as long as that takes), close. A zeroed one is fine. */
void sl_dispatcher_stop(sl_dispatcher *d);

#endif
