// Inflight in C++17: owners for the handles and objects of inflight.h, and answers as ranges. Header-only.
//
//     auto engine = inflight::engine::create({"model.gguf"});
//     if (!engine)
//         return fail(engine.error());
//     auto answer = engine->generate(inflight::request::user("Why is the sky blue?"));
//     for (auto& chunk : *answer)
//         std::cout << chunk.text();
//
// Failure. Calls return a result<T>: a value, or an error with a status of inflight.h and a message. Nothing here
// throws, short of std::bad_alloc, and it compiles with -fno-exceptions -fno-rtti. Who likes exceptions includes
// inflight_throwing.hpp, in which the same calls return the value itself.
//
// Threads. As in inflight.h any thread may call an engine or a queue at any time, but moving or destroying the
// C++ object is for one thread while no other uses it. A stream is for one thread; its cancel() is for any.
//
// Lifetimes. A stream may outlive its engine, and then ends with IFL_CLOSED. What text(), tokens() and the like
// point to lives as long as the batch they came from: in a loop over a stream, until the next round.
//
// Places. An engine takes max_queued_requests requests. Each keeps its place until its end has been read or, where its
// stream or queue was destroyed before, until the engine has ended it, within one step. While all places are taken,
// calls give IFL_BUSY at once. generate with a busy_timeout_ms tries again for as long, which is all there is to do
// where other threads read the streams. Streams that the calling thread itself keeps unread hold their places for ever:
// read one to its end or destroy it. After enqueue, poll every queue that has requests, with a time limit.

#ifndef INFLIGHT_HPP
#define INFLIGHT_HPP

#include <inflight.h>
#include <inflight_request.hpp>

#include <cassert>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

namespace inflight {

/// What went wrong: a status for the program and a message for a person.
struct error {
    ifl_status status = IFL_OK;
    std::string message;

    /// Short English name of the status, such as "busy".
    const char* name() const noexcept { return ifl_status_name(status); }
    ifl_category category() const noexcept { return ifl_status_category(status); }
    /// Whether the same call can succeed later without any change.
    bool is_retryable() const noexcept { return ifl_status_is_retryable(status) != 0; }
};

/// A value, or the error that there is instead. Look before taking the value, which a failed result has not.
template <class T>
class [[nodiscard]] result {
public:
    result(T value) : value_(std::move(value)) {}
    result(inflight::error error) : error_(std::move(error)) {}

    explicit operator bool() const noexcept { return value_.has_value(); }
    bool has_value() const noexcept { return value_.has_value(); }
    /// IFL_OK where there is a value.
    ifl_status status() const noexcept { return error_.status; }
    const inflight::error& error() const noexcept { return error_; }

    T& operator*() & { return *of(value_); }
    const T& operator*() const& { return *of(value_); }
    /// By value, so that a loop over *call() keeps what it loops over alive.
    T operator*() && { return std::move(*of(value_)); }
    T* operator->() { return &*of(value_); }
    const T* operator->() const { return &*of(value_); }

private:
    template <class Optional>
    static Optional& of(Optional& value) {
        assert(value.has_value() && "the result is an error");
        return value;
    }

    std::optional<T> value_;
    inflight::error error_;
};

/// Success, or an error.
template <>
class [[nodiscard]] result<void> {
public:
    result() = default;
    result(inflight::error error) : error_(std::move(error)) {}

    explicit operator bool() const noexcept { return error_.status == IFL_OK; }
    bool has_value() const noexcept { return error_.status == IFL_OK; }
    ifl_status status() const noexcept { return error_.status; }
    const inflight::error& error() const noexcept { return error_; }

private:
    inflight::error error_;
};

/// Numbers that lie in a row in memory of somebody else's.
template <class T>
class view {
public:
    view(const T* data, std::uint64_t size) noexcept : data_(data), size_(static_cast<std::size_t>(size)) {}

