/* Queues, handles, shutdown, fork and threads. */

#define _POSIX_C_SOURCE 200809L

#include "check.h"

#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

/* A prompt whose echo takes long: one step a token. */
static char slow_prompt[1500];

static ifl_request slow_request(void)
{
    ifl_request request = IFL_REQUEST_INIT;

    memset(slow_prompt, 's', sizeof slow_prompt);
    request.prompt = slow_prompt;
    request.prompt_len = sizeof slow_prompt;
    return request;
}

static int is_readable(int fd, int timeout_ms)
{
    struct pollfd entry;

    entry.fd = fd;
    entry.events = POLLIN;
    entry.revents = 0;
    CHECK(poll(&entry, 1, timeout_ms) >= 0);
    return (entry.revents & POLLIN) != 0;
}

TEST(a_queue_has_its_own_events_and_descriptor)
{
    ifl_engine *engine = make_echo("echo", NULL);
    ifl_request request = IFL_REQUEST_INIT;
    answer *got = make_answers(2);
    ifl_queue *queue = NULL, *other = NULL;
    ifl_events *events = NULL;
    int32_t fd = -1, again = -2;

    CHECK(ifl_queue_create(engine, &queue, NULL) == IFL_OK);
    CHECK(ifl_queue_create(engine, &other, NULL) == IFL_OK);
    CHECK(queue != other && ifl_queue_fd(queue, &fd, NULL) == IFL_OK && fd >= 0);
    CHECK(ifl_queue_fd(queue, &again, NULL) == IFL_OK && again == fd);
    CHECK(!is_readable(fd, 0));
    request.prompt = "through the queue";
    request.user_data = 1;
    request.queue = queue;
    CHECK(ifl_engine_enqueue(engine, &request, NULL, NULL) == IFL_OK);
    while (!got[1].is_finished) {
        CHECK(is_readable(fd, 30000));
        CHECK(ifl_queue_poll(queue, 0, &events, NULL) == IFL_OK && events != NULL);
        take_events(events, got, 2);
    }
    CHECK(strcmp(got[1].text, "through the queue") == 0);
    CHECK(!is_readable(fd, 0) && ifl_queue_poll(queue, 0, &events, NULL) == IFL_OK && events == NULL);
    CHECK(ifl_engine_poll(engine, 0, &events, NULL) == IFL_OK && events == NULL);
    CHECK(ifl_queue_poll(other, 1, &events, NULL) == IFL_OK && events == NULL);

    /* The queue outlives the engine, and its descriptor says that the engine has ended. */
    ifl_engine_destroy(engine);
    CHECK(is_readable(fd, 5000));
    CHECK(ifl_queue_poll(queue, -1, &events, NULL) == IFL_CLOSED);
    ifl_queue_destroy(queue);
    ifl_queue_destroy(queue);
    CHECK(ifl_queue_poll(queue, -1, &events, NULL) == IFL_INVALID_HANDLE && events == NULL);
    ifl_queue_destroy(other);
    free(got);
}

TEST(a_destroyed_queue_cancels_its_requests)
{
    ifl_engine *engine = make_echo("echo:1000", NULL);
    ifl_request request = slow_request();
    ifl_queue *queue = NULL;
    ifl_error *error = NULL;
    ifl_stats stats;
    int64_t start = now_ms();
    answer *got;

    CHECK(ifl_queue_create(engine, &queue, NULL) == IFL_OK);
    request.queue = queue;
    CHECK(ifl_engine_enqueue(engine, &request, NULL, NULL) == IFL_OK);
    ifl_queue_destroy(queue);
    CHECK_FAILS(IFL_INVALID_HANDLE, ifl_engine_enqueue(engine, &request, NULL, &error));
    do {
        stats = stats_of(engine);
        CHECK(now_ms() - start < 30000);
        sleep_ms(1);
    } while (stats.num_finished < 1);
    CHECK(stats.num_output_tokens < sizeof slow_prompt);
    request.queue = NULL;
    request.prompt = "still here";
    request.prompt_len = IFL_NUL_TERMINATED;
    got = ask(engine, &request);
    CHECK(strcmp(got->text, "still here") == 0);
    free(got);
    ifl_engine_destroy(engine);
}

