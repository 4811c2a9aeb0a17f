/* pinned.c - pinned host memory, kept from job to job. */
#include "stages/seat/pinned.h"

void *sl_pinned_alloc(sl_pinned *m, const sl_plugin *plugin, size_t bytes)
{
    int place = -1;
    for (int i = 0; i < SL_PINNED_BLOCKS; i++)
        if (m->block[i].at && !m->block[i].used && m->block[i].bytes == bytes) {
            m->block[i].used = true;
            return m->block[i].at;
        }
    sl_pinned_close(m, plugin);
    for (int i = 0; i < SL_PINNED_BLOCKS && place < 0; i++)
        if (!m->block[i].at) place = i;
    void *p = plugin->host_alloc(bytes + 1);
    if (p && place >= 0) {
        m->block[place].at = p;
        m->block[place].bytes = bytes;
        m->block[place].used = true;
    }
    return p;
}

void sl_pinned_free(sl_pinned *m, const sl_plugin *plugin, void *p)
{
    if (!p) return;
    for (int i = 0; i < SL_PINNED_BLOCKS; i++)
        if (m->block[i].at == p) {
            m->block[i].used = false;
            return;
        }
    plugin->host_free(p);
}

void sl_pinned_close(sl_pinned *m, const sl_plugin *plugin)
{
    for (int i = 0; i < SL_PINNED_BLOCKS; i++)
        if (m->block[i].at && !m->block[i].used) {
            plugin->host_free(m->block[i].at);
            m->block[i].at = NULL;
        }
}
