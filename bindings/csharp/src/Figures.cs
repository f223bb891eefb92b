namespace Inflight
{
    /// <summary>Counters since the engine was opened, and gauges of the moment.</summary>
    public sealed class EngineStats
    {
        internal EngineStats(ifl_stats from)
        {
            NumSteps = from.num_steps;
            NumPromptTokens = from.num_prompt_tokens;
            NumOutputTokens = from.num_output_tokens;
            NumAccepted = from.num_accepted;
            NumFinished = from.num_finished;
            NumPreemptions = from.num_preemptions;
            NumWaiting = from.num_waiting;
            NumRunning = from.num_running;
            NumPaused = from.num_paused;
            NumKvBlocksUsed = from.num_kv_blocks_used;
            NumKvBlocksFree = from.num_kv_blocks_free;
            WeightsBytes = from.weights_bytes;
            KvCacheBytes = from.kv_cache_bytes;
            WorkspaceBytes = from.workspace_bytes;
        }

        /// <summary>Counter: steps run.</summary>
        public ulong NumSteps { get; }

        /// <summary>Counter: prompt tokens run, again after a preemption included.</summary>
        public ulong NumPromptTokens { get; }

        /// <summary>Counter: tokens sampled, those discarded because their request had ended included.</summary>
        public ulong NumOutputTokens { get; }

        /// <summary>Counter: requests accepted.</summary>
        public ulong NumAccepted { get; }

        /// <summary>Counter: requests ended.</summary>
        public ulong NumFinished { get; }

        /// <summary>Counter: requests put back to the waiting line for want of KV blocks.</summary>
        public ulong NumPreemptions { get; }

        /// <summary>Gauge: requests that wait to run.</summary>
        public ulong NumWaiting { get; }

        /// <summary>Gauge: requests in the running batch.</summary>
        public ulong NumRunning { get; }

        /// <summary>Gauge: requests paused until their events are read.</summary>
        public ulong NumPaused { get; }

        /// <summary>Gauge: KV blocks in use.</summary>
        public ulong NumKvBlocksUsed { get; }

        /// <summary>Gauge: KV blocks free.</summary>
        public ulong NumKvBlocksFree { get; }

        /// <summary>Gauge: bytes of weights.</summary>
        public ulong WeightsBytes { get; }

        /// <summary>Gauge: bytes of the KV cache.</summary>
        public ulong KvCacheBytes { get; }

        /// <summary>Gauge: bytes of activations and workspace.</summary>
        public ulong WorkspaceBytes { get; }
    }

    /// <summary>What a loaded model is.</summary>
    public sealed class ModelInfo
    {
        internal ModelInfo(ifl_model_info from)
        {
            VocabSize = from.vocab_size;
            MaxModelLen = from.max_model_len;
            HasChatTemplate = from.has_chat_template != 0;
        }

        /// <summary>Token ids are below this.</summary>
        public uint VocabSize { get; }

        /// <summary>Longest prompt plus output of one request, in tokens.</summary>
        public uint MaxModelLen { get; }

        /// <summary>Whether prompts may be a Prompt.User or a Prompt.Chat.</summary>
        public bool HasChatTemplate { get; }
    }

    /// <summary>What an engine reserves, per device.</summary>
    public sealed class MemoryPlan
    {
        internal MemoryPlan(ifl_memory_plan from)
        {
            Fits = from.fits != 0;
            WeightsBytes = from.weights_bytes;
            KvCacheBytes = from.kv_cache_bytes;
            WorkspaceBytes = from.workspace_bytes;
            TotalBytes = from.total_bytes;
            AvailableBytes = from.available_bytes;
            NumKvBlocks = from.num_kv_blocks;
            KvBlockSize = from.kv_block_size;
            MaxModelLen = from.max_model_len;
        }

        /// <summary>The total fits the memory limit of the options and the memory that is available.</summary>
        public bool Fits { get; }

        /// <summary>Bytes of weights.</summary>
        public ulong WeightsBytes { get; }

        /// <summary>Bytes of the KV cache.</summary>
        public ulong KvCacheBytes { get; }

        /// <summary>Bytes of activations and workspace.</summary>
        public ulong WorkspaceBytes { get; }

        /// <summary>Bytes of all three together.</summary>
        public ulong TotalBytes { get; }

        /// <summary>Bytes that are free now; 0 where unknown.</summary>
        public ulong AvailableBytes { get; }

        /// <summary>Blocks in the KV cache.</summary>
        public ulong NumKvBlocks { get; }

        /// <summary>Tokens in a block.</summary>
        public ulong KvBlockSize { get; }

        /// <summary>Longest prompt plus output of one request, in tokens.</summary>
        public ulong MaxModelLen { get; }
    }
}
