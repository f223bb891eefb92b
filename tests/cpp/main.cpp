// Runs the tests of the C++ header: `cpp_test echo` without a model, `cpp_test model` with that of
// INFLIGHT_TEST_MODEL.

#include "check.hpp"

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {
bool has_failed = false;
}

void check_failed(const char* file, int line, const std::string& what) {
    std::fprintf(stderr, "%s:%d: %s\n", file, line, what.c_str());
    has_failed = true;
}

int main(int argc, char** argv) {
    if (argc != 2 || (std::strcmp(argv[1], "echo") != 0 && std::strcmp(argv[1], "model") != 0)) {
        std::fprintf(stderr, "usage: %s echo|model\n", argv[0]);
        return 2;
    }
    int num_passed = 0, num_failed = 0;
    for (const test& one : std::strcmp(argv[1], "echo") == 0 ? echo_tests : model_tests) {
        has_failed = false;
        one.run();
        std::printf("%s %s\n", has_failed ? "FAILED" : "ok    ", one.name);
        std::fflush(stdout);
        (has_failed ? num_failed : num_passed)++;
    }
    std::printf("%d passed, %d failed\n", num_passed, num_failed);
    return num_failed > 0;
}
