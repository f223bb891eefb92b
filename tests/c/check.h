/* What the behaviour tests share: checks that end the program, and a host that collects answers. */

#ifndef CHECK_H
#define CHECK_H

#include <inflight.h>

/* Ends the program with the place and the condition where it does not hold. */
#define CHECK(condition)                                 \
    do {                                                 \
        if (!(condition))                                \
            check_failed(__FILE__, __LINE__, #condition); \
    } while (0)

/* The call must fail with this status and an error object that agrees. Needs an `ifl_error *error` in
 * scope. */
#define CHECK_FAILS(expected, call)                                         \
    do {                                                                    \
        ifl_status got_ = (call);                                           \
        check_error(__FILE__, __LINE__, #call, (expected), got_, error);    \
        error = NULL;                                                       \
    } while (0)

void check_failed(const char *file, int line, const char *condition);
void check_error(const char *file, int line, const char *call, ifl_status expected, ifl_status got,
                 ifl_error *error);

enum { TEXT_MAX = 1 << 16, TOKENS_MAX = 1 << 14 };

/* All that has come of one request. */
typedef struct answer {
    char text[TEXT_MAX];
    uint64_t text_len;
    uint32_t tokens[TOKENS_MAX];
    uint64_t num_tokens;
    uint64_t num_pieces;
    int is_finished;
    ifl_finish_reason reason;
    ifl_status status;
    uint32_t num_prompt_tokens;
    uint32_t num_output_tokens;
    uint64_t total_us;
} answer;

/* An echo engine; `device` is "echo" or "echo:MICROSECONDS", and the options may be NULL. */
ifl_engine *make_echo(const char *device, ifl_engine_options *options);
/* Adds every event of a batch to the answer that its user_data is the index of, then frees the batch. Checks
 * what holds for every event: whole code points, nothing after the end. */
void take_events(ifl_events *events, answer *answers, uint64_t num_answers);
/* Polls the engine's own queue until `num_answers` answers are finished. */
void wait_for(ifl_engine *engine, answer *answers, uint64_t num_answers);
/* Empty answers, to be freed. */
answer *make_answers(uint64_t num_answers);
/* Enqueues and waits for the one answer, to be freed. */
answer *ask(ifl_engine *engine, ifl_request *request);
/* The engine's statistics. */
ifl_stats stats_of(ifl_engine *engine);
/* Milliseconds of a monotonic clock. */
int64_t now_ms(void);
void sleep_ms(int milliseconds);

/* One test of the table in abi_test.c. */
#define TEST(name) void name(void)

#endif
