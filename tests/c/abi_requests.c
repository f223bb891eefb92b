/* Requests and what comes of them. */

#include "check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The token that the echo device ends with. */
static uint32_t eos_token(ifl_engine *engine)
{
    ifl_buffer *buffer = NULL;
    const uint32_t *tokens;
    uint64_t num = 0;
    uint32_t token;

    CHECK(ifl_engine_eos_tokens(engine, &buffer, NULL) == IFL_OK);
    tokens = ifl_buffer_tokens(buffer, &num);
    CHECK(tokens != NULL && num >= 1 && ifl_buffer_text(buffer, NULL) == NULL);
    token = tokens[0];
    ifl_buffer_free(buffer);
    return token;
}

static void check_text(const answer *got, const char *text)
{
    if (got->text_len != strlen(text) || memcmp(got->text, text, strlen(text)) != 0) {
        fprintf(stderr, "expected \"%s\", got \"%s\"\n", text, got->text);
        CHECK(!"the text is as expected");
    }
}

TEST(a_prompt_is_streamed_back)
{
    static const char prompt[] = "The quick brown fox jumps over the lazy dog.";
    const uint64_t len = sizeof prompt - 1;
    ifl_engine *engine = make_echo("echo:2000", NULL);
    ifl_request request = IFL_REQUEST_INIT;
    answer *got;
    uint64_t i;

    request.prompt = prompt;
    got = ask(engine, &request);
    check_text(got, prompt);
    CHECK(got->reason == IFL_FINISH_STOP && got->num_pieces > 1);
    CHECK(got->num_prompt_tokens == len && got->num_output_tokens == len + 1 && got->num_tokens == len + 1);
    for (i = 0; i < len; i++)
        CHECK(got->tokens[i] == (uint32_t)prompt[i]);
    CHECK(got->tokens[len] == eos_token(engine));
    CHECK(got->total_us >= 2000 * len);
    free(got);

    /* The same by length: what stands behind it does not count. */
    request.prompt_len = 9;
    got = ask(engine, &request);
    check_text(got, "The quick");
    free(got);
    ifl_engine_destroy(engine);
}

/* A template may take 50 ms, which the first times under valgrind may be too little: tries until it is enough. */
static answer *ask_with_template(ifl_engine *engine, ifl_request *request)
{
    int64_t start = now_ms();
    ifl_status status;
    answer *got = make_answers(1);

    do {
        status = ifl_engine_enqueue(engine, request, NULL, NULL);
        CHECK(status == IFL_OK || status == IFL_TEMPLATE_FAILED);
        CHECK(now_ms() - start < 30000);
    } while (status);
    wait_for(engine, got, 1);
    return got;
}

TEST(tokens_and_user_prompts_work)
{
    static const uint32_t tokens[] = {'a', 'b', 'c'};
    ifl_engine *engine = make_echo("echo", NULL);
    ifl_request request = IFL_REQUEST_INIT;
    ifl_model_info info;
    ifl_error *error = NULL;
    answer *got;

    request.prompt_kind = IFL_PROMPT_TOKENS;
    request.prompt_tokens = tokens;
    request.num_prompt_tokens = 3;
    got = ask(engine, &request);
    check_text(got, "abc");
    CHECK(got->num_prompt_tokens == 3);
    free(got);

    info.struct_size = sizeof info;
    CHECK(ifl_engine_model_info(engine, &info, NULL) == IFL_OK);
    request = (ifl_request)IFL_REQUEST_INIT;
    request.prompt_kind = IFL_PROMPT_USER;
    request.prompt = "say \"hi\"\n";
    if (info.has_chat_template) {
        got = ask_with_template(engine, &request);
        CHECK(strstr(got->text, "hi") != NULL);
        free(got);
    } else {
        CHECK(ifl_engine_enqueue(engine, &request, NULL, &error) != IFL_OK && error != NULL);
        ifl_error_free(error);
    }
    ifl_engine_destroy(engine);
}

TEST(text_is_whole_code_points)
{
    /* Two, three and four bytes a code point; take_events checks every piece. */
    static const char prompt[] = "gr\xc3\xbc\xc3\x9f dich \xe6\x97\xa5\xe6\x9c\xac \xf0\x9f\x99\x82!";
    static const uint32_t broken[] = {'a', 0xff, 'b', 0xe6, 0x97};
    ifl_engine *engine = make_echo("echo:1000", NULL);
    ifl_request request = IFL_REQUEST_INIT;
    answer *got;

    request.prompt = prompt;
    got = ask(engine, &request);
    check_text(got, prompt);
    CHECK(got->num_tokens == sizeof prompt);
    free(got);

    request.prompt_kind = IFL_PROMPT_TOKENS;
    request.prompt_tokens = broken;
    request.num_prompt_tokens = 5;
    got = ask(engine, &request);
    check_text(got, "a\xef\xbf\xbd"
                    "b\xef\xbf\xbd");
    free(got);
    ifl_engine_destroy(engine);
}

