/* Asks a model: streams one answer to the terminal, or runs many prompts together and shows each answer as it
 * ends.
 *
 *     cc -std=c99 -Iinclude -c examples/c/generate.c
 *     cc -o generate generate.o -Ltarget/release -linflight -Wl,-rpath,"$PWD/target/release"
 */

#define _POSIX_C_SOURCE 199309L /* clock_gettime */

#include <inflight.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char usage[] =
    "usage: generate MODEL [options]\n"
    "\n"
    "MODEL is a model directory in Hugging Face layout or a GGUF file.\n"
    "\n"
    "  --prompt TEXT        what to ask; may be given several times\n"
    "  --prompts-file FILE  ask every line of FILE as well\n"
    "  --many N             ask N times together, taking the prompts in turn\n"
    "  --max-tokens N       longest answer in tokens (default 256)\n"
    "  --temperature T      0 for the likeliest answer (default: what the model recommends)\n"
    "  --device NAME        auto (default), cpu, cuda, cuda:0, or echo, which needs no model\n"
    "  --help               show this text\n"
    "\n"
    "One prompt is streamed. Several are enqueued at once and shown as they end.\n";

/* What the command line asks for. */
typedef struct config {
    const char *model;
    const char *device;
    char **prompts;
    uint64_t num_prompts;
    uint64_t num_requests;
    uint32_t max_tokens;
    float temperature;
} config;

/* One request's answer so far. */
typedef struct answer {
    char *text;
    size_t len;
    size_t capacity;
} answer;

static void fail(const char *what, const char *why)
{
    fflush(stdout);
    fprintf(stderr, "generate: %s: %s\n", what, why);
    exit(1);
}

static void fail_usage(const char *what, const char *argument)
{
    fprintf(stderr, "generate: %s%s\nTry generate --help.\n", what, argument);
    exit(2);
}

/* Ends the program where a call of the library has failed. The error comes by address, since the call that
 * stores it may be the first argument, and arguments are evaluated in no order. */
static void check(ifl_status status, ifl_error **error, const char *what)
{
    if (status) {
        fflush(stdout);
        fprintf(stderr, "generate: %s: %s: %s\n", what, ifl_status_name(status),
                ifl_error_message(*error, NULL));
        ifl_error_free(*error);
        exit(1);
    }
}

static void *grow(void *memory, size_t size)
{
    memory = realloc(memory, size);
    if (memory == NULL)
        fail("memory", "there is none left");
    return memory;
}

static void append(answer *to, const char *text, size_t len)
{
    if (to->len + len + 1 > to->capacity) {
        to->capacity = 2 * (to->len + len + 1);
        to->text = grow(to->text, to->capacity);
    }
    memcpy(to->text + to->len, text, len);
    to->len += len;
    to->text[to->len] = 0;
}

/* Takes the text, which stays allocated until the program ends. */
static void add_prompt(config *to, char *prompt)
{
    to->prompts = grow(to->prompts, (size_t)(to->num_prompts + 1) * sizeof *to->prompts);
    to->prompts[to->num_prompts++] = prompt;
}

static void read_prompts(config *to, const char *path)
{
    FILE *file = fopen(path, "r");
    answer line = {NULL, 0, 0};
    int c;

    if (file == NULL)
        fail(path, strerror(errno));
    do {
        c = getc(file);
        if (c != '\n' && c != EOF) {
            char byte = (char)c;

            append(&line, &byte, 1);
        } else if (line.len > 0) {
            add_prompt(to, line.text);
            memset(&line, 0, sizeof line);
        }
    } while (c != EOF);
    if (ferror(file))
        fail(path, strerror(errno));
    fclose(file);
}

static uint32_t parse_count(const char *option, const char *value)
{
    char *end = NULL;
    unsigned long number;

    errno = 0;
    number = strtoul(value, &end, 10);
    if (value[0] < '0' || value[0] > '9' || *end != 0 || errno != 0 || number == 0 || number > 1000000)
        fail_usage("not a number from 1 to 1000000: ", option);
    return (uint32_t)number;
}

