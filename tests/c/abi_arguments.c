/* What the ABI refuses, and how. */

#include "check.h"

#include <stdlib.h>
#include <string.h>

TEST(nulls_are_errors_everywhere)
{
    ifl_engine_options options = IFL_ENGINE_OPTIONS_INIT;
    ifl_request request = IFL_REQUEST_INIT;
    ifl_memory_plan plan;
    ifl_stats stats;
    ifl_model_info info;
    ifl_events *events = NULL;
    ifl_buffer *buffer = NULL;
    ifl_queue *queue = NULL;
    ifl_engine *none = NULL;
    ifl_engine *engine = make_echo("echo", NULL);
    ifl_error *error = NULL;
    uint64_t num = 7;
    int32_t fd = -7;

    memset(&plan, 0, sizeof plan);
    memset(&stats, 0, sizeof stats);
    memset(&info, 0, sizeof info);
    plan.struct_size = sizeof plan;
    stats.struct_size = sizeof stats;
    info.struct_size = sizeof info;
    options.device = "echo";
    request.prompt = "x";
    CHECK_FAILS(IFL_INVALID_ARGUMENT, ifl_engine_options_init(NULL, sizeof options, &error));
    CHECK_FAILS(IFL_INVALID_ARGUMENT, ifl_request_init(NULL, sizeof request, &error));
    CHECK_FAILS(IFL_INVALID_ARGUMENT, ifl_engine_create(NULL, &none, &error));
    CHECK_FAILS(IFL_INVALID_ARGUMENT, ifl_engine_create(&options, NULL, &error));
    CHECK_FAILS(IFL_INVALID_ARGUMENT, ifl_engine_plan(NULL, &plan, &error));
    CHECK_FAILS(IFL_INVALID_ARGUMENT, ifl_engine_plan(&options, NULL, &error));
    CHECK_FAILS(IFL_INVALID_HANDLE, ifl_engine_enqueue(NULL, &request, &num, &error));
    CHECK_FAILS(IFL_INVALID_ARGUMENT, ifl_engine_enqueue(engine, NULL, &num, &error));
    CHECK_FAILS(IFL_INVALID_HANDLE, ifl_engine_poll(NULL, 0, &events, &error));
    CHECK_FAILS(IFL_INVALID_ARGUMENT, ifl_engine_poll(engine, 0, NULL, &error));
    CHECK_FAILS(IFL_INVALID_HANDLE, ifl_engine_cancel(NULL, 1, &error));
    CHECK_FAILS(IFL_INVALID_HANDLE, ifl_engine_stats(NULL, &stats, &error));
    CHECK_FAILS(IFL_INVALID_ARGUMENT, ifl_engine_stats(engine, NULL, &error));
    CHECK_FAILS(IFL_INVALID_HANDLE, ifl_engine_model_info(NULL, &info, &error));
    CHECK_FAILS(IFL_INVALID_ARGUMENT, ifl_engine_model_info(engine, NULL, &error));
    CHECK_FAILS(IFL_INVALID_HANDLE, ifl_engine_eos_tokens(NULL, &buffer, &error));
    CHECK_FAILS(IFL_INVALID_ARGUMENT, ifl_engine_eos_tokens(engine, NULL, &error));
    CHECK_FAILS(IFL_INVALID_HANDLE, ifl_engine_device(NULL, &buffer, &error));
    CHECK_FAILS(IFL_INVALID_ARGUMENT, ifl_engine_device(engine, NULL, &error));
    CHECK_FAILS(IFL_INVALID_HANDLE, ifl_engine_close(NULL, &error));
    CHECK_FAILS(IFL_INVALID_HANDLE, ifl_queue_create(NULL, &queue, &error));
    CHECK_FAILS(IFL_INVALID_ARGUMENT, ifl_queue_create(engine, NULL, &error));
    CHECK_FAILS(IFL_INVALID_HANDLE, ifl_queue_poll(NULL, 0, &events, &error));
    CHECK_FAILS(IFL_INVALID_HANDLE, ifl_queue_fd(NULL, &fd, &error));
    CHECK_FAILS(IFL_INVALID_HANDLE, ifl_tokenize(NULL, "x", 1, 0, &buffer, &error));
    CHECK_FAILS(IFL_INVALID_ARGUMENT, ifl_tokenize(engine, NULL, 1, 0, &buffer, &error));
    CHECK_FAILS(IFL_INVALID_ARGUMENT, ifl_tokenize(engine, NULL, IFL_NUL_TERMINATED, 0, &buffer, &error));
    CHECK_FAILS(IFL_INVALID_ARGUMENT, ifl_tokenize(engine, "x", 1, 0, NULL, &error));
    CHECK_FAILS(IFL_INVALID_HANDLE, ifl_detokenize(NULL, NULL, 0, 0, &buffer, &error));
    CHECK_FAILS(IFL_INVALID_ARGUMENT, ifl_detokenize(engine, NULL, 1, 0, &buffer, &error));
    CHECK_FAILS(IFL_INVALID_ARGUMENT, ifl_detokenize(engine, NULL, 0, 0, NULL, &error));
    CHECK_FAILS(IFL_INVALID_HANDLE, ifl_apply_chat_template(NULL, "[]", 2, 0, &buffer, &error));
    CHECK_FAILS(IFL_INVALID_ARGUMENT, ifl_apply_chat_template(engine, "[]", 2, 0, NULL, &error));
    CHECK_FAILS(IFL_INVALID_ARGUMENT, ifl_apply_chat_template(engine, NULL, 2, 0, &buffer, &error));

    /* Nothing was written, and none of it needs an error object. */
    CHECK(none == NULL && events == NULL && buffer == NULL && queue == NULL && num == 7 && fd == -7);
    CHECK(ifl_engine_create(NULL, NULL, NULL) == IFL_INVALID_ARGUMENT);
    CHECK(ifl_engine_poll(NULL, -1, NULL, NULL) != IFL_OK);

    CHECK(ifl_error_code(NULL) == IFL_OK && strcmp(ifl_error_message(NULL, NULL), "") == 0);
    CHECK(ifl_error_message(NULL, &num) != NULL && num == 0);
    CHECK(ifl_events_count(NULL) == 0 && ifl_events_get(NULL, 0) == NULL);
    num = 7;
    CHECK(ifl_buffer_text(NULL, &num) == NULL && num == 0);
    num = 7;
    CHECK(ifl_buffer_tokens(NULL, &num) == NULL && num == 0);
    CHECK(ifl_buffer_text(NULL, NULL) == NULL && ifl_buffer_tokens(NULL, NULL) == NULL);
    ifl_error_free(NULL);
    ifl_events_free(NULL);
    ifl_buffer_free(NULL);
    ifl_queue_destroy(NULL);
    ifl_engine_destroy(NULL);
    ifl_engine_destroy(engine);
}

