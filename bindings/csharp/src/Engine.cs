using System;
using System.Collections.Generic;
using System.Runtime.CompilerServices;
using System.Threading;
using System.Threading.Tasks;

namespace Inflight
{
    /// <summary>Runs the requests of one model. Any thread may call any method at any time. The library calls back only
    /// while Open loads, on Open's thread: after that a thread of each engine takes the events of all its requests and
    /// wakes their readers.</summary>
    public sealed class Engine : IDisposable
    {
        private readonly EngineHandle handle;
        private readonly IntPtr key;
        private readonly Thread poller;
        private readonly object closing = new object();

        private Engine(IntPtr created)
        {
            handle = new EngineHandle(created);
            key = created;
            // Neither the thread nor what it runs holds the engine, so that one that is dropped is still finalised.
            Streams streams = Streams;
            poller = new Thread(() => streams.Poll(created)) { IsBackground = true, Name = "inflight events" };
            poller.Start();
        }

        internal Streams Streams { get; } = new Streams();

        /// <summary>Version of the native library, such as 0.1.0.</summary>
        public static Version LibraryVersion
        {
            get
            {
                Library.Load();
                return GetLibraryVersion();
            }
        }

        /// <summary>Whether this build of the native library has a feature: "cpu", "cuda", "echo", "gguf",
        /// "safetensors", "queue-fd" (descriptors of queues, which this package has no need of).</summary>
        public static bool HasFeature(string name)
        {
            CheckNull(name, nameof(name));
            Library.Load();
            return HasFeatureLoaded(name);
        }

        // Mono looks for the library when it compiles a method that calls it. So those that come first do not call it
        // themselves, but others when it is loaded.

        [MethodImpl(MethodImplOptions.NoInlining)]
        private static Version GetLibraryVersion() => Library.ToVersion(Native.ifl_version());

        [MethodImpl(MethodImplOptions.NoInlining)]
        private static unsafe bool HasFeatureLoaded(string name)
        {
            using (var memory = new Arena())
            {
                byte* text = memory.Add(name, out ulong length);
                return Native.ifl_has_feature(text, length) != 0;
            }
        }

        /// <summary>Loads a model and starts the engine's threads, which takes as long as loading does. Cancelling the
        /// token ends the loading, unless all weights are in place by then.</summary>
        /// <exception cref="InflightException">The model cannot be loaded, or the native library is of a version that
        /// this package cannot use.</exception>
        /// <exception cref="DllNotFoundException">The native library was not found.</exception>
        /// <exception cref="OperationCanceledException">The token was cancelled.</exception>
        public static Engine Open(
            EngineOptions options, CancellationToken cancellationToken = default(CancellationToken))
        {
            CheckNull(options, nameof(options));
            cancellationToken.ThrowIfCancellationRequested();
            Library.LoadCompatible();
            return OpenLoaded(options, cancellationToken);
        }

        [MethodImpl(MethodImplOptions.NoInlining)]
        private static unsafe Engine OpenLoaded(EngineOptions options, CancellationToken token)
        {
            using (var memory = new Arena())
            using (var loading = new Loading(options.Progress, token))
            {
                ifl_engine_options native = options.ToNative(memory);
                loading.Fill(ref native);
                IntPtr engine = IntPtr.Zero, error = IntPtr.Zero;
                int status = Native.ifl_engine_create(&native, ref engine, ref error);
                if (loading.IsEnded(status))
                {
                    // There is an engine only where the host failed when all was loaded.
                    Native.ifl_engine_destroy(engine);
                    Native.ifl_error_free(error);
                    loading.Throw();
                }
                InflightException.ThrowIf(status, error);
                return new Engine(engine);
            }
        }

        /// <summary>Open on another thread.</summary>
        public static Task<Engine> OpenAsync(
            EngineOptions options, CancellationToken cancellationToken = default(CancellationToken)) =>
            Task.Run(() => Open(options, cancellationToken), cancellationToken);

        /// <summary>Says what Open with the same options would reserve. That it does not fit is no error.</summary>
        public static MemoryPlan Plan(EngineOptions options)
        {
            CheckNull(options, nameof(options));
            Library.LoadCompatible();
            return PlanLoaded(options);
        }

