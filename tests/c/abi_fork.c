/* A child process that has its parent's process id, as the first process of a container inside a container has, is
 * a child nevertheless. A program of its own because of its getpid. */

#define _POSIX_C_SOURCE 200809L

#include <inflight.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

/* The library calls this one, too. */
pid_t getpid(void)
{
    return 1;
}

static void expect(int holds, const char *what)
{
    if (!holds) {
        fprintf(stderr, "does not hold: %s\n", what);
        _exit(1);
    }
}

/* Forks, runs the function there, and wants it to end well. */
static void in_child(void (*run)(ifl_engine *), ifl_engine *engine)
{
    int wait_status = -1;
    pid_t child = fork();

    expect(child >= 0, "fork");
    if (child == 0) {
        run(engine);
        _exit(0);
    }
    expect(waitpid(child, &wait_status, 0) == child, "waitpid");
    expect(WIFEXITED(wait_status) && WEXITSTATUS(wait_status) == 0, "the child ends well");
}

static ifl_engine *create(void)
{
    ifl_engine_options options = IFL_ENGINE_OPTIONS_INIT;
    ifl_engine *engine = NULL;

    options.device = "echo";
    expect(ifl_engine_create(&options, &engine, NULL) == IFL_OK, "an engine is made");
    return engine;
}

static void is_refused(ifl_engine *engine)
{
    ifl_events *events = NULL;

    expect(ifl_engine_poll(engine, 1000, &events, NULL) == IFL_FORKED, "the parent's engine is refused");
}

static void is_refused_to_child_and_grandchild(ifl_engine *engine)
{
    ifl_engine *own = NULL;

    is_refused(engine);
    own = create();
    in_child(is_refused, own);
    in_child(is_refused, engine);
    ifl_engine_destroy(own);
}

int main(void)
{
    ifl_engine *engine = create();
    ifl_events *events = NULL;

    in_child(is_refused_to_child_and_grandchild, engine);
    expect(ifl_engine_poll(engine, 0, &events, NULL) == IFL_OK, "the parent may go on");
    ifl_engine_destroy(engine);
    return 0;
}
