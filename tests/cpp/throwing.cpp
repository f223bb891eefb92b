// The flavour with exceptions, and the header in a second translation unit of a program that uses both.

#include <inflight_throwing.hpp>

#include <cstdio>
#include <string>

namespace {

using inflight::request;

int num_passed = 0;
int num_failed = 0;

void check(bool holds, const char* what) {
    std::printf("%s %s\n", holds ? "ok    " : "FAILED", what);
    (holds ? num_passed : num_failed)++;
}

// Whether the call throws this status with a text that has a message.
template <class Call>
bool throws(ifl_status status, Call call) {
    try {
        call();
    } catch (const inflight::throwing::exception& caught) {
        return caught.status() == status && std::string(caught.what()).size() > std::string("closed: ").size();
    }
    return false;
}

}  // namespace

int main() {
    inflight::throwing::engine engine({"", "echo:1000"});
    std::string text;
    for (auto& chunk : engine.generate(request::text("without a check")))
        text += chunk.text();
    check(text == "without a check", "streams a temporary answer");
    check(engine.detokenize(engine.tokenize("hi")) == "hi", "returns values");
    check(throws(IFL_INVALID_ARGUMENT, [&] { engine.generate(request::text("x").top_p(7.0F)); }),
          "throws where a request is refused");
    check(throws(IFL_MODEL_NOT_FOUND, [] { inflight::throwing::engine({"/nonexistent", "cpu"}); }),
          "throws where a model is missing");
    check(engine.generate(request::text("with time for a place"), 1000).rest() == "with time for a place",
          "passes on how long to wait for a place");
    auto cancelled = engine.generate(request::text(std::string(2000, 'x')));
    cancelled.cancel();
    check(cancelled.rest().size() < 2000 && cancelled.finish().reason == IFL_FINISH_CANCELLED,
          "does not throw where a request was cancelled");
    auto answer = engine.generate(request::text(std::string(2000, 'x')));
    std::size_t length = 0;
    const bool has_thrown = throws(IFL_CLOSED, [&] {
        for (auto& chunk : answer) {
            length += chunk.text().size();
            engine.close();
        }
    });
    check(has_thrown && length > 0 && length < 2000, "throws out of a loop over an answer that fails");
    std::printf("%d passed, %d failed\n", num_passed, num_failed);
    return num_failed > 0;
}