        [MethodImpl(MethodImplOptions.NoInlining)]
        private static unsafe MemoryPlan PlanLoaded(EngineOptions options)
        {
            using (var memory = new Arena())
            {
                ifl_engine_options native = options.ToNative(memory);
                var plan = new ifl_memory_plan { struct_size = (uint)sizeof(ifl_memory_plan) };
                IntPtr error = IntPtr.Zero;
                InflightException.ThrowIf(Native.ifl_engine_plan(&native, &plan, ref error), error);
                return new MemoryPlan(plan);
            }
        }

        /// <summary>Streams the output of a request; its last chunk has a Result, and where it fails an exception
        /// follows: an InflightException, a TimeoutException after its Timeout, or an OperationCanceledException.
        /// The request is enqueued when the first chunk is asked for, and cancelled when the enumerator is disposed
        /// early. A full queue is Status.Busy at once.</summary>
        public IAsyncEnumerable<Chunk> GenerateAsync(
            Request request, CancellationToken cancellationToken = default(CancellationToken))
        {
            CheckNull(request, nameof(request));
            return new ChunkSequence(this, request, cancellationToken);
        }

        /// <summary>GenerateAsync for threads that wait.</summary>
        public IEnumerable<Chunk> Generate(
            Request request, CancellationToken cancellationToken = default(CancellationToken))
        {
            CheckNull(request, nameof(request));
            return GenerateNow(request, cancellationToken);
        }

        private IEnumerable<Chunk> GenerateNow(Request request, CancellationToken token)
        {
            using (Generation generation = Start(request, token))
            {
                for (;;)
                {
                    generation.Wait();
                    if (generation.TryRead(out Chunk chunk, out bool isEnd))
                        yield return chunk;
                    if (isEnd)
                        break;
                }
            }
        }

        /// <summary>Enqueues a request before it returns, for hosts that look for its output when it suits them.
        /// Does not wait for the model; ifl_engine_enqueue in inflight.h says what a prompt costs.</summary>
        public unsafe Generation Start(
            Request request, CancellationToken cancellationToken = default(CancellationToken))
        {
            CheckNull(request, nameof(request));
            cancellationToken.ThrowIfCancellationRequested();
            CheckOpen();
            var generation = new Generation(this);
            using (var memory = new Arena())
            {
                var native = new ifl_request();
                request.Fill(&native, memory);
                native.user_data = generation.Register();
                ulong id = 0;
                IntPtr error = IntPtr.Zero;
                bool isAccepted = false;
                try
                {
                    ThrowIf(Native.ifl_engine_enqueue(handle, &native, ref id, ref error), error);
                    isAccepted = true;
                }
                finally
                {
                    if (!isAccepted)
                        generation.Unregister();
                }
                try
                {
                    generation.Start(id, cancellationToken);
                }
                catch
                {
                    // Some runtimes refuse the token of a disposed source. Nobody would hold the request, so it ends.
                    generation.Dispose();
                    throw;
                }
            }
            return generation;
        }

        /// <summary>A snapshot of counters and gauges; it does not wait for the engine.</summary>
        public unsafe EngineStats GetStats()
        {
            CheckOpen();
            var stats = new ifl_stats { struct_size = (uint)sizeof(ifl_stats) };
            IntPtr error = IntPtr.Zero;
            ThrowIf(Native.ifl_engine_stats(handle, &stats, ref error), error);
            return new EngineStats(stats);
        }

        /// <summary>What the loaded model is.</summary>
        public unsafe ModelInfo GetModelInfo()
        {
            CheckOpen();
            var info = new ifl_model_info { struct_size = (uint)sizeof(ifl_model_info) };
            IntPtr error = IntPtr.Zero;
            ThrowIf(Native.ifl_engine_model_info(handle, &info, ref error), error);
            return new ModelInfo(info);
        }

        /// <summary>The model's end-of-sequence tokens.</summary>
        public uint[] GetEosTokens()
        {
            CheckOpen();
            IntPtr buffer = IntPtr.Zero, error = IntPtr.Zero;
            ThrowIf(Native.ifl_engine_eos_tokens(handle, ref buffer, ref error), error);
            return TakeTokens(buffer);
        }

        /// <summary>The device that the engine runs on, such as "cpu"; what "auto" has become.</summary>
        public string GetDevice()
        {
            CheckOpen();
            IntPtr buffer = IntPtr.Zero, error = IntPtr.Zero;
            ThrowIf(Native.ifl_engine_device(handle, ref buffer, ref error), error);
            return TakeText(buffer);
        }

