#include <inflight.h>
#include <stdio.h>

int main(int argc, char **argv)
{
    ifl_engine_options options = IFL_ENGINE_OPTIONS_INIT;
    ifl_request request = IFL_REQUEST_INIT;
    ifl_engine *engine = NULL;
    const ifl_event *event;
    ifl_status status;
    int ended = 0;

    if (argc != 3) {
        fprintf(stderr, "usage: %s MODEL PROMPT\n", argv[0]);
        return 2;
    }
    options.model = argv[1];
    request.prompt_kind = IFL_PROMPT_USER;
    request.prompt = argv[2];
    status = ifl_engine_create(&options, &engine, NULL);
    if (!status)
        status = ifl_engine_enqueue(engine, &request, NULL, NULL);
    while (!status && !ended) {
        ifl_events *events = NULL;
        status = ifl_engine_poll(engine, -1, &events, NULL);
        for (uint64_t i = 0; (event = ifl_events_get(events, i)) != NULL; i++) {
            fputs(event->text, stdout);
            fflush(stdout);
            ended = event->kind == IFL_EVENT_FINISHED;
            status = event->status;
        }
        ifl_events_free(events);
    }
    ifl_engine_destroy(engine);
    if (status)
        fprintf(stderr, "failed with ifl_status %d\n", (int)status);
    return status != 0;
}
