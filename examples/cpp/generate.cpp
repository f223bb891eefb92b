// Asks a model: streams one answer to the terminal, or runs many prompts together and shows each answer as it ends.
//
//     c++ -std=c++17 -Iinclude -Ibindings/cpp -c examples/cpp/generate.cpp
//     c++ -o generate generate.o -Ltarget/release -linflight -Wl,-rpath,"$PWD/target/release"

#include <inflight.hpp>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

namespace {

const char usage[] =
    "usage: generate MODEL [options]\n"
    "\n"
    "MODEL is a model directory in Hugging Face layout or a GGUF file.\n"
    "\n"
    "  --prompt TEXT        what to ask; may be given several times\n"
    "  --prompts-file FILE  ask every line of FILE as well\n"
    "  --many N             ask N times together, taking the prompts in turn\n"
    "  --max-tokens N       longest answer in tokens (default 256)\n"
    "  --temperature T      0 for the likeliest answer (default: what the model recommends)\n"
    "  --device NAME        auto (default), cpu, cuda, cuda:0, or echo, which needs no model\n"
    "  --help               show this text\n"
    "\n"
    "One prompt is streamed. Several are enqueued at once and shown as they end.\n";

// What the command line asks for.
struct config {
    inflight::options options;
    std::vector<std::string> prompts;
    std::uint32_t num_requests = 0;
    std::uint32_t max_tokens = 256;
    float temperature = IFL_MODEL_DEFAULT;
    bool is_chat = false;
};

[[noreturn]] void fail(const std::string& what, const std::string& why) {
    std::fflush(stdout);
    std::fprintf(stderr, "generate: %s: %s\n", what.c_str(), why.c_str());
    std::exit(1);
}

[[noreturn]] void fail(const std::string& what, const inflight::error& error) {
    fail(what, std::string(error.name()) + ": " + error.message);
}

[[noreturn]] void fail_usage(const std::string& what) {
    std::fprintf(stderr, "generate: %s\nTry generate --help.\n", what.c_str());
    std::exit(2);
}

void read_prompts(config& to, const char* path) {
    std::ifstream file(path);
    std::string line;
    if (!file)
        fail(path, std::strerror(errno));
    while (std::getline(file, line))
        if (!line.empty())
            to.prompts.push_back(line);
    if (file.bad())
        fail(path, "it cannot be read");
}

std::uint32_t parse_count(const std::string& option, const char* value) {
    char* end = nullptr;
    errno = 0;
    const unsigned long number = std::strtoul(value, &end, 10);
    if (value[0] < '0' || value[0] > '9' || *end != 0 || errno != 0 || number == 0 || number > 1000000)
        fail_usage("not a number from 1 to 1000000: " + option);
    return static_cast<std::uint32_t>(number);
}

float parse_temperature(const std::string& option, const char* value) {
    char* end = nullptr;
    const double number = std::strtod(value, &end);
    if (end == value || *end != 0 || !(number >= 0.0 && number <= 100.0))
        fail_usage("not a number from 0 to 100: " + option);
    return static_cast<float>(number);
}

void parse_option(config& to, const std::string& option, const char* value) {
    if (option == "--prompt")
        to.prompts.emplace_back(value);
    else if (option == "--prompts-file")
        read_prompts(to, value);
    else if (option == "--many")
        to.num_requests = parse_count(option, value);
    else if (option == "--max-tokens")
        to.max_tokens = parse_count(option, value);
    else if (option == "--temperature")
        to.temperature = parse_temperature(option, value);
    else if (option == "--device")
        to.options.device = value;
    else
        fail_usage("unknown option " + option);
}

config parse(int argc, char** argv) {
    config parsed;
    bool has_model = false;
    for (int i = 1; i < argc; i++) {
        const std::string option = argv[i];
        if (option == "--help" || option == "-h") {
            std::fputs(usage, stdout);
            std::exit(0);
        }
        if (option.compare(0, 2, "--") != 0) {
            if (has_model)
                fail_usage("a second model: " + option);
            parsed.options.model = option;
            has_model = true;
            continue;
        }
        if (++i == argc)
            fail_usage("a value is missing after " + option);
        parse_option(parsed, option, argv[i]);
    }
    if (!has_model && parsed.options.device.compare(0, 4, "echo") != 0)
        fail_usage("which MODEL?");
    if (parsed.prompts.empty())
        fail_usage("nothing to ask; give --prompt or --prompts-file");
    if (parsed.num_requests == 0)
        parsed.num_requests = static_cast<std::uint32_t>(parsed.prompts.size());
    return parsed;
}

const std::string& prompt_of(const config& from, std::size_t number) {
    return from.prompts[number % from.prompts.size()];
}

inflight::request make_request(const config& from, std::size_t number) {
    const std::string& prompt = prompt_of(from, number);
    auto request = from.is_chat ? inflight::request::user(prompt) : inflight::request::text(prompt);
    return request.max_tokens(from.max_tokens).temperature(from.temperature).user_data(number);
}

double seconds(std::uint64_t microseconds) {
    return static_cast<double>(microseconds) / 1e6;
}

void show_speed(const inflight::finish& end) {
    std::printf("\n%u tokens in %.2f s", end.num_output_tokens, seconds(end.total_us));
    if (end.num_output_tokens > 1)
        std::printf(": the first after %.2f s, then %.1f tokens/s", seconds(end.first_token_us),
                    (end.num_output_tokens - 1) / seconds(end.total_us - end.first_token_us));
    std::putchar('\n');
}

void stream_one(const inflight::engine& engine, const config& from) {
    auto answer = engine.generate(make_request(from, 0));
    if (!answer)
        fail("the request was not accepted", answer.error());
    for (auto& chunk : *answer) {
        std::fwrite(chunk.text().data(), 1, chunk.text().size(), stdout);
        std::fflush(stdout);
    }
    std::putchar('\n');
    if (answer->error().status != IFL_OK)
        fail(answer->error().name(), answer->error().message);
    show_speed(answer->finish());
}

// What is known about all requests together.
struct summary {
    std::uint64_t num_ended = 0;
    std::uint64_t num_failed = 0;
    std::uint64_t num_tokens = 0;
};

// Prints an answer that has ended.
void show_answer(const config& from, const inflight::event& end, const std::string& text, summary& all) {
    all.num_ended++;
    all.num_tokens += end.c().num_output_tokens;
    std::printf("--- prompt %u, %u tokens in %.2f s: %s\n", static_cast<unsigned>(end.user_data()) + 1,
                end.c().num_output_tokens, seconds(end.c().total_us), prompt_of(from, end.user_data()).c_str());
    if (end.status() != IFL_OK) {
        all.num_failed++;
        std::printf("(failed: %s: %s)\n\n", ifl_status_name(end.status()), end.c().message);
    } else {
        std::printf("%s\n\n", text.empty() ? "(no text)" : text.c_str());
    }
    std::fflush(stdout);
}

void take_events(const inflight::engine& engine, const config& from, std::vector<std::string>& texts,
                 summary& all) {
    auto events = engine.poll(-1);
    if (!events)
        fail("polling failed", events.error());
    for (const auto& event : *events) {
        std::string& text = texts[event.user_data()];
        text += event.text();
        if (event.is_finished()) {
            show_answer(from, event, text, all);
            text = {};
        }
    }
}

bool run_many(const inflight::engine& engine, const config& from) {
    std::vector<std::string> texts(from.num_requests);
    summary all;
    const auto start = std::chrono::steady_clock::now();
    for (std::uint32_t number = 0; number < from.num_requests;) {
        auto id = engine.enqueue(make_request(from, number));
        if (id)
            number++;
        else if (id.status() == IFL_BUSY)  // The bounded queue is full: make room, then try again.
            take_events(engine, from, texts, all);
        else
            fail("a request was not accepted", id.error());
    }
    std::printf("%u prompts are in flight together.\n\n",
                from.num_requests - static_cast<unsigned>(all.num_ended));
    while (all.num_ended < from.num_requests)
        take_events(engine, from, texts, all);
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    std::printf("%u answers, %u tokens in %.2f s: %.1f tokens/s together\n",
                static_cast<unsigned>(all.num_ended), static_cast<unsigned>(all.num_tokens), elapsed.count(),
                static_cast<double>(all.num_tokens) / elapsed.count());
    return all.num_failed == 0;
}

}  // namespace

int main(int argc, char** argv) {
    config parsed = parse(argc, argv);
    auto engine = inflight::engine::create(parsed.options);
    if (!engine)
        fail("the model cannot be loaded", engine.error());
    auto info = engine->model_info();
    if (!info)
        fail("the model cannot be described", info.error());
    parsed.is_chat = info->has_chat_template != 0;
    if (parsed.num_requests > 1)
        return run_many(*engine, parsed) ? 0 : 1;
    stream_one(*engine, parsed);
    return 0;
}
