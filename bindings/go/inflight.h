/* Inflight: LLM inference inside your process.
 *
 * Generated from the library's source; do not edit.
 *
 *
 * INTRODUCTION
 *
 * An engine loads a model and runs any number of requests together, in flight, on threads of its own. The
 * host enqueues requests from any thread and polls events: tokens and text as they are made, and for each
 * request one last event that says how it ended. There is no server, no daemon and no Python. The library
 * opens no sockets, writes to no standard stream, installs no signal handlers, and does not change the
 * environment. Its threads are called ifl-... and block every signal but those that a thread gets for its own
 * faults, so that the host's handlers run on the host's threads. Of files outside the model and its spec it reads
 * what the kernel says of the machine: /proc/meminfo, and the limits on cores and memory in /proc and in the
 * cgroup's files. With CUDA, the driver's and cuBLASLt's libraries are opened, and the driver opens its devices and
 * what else it needs.
 *
 * The smallest program; link it with -linflight:
 *
 *     #include <inflight.h>
 *     #include <stdio.h>
 *
 *     int main(int argc, char **argv)
 *     {
 *         ifl_engine_options options = IFL_ENGINE_OPTIONS_INIT;
 *         ifl_request request = IFL_REQUEST_INIT;
 *         ifl_engine *engine = NULL;
 *         const ifl_event *event;
 *         ifl_status status;
 *         int ended = 0;
 *
 *         if (argc != 3) {
 *             fprintf(stderr, "usage: %s MODEL PROMPT\n", argv[0]);
 *             return 2;
 *         }
 *         options.model = argv[1];
 *         request.prompt_kind = IFL_PROMPT_USER;
 *         request.prompt = argv[2];
 *         status = ifl_engine_create(&options, &engine, NULL);
 *         if (!status)
 *             status = ifl_engine_enqueue(engine, &request, NULL, NULL);
 *         while (!status && !ended) {
 *             ifl_events *events = NULL;
 *             status = ifl_engine_poll(engine, -1, &events, NULL);
 *             for (uint64_t i = 0; (event = ifl_events_get(events, i)) != NULL; i++) {
 *                 fputs(event->text, stdout);
 *                 fflush(stdout);
 *                 ended = event->kind == IFL_EVENT_FINISHED;
 *                 status = event->status;
 *             }
 *             ifl_events_free(events);
 *         }
 *         ifl_engine_destroy(engine);
 *         if (status)
 *             fprintf(stderr, "failed with ifl_status %d\n", (int)status);
 *         return status != 0;
 *     }
 *
 *
 * CONVENTIONS
 *
 * Status. A call that can fail returns an ifl_status, 0 for success. Its last parameter, error, may be NULL;
 * otherwise a failing call stores an object there that says what is wrong, which the caller frees with
 * ifl_error_free. Outputs stand before error and are written only on success; error is written only on
 * failure.
 *
 * Text. All text is UTF-8. Text for the library is a pointer and a length in bytes; the length
 * IFL_NUL_TERMINATED means up to the NUL. Text from the library has a length and is NUL-terminated as well.
 *
 * Handles. ifl_engine and ifl_queue look like pointers but are keys that are never reused: a handle that is
 * NULL, destroyed, or of another kind gives IFL_INVALID_HANDLE, and destroying one twice does no harm.
 *
 * Objects. ifl_events, ifl_error and ifl_buffer are memory that a call hands to the caller, to free with the
 * function of that name. Freeing NULL does nothing; freeing twice is an error that the library cannot see.
 * They never change, so any thread may read them.
 *
 * Structs. Every struct starts with struct_size, its sizeof in the program, and later versions of the library
 * only add fields at the end. A program and a library of different age therefore agree: fields that an older
 * program does not know get their defaults, and fields that an older library does not know must be 0, else
 * IFL_INVALID_STRUCT_SIZE. Structs for the library are filled with defaults by ifl_..._init, or where they
 * are declared by the macro IFL_..._INIT; the two do the same, the macro without a call. Structs hold no
 * padding, no bit fields, no other structs, and only types of fixed width. Flags are uint32_t, 0 or 1.
 *
 * Threads. Every function may be called from any thread at any time, unless its description says otherwise.
 * Handles may be destroyed while other threads use them; those calls get what is left or an error, and later
 * ones IFL_INVALID_HANDLE. The library calls the host only through the two callbacks of ifl_engine_options,
 * which may be left out.
 *
 * What the library cannot check is the caller's promise: a pointer that is not NULL points to as much valid
 * memory as its type, its length or its struct_size says, and no thread writes there during the call.
 *
 * Failures. Nothing ends the process or unwinds into the host: a defect in the library becomes IFL_INTERNAL.
 * A fatal error of a device ends the engines on it, and their requests, with IFL_DEVICE_LOST; other engines
 * go on. With CUDA, a kernel that traps makes that device unusable for the rest of the process's life, for
 * every user of it in the process: the damage is contained, not undone.
 *
 * fork. A child process must not use the handles of its parent: every call gives IFL_FORKED, and destroying
 * does nothing. The parent is not affected. A child that is to run engines of its own is best forked before its
 * parent creates any: what other threads were doing at that moment stays half done in the child.
 *
 * Versions. IFL_VERSION is the header's, ifl_version the library's. From 1.0 on, programs run with every
 * later library of the same major version; before, of the same minor version (see ifl_version). The file is called
 * libinflight.so.MAJOR.
 *
 * To test a host without a model, use the device "echo": it needs no files and answers with the prompt. Its
 * tokens are the bytes of the text.
 */

#ifndef INFLIGHT_H
#define INFLIGHT_H

#include <stddef.h>
#include <stdint.h>

/// Version of this header. Since 0.1.0.
#define IFL_VERSION_MAJOR 0
#define IFL_VERSION_MINOR 1
#define IFL_VERSION_PATCH 0

/// The same as one number, as ifl_version gives it. Since 0.1.0.
#define IFL_VERSION (IFL_VERSION_MAJOR * 10000 + IFL_VERSION_MINOR * 100 + IFL_VERSION_PATCH)

/// Length of a text that ends with a NUL, in place of its number of bytes. Since 0.1.0.
#define IFL_NUL_TERMINATED UINT64_MAX

/// Sampling parameter that stands for what the model's generation_config.json recommends; a temperature counts
/// there only where the file says do_sample. Without a recommendation, as with every GGUF file, temperature is 0
/// and the other parameters are off. Since 0.1.0.
#define IFL_MODEL_DEFAULT (-1)

/// Seed that stands for a fresh one for each request. Since 0.1.0.
#define IFL_RANDOM_SEED UINT64_MAX

/// Token id that stands for no token. Since 0.1.0.
#define IFL_NO_TOKEN UINT32_MAX

/// Initialiser with the defaults that ifl_engine_options_init sets. Since 0.1.0.
#define IFL_ENGINE_OPTIONS_INIT                                                                       \
    {                                                                                                 \
        sizeof(ifl_engine_options), IFL_DTYPE_AUTO, NULL, IFL_NUL_TERMINATED, NULL,                   \
            IFL_NUL_TERMINATED, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, NULL, NULL, NULL, NULL, NULL,           \
            IFL_NUL_TERMINATED                                                                        \
    }

