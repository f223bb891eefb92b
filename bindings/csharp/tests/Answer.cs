using System;
using System.Collections.Generic;
using System.Linq;
using System.Text;
using System.Threading;
using System.Threading.Tasks;

namespace Inflight.Tests
{
    /// <summary>All that came of a request.</summary>
    internal sealed class Answer
    {
        private readonly StringBuilder text = new StringBuilder();

        public string Text => text.ToString();

        public List<uint> Tokens { get; } = new List<uint>();

        public List<IReadOnlyList<TokenLogprob>> Rows { get; } = new List<IReadOnlyList<TokenLogprob>>();

        public int NumChunks { get; private set; }

        public GenerationResult Result { get; private set; }

        public Exception Failure { get; private set; }

        /// <summary>Asks and waits on this thread; throws what it fails with.</summary>
        public static Answer Of(Engine engine, Request request)
        {
            var answer = new Answer();
            foreach (Chunk chunk in engine.Generate(request))
                answer.Add(chunk);
            Expect.That(answer.Result != null, "the last chunk has a result");
            return answer;
        }

        /// <summary>Asks without a thread that waits; keeps what it fails with.</summary>
        public static async Task<Answer> OfAsync(
            Engine engine, Request request, CancellationToken token = default(CancellationToken),
            Action<Answer> afterEach = null)
        {
            var answer = new Answer();
            IAsyncEnumerator<Chunk> chunks = engine.GenerateAsync(request).GetAsyncEnumerator(token);
            try
            {
                while (await chunks.MoveNextAsync())
                {
                    answer.Add(chunks.Current);
                    afterEach?.Invoke(answer);
                }
                Expect.That(!await chunks.MoveNextAsync() && chunks.Current == null, "the end stays the end");
            }
            catch (Exception failure)
            {
                answer.Failure = failure;
            }
            finally
            {
                await chunks.DisposeAsync();
            }
            return answer;
        }

        private void Add(Chunk chunk)
        {
            Expect.That(Result == null, "nothing follows the last chunk");
            // A pair of surrogates that is torn apart does not survive this.
            Expect.Equal(chunk.Text, Encoding.UTF8.GetString(Encoding.UTF8.GetBytes(chunk.Text)));
            text.Append(chunk.Text);
            Tokens.AddRange(chunk.Tokens);
            Rows.AddRange(chunk.Logprobs);
            Result = chunk.Result;
            NumChunks++;
        }
    }

    internal static class Open
    {
        public static Engine Echo(string device = "echo", uint maxQueuedRequests = 0, uint maxModelLen = 0) =>
            Engine.Open(new EngineOptions
            {
                Device = device, MaxQueuedRequests = maxQueuedRequests, MaxModelLen = maxModelLen
            });

        public static void WaitUntilIdle(Engine engine) => Expect.Soon("every request has ended", () =>
        {
            EngineStats stats = engine.GetStats();
            return stats.NumFinished == stats.NumAccepted && stats.NumRunning + stats.NumWaiting == 0;
        });

        public static string Repeat(string text, int count) => string.Concat(Enumerable.Repeat(text, count));
    }
}
