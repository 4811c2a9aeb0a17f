/* front.c - the main thread of a server that takes requests and makes no videos. */
#include "stages/serve/front.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "common/log.h"
#include "stages/serve/offer.h"

sl_code sl_front_run(sl_server *s, void (*reload)(void *self), void (*began)(void *self),
                     void *self, sl_err *err)
{
    sigset_t set;
    sl_code rc = SL_OK;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    const int signals = signalfd(-1, &set, SFD_CLOEXEC);
    if (signals < 0) return sl_fail_errno(err, errno, "signalfd");
    atomic_store(&s->ready, true);
    sl_offer_tell(s);
    began(self);
    while (!rc && !atomic_load(&s->draining)) {
        struct pollfd ends[] = {{signals, POLLIN, 0}, {s->wake, POLLIN, 0}};
        struct signalfd_siginfo info;
        uint64_t woken;
        if (poll(ends, 2, -1) < 0 && errno != EINTR) rc = sl_fail_errno(err, errno, "poll");
        /* what other servers do is told to streams where it is heard */
        if (ends[1].revents && read(s->wake, &woken, sizeof woken) < 0 && errno != EAGAIN)
            rc = sl_fail_errno(err, errno, "eventfd");
        if (!ends[0].revents || read(signals, &info, sizeof info) != sizeof info) continue;
        if (info.ssi_signo == SIGHUP) reload(self);
        else {
            sl_log(SL_LOG_INFO, "draining: the jobs stay in the queue");
            atomic_store(&s->draining, true);
            sl_offer_tell(s);
        }
    }
    atomic_store(&s->ready, false);
    close(signals);
    return rc;
}
