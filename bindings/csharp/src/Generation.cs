using System;
using System.Collections.Generic;
using System.Threading;
using System.Threading.Tasks;

namespace Inflight
{
    /// <summary>A request in flight, for hosts that look for output when it suits them, such as once a frame. Others
    /// use Engine.GenerateAsync or Engine.Generate. Any thread may call it, but only one may read. One that is dropped
    /// without Dispose runs to its end, and its engine is not finalised before.</summary>
    public sealed class Generation : IDisposable
    {
        private readonly object gate = new object();
        private readonly Queue<Chunk> chunks = new Queue<Chunk>();
        private volatile Engine engine; // Null once the request has ended: an answer that is kept keeps no engine.
        private ulong number;
        private ulong requestId;
        private bool ended;
        private Exception failure;
        private TaskCompletionSource<bool> waiter;
        private CancellationTokenRegistration registration;

        internal Generation(Engine engine)
        {
            this.engine = engine;
        }

        /// <summary>Nothing is left to be read, and nothing more will come; a failure is still to be thrown by
        /// TryRead.</summary>
        public bool IsEnded
        {
            get
            {
                lock (gate)
                    return ended && chunks.Count == 0;
            }
        }

        /// <summary>Takes the next chunk where there is one; does not wait. The last chunk has a Result. Once all are
        /// taken it throws what the request failed with: an InflightException, a TimeoutException, or an
        /// OperationCanceledException where the token was cancelled.</summary>
        public bool TryRead(out Chunk chunk) => TryRead(out chunk, out _);

        /// <summary>TryRead that also says whether nothing more will come.</summary>
        internal bool TryRead(out Chunk chunk, out bool isEnd)
        {
            lock (gate)
            {
                chunk = chunks.Count > 0 ? chunks.Dequeue() : null;
                isEnd = chunk == null && ended;
                if (isEnd && failure != null)
                    throw failure;
                return chunk != null;
            }
        }

        /// <summary>Asks for the request's end within one step; its last chunk follows.</summary>
        public void Cancel() => engine?.Cancel(requestId);

        /// <summary>Cancels the request if it has not ended, and drops what was not read.</summary>
        public void Dispose() => End(null);

        /// <summary>Makes what the poller delivers arrive here; before the request is enqueued.</summary>
        internal ulong Register() => number = engine.Streams.Add(this);

        /// <summary>The request is in flight, and the token may end it.</summary>
        internal void Start(ulong id, CancellationToken token)
        {
            requestId = id;
            if (!token.CanBeCanceled)
                return;
            // A token that is cancelled by now calls back at once, so not under the lock.
            CancellationTokenRegistration made =
                token.Register(() => End(new OperationCanceledException(token)), false);
            bool late;
            lock (gate)
            {
                registration = made;
                late = ended;
            }
            if (late)
                made.Dispose();
        }

        /// <summary>The request was not accepted.</summary>
        internal void Unregister() => engine?.Streams.Remove(number);

        /// <summary>Called by the poller.</summary>
        internal void Put(Chunk chunk, Exception why, bool isLast)
        {
            TaskCompletionSource<bool> toWake;
            CancellationTokenRegistration toEnd = default(CancellationTokenRegistration);
            lock (gate)
            {
                if (ended)
                    return;
                if (chunk != null)
                    chunks.Enqueue(chunk);
                if (isLast)
                {
                    ended = true;
                    failure = why;
                    toEnd = registration;
                }
                toWake = Wake();
            }
            if (isLast)
                engine = null;
            toWake?.TrySetResult(true);
            // Waits for a callback that runs, which may take the lock.
            toEnd.Dispose();
        }

        /// <summary>Completes when there is something to be read, an end included.</summary>
        internal Task WaitAsync()
        {
            lock (gate)
            {
                if (ended || chunks.Count > 0)
                    return Task.CompletedTask;
                // Continuations run elsewhere: the poller must not run the host's code.
                waiter = waiter ?? new TaskCompletionSource<bool>(TaskCreationOptions.RunContinuationsAsynchronously);
                return waiter.Task;
            }
        }

        internal void Wait()
        {
            lock (gate)
            {
                while (!ended && chunks.Count == 0)
                    Monitor.Wait(gate);
            }
        }

        /// <summary>Ends it for its reader at once; the engine follows within a step.</summary>
        private void End(Exception why)
        {
            TaskCompletionSource<bool> toWake;
            CancellationTokenRegistration toEnd;
            lock (gate)
            {
                chunks.Clear();
                failure = ended ? failure : why;
                ended = true;
                toEnd = registration;
                toWake = Wake();
            }
            Engine of = engine;
            if (of != null && of.Streams.Remove(number))
                of.Cancel(requestId);
            engine = null;
            toWake?.TrySetResult(true);
            toEnd.Dispose();
        }

        /// <summary>Wakes a thread that waits; gives the task that does, to be completed without the lock.</summary>
        private TaskCompletionSource<bool> Wake()
        {
            Monitor.PulseAll(gate);
            TaskCompletionSource<bool> waiting = waiter;
            waiter = null;
            return waiting;
        }
    }
}
