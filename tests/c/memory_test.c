/* What the ABI does where memory is short: every call returns a status, and the process lives. */

#define _POSIX_C_SOURCE 200809L

#include "check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

/* Lets the process have so many bytes more than it has. */
static void leave(uint64_t num_bytes)
{
    struct rlimit limit;
    unsigned long num_pages = 0;
    FILE *statm = fopen("/proc/self/statm", "r");

    CHECK(statm != NULL && fscanf(statm, "%lu", &num_pages) == 1);
    fclose(statm);
    limit.rlim_max = RLIM_INFINITY;
    limit.rlim_cur = (rlim_t)(num_pages * (unsigned long)sysconf(_SC_PAGESIZE) + num_bytes);
    CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
}

/* Room for one copy of a prompt, which has to be made, and not for a second one. */
static void a_long_prompt_is_refused(void)
{
    const uint64_t num_tokens = (uint64_t)32 << 20;
    const uint64_t num_bytes = num_tokens * sizeof(uint32_t);
    ifl_engine *engine = make_echo("echo", NULL);
    ifl_request request = IFL_REQUEST_INIT;
    ifl_error *error = NULL;
    uint32_t *tokens = calloc(num_tokens, sizeof *tokens);

    CHECK(tokens != NULL);
    request.prompt = "first";
    free(ask(engine, &request));
    request.prompt = NULL;
    request.prompt_kind = IFL_PROMPT_TOKENS;
    request.prompt_tokens = tokens;
    request.num_prompt_tokens = num_tokens;
    leave(num_bytes + num_bytes / 2);
    CHECK_FAILS(IFL_PROMPT_TOO_LONG, ifl_engine_enqueue(engine, &request, NULL, &error));
    leave(num_bytes / 2);
    CHECK_FAILS(IFL_OUT_OF_MEMORY, ifl_engine_enqueue(engine, &request, NULL, &error));
    leave((uint64_t)1 << 30);
    free(tokens);

    /* The engine has come through it. */
    request = (ifl_request)IFL_REQUEST_INIT;
    request.prompt = "second";
    free(ask(engine, &request));
    ifl_engine_destroy(engine);
}

static void a_large_cache_is_refused_or_bounded(void)
{
    ifl_engine_options options = IFL_ENGINE_OPTIONS_INIT;
    ifl_memory_plan plan;
    ifl_engine *engine = NULL;
    ifl_error *error = NULL;

    leave((uint64_t)1 << 30);
    options.device = "echo";
    options.kv_cache_bytes = (uint64_t)1 << 40;
    CHECK_FAILS(IFL_INVALID_ARGUMENT, ifl_engine_create(&options, &engine, &error));

    options.kv_cache_bytes = 0;
    options.max_model_len = 1 << 24;
    options.max_num_sequences = 1 << 16;
    options.max_batched_tokens = 1 << 17;
    plan.struct_size = sizeof plan;
    CHECK(ifl_engine_plan(&options, &plan, NULL) == IFL_OK && plan.num_kv_blocks < 1 << 24);
    engine = make_echo("echo", &options);
    ifl_engine_destroy(engine);
}

int main(void)
{
    a_large_cache_is_refused_or_bounded();
    a_long_prompt_is_refused();
    return 0;
}