/// Initialiser with the defaults that ifl_request_init sets. Since 0.1.0.
#define IFL_REQUEST_INIT                                                                              \
    {                                                                                                 \
        sizeof(ifl_request), IFL_PROMPT_TEXT, NULL, IFL_NUL_TERMINATED, NULL, 0, 1, 0, 0, 0, 0, 0, 0, \
            0, NULL, NULL, 0, NULL, NULL, 0, IFL_MODEL_DEFAULT, IFL_MODEL_DEFAULT, IFL_MODEL_DEFAULT, \
            0, IFL_MODEL_DEFAULT, 0, 0, -1, IFL_RANDOM_SEED, NULL, NULL, 0                            \
    }


/// Values of an ifl_status. Numbers are never changed and never reused. A newer library may return numbers
/// that this header does not list; treat those by their category.
///
/// 1 to 99 blame the call's arguments, 100 to 199 the model's files, 200 to 299 a shortage, 300 to 399 the
/// device, 400 to 499 the state of the engine or the request, and 900 and up a defect in the library.
///
/// Since 0.1.0.
typedef enum {
    /// Success.
    IFL_OK = 0,
    /// An argument or a field has a value that is not allowed; the message names it.
    IFL_INVALID_ARGUMENT = 1,
    /// The handle is NULL, was destroyed, or is of another kind.
    IFL_INVALID_HANDLE = 2,
    /// A struct_size is below that of the struct's first version, or fields are set that this library does
    /// not know.
    IFL_INVALID_STRUCT_SIZE = 3,
    /// Text that must be UTF-8 is not.
    IFL_INVALID_UTF8 = 4,
    /// This version of the library cannot do it, such as run on more than one CUDA device, or the model cannot, such
    /// as chat without a chat template.
    IFL_UNSUPPORTED = 5,
    /// The prompt, or the prompt and the tokens asked for, can never fit the context or the KV cache.
    IFL_PROMPT_TOO_LONG = 6,
    /// The chat template refused the messages or went over its limits of time and output.
    IFL_TEMPLATE_FAILED = 7,
    /// No request of this id is in flight. No function returns it in this version.
    IFL_UNKNOWN_REQUEST = 8,
    /// A file of the model is missing.
    IFL_MODEL_NOT_FOUND = 100,
    /// A file of the model could not be read.
    IFL_MODEL_IO = 101,
    /// A file of the model is malformed; the message names file and field.
    IFL_MODEL_INVALID = 102,
    /// The model is well-formed but uses something that this version does not implement.
    IFL_MODEL_UNSUPPORTED = 103,
    /// Every place for a request is taken. Poll each queue that has requests, with a time limit, then try again; see
    /// ifl_engine_enqueue.
    IFL_BUSY = 200,
    /// Host memory is short.
    IFL_OUT_OF_MEMORY = 201,
    /// Device memory is short.
    IFL_DEVICE_OUT_OF_MEMORY = 202,
    /// What the options ask for does not fit their memory_limit_bytes.
    IFL_MEMORY_LIMIT = 203,
    /// There is no such device, or what it needs is missing: its driver, cuBLASLt, or this build's backend for it
    /// (ifl_has_feature).
    IFL_DEVICE_UNAVAILABLE = 300,
    /// The device failed fatally. The engine is dead and its requests have ended with this status; the
    /// process is not harmed, but may have to restart before it can use that device again.
    IFL_DEVICE_LOST = 301,
    /// The engine or the queue is closed, or was closed while the request was in flight.
    IFL_CLOSED = 400,
    /// The handle was made before a fork, by another process; only that one may use it.
    IFL_FORKED = 401,
    /// The host's progress callback aborted loading.
    IFL_ABORTED = 402,
    /// The model gave NaN or infinite logits for this request.
    IFL_NUMERIC_ERROR = 403,
    /// A defect in the library, contained. The message says where; please report it.
    IFL_INTERNAL = 900,
} ifl_status_value;

/// Values of an ifl_category.
///
/// Since 0.1.0.
typedef enum {
    /// Not an error.
    IFL_CATEGORY_NONE = 0,
    /// The call's arguments are wrong.
    IFL_CATEGORY_ARGUMENT = 1,
    /// The model's files are missing or wrong.
    IFL_CATEGORY_MODEL = 2,
    /// Memory or places in a queue are short.
    IFL_CATEGORY_RESOURCE = 3,
    /// The device or its driver.
    IFL_CATEGORY_DEVICE = 4,
    /// The state of the engine or the request.
    IFL_CATEGORY_LIFECYCLE = 5,
    /// A defect in the library.
    IFL_CATEGORY_INTERNAL = 6,
} ifl_category_value;

/// Values of an ifl_dtype.
///
/// Since 0.1.0.
typedef enum {
    /// bfloat16, on the CPU and on CUDA.
    IFL_DTYPE_AUTO = 0,
    /// IEEE single precision, which only the CPU has: the device "auto" then takes the CPU, and "cuda" is
    /// IFL_INVALID_ARGUMENT.
    IFL_DTYPE_F32 = 1,
    /// bfloat16.
    IFL_DTYPE_BF16 = 2,
    /// IEEE half precision.
    IFL_DTYPE_F16 = 3,
} ifl_dtype_value;

/// Values of an ifl_log_level.
///
/// Since 0.1.0.
typedef enum {
    /// Something failed.
    IFL_LOG_ERROR = 1,
    /// Something is off, but goes on.
    IFL_LOG_WARN = 2,
    /// Milestones of an engine's life.
    IFL_LOG_INFO = 3,
    /// Details of each request.
    IFL_LOG_DEBUG = 4,
} ifl_log_level_value;

/// Values of an ifl_prompt_kind.
///
/// Since 0.1.0.
typedef enum {
    /// prompt is text for the model to continue, as it stands.
    IFL_PROMPT_TEXT = 1,
    /// prompt is what a user says to a chat model; the model's chat template is put around it.
    IFL_PROMPT_USER = 2,
    /// prompt is a JSON array of chat messages, such as [{"role": "user", "content": "Hello"}], which the
    /// model's chat template renders. Content cannot spell special tokens. Malformed messages are
    /// IFL_INVALID_ARGUMENT; what the template itself refuses is IFL_TEMPLATE_FAILED.
    IFL_PROMPT_CHAT = 3,
    /// prompt_tokens are token ids.
    IFL_PROMPT_TOKENS = 4,
} ifl_prompt_kind_value;

/// Values of an ifl_event_kind.
///
/// Since 0.1.0.
typedef enum {
    /// More output: tokens, text, log-probabilities.
    IFL_EVENT_OUTPUT = 1,
    /// The end of the request: reason, status, counts, timings. Nothing follows for this request.
    IFL_EVENT_FINISHED = 2,
} ifl_event_kind_value;

/// Values of an ifl_finish_reason.
///
/// Since 0.1.0.
typedef enum {
    /// It has not ended; the value in output events.
    IFL_FINISH_NONE = 0,
    /// An end-of-sequence token, a stop token or a stop string.
    IFL_FINISH_STOP = 1,
    /// max_tokens or the context is used up.
    IFL_FINISH_LENGTH = 2,
    /// The host cancelled it.
    IFL_FINISH_CANCELLED = 3,
    /// Its timeout_ms passed.
    IFL_FINISH_DEADLINE = 4,
    /// It failed; status and message of the event say how.
    IFL_FINISH_ERROR = 5,
} ifl_finish_reason_value;