TEST(initialisers_agree)
{
    const ifl_engine_options options_macro = IFL_ENGINE_OPTIONS_INIT;
    const ifl_request request_macro = IFL_REQUEST_INIT;
    ifl_engine_options options;
    ifl_request request;

    memset(&options, 0x77, sizeof options);
    memset(&request, 0x77, sizeof request);
    CHECK(ifl_engine_options_init(&options, sizeof options, NULL) == IFL_OK);
    CHECK(ifl_request_init(&request, sizeof request, NULL) == IFL_OK);
    CHECK(memcmp(&options, &options_macro, sizeof options) == 0);
    CHECK(memcmp(&request, &request_macro, sizeof request) == 0);
}

/* A program with a newer header: the same struct with 16 bytes behind it. */
typedef union newer {
    ifl_engine_options options;
    ifl_request request;
    ifl_stats stats;
    unsigned char bytes[512];
} newer;

TEST(struct_sizes_are_checked)
{
    static const uint32_t wrong_sizes[] = {0, 1, 4, 8, 64, 191, 193, 196, 4104, 0x7fffffff, UINT32_MAX};
    ifl_engine *engine = make_echo("echo", NULL);
    ifl_error *error = NULL;
    ifl_request request = IFL_REQUEST_INIT;
    newer big;
    size_t i;

    request.prompt = "x";
    for (i = 0; i < sizeof wrong_sizes / sizeof wrong_sizes[0]; i++) {
        request.struct_size = wrong_sizes[i];
        CHECK_FAILS(IFL_INVALID_STRUCT_SIZE, ifl_engine_enqueue(engine, &request, NULL, &error));
        CHECK_FAILS(IFL_INVALID_STRUCT_SIZE, ifl_request_init(&request, wrong_sizes[i], &error));
    }
    CHECK(request.prompt[0] == 'x');

    memset(&big, 0x77, sizeof big);
    CHECK(ifl_request_init(&big.request, sizeof(ifl_request) + 16, NULL) == IFL_OK);
    for (i = sizeof(ifl_request); i < sizeof big; i++)
        CHECK(big.bytes[i] == (i < sizeof(ifl_request) + 16 ? 0 : 0x77));
    big.request.prompt = "a";
    free(ask(engine, &big.request));
    big.bytes[sizeof(ifl_request) + 15] = 1;
    CHECK_FAILS(IFL_INVALID_STRUCT_SIZE, ifl_engine_enqueue(engine, &big.request, NULL, &error));

    memset(&big, 0x77, sizeof big);
    big.stats.struct_size = sizeof(ifl_stats) + 16;
    CHECK(ifl_engine_stats(engine, &big.stats, NULL) == IFL_OK);
    CHECK(big.stats.struct_size == sizeof(ifl_stats) + 16 && big.stats.num_accepted == 1);
    for (i = sizeof(ifl_stats); i < sizeof big; i++)
        CHECK(big.bytes[i] == (i < sizeof(ifl_stats) + 16 ? 0 : 0x77));
    big.stats.struct_size = sizeof(ifl_stats) - 8;
    CHECK_FAILS(IFL_INVALID_STRUCT_SIZE, ifl_engine_stats(engine, &big.stats, &error));
    ifl_engine_destroy(engine);
}

