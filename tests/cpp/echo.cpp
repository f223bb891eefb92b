// The C++ header on the echo engine, whose tokens are bytes: what the binding itself does, exactly.

#include "check.hpp"

#include <poll.h>

#include <algorithm>
#include <chrono>
#include <thread>
#include <type_traits>

namespace {

using inflight::request;

static_assert(!std::is_copy_constructible_v<inflight::engine> && !std::is_copy_constructible_v<inflight::stream>);
static_assert(!std::is_copy_constructible_v<inflight::queue> && !std::is_copy_constructible_v<inflight::events>);
static_assert(std::is_nothrow_move_constructible_v<inflight::engine>);
static_assert(std::is_nothrow_move_assignable_v<inflight::queue>);
static_assert(std::is_copy_constructible_v<request>);
// A history that is kept must not point into texts that are gone.
static_assert(std::is_same_v<decltype(inflight::message::content), std::string>);
static_assert(std::is_same_v<decltype(inflight::message::role), std::string>);

bool is_utf8(std::string_view text) {
    std::size_t i = 0;
    while (i < text.size()) {
        const auto first = static_cast<unsigned char>(text[i++]);
        int num_more = first < 0x80 ? 0 : first >= 0xf0 ? 3 : first >= 0xe0 ? 2 : first >= 0xc0 ? 1 : -1;
        if (num_more < 0)
            return false;
        for (; num_more > 0; num_more--, i++)
            if (i == text.size() || (static_cast<unsigned char>(text[i]) & 0xc0) != 0x80)
                return false;
    }
    return true;
}

void streams_an_answer_as_a_range() {
    auto engine = make_echo("echo:5000");
    auto answer = must(engine.generate(request::text("a prompt comes back in pieces")));
    std::string text;
    std::vector<std::uint32_t> tokens;
    int num_pieces = 0;
    for (auto& chunk : answer) {
        text += chunk.text();
        tokens.insert(tokens.end(), chunk.tokens().begin(), chunk.tokens().end());
        CHECK(chunk.request_id() == answer.id() && !chunk.is_finished());
        num_pieces++;
    }
    CHECK(text == "a prompt comes back in pieces" && num_pieces > 1);
    // The last token ends the sequence and has no text.
    CHECK(tokens.size() == text.size() + 1 && std::equal(text.begin(), text.end(), tokens.begin()));
    CHECK(answer.finish().reason == IFL_FINISH_STOP);
    CHECK(answer.finish().num_prompt_tokens == 29 && answer.finish().num_output_tokens == 30);
    CHECK(answer.finish().first_token_us > 0 && answer.finish().total_us >= answer.finish().first_token_us);
    CHECK(answer.error().status == IFL_OK && answer.error().message.empty());
    CHECK(answer.begin() == answer.end() && !answer.next());
}

void keeps_a_temporary_answer_alive_in_a_loop() {
    auto engine = make_echo();
    std::string text;
    for (auto& chunk : *engine.generate(request::text("temporary")))
        text += chunk.text();
    CHECK(text == "temporary");
}

void keeps_code_points_whole() {
    auto engine = make_echo("echo:50");
    const std::string prompt = "Gr\xc3\xbc\xc3\x9f""e \xf0\x9f\x8e\x89\xe2\x82\xac!";
    std::string text;
    auto answer = must(engine.generate(request::text(prompt)));
    for (auto& chunk : answer) {
        CHECK(is_utf8(chunk.text()));
        text += chunk.text();
    }
    CHECK(text == prompt && answer.finish().num_output_tokens == prompt.size() + 1);
    CHECK_FAILS(IFL_INVALID_UTF8, "", engine.generate(request::text("\xc3")));
}

void carries_text_with_nul() {
    auto engine = make_echo();
    const std::string prompt("a\0b", 3);
    CHECK(must(must(engine.generate(request::text(prompt))).rest()) == prompt);
}

void stops_at_strings_and_tokens() {
    auto engine = make_echo();
    auto answer = must(engine.generate(request::text("one, two. Three").stop("zero").stop(". T")));
    CHECK(must(answer.rest()) == "one, two" && answer.finish().reason == IFL_FINISH_STOP);
    answer = must(engine.generate(request::text("one, two. Three").stop_token(',')));
    CHECK(must(answer.rest()) == "one");
    answer = must(engine.generate(request::text("one, two. Three").max_tokens(5)));
    CHECK(must(answer.rest()) == "one, " && answer.finish().reason == IFL_FINISH_LENGTH);
}

void asks_in_four_ways() {
    auto engine = make_echo();
    CHECK(must(must(engine.generate(request::tokens({104, 105}))).rest()) == "hi");
    CHECK(must(must(engine.generate(request::user("hi"))).rest()).find("hi") != std::string::npos);
    const std::vector<inflight::message> chat = {{"system", "line\nline"}, {"user", "say \"hi\" \\ \x01 \xc3\xbc"}};
    const std::string text = must(must(engine.generate(request::chat(chat))).rest());
    CHECK(text.find("line\nline") != std::string::npos);
    CHECK(text.find("say \"hi\" \\ \x01 \xc3\xbc") != std::string::npos);
    CHECK(must(must(engine.generate(request::chat({{"user", "hi"}}))).rest()) ==
          must(must(engine.generate(request::chat_json(R"([{"role":"user","content":"hi"}])"))).rest()));
    CHECK_FAILS(IFL_INVALID_ARGUMENT, "", engine.generate(request::chat_json("no JSON")));
}

void reports_logprobs() {
    auto engine = make_echo();
    auto answer = must(engine.generate(request::text("abc").logprobs(2)));
    std::size_t num_tokens = 0;
    for (auto& chunk : answer) {
        CHECK(chunk.num_logprobs() >= 1);
        CHECK(chunk.logprobs().size() == chunk.tokens().size() * chunk.num_logprobs());
        CHECK(chunk.logprob_tokens().size() == chunk.logprobs().size());
        for (std::size_t i = 0; i < chunk.tokens().size(); i++)
            CHECK(chunk.logprob_tokens()[i * chunk.num_logprobs()] == chunk.tokens()[i]);
        num_tokens += chunk.tokens().size();
    }
    CHECK(num_tokens == 4);
}

void cancels_from_inside_and_from_another_thread() {
    auto engine = make_echo("echo:5000");
    auto answer = must(engine.generate(request::text(std::string(2000, 'x'))));
    std::size_t length = 0;
    for (auto& chunk : answer) {
        length += chunk.text().size();
        CHECK(answer.cancel().has_value() && answer.cancel().has_value());
    }
    CHECK(answer.finish().reason == IFL_FINISH_CANCELLED && length > 0 && length < 2000);
    CHECK(answer.error().status == IFL_OK);

    answer = must(engine.generate(request::text(std::string(2000, 'x'))));
    std::thread other([&] { CHECK(answer.cancel().has_value()); });
    while (answer.next()) {
    }
    other.join();
    CHECK(answer.finish().reason == IFL_FINISH_CANCELLED);
}

void cancels_what_is_not_read() {
    auto engine = make_echo("echo:1000");
    { auto dropped = must(engine.generate(request::text(std::string(2000, 'x')))); }
    for (int i = 0; i < 2000 && must(engine.stats()).num_finished == 0; i++)
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    const ifl_stats stats = must(engine.stats());
    CHECK(stats.num_accepted == 1 && stats.num_finished == 1 && stats.num_output_tokens < 2000);
}

void ends_at_the_deadline() {
    auto engine = make_echo("echo:5000");
    auto answer = must(engine.generate(request::text(std::string(2000, 'x')).timeout_ms(40)));
    CHECK(must(answer.rest()).size() < 2000);
    CHECK(answer.finish().reason == IFL_FINISH_DEADLINE && answer.finish().total_us >= 40000);
}

void says_busy_when_the_queue_is_full() {
    inflight::options options;
    options.max_queued_requests = 2;
    auto engine = make_echo("echo:5000", options);
    auto first = must(engine.generate(request::text(std::string(2000, 'x'))));
    auto second = must(engine.generate(request::text(std::string(2000, 'x'))));
    auto third = engine.generate(request::text("third"));
    CHECK(third.status() == IFL_BUSY && third.error().is_retryable() && !third.error().message.empty());
    CHECK(third.error().category() == IFL_CATEGORY_RESOURCE && std::string(third.error().name()) == "busy");
    CHECK(first.cancel() && second.cancel() && first.rest() && second.rest());
    CHECK(must(must(engine.generate(request::text("third"))).rest()) == "third");
}

void waits_for_the_place_of_a_dropped_stream() {
    inflight::options options;
    options.max_queued_requests = 1;
    auto engine = make_echo("echo:20000", options);
    bool was_busy = false;
    // Dropped in the middle of a step, unless this thread was not on time.
    for (int round = 0; round < 50 && !was_busy; round++) {
        {
            auto dropped = must(engine.generate(request::text("dropped"), 10000));
            CHECK(dropped.next().has_value());
            std::this_thread::sleep_for(std::chrono::milliseconds(5));
        }
        was_busy = engine.generate(request::text("x")).status() == IFL_BUSY;
        CHECK(must(must(engine.generate(request::text("next"), 10000)).rest()) == "next");
    }
    CHECK(was_busy);
}

void gives_up_where_no_place_comes_free() {
    inflight::options options;
    options.max_queued_requests = 1;
    auto engine = make_echo("echo", options);
    auto unread = must(engine.generate(request::text("unread")));
    const auto start = std::chrono::steady_clock::now();
    CHECK_FAILS(IFL_BUSY, "", engine.generate(request::text("x"), 50));
    CHECK(std::chrono::steady_clock::now() - start >= std::chrono::milliseconds(50));
    std::thread reader([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        CHECK(must(unread.rest()) == "unread");
    });
    CHECK(must(must(engine.generate(request::text("next"), 10000)).rest()) == "next");
    reader.join();
}

void runs_a_thousand_at_once() {
    auto engine = make_echo();
    std::vector<inflight::stream> answers;
    for (int i = 0; i < 1000; i++)
        answers.push_back(must(engine.generate(request::text("answer " + std::to_string(i)))));
    int num_right = 0;
    for (int i = 999; i >= 0; i--)
        num_right += must(answers[static_cast<std::size_t>(i)].rest()) == "answer " + std::to_string(i);
    CHECK(num_right == 1000);
    CHECK(must(engine.stats()).num_finished == 1000);
}

void polls_many_through_one_queue() {
    auto engine = make_echo("echo:100");
    auto queue = must(engine.make_queue());
    const int fd = must(queue.fd());
    CHECK(must(queue.poll(0)).empty());
    std::vector<std::string> texts(50);
    for (std::uint64_t i = 0; i < texts.size(); i++)
        must(engine.enqueue(request::text("number " + std::to_string(i)).user_data(i), queue.get()));
    std::size_t num_ended = 0;
    while (num_ended < texts.size()) {
        pollfd waiting = {fd, POLLIN, 0};
        CHECK(::poll(&waiting, 1, 10000) == 1);
        for (const auto& event : must(queue.poll(0))) {
            texts[event.user_data()] += event.text();
            num_ended += event.is_finished();
        }
    }
    for (std::size_t i = 0; i < texts.size(); i++)
        CHECK(texts[i] == "number " + std::to_string(i));
    CHECK(must(engine.poll(0)).empty());
}

void ends_streams_when_the_engine_goes() {
    auto engine = make_echo("echo:5000");
    auto answer = must(engine.generate(request::text(std::string(2000, 'x'))));
    CHECK(answer.next().has_value());
    { auto gone = std::move(engine); }
    CHECK_FAILS(IFL_CLOSED, "", answer.rest());
    CHECK(answer.finish().reason == IFL_FINISH_ERROR && answer.error().status == IFL_CLOSED);
    CHECK(!answer.next() && !answer.cancel());
}

void destroys_while_other_threads_read() {
    auto engine = make_echo("echo:2000");
    std::vector<std::thread> readers;
    for (int i = 0; i < 4; i++)
        readers.emplace_back([answer = must(engine.generate(request::text(std::string(2000, 'x'))))]() mutable {
            CHECK_FAILS(IFL_CLOSED, "", answer.rest());
        });
    { auto gone = std::move(engine); }
    for (auto& reader : readers)
        reader.join();
}

void refuses_work_after_close() {
    auto engine = make_echo();
    CHECK(engine.close().has_value() && engine.close().has_value());
    CHECK_FAILS(IFL_CLOSED, "", engine.generate(request::text("x")));
    CHECK_FAILS(IFL_CLOSED, "", engine.make_queue());
    auto moved = std::move(engine);
    CHECK_FAILS(IFL_INVALID_HANDLE, "", engine.generate(request::text("x")));
    CHECK_FAILS(IFL_INVALID_HANDLE, "", engine.stats());
    CHECK_FAILS(IFL_INVALID_HANDLE, "", engine.close());
    auto stream = must(make_echo().generate(request::text("x")));
    auto taken = std::move(stream);
    CHECK_FAILS(IFL_INVALID_HANDLE, "", stream.rest());
}

void says_what_is_wrong() {
    auto engine = make_echo();
    CHECK_FAILS(IFL_INVALID_ARGUMENT, "top_p", engine.generate(request::text("x").top_p(2.0F)));
    CHECK_FAILS(IFL_INVALID_ARGUMENT, "temperature", engine.generate(request::text("x").temperature(-3.0F)));
    CHECK_FAILS(IFL_INVALID_ARGUMENT, "warp", inflight::engine::create({"model", "warp"}));
    CHECK_FAILS(IFL_MODEL_NOT_FOUND, "/nonexistent", inflight::engine::create({"/nonexistent", "cpu"}));
    CHECK_FAILS(IFL_INVALID_ARGUMENT, "", engine.detokenize({1000000}));
}

void answers_questions_about_the_engine() {
    auto engine = make_echo();
    const auto tokens = must(engine.tokenize("hi"));
    CHECK((tokens == std::vector<std::uint32_t>{104, 105}) && must(engine.detokenize(tokens)) == "hi");
    CHECK(must(engine.tokenize("")).empty() && must(engine.detokenize({})).empty());
    CHECK(must(engine.device()) == "echo");
    const auto eos = must(engine.eos_tokens());
    CHECK(eos.empty() || eos[0] < must(engine.model_info()).vocab_size);
    CHECK(must(engine.model_info()).has_chat_template == 1);
    CHECK(must(inflight::engine::plan({"", "echo"})).fits == 1);
    inflight::options options = {".", "cpu"};
    options.spec = "no_such_spec.json";
    const auto planned = inflight::engine::plan(options);
    CHECK(planned.status() == IFL_MODEL_NOT_FOUND);
    CHECK(planned.error().message.find("no_such_spec.json") != std::string::npos);
    CHECK(must(engine.apply_chat_template(R"([{"role":"user","content":"hi"}])")).find("hi") != std::string::npos);
}

}  // namespace