TEST(stop_strings_and_tokens_end_the_output)
{
    const char *stops[] = {"never", "o t!"};
    const uint64_t lens[] = {IFL_NUL_TERMINATED, 3};
    const uint32_t stop_token = 'w';
    ifl_engine *engine = make_echo("echo", NULL);
    ifl_request request = IFL_REQUEST_INIT;
    answer *got;

    request.prompt = "one two three";
    request.stop_strings = stops;
    request.num_stop_strings = 2;
    got = ask(engine, &request);
    check_text(got, "one two three");
    free(got);
    request.stop_string_lens = lens;
    got = ask(engine, &request);
    check_text(got, "one tw");
    CHECK(got->reason == IFL_FINISH_STOP);
    free(got);

    request.num_stop_strings = 0;
    request.stop_tokens = &stop_token;
    request.num_stop_tokens = 1;
    got = ask(engine, &request);
    check_text(got, "one t");
    CHECK(got->reason == IFL_FINISH_STOP && got->tokens[got->num_tokens - 1] == 'w');
    free(got);
    ifl_engine_destroy(engine);
}

TEST(token_limits_end_the_output)
{
    ifl_engine *engine = make_echo("echo", NULL);
    ifl_request request = IFL_REQUEST_INIT;
    answer *got;

    request.prompt = "abcdefgh";
    request.max_tokens = 3;
    got = ask(engine, &request);
    check_text(got, "abc");
    CHECK(got->reason == IFL_FINISH_LENGTH && got->num_output_tokens == 3);
    free(got);

    request.max_tokens = 20;
    request.ignore_eos = 1;
    got = ask(engine, &request);
    CHECK(got->reason == IFL_FINISH_LENGTH && got->num_output_tokens == 20);
    free(got);

    request.ignore_eos = 0;
    request.min_tokens = 12;
    got = ask(engine, &request);
    CHECK(got->reason == IFL_FINISH_STOP && got->num_output_tokens >= 12);
    free(got);
    ifl_engine_destroy(engine);
}

TEST(log_probabilities_are_flat_arrays)
{
    ifl_engine *engine = make_echo("echo", NULL);
    ifl_request request = IFL_REQUEST_INIT;
    uint64_t num_seen = 0, i, k;
    int ended = 0;

    request.prompt = "xyz";
    request.num_logprobs = 0;
    CHECK(ifl_engine_enqueue(engine, &request, NULL, NULL) == IFL_OK);
    while (!ended) {
        ifl_events *events = NULL;
        const ifl_event *event;

        CHECK(ifl_engine_poll(engine, -1, &events, NULL) == IFL_OK);
        for (i = 0; (event = ifl_events_get(events, i)) != NULL; i++) {
            CHECK(event->num_tokens == 0 || event->num_logprobs == 1);
            for (k = 0; k < event->num_tokens; k++, num_seen++) {
                CHECK(event->logprob_tokens[k] == event->token_ids[k]);
                CHECK(event->logprobs[k] <= 0.0f);
            }
            ended = event->kind == IFL_EVENT_FINISHED;
        }
        ifl_events_free(events);
    }
    CHECK(num_seen == 4);
    ifl_engine_destroy(engine);
}

/* A prompt of so many letters. */
static char *long_prompt(size_t len)
{
    char *prompt = malloc(len + 1);

    CHECK(prompt != NULL);
    memset(prompt, 'l', len);
    prompt[len] = 0;
    return prompt;
}

TEST(a_request_can_be_cancelled)
{
    ifl_engine *engine = make_echo("echo:2000", NULL);
    ifl_request request = IFL_REQUEST_INIT;
    char *prompt = long_prompt(2000);
    answer *got = make_answers(1);
    uint64_t id = 0;
    int64_t start;

    request.prompt = prompt;
    CHECK(ifl_engine_enqueue(engine, &request, &id, NULL) == IFL_OK && id != 0);
    while (got->num_tokens == 0) {
        ifl_events *events = NULL;

        CHECK(ifl_engine_poll(engine, -1, &events, NULL) == IFL_OK);
        take_events(events, got, 1);
    }
    start = now_ms();
    CHECK(ifl_engine_cancel(engine, id, NULL) == IFL_OK);
    CHECK(ifl_engine_cancel(engine, id, NULL) == IFL_OK);
    wait_for(engine, got, 1);
    CHECK(got->reason == IFL_FINISH_CANCELLED && got->num_output_tokens < 2000 && now_ms() - start < 1000);
    CHECK(ifl_engine_cancel(engine, id, NULL) == IFL_OK);
    CHECK(ifl_engine_cancel(engine, 123456, NULL) == IFL_OK);
    free(prompt);
    free(got);
    ifl_engine_destroy(engine);
}

