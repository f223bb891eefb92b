/* What ending engines and queues promises: how long it takes, and what is over when it returns. And what the
 * library's threads leave to the host. */

#define _POSIX_C_SOURCE 200809L

#include "check.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* An engine in the middle of a step that takes much longer than closing may. */
static ifl_engine *make_stuck(void)
{
    ifl_engine *engine = make_echo("echo:8000000", NULL);
    ifl_request request = IFL_REQUEST_INIT;

    request.prompt = "x";
    CHECK(ifl_engine_enqueue(engine, &request, NULL, NULL) == IFL_OK);
    while (stats_of(engine).num_steps == 0)
        sleep_ms(1);
    return engine;
}

static void *close_engine(void *engine)
{
    CHECK(ifl_engine_close(engine, NULL) == IFL_OK);
    return NULL;
}

TEST(a_long_step_delays_nobody_for_two_seconds)
{
    enum { NUM_CLOSERS = 3 };
    ifl_engine *engine = make_stuck();
    pthread_t closers[NUM_CLOSERS];
    int64_t start = now_ms();
    int i;

    ifl_engine_destroy(engine);
    CHECK(now_ms() - start < 2000);

    engine = make_stuck();
    start = now_ms();
    for (i = 0; i < NUM_CLOSERS; i++)
        CHECK(pthread_create(&closers[i], NULL, close_engine, engine) == 0);
    for (i = 0; i < NUM_CLOSERS; i++)
        CHECK(pthread_join(closers[i], NULL) == 0);
    ifl_engine_destroy(engine);
    CHECK(now_ms() - start < 2000);
}

/* A host whose log lines are slow, until it is told that its engine is gone. */
static struct {
    pthread_mutex_t mutex;
    int is_destroyed;
    int num_lines;
    int num_late;
} slow_log = {PTHREAD_MUTEX_INITIALIZER, 0, 0, 0};

static void log_slowly(void *user_data, ifl_log_level level, const char *message, uint64_t message_len)
{
    int is_first;

    (void)user_data;
    (void)message;
    (void)message_len;
    if (level != IFL_LOG_DEBUG)
        return;
    pthread_mutex_lock(&slow_log.mutex);
    is_first = slow_log.num_lines++ == 0;
    slow_log.num_late += slow_log.is_destroyed;
    pthread_mutex_unlock(&slow_log.mutex);
    if (is_first)
        sleep_ms(4000);
}

static void *poll_until_it_fails(void *engine)
{
    ifl_events *events = NULL;
    ifl_status status;

    while ((status = ifl_engine_poll(engine, -1, &events, NULL)) == IFL_OK)
        ifl_events_free(events);
    CHECK(status == IFL_CLOSED || status == IFL_INVALID_HANDLE);
    return NULL;
}

TEST(no_log_line_begins_after_destroy)
{
    ifl_engine_options options = IFL_ENGINE_OPTIONS_INIT;
    ifl_request request = IFL_REQUEST_INIT;
    ifl_engine *engine;
    pthread_t poller;
    int64_t start;
    int i;

    options.log = log_slowly;
    options.log_level = IFL_LOG_DEBUG;
    engine = make_echo("echo:1000", &options);
    request.prompt = "a few steps";
    for (i = 0; i < 10; i++)
        CHECK(ifl_engine_enqueue(engine, &request, NULL, NULL) == IFL_OK);
    CHECK(pthread_create(&poller, NULL, poll_until_it_fails, engine) == 0);
    sleep_ms(200);
    start = now_ms();
    ifl_engine_destroy(engine);
    pthread_mutex_lock(&slow_log.mutex);
    slow_log.is_destroyed = 1;
    pthread_mutex_unlock(&slow_log.mutex);
    CHECK(now_ms() - start < 2000);
    /* Nor does anyone wait longer in a call. */
    CHECK(pthread_join(poller, NULL) == 0);
    CHECK(now_ms() - start < 2000);
    sleep_ms(3000);
    pthread_mutex_lock(&slow_log.mutex);
    CHECK(slow_log.num_lines >= 1 && slow_log.num_late == 0);
    pthread_mutex_unlock(&slow_log.mutex);
}

TEST(a_destroyed_queue_has_closed_its_descriptor)
{
    ifl_engine *engine = make_echo("echo:300000", NULL);
    ifl_request request = IFL_REQUEST_INIT;
    ifl_queue *queue = NULL;
    struct pollfd entry;
    int32_t fd = -1;

    CHECK(ifl_queue_create(engine, &queue, NULL) == IFL_OK && ifl_queue_fd(queue, &fd, NULL) == IFL_OK);
    request.prompt = "which takes a while";
    request.queue = queue;
    CHECK(ifl_engine_enqueue(engine, &request, NULL, NULL) == IFL_OK);
    entry.fd = fd;
    entry.events = POLLIN;
    CHECK(poll(&entry, 1, 30000) == 1);
    ifl_queue_destroy(queue);
    CHECK(fcntl(fd, F_GETFD) == -1 && errno == EBADF);
    ifl_engine_destroy(engine);
}

