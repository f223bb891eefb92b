using System;
using System.Collections.Generic;
using System.Diagnostics;
using System.Linq;
using System.Threading;
using System.Threading.Tasks;

namespace Inflight.Tests
{
    /// <summary>The binding on the device that answers with the prompt, token for byte.</summary>
    public static class EchoTests
    {
        public static void APromptIsStreamedBack()
        {
            using (Engine engine = Open.Echo("echo:1000"))
            {
                const string prompt = "The quick brown fox";
                Answer got = Answer.Of(engine, new Request { Prompt = Prompt.Text(prompt) });
                Expect.Equal(prompt, got.Text);
                Expect.Equal(FinishReason.Stop, got.Result.Reason);
                Expect.Equal((uint)prompt.Length, got.Result.NumPromptTokens);
                Expect.Equal(prompt.Length + 1, got.Tokens.Count);
                Expect.That(got.NumChunks > 1 && got.Tokens[0] == 'T');
                Expect.That(got.Result.Total >= TimeSpan.FromMilliseconds(19), got.Result.Total);
                Expect.That(got.Result.Total >= got.Result.FirstToken && got.Result.FirstToken >= got.Result.Queued);
            }
        }

        public static async Task AnAsynchronousStreamIsTheSame()
        {
            using (Engine engine = await Engine.OpenAsync(new EngineOptions { Device = "echo:500" }))
            {
                Answer got = await Answer.OfAsync(engine, new Request { Prompt = Prompt.Text("one two") });
                Expect.Equal("one two", got.Text);
                Expect.That(got.Failure == null && got.Result.Reason == FinishReason.Stop, got.Failure);
            }
        }

        public static void AFrameLoopReadsWithoutWaiting()
        {
            using (Engine engine = Open.Echo("echo:2000"))
            using (Generation generation = engine.Start(new Request { Prompt = Prompt.Text("one two") }))
            {
                string text = "";
                int numEmpty = 0;
                while (!generation.IsEnded)
                {
                    if (generation.TryRead(out Chunk chunk))
                        text += chunk.Text;
                    else
                        numEmpty++;
                    Thread.Sleep(1);
                }
                Expect.Equal("one two", text);
                Expect.That(numEmpty > 0 && !generation.TryRead(out Chunk none) && none == null);
            }
        }

        public static void PromptsOfEveryKind()
        {
            using (Engine engine = Open.Echo())
            {
                Expect.That(engine.GetModelInfo().HasChatTemplate && engine.GetModelInfo().VocabSize > 256);
                Expect.Equal("ab", Answer.Of(engine, new Request { Prompt = Prompt.Tokens('a', 'b') }).Text);
                const string said = "say \"hi\"\\ \n\u0001\u2028";
                foreach (Prompt prompt in new[]
                {
                    said, Prompt.User(said), Prompt.Chat(new ChatMessage("user", said)),
                    Prompt.ChatJson("[{\"role\": \"user\", \"content\": \"say \\\"hi\\\"\\\\ \\n\\u0001\u2028\"}]")
                })
                {
                    string text = Answer.Of(engine, new Request { Prompt = prompt }).Text;
                    Expect.That(text.Contains(said), text);
                }
                Expect.That(engine.ApplyChatTemplate(new ChatMessage("user", said)).Contains(said));
            }
        }

        public static void TextIsWholeCodePoints()
        {
            using (Engine engine = Open.Echo("echo:500"))
            {
                const string prompt = "grüß dich 日本 🙂!";
                Answer got = Answer.Of(engine, new Request { Prompt = Prompt.Text(prompt) });
                Expect.Equal(prompt, got.Text);
                got = Answer.Of(engine, new Request { Prompt = Prompt.Tokens('a', 0xff, 'b', 0xe6) });
                Expect.Equal("a\ufffdb\ufffd", got.Text);
                Expect.Equal("a\0b", Answer.Of(engine, new Request { Prompt = Prompt.Text("a\0b") }).Text);
            }
        }

        public static void Stops()
        {
            using (Engine engine = Open.Echo())
            {
                var request = new Request { Prompt = Prompt.Text("one two three"), Stop = new[] { "never", "o th" } };
                Answer got = Answer.Of(engine, request);
                Expect.Equal("one tw", got.Text);
                Expect.Equal(FinishReason.Stop, got.Result.Reason);
                request = new Request { Prompt = Prompt.Text("one two"), StopTokens = new uint[] { 'w' } };
                Expect.Equal("one t", Answer.Of(engine, request).Text);
                got = Answer.Of(engine, new Request { Prompt = Prompt.Text("one two"), MaxTokens = 3 });
                Expect.That(got.Text == "one" && got.Result.Reason == FinishReason.Length, got.Text);
                request = new Request { Prompt = Prompt.Text("ab"), MaxTokens = 5, IgnoreEos = true };
                Expect.Equal(5, Answer.Of(engine, request).Tokens.Count);
            }
        }

