// A game's loop: 60 frames a second, in which characters talk. Each frame moves the world and then takes what the
// engine has said since the last one, without waiting and for at most --cap-ms. Prints how long frames take without
// an engine and with one.
//
//     c++ -std=c++17 -O2 -Iinclude -Ibindings/cpp -c examples/cpp/frame_loop.cpp
//     c++ -o frame_loop frame_loop.o -Ltarget/release -linflight -Wl,-rpath,"$PWD/target/release"

#include <inflight.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <thread>
#include <vector>

namespace {

using clock_type = std::chrono::steady_clock;
using milliseconds = std::chrono::duration<double, std::milli>;

const char usage[] =
    "usage: frame_loop MODEL [options]\n"
    "\n"
    "MODEL is a model directory in Hugging Face layout or a GGUF file.\n"
    "\n"
    "  --characters N   characters that talk at the same time (default 4)\n"
    "  --seconds S      length of each measurement (default 5)\n"
    "  --cap-ms T       most time of a frame to spend on what was said (default 1)\n"
    "  --work-ms T      what the rest of the game takes of a frame (default 4)\n"
    "  --threads N      compute threads of the engine (default: all cores but one)\n"
    "  --device NAME    auto (default), cpu, cuda, or echo, which needs no model\n"
    "  --help           show this text\n";

constexpr milliseconds frame_budget(1000.0 / 60.0);

// What the command line asks for.
struct config {
    inflight::options options;
    std::size_t num_characters = 4;
    double seconds = 5.0;
    milliseconds cap{1.0};
    milliseconds work{4.0};
};

[[noreturn]] void fail(const std::string& what) {
    std::fprintf(stderr, "frame_loop: %s\n", what.c_str());
    std::exit(1);
}

double parse_number(const std::string& option, const char* value, double least, double most) {
    char* end = nullptr;
    const double number = std::strtod(value, &end);
    if (end == value || *end != 0 || !(number >= least && number <= most)) {
        std::fprintf(stderr, "frame_loop: not a number from %g to %g: %s\n", least, most, option.c_str());
        std::exit(2);
    }
    return number;
}

void parse_option(config& to, const std::string& option, const char* value) {
    if (option == "--characters")
        to.num_characters = static_cast<std::size_t>(parse_number(option, value, 1, 64));
    else if (option == "--seconds")
        to.seconds = parse_number(option, value, 0.1, 3600);
    else if (option == "--cap-ms")
        to.cap = milliseconds(parse_number(option, value, 0, 16));
    else if (option == "--work-ms")
        to.work = milliseconds(parse_number(option, value, 0, 16));
    else if (option == "--threads")
        to.options.num_threads = static_cast<std::uint32_t>(parse_number(option, value, 1, 256));
    else if (option == "--device")
        to.options.device = value;
    else
        fail("unknown option " + option);
}

config parse(int argc, char** argv) {
    config parsed;
    // The frame needs a core of its own.
    parsed.options.num_threads = std::max(std::thread::hardware_concurrency(), 2U) - 1;
    for (int i = 1; i < argc; i++) {
        const std::string option = argv[i];
        if (option == "--help" || option == "-h") {
            std::fputs(usage, stdout);
            std::exit(0);
        }
        if (option.compare(0, 2, "--") != 0)
            parsed.options.model = option;
        else if (++i < argc)
            parse_option(parsed, option, argv[i]);
        else
            fail("a value is missing after " + option);
    }
    if (parsed.options.model.empty() && parsed.options.device.compare(0, 4, "echo") != 0)
        fail("which MODEL? Try frame_loop --help.");
    return parsed;
}

// The rest of the game: particles that fly about, as many as take the time asked for.
class world {
public:
    explicit world(milliseconds work) {
        constexpr std::size_t num_sample = 20000;
        particles_.resize(num_sample);
        const auto start = clock_type::now();
        for (int i = 0; i < 10; i++)
            move();
        const double per_particle = milliseconds(clock_type::now() - start).count() / (10.0 * num_sample);
        particles_.resize(static_cast<std::size_t>(work.count() / per_particle));
    }

    void move() {
        for (particle& one : particles_) {
            one.angle += 0.01F;
            one.x += std::sin(one.angle);
            one.y += std::cos(one.angle);
        }
    }

private:
    struct particle {
        float x = 0, y = 0, angle = 0;
    };
    std::vector<particle> particles_;
};

// Characters who talk in turn without end, each in a request of its own.
class cast {
public:
    cast(const inflight::engine& engine, std::size_t num_characters, milliseconds cap)
        : engine_(engine), cap_(cap), lines_(num_characters) {
        for (std::size_t number = 0; number < num_characters; number++)
            speak(number);
    }

