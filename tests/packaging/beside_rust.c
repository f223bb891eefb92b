/* A program with two static libraries that are written in Rust. */

#include <inflight.h>

int other_recovers(void);

int main(void)
{
    ifl_engine_options options = IFL_ENGINE_OPTIONS_INIT;
    ifl_engine *engine = NULL;

    options.device = "echo";
    if (ifl_engine_create(&options, &engine, NULL) != IFL_OK || other_recovers() != 7)
        return 1;
    ifl_engine_destroy(engine);
    return 0;
}