        public static void LogprobsComeWithTheirTokens()
        {
            using (Engine engine = Open.Echo())
            {
                Answer got = Answer.Of(engine, new Request { Prompt = Prompt.Text("abc"), Logprobs = 2 });
                Expect.Equal(got.Tokens.Count, got.Rows.Count);
                for (int i = 0; i < got.Rows.Count; i++)
                    Expect.That(got.Rows[i][0].Token == got.Tokens[i] && got.Rows[i][0].Logprob <= 0, i);
            }
        }

        public static void EveryFieldArrives()
        {
            using (Engine engine = Open.Echo())
            {
                Expect.Equal("abc", Answer.Of(engine, Full()).Text);
                // The library names the field that it refuses, which shows that this number reached that field.
                foreach (KeyValuePair<string, Action<Request>> change in new Dictionary<string, Action<Request>>
                {
                    { "temperature", r => r.Temperature = 101 },
                    { "top_p", r => r.TopP = 1.5f },
                    { "min_p", r => r.MinP = 2 },
                    { "repetition_penalty", r => r.RepetitionPenalty = -2 },
                    { "presence_penalty", r => r.PresencePenalty = 101 },
                    { "frequency_penalty", r => r.FrequencyPenalty = 102 },
                    { "logprobs", r => r.Logprobs = 21 },
                    { "logit_bias", r => r.LogitBias = new Dictionary<uint, float> { { 1 << 30, 1 } } },
                    { "stop token", r => r.StopTokens = new uint[] { 1 << 30 } },
                    { "stop_strings", r => r.Stop = new[] { "" } },
                    { "min_tokens", r => r.MinTokens = 99 }
                })
                {
                    Request request = Full();
                    change.Value(request);
                    Expect.Status(Status.InvalidArgument, () => Answer.Of(engine, request), change.Key);
                }
                Expect.Throws<ArgumentOutOfRangeException>(
                    () => engine.Start(new Request { Prompt = "x", Temperature = -1 }), "Temperature");
                Expect.Throws<ArgumentOutOfRangeException>(
                    () => engine.Start(new Request { Prompt = "x", TopK = uint.MaxValue }), "TopK");
                Expect.Throws<ArgumentException>(() => engine.Start(new Request()), "Prompt");
                var past = new Request { Prompt = "x", Timeout = TimeSpan.FromMilliseconds(-2) };
                Expect.Throws<ArgumentOutOfRangeException>(() => engine.Start(past), "Timeout");
                var endless = new Request { Prompt = Prompt.Text("ab"), Timeout = Timeout.InfiniteTimeSpan };
                Expect.Equal("ab", Answer.Of(engine, endless).Text);
                Expect.Throws<ArgumentNullException>(() => engine.GenerateAsync(null));
                Open.WaitUntilIdle(engine);
            }
        }

        private static Request Full() => new Request
        {
            Prompt = Prompt.Text("abc"), AddSpecialTokens = false, ParseSpecialTokens = true, MaxTokens = 4,
            MinTokens = 1, Priority = -3, Timeout = TimeSpan.FromMinutes(1), StopTokens = new uint[] { 1 },
            Stop = new[] { "x" }, Temperature = 0.5f, TopK = 3, TopP = 0.5f, MinP = 0.1f, RepetitionPenalty = 1.1f,
            PresencePenalty = 1, FrequencyPenalty = 1, Logprobs = 0, Seed = 7,
            LogitBias = new Dictionary<uint, float> { { 1, 2 }, { 3, -4 } }
        };

        public static void ErrorsSayWhatIsWrong()
        {
            InflightException failure = Expect.Throws<InflightException>(
                () => Engine.Open(new EngineOptions { Model = "/no/such/model" }), "/no/such/model", "model not found");
            Expect.Equal(Status.ModelNotFound, failure.Status);
            Expect.That(failure.Category == Category.Model && !failure.IsRetryable);
            Expect.Status(Status.InvalidArgument,
                () => Engine.Open(new EngineOptions { Model = "x", Device = "abacus" }), "abacus");
            using (Engine engine = Open.Echo(maxModelLen: 64))
            {
                var request = new Request { Prompt = Prompt.Text(Open.Repeat("x", 100)) };
                Expect.Status(Status.PromptTooLong, () => Answer.Of(engine, request), "64");
                request = new Request { Prompt = Prompt.ChatJson("{") };
                Expect.Status(Status.InvalidArgument, () => Answer.Of(engine, request));
                Expect.Status(Status.InvalidArgument, () => engine.Detokenize(new uint[] { 1 << 30 }));
            }
        }

