/* A program of version 0.1.0. It is compiled with that version's header, beside it, and run with the library of
 * today. Not to be changed. */

#include <inflight.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char prompt[] = "an old program, a new library";

static void check(int holds, const char *what)
{
    if (!holds) {
        fprintf(stderr, "does not hold: %s\n", what);
        exit(1);
    }
}

#define CHECK(condition) check((condition), #condition)

/* Reads one request's events, from the engine's own queue where `queue` is NULL. Returns how it ended. */
static ifl_finish_reason read_answer(ifl_engine *engine, ifl_queue *queue, char *text, size_t *num_tokens)
{
    ifl_finish_reason reason = IFL_FINISH_NONE;
    size_t len = 0;

    *num_tokens = 0;
    while (reason == IFL_FINISH_NONE) {
        ifl_events *events = NULL;
        const ifl_event *event;
        uint64_t i;

        CHECK((queue ? ifl_queue_poll(queue, -1, &events, NULL) : ifl_engine_poll(engine, -1, &events, NULL)) == 0);
        CHECK(ifl_events_count(events) > 0);
        for (i = 0; (event = ifl_events_get(events, i)) != NULL; i++) {
            CHECK(event->struct_size >= sizeof *event && event->user_data == 77);
            memcpy(text + len, event->text, event->text_len + 1);
            len += event->text_len;
            *num_tokens += event->num_tokens;
            CHECK(event->num_logprobs == 0 || event->logprob_tokens[0] == event->token_ids[0]);
            reason = event->finish_reason;
            if (event->kind == IFL_EVENT_FINISHED) {
                CHECK(event->status == IFL_OK && event->message_len == 0 && event->total_us > 0);
                CHECK(event->num_prompt_tokens > 0 && event->num_output_tokens == *num_tokens);
            }
        }
        ifl_events_free(events);
    }
    return reason;
}

static void use_requests(ifl_engine *engine)
{
    static const char *const stops[] = {", a new"};
    static const uint32_t biased[] = {1};
    static const float biases[] = {0.5f};
    ifl_request request = IFL_REQUEST_INIT, same;
    ifl_queue *queue = NULL;
    uint64_t id = 0;
    size_t num_tokens;
    char text[256];
    int32_t fd = -1;

    memset(&same, 0xa5, sizeof same);
    CHECK(ifl_request_init(&same, sizeof same, NULL) == IFL_OK);
    CHECK(memcmp(&request, &same, sizeof same) == 0);
    request.prompt = prompt;
    request.user_data = 77;
    request.num_logprobs = 1;
    CHECK(ifl_engine_enqueue(engine, &request, &id, NULL) == IFL_OK && id != 0);
    CHECK(read_answer(engine, NULL, text, &num_tokens) == IFL_FINISH_STOP);
    CHECK(strcmp(text, prompt) == 0 && num_tokens == strlen(prompt) + 1);
    CHECK(ifl_engine_cancel(engine, id, NULL) == IFL_OK);

    CHECK(ifl_queue_create(engine, &queue, NULL) == IFL_OK);
    CHECK(ifl_queue_fd(queue, &fd, NULL) == IFL_OK && fd >= 0);
    request.queue = queue;
    request.stop_strings = stops;
    request.num_stop_strings = 1;
    request.logit_bias_tokens = biased;
    request.logit_bias_values = biases;
    request.num_logit_biases = 1;
    CHECK(ifl_engine_enqueue(engine, &request, NULL, NULL) == IFL_OK);
    CHECK(read_answer(engine, queue, text, &num_tokens) == IFL_FINISH_STOP);
    CHECK(strcmp(text, "an old program") == 0);
    ifl_queue_destroy(queue);
}

static void use_text(ifl_engine *engine)
{
    static const char chat[] = "[{\"role\": \"user\", \"content\": \"hi\"}]";
    ifl_buffer *tokens = NULL, *text = NULL;
    const uint32_t *ids;
    uint64_t num = 0;

    CHECK(ifl_tokenize(engine, "hi", IFL_NUL_TERMINATED, 0, &tokens, NULL) == IFL_OK);
    ids = ifl_buffer_tokens(tokens, &num);
    CHECK(num == 2 && ids[0] == 'h' && ids[1] == 'i');
    CHECK(ifl_detokenize(engine, ids, num, IFL_TEXT_SKIP_SPECIAL, &text, NULL) == IFL_OK);
    CHECK(strcmp(ifl_buffer_text(text, &num), "hi") == 0 && num == 2);
    ifl_buffer_free(tokens);
    ifl_buffer_free(text);
    CHECK(ifl_apply_chat_template(engine, chat, sizeof chat - 1, IFL_TEXT_GENERATION_PROMPT, &text, NULL) == IFL_OK);
    CHECK(strstr(ifl_buffer_text(text, NULL), "hi") != NULL);
    ifl_buffer_free(text);
    CHECK(ifl_engine_eos_tokens(engine, &tokens, NULL) == IFL_OK);
    CHECK(ifl_buffer_tokens(tokens, &num) != NULL && num > 0);
    ifl_buffer_free(tokens);
    CHECK(ifl_engine_device(engine, &text, NULL) == IFL_OK && strcmp(ifl_buffer_text(text, NULL), "echo") == 0);
    ifl_buffer_free(text);
}

static void use_errors(ifl_engine *engine)
{
    ifl_request request = IFL_REQUEST_INIT;
    ifl_error *error = NULL;
    uint64_t len = 0;

    request.prompt = prompt;
    request.top_p = 7.0f;
    CHECK(ifl_engine_enqueue(engine, &request, NULL, &error) == IFL_INVALID_ARGUMENT);
    CHECK(ifl_error_code(error) == 1 && strstr(ifl_error_message(error, &len), "top_p") != NULL && len > 0);
    CHECK(ifl_status_category(IFL_INVALID_ARGUMENT) == IFL_CATEGORY_ARGUMENT);
    CHECK(strcmp(ifl_status_name(IFL_BUSY), "busy") == 0 && ifl_status_is_retryable(IFL_BUSY) == 1);
    ifl_error_free(error);
}

int main(void)
{
    ifl_engine_options options = IFL_ENGINE_OPTIONS_INIT, same;
    ifl_memory_plan plan;
    ifl_stats stats;
    ifl_model_info info;
    ifl_engine *engine = NULL;

    CHECK(ifl_version() >= IFL_VERSION && ifl_has_feature("echo", IFL_NUL_TERMINATED) == 1);
    memset(&same, 0xa5, sizeof same);
    CHECK(ifl_engine_options_init(&same, sizeof same, NULL) == IFL_OK);
    CHECK(memcmp(&options, &same, sizeof same) == 0);
    options.device = "echo";
    plan.struct_size = sizeof plan;
    CHECK(ifl_engine_plan(&options, &plan, NULL) == IFL_OK && plan.fits == 1);
    CHECK(ifl_engine_create(&options, &engine, NULL) == IFL_OK);
    use_requests(engine);
    use_text(engine);
    use_errors(engine);
    stats.struct_size = sizeof stats;
    CHECK(ifl_engine_stats(engine, &stats, NULL) == IFL_OK && stats.num_accepted == 2 && stats.num_finished == 2);
    info.struct_size = sizeof info;
    CHECK(ifl_engine_model_info(engine, &info, NULL) == IFL_OK && info.has_chat_template == 1);
    CHECK(ifl_engine_close(engine, NULL) == IFL_OK);
    ifl_engine_destroy(engine);
    CHECK(ifl_engine_close(engine, NULL) == IFL_INVALID_HANDLE);
    return 0;
}