/// Bits of an ifl_text_flags.
///
/// Since 0.1.0.
typedef enum {
    /// ifl_tokenize: add what the model expects around a text, such as a first token.
    IFL_TEXT_ADD_SPECIAL = 1,
    /// ifl_tokenize: the text may spell special tokens. Not for untrusted text.
    IFL_TEXT_PARSE_SPECIAL = 2,
    /// ifl_detokenize: leave special tokens out.
    IFL_TEXT_SKIP_SPECIAL = 4,
    /// ifl_apply_chat_template: end with the start of the assistant's answer.
    IFL_TEXT_GENERATION_PROMPT = 8,
} ifl_text_flags_value;

/// A text or a list of token ids that a call returns. An object and not memory of the caller's, because how
/// long it is shows only when the work is done: so the work is done once, and nothing is ever cut short.
/// Owned by the caller, who frees it with ifl_buffer_free; it is independent of the engine and never changes.
///
/// Functions: ifl_buffer_text, ifl_buffer_tokens, ifl_buffer_free. Since 0.1.0.
typedef struct ifl_buffer ifl_buffer;

/// A loaded model and the threads that run it. A handle, not a pointer: never dereferenced, never reused.
///
/// Functions: ifl_engine_*, ifl_queue_create, ifl_tokenize, ifl_detokenize, ifl_apply_chat_template. Since
/// 0.1.0.
typedef struct ifl_engine ifl_engine;

/// What went wrong in one call: a status for the program and a message for a person. Owned by the caller, who
/// frees it with ifl_error_free; it is independent of the engine and of other errors, and never changes.
///
/// Functions: ifl_error_code, ifl_error_message, ifl_error_free. Since 0.1.0.
typedef struct ifl_error ifl_error;

/// A batch of events, as ifl_engine_poll and ifl_queue_poll return it. Owned by the caller, who frees it with
/// ifl_events_free; it is independent of the engine and the queue, may outlive them, and never changes.
///
/// Functions: ifl_events_count, ifl_events_get, ifl_events_free. Since 0.1.0.
typedef struct ifl_events ifl_events;

/// A completion queue: name it in requests, and their events come here and not to the engine's own queue. So
/// the parts of a host drain their own requests. A handle, not a pointer: never dereferenced, never reused.
///
/// Functions: ifl_queue_create, ifl_queue_poll, ifl_queue_fd, ifl_queue_destroy. Since 0.1.0.
typedef struct ifl_queue ifl_queue;

/// Outcome of a call or of a request, an ifl_status_value. 0 is success, so "if (status)" reads "if it
/// failed".
///
/// Since 0.1.0.
typedef int32_t ifl_status;

/// Who can do something about a status, an ifl_category_value.
///
/// Since 0.1.0.
typedef int32_t ifl_category;

/// Type that weights are kept in, an ifl_dtype_value.
///
/// Since 0.1.0.
typedef int32_t ifl_dtype;

/// Severity of a log line, an ifl_log_level_value.
///
/// Since 0.1.0.
typedef int32_t ifl_log_level;

/// Receives one log line, without a newline.
///
/// - user_data: log_user_data of the options.
/// - level: how severe.
/// - message: UTF-8, NUL-terminated; valid during the call only.
/// - message_len: its length in bytes without the NUL.
///
/// Threads: called on the engine's threads and on threads that call the engine, by several at once, and never
/// while the library holds a lock that its functions take. It may call this library, but neither close nor destroy
/// its own engine, and must not wait, not in ifl_engine_poll or ifl_queue_poll either: the engine's requests stand
/// still meanwhile. It must return: no longjmp, no C++ exception, no unwinding may leave it. No call of it begins
/// once ifl_engine_destroy has returned, or ifl_engine_create has failed. A call that is under way is waited
/// for as long as ifl_engine_destroy may take, 2 seconds, and goes on after that where it takes longer.
/// Since 0.1.0.
typedef void (*ifl_log_callback)(void *user_data,
                                 ifl_log_level level,
                                 const char *message,
                                 uint64_t message_len);

/// Hears how far loading has come, and may abort it.
///
/// - user_data: progress_user_data of the options.
/// - bytes_done: bytes of weights in place.
/// - bytes_total: bytes of weights in all.
///
/// Returns 0 to go on; anything else makes ifl_engine_create fail with IFL_ABORTED.
/// Threads: called on the thread that is in ifl_engine_create, at least every 64 MiB. It must return: no
/// longjmp, no C++ exception, no unwinding may leave it. Since 0.1.0.
typedef int32_t (*ifl_progress_callback)(void *user_data,
                                         uint64_t bytes_done,
                                         uint64_t bytes_total);

/// What ifl_engine_create loads, and how. Fill it with ifl_engine_options_init or IFL_ENGINE_OPTIONS_INIT,
/// then set what should differ. Only model is required; 0 and NULL mean "choose for me" in every other field.
/// A value outside a field's range is IFL_INVALID_ARGUMENT. The library reads the struct, and what it points to,
/// during the call only.
///
/// Since 0.1.0.
typedef struct {
    /// sizeof(ifl_engine_options).
    uint32_t struct_size;
    /// Type to keep weights and KV cache in; default IFL_DTYPE_AUTO.
    ifl_dtype dtype;
    /// Path of a model directory in Hugging Face layout, or of a GGUF file; UTF-8. Not used by the device
    /// "echo".
    const char *model;
    /// Length of model in bytes, or IFL_NUL_TERMINATED, the default.
    uint64_t model_len;
    /// "auto" (the default: CUDA device 0, or where it cannot be used the CPU; one whose memory is taken is an
    /// error), "cpu", "cuda", "cuda:0", "cuda:0,1" (more than one: IFL_UNSUPPORTED so far), or "echo", which needs
    /// no model and answers with the prompt, byte for byte, and an end-of-sequence token without text ("echo:1000":
    /// 1000 microseconds a step).
    const char *device;
    /// Length of device in bytes, or IFL_NUL_TERMINATED, the default.
    uint64_t device_len;
    /// Sequences that can be in one step, at most 65536; default 64, on CUDA 256.
    uint32_t max_num_sequences;
    /// Tokens that one step runs at most, over all sequences: more than max_num_sequences, at most 1048576. Default
    /// 512, on CUDA 8192, and at least twice max_num_sequences.
    uint32_t max_batched_tokens;
    /// Longest prompt plus output of one request in tokens, at most 16777216 and what the model supports; default:
    /// what it was trained for. A KV cache of fewer tokens lowers it, which is no error but logged as a warning:
    /// ifl_memory_plan and ifl_model_info tell what it has become. Where RoPE depends on the context's length
    /// (dynamic NTK, LongRoPE), it is that of this length for every request, however short.
    uint32_t max_model_len;
    /// Tokens in a block of the KV cache, a multiple of 16, at most 4096; default 64.
    uint32_t kv_block_size;
    /// Bytes for the KV cache, per device: as many whole blocks as they hold, at least one, at most 4194304.
    /// Default: enough for max_num_sequences full contexts, but at most a quarter of the memory that the host has
    /// available, or what weights and workspace leave of nine tenths of a CUDA device's free memory.
    /// memory_limit_bytes lowers that further and never raises it.
    uint64_t kv_cache_bytes;
    /// Hard limit in bytes on weights, KV cache and workspace together, per device; default: none. What does not fit
    /// is IFL_MEMORY_LIMIT. Not counted: the tokenizer and what waits to be polled, and with CUDA the driver's
    /// context, loaded kernels, recorded graphs and buffers in the host's memory.
    uint64_t memory_limit_bytes;
    /// Compute threads of the CPU backend, and threads that load weights, at most 1024; default: one per core.
    uint32_t num_threads;
    /// Requests that can be accepted and whose last event has not been polled; one more gets IFL_BUSY. Together
    /// with max_unread_tokens this bounds what waits to be polled. Default 4096.
    uint32_t max_queued_requests;
    /// Tokens of one request that may wait to be polled before that request is paused; default 1024.
    uint32_t max_unread_tokens;
    /// Most detailed level to pass to log; default IFL_LOG_INFO.
    ifl_log_level log_level;
    /// Log sink; NULL: silence.
    ifl_log_callback log;
    /// Passed to log.
    void *log_user_data;
    /// Progress of loading; NULL: none.
    ifl_progress_callback progress;
    /// Passed to progress.
    void *progress_user_data;
    /// Path of a model_spec.json under any name, which describes the architecture in place of what model says
    /// of it; UTF-8. Its names of weights are those of the tensors in model, of a GGUF file GGUF's. NULL: model
    /// describes itself.
    const char *spec;
    /// Length of spec in bytes, or IFL_NUL_TERMINATED, the default.
    uint64_t spec_len;
} ifl_engine_options;

