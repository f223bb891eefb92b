using System;
using System.Runtime.InteropServices;

// The library assigns the fields.
#pragma warning disable 0649

namespace Inflight
{
    // The library's structs, in its own names: a test compares them with the header, name by name.
    [StructLayout(LayoutKind.Sequential)]
    internal unsafe struct ifl_engine_options
    {
        public uint struct_size;
        public int dtype;
        public byte* model;
        public ulong model_len;
        public byte* device;
        public ulong device_len;
        public uint max_num_sequences;
        public uint max_batched_tokens;
        public uint max_model_len;
        public uint kv_block_size;
        public ulong kv_cache_bytes;
        public ulong memory_limit_bytes;
        public uint num_threads;
        public uint max_queued_requests;
        public uint max_unread_tokens;
        public int log_level;
        public IntPtr log;
        public IntPtr log_user_data;
        public IntPtr progress;
        public IntPtr progress_user_data;
        public byte* spec;
        public ulong spec_len;
    }

    [StructLayout(LayoutKind.Sequential)]
    internal unsafe struct ifl_request
    {
        public uint struct_size;
        public int prompt_kind;
        public byte* prompt;
        public ulong prompt_len;
        public uint* prompt_tokens;
        public ulong num_prompt_tokens;
        public uint add_special_tokens;
        public uint parse_special_tokens;
        public uint max_tokens;
        public uint min_tokens;
        public uint ignore_eos;
        public int priority;
        public ulong timeout_ms;
        public ulong user_data;
        public IntPtr queue;
        public uint* stop_tokens;
        public ulong num_stop_tokens;
        public byte** stop_strings;
        public ulong* stop_string_lens;
        public ulong num_stop_strings;
        public float temperature;
        public int top_k;
        public float top_p;
        public float min_p;
        public float repetition_penalty;
        public float presence_penalty;
        public float frequency_penalty;
        public int num_logprobs;
        public ulong seed;
        public uint* logit_bias_tokens;
        public float* logit_bias_values;
        public ulong num_logit_biases;
    }

    [StructLayout(LayoutKind.Sequential)]
    internal unsafe struct ifl_event
    {
        public uint struct_size;
        public int kind;
        public ulong request_id;
        public ulong user_data;
        public uint* token_ids;
        public ulong num_tokens;
        public byte* text;
        public ulong text_len;
        public uint* logprob_tokens;
        public float* logprobs;
        public ulong num_logprobs;
        public int finish_reason;
        public int status;
        public byte* message;
        public ulong message_len;
        public uint num_prompt_tokens;
        public uint num_output_tokens;
        public ulong queued_us;
        public ulong first_token_us;
        public ulong total_us;
    }

    [StructLayout(LayoutKind.Sequential)]
    internal unsafe struct ifl_memory_plan
    {
        public uint struct_size;
        public uint fits;
        public ulong weights_bytes;
        public ulong kv_cache_bytes;
        public ulong workspace_bytes;
        public ulong total_bytes;
        public ulong available_bytes;
        public ulong num_kv_blocks;
        public ulong kv_block_size;
        public ulong max_model_len;
    }

    [StructLayout(LayoutKind.Sequential)]
    internal unsafe struct ifl_stats
    {
        public uint struct_size;
        public uint reserved;
        public ulong num_steps;
        public ulong num_prompt_tokens;
        public ulong num_output_tokens;
        public ulong num_accepted;
        public ulong num_finished;
        public ulong num_preemptions;
        public ulong num_waiting;
        public ulong num_running;
        public ulong num_paused;
        public ulong num_kv_blocks_used;
        public ulong num_kv_blocks_free;
        public ulong weights_bytes;
        public ulong kv_cache_bytes;
        public ulong workspace_bytes;
    }

    [StructLayout(LayoutKind.Sequential)]
    internal unsafe struct ifl_model_info
    {
        public uint struct_size;
        public uint vocab_size;
        public uint max_model_len;
        public uint has_chat_template;
    }

    internal enum PromptKind
    {
        Text = 1,
        User = 2,
        Chat = 3,
        Tokens = 4
    }

    internal enum EventKind
    {
        Output = 1,
        Finished = 2
    }

    [Flags]
    internal enum TextFlags : uint
    {
        AddSpecial = 1,
        ParseSpecial = 2,
        SkipSpecial = 4,
        GenerationPrompt = 8
    }
}
