// Asks a model: streams one answer to the terminal, or runs many prompts together and shows each answer as it ends.
//
// With Mono, in the repository, after cargo build --release; Inflight.dll is the binding:
//
//     mcs -target:library -unsafe -out:Inflight.dll bindings/csharp/src/*.cs bindings/csharp/src/Native/*.cs
//     mcs -r:Inflight.dll -out:Generate.exe examples/csharp/Generate.cs
//     export INFLIGHT_LIBRARY=target/release/libinflight.so
//     mono Generate.exe MODEL --prompt "Why is the sky blue?"

using System;
using System.Collections.Generic;
using System.Diagnostics;
using System.Globalization;
using System.IO;
using System.Linq;
using System.Threading;
using System.Threading.Tasks;
using Inflight;

internal static class Generate
{
    private const string Usage =
@"usage: generate MODEL [options]

MODEL is a model directory in Hugging Face layout or a GGUF file.

  --prompt TEXT        what to ask; may be given several times
  --prompts-file FILE  ask every line of FILE as well
  --many N             ask N times together, taking the prompts in turn
  --max-tokens N       longest answer in tokens (default 256)
  --temperature T      0 for the likeliest answer (default: what the model recommends)
  --device NAME        auto (default), cpu, cuda, cuda:0, or echo, which needs no model
  --help               show this text

One prompt is streamed. Several are enqueued at once and shown as they end.
";

    /// <summary>What the command line asks for.</summary>
    private sealed class Config
    {
        public readonly EngineOptions Options = new EngineOptions();
        public readonly List<string> Prompts = new List<string>();
        public int NumRequests;
        public uint MaxTokens = 256;
        public float? Temperature;

        public string PromptOf(int number) => Prompts[number % Prompts.Count];

        public Request RequestOf(int number, bool isChat) => new Request
        {
            Prompt = isChat ? Prompt.User(PromptOf(number)) : Prompt.Text(PromptOf(number)),
            MaxTokens = MaxTokens,
            Temperature = Temperature
        };
    }

    private sealed class UsageException : Exception
    {
        public UsageException(string message) : base(message + "\nTry generate --help.")
        {
        }
    }

    private static int Main(string[] arguments)
    {
        CultureInfo.DefaultThreadCurrentCulture = CultureInfo.CurrentCulture = CultureInfo.InvariantCulture;
        try
        {
            if (arguments.Contains("--help") || arguments.Contains("-h"))
            {
                Console.Write(Usage);
                return 0;
            }
            return Run(Parse(arguments));
        }
        catch (Exception failure)
        {
            bool isKnown = failure is InflightException || failure is UsageException;
            Console.Error.WriteLine("generate: " + (isKnown ? "" : failure.GetType().Name + ": ") + failure.Message);
            return failure is UsageException ? 2 : 1;
        }
    }

    private static int Run(Config config)
    {
        using (Engine engine = Engine.Open(config.Options))
        {
            bool isChat = engine.GetModelInfo().HasChatTemplate;
            if (config.NumRequests > 1)
                return RunManyAsync(engine, config, isChat).GetAwaiter().GetResult();
            StreamOne(engine, config.RequestOf(0, isChat));
            return 0;
        }
    }

    /// <summary>Shows an answer as it comes.</summary>
    private static void StreamOne(Engine engine, Request request)
    {
        foreach (Chunk chunk in engine.Generate(request))
        {
            Console.Write(chunk.Text);
            ShowSpeed(chunk.Result);
        }
    }

    /// <summary>Tells the speed, once there is a result.</summary>
    private static void ShowSpeed(GenerationResult result)
    {
        if (result == null)
            return;
        Console.Write("\n\n{0} tokens in {1:F2} s", result.NumOutputTokens, result.Total.TotalSeconds);
        if (result.NumOutputTokens > 1)
            Console.Write(": the first after {0:F2} s, then {1:F1} tokens/s", result.FirstToken.TotalSeconds,
                (result.NumOutputTokens - 1) / (result.Total - result.FirstToken).TotalSeconds);
        Console.WriteLine();
    }

    /// <summary>One request's whole output.</summary>
    private sealed class Answer
    {
        public string Text = "";
        public GenerationResult Result;
        public Exception Failure;
    }