/// What the prompt of a request is, an ifl_prompt_kind_value.
///
/// Since 0.1.0.
typedef int32_t ifl_prompt_kind;

/// One request. Fill it with ifl_request_init or IFL_REQUEST_INIT, then set prompt and what should differ
/// from the defaults. The library reads the struct, and what it points to, during ifl_engine_enqueue only.
/// Flags are 0 or 1. A value outside a field's range is IFL_INVALID_ARGUMENT.
///
/// Since 0.1.0.
typedef struct {
    /// sizeof(ifl_request).
    uint32_t struct_size;
    /// What the prompt is; default IFL_PROMPT_TEXT.
    ifl_prompt_kind prompt_kind;
    /// The prompt as text or JSON, UTF-8; NULL for IFL_PROMPT_TOKENS. Text of more than 16 MiB, or than
    /// max_model_len tokens can hold, is IFL_PROMPT_TOO_LONG. JSON of more than 16 MiB, which IFL_PROMPT_USER is
    /// turned into, is IFL_INVALID_ARGUMENT.
    const char *prompt;
    /// Length of prompt in bytes, or IFL_NUL_TERMINATED, the default.
    uint64_t prompt_len;
    /// The prompt as token ids, at least one, for IFL_PROMPT_TOKENS; NULL otherwise.
    const uint32_t *prompt_tokens;
    /// Number of prompt_tokens.
    uint64_t num_prompt_tokens;
    /// Flag: the tokenizer adds what the model expects around a text, such as a first token. For
    /// IFL_PROMPT_TEXT; default 1.
    uint32_t add_special_tokens;
    /// Flag: the text may spell special tokens. For IFL_PROMPT_TEXT; default 0, which is safe for untrusted
    /// text.
    uint32_t parse_special_tokens;
    /// Most tokens to produce; 0, the default: until the context is full.
    uint32_t max_tokens;
    /// Tokens before which only max_tokens, cancellation and errors end the output, at most max_tokens and what the
    /// context leaves; default 0.
    uint32_t min_tokens;
    /// Flag: do not stop at the model's end-of-sequence tokens; default 0.
    uint32_t ignore_eos;
    /// Higher runs first, and its prompt goes before further tokens of lower ones; equal ones run in order of
    /// arrival. Default 0.
    int32_t priority;
    /// Milliseconds after which the request ends with IFL_FINISH_DEADLINE, by a monotonic clock from
    /// ifl_engine_enqueue on; 0, the default: never.
    uint64_t timeout_ms;
    /// Comes back in every event of the request; default 0.
    uint64_t user_data;
    /// Queue that gets the events; NULL, the default: the engine's own, which ifl_engine_poll reads.
    ifl_queue *queue;
    /// Tokens that end the output, besides the model's own. They are reported but give no text. Default none.
    const uint32_t *stop_tokens;
    /// Number of stop_tokens, at most 256.
    uint64_t num_stop_tokens;
    /// Strings that end the output, UTF-8, of 1 to 4096 bytes each. The text ends before the match, which may lie
    /// across tokens. Default none.
    const char *const *stop_strings;
    /// Length in bytes of each of stop_strings, or IFL_NUL_TERMINATED; NULL: all are NUL-terminated.
    const uint64_t *stop_string_lens;
    /// Number of stop_strings, at most 64.
    uint64_t num_stop_strings;
    /// In [0, 100]; 0 always takes the likeliest token. Default IFL_MODEL_DEFAULT: what generation_config.json
    /// recommends where it says do_sample (1 where it names no temperature), else 0. A GGUF file recommends nothing,
    /// so 0.
    float temperature;
    /// Samples among the top_k likeliest tokens only; 0: off. Default IFL_MODEL_DEFAULT.
    int32_t top_k;
    /// Samples among the likeliest tokens that together reach this probability only, in (0, 1]; 1: off.
    /// Default IFL_MODEL_DEFAULT.
    float top_p;
    /// Drops tokens less likely than min_p times the likeliest, in [0, 1]; default 0: off.
    float min_p;
    /// Divides positive and multiplies negative logits of tokens that have occurred, in (0, 100]; 1: off.
    /// Default IFL_MODEL_DEFAULT.
    float repetition_penalty;
    /// Subtracted from the logits of tokens in the output so far, in [-100, 100]; default 0.
    float presence_penalty;
    /// Subtracted from the logits of tokens once for each time they are in the output so far, in [-100, 100];
    /// default 0.
    float frequency_penalty;
    /// Alternatives to report beside the token itself, each with its log-probability, 0 to 20; default -1: no
    /// log-probabilities. With n here an event has n + 1 entries for each token: ifl_event.num_logprobs counts
    /// the token itself too.
    int32_t num_logprobs;
    /// The same seed, model and device give the same tokens: on the CPU whatever else runs, on a CUDA device where the
    /// same requests run beside it, since there rounding depends on the batch. Default IFL_RANDOM_SEED: a fresh one.
    uint64_t seed;
    /// Tokens whose logits get a bias, none twice; default none.
    const uint32_t *logit_bias_tokens;
    /// The finite number to add for each of logit_bias_tokens.
    const float *logit_bias_values;
    /// Number of logit_bias_tokens and of logit_bias_values, at most 1024.
    uint64_t num_logit_biases;
} ifl_request;

/// What an event says, an ifl_event_kind_value.
///
/// Since 0.1.0.
typedef int32_t ifl_event_kind;

/// Why a request ended, an ifl_finish_reason_value.
///
/// Since 0.1.0.
typedef int32_t ifl_finish_reason;

