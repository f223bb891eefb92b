// What the tests of the C++ header share: checks, and a list of tests that the main program runs.

#ifndef CHECK_HPP
#define CHECK_HPP

#include <inflight.hpp>

#include <cstdlib>
#include <string>
#include <vector>

struct test {
    const char* name;
    void (*run)();
};

// Remembers that the test under way has failed, and says where.
void check_failed(const char* file, int line, const std::string& what);

// The test goes on, so that what it owns is given back.
#define CHECK(condition)                                  \
    do {                                                  \
        if (!(condition))                                 \
            check_failed(__FILE__, __LINE__, #condition); \
    } while (0)

// The result must be an error with this status and a message that has this text.
#define CHECK_FAILS(expected, text, call)                                                          \
    do {                                                                                           \
        auto got_ = (call);                                                                        \
        if (got_.has_value() || got_.status() != (expected) ||                                     \
            got_.error().message.find(text) == std::string::npos || got_.error().message.empty()) \
            check_failed(__FILE__, __LINE__,                                                       \
                         std::string(#call " gave ") + got_.error().name() + ": " + got_.error().message); \
    } while (0)

// The value of a call that must succeed; ends the program where it does not.
template <class T>
T must(inflight::result<T> from) {
    if (!from) {
        check_failed(__FILE__, __LINE__, std::string(from.error().name()) + ": " + from.error().message);
        std::abort();
    }
    return *std::move(from);
}

inline inflight::engine make_echo(const char* device = "echo", inflight::options options = {}) {
    options.device = device;
    return must(inflight::engine::create(options));
}

extern const std::vector<test> echo_tests;
extern const std::vector<test> model_tests;

#endif
