/* routes.h - the table of routes, and what their handlers have in common. openapi.c prints it. */
#ifndef SL_ROUTES_H
#define SL_ROUTES_H

#include "stages/serve/http.h"

/* The i-th route; NULL past the last. */
const sl_route *sl_route_at(int i);
sl_route_find_fn sl_route_find;

/* The job of a->id, as far as its asker may see it. false: it is answered, 404. The caller frees
 * *out. */
bool sl_ask_job(sl_ask *a, sl_journal_job *out);
/* An error of the journal's, answered. */
void sl_answer_journal(sl_ask *a, sl_code code, const sl_err *err);

/* The video object (README, "Serving"): what the journal knows, and where the job is now. */
json_t *sl_video_json(sl_server *s, const sl_journal_job *job);
/* What the journal keeps as a job's request: everything of the object that never changes. lora: as
 * it was asked for; NULL: none. malloc'd; NULL: no memory. */
char *sl_video_request(const sl_server *s, const sl_request *r, const char *lora);
/* Such a request was for a job that keeps its hand-overs. */
bool sl_video_has_dump(const sl_journal_job *job);

/* Handlers: videos.c */
void sl_on_create(sl_ask *a);
void sl_on_get(sl_ask *a);
void sl_on_list(sl_ask *a);
void sl_on_remove(sl_ask *a);
void sl_on_cancel(sl_ask *a);
/* content.c */
void sl_on_content(sl_ask *a);
void sl_on_preview(sl_ask *a);
void sl_on_report(sl_ask *a);
void sl_on_trace(sl_ask *a);
void sl_on_logs(sl_ask *a);
void sl_on_dump_list(sl_ask *a);
void sl_on_dump(sl_ask *a);
void sl_on_dump_block(sl_ask *a);
/* stream.c */
void sl_on_events(sl_ask *a);
/* info.c */
void sl_on_models(sl_ask *a);
void sl_on_model(sl_ask *a);
void sl_on_defaults(sl_ask *a);
void sl_on_health(sl_ask *a);
void sl_on_ready(sl_ask *a);
void sl_on_metrics(sl_ask *a);
void sl_on_page(sl_ask *a);
/* fleet.c */
void sl_on_fleet(sl_ask *a);
/* Gauges of each server of a shared queue. */
void sl_fleet_measure(sl_server *s);
/* openapi.c */
void sl_on_openapi(sl_ask *a);

#endif