        /// <summary>Token ids of a text. Special tokens that it spells are for trusted text only.</summary>
        public unsafe uint[] Tokenize(string text, bool addSpecial = false, bool parseSpecial = false)
        {
            CheckNull(text, nameof(text));
            CheckOpen();
            TextFlags flags = (addSpecial ? TextFlags.AddSpecial : 0) | (parseSpecial ? TextFlags.ParseSpecial : 0);
            using (var memory = new Arena())
            {
                IntPtr buffer = IntPtr.Zero, error = IntPtr.Zero;
                byte* start = memory.Add(text, out ulong length);
                ThrowIf(Native.ifl_tokenize(handle, start, length, (uint)flags, ref buffer, ref error), error);
                return TakeTokens(buffer);
            }
        }

        /// <summary>Text of token ids. Bytes that are not UTF-8 become U+FFFD.</summary>
        public unsafe string Detokenize(uint[] tokens, bool skipSpecial = false)
        {
            CheckNull(tokens, nameof(tokens));
            CheckOpen();
            uint flags = skipSpecial ? (uint)TextFlags.SkipSpecial : 0;
            using (var memory = new Arena())
            {
                IntPtr buffer = IntPtr.Zero, error = IntPtr.Zero;
                uint* start = memory.Add(tokens, out ulong count);
                ThrowIf(Native.ifl_detokenize(handle, start, count, flags, ref buffer, ref error), error);
                return TakeText(buffer);
            }
        }

        /// <summary>The text that the model's chat template makes of messages, with the start of the assistant's
        /// answer. Requests need no such call: they take a Prompt.Chat.</summary>
        public unsafe string ApplyChatTemplate(params ChatMessage[] messages)
        {
            string json = Prompt.ToJson(messages);
            CheckOpen();
            using (var memory = new Arena())
            {
                IntPtr buffer = IntPtr.Zero, error = IntPtr.Zero;
                byte* start = memory.Add(json, out ulong length);
                uint flags = (uint)TextFlags.GenerationPrompt;
                int status = Native.ifl_apply_chat_template(handle, start, length, flags, ref buffer, ref error);
                ThrowIf(status, error);
                return TakeText(buffer);
            }
        }

        /// <summary>Ends every request with Status.Closed, stops the engine and frees its memory; returns within
        /// about 2 seconds, when all is done. Doing so twice, or on several threads at once, does no harm.</summary>
        public void Dispose()
        {
            lock (closing)
            {
                if (handle.IsClosed)
                    return;
                IntPtr error = IntPtr.Zero;
                // The handle has to outlive the poller, which takes the last events of the requests.
                if (Native.ifl_engine_close(handle, ref error) == 0)
                    poller.Join();
                else
                    Native.ifl_error_free(error);
                handle.Dispose();
            }
        }

        /// <summary>Asks for a request's end. That the engine has ended already is as good.</summary>
        internal void Cancel(ulong requestId) => Native.ifl_engine_cancel(key, requestId, IntPtr.Zero);

        /// <summary>ThrowIf for calls that Dispose may have overtaken.</summary>
        private void ThrowIf(int status, IntPtr error)
        {
            if (status == 0)
                return;
            InflightException failure = InflightException.Take(status, error);
            if (failure.Status == Status.Closed || failure.Status == Status.InvalidHandle)
                CheckOpen();
            throw failure;
        }

        private void CheckOpen()
        {
            if (handle.IsClosed)
                throw new ObjectDisposedException(nameof(Engine));
        }

        private static void CheckNull(object value, string name)
        {
            if (value == null)
                throw new ArgumentNullException(name);
        }

        private static unsafe string TakeText(IntPtr buffer)
        {
            try
            {
                ulong length = 0;
                byte* text = Native.ifl_buffer_text(buffer, ref length);
                return Utf8.Decode(text, length);
            }
            finally
            {
                Native.ifl_buffer_free(buffer);
            }
        }

        private static unsafe uint[] TakeTokens(IntPtr buffer)
        {
            try
            {
                ulong count = 0;
                uint* tokens = Native.ifl_buffer_tokens(buffer, ref count);
                return Streams.Tokens(tokens, count);
            }
            finally
            {
                Native.ifl_buffer_free(buffer);
            }
        }
    }
}