TEST(stale_handles_are_errors)
{
    ifl_engine *engine = make_echo("echo", NULL), *stale = engine;
    ifl_request request = IFL_REQUEST_INIT;
    ifl_queue *queue = NULL;
    ifl_events *events = NULL;
    ifl_error *error = NULL;
    uint64_t on_stack[8] = {0};

    CHECK(ifl_queue_create(engine, &queue, NULL) == IFL_OK);
    request.prompt = "x";
    ifl_engine_destroy(engine);
    ifl_engine_destroy(engine);
    engine = make_echo("echo", NULL);
    CHECK(engine != stale);
    CHECK_FAILS(IFL_INVALID_HANDLE, ifl_engine_enqueue(stale, &request, NULL, &error));
    CHECK_FAILS(IFL_INVALID_HANDLE, ifl_engine_poll(stale, -1, &events, &error));
    CHECK_FAILS(IFL_INVALID_HANDLE, ifl_engine_close(stale, &error));
    /* Handles of another kind and memory of the host's. */
    CHECK_FAILS(IFL_INVALID_HANDLE, ifl_engine_poll((ifl_engine *)(void *)queue, -1, &events, &error));
    CHECK_FAILS(IFL_INVALID_HANDLE, ifl_queue_poll((ifl_queue *)(void *)engine, -1, &events, &error));
    CHECK_FAILS(IFL_INVALID_HANDLE, ifl_engine_poll((ifl_engine *)(void *)on_stack, -1, &events, &error));
    ifl_engine_destroy((ifl_engine *)(void *)on_stack);
    ifl_engine_destroy((ifl_engine *)(void *)queue);
    ifl_queue_destroy((ifl_queue *)(void *)engine);
    CHECK(ifl_engine_poll(engine, 0, &events, NULL) == IFL_OK);

    /* A queue of another engine is no place for this one's events. */
    request.queue = queue;
    CHECK(ifl_engine_enqueue(engine, &request, NULL, &error) != IFL_OK);
    ifl_error_free(error);
    ifl_queue_destroy(queue);
    ifl_engine_destroy(engine);
}

TEST(close_ends_requests_and_can_be_drained)
{
    enum { NUM = 20 };
    ifl_engine *engine = make_echo("echo:1000", NULL);
    ifl_request request = slow_request();
    answer *got = make_answers(NUM);
    ifl_events *events = NULL;
    ifl_queue *queue = NULL;
    ifl_error *error = NULL;
    int64_t start;
    ifl_status status;

    for (request.user_data = 0; request.user_data < NUM; request.user_data++)
        CHECK(ifl_engine_enqueue(engine, &request, NULL, NULL) == IFL_OK);
    start = now_ms();
    CHECK(ifl_engine_close(engine, NULL) == IFL_OK && now_ms() - start < 2000);
    CHECK(ifl_engine_close(engine, NULL) == IFL_OK);
    CHECK_FAILS(IFL_CLOSED, ifl_engine_enqueue(engine, &request, NULL, &error));
    CHECK_FAILS(IFL_CLOSED, ifl_queue_create(engine, &queue, &error));
    while ((status = ifl_engine_poll(engine, -1, &events, NULL)) == IFL_OK)
        take_events(events, got, NUM);
    CHECK(status == IFL_CLOSED);
    for (request.user_data = 0; request.user_data < NUM; request.user_data++) {
        CHECK(got[request.user_data].is_finished && got[request.user_data].reason == IFL_FINISH_ERROR);
        CHECK(got[request.user_data].status == IFL_CLOSED);
    }
    CHECK_FAILS(IFL_CLOSED, ifl_engine_poll(engine, 0, &events, &error));
    free(got);
    ifl_engine_destroy(engine);
}

/* What a thread of the host polls. */
typedef struct poller {
    ifl_engine *engine;
    answer *answers;
    uint64_t num_answers;
    ifl_status end;
} poller;

static void *poll_to_the_end(void *argument)
{
    poller *self = argument;
    ifl_events *events = NULL;

    while ((self->end = ifl_engine_poll(self->engine, -1, &events, NULL)) == IFL_OK)
        take_events(events, self->answers, self->num_answers);
    return NULL;
}

