/* A program of somebody else's, in C: one answer of the echo engine. */

#include <inflight.h>

#include <stdio.h>
#include <string.h>

int main(void)
{
    ifl_engine_options options = IFL_ENGINE_OPTIONS_INIT;
    ifl_request request = IFL_REQUEST_INIT;
    ifl_engine *engine = NULL;
    const ifl_event *event;
    char text[64] = "";
    int ended = 0;

    options.device = "echo";
    request.prompt = "consumed";
    if (ifl_version() != IFL_VERSION || ifl_engine_create(&options, &engine, NULL) != IFL_OK ||
        ifl_engine_enqueue(engine, &request, NULL, NULL) != IFL_OK)
        return 1;
    while (!ended) {
        ifl_events *events = NULL;
        uint64_t i;

        if (ifl_engine_poll(engine, -1, &events, NULL) != IFL_OK)
            return 1;
        for (i = 0; (event = ifl_events_get(events, i)) != NULL; i++) {
            strncat(text, event->text, sizeof text - strlen(text) - 1);
            ended = event->kind == IFL_EVENT_FINISHED;
        }
        ifl_events_free(events);
    }
    ifl_engine_destroy(engine);
    puts(text);
    return strcmp(text, "consumed") != 0;
}