/// One event. Reach each through ifl_events_get, not by counting on from another: the struct may grow.
/// Everything in it, and everything that it points to, belongs to the batch and lives until
/// ifl_events_free. Fields that do not concern the kind are 0, or empty text.
///
/// Since 0.1.0.
typedef struct {
    /// Size of the struct in the library that made it. Where this is less than your sizeof, the fields beyond
    /// it do not exist.
    uint32_t struct_size;
    /// What the event says.
    ifl_event_kind kind;
    /// The request's id.
    uint64_t request_id;
    /// The request's user_data.
    uint64_t user_data;
    /// Token ids of this piece of output, in order; NULL where there are none.
    const uint32_t *token_ids;
    /// Number of token_ids; may be 0 where text was held back and is released now.
    uint64_t num_tokens;
    /// Text that these tokens and earlier ones complete: UTF-8, always whole code points, NUL-terminated,
    /// never NULL. Pieces of one request in a row are the whole text.
    const char *text;
    /// Length of text in bytes without the NUL; may be 0. Text can hold NUL characters of its own.
    uint64_t text_len;
    /// Tokens of which the log-probability is reported: num_logprobs for each of token_ids, of which the
    /// first is the token itself and the others the likeliest tokens, in falling order. Those of token i
    /// start at index i * num_logprobs. NULL where none were asked for.
    const uint32_t *logprob_tokens;
    /// Natural logarithms of their probabilities under the model, before penalties, bias and temperature;
    /// indexed as logprob_tokens. A row with fewer entries is filled up with the token IFL_NO_TOKEN.
    const float *logprobs;
    /// Entries for each token: the token itself and the alternatives, so one more than the
    /// ifl_request.num_logprobs that was asked for. 0 where none were asked for.
    uint64_t num_logprobs;
    /// Why the request ended.
    ifl_finish_reason finish_reason;
    /// What went wrong, for IFL_FINISH_ERROR; IFL_OK otherwise.
    ifl_status status;
    /// The same for a person: UTF-8, NUL-terminated, never NULL.
    const char *message;
    /// Length of message in bytes without the NUL.
    uint64_t message_len;
    /// Tokens of the prompt.
    uint32_t num_prompt_tokens;
    /// Tokens of the whole output.
    uint32_t num_output_tokens;
    /// Microseconds from ifl_engine_enqueue to the first step that ran the request; 0 where none did.
    uint64_t queued_us;
    /// Microseconds from ifl_engine_enqueue to the first token; 0 where there was none.
    uint64_t first_token_us;
    /// Microseconds from ifl_engine_enqueue to the end.
    uint64_t total_us;
} ifl_event;

/// Exact bytes that an engine reserves, per device. Set struct_size before the call. Not counted: the tokenizer and
/// what waits to be polled, and with CUDA the driver's context, loaded kernels, recorded graphs and buffers in the
/// host's memory.
///
/// Since 0.1.0.
typedef struct {
    /// sizeof(ifl_memory_plan); set by the caller.
    uint32_t struct_size;
    /// Flag: the total fits the memory limit of the options and the memory that is available.
    uint32_t fits;
    /// Bytes of weights.
    uint64_t weights_bytes;
    /// Bytes of the KV cache.
    uint64_t kv_cache_bytes;
    /// Bytes of activations and workspace.
    uint64_t workspace_bytes;
    /// Bytes of all three together.
    uint64_t total_bytes;
    /// Bytes that are free now; 0 where unknown.
    uint64_t available_bytes;
    /// Blocks in the KV cache.
    uint64_t num_kv_blocks;
    /// Tokens in a block.
    uint64_t kv_block_size;
    /// Longest prompt plus output of one request, in tokens: what the options say or the model was trained for, or
    /// fewer where the KV cache holds fewer.
    uint64_t max_model_len;
} ifl_memory_plan;

/// Counters since the engine was created, and gauges of the moment. Set struct_size before the call.
///
/// Since 0.1.0.
typedef struct {
    /// sizeof(ifl_stats); set by the caller.
    uint32_t struct_size;
    /// 0.
    uint32_t reserved;
    /// Counter: steps run.
    uint64_t num_steps;
    /// Counter: prompt tokens run, again after a preemption included.
    uint64_t num_prompt_tokens;
    /// Counter: tokens sampled, those discarded because their request had ended included.
    uint64_t num_output_tokens;
    /// Counter: requests accepted.
    uint64_t num_accepted;
    /// Counter: requests ended.
    uint64_t num_finished;
    /// Counter: requests put back to the waiting line for want of KV blocks.
    uint64_t num_preemptions;
    /// Gauge: requests that wait for their first step or to run again.
    uint64_t num_waiting;
    /// Gauge: requests in the running batch.
    uint64_t num_running;
    /// Gauge: requests paused until their events are polled.
    uint64_t num_paused;
    /// Gauge: KV blocks in use.
    uint64_t num_kv_blocks_used;
    /// Gauge: KV blocks free.
    uint64_t num_kv_blocks_free;
    /// Gauge: bytes of weights.
    uint64_t weights_bytes;
    /// Gauge: bytes of the KV cache.
    uint64_t kv_cache_bytes;
    /// Gauge: bytes of activations and workspace.
    uint64_t workspace_bytes;
} ifl_stats;

/// What a loaded model is. Set struct_size before the call.
///
/// Since 0.1.0.
typedef struct {
    /// sizeof(ifl_model_info); set by the caller.
    uint32_t struct_size;
    /// Token ids are below this.
    uint32_t vocab_size;
    /// Longest prompt plus output of one request, in tokens; see ifl_memory_plan.
    uint32_t max_model_len;
    /// Flag: there is a chat template that can be used, for IFL_PROMPT_USER and IFL_PROMPT_CHAT.
    uint32_t has_chat_template;
} ifl_model_info;

/// What ifl_tokenize, ifl_detokenize and ifl_apply_chat_template do besides their work: ifl_text_flags_value
/// combined with |, or 0.
///
/// Since 0.1.0.
typedef uint32_t ifl_text_flags;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/// Short English name of a status, such as "busy", for logs.
///
/// - status: any number; one that the library does not know gives "unknown status".
///
/// Returns a NUL-terminated text that lives as long as the library; never NULL.
/// Threads: any, at any time. Errors: none. Since 0.1.0.
const char *ifl_status_name(ifl_status status);

/// Category of a status.
///
/// - status: any number; one that the library does not know counts as IFL_CATEGORY_INTERNAL.
///
/// Threads: any, at any time. Errors: none. Since 0.1.0.
ifl_category ifl_status_category(ifl_status status);

/// 1 where the same call can succeed later without any change by the caller (after IFL_BUSY: once there is a place,
/// see ifl_engine_enqueue), 0 otherwise.
///
/// - status: any number; one that the library does not know gives 0.
///
/// Threads: any, at any time. Errors: none. Since 0.1.0.
uint32_t ifl_status_is_retryable(ifl_status status);

/// The status that the failed call returned.
///
/// - error: an error, or NULL, which gives IFL_OK.
///
/// Threads: any, at any time. Errors: none. Since 0.1.0.
ifl_status ifl_error_code(const ifl_error *error);

