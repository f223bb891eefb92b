#define _POSIX_C_SOURCE 200809L

#include "check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { PATIENCE_MS = 60000 };

void check_failed(const char *file, int line, const char *condition)
{
    fprintf(stderr, "%s:%d: does not hold: %s\n", file, line, condition);
    exit(1);
}

void check_error(const char *file, int line, const char *call, ifl_status expected, ifl_status got,
                 ifl_error *error)
{
    uint64_t len = 0;
    const char *message = ifl_error_message(error, &len);

    if (got != expected || error == NULL || ifl_error_code(error) != expected || len == 0 ||
        strlen(message) != len) {
        fprintf(stderr, "%s:%d: %s gave %d (%s), not %d: %s\n", file, line, call, (int)got,
                ifl_status_name(got), (int)expected, message);
        exit(1);
    }
    ifl_error_free(error);
}

ifl_engine *make_echo(const char *device, ifl_engine_options *options)
{
    ifl_engine_options defaults = IFL_ENGINE_OPTIONS_INIT;
    ifl_engine *engine = NULL;
    ifl_error *error = NULL;

    if (options == NULL)
        options = &defaults;
    options->device = device;
    if (ifl_engine_create(options, &engine, &error)) {
        fprintf(stderr, "device %s: %s\n", device, ifl_error_message(error, NULL));
        exit(1);
    }
    CHECK(engine != NULL);
    return engine;
}

/* Whether the text is UTF-8 without a code point that is cut, too long or a surrogate. */
static int is_utf8(const char *text, uint64_t len)
{
    static const uint32_t smallest[] = {0, 0x80, 0x800, 0x10000};
    const unsigned char *bytes = (const unsigned char *)text;
    uint64_t i = 0;

    while (i < len) {
        unsigned char first = bytes[i++];
        int num_more = first < 0x80 ? 0 : first >= 0xf0 ? 3 : first >= 0xe0 ? 2 : first >= 0xc0 ? 1 : -1;
        uint32_t point = num_more <= 0 ? first : first & (0x3fu >> num_more);
        int k;

        if (num_more < 0 || i + (uint64_t)num_more > len)
            return 0;
        for (k = 0; k < num_more; k++, i++) {
            if ((bytes[i] & 0xc0) != 0x80)
                return 0;
            point = point << 6 | (bytes[i] & 0x3fu);
        }
        if (point < smallest[num_more] || point > 0x10ffff || (point >= 0xd800 && point < 0xe000))
            return 0;
    }
    return 1;
}

static void take_output(const ifl_event *event, answer *into)
{
    CHECK(event->finish_reason == IFL_FINISH_NONE && event->status == IFL_OK);
    CHECK(event->num_tokens > 0 || event->text_len > 0);
    CHECK((event->token_ids == NULL) == (event->num_tokens == 0));
    CHECK(into->text_len + event->text_len < TEXT_MAX && into->num_tokens + event->num_tokens <= TOKENS_MAX);
    memcpy(into->text + into->text_len, event->text, event->text_len + 1);
    if (event->num_tokens > 0)
        memcpy(into->tokens + into->num_tokens, event->token_ids, event->num_tokens * sizeof(uint32_t));
    into->text_len += event->text_len;
    into->num_tokens += event->num_tokens;
    into->num_pieces++;
}

void take_events(ifl_events *events, answer *answers, uint64_t num_answers)
{
    const ifl_event *event;
    uint64_t i;

    for (i = 0; (event = ifl_events_get(events, i)) != NULL; i++) {
        answer *into = &answers[event->user_data];

        CHECK(event->struct_size == sizeof(ifl_event) && event->request_id != 0);
        CHECK(event->user_data < num_answers && !into->is_finished);
        CHECK(is_utf8(event->text, event->text_len) && event->text[event->text_len] == 0);
        CHECK(event->message[event->message_len] == 0);
        if (event->kind == IFL_EVENT_OUTPUT) {
            take_output(event, into);
            continue;
        }
        CHECK(event->kind == IFL_EVENT_FINISHED && event->finish_reason != IFL_FINISH_NONE);
        CHECK((event->finish_reason == IFL_FINISH_ERROR) == (event->status != IFL_OK));
        CHECK((event->status != IFL_OK) == (event->message_len > 0));
        CHECK(event->num_tokens == 0 && event->text_len == 0);
        CHECK(event->num_output_tokens >= into->num_tokens);
        CHECK(event->queued_us <= event->total_us && event->first_token_us <= event->total_us);
        into->is_finished = 1;
        into->reason = event->finish_reason;
        into->status = event->status;
        into->num_prompt_tokens = event->num_prompt_tokens;
        into->num_output_tokens = event->num_output_tokens;
        into->total_us = event->total_us;
    }
    CHECK(i == ifl_events_count(events));
    ifl_events_free(events);
}

static uint64_t num_finished(const answer *answers, uint64_t num_answers)
{
    uint64_t num = 0, i;

    for (i = 0; i < num_answers; i++)
        num += (uint64_t)answers[i].is_finished;
    return num;
}

void wait_for(ifl_engine *engine, answer *answers, uint64_t num_answers)
{
    int64_t start = now_ms();

    while (num_finished(answers, num_answers) < num_answers) {
        ifl_events *events = NULL;

        CHECK(ifl_engine_poll(engine, 100, &events, NULL) == IFL_OK);
        take_events(events, answers, num_answers);
        CHECK(now_ms() - start < PATIENCE_MS);
    }
}

answer *make_answers(uint64_t num_answers)
{
    answer *answers = calloc(num_answers, sizeof(answer));

    CHECK(answers != NULL);
    return answers;
}

answer *ask(ifl_engine *engine, ifl_request *request)
{
    answer *into = make_answers(1);
    ifl_error *error = NULL;

    request->user_data = 0;
    if (ifl_engine_enqueue(engine, request, NULL, &error)) {
        fprintf(stderr, "enqueue: %s\n", ifl_error_message(error, NULL));
        exit(1);
    }
    wait_for(engine, into, 1);
    return into;
}

ifl_stats stats_of(ifl_engine *engine)
{
    ifl_stats stats;

    stats.struct_size = sizeof stats;
    CHECK(ifl_engine_stats(engine, &stats, NULL) == IFL_OK);
    return stats;
}

int64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

void sleep_ms(int milliseconds)
{
    struct timespec time;

    time.tv_sec = milliseconds / 1000;
    time.tv_nsec = (long)(milliseconds % 1000) * 1000000;
    nanosleep(&time, NULL);
}