        public static async Task ATokenCancels()
        {
            using (Engine engine = Open.Echo("echo:2000"))
            using (var source = new CancellationTokenSource())
            {
                var request = new Request { Prompt = Prompt.Text(Open.Repeat("x", 3000)) };
                Answer got = await Answer.OfAsync(engine, request, source.Token, answer =>
                {
                    if (answer.Text.Length > 3)
                        source.Cancel();
                });
                Expect.Equal(source.Token, ((OperationCanceledException)got.Failure).CancellationToken);
                Expect.That(got.Text.Length > 3 && got.Text.Length < 1000, got.Text.Length);
                Open.WaitUntilIdle(engine);
                Expect.Throws<OperationCanceledException>(() => engine.Generate(request, source.Token).First());
                Expect.Equal(1ul, engine.GetStats().NumAccepted);
            }
        }

        public static void ATokenOfADisposedSourceLeavesNoRequest()
        {
            using (Engine engine = Open.Echo("echo:2000"))
            {
                var source = new CancellationTokenSource();
                CancellationToken token = source.Token;
                source.Dispose();
                var request = new Request { Prompt = Prompt.Text(Open.Repeat("x", 3000)) };
                try
                {
                    engine.Start(request, token).Dispose();
                }
                catch (ObjectDisposedException)
                {
                    // Only some runtimes refuse such a token; others take it as one that is never cancelled.
                }
                Open.WaitUntilIdle(engine);
                Expect.That(engine.GetStats().NumOutputTokens < 1000);
            }
        }

        public static void CancellingAGenerationIsNoFailure()
        {
            using (Engine engine = Open.Echo("echo:2000"))
            using (Generation generation = engine.Start(new Request { Prompt = Prompt.Text(Open.Repeat("x", 3000)) }))
            {
                generation.Cancel();
                generation.Cancel();
                GenerationResult result = null;
                while (!generation.IsEnded)
                    result = generation.TryRead(out Chunk chunk) ? chunk.Result : result;
                Expect.Equal(FinishReason.Cancelled, result.Reason);
            }
        }

        public static void LeavingTheLoopCancels()
        {
            using (Engine engine = Open.Echo("echo:2000"))
            {
                var request = new Request { Prompt = Prompt.Text(Open.Repeat("x", 3000)) };
                Expect.That(engine.Generate(request).First(chunk => chunk.Text != "") != null);
                Open.WaitUntilIdle(engine);
                Expect.That(engine.GetStats().NumOutputTokens < 1000);
            }
        }

        public static async Task ATimeoutIsADeadline()
        {
            using (Engine engine = Open.Echo("echo:2000"))
            {
                var request = new Request
                {
                    Prompt = Prompt.Text(Open.Repeat("x", 3000)), Timeout = TimeSpan.FromMilliseconds(50)
                };
                Stopwatch time = Stopwatch.StartNew();
                Answer got = await Answer.OfAsync(engine, request);
                Expect.That(got.Failure is TimeoutException && got.Result.Reason == FinishReason.Deadline, got.Failure);
                Expect.That(got.Text != "" && time.ElapsedMilliseconds >= 50 && time.ElapsedMilliseconds < 5000);
                request.Timeout = TimeSpan.FromTicks(-1);
                Expect.Throws<ArgumentOutOfRangeException>(() => engine.Start(request), "Timeout");
            }
        }

        public static void AFullQueueIsBusy()
        {
            using (Engine engine = Open.Echo("echo:5000", 2))
            {
                var request = new Request { Prompt = Prompt.Text(Open.Repeat("x", 2000)) };
                using (engine.Start(request))
                using (engine.Start(request))
                {
                    InflightException busy = Expect.Throws<InflightException>(() => engine.Start(request), "2");
                    Expect.That(busy.Status == Status.Busy && busy.IsRetryable, busy);
                    Expect.Equal(Category.Resource, busy.Category);
                }
                Expect.Soon("the poller has made room", () =>
                {
                    try
                    {
                        Answer.Of(engine, new Request { Prompt = Prompt.Text("x") });
                        return true;
                    }
                    catch (InflightException failure) when (failure.Status == Status.Busy)
                    {
                        return false;
                    }
                });
            }
        }