/// What is wrong, with names and values, and what to do; English, UTF-8.
///
/// - error: an error, or NULL, which gives the empty text.
/// - len: receives the length in bytes without the NUL; may be NULL.
///
/// Returns a NUL-terminated text that belongs to the error and lives until ifl_error_free; never NULL.
/// Threads: any, at any time. Errors: none. Since 0.1.0.
const char *ifl_error_message(const ifl_error *error,
                              uint64_t *len);

/// Frees an error and its message.
///
/// - error: an error that has not been freed, or NULL, which does nothing.
///
/// Threads: any; no other thread may use the error any more. Errors: none. Since 0.1.0.
void ifl_error_free(ifl_error *error);

/// Fills options with the defaults: everything 0 and NULL but the struct's size and the text lengths, which
/// are IFL_NUL_TERMINATED.
///
/// - options: memory for the struct. Not NULL.
/// - struct_size: sizeof(ifl_engine_options) as your compiler sees it. A newer library never writes more than
///   that, so an old program stays safe; what an older library does not know becomes 0.
/// - error: receives the error where the call fails; may be NULL.
///
/// Threads: any, at any time. Errors: IFL_INVALID_ARGUMENT, IFL_INVALID_STRUCT_SIZE; nothing is written then.
/// Since 0.1.0.
ifl_status ifl_engine_options_init(ifl_engine_options *options,
                                   uint32_t struct_size,
                                   ifl_error **error);

/// Fills a request with the defaults that the fields' descriptions give.
///
/// - request: memory for the struct. Not NULL.
/// - struct_size: sizeof(ifl_request) as your compiler sees it. A newer library never writes more than that,
///   so an old program stays safe; what an older library does not know becomes 0.
/// - error: receives the error where the call fails; may be NULL.
///
/// Threads: any, at any time. Errors: IFL_INVALID_ARGUMENT, IFL_INVALID_STRUCT_SIZE; nothing is written then.
/// Since 0.1.0.
ifl_status ifl_request_init(ifl_request *request,
                            uint32_t struct_size,
                            ifl_error **error);

/// Number of events in a batch.
///
/// - events: a batch, or NULL, which is the empty batch.
///
/// Threads: any, at any time. Errors: none. Since 0.1.0.
uint64_t ifl_events_count(const ifl_events *events);

/// One event of a batch. Events of one request come in order.
///
/// - events: a batch, or NULL, which is the empty batch.
/// - index: 0 to ifl_events_count - 1.
///
/// Returns the event, which belongs to the batch and lives until ifl_events_free, or NULL for an index beyond
/// the last, so that a loop needs no count.
/// Threads: any, at any time. Errors: none. Since 0.1.0.
const ifl_event *ifl_events_get(const ifl_events *events,
                                uint64_t index);

/// Frees a batch, its events and all that they point to.
///
/// - events: a batch that has not been freed, or NULL, which does nothing.
///
/// Threads: any; no other thread may use the batch any more. Errors: none. Since 0.1.0.
void ifl_events_free(ifl_events *events);

/// Loads a model and starts the engine's threads. A process may have several engines.
///
/// With CUDA the host may use the device meanwhile, and record graphs of its own at any time. Where max_num_sequences
/// is above 16, creation captures what cuBLASLt launches, for some tens of milliseconds at its end: a host had better
/// not synchronise the whole device (cudaDeviceSynchronize, cuCtxSynchronize) on another thread then. Such a call
/// gives cudaErrorStreamCaptureUnsupported, and can be repeated, but where it meets the capture's first or last moment
/// it may crash in the driver (580.159.04). Steps whose capture it interrupts again and again run slower, and the log
/// warns of them.
///
/// - options: what to load, and how; read during the call only. Not NULL.
/// - engine: receives the handle; end it with ifl_engine_destroy. Not NULL.
/// - error: receives the error where the call fails; may be NULL.
///
/// Threads: any, at any time. Takes as long as loading does; the progress callback of the options can abort
/// it.
/// Errors: IFL_INVALID_ARGUMENT, IFL_INVALID_STRUCT_SIZE, IFL_INVALID_UTF8; IFL_UNSUPPORTED for more than one CUDA
/// device; IFL_MODEL_NOT_FOUND, IFL_MODEL_IO, IFL_MODEL_INVALID, IFL_MODEL_UNSUPPORTED; IFL_OUT_OF_MEMORY,
/// IFL_DEVICE_OUT_OF_MEMORY, IFL_MEMORY_LIMIT; IFL_DEVICE_UNAVAILABLE, IFL_DEVICE_LOST; IFL_ABORTED. Since 0.1.0.
ifl_status ifl_engine_create(const ifl_engine_options *options,
                             ifl_engine **engine,
                             ifl_error **error);

/// Says what ifl_engine_create with the same options would reserve. Reads the model's description but no
/// weights; model may be a config.json or model_spec.json alone, under any name in ".json". Weights that are
/// there must be those that the description names.
///
/// - options: what would be loaded, and how; read during the call only. Not NULL.
/// - plan: receives the figures; its struct_size is set. Not NULL.
/// - error: receives the error where the call fails; may be NULL. That the plan does not fit is no error.
///
/// Threads: any, at any time.
/// Errors: those of ifl_engine_create about arguments, model and device. Since 0.1.0.
ifl_status ifl_engine_plan(const ifl_engine_options *options,
                           ifl_memory_plan *plan,
                           ifl_error **error);

/// Hands a request to the engine without waiting for the model; the answer comes as events. Exactly one event of
/// each accepted request, its last, is of kind IFL_EVENT_FINISHED.
///
/// A request takes one of the engine's max_queued_requests places and gives it back when its last event is polled or,
/// where its queue is destroyed, when it has ended, within one step after that. While every place is taken this call
/// fails with IFL_BUSY. Then poll each queue that has requests, with a time limit, and try again: other queues may
/// hold the places, and a place that comes back from a destroyed queue comes without an event, so that a poll of one
/// queue without a limit might never return.
///
/// - engine: the engine.
/// - request: what to do; read during the call only. Not NULL.
/// - request_id: receives the request's id, never 0 and never used again by this engine; may be NULL. Another
///   thread may see the request's first events before this call returns: tell them apart by user_data.
/// - error: receives the error where the call fails; may be NULL. The request was not accepted then and gives
///   no events.
///
/// Threads: any, at any time. The prompt is tokenised on the calling thread. Chat messages are rendered before, on a
/// short-lived thread that the call waits for: at most 50 ms of processor time, and that twice where a message has a
/// character with which special tokens begin, such as "<". Where frames must not be late, enqueue from another
/// thread.
/// Errors: IFL_BUSY, as above; IFL_INVALID_ARGUMENT, IFL_INVALID_STRUCT_SIZE, IFL_INVALID_UTF8, IFL_PROMPT_TOO_LONG;
/// for chat messages IFL_UNSUPPORTED where the model has no template, IFL_MODEL_INVALID or IFL_MODEL_UNSUPPORTED
/// where its template cannot be used, and IFL_TEMPLATE_FAILED; IFL_OUT_OF_MEMORY; IFL_INVALID_HANDLE, IFL_FORKED;
/// IFL_CLOSED, or what ended the engine, such as IFL_DEVICE_LOST. Since 0.1.0.
ifl_status ifl_engine_enqueue(ifl_engine *engine,
                              const ifl_request *request,
                              uint64_t *request_id,
                              ifl_error **error);

