// The calls of inflight.hpp, with exceptions: a failed call throws, and so does a loop over an answer that fails.
//
//     inflight::throwing::engine engine({"model.gguf"});
//     for (auto& chunk : engine.generate(inflight::request::user("Why is the sky blue?")))
//         std::cout << chunk.text();

#ifndef INFLIGHT_THROWING_HPP
#define INFLIGHT_THROWING_HPP

#include <inflight.hpp>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace inflight::throwing {

/// A failed call or request; what() is the message.
class exception : public std::runtime_error {
public:
    explicit exception(const error& error)
        : std::runtime_error(std::string(error.name()) + ": " + error.message), status_(error.status) {}

    ifl_status status() const noexcept { return status_; }
    ifl_category category() const noexcept { return ifl_status_category(status_); }
    bool is_retryable() const noexcept { return ifl_status_is_retryable(status_) != 0; }

private:
    ifl_status status_;
};

/// The value of a result, or an exception.
template <class T>
T get(result<T> from) {
    if (!from)
        throw exception(from.error());
    return *std::move(from);
}

inline void get(result<void> from) {
    if (!from)
        throw exception(from.error());
}

/// inflight::stream, whose end throws where the request failed. A request that was cancelled or ran out of time has
/// not failed: finish() tells.
class stream : private inflight::stream {
public:
    class iterator {
    public:
        using iterator_category = std::input_iterator_tag;
        using value_type = event;
        using difference_type = std::ptrdiff_t;
        using pointer = const event*;
        using reference = const event&;

        explicit iterator(stream* of) : of_(of) { ++*this; }
        iterator() = default;
        const event& operator*() const noexcept { return *piece_; }
        const event* operator->() const noexcept { return &*piece_; }
        iterator& operator++() { return piece_ = of_->next(), *this; }
        void operator++(int) { ++*this; }
        bool operator==(const iterator& other) const noexcept { return !piece_ && !other.piece_; }
        bool operator!=(const iterator& other) const noexcept { return !(*this == other); }

    private:
        stream* of_ = nullptr;
        std::optional<event> piece_;
    };

    explicit stream(inflight::stream from) noexcept : inflight::stream(std::move(from)) {}

    using inflight::stream::finish;
    using inflight::stream::id;
    iterator begin() { return iterator(this); }
    iterator end() { return {}; }
    std::optional<event> next() {
        auto piece = inflight::stream::next();
        if (error().status != IFL_OK)
            throw exception(error());
        return piece;
    }
    std::string rest() { return get(inflight::stream::rest()); }
    void cancel() const { get(inflight::stream::cancel()); }
};

/// inflight::engine; calls return their value.
class engine {
public:
    explicit engine(const options& options) : inner_(get(inflight::engine::create(options))) {}
    explicit engine(inflight::engine inner) noexcept : inner_(std::move(inner)) {}

    static ifl_memory_plan plan(const options& options) {
        return get(inflight::engine::plan(options));
    }

    /// The engine without exceptions.
    const inflight::engine& inner() const noexcept { return inner_; }
    stream generate(const request& request, std::uint32_t busy_timeout_ms = 0) const {
        return stream(get(inner_.generate(request, busy_timeout_ms)));
    }
    std::uint64_t enqueue(const request& request, ifl_queue* queue = nullptr) const {
        return get(inner_.enqueue(request, queue));
    }
    events poll(std::int32_t timeout_ms) const { return get(inner_.poll(timeout_ms)); }
    void cancel(std::uint64_t request_id) const { get(inner_.cancel(request_id)); }
    queue make_queue() const { return get(inner_.make_queue()); }
    ifl_stats stats() const { return get(inner_.stats()); }
    ifl_model_info model_info() const { return get(inner_.model_info()); }
    std::vector<std::uint32_t> eos_tokens() const { return get(inner_.eos_tokens()); }
    std::string device() const { return get(inner_.device()); }
    std::vector<std::uint32_t> tokenize(std::string_view text, ifl_text_flags flags = 0) const {
        return get(inner_.tokenize(text, flags));
    }
    std::string detokenize(const std::vector<std::uint32_t>& tokens, ifl_text_flags flags = 0) const {
        return get(inner_.detokenize(tokens, flags));
    }
    std::string apply_chat_template(std::string_view messages, ifl_text_flags flags = 0) const {
        return get(inner_.apply_chat_template(messages, flags));
    }
    void close() const { get(inner_.close()); }

private:
    inflight::engine inner_;
};

}  // namespace inflight::throwing

#endif
