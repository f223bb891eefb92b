using System;
using System.IO;
using System.Linq;
using System.Threading;
using System.Threading.Tasks;

namespace Inflight.Tests
{
    /// <summary>The binding on SmolLM2-135M-Instruct, which scripts/setup.sh fetches.</summary>
    public static class ModelTests
    {
        private static Engine OpenModel() => Engine.Open(Model());

        private static EngineOptions Model()
        {
            string path = Environment.GetEnvironmentVariable("INFLIGHT_TEST_MODEL");
            if (string.IsNullOrEmpty(path))
                path = ".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf";
            Expect.That(File.Exists(path), path + " is missing; run scripts/setup.sh or set INFLIGHT_TEST_MODEL");
            return new EngineOptions { Model = path, Device = "cpu", MaxQueuedRequests = 40 };
        }

        /// <summary>Calls an action at each report, on the thread that reports.</summary>
        private sealed class Listener : IProgress<LoadingProgress>
        {
            private readonly Action<LoadingProgress> action;

            public Listener(Action<LoadingProgress> action)
            {
                this.action = action;
            }

            public void Report(LoadingProgress value) => action(value);
        }

        public static void ProgressIsHeard()
        {
            LoadingProgress last = default(LoadingProgress);
            EngineOptions options = Model();
            options.Progress = new Listener(progress =>
            {
                Expect.That(progress.BytesDone >= last.BytesDone && progress.BytesDone <= progress.BytesTotal);
                last = progress;
            });
            using (Engine engine = Engine.Open(options))
                Expect.That(last.BytesDone == last.BytesTotal && engine.GetStats().WeightsBytes > 0, last.BytesDone);
        }

        public static async Task LoadingCanBeCancelled()
        {
            using (var source = new CancellationTokenSource())
            {
                int numReports = 0;
                EngineOptions options = Model();
                options.Progress = new Listener(progress =>
                {
                    numReports++;
                    source.Cancel();
                });
                Task<Engine> loading = Engine.OpenAsync(options, source.Token);
                Exception failure = null;
                try
                {
                    await loading;
                }
                catch (OperationCanceledException cancelled)
                {
                    failure = cancelled;
                }
                Expect.Equal(source.Token, ((OperationCanceledException)failure).CancellationToken);
                Expect.That(loading.IsCanceled && numReports == 1, numReports);
                // One that is cancelled already loads nothing.
                Expect.Throws<OperationCanceledException>(() => Engine.Open(options, source.Token));
                Expect.Equal(1, numReports);
            }
            using (var source = new CancellationTokenSource())
            {
                // Nobody listens: the token alone ends it.
                Task<Engine> loading = Engine.OpenAsync(Model(), source.Token);
                source.Cancel();
                Expect.That(await Task.WhenAny(loading, Task.Delay(20000)) == loading, "it ends");
                if (loading.Status == TaskStatus.RanToCompletion)
                    loading.Result.Dispose();
            }
        }

        public static void AFailureInProgressComesOutOfOpen()
        {
            int numReports = 0;
            EngineOptions options = Model();
            options.Progress = new Listener(progress =>
            {
                numReports++;
                throw new InvalidOperationException("a defect of the host");
            });
            for (int i = 1; i <= 3; i++)
            {
                Exception failure =
                    Expect.Throws<InvalidOperationException>(() => Engine.Open(options), "a defect of the host");
                Expect.That(failure.StackTrace.Contains(nameof(AFailureInProgressComesOutOfOpen)), failure.StackTrace);
                Expect.Equal(i, numReports);
            }
        }

        public static async Task AModelAnswers()
        {
            using (Engine engine = OpenModel())
            {
                Answer alone = await Answer.OfAsync(engine, Greedy());
                Expect.That(alone.Text.Contains("Paris"), alone.Text);
                Answer[] together = await Task.WhenAll(
                    Enumerable.Range(0, 16).Select(_ => Answer.OfAsync(engine, Greedy())));
                Expect.That(together.All(answer => answer.Text == alone.Text));
                Request request = Greedy();
                request.Stop = new[] { "aris" };
                Expect.That(Answer.Of(engine, request).Text.EndsWith("P"));
                request = new Request { Prompt = Prompt.Text("🙂🦀🙂🦀🙂🦀"), MaxTokens = 24, Temperature = 0 };
                Answer split = Answer.Of(engine, request);
                Expect.Equal(engine.Detokenize(split.Tokens.ToArray(), true), split.Text);
                request = new Request { Prompt = "Tell a story.", MaxTokens = 10, Temperature = 1, Seed = 3 };
                request.Logprobs = 3;
                Answer first = Answer.Of(engine, request), second = Answer.Of(engine, request);
                Expect.Equal(first.Text, second.Text);
                Expect.That(first.Rows.Count == first.Tokens.Count && first.Rows[0].Count == 4);
            }
        }

        public static void ItIsCancelledRefusedAndClosedInFlight()
        {
            Engine engine = OpenModel();
            var request = new Request { Prompt = "Tell a long story.", MaxTokens = 500, IgnoreEos = true };
            request.Timeout = TimeSpan.FromMilliseconds(300);
            Expect.Throws<TimeoutException>(() => Answer.Of(engine, request));
            request.Timeout = TimeSpan.Zero;
            Expect.That(engine.Generate(request).First(chunk => chunk.Text != "") != null);
            Open.WaitUntilIdle(engine);
            engine.Dispose();
            // A request that has ended keeps its place until its last event is polled, so no other has run here.
            engine = OpenModel();
            Generation[] running = Enumerable.Range(0, 40).Select(_ => engine.Start(request)).ToArray();
            Expect.Status(Status.Busy, () => engine.Start(request));
            engine.Dispose();
            foreach (Generation generation in running)
            {
                Expect.Status(Status.Closed, () =>
                {
                    while (!generation.TryRead(out Chunk chunk) || chunk.Result == null)
                    {
                    }
                    generation.TryRead(out chunk);
                });
            }
        }

        private static Request Greedy() =>
            new Request { Prompt = "What is the capital of France?", MaxTokens = 12, Temperature = 0 };
    }
}
