// A program of somebody else's, in C++: one answer of the echo engine.

#include <inflight.hpp>

#include <cstdio>

int main() {
    auto engine = inflight::engine::create({"", "echo"});
    if (!engine)
        return 1;
    auto text = (*engine->generate(inflight::request::text("consumed"))).rest();
    if (!text || *text != "consumed")
        return 1;
    std::puts(text->c_str());
    return 0;
}