        public static async Task AThousandRequestsAtOnce()
        {
            using (Engine engine = Open.Echo())
            {
                Answer[] answers = await Task.WhenAll(Enumerable.Range(0, 1000).Select(async i =>
                {
                    using (var source = new CancellationTokenSource())
                    {
                        var request = new Request { Prompt = Prompt.Text(i + Open.Repeat("日本語", i % 20)) };
                        return await Answer.OfAsync(engine, request, source.Token, answer =>
                        {
                            if (i % 10 == 3)
                                source.Cancel();
                        });
                    }
                }));
                for (int i = 0; i < answers.Length; i++)
                {
                    bool isCancelled = i % 10 == 3 && answers[i].Failure is OperationCanceledException;
                    string wanted = i + Open.Repeat("日本語", i % 20);
                    Expect.That(isCancelled || answers[i].Text == wanted, answers[i].Failure);
                }
                Open.WaitUntilIdle(engine);
                Expect.Equal(1000ul, engine.GetStats().NumAccepted);
            }
        }

        public static async Task DisposingEndsWhatIsInFlight()
        {
            Engine engine = Open.Echo("echo:2000");
            var request = new Request { Prompt = Prompt.Text(Open.Repeat("x", 3000)) };
            Task<Answer>[] asked = Enumerable.Range(0, 50).Select(_ => Answer.OfAsync(engine, request)).ToArray();
            Expect.Soon("all are in", () => engine.GetStats().NumAccepted == 50);
            await Task.WhenAll(Enumerable.Range(0, 4).Select(_ => Task.Run(() => engine.Dispose())));
            foreach (Answer got in await Task.WhenAll(asked))
            {
                Expect.That((got.Failure as InflightException)?.Status == Status.Closed, got.Failure);
                Expect.Equal(FinishReason.Error, got.Result.Reason);
            }
            engine.Dispose();
            foreach (Action use in new Action[]
            {
                () => engine.Start(request), () => engine.Generate(request).First(), () => engine.GetStats(),
                () => engine.GetModelInfo(), () => engine.GetEosTokens(), () => engine.GetDevice(),
                () => engine.Tokenize("x"), () => engine.Detokenize(new uint[] { 65 }),
                () => engine.ApplyChatTemplate()
            })
                Expect.Throws<ObjectDisposedException>(use, "Engine");
            Expect.That((await Answer.OfAsync(engine, request)).Failure is ObjectDisposedException);
        }

        public static void Tokenizing()
        {
            using (Engine engine = Open.Echo())
            {
                uint[] tokens = engine.Tokenize("hé");
                Expect.That(tokens.SequenceEqual(new uint[] { 'h', 0xc3, 0xa9 }), string.Join(" ", tokens));
                Expect.Equal("hé", engine.Detokenize(tokens));
                Expect.Equal(0, engine.Tokenize("").Length);
                Expect.Equal("echo", engine.GetDevice());
                Expect.That(engine.GetEosTokens().Length > 0);
            }
        }

        public static void VersionsOfOneSeriesAreCompatible()
        {
            foreach (uint[] pair in new[]
            {
                new uint[] { 100, 100 }, new uint[] { 101, 100 }, new uint[] { 10000, 10000 },
                new uint[] { 10203, 10000 }
            })
                Expect.That(Library.IsCompatible(pair[0], pair[1]), pair[0]);
            foreach (uint[] pair in new[]
            {
                new uint[] { 100, 101 }, new uint[] { 200, 100 }, new uint[] { 100, 200 }, new uint[] { 10000, 100 },
                new uint[] { 10000, 10100 }, new uint[] { 20000, 10000 }
            })
                Expect.That(!Library.IsCompatible(pair[0], pair[1]), pair[0]);
        }

        public static void TheLibraryDescribesItself()
        {
            Expect.That(Engine.LibraryVersion >= new Version(0, 1, 0));
            Expect.That(Engine.HasFeature("echo") && !Engine.HasFeature("teleport"));
            var named = new EngineOptions { Model = ".", Device = "cpu", Spec = "no_such_spec.json" };
            Expect.Status(Status.ModelNotFound, () => Engine.Plan(named), "no_such_spec.json");
            MemoryPlan plan = Engine.Plan(new EngineOptions { Device = "echo", MemoryLimitBytes = 1 });
            Expect.That(!plan.Fits && plan.TotalBytes > 0 && plan.MaxModelLen > 0);
        }
    }
}
