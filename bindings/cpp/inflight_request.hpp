// What inflight.hpp hands to the library: options of an engine, and requests. Included by it.

#ifndef INFLIGHT_REQUEST_HPP
#define INFLIGHT_REQUEST_HPP

#include <inflight.h>

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace inflight {

namespace detail {

/// Adds a text as a JSON string. The library checks that it is UTF-8.
inline void append_json(std::string& json, std::string_view text) {
    static const char digits[] = "0123456789abcdef";
    json += '"';
    for (const char c : text) {
        const auto byte = static_cast<unsigned char>(c);
        if (byte < 0x20) {
            json += "\\u00";
            json += digits[byte >> 4];
            json += digits[byte & 15];
        } else {
            if (c == '"' || c == '\\')
                json += '\\';
            json += c;
        }
    }
    json += '"';
}

}  // namespace detail

/// What to load, and how: the fields of ifl_engine_options, of which 0 and the empty text mean "choose for me".
struct options {
    std::string model = {};
    std::string device = {};
    ifl_dtype dtype = IFL_DTYPE_AUTO;
    std::uint32_t max_num_sequences = 0;
    std::uint32_t max_batched_tokens = 0;
    std::uint32_t max_model_len = 0;
    std::uint32_t kv_block_size = 0;
    std::uint64_t kv_cache_bytes = 0;
    std::uint64_t memory_limit_bytes = 0;
    std::uint32_t num_threads = 0;
    std::uint32_t max_queued_requests = 0;
    std::uint32_t max_unread_tokens = 0;
    ifl_log_level log_level = 0;
    ifl_log_callback log = nullptr;
    void* log_user_data = nullptr;
    ifl_progress_callback progress = nullptr;
    void* progress_user_data = nullptr;
    std::string spec = {};

    /// The same in C, which points into this object.
    ifl_engine_options to_c() const noexcept {
        ifl_engine_options c = IFL_ENGINE_OPTIONS_INIT;
        c.dtype = dtype;
        if (!model.empty()) {
            c.model = model.data();
            c.model_len = model.size();
        }
        if (!device.empty()) {
            c.device = device.data();
            c.device_len = device.size();
        }
        c.max_num_sequences = max_num_sequences;
        c.max_batched_tokens = max_batched_tokens;
        c.max_model_len = max_model_len;
        c.kv_block_size = kv_block_size;
        c.kv_cache_bytes = kv_cache_bytes;
        c.memory_limit_bytes = memory_limit_bytes;
        c.num_threads = num_threads;
        c.max_queued_requests = max_queued_requests;
        c.max_unread_tokens = max_unread_tokens;
        c.log_level = log_level;
        c.log = log;
        c.log_user_data = log_user_data;
        c.progress = progress;
        c.progress_user_data = progress_user_data;
        if (!spec.empty()) {
            c.spec = spec.data();
            c.spec_len = spec.size();
        }
        return c;
    }
};

/// One message of a chat, with copies of its texts, so that a history of them may be kept.
struct message {
    std::string role;
    std::string content;
};

/// What to ask, and how: the fields of ifl_request, with copies of the texts and lists. Start with one of the four
/// prompts and chain what should differ from the defaults.
class request {
public:
    /// Text for the model to continue, as it stands.
    static request text(std::string_view prompt) { return request(IFL_PROMPT_TEXT, std::string(prompt)); }
    /// What a user says to a chat model.
    static request user(std::string_view prompt) { return request(IFL_PROMPT_USER, std::string(prompt)); }
    /// Token ids.
    static request tokens(std::vector<std::uint32_t> prompt) {
        request made(IFL_PROMPT_TOKENS, {});
        made.prompt_tokens_ = std::move(prompt);
        return made;
    }
    /// A JSON array of chat messages.
    static request chat_json(std::string_view messages) {
        return request(IFL_PROMPT_CHAT, std::string(messages));
    }
    /// Chat messages, from any container of message.
    template <class Messages>
    static request chat(const Messages& messages) {
        std::string json = "[";
        for (const message& one : messages) {
            json += json.size() > 1 ? ",{\"role\":" : "{\"role\":";
            detail::append_json(json, one.role);
            json += ",\"content\":";
            detail::append_json(json, one.content);
            json += '}';
        }
        return request(IFL_PROMPT_CHAT, json + ']');
    }
    static request chat(std::initializer_list<message> messages) {
        return chat<std::initializer_list<message>>(messages);
    }

    request& add_special_tokens(bool flag) { return c_.add_special_tokens = flag, *this; }
    request& parse_special_tokens(bool flag) { return c_.parse_special_tokens = flag, *this; }
    request& max_tokens(std::uint32_t num) { return c_.max_tokens = num, *this; }
    request& min_tokens(std::uint32_t num) { return c_.min_tokens = num, *this; }
    request& ignore_eos(bool flag) { return c_.ignore_eos = flag, *this; }
    request& priority(std::int32_t priority) { return c_.priority = priority, *this; }
    request& timeout_ms(std::uint64_t ms) { return c_.timeout_ms = ms, *this; }
    request& user_data(std::uint64_t data) { return c_.user_data = data, *this; }
    request& temperature(float value) { return c_.temperature = value, *this; }
    request& top_k(std::int32_t num) { return c_.top_k = num, *this; }
    request& top_p(float value) { return c_.top_p = value, *this; }
    request& min_p(float value) { return c_.min_p = value, *this; }
    request& repetition_penalty(float value) { return c_.repetition_penalty = value, *this; }
    request& presence_penalty(float value) { return c_.presence_penalty = value, *this; }
    request& frequency_penalty(float value) { return c_.frequency_penalty = value, *this; }
    request& logprobs(std::int32_t num) { return c_.num_logprobs = num, *this; }
    request& seed(std::uint64_t seed) { return c_.seed = seed, *this; }
    /// One more string that ends the output.
    request& stop(std::string_view text) { return stop_strings_.emplace_back(text), *this; }
    /// One more token that ends the output.
    request& stop_token(std::uint32_t token) { return stop_tokens_.push_back(token), *this; }
    /// A number to add to the logit of one more token.
    request& logit_bias(std::uint32_t token, float bias) {
        bias_tokens_.push_back(token);
        bias_values_.push_back(bias);
        return *this;
    }

    /// Calls `use` with the same in C, which points into this object.
    template <class Use>
    auto with_c(ifl_queue* queue, Use use) const {
        std::vector<const char*> texts;
        std::vector<std::uint64_t> lengths;
        for (const std::string& text : stop_strings_) {
            texts.push_back(text.data());
            lengths.push_back(text.size());
        }
        ifl_request c = c_;
        c.queue = queue;
        if (c.prompt_kind == IFL_PROMPT_TOKENS) {
            c.prompt_tokens = prompt_tokens_.data();
            c.num_prompt_tokens = prompt_tokens_.size();
        } else {
            c.prompt = prompt_.data();
            c.prompt_len = prompt_.size();
        }
        c.stop_strings = texts.data();
        c.stop_string_lens = lengths.data();
        c.num_stop_strings = texts.size();
        c.stop_tokens = stop_tokens_.data();
        c.num_stop_tokens = stop_tokens_.size();
        c.logit_bias_tokens = bias_tokens_.data();
        c.logit_bias_values = bias_values_.data();
        c.num_logit_biases = bias_tokens_.size();
        return use(c);
    }

private:
    request(ifl_prompt_kind kind, std::string prompt) : prompt_(std::move(prompt)) { c_.prompt_kind = kind; }

    /// The plain fields; those that point somewhere are set by with_c.
    ifl_request c_ = IFL_REQUEST_INIT;
    std::string prompt_;
    std::vector<std::uint32_t> prompt_tokens_;
    std::vector<std::string> stop_strings_;
    std::vector<std::uint32_t> stop_tokens_;
    std::vector<std::uint32_t> bias_tokens_;
    std::vector<float> bias_values_;
};

}  // namespace inflight

#endif