TEST(requests_of_a_destroyed_queue_do_not_wait_for_their_turn)
{
    ifl_engine_options options = IFL_ENGINE_OPTIONS_INIT;
    ifl_request request = IFL_REQUEST_INIT;
    ifl_queue *queue = NULL;
    ifl_engine *engine;
    ifl_stats stats;
    int64_t start;

    options.max_num_sequences = 1;
    options.max_queued_requests = 3;
    engine = make_echo("echo:10000", &options);
    request.prompt = "long";
    request.max_tokens = 3000;
    request.ignore_eos = 1;
    CHECK(ifl_engine_enqueue(engine, &request, NULL, NULL) == IFL_OK);
    CHECK(ifl_queue_create(engine, &queue, NULL) == IFL_OK);
    request.queue = queue;
    CHECK(ifl_engine_enqueue(engine, &request, NULL, NULL) == IFL_OK);
    CHECK(ifl_engine_enqueue(engine, &request, NULL, NULL) == IFL_OK);
    start = now_ms();
    ifl_queue_destroy(queue);
    request.queue = NULL;
    do {
        stats = stats_of(engine);
        CHECK(now_ms() - start < 5000);
        sleep_ms(1);
    } while (stats.num_finished < 2 || stats.num_waiting > 0);
    CHECK(ifl_engine_enqueue(engine, &request, NULL, NULL) == IFL_OK);
    ifl_engine_destroy(engine);
}

TEST(what_is_not_polled_stays_bounded)
{
    ifl_engine_options options = IFL_ENGINE_OPTIONS_INIT;
    ifl_request request = IFL_REQUEST_INIT;
    answer *got = make_answers(1);
    ifl_events *events = NULL;
    ifl_error *error = NULL;
    ifl_engine *engine;
    int i;

    options.max_queued_requests = 4;
    options.max_unread_tokens = 4;
    engine = make_echo("echo", &options);
    request.prompt = "x";
    for (i = 0; i < 4; i++)
        CHECK(ifl_engine_enqueue(engine, &request, NULL, NULL) == IFL_OK);
    while (stats_of(engine).num_finished < 4)
        sleep_ms(1);
    for (i = 0; i < 20; i++)
        CHECK_FAILS(IFL_BUSY, ifl_engine_enqueue(engine, &request, NULL, &error));
    CHECK(ifl_engine_poll(engine, 0, &events, NULL) == IFL_OK && ifl_events_count(events) >= 8);
    ifl_events_free(events);
    free(got);
    got = ask(engine, &request);
    CHECK(got->reason == IFL_FINISH_STOP);
    free(got);
    ifl_engine_destroy(engine);
}

/* The signals that a thread of this process blocks, by the name of its folder in /proc/self/task; 0 for a thread of
 * the program's own. */
static unsigned long long blocked_by(const char *task)
{
    char path[64], line[256], name[64] = "";
    unsigned long long blocked = 0;
    FILE *status;

    snprintf(path, sizeof path, "/proc/self/task/%.20s/status", task);
    status = fopen(path, "r");
    while (status != NULL && fgets(line, sizeof line, status) != NULL) {
        sscanf(line, "Name: %63s", name);
        sscanf(line, "SigBlk: %llx", &blocked);
    }
    if (status != NULL)
        fclose(status);
    return strncmp(name, "ifl-", 4) == 0 ? blocked : 0;
}

static int has_signal(unsigned long long set, int number)
{
    return (set >> (number - 1) & 1) != 0;
}

TEST(signals_are_left_to_the_host)
{
    ifl_request request = IFL_REQUEST_INIT;
    ifl_engine *engine;
    struct dirent *task;
    DIR *tasks;
    sigset_t before, after;
    int num_threads = 0;

    CHECK(pthread_sigmask(SIG_SETMASK, NULL, &before) == 0);
    engine = make_echo("echo", NULL);
    CHECK(pthread_sigmask(SIG_SETMASK, NULL, &after) == 0);
    CHECK(sigismember(&before, SIGTERM) == 0 && sigismember(&after, SIGTERM) == 0);
    /* An answer takes all threads of the engine, each of which gives itself its name first. */
    request.prompt = "x";
    free(ask(engine, &request));
    tasks = opendir("/proc/self/task");
    CHECK(tasks != NULL);
    while ((task = readdir(tasks)) != NULL) {
        unsigned long long blocked = blocked_by(task->d_name);

        if (blocked != 0) {
            CHECK(has_signal(blocked, SIGTERM) && has_signal(blocked, SIGINT) && has_signal(blocked, SIGUSR1));
            CHECK(!has_signal(blocked, SIGSEGV) && !has_signal(blocked, SIGFPE));
            num_threads++;
        }
    }
    closedir(tasks);
    CHECK(num_threads >= 3);
    ifl_engine_destroy(engine);
}
