// The C++ header on a real model.

#include "check.hpp"

#include <cstdlib>

namespace {

using inflight::request;

const inflight::engine& model() {
    static const inflight::engine engine = [] {
        const char* path = std::getenv("INFLIGHT_TEST_MODEL");
        if (path == nullptr)
            check_failed(__FILE__, __LINE__, "INFLIGHT_TEST_MODEL must name the model");
        return must(inflight::engine::create({path == nullptr ? "" : path, "cpu"}));
    }();
    return engine;
}

request make_question() {
    return request::user("Count from one to ten in words.").temperature(0.0F).max_tokens(32);
}

void streams_an_answer() {
    auto answer = must(model().generate(make_question()));
    std::string text;
    std::vector<std::uint32_t> tokens;
    for (auto& chunk : answer) {
        text += chunk.text();
        tokens.insert(tokens.end(), chunk.tokens().begin(), chunk.tokens().end());
    }
    CHECK(tokens.size() > 8 && answer.finish().num_output_tokens == tokens.size());
    CHECK(text == must(model().detokenize(tokens, IFL_TEXT_SKIP_SPECIAL)));
    CHECK(text == must(must(model().generate(make_question())).rest()));
}

void stops_before_a_string_that_spans_tokens() {
    const std::string whole = must(must(model().generate(make_question())).rest());
    const std::size_t cut = whole.size() / 2;
    auto answer = must(model().generate(make_question().stop(whole.substr(cut, 9))));
    CHECK(must(answer.rest()) == whole.substr(0, whole.find(whole.substr(cut, 9))));
    CHECK(answer.finish().reason == IFL_FINISH_STOP);
}

void cancels_in_the_middle() {
    auto answer = must(model().generate(make_question().max_tokens(2000).ignore_eos(true)));
    int num_pieces = 0;
    for ([[maybe_unused]] auto& chunk : answer)
        if (++num_pieces == 3)
            CHECK(answer.cancel().has_value());
    CHECK(num_pieces >= 3 && answer.finish().reason == IFL_FINISH_CANCELLED);
    CHECK(answer.finish().num_output_tokens < 2000);
}

void ends_at_the_deadline() {
    auto answer = must(model().generate(make_question().max_tokens(2000).ignore_eos(true).timeout_ms(100)));
    CHECK(answer.rest().has_value() && answer.finish().reason == IFL_FINISH_DEADLINE);
    CHECK(answer.finish().num_output_tokens < 2000);
}

void repeats_with_a_seed() {
    auto ask = [](std::uint64_t seed) {
        return must(must(model().generate(make_question().temperature(1.5F).seed(seed).max_tokens(12))).rest());
    };
    CHECK(ask(7) == ask(7) && ask(7) != ask(8));
}

void runs_a_thousand_at_once() {
    std::vector<inflight::stream> answers;
    for (int i = 0; i < 1000; i++)
        answers.push_back(must(model().generate(request::text("The").temperature(0.0F).max_tokens(1))));
    for (auto& answer : answers) {
        CHECK(answer.rest().has_value() && answer.finish().num_output_tokens == 1);
        CHECK(answer.finish().reason == IFL_FINISH_LENGTH);
    }
}

}  // namespace

const std::vector<test> model_tests = {
    {"streams_an_answer", streams_an_answer},
    {"stops_before_a_string_that_spans_tokens", stops_before_a_string_that_spans_tokens},
    {"cancels_in_the_middle", cancels_in_the_middle},
    {"ends_at_the_deadline", ends_at_the_deadline},
    {"repeats_with_a_seed", repeats_with_a_seed},
    {"runs_a_thousand_at_once", runs_a_thousand_at_once},
};