static float parse_temperature(const char *option, const char *value)
{
    char *end = NULL;
    double number = strtod(value, &end);

    if (end == value || *end != 0 || !(number >= 0.0 && number <= 100.0))
        fail_usage("not a number from 0 to 100: ", option);
    return (float)number;
}

static config parse(int argc, char **argv)
{
    config parsed = {NULL, NULL, NULL, 0, 0, 256, IFL_MODEL_DEFAULT};
    int i;

    for (i = 1; i < argc; i++) {
        const char *option = argv[i];

        if (strcmp(option, "--help") == 0 || strcmp(option, "-h") == 0) {
            fputs(usage, stdout);
            exit(0);
        }
        if (strncmp(option, "--", 2) != 0) {
            if (parsed.model != NULL)
                fail_usage("a second model: ", option);
            parsed.model = option;
            continue;
        }
        if (++i == argc)
            fail_usage("a value is missing after ", option);
        if (strcmp(option, "--prompt") == 0)
            add_prompt(&parsed, argv[i]);
        else if (strcmp(option, "--prompts-file") == 0)
            read_prompts(&parsed, argv[i]);
        else if (strcmp(option, "--many") == 0)
            parsed.num_requests = parse_count(option, argv[i]);
        else if (strcmp(option, "--max-tokens") == 0)
            parsed.max_tokens = parse_count(option, argv[i]);
        else if (strcmp(option, "--temperature") == 0)
            parsed.temperature = parse_temperature(option, argv[i]);
        else if (strcmp(option, "--device") == 0)
            parsed.device = argv[i];
        else
            fail_usage("unknown option ", option);
    }
    if (parsed.model == NULL && (parsed.device == NULL || strncmp(parsed.device, "echo", 4) != 0))
        fail_usage("which MODEL?", "");
    if (parsed.num_prompts == 0)
        fail_usage("nothing to ask; give --prompt or --prompts-file", "");
    if (parsed.num_requests == 0)
        parsed.num_requests = parsed.num_prompts;
    return parsed;
}

/* A request for the prompt of this number; its user_data says which it is. */
static ifl_request make_request(const config *from, ifl_prompt_kind kind, uint64_t number)
{
    ifl_request request = IFL_REQUEST_INIT;

    request.prompt_kind = kind;
    request.prompt = from->prompts[number % from->num_prompts];
    request.max_tokens = from->max_tokens;
    request.temperature = from->temperature;
    request.user_data = number;
    return request;
}

static double seconds(uint64_t microseconds)
{
    return (double)microseconds / 1e6;
}

/* Seconds of a clock that nobody sets. */
static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

/* Events of one request: prints text as it comes. Returns whether the request has ended. */
static int show_stream(const ifl_event *event)
{
    fwrite(event->text, 1, (size_t)event->text_len, stdout);
    fflush(stdout);
    if (event->kind != IFL_EVENT_FINISHED)
        return 0;
    putchar('\n');
    if (event->status)
        fail(ifl_status_name(event->status), event->message);
    printf("\n%u tokens in %.2f s", (unsigned)event->num_output_tokens, seconds(event->total_us));
    if (event->num_output_tokens > 1)
        printf(": the first after %.2f s, then %.1f tokens/s", seconds(event->first_token_us),
               (event->num_output_tokens - 1) / seconds(event->total_us - event->first_token_us));
    putchar('\n');
    return 1;
}

static void stream_one(ifl_engine *engine, const ifl_request *request)
{
    ifl_error *error = NULL;
    int ended = 0;

    check(ifl_engine_enqueue(engine, request, NULL, &error), &error, "the request was not accepted");
    while (!ended) {
        ifl_events *events = NULL;
        const ifl_event *event;
        uint64_t i;

        check(ifl_engine_poll(engine, -1, &events, &error), &error, "polling failed");
        for (i = 0; (event = ifl_events_get(events, i)) != NULL; i++)
            ended = show_stream(event);
        ifl_events_free(events);
    }
}