/* An engine with `num` requests in flight, and a thread that polls it to the end. */
static pthread_t start_polling(poller *self, uint64_t num)
{
    ifl_request request = slow_request();
    pthread_t thread;

    self->engine = make_echo("echo:1000", NULL);
    self->answers = make_answers(num);
    self->num_answers = num;
    for (request.user_data = 0; request.user_data < num; request.user_data++)
        CHECK(ifl_engine_enqueue(self->engine, &request, NULL, NULL) == IFL_OK);
    CHECK(pthread_create(&thread, NULL, poll_to_the_end, self) == 0);
    sleep_ms(50);
    return thread;
}

TEST(destroy_ends_what_is_in_flight)
{
    enum { NUM = 10 };
    poller self;
    pthread_t thread;
    int64_t start;

    thread = start_polling(&self, NUM);
    start = now_ms();
    ifl_engine_destroy(self.engine);
    CHECK(now_ms() - start < 2000);
    CHECK(pthread_join(thread, NULL) == 0);
    /* It got one more batch, after which the handle is gone. */
    CHECK(self.end == IFL_INVALID_HANDLE);
    free(self.answers);
}

TEST(close_lets_pollers_drain)
{
    enum { NUM = 10 };
    poller self;
    pthread_t thread;
    uint64_t i;

    thread = start_polling(&self, NUM);
    CHECK(ifl_engine_close(self.engine, NULL) == IFL_OK);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(self.end == IFL_CLOSED);
    for (i = 0; i < NUM; i++)
        CHECK(self.answers[i].is_finished && self.answers[i].status == IFL_CLOSED);
    ifl_engine_destroy(self.engine);
    free(self.answers);
}

TEST(engines_are_independent)
{
    ifl_engine *first = make_echo("echo", NULL), *second = make_echo("echo", NULL);
    ifl_request request = IFL_REQUEST_INIT;
    ifl_events *events = NULL;
    answer *got;

    request.prompt = "one";
    got = ask(first, &request);
    CHECK(strcmp(got->text, "one") == 0);
    CHECK(ifl_engine_poll(second, 0, &events, NULL) == IFL_OK && events == NULL);
    free(got);
    ifl_engine_destroy(first);
    got = ask(second, &request);
    CHECK(strcmp(got->text, "one") == 0);
    free(got);
    ifl_engine_destroy(second);
}

/* Counts log lines; the mutex because they come from any thread. */
static struct {
    pthread_mutex_t mutex;
    int num_lines;
    int num_debug_lines;
} logged = {PTHREAD_MUTEX_INITIALIZER, 0, 0};

static void count_line(void *user_data, ifl_log_level level, const char *message, uint64_t message_len)
{
    CHECK(user_data == &logged && level >= IFL_LOG_ERROR && level <= IFL_LOG_DEBUG);
    CHECK(message_len > 0 && strlen(message) == message_len && strchr(message, '\n') == NULL);
    pthread_mutex_lock(&logged.mutex);
    logged.num_lines++;
    logged.num_debug_lines += level == IFL_LOG_DEBUG;
    pthread_mutex_unlock(&logged.mutex);
}

TEST(log_lines_reach_the_host)
{
    ifl_engine_options options = IFL_ENGINE_OPTIONS_INIT;
    ifl_request request = IFL_REQUEST_INIT;
    ifl_engine *engine;
    int level;

    request.prompt = "log";
    options.log = count_line;
    options.log_user_data = &logged;
    for (level = IFL_LOG_INFO; level <= IFL_LOG_DEBUG; level++) {
        options.log_level = level;
        logged.num_lines = logged.num_debug_lines = 0;
        engine = make_echo("echo", &options);
        free(ask(engine, &request));
        ifl_engine_destroy(engine);
        CHECK(logged.num_lines > 0 && (logged.num_debug_lines > 0) == (level == IFL_LOG_DEBUG));
    }
}

/* In the child: every call on the parent's handles is refused, and an engine of its own works. Returns the
 * line that went wrong, or 0. */
