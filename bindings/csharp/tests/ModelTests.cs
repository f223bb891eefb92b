using System;
using System.IO;
using System.Linq;
using System.Threading.Tasks;

namespace Inflight.Tests
{
    /// <summary>The binding on SmolLM2-135M-Instruct, which scripts/setup.sh fetches.</summary>
    public static class ModelTests
    {
        private static Engine OpenModel()
        {
            string path = Environment.GetEnvironmentVariable("INFLIGHT_TEST_MODEL");
            if (string.IsNullOrEmpty(path))
                path = ".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf";
            Expect.That(File.Exists(path), path + " is missing; run scripts/setup.sh or set INFLIGHT_TEST_MODEL");
            return Engine.Open(new EngineOptions { Model = path, Device = "cpu", MaxQueuedRequests = 40 });
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