    /// <summary>Has all requests in flight together and shows each answer as it ends.</summary>
    private static async Task<int> RunManyAsync(Engine engine, Config config, bool isChat)
    {
        Stopwatch time = Stopwatch.StartNew();
        var shown = new SemaphoreSlim(1);
        Task<Answer>[] asked = Enumerable.Range(0, config.NumRequests).Select(async number =>
        {
            Answer answer = await CollectAsync(engine, config.RequestOf(number, isChat));
            await shown.WaitAsync();
            Show(answer, number, config.PromptOf(number));
            shown.Release();
            return answer;
        }).ToArray();
        Console.Write("{0} prompts are in flight together.\n\n", config.NumRequests);
        Answer[] answers = await Task.WhenAll(asked);
        long numTokens = answers.Sum(answer => answer.Result?.NumOutputTokens ?? 0);
        Console.WriteLine("{0} answers, {1} tokens in {2:F2} s: {3:F1} tokens/s together", config.NumRequests,
            numTokens, time.Elapsed.TotalSeconds, numTokens / time.Elapsed.TotalSeconds);
        return answers.Any(answer => answer.Failure != null) ? 1 : 0;
    }

    /// <summary>Takes an answer to its end, and tries again while the bounded queue is full.</summary>
    private static async Task<Answer> CollectAsync(Engine engine, Request request)
    {
        for (;;)
        {
            var answer = new Answer();
            // With C# 8: await foreach (Chunk chunk in engine.GenerateAsync(request)).
            IAsyncEnumerator<Chunk> chunks = engine.GenerateAsync(request).GetAsyncEnumerator();
            try
            {
                while (await chunks.MoveNextAsync())
                {
                    answer.Text += chunks.Current.Text;
                    answer.Result = chunks.Current.Result;
                }
            }
            catch (Exception failure)
            {
                answer.Failure = failure;
            }
            finally
            {
                await chunks.DisposeAsync();
            }
            if ((answer.Failure as InflightException)?.Status != Status.Busy)
                return answer;
            await Task.Delay(10);
        }
    }

    private static void Show(Answer answer, int number, string prompt)
    {
        Console.WriteLine("--- prompt {0}, {1} tokens in {2:F2} s: {3}", number + 1,
            answer.Result?.NumOutputTokens ?? 0, (answer.Result?.Total ?? TimeSpan.Zero).TotalSeconds, prompt);
        if (answer.Failure != null)
            Console.WriteLine("(failed: " + answer.Failure.Message + ")\n");
        else
            Console.WriteLine((answer.Text == "" ? "(no text)" : answer.Text) + "\n");
    }

    private static Config Parse(string[] arguments)
    {
        var config = new Config();
        for (int i = 0; i < arguments.Length; i++)
        {
            string option = arguments[i];
            if (!option.StartsWith("--"))
            {
                if (config.Options.Model != null)
                    throw new UsageException("a second model: " + option);
                config.Options.Model = option;
                continue;
            }
            if (++i == arguments.Length)
                throw new UsageException("a value is missing after " + option);
            Set(config, option, arguments[i]);
        }
        if (config.Options.Model == null && config.Options.Device?.StartsWith("echo") != true)
            throw new UsageException("which MODEL?");
        if (config.Prompts.Count == 0)
            throw new UsageException("nothing to ask; give --prompt or --prompts-file");
        if (config.NumRequests == 0)
            config.NumRequests = config.Prompts.Count;
        return config;
    }

    private static void Set(Config config, string option, string value)
    {
        switch (option)
        {
            case "--prompt":
                config.Prompts.Add(value);
                break;
            case "--prompts-file":
                config.Prompts.AddRange(File.ReadAllLines(value).Where(line => line != ""));
                break;
            case "--many":
                config.NumRequests = ParseCount(option, value);
                break;
            case "--max-tokens":
                config.MaxTokens = (uint)ParseCount(option, value);
                break;
            case "--temperature":
                config.Temperature = ParseTemperature(option, value);
                break;
            case "--device":
                config.Options.Device = value;
                break;
            default:
                throw new UsageException("unknown option " + option);
        }
    }

    private static int ParseCount(string option, string value)
    {
        if (!int.TryParse(value, NumberStyles.None, CultureInfo.InvariantCulture, out int count) || count < 1
            || count > 1000000)
            throw new UsageException("not a number from 1 to 1000000: " + option);
        return count;
    }

    private static float ParseTemperature(string option, string value)
    {
        if (!float.TryParse(value, NumberStyles.Float, CultureInfo.InvariantCulture, out float number)
            || !(number >= 0 && number <= 100))
            throw new UsageException("not a number from 0 to 100: " + option);
        return number;
    }
}