/// Takes every event that waits in the engine's own queue. Events of one request come in order, tokens are
/// neither lost nor doubled. A request whose events are not polled is paused after max_unread_tokens; others
/// go on.
///
/// - engine: the engine.
/// - timeout_ms: 0: do not block; -1: wait until there is an event; otherwise wait at most so many
///   milliseconds.
/// - events: receives the batch, NULL where nothing came in time; free it with ifl_events_free. Not NULL.
/// - error: receives the error where the call fails; may be NULL.
///
/// Threads: any, at any time; each event goes to one of the callers.
/// Errors: IFL_INVALID_ARGUMENT, IFL_INVALID_HANDLE, IFL_FORKED; IFL_CLOSED, or what ended the engine, once
/// the engine has ended and the queue is empty. Since 0.1.0.
ifl_status ifl_engine_poll(ifl_engine *engine,
                           int32_t timeout_ms,
                           ifl_events **events,
                           ifl_error **error);

/// Asks for a request's end within one step. Its last event says IFL_FINISH_CANCELLED, or how it ended if it
/// was faster. Cancelling twice, or what has ended, or what never was, does nothing.
///
/// - engine: the engine.
/// - request_id: from ifl_engine_enqueue.
/// - error: receives the error where the call fails; may be NULL.
///
/// Threads: any, at any time; does not wait.
/// Errors: IFL_INVALID_HANDLE, IFL_FORKED; IFL_CLOSED, or what ended the engine, once it has ended.
/// Since 0.1.0.
ifl_status ifl_engine_cancel(ifl_engine *engine,
                             uint64_t request_id,
                             ifl_error **error);

/// A snapshot of the engine's counters and gauges; cheap enough for every frame.
///
/// - engine: the engine.
/// - stats: receives the figures; its struct_size is set. Not NULL.
/// - error: receives the error where the call fails; may be NULL.
///
/// Threads: any, at any time; does not wait.
/// Errors: IFL_INVALID_ARGUMENT, IFL_INVALID_STRUCT_SIZE, IFL_INVALID_HANDLE, IFL_FORKED. Since 0.1.0.
ifl_status ifl_engine_stats(ifl_engine *engine,
                            ifl_stats *stats,
                            ifl_error **error);

/// What the loaded model is.
///
/// - engine: the engine.
/// - info: receives the figures; its struct_size is set. Not NULL.
/// - error: receives the error where the call fails; may be NULL.
///
/// Threads: any, at any time.
/// Errors: IFL_INVALID_ARGUMENT, IFL_INVALID_STRUCT_SIZE, IFL_INVALID_HANDLE, IFL_FORKED. Since 0.1.0.
ifl_status ifl_engine_model_info(ifl_engine *engine,
                                 ifl_model_info *info,
                                 ifl_error **error);

/// The model's end-of-sequence tokens.
///
/// - engine: the engine.
/// - tokens: receives a buffer to read with ifl_buffer_tokens; free it with ifl_buffer_free. Not NULL.
/// - error: receives the error where the call fails; may be NULL.
///
/// Threads: any, at any time. Errors: IFL_INVALID_ARGUMENT, IFL_INVALID_HANDLE, IFL_FORKED. Since 0.1.0.
ifl_status ifl_engine_eos_tokens(ifl_engine *engine,
                                 ifl_buffer **tokens,
                                 ifl_error **error);

/// The device that the engine runs on, what "auto" has become: "cpu", "echo", or "cuda:0 (NVIDIA H100)". Up to
/// the first space it is what ifl_engine_options.device takes; what follows in brackets is the device's name,
/// for people.
///
/// - engine: the engine.
/// - device: receives a buffer to read with ifl_buffer_text; free it with ifl_buffer_free. Not NULL.
/// - error: receives the error where the call fails; may be NULL.
///
/// Threads: any, at any time. Errors: IFL_INVALID_ARGUMENT, IFL_INVALID_HANDLE, IFL_FORKED. Since 0.1.0.
ifl_status ifl_engine_device(ifl_engine *engine,
                             ifl_buffer **device,
                             ifl_error **error);

/// Ends every request with IFL_FINISH_ERROR and IFL_CLOSED and stops the engine's threads, but keeps the
/// handle: events can still be polled, after which polling gives IFL_CLOSED. Closing twice does nothing.
///
/// - engine: the engine.
/// - error: receives the error where the call fails; may be NULL.
///
/// Threads: any, at any time, but not from a callback of the engine. Returns within 2 seconds.
/// Errors: IFL_INVALID_HANDLE, IFL_FORKED. Since 0.1.0.
ifl_status ifl_engine_close(ifl_engine *engine,
                            ifl_error **error);

/// Closes the engine as ifl_engine_close does, ends the handle and frees the engine's memory. A thread that
/// waits in ifl_engine_poll gets one more batch of events or IFL_CLOSED; its next call gives
/// IFL_INVALID_HANDLE, and what was not polled is lost. To see the end of every request, call
/// ifl_engine_close, poll until IFL_CLOSED, then destroy. Queues of ifl_queue_create stay.
///
/// A step that takes longer than this call may is left to finish on a thread of the library, which frees what
/// the step uses when it ends; it calls nothing of the host's.
///
/// - engine: the engine. NULL, an engine that was destroyed already, and one made before a fork by another
///   process are left alone.
///
/// Threads: any, at any time, but not from a callback of the engine. Returns within 2 seconds. Errors: none.
/// Since 0.1.0.
void ifl_engine_destroy(ifl_engine *engine);

/// Makes a further queue for an engine. It stays usable after the engine is closed or destroyed, to take the
/// events that wait in it.
///
/// - engine: the engine whose requests will name it.
/// - queue: receives the handle; end it with ifl_queue_destroy. Not NULL.
/// - error: receives the error where the call fails; may be NULL.
///
/// Threads: any, at any time.
/// Errors: IFL_INVALID_ARGUMENT, IFL_INVALID_HANDLE, IFL_FORKED; IFL_CLOSED, or what ended the engine
/// (such as IFL_DEVICE_LOST), once it has ended. Since 0.1.0.
ifl_status ifl_queue_create(ifl_engine *engine,
                            ifl_queue **queue,
                            ifl_error **error);

/// Takes every event that waits in a queue, as ifl_engine_poll does for the engine's own.
///
/// - queue: the queue.
/// - timeout_ms: 0: do not block; -1: wait until there is an event; otherwise wait at most so many
///   milliseconds.
/// - events: receives the batch, NULL where nothing came in time; free it with ifl_events_free. Not NULL.
/// - error: receives the error where the call fails; may be NULL.
///
/// Threads: any, at any time; each event goes to one of the callers.
/// Errors: IFL_INVALID_ARGUMENT, IFL_INVALID_HANDLE, IFL_FORKED; IFL_CLOSED, or what ended the engine, once
/// the engine has ended and the queue is empty. Since 0.1.0.
ifl_status ifl_queue_poll(ifl_queue *queue,
                          int32_t timeout_ms,
                          ifl_events **events,
                          ifl_error **error);

