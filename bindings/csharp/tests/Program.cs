using System;
using System.Collections.Generic;
using System.Diagnostics;
using System.Linq;
using System.Reflection;
using System.Threading;
using System.Threading.Tasks;

namespace Inflight.Tests
{
    /// <summary>Runs every public static method of the classes named ...Tests, and ends with a line "N passed, N
    /// failed". A method that takes longer than its share has failed.</summary>
    public static class Program
    {
        private static readonly TimeSpan Limit = TimeSpan.FromSeconds(90);

        /// <summary>The argument that opens an engine and leaves it open; see LeakTests.</summary>
        public const string Forget = "--forget";

        /// <summary>What a C program says about the header; see LayoutTests.</summary>
        public static string FactsFile { get; private set; }

        public static int Main(string[] arguments)
        {
            if (arguments.SequenceEqual(new[] { Forget }))
            {
                Engine forgotten = Open.Echo();
                return forgotten.GetDevice() == "echo" ? 0 : 1;
            }
            if (arguments.Length != 1)
            {
                Console.Error.WriteLine("usage: Inflight.Tests FACTS_ABOUT_THE_HEADER");
                return 2;
            }
            FactsFile = arguments[0];
            int numPassed = 0, numFailed = 0;
            foreach (MethodInfo test in Tests())
            {
                string name = test.DeclaringType.Name + "." + test.Name;
                Exception failure = Run(test);
                Console.WriteLine((failure == null ? "ok      " : "FAILED  ") + name);
                if (failure == null)
                    numPassed++;
                else
                    numFailed++;
                if (failure != null)
                    Console.WriteLine(failure);
            }
            Console.WriteLine(numPassed + " passed, " + numFailed + " failed");
            return numFailed == 0 && numPassed > 0 ? 0 : 1;
        }

        private static IEnumerable<MethodInfo> Tests() =>
            from type in typeof(Program).GetTypeInfo().Assembly.GetTypes()
            where type.Name.EndsWith("Tests")
            orderby type.Name
            from method in type.GetMethods(BindingFlags.Public | BindingFlags.Static | BindingFlags.DeclaredOnly)
            select method;

        private static Exception Run(MethodInfo test)
        {
            Exception failure = null;
            var thread = new Thread(() =>
            {
                try
                {
                    (test.Invoke(null, null) as Task)?.GetAwaiter().GetResult();
                }
                catch (TargetInvocationException thrown)
                {
                    failure = thrown.InnerException;
                }
                catch (Exception thrown)
                {
                    failure = thrown;
                }
            }) { IsBackground = true };
            thread.Start();
            return thread.Join(Limit) ? failure : new TimeoutException("it takes longer than " + Limit);
        }
    }

    /// <summary>What is expected.</summary>
    internal static class Expect
    {
        public static void That(bool condition, object shown = null)
        {
            if (!condition)
                throw new Exception("not as expected: " + shown);
        }

        public static void Equal<T>(T wanted, T got)
        {
            if (!EqualityComparer<T>.Default.Equals(wanted, got))
                throw new Exception("wanted <" + wanted + ">, got <" + got + ">");
        }

        /// <summary>The exception of this kind that the action throws, with these words in its message.</summary>
        public static T Throws<T>(Action action, params string[] words) where T : Exception
        {
            try
            {
                action();
            }
            catch (T thrown)
            {
                foreach (string word in words)
                    That(thrown.Message.Contains(word), "no \"" + word + "\" in: " + thrown.Message);
                return thrown;
            }
            throw new Exception("no " + typeof(T).Name);
        }

        public static void Status(Status wanted, Action action, params string[] words) =>
            Equal(wanted, Throws<InflightException>(action, words).Status);

        public static void Soon(string what, Func<bool> condition)
        {
            for (Stopwatch time = Stopwatch.StartNew(); !condition(); Thread.Sleep(1))
                That(time.Elapsed < TimeSpan.FromSeconds(30), "waited too long until " + what);
        }
    }
}
