using System;
using System.Collections.Generic;
using System.Threading;
using System.Threading.Tasks;

namespace Inflight
{
    /// <summary>A request that is enqueued when its chunks are first asked for. Written by hand, since the older
    /// compilers that this package is for have no asynchronous iterators.</summary>
    internal sealed class ChunkSequence : IAsyncEnumerable<Chunk>
    {
        private readonly Engine engine;
        private readonly Request request;
        private readonly CancellationToken token;

        public ChunkSequence(Engine engine, Request request, CancellationToken token)
        {
            this.engine = engine;
            this.request = request;
            this.token = token;
        }

        public IAsyncEnumerator<Chunk> GetAsyncEnumerator(CancellationToken cancellationToken)
        {
            return new Enumerator(engine, request, token, cancellationToken);
        }

        private sealed class Enumerator : IAsyncEnumerator<Chunk>
        {
            private readonly Engine engine;
            private readonly Request request;
            private readonly CancellationToken token;
            private readonly CancellationTokenSource linked;
            private Generation generation;

            public Enumerator(Engine engine, Request request, CancellationToken first, CancellationToken second)
            {
                this.engine = engine;
                this.request = request;
                if (first.CanBeCanceled && second.CanBeCanceled && first != second)
                    linked = CancellationTokenSource.CreateLinkedTokenSource(first, second);
                token = linked?.Token ?? (first.CanBeCanceled ? first : second);
            }

            public Chunk Current { get; private set; }

            public ValueTask<bool> MoveNextAsync()
            {
                try
                {
                    if (generation == null)
                        generation = engine.Start(request, token);
                    return TryMove(out bool moved) ? new ValueTask<bool>(moved) : new ValueTask<bool>(MoveLaterAsync());
                }
                catch (Exception failure)
                {
                    return new ValueTask<bool>(Task.FromException<bool>(failure));
                }
            }

            public ValueTask DisposeAsync()
            {
                generation?.Dispose();
                linked?.Dispose();
                return default(ValueTask);
            }

            private async Task<bool> MoveLaterAsync()
            {
                for (;;)
                {
                    await generation.WaitAsync().ConfigureAwait(false);
                    if (TryMove(out bool moved))
                        return moved;
                }
            }

            /// <summary>False where it is not known yet whether there is another chunk.</summary>
            private bool TryMove(out bool moved)
            {
                moved = generation.TryRead(out Chunk chunk, out bool isEnd);
                Current = chunk;
                return moved || isEnd;
            }
        }
    }
}
