using System;
using System.Collections.Generic;
using System.Diagnostics;
using System.IO;
using System.Reflection;
using System.Runtime.CompilerServices;
using System.Threading;

namespace Inflight.Tests
{
    /// <summary>Counts finalised values: what is closed or dropped is not kept.</summary>
    public static class LeakTests
    {
        private static readonly ConditionalWeakTable<object, Witness> Witnesses =
            new ConditionalWeakTable<object, Witness>();

        private static int numFinalised;

        /// <summary>Is finalised when what it is attached to is gone.</summary>
        private sealed class Witness
        {
            ~Witness()
            {
                Interlocked.Increment(ref numFinalised);
            }
        }

        private static void Watch(object value) => Witnesses.Add(value, new Witness());

        public static void DisposedEnginesAndTheirRequestsAreCollected() => Check(20 * 11, () =>
        {
            for (int i = 0; i < 20; i++)
            {
                using (Engine engine = Open.Echo())
                {
                    Watch(engine);
                    var request = new Request { Prompt = Prompt.Text(Open.Repeat("x", 200)) };
                    for (int j = 0; j < 10; j++)
                    {
                        Generation generation = engine.Start(request);
                        Watch(generation);
                        if (j % 2 == 0)
                            generation.Dispose();
                    }
                }
            }
        });

        public static void AnEngineThatIsDroppedIsClosed()
        {
            int before = NumThreads();
            Check(20, () =>
            {
                for (int i = 0; i < 20; i++)
                {
                    Engine engine = Open.Echo();
                    Watch(engine);
                    Answer.Of(engine, new Request { Prompt = Prompt.Text("x") });
                }
            }, NumKept);
            // Each has four of its own or more, and the one that took its events.
            Expect.Soon("the engines' threads have ended", () => NumThreads() <= before + 8 * NumKept);
        }

        public static void AnEngineInUseIsKept()
        {
            string text = "";
            foreach (Chunk chunk in Dropped())
            {
                GC.Collect();
                text += chunk.Text;
            }
            Expect.Equal(50, text.Length);
        }

        [MethodImpl(MethodImplOptions.NoInlining)]
        private static IEnumerable<Chunk> Dropped() =>
            Open.Echo("echo:1000").Generate(new Request { Prompt = Prompt.Text(Open.Repeat("x", 50)) });

        public static void AnEngineThatIsNeverClosedLetsTheProcessEnd()
        {
            string program = typeof(Program).GetTypeInfo().Assembly.Location;
            // The one that runs this test: mono, or dotnet.
            using (Process self = Process.GetCurrentProcess())
            using (Process process = Process.Start(self.MainModule.FileName, "\"" + program + "\" " + Program.Forget))
            {
                bool hasEnded = process.WaitForExit(20000);
                if (!hasEnded)
                    process.Kill();
                Expect.That(hasEnded && process.ExitCode == 0, "it ends");
            }
        }

        /// <summary>Mono looks at stacks word by word: what an old word seems to name is kept. Engines come out of
        /// calls whose frames leave such words in threads that live on.</summary>
        private const int NumKept = 5;

        /// <summary>All but <c>numKept</c> of what <c>use</c> has watched is finalised.</summary>
        private static void Check(int count, Action use, int numKept = 0)
        {
            GC.Collect();
            GC.WaitForPendingFinalizers();
            int before = numFinalised;
            // On a thread that ends, so that no forgotten value on the stack keeps anything.
            var thread = new Thread(() => use());
            thread.Start();
            thread.Join();
            Expect.Soon(count + " values are finalised", () =>
            {
                GC.Collect();
                GC.WaitForPendingFinalizers();
                int finalised = numFinalised - before;
                return finalised >= count - numKept && finalised <= count;
            });
        }

        private static int NumThreads() => Directory.GetDirectories("/proc/self/task").Length;
    }
}
