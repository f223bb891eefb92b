using System;

namespace Inflight
{
    /// <summary>The type that weights are kept in.</summary>
    public enum DType
    {
        /// <summary>bfloat16, on the CPU and on CUDA.</summary>
        Auto = 0,
        /// <summary>IEEE single precision, which only the CPU has: the device "auto" then takes the CPU, and
        /// "cuda" is refused.</summary>
        F32 = 1,
        /// <summary>bfloat16.</summary>
        Bf16 = 2,
        /// <summary>IEEE half precision.</summary>
        F16 = 3
    }

    /// <summary>What an engine loads, and how. Model is required, except for the device "echo"; null and 0 mean
    /// "choose for me". Of the library's options two are left out. Its log lines come on threads of its own that block
    /// the signals by which Mono stops threads to collect garbage. A limit on a request's unread tokens would pause
    /// no request, since the engine's thread takes all events at once.</summary>
    public sealed class EngineOptions
    {
        /// <summary>Path of a model directory in Hugging Face layout, or of a GGUF file.</summary>
        public string Model { get; set; }

        /// <summary>Path of a model_spec.json under any name, which describes the architecture in place of what Model
        /// says of it.</summary>
        public string Spec { get; set; }

        /// <summary>"auto" (the default), "cpu", "cuda", "cuda:0", "cuda:0,1" (more than one: not supported
        /// yet), or "echo", which needs no model and answers with the prompt ("echo:1000": 1000 microseconds a
        /// step).</summary>
        public string Device { get; set; }

        /// <summary>Type to keep weights and KV cache in.</summary>
        public DType DType { get; set; }

        /// <summary>Sequences that can be in one step; default 64, on CUDA 256.</summary>
        public uint MaxNumSequences { get; set; }

        /// <summary>Tokens that one step runs at most; default 512, on CUDA 8192.</summary>
        public uint MaxBatchedTokens { get; set; }

        /// <summary>Longest prompt plus output of one request in tokens; default: what the model was trained
        /// for. A KV cache of fewer tokens lowers it: MemoryPlan and ModelInfo tell what it has become. Where RoPE
        /// depends on the context's length, this chooses its frequencies.</summary>
        public uint MaxModelLen { get; set; }

        /// <summary>Tokens in a block of the KV cache, a multiple of 16; default 64.</summary>
        public uint KvBlockSize { get; set; }

        /// <summary>Bytes for the KV cache, per device; default: enough for MaxNumSequences full contexts, but at
        /// most a quarter of the memory that the host has available, or what weights and workspace leave of nine
        /// tenths of a CUDA device's free memory. MemoryLimitBytes lowers that further.</summary>
        public ulong KvCacheBytes { get; set; }

        /// <summary>Hard limit in bytes on weights, KV cache and workspace together, per device; inflight.h says what
        /// is not counted.</summary>
        public ulong MemoryLimitBytes { get; set; }

        /// <summary>Compute threads of the CPU backend; default: one per core.</summary>
        public uint NumThreads { get; set; }

        /// <summary>Requests that can be accepted and not yet ended; one more gets Status.Busy. Default
        /// 4096.</summary>
        public uint MaxQueuedRequests { get; set; }

        /// <summary>Hears how far loading has come, on the thread that loads, which waits for it. What it throws ends
        /// the loading, and Open throws the same. Not used by the device "echo".</summary>
        public IProgress<LoadingProgress> Progress { get; set; }

        internal unsafe ifl_engine_options ToNative(Arena memory)
        {
            var to = new ifl_engine_options();
            int status = Native.ifl_engine_options_init(&to, (uint)sizeof(ifl_engine_options), IntPtr.Zero);
            InflightException.ThrowIf(status, IntPtr.Zero);
            if (!string.IsNullOrEmpty(Model))
                to.model = memory.Add(Model, out to.model_len);
            if (!string.IsNullOrEmpty(Spec))
                to.spec = memory.Add(Spec, out to.spec_len);
            if (!string.IsNullOrEmpty(Device))
                to.device = memory.Add(Device, out to.device_len);
            to.dtype = (int)DType;
            to.max_num_sequences = MaxNumSequences;
            to.max_batched_tokens = MaxBatchedTokens;
            to.max_model_len = MaxModelLen;
            to.kv_block_size = KvBlockSize;
            to.kv_cache_bytes = KvCacheBytes;
            to.memory_limit_bytes = MemoryLimitBytes;
            to.num_threads = NumThreads;
            to.max_queued_requests = MaxQueuedRequests;
            return to;
        }
    }
}