    // One frame's share: does not wait for the model, and leaves for the next frame what does not fit under the cap.
    // After a line's end the next prompt is rendered and tokenised here; where frames must not be late by what that may
    // take (see ifl_engine_enqueue), enqueue from another thread.
    void update() {
        const auto start = clock_type::now();
        do {
            if (!waiting_ || next_ == waiting_->size()) {
                auto events = engine_.poll(0);
                if (!events)
                    fail(events.error().message);
                if (events->empty())
                    return;
                waiting_ = *std::move(events);
                next_ = 0;
            }
            hear((*waiting_)[next_++]);
        } while (clock_type::now() - start < cap_);
    }

    std::uint64_t num_tokens() const { return num_tokens_; }
    std::uint64_t num_lines() const { return num_lines_; }
    const std::string& last_line() const { return last_line_; }

private:
    void speak(std::size_t number) {
        static const char* const topics[] = {"the weather", "the harvest", "an old legend", "the king's new taxes"};
        const std::string prompt = "You are villager number " + std::to_string(number + 1) +
                                   ". Say one sentence about " + topics[num_lines_ % 4] + ".";
        auto id = engine_.enqueue(inflight::request::user(prompt).max_tokens(40).user_data(number));
        if (!id)
            fail(id.error().message);
    }

    void hear(const inflight::event& event) {
        std::string& line = lines_[event.user_data()];
        line += event.text();
        num_tokens_ += event.tokens().size();
        if (!event.is_finished())
            return;
        if (event.status() != IFL_OK)
            fail(std::string(event.message()));
        num_lines_++;
        last_line_ = std::move(line);
        line.clear();
        speak(event.user_data());
    }

    const inflight::engine& engine_;
    milliseconds cap_;
    std::optional<inflight::events> waiting_;
    std::uint64_t next_ = 0;
    std::vector<std::string> lines_;
    std::string last_line_;
    std::uint64_t num_tokens_ = 0;
    std::uint64_t num_lines_ = 0;
};

// Times of many frames.
class distribution {
public:
    void add(clock_type::duration time) { times_.push_back(milliseconds(time).count()); }

    void print(const char* name) {
        std::sort(times_.begin(), times_.end());
        const auto late = std::upper_bound(times_.begin(), times_.end(), frame_budget.count());
        std::printf("%-22s %7zu %8.2f %8.2f %8.2f %6zu\n", name, times_.size(), at(0.5), at(0.99), times_.back(),
                    static_cast<std::size_t>(times_.end() - late));
    }

private:
    double at(double share) const {
        return times_[static_cast<std::size_t>(share * static_cast<double>(times_.size() - 1))];
    }

    std::vector<double> times_;
};

// Runs frames for a while. `talk` is the engine's share of each, and may be left out.
template <class Talk>
void run_frames(const char* name, const config& from, world& around, Talk talk, distribution* shares) {
    distribution frames;
    const auto budget = std::chrono::duration_cast<clock_type::duration>(frame_budget);
    const auto num_frames = static_cast<std::size_t>(std::ceil(from.seconds * 60.0));
    auto due = clock_type::now();
    for (std::size_t i = 0; i < num_frames; i++) {
        const auto start = clock_type::now();
        around.move();
        const auto moved = clock_type::now();
        talk();
        const auto end = clock_type::now();
        frames.add(end - start);
        if (shares != nullptr)
            shares->add(end - moved);
        // A frame that is late does not make the next ones hurry.
        due = std::max(due + budget, end);
        std::this_thread::sleep_until(due);
    }
    frames.print(name);
}

}  // namespace

int main(int argc, char** argv) {
    const config parsed = parse(argc, argv);
    world around(parsed.work);
    std::printf("%-22s %7s %8s %8s %8s %6s\n", "frame time in ms", "frames", "p50", "p99", "max", "late");
    run_frames("without the engine", parsed, around, [] {}, nullptr);

    auto engine = inflight::engine::create(parsed.options);
    if (!engine)
        fail(engine.error().message);
    cast actors(*engine, parsed.num_characters, parsed.cap);
    distribution shares;
    run_frames("with the engine", parsed, around, [&] { actors.update(); }, &shares);
    shares.print("  of which the engine");
    std::printf("\n%zu characters said %llu lines, %.1f tokens/s together. The last one:\n%s\n", parsed.num_characters,
                static_cast<unsigned long long>(actors.num_lines()),
                static_cast<double>(actors.num_tokens()) / parsed.seconds, actors.last_line().c_str());
    return actors.num_tokens() > 0 ? 0 : 1;
}