/* What is known about all requests together. */
typedef struct summary {
    uint64_t num_ended;
    uint64_t num_failed;
    uint64_t num_tokens;
} summary;

/* Prints an answer that has ended. */
static void show_answer(const config *from, const ifl_event *event, const answer *got, summary *all)
{
    const char *prompt = from->prompts[event->user_data % from->num_prompts];

    all->num_ended++;
    all->num_tokens += event->num_output_tokens;
    printf("--- prompt %u, %u tokens in %.2f s: %s\n", (unsigned)event->user_data + 1,
           (unsigned)event->num_output_tokens, seconds(event->total_us), prompt);
    if (event->status) {
        all->num_failed++;
        printf("(failed: %s: %s)\n\n", ifl_status_name(event->status), event->message);
    } else {
        printf("%s\n\n", got->len > 0 ? got->text : "(no text)");
    }
    fflush(stdout);
}

static void take_events(ifl_engine *engine, const config *from, answer *answers, summary *all)
{
    ifl_events *events = NULL;
    ifl_error *error = NULL;
    const ifl_event *event;
    uint64_t i;

    check(ifl_engine_poll(engine, -1, &events, &error), &error, "polling failed");
    for (i = 0; (event = ifl_events_get(events, i)) != NULL; i++) {
        answer *got = &answers[event->user_data];

        append(got, event->text, (size_t)event->text_len);
        if (event->kind == IFL_EVENT_FINISHED) {
            show_answer(from, event, got, all);
            free(got->text);
        }
    }
    ifl_events_free(events);
}

static int run_many(ifl_engine *engine, const config *from, ifl_prompt_kind kind)
{
    answer *answers = calloc((size_t)from->num_requests, sizeof *answers);
    summary all = {0, 0, 0};
    uint64_t number = 0;
    double start = now(), elapsed;

    if (answers == NULL)
        fail("memory", "there is none left");
    while (number < from->num_requests) {
        ifl_request request = make_request(from, kind, number);
        ifl_error *error = NULL;
        ifl_status status = ifl_engine_enqueue(engine, &request, NULL, &error);

        if (status == IFL_BUSY) { /* The bounded queue is full: make room, then try again. */
            ifl_error_free(error);
            take_events(engine, from, answers, &all);
            continue;
        }
        check(status, &error, "a request was not accepted");
        number++;
    }
    printf("%u prompts are in flight together.\n\n", (unsigned)(from->num_requests - all.num_ended));
    while (all.num_ended < from->num_requests)
        take_events(engine, from, answers, &all);
    elapsed = now() - start;
    printf("%u answers, %u tokens in %.2f s: %.1f tokens/s together\n", (unsigned)all.num_ended,
           (unsigned)all.num_tokens, elapsed, (double)all.num_tokens / elapsed);
    free(answers);
    return all.num_failed > 0;
}

int main(int argc, char **argv)
{
    config parsed = parse(argc, argv);
    ifl_engine_options options = IFL_ENGINE_OPTIONS_INIT;
    ifl_model_info info;
    ifl_engine *engine = NULL;
    ifl_error *error = NULL;
    ifl_prompt_kind kind;
    int failed = 0;

    options.model = parsed.model;
    options.device = parsed.device;
    check(ifl_engine_create(&options, &engine, &error), &error, "the model cannot be loaded");
    info.struct_size = sizeof info;
    check(ifl_engine_model_info(engine, &info, &error), &error, "the model cannot be described");
    kind = info.has_chat_template ? IFL_PROMPT_USER : IFL_PROMPT_TEXT;
    if (parsed.num_requests == 1) {
        ifl_request request = make_request(&parsed, kind, 0);

        stream_one(engine, &request);
    } else {
        failed = run_many(engine, &parsed, kind);
    }
    ifl_engine_destroy(engine);
    free(parsed.prompts);
    return failed;
}