static int run_child(ifl_engine *engine, ifl_queue *queue)
{
    ifl_engine_options options = IFL_ENGINE_OPTIONS_INIT;
    ifl_request request = IFL_REQUEST_INIT;
    ifl_events *events = NULL;
    ifl_buffer *buffer = NULL;
    ifl_queue *other = NULL;
    ifl_engine *own = NULL;
    ifl_stats stats;
    int32_t fd;

#define REFUSED(call) \
    if ((call) != IFL_FORKED) \
        return __LINE__
    stats.struct_size = sizeof stats;
    request.prompt = "child";
    REFUSED(ifl_engine_enqueue(engine, &request, NULL, NULL));
    REFUSED(ifl_engine_poll(engine, -1, &events, NULL));
    REFUSED(ifl_engine_cancel(engine, 1, NULL));
    REFUSED(ifl_engine_stats(engine, &stats, NULL));
    REFUSED(ifl_engine_eos_tokens(engine, &buffer, NULL));
    REFUSED(ifl_engine_close(engine, NULL));
    REFUSED(ifl_queue_create(engine, &other, NULL));
    REFUSED(ifl_queue_poll(queue, -1, &events, NULL));
    REFUSED(ifl_queue_fd(queue, &fd, NULL));
    REFUSED(ifl_tokenize(engine, "x", 1, 0, &buffer, NULL));
    ifl_queue_destroy(queue);
    ifl_engine_destroy(engine);
    REFUSED(ifl_engine_poll(engine, -1, &events, NULL));

    options.device = "echo";
    if (ifl_engine_create(&options, &own, NULL) || ifl_engine_enqueue(own, &request, NULL, NULL))
        return __LINE__;
    if (ifl_engine_poll(own, 30000, &events, NULL) || ifl_events_count(events) == 0)
        return __LINE__;
    ifl_events_free(events);
    ifl_engine_destroy(own);
    return 0;
}

TEST(a_forked_child_is_refused)
{
    ifl_engine *engine = make_echo("echo:1000", NULL);
    ifl_request request = slow_request();
    ifl_queue *queue = NULL;
    answer *got = make_answers(1);
    int wait_status = -1;
    pid_t child;

    CHECK(ifl_queue_create(engine, &queue, NULL) == IFL_OK);
    request.max_tokens = 300;
    CHECK(ifl_engine_enqueue(engine, &request, NULL, NULL) == IFL_OK);
    child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        int line = run_child(engine, queue);

        /* A child that runs another program keeps valgrind from searching it for leaks: what the parent's
         * threads held is lost in the child, which has no such threads. */
        if (line == 0)
            execl("/bin/true", "true", (char *)NULL);
        _exit(line == 0 ? 2 : 1);
    }
    CHECK(waitpid(child, &wait_status, 0) == child);
    CHECK(WIFEXITED(wait_status) && WEXITSTATUS(wait_status) == 0);

    /* The parent has not noticed. */
    wait_for(engine, got, 1);
    CHECK(got->reason == IFL_FINISH_LENGTH && got->num_output_tokens == 300);
    free(got);
    ifl_queue_destroy(queue);
    ifl_engine_destroy(engine);
}

enum { NUM_THREADS = 8, REQUESTS_MAX = 4000 };

/* What eight threads share: how often each request was accepted and ended. */
static struct {
    pthread_mutex_t mutex;
    ifl_engine *engine;
    int must_stop;
    uint64_t num_requests;
    unsigned char num_accepted[REQUESTS_MAX];
    unsigned char num_ended[REQUESTS_MAX];
} crowd = {PTHREAD_MUTEX_INITIALIZER, NULL, 0, 0, {0}, {0}};

static void count_ends(ifl_events *events)
{
    const ifl_event *event;
    uint64_t i;

    pthread_mutex_lock(&crowd.mutex);
    for (i = 0; (event = ifl_events_get(events, i)) != NULL; i++) {
        /* Output may be counted late: another thread may hold an earlier batch. */
        CHECK(event->user_data < REQUESTS_MAX);
        if (event->kind == IFL_EVENT_FINISHED)
            CHECK(++crowd.num_ended[event->user_data] == 1);
    }
    pthread_mutex_unlock(&crowd.mutex);
    ifl_events_free(events);
}

/* The number of a new request, or REQUESTS_MAX where the test is over. */
static uint64_t next_request(void)
{
    uint64_t number = REQUESTS_MAX;

    pthread_mutex_lock(&crowd.mutex);
    if (!crowd.must_stop && crowd.num_requests < REQUESTS_MAX)
        number = crowd.num_requests++;
    pthread_mutex_unlock(&crowd.mutex);
    return number;
}