TEST(a_deadline_ends_a_request)
{
    ifl_engine *engine = make_echo("echo:2000", NULL);
    ifl_request request = IFL_REQUEST_INIT;
    char *prompt = long_prompt(2000);
    answer *got;

    request.prompt = prompt;
    request.timeout_ms = 60;
    got = ask(engine, &request);
    CHECK(got->reason == IFL_FINISH_DEADLINE && got->num_output_tokens < 2000);
    CHECK(got->total_us >= 60000 && got->total_us < 2000000);
    free(prompt);
    free(got);
    ifl_engine_destroy(engine);
}

TEST(a_full_queue_is_busy)
{
    ifl_engine_options options = IFL_ENGINE_OPTIONS_INIT;
    ifl_request request = IFL_REQUEST_INIT;
    char *prompt = long_prompt(2000);
    answer *got = make_answers(2);
    ifl_engine *engine;
    ifl_error *error = NULL;
    uint64_t ids[2] = {0, 0};

    options.max_queued_requests = 2;
    engine = make_echo("echo:2000", &options);
    request.prompt = prompt;
    for (request.user_data = 0; request.user_data < 2; request.user_data++)
        CHECK(ifl_engine_enqueue(engine, &request, &ids[request.user_data], NULL) == IFL_OK);
    CHECK_FAILS(IFL_BUSY, ifl_engine_enqueue(engine, &request, NULL, &error));
    CHECK(ifl_engine_cancel(engine, ids[0], NULL) == IFL_OK);
    CHECK(ifl_engine_cancel(engine, ids[1], NULL) == IFL_OK);
    wait_for(engine, got, 2);
    CHECK(got[0].reason == IFL_FINISH_CANCELLED && got[1].reason == IFL_FINISH_CANCELLED && ids[0] != ids[1]);
    free(got);
    request.prompt = "free again";
    got = ask(engine, &request);
    CHECK(got->reason == IFL_FINISH_STOP);
    free(prompt);
    free(got);
    ifl_engine_destroy(engine);
}

TEST(an_unread_request_is_paused_alone)
{
    ifl_engine_options options = IFL_ENGINE_OPTIONS_INIT;
    ifl_request request = IFL_REQUEST_INIT;
    char *prompt = long_prompt(500);
    answer *got = make_answers(2);
    ifl_queue *unread = NULL;
    ifl_engine *engine;
    ifl_stats stats;
    int64_t start = now_ms();

    options.max_unread_tokens = 16;
    engine = make_echo("echo", &options);
    CHECK(ifl_queue_create(engine, &unread, NULL) == IFL_OK);
    request.prompt = prompt;
    request.user_data = 1;
    request.queue = unread;
    CHECK(ifl_engine_enqueue(engine, &request, NULL, NULL) == IFL_OK);
    do {
        stats = stats_of(engine);
        CHECK(now_ms() - start < 30000);
    } while (stats.num_paused == 0);

    /* Another request runs to its end meanwhile. */
    request.user_data = 0;
    request.queue = NULL;
    CHECK(ifl_engine_enqueue(engine, &request, NULL, NULL) == IFL_OK);
    wait_for(engine, got, 1);
    check_text(&got[0], prompt);
    CHECK(!got[1].is_finished);

    while (!got[1].is_finished) {
        ifl_events *events = NULL;

        CHECK(ifl_queue_poll(unread, -1, &events, NULL) == IFL_OK);
        take_events(events, got, 2);
    }
    check_text(&got[1], prompt);
    free(prompt);
    free(got);
    ifl_queue_destroy(unread);
    ifl_engine_destroy(engine);
}

TEST(many_requests_run_together)
{
    enum { NUM = 100 };
    ifl_engine *engine = make_echo("echo", NULL);
    ifl_request request = IFL_REQUEST_INIT;
    answer *got = make_answers(NUM);
    char prompt[64];

    for (request.user_data = 0; request.user_data < NUM; request.user_data++) {
        snprintf(prompt, sizeof prompt, "request number %d", (int)request.user_data);
        request.prompt = prompt;
        CHECK(ifl_engine_enqueue(engine, &request, NULL, NULL) == IFL_OK);
    }
    memset(prompt, 'x', sizeof prompt); /* The prompts were copied. */
    wait_for(engine, got, NUM);
    for (request.user_data = 0; request.user_data < NUM; request.user_data++) {
        snprintf(prompt, sizeof prompt, "request number %d", (int)request.user_data);
        check_text(&got[request.user_data], prompt);
        CHECK(got[request.user_data].reason == IFL_FINISH_STOP);
    }
    free(got);
    ifl_engine_destroy(engine);
}