TEST(values_are_checked)
{
    const ifl_request good = IFL_REQUEST_INIT;
    const char *not_text[1] = {"\xff"};
    ifl_request request = good;
    ifl_engine *engine = make_echo("echo", NULL);
    ifl_buffer *buffer = NULL;
    ifl_events *events = NULL;
    ifl_error *error = NULL;

    CHECK_FAILS(IFL_INVALID_ARGUMENT, ifl_engine_enqueue(engine, &request, NULL, &error));
#define REFUSES(status, field, value)                                                   \
    request = good;                                                                     \
    request.prompt = "x";                                                               \
    request.field = (value);                                                            \
    CHECK_FAILS(status, ifl_engine_enqueue(engine, &request, NULL, &error))
    REFUSES(IFL_INVALID_ARGUMENT, prompt_kind, 0);
    REFUSES(IFL_INVALID_ARGUMENT, prompt_kind, 99);
    REFUSES(IFL_INVALID_ARGUMENT, prompt_kind, IFL_PROMPT_TOKENS);
    REFUSES(IFL_INVALID_ARGUMENT, prompt_len, 0);
    REFUSES(IFL_INVALID_ARGUMENT, prompt_len, UINT64_MAX - 1);
    REFUSES(IFL_INVALID_UTF8, prompt, not_text[0]);
    REFUSES(IFL_INVALID_ARGUMENT, add_special_tokens, 2);
    REFUSES(IFL_INVALID_ARGUMENT, parse_special_tokens, 0x100);
    REFUSES(IFL_INVALID_ARGUMENT, ignore_eos, UINT32_MAX);
    REFUSES(IFL_INVALID_ARGUMENT, top_k, -2);
    REFUSES(IFL_INVALID_ARGUMENT, num_logprobs, -2);
    REFUSES(IFL_INVALID_ARGUMENT, num_stop_tokens, 1);
    REFUSES(IFL_INVALID_ARGUMENT, num_stop_strings, 1);
    REFUSES(IFL_INVALID_ARGUMENT, num_logit_biases, UINT64_MAX / 2);
    REFUSES(IFL_PROMPT_TOO_LONG, max_tokens, UINT32_MAX);
    REFUSES(IFL_INVALID_HANDLE, queue, (ifl_queue *)(void *)engine);
    request = good;
    request.prompt = "x";
    request.stop_strings = not_text;
    request.num_stop_strings = 1;
    CHECK_FAILS(IFL_INVALID_UTF8, ifl_engine_enqueue(engine, &request, NULL, &error));
    not_text[0] = NULL;
    CHECK_FAILS(IFL_INVALID_ARGUMENT, ifl_engine_enqueue(engine, &request, NULL, &error));

    CHECK_FAILS(IFL_INVALID_ARGUMENT, ifl_engine_poll(engine, -2, &events, &error));
    CHECK_FAILS(IFL_INVALID_ARGUMENT, ifl_tokenize(engine, "x", 1, IFL_TEXT_SKIP_SPECIAL, &buffer, &error));
    CHECK_FAILS(IFL_INVALID_ARGUMENT, ifl_apply_chat_template(engine, "[]", 2, 0x80, &buffer, &error));
    CHECK_FAILS(IFL_INVALID_UTF8, ifl_tokenize(engine, "a\xc3", 2, 0, &buffer, &error));
    CHECK(ifl_engine_poll(engine, 0, &events, NULL) == IFL_OK && events == NULL);
    ifl_engine_destroy(engine);
}