static int may_fail_with(ifl_status status)
{
    return status == IFL_OK || status == IFL_BUSY || status == IFL_CLOSED || status == IFL_INVALID_HANDLE;
}

/* One of everything, over and over. */
static void *hammer(void *argument)
{
    unsigned state = (unsigned)(uintptr_t)argument * 2654435761u + 1;
    ifl_request request = IFL_REQUEST_INIT;
    ifl_stats stats;

    stats.struct_size = sizeof stats;
    while ((request.user_data = next_request()) < REQUESTS_MAX) {
        ifl_events *events = NULL;
        ifl_buffer *buffer = NULL;
        ifl_queue *queue = NULL;
        uint64_t id = 0;
        ifl_status status;

        state = state * 1664525u + 1013904223u;
        request.prompt = "all of them at once, again and again";
        request.prompt_len = 1 + (state >> 8) % 36;
        request.priority = (int32_t)(state >> 16) % 3;
        request.timeout_ms = (state >> 20) % 8 == 0 ? 3 : 0;
        status = ifl_engine_enqueue(crowd.engine, &request, &id, NULL);
        CHECK(may_fail_with(status));
        if (status == IFL_OK)
            crowd.num_accepted[request.user_data] = 1;
        if ((state >> 24) % 4 == 0)
            CHECK(may_fail_with(ifl_engine_cancel(crowd.engine, id, NULL)));
        CHECK(may_fail_with(ifl_engine_stats(crowd.engine, &stats, NULL)));
        if ((state >> 26) % 4 == 0 && ifl_queue_create(crowd.engine, &queue, NULL) == IFL_OK)
            ifl_queue_destroy(queue);
        if (ifl_tokenize(crowd.engine, "abc", 3, 0, &buffer, NULL) == IFL_OK)
            ifl_buffer_free(buffer);
        if (ifl_engine_poll(crowd.engine, (int32_t)((state >> 28) % 3), &events, NULL) == IFL_OK)
            count_ends(events);
    }
    return NULL;
}

static void start_crowd(pthread_t *threads)
{
    ifl_engine_options options = IFL_ENGINE_OPTIONS_INIT;
    uintptr_t i;

    options.max_queued_requests = 200;
    options.max_unread_tokens = 64;
    crowd.engine = make_echo("echo:20", &options);
    crowd.must_stop = 0;
    crowd.num_requests = 0;
    memset(crowd.num_accepted, 0, sizeof crowd.num_accepted);
    memset(crowd.num_ended, 0, sizeof crowd.num_ended);
    for (i = 0; i < NUM_THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, hammer, (void *)(i + 1)) == 0);
}

static void stop_crowd(pthread_t *threads)
{
    int i;

    pthread_mutex_lock(&crowd.mutex);
    crowd.must_stop = 1;
    pthread_mutex_unlock(&crowd.mutex);
    for (i = 0; i < NUM_THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
}

TEST(eight_threads_at_once)
{
    pthread_t threads[NUM_THREADS];
    ifl_events *events = NULL;
    uint64_t i, num_accepted = 0;

    start_crowd(threads);
    sleep_ms(500);
    CHECK(ifl_engine_close(crowd.engine, NULL) == IFL_OK);
    stop_crowd(threads);
    while (ifl_engine_poll(crowd.engine, -1, &events, NULL) == IFL_OK)
        count_ends(events);
    for (i = 0; i < REQUESTS_MAX; i++) {
        num_accepted += crowd.num_accepted[i];
        CHECK(crowd.num_accepted[i] == crowd.num_ended[i]);
    }
    CHECK(num_accepted > 0);
    ifl_engine_destroy(crowd.engine);
}

TEST(destroy_under_fire)
{
    pthread_t threads[NUM_THREADS];
    int round;

    for (round = 0; round < 5; round++) {
        int64_t start;

        start_crowd(threads);
        sleep_ms(10 * round);
        start = now_ms();
        ifl_engine_destroy(crowd.engine);
        CHECK(now_ms() - start < 2500);
        ifl_engine_destroy(crowd.engine);
        stop_crowd(threads);
    }
}