    const T* begin() const noexcept { return data_; }
    const T* end() const noexcept { return data_ + size_; }
    const T* data() const noexcept { return data_; }
    std::size_t size() const noexcept { return size_; }
    bool empty() const noexcept { return size_ == 0; }
    const T& operator[](std::size_t index) const { return data_[index]; }

private:
    const T* data_;
    std::size_t size_;
};

namespace detail {

/// Calls the free function of a handle or an object.
template <auto Free>
struct deleter {
    template <class T>
    void operator()(T* owned) const noexcept { Free(owned); }
};

using engine_handle = std::unique_ptr<ifl_engine, deleter<ifl_engine_destroy>>;
using queue_handle = std::unique_ptr<ifl_queue, deleter<ifl_queue_destroy>>;
using events_object = std::unique_ptr<ifl_events, deleter<ifl_events_free>>;
using buffer_object = std::unique_ptr<ifl_buffer, deleter<ifl_buffer_free>>;

/// Takes the error object of a call that has failed.
inline error take(ifl_status status, ifl_error* object) {
    std::uint64_t length = 0;
    const char* text = ifl_error_message(object, &length);
    error taken{status, std::string(text, static_cast<std::size_t>(length))};
    ifl_error_free(object);
    return taken;
}

/// Runs a call whose last parameter is the error.
template <class Call>
result<void> run(Call call) {
    ifl_error* object = nullptr;
    const ifl_status status = call(&object);
    if (status != IFL_OK)
        return take(status, object);
    return {};
}

/// Runs a call that fills a struct which starts with its size.
template <class Struct, class Call>
result<Struct> fill(Call call) {
    Struct filled{};
    filled.struct_size = sizeof filled;
    auto done = run([&](ifl_error** object) { return call(&filled, object); });
    if (!done)
        return done.error();
    return filled;
}

/// Runs a call that gives a buffer.
template <class Call>
result<buffer_object> make_buffer(Call call) {
    ifl_buffer* buffer = nullptr;
    auto done = run([&](ifl_error** object) { return call(&buffer, object); });
    if (!done)
        return done.error();
    return buffer_object(buffer);
}

inline result<std::string> text_of(result<buffer_object> buffer) {
    if (!buffer)
        return buffer.error();
    std::uint64_t length = 0;
    const char* text = ifl_buffer_text(buffer->get(), &length);
    return std::string(text, static_cast<std::size_t>(length));
}

inline result<std::vector<std::uint32_t>> tokens_of(result<buffer_object> buffer) {
    if (!buffer)
        return buffer.error();
    std::uint64_t num = 0;
    const std::uint32_t* tokens = ifl_buffer_tokens(buffer->get(), &num);
    return num == 0 ? std::vector<std::uint32_t>() : std::vector<std::uint32_t>(tokens, tokens + num);
}

}  // namespace detail

/// One event: a piece of output, or the end of a request. Lives as long as the batch that it came in.
class event {
public:
    explicit event(const ifl_event* c) noexcept : c_(c) {}

    std::uint64_t request_id() const noexcept { return c_->request_id; }
    std::uint64_t user_data() const noexcept { return c_->user_data; }
    /// Whether the request has ended; the piece of text is empty then.
    bool is_finished() const noexcept { return c_->kind == IFL_EVENT_FINISHED; }
    /// UTF-8, always whole code points.
    std::string_view text() const noexcept { return {c_->text, static_cast<std::size_t>(c_->text_len)}; }
    view<std::uint32_t> tokens() const noexcept { return {c_->token_ids, c_->num_tokens}; }
    /// Tokens and log-probabilities, `num_logprobs()` for each of `tokens()`.
    view<std::uint32_t> logprob_tokens() const noexcept { return {c_->logprob_tokens, num_entries()}; }
    view<float> logprobs() const noexcept { return {c_->logprobs, num_entries()}; }
    std::uint64_t num_logprobs() const noexcept { return c_->num_logprobs; }
    ifl_finish_reason finish_reason() const noexcept { return c_->finish_reason; }
    ifl_status status() const noexcept { return c_->status; }
    std::string_view message() const noexcept {
        return {c_->message, static_cast<std::size_t>(c_->message_len)};
    }
    /// The whole event in C: counts and timings of a request that has ended, among others.
    const ifl_event& c() const noexcept { return *c_; }

private:
    std::uint64_t num_entries() const noexcept {
        return c_->logprobs == nullptr ? 0 : c_->num_tokens * c_->num_logprobs;
    }

    const ifl_event* c_;
};

/// A batch of events, as a range.
class events {
public:
    class iterator {
    public:
        using iterator_category = std::input_iterator_tag;
        using value_type = event;
        using difference_type = std::ptrdiff_t;
        using pointer = const event*;
        using reference = event;

        iterator(const ifl_events* events, std::uint64_t index) noexcept : events_(events), index_(index) {}
        event operator*() const noexcept { return event(ifl_events_get(events_, index_)); }
        iterator& operator++() noexcept { return ++index_, *this; }
        void operator++(int) noexcept { ++index_; }
        bool operator==(const iterator& other) const noexcept { return index_ == other.index_; }
        bool operator!=(const iterator& other) const noexcept { return index_ != other.index_; }

    private:
        const ifl_events* events_;
        std::uint64_t index_;
    };

    events() = default;
    explicit events(ifl_events* owned) noexcept : owned_(owned) {}