const std::vector<test> echo_tests = {
    {"streams_an_answer_as_a_range", streams_an_answer_as_a_range},
    {"keeps_a_temporary_answer_alive_in_a_loop", keeps_a_temporary_answer_alive_in_a_loop},
    {"keeps_code_points_whole", keeps_code_points_whole},
    {"carries_text_with_nul", carries_text_with_nul},
    {"stops_at_strings_and_tokens", stops_at_strings_and_tokens},
    {"asks_in_four_ways", asks_in_four_ways},
    {"reports_logprobs", reports_logprobs},
    {"cancels_from_inside_and_from_another_thread", cancels_from_inside_and_from_another_thread},
    {"cancels_what_is_not_read", cancels_what_is_not_read},
    {"ends_at_the_deadline", ends_at_the_deadline},
    {"says_busy_when_the_queue_is_full", says_busy_when_the_queue_is_full},
    {"waits_for_the_place_of_a_dropped_stream", waits_for_the_place_of_a_dropped_stream},
    {"gives_up_where_no_place_comes_free", gives_up_where_no_place_comes_free},
    {"runs_a_thousand_at_once", runs_a_thousand_at_once},
    {"polls_many_through_one_queue", polls_many_through_one_queue},
    {"ends_streams_when_the_engine_goes", ends_streams_when_the_engine_goes},
    {"destroys_while_other_threads_read", destroys_while_other_threads_read},
    {"refuses_work_after_close", refuses_work_after_close},
    {"says_what_is_wrong", says_what_is_wrong},
    {"answers_questions_about_the_engine", answers_questions_about_the_engine},
};