TEST(text_functions_give_buffers)
{
    ifl_engine *engine = make_echo("echo", NULL);
    ifl_buffer *tokens = NULL, *text = NULL;
    ifl_error *error = NULL;
    const uint32_t *ids;
    uint64_t num = 0, len = 0;

    CHECK(ifl_tokenize(engine, "h\xc3\xaf", IFL_NUL_TERMINATED, 0, &tokens, NULL) == IFL_OK);
    ids = ifl_buffer_tokens(tokens, &num);
    CHECK(num == 3 && ids[0] == 'h' && ids[1] == 0xc3 && ids[2] == 0xaf);
    CHECK(ifl_detokenize(engine, ids, num, IFL_TEXT_SKIP_SPECIAL, &text, NULL) == IFL_OK);
    CHECK(strcmp(ifl_buffer_text(text, &len), "h\xc3\xaf") == 0 && len == 3);
    CHECK(ifl_buffer_tokens(text, &num) == NULL && num == 0);
    ifl_buffer_free(tokens);
    ifl_buffer_free(text);

    CHECK(ifl_tokenize(engine, NULL, 0, 0, &tokens, NULL) == IFL_OK);
    CHECK(ifl_buffer_tokens(tokens, &num) != NULL && num == 0);
    ifl_buffer_free(tokens);
    CHECK(ifl_detokenize(engine, NULL, 0, 0, &text, NULL) == IFL_OK);
    CHECK(strcmp(ifl_buffer_text(text, &len), "") == 0 && len == 0);
    ifl_buffer_free(text);

    text = NULL;
    if (ifl_apply_chat_template(engine, "[{\"role\":\"user\",\"content\":\"hi\"}]", IFL_NUL_TERMINATED,
                                IFL_TEXT_GENERATION_PROMPT, &text, &error)) {
        CHECK(text == NULL && ifl_status_category(ifl_error_code(error)) == IFL_CATEGORY_ARGUMENT);
        ifl_error_free(error);
    } else {
        CHECK(strstr(ifl_buffer_text(text, NULL), "hi") != NULL);
        ifl_buffer_free(text);
    }
    ifl_engine_destroy(engine);
}

TEST(plan_info_and_stats_agree)
{
    ifl_engine_options options = IFL_ENGINE_OPTIONS_INIT;
    ifl_request request = IFL_REQUEST_INIT;
    ifl_buffer *device = NULL;
    ifl_engine *engine;
    ifl_memory_plan plan;
    ifl_model_info info;
    ifl_stats stats;
    int64_t start = now_ms();

    options.device = "echo";
    options.max_model_len = 1024;
    plan.struct_size = sizeof plan;
    info.struct_size = sizeof info;
    stats.struct_size = sizeof stats;
    CHECK(ifl_engine_plan(&options, &plan, NULL) == IFL_OK);
    CHECK(plan.fits == 1 && plan.max_model_len == 1024 && plan.num_kv_blocks > 0 && plan.kv_block_size > 0);
    CHECK(plan.total_bytes == plan.weights_bytes + plan.kv_cache_bytes + plan.workspace_bytes);
    engine = make_echo("echo", &options);
    CHECK(ifl_engine_model_info(engine, &info, NULL) == IFL_OK);
    CHECK(info.struct_size == sizeof info && info.vocab_size > 256 && info.max_model_len == 1024);
    CHECK(ifl_engine_device(engine, &device, NULL) == IFL_OK);
    CHECK(strcmp(ifl_buffer_text(device, NULL), "echo") == 0);
    ifl_buffer_free(device);

    request.prompt = "stats";
    free(ask(engine, &request));
    do {
        CHECK(ifl_engine_stats(engine, &stats, NULL) == IFL_OK && now_ms() - start < 30000);
    } while (stats.num_kv_blocks_used > 0 || stats.num_running > 0);
    CHECK(stats.num_accepted == 1 && stats.num_finished == 1 && stats.num_steps > 0);
    CHECK(stats.num_prompt_tokens == 5 && stats.num_output_tokens >= 6 && stats.num_preemptions == 0);
    CHECK(stats.num_kv_blocks_free == plan.num_kv_blocks && stats.kv_cache_bytes == plan.kv_cache_bytes);
    CHECK(stats.num_waiting == 0 && stats.num_paused == 0 && stats.reserved == 0);
    ifl_engine_destroy(engine);
}
