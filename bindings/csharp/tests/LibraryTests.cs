using System;
using System.Diagnostics;
using System.IO;
using System.Reflection;

namespace Inflight.Tests
{
    /// <summary>Finding the native library, which happens once in a process: so in others.</summary>
    public static class LibraryTests
    {
        public static void TheErrorSaysWhereTheLibraryWasLookedFor()
        {
            string nowhere = Path.Combine(Path.GetTempPath(), "no-such-folder", "libinflight.so");
            string said = RunElsewhere(nowhere, "libinflight.so", 1);
            foreach (string word in new[] { "DllNotFoundException", nowhere, "INFLIGHT_LIBRARY" })
                Expect.That(said.Contains(word), said);
            said = RunElsewhere(null, null, 1);
            foreach (string word in new[] { "DllNotFoundException", "libinflight.so.0", "INFLIGHT_LIBRARY" })
                Expect.That(said.Contains(word), said);
            Expect.That(said.Contains(Path.Combine("runtimes", "linux-x64", "native", "libinflight.so")), said);
        }

        public static void AVariableThatNamesNothingIsNotPassedOver()
        {
            string folder = Path.GetDirectoryName(Environment.GetEnvironmentVariable("INFLIGHT_LIBRARY"));
            Expect.That(RunElsewhere(null, null, 0, folder).Contains("hello"), "the system finds it");
            string said = RunElsewhere("/no-such-folder/libinflight.so", null, 1, folder);
            Expect.That(said.Contains("/no-such-folder/libinflight.so"), said);
        }

        public static void ALibraryOfAnotherSeriesIsRefused()
        {
            string said = RunElsewhere(Environment.GetEnvironmentVariable("INFLIGHT_OTHER_LIBRARY"), null, 1);
            Expect.That(said.Contains("0.2.0") && said.Contains("needs 0.1.0"), said);
        }

        public static void TheLibraryIsFoundInItsFolder()
        {
            string library = Environment.GetEnvironmentVariable("INFLIGHT_LIBRARY");
            Expect.That(File.Exists(library), "INFLIGHT_LIBRARY names the library to test");
            Expect.That(RunElsewhere(library, null, 0).Contains("hello"));
            Expect.That(RunElsewhere(null, "libinflight.so", 0).Contains("hello"));
            string folder = Path.Combine("runtimes", "linux-x64", "native");
            Expect.That(RunElsewhere(null, Path.Combine(folder, "libinflight.so"), 0).Contains("hello"));
        }

        /// <summary>Runs the example in a folder of its own, with the library put at this place in it.</summary>
        private static string RunElsewhere(string named, string placed, int code, string systemFolder = null)
        {
            string folder = Path.Combine(Path.GetTempPath(), "inflight-" + Guid.NewGuid().ToString("N"));
            string here = Path.GetDirectoryName(typeof(Engine).GetTypeInfo().Assembly.Location);
            Directory.CreateDirectory(folder);
            try
            {
                foreach (string file in new[] { "Inflight.dll", "Generate.exe" })
                    File.Copy(Path.Combine(here, file), Path.Combine(folder, file));
                if (placed != null)
                {
                    Directory.CreateDirectory(Path.GetDirectoryName(Path.Combine(folder, placed)));
                    File.Copy(Environment.GetEnvironmentVariable("INFLIGHT_LIBRARY"), Path.Combine(folder, placed));
                }
                return RunExample(folder, named, code, systemFolder);
            }
            finally
            {
                Directory.Delete(folder, true);
            }
        }

        private static string RunExample(string folder, string named, int code, string systemFolder)
        {
            string program = Path.Combine(folder, "Generate.exe");
            var start = new ProcessStartInfo("mono", program + " --device echo --prompt hello")
            {
                UseShellExecute = false, RedirectStandardOutput = true, RedirectStandardError = true
            };
            start.EnvironmentVariables["LD_LIBRARY_PATH"] = systemFolder ?? "";
            start.EnvironmentVariables["INFLIGHT_LIBRARY"] = named ?? "";
            using (Process process = Process.Start(start))
            {
                string said = process.StandardOutput.ReadToEnd() + process.StandardError.ReadToEnd();
                process.WaitForExit();
                Expect.That(process.ExitCode == code, said);
                return said;
            }
        }
    }
}