/// A descriptor that is readable (poll, select, epoll: POLLIN) while events wait in the queue or the engine
/// has ended; then call ifl_queue_poll with timeout 0. Once the engine has ended it stays readable for ever, also
/// where it had ended before this call: stop watching it at the first IFL_CLOSED.
///
/// - queue: the queue.
/// - fd: receives the descriptor, the same at each call. It belongs to the queue and is closed by
///   ifl_queue_destroy, before that returns: do not read from it, write to it or close it. Not NULL.
/// - error: receives the error where the call fails; may be NULL.
///
/// Threads: any, at any time.
/// Errors: IFL_INVALID_ARGUMENT, IFL_INVALID_HANDLE, IFL_FORKED; IFL_OUT_OF_MEMORY where the process has no
/// descriptors left; IFL_CLOSED where another thread destroys the queue meanwhile. Since 0.1.0.
ifl_status ifl_queue_fd(ifl_queue *queue,
                        int32_t *fd,
                        ifl_error **error);

/// Ends a queue: events in it are dropped, its descriptor is closed, requests that name it are cancelled, those
/// that wait for their first step included, and threads that wait in ifl_queue_poll return with IFL_CLOSED. The
/// requests' places are free when they have ended, within one step, and not yet when this call returns.
///
/// - queue: the queue. NULL, a queue that was destroyed already, and one made before a fork by another
///   process are left alone.
///
/// Threads: any, at any time. Errors: none. Since 0.1.0.
void ifl_queue_destroy(ifl_queue *queue);

/// Token ids of a text.
///
/// - engine: the engine whose model's tokenizer to use.
/// - text: UTF-8, at most 16 MiB. May be NULL where text_len is 0.
/// - text_len: its length in bytes, or IFL_NUL_TERMINATED.
/// - flags: IFL_TEXT_ADD_SPECIAL, IFL_TEXT_PARSE_SPECIAL, both or 0.
/// - tokens: receives a buffer to read with ifl_buffer_tokens; free it with ifl_buffer_free. Not NULL.
/// - error: receives the error where the call fails; may be NULL.
///
/// Threads: any, at any time; the work is done on the calling thread.
/// Errors: IFL_INVALID_ARGUMENT, IFL_INVALID_UTF8, IFL_INVALID_HANDLE, IFL_FORKED. Since 0.1.0.
ifl_status ifl_tokenize(ifl_engine *engine,
                        const char *text,
                        uint64_t text_len,
                        ifl_text_flags flags,
                        ifl_buffer **tokens,
                        ifl_error **error);

/// Text of token ids. Bytes that are not UTF-8 become U+FFFD.
///
/// - engine: the engine whose model's tokenizer to use.
/// - tokens: token ids. May be NULL where num_tokens is 0.
/// - num_tokens: number of tokens.
/// - flags: IFL_TEXT_SKIP_SPECIAL or 0.
/// - text: receives a buffer to read with ifl_buffer_text; free it with ifl_buffer_free. Not NULL.
/// - error: receives the error where the call fails; may be NULL.
///
/// Threads: any, at any time; the work is done on the calling thread.
/// Errors: IFL_INVALID_ARGUMENT (an id beyond the vocabulary), IFL_INVALID_HANDLE, IFL_FORKED. Since 0.1.0.
ifl_status ifl_detokenize(ifl_engine *engine,
                          const uint32_t *tokens,
                          uint64_t num_tokens,
                          ifl_text_flags flags,
                          ifl_buffer **text,
                          ifl_error **error);

/// The text that the model's chat template makes of chat messages. Requests need no such call: they may carry
/// the messages themselves (IFL_PROMPT_CHAT), and then content cannot spell special tokens.
///
/// - engine: the engine whose model's template to use.
/// - messages: JSON array of messages, such as [{"role": "user", "content": "Hello"}], UTF-8, at most 16 MiB.
/// - messages_len: its length in bytes, or IFL_NUL_TERMINATED.
/// - flags: IFL_TEXT_GENERATION_PROMPT or 0.
/// - text: receives a buffer to read with ifl_buffer_text; free it with ifl_buffer_free. Not NULL.
/// - error: receives the error where the call fails; may be NULL.
///
/// Threads: any, at any time; the call waits for a short-lived thread that does the work, which takes at most 50 ms
/// of processor time and makes at most 16 MiB of text.
/// Errors: IFL_INVALID_ARGUMENT, IFL_INVALID_UTF8, IFL_INVALID_HANDLE, IFL_FORKED; IFL_UNSUPPORTED where the
/// model has no template, IFL_MODEL_INVALID or IFL_MODEL_UNSUPPORTED where its template cannot be used, and
/// IFL_TEMPLATE_FAILED; IFL_OUT_OF_MEMORY. Since 0.1.0.
ifl_status ifl_apply_chat_template(ifl_engine *engine,
                                   const char *messages,
                                   uint64_t messages_len,
                                   ifl_text_flags flags,
                                   ifl_buffer **text,
                                   ifl_error **error);

/// The text in a buffer.
///
/// - buffer: a buffer, or NULL.
/// - len: receives the length in bytes without the NUL; may be NULL.
///
/// Returns UTF-8, NUL-terminated, which belongs to the buffer and lives until ifl_buffer_free; NULL, and a
/// length of 0, where the buffer is NULL or holds tokens.
/// Threads: any, at any time. Errors: none. Since 0.1.0.
const char *ifl_buffer_text(const ifl_buffer *buffer,
                            uint64_t *len);

/// The token ids in a buffer.
///
/// - buffer: a buffer, or NULL.
/// - num_tokens: receives the number of tokens; may be NULL.
///
/// Returns the ids, which belong to the buffer and live until ifl_buffer_free; NULL, and 0 tokens, where the
/// buffer is NULL or holds text. Not to be read from where there are 0 tokens.
/// Threads: any, at any time. Errors: none. Since 0.1.0.
const uint32_t *ifl_buffer_tokens(const ifl_buffer *buffer,
                                  uint64_t *num_tokens);

/// Frees a buffer and what is in it.
///
/// - buffer: a buffer that has not been freed, or NULL, which does nothing.
///
/// Threads: any; no other thread may use the buffer any more. Errors: none. Since 0.1.0.
void ifl_buffer_free(ifl_buffer *buffer);

/// Version of the library that is running, as IFL_VERSION is of the header that the program was compiled
/// with: major * 10000 + minor * 100 + patch.
///
/// From 1.0 on, a program compiled with one header runs with every later library of the same major version.
/// Before, the ABI may change with the minor version, which the soname does not show: check that
/// ifl_version() / 100 == IFL_VERSION / 100.
///
/// Threads: any, at any time. Errors: none. Since 0.1.0.
uint32_t ifl_version(void);

/// Whether this build of the library has a feature: "cpu" and "cuda" (backends; whether the machine has such a
/// device is another question), "echo" (the device without weights), "gguf" and "safetensors" (model formats),
/// "queue-fd" (ifl_queue_fd).
///
/// - name: name of the feature, UTF-8.
/// - name_len: its length in bytes, or IFL_NUL_TERMINATED.
///
/// Returns 1 or 0; a name that the library does not know, or NULL, gives 0.
/// Threads: any, at any time. Errors: none. Since 0.1.0.
uint32_t ifl_has_feature(const char *name,
                         uint64_t name_len);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* INFLIGHT_H */