TEST(unusable_options_are_errors)
{
    const ifl_engine_options good = IFL_ENGINE_OPTIONS_INIT;
    ifl_engine_options options = good;
    ifl_engine *engine = NULL;
    ifl_error *error = NULL;

    CHECK_FAILS(IFL_INVALID_ARGUMENT, ifl_engine_create(&options, &engine, &error));
    options.device = "toaster";
    options.model = "/nonexistent";
    CHECK_FAILS(IFL_INVALID_ARGUMENT, ifl_engine_create(&options, &engine, &error));
    options.device = "\xff";
    CHECK_FAILS(IFL_INVALID_UTF8, ifl_engine_create(&options, &engine, &error));
    options.device = "echo";
    options.dtype = 99;
    CHECK_FAILS(IFL_INVALID_ARGUMENT, ifl_engine_create(&options, &engine, &error));
    options.dtype = IFL_DTYPE_F32;
    options.log_level = 99;
    CHECK_FAILS(IFL_INVALID_ARGUMENT, ifl_engine_create(&options, &engine, &error));
    options.log_level = 0;
    options.kv_block_size = 17;
    CHECK_FAILS(IFL_INVALID_ARGUMENT, ifl_engine_create(&options, &engine, &error));
    options.kv_block_size = 16;
    options.device = "echoes";
    options.device_len = 4;
    options.model_len = 0;
    CHECK(engine == NULL && ifl_engine_create(&options, &engine, &error) == IFL_OK && error == NULL);
    ifl_engine_destroy(engine);
    options = good;
    options.device = "cpu";
    options.model = ".";
    options.spec = "no_such_spec.json: and more";
    options.spec_len = strlen("no_such_spec.json");
    CHECK(ifl_engine_create(&options, &engine, &error) == IFL_MODEL_NOT_FOUND);
    CHECK(strstr(ifl_error_message(error, NULL), "no_such_spec.json: there is no such file") != NULL);
    ifl_error_free(error);
    error = NULL;
    /* A program that was compiled before there was a spec. */
    options.struct_size = offsetof(ifl_engine_options, spec);
    CHECK(ifl_engine_create(&options, &engine, &error) == IFL_MODEL_NOT_FOUND);
    CHECK(strstr(ifl_error_message(error, NULL), "spec") == NULL);
    ifl_error_free(error);
    error = NULL;
}

TEST(statuses_have_names)
{
    CHECK(strcmp(ifl_status_name(IFL_OK), "ok") == 0 && strcmp(ifl_status_name(IFL_BUSY), "busy") == 0);
    CHECK(strcmp(ifl_status_name(12345), "unknown status") == 0);
    CHECK(ifl_status_category(IFL_OK) == IFL_CATEGORY_NONE);
    CHECK(ifl_status_category(IFL_INVALID_UTF8) == IFL_CATEGORY_ARGUMENT);
    CHECK(ifl_status_category(IFL_MODEL_IO) == IFL_CATEGORY_MODEL);
    CHECK(ifl_status_category(IFL_BUSY) == IFL_CATEGORY_RESOURCE);
    CHECK(ifl_status_category(IFL_DEVICE_LOST) == IFL_CATEGORY_DEVICE);
    CHECK(ifl_status_category(IFL_CLOSED) == IFL_CATEGORY_LIFECYCLE);
    CHECK(ifl_status_category(IFL_INTERNAL) == IFL_CATEGORY_INTERNAL);
    CHECK(ifl_status_category(-5) == IFL_CATEGORY_INTERNAL);
    CHECK(ifl_status_is_retryable(IFL_BUSY) == 1 && ifl_status_is_retryable(IFL_CLOSED) == 0);
}

TEST(features_can_be_asked_for)
{
    ifl_engine_options options = IFL_ENGINE_OPTIONS_INIT;
    ifl_engine *engine = NULL;
    ifl_error *error = NULL;
    int says_not_built;

    CHECK(ifl_has_feature("cpu", IFL_NUL_TERMINATED) == 1 && ifl_has_feature("echoes", 4) == 1);
    CHECK(ifl_has_feature("", 0) == 0 && ifl_has_feature(NULL, 0) == 0 && ifl_has_feature(NULL, 9) == 0);
    CHECK(ifl_has_feature("time travel", IFL_NUL_TERMINATED) == 0);

    /* A build without CUDA says so to whoever asks for the device. */
    options.model = "/nonexistent";
    options.device = "cuda";
    CHECK(ifl_engine_create(&options, &engine, &error) != IFL_OK && error != NULL);
    says_not_built = strstr(ifl_error_message(error, NULL), "no CUDA backend") != NULL;
    CHECK(ifl_has_feature("cuda", IFL_NUL_TERMINATED) == (uint32_t)!says_not_built);
    CHECK(!says_not_built || ifl_error_code(error) == IFL_DEVICE_UNAVAILABLE);
    ifl_error_free(error);
}