    std::uint64_t size() const noexcept { return ifl_events_count(owned_.get()); }
    bool empty() const noexcept { return size() == 0; }
    event operator[](std::uint64_t index) const noexcept { return event(ifl_events_get(owned_.get(), index)); }
    iterator begin() const noexcept { return {owned_.get(), 0}; }
    iterator end() const noexcept { return {owned_.get(), size()}; }

private:
    detail::events_object owned_;
};

/// A completion queue, for a part of the host that drains its own requests.
class queue {
public:
    /// Adopts a handle.
    explicit queue(ifl_queue* owned) noexcept : handle_(owned) {}

    ifl_queue* get() const noexcept { return handle_.get(); }
    /// Takes every event that waits; 0: does not block, -1: waits for one.
    result<events> poll(std::int32_t timeout_ms) const {
        ifl_events* batch = nullptr;
        auto done = detail::run([&](ifl_error** e) { return ifl_queue_poll(get(), timeout_ms, &batch, e); });
        if (!done)
            return done.error();
        return events(batch);
    }
    /// A descriptor that is readable while events wait; it belongs to the queue.
    result<std::int32_t> fd() const {
        std::int32_t fd = -1;
        auto done = detail::run([&](ifl_error** e) { return ifl_queue_fd(get(), &fd, e); });
        if (!done)
            return done.error();
        return fd;
    }

private:
    detail::queue_handle handle_;
};

/// How a request ended.
struct finish {
    ifl_finish_reason reason = IFL_FINISH_NONE;
    inflight::error error;
    std::uint32_t num_prompt_tokens = 0;
    std::uint32_t num_output_tokens = 0;
    std::uint64_t queued_us = 0;
    std::uint64_t first_token_us = 0;
    std::uint64_t total_us = 0;
};

/// The answer to one request as a range of its pieces, each of which the loop waits for. Destroying it cancels what
/// has not ended.
class stream {
public:
    /// Moves on to the next piece where the loop does; compares equal to the end where there is none.
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

    /// For engine::generate: the queue gets the events of this request alone.
    stream(ifl_engine* engine, inflight::queue queue, std::uint64_t id) noexcept
        : engine_(engine), queue_(std::move(queue)), id_(id) {}

    iterator begin() { return iterator(this); }
    iterator end() { return {}; }
    /// Waits for the next piece of output; nothing where the request has ended.
    std::optional<event> next() {
        while (finish_.reason == IFL_FINISH_NONE) {
            if (index_ == batch_.size()) {
                wait();
                continue;
            }
            const event piece = batch_[index_++];
            if (!piece.is_finished())
                return piece;
            take_finish(piece);
        }
        return std::nullopt;
    }
    /// Waits for the end and returns the text of what has not been read yet.
    result<std::string> rest() {
        std::string text;
        while (auto piece = next())
            text += piece->text();
        if (finish_.error.status != IFL_OK)
            return finish_.error;
        return text;
    }
    /// Asks for the end within one step. For any thread.
    result<void> cancel() const {
        return detail::run([&](ifl_error** e) { return ifl_engine_cancel(engine_, id_, e); });
    }
    std::uint64_t id() const noexcept { return id_; }
    /// How it ended; the reason is IFL_FINISH_NONE until the loop has come to the end.
    const inflight::finish& finish() const noexcept { return finish_; }
    /// What went wrong, or IFL_OK.
    const inflight::error& error() const noexcept { return finish_.error; }

private:
    void wait() {
        auto batch = queue_.poll(-1);
        if (batch) {
            batch_ = *std::move(batch);
            index_ = 0;
        } else {
            finish_.reason = IFL_FINISH_ERROR;
            finish_.error = batch.error();
        }
    }
    void take_finish(const event& last) {
        finish_.reason = last.finish_reason();
        finish_.error = {last.status(), std::string(last.message())};
        finish_.num_prompt_tokens = last.c().num_prompt_tokens;
        finish_.num_output_tokens = last.c().num_output_tokens;
        finish_.queued_us = last.c().queued_us;
        finish_.first_token_us = last.c().first_token_us;
        finish_.total_us = last.c().total_us;
    }

    ifl_engine* engine_;
    inflight::queue queue_;
    std::uint64_t id_;
    events batch_;
    std::uint64_t index_ = 0;
    inflight::finish finish_;
};

/// A loaded model and the threads that run it.
class engine {
public:
    /// Loads a model; takes as long as that does.
    static result<engine> create(const options& options) {
        const ifl_engine_options c = options.to_c();
        ifl_engine* handle = nullptr;
        auto done = detail::run([&](ifl_error** e) { return ifl_engine_create(&c, &handle, e); });
        if (!done)
            return done.error();
        return engine(handle);
    }
    /// What create with the same options would reserve.
    static result<ifl_memory_plan> plan(const options& options) {
        const ifl_engine_options c = options.to_c();
        return detail::fill<ifl_memory_plan>([&](auto* to, auto e) { return ifl_engine_plan(&c, to, e); });
    }
    /// Adopts a handle.
    explicit engine(ifl_engine* owned) noexcept : handle_(owned) {}

    ifl_engine* get() const noexcept { return handle_.get(); }

    /// Asks, and returns the answer as a range that waits for its pieces. Where every place is taken, tries again for
    /// `busy_timeout_ms` before it gives IFL_BUSY.
    result<stream> generate(const request& request, std::uint32_t busy_timeout_ms = 0) const {
        const auto give_up_at = std::chrono::steady_clock::now() + std::chrono::milliseconds(busy_timeout_ms);
        auto queue = make_queue();
        if (!queue)
            return queue.error();
        auto id = enqueue(request, queue->get());
        while (id.status() == IFL_BUSY && std::chrono::steady_clock::now() < give_up_at) {
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
            id = enqueue(request, queue->get());
        }
        if (!id)
            return id.error();
        return stream(get(), *std::move(queue), *id);
    }
    /// Asks; the answer comes as events, here or in a queue. Returns the request's id. Does not wait for the model;
    /// ifl_engine_enqueue says what a prompt costs. After IFL_BUSY, poll every queue that has requests, with a time
    /// limit, and try again.
    result<std::uint64_t> enqueue(const request& request, ifl_queue* queue = nullptr) const {
        std::uint64_t id = 0;
        auto done = request.with_c(queue, [&](const ifl_request& c) {
            return detail::run([&](ifl_error** e) { return ifl_engine_enqueue(get(), &c, &id, e); });
        });
        if (!done)
            return done.error();
        return id;
    }
    /// Takes every event that waits in the engine's own queue; 0: does not block, -1: waits for one.
    result<events> poll(std::int32_t timeout_ms) const {
        ifl_events* batch = nullptr;
        auto done = detail::run([&](ifl_error** e) { return ifl_engine_poll(get(), timeout_ms, &batch, e); });
        if (!done)
            return done.error();
        return events(batch);
    }
    result<void> cancel(std::uint64_t request_id) const {
        return detail::run([&](ifl_error** e) { return ifl_engine_cancel(get(), request_id, e); });
    }
    result<queue> make_queue() const {
        ifl_queue* handle = nullptr;
        auto done = detail::run([&](ifl_error** e) { return ifl_queue_create(get(), &handle, e); });
        if (!done)
            return done.error();
        return queue(handle);
    }
    result<ifl_stats> stats() const {
        return detail::fill<ifl_stats>([&](auto* to, auto e) { return ifl_engine_stats(get(), to, e); });
    }
    result<ifl_model_info> model_info() const {
        return detail::fill<ifl_model_info>(
            [&](auto* to, auto e) { return ifl_engine_model_info(get(), to, e); });
    }
    result<std::vector<std::uint32_t>> eos_tokens() const {
        return detail::tokens_of(
            detail::make_buffer([&](auto to, auto e) { return ifl_engine_eos_tokens(get(), to, e); }));
    }
    result<std::string> device() const {
        return detail::text_of(
            detail::make_buffer([&](auto to, auto e) { return ifl_engine_device(get(), to, e); }));
    }
    result<std::vector<std::uint32_t>> tokenize(std::string_view text, ifl_text_flags flags = 0) const {
        return detail::tokens_of(detail::make_buffer([&](auto to, auto e) {
            return ifl_tokenize(get(), text.data(), text.size(), flags, to, e);
        }));
    }
    result<std::string> detokenize(const std::vector<std::uint32_t>& tokens, ifl_text_flags flags = 0) const {
        return detail::text_of(detail::make_buffer([&](auto to, auto e) {
            return ifl_detokenize(get(), tokens.data(), tokens.size(), flags, to, e);
        }));
    }
    /// The text that the model's template makes of a JSON array of chat messages.
    result<std::string> apply_chat_template(std::string_view messages, ifl_text_flags flags = 0) const {
        return detail::text_of(detail::make_buffer([&](auto to, auto e) {
            return ifl_apply_chat_template(get(), messages.data(), messages.size(), flags, to, e);
        }));
    }
    /// Ends every request with IFL_CLOSED and stops the engine's threads. Closing twice does nothing.
    result<void> close() const {
        return detail::run([&](ifl_error** e) { return ifl_engine_close(get(), e); });
    }

private:
    detail::engine_handle handle_;
};

}  // namespace inflight

#endif
