using System;
using System.Collections.Generic;
using System.IO;
using System.Reflection;
using System.Runtime.InteropServices;

namespace Inflight
{
    /// <summary>Finds the native library: where the variable INFLIGHT_LIBRARY says, beside the program or this
    /// assembly, there in runtimes/linux-x64/native, and then where the system looks.</summary>
    internal static class Library
    {
        /// <summary>The library's soname, by which the system knows it wherever it was loaded from.</summary>
        public const string Name = "libinflight.so.0";

        private const string FileName = "libinflight.so";
        private const string PathVariable = "INFLIGHT_LIBRARY";

        private static readonly object Gate = new object();
        private static bool isLoaded;

        /// <summary>Loads the library, or says where it was looked for. Comes before any other use.</summary>
        public static void Load()
        {
            lock (Gate)
            {
                if (isLoaded)
                    return;
                List<string> places = Places();
                IntPtr library = IntPtr.Zero;
                foreach (string place in places)
                {
                    library = Open(place);
                    if (library != IntPtr.Zero)
                        break;
                }
                if (library == IntPtr.Zero)
                    throw new DllNotFoundException(
                        "The native library of Inflight was not found. Put " + FileName + " into one of these " +
                        "places, or its path into the variable " + PathVariable + ": " + string.Join(", ", places) +
                        " (the last is where the system looks: LD_LIBRARY_PATH and the system's folders)");
                UseFor(library);
                isLoaded = true;
            }
        }

        /// <summary>Paths of files, in order, and last the name that the system is asked for.</summary>
        private static List<string> Places()
        {
            string named = Environment.GetEnvironmentVariable(PathVariable);
            if (!string.IsNullOrEmpty(named))
                return new List<string> { Path.GetFullPath(named), Name };
            var places = new List<string>();
            foreach (string folder in new[] { AppContext.BaseDirectory, AssemblyFolder() })
            {
                if (string.IsNullOrEmpty(folder))
                    continue;
                foreach (string path in new[]
                {
                    Path.Combine(folder, FileName),
                    Path.Combine(folder, "runtimes", "linux-x64", "native", FileName)
                })
                {
                    if (!places.Contains(path))
                        places.Add(path);
                }
            }
            places.Add(Name);
            return places;
        }

#if NET8_0_OR_GREATER
        // An assembly inside a single file has no folder of its own.
        private static string AssemblyFolder() => null;

        private static IntPtr Open(string place) =>
            NativeLibrary.TryLoad(place, out IntPtr library) ? library : IntPtr.Zero;

        private static void UseFor(IntPtr library) => NativeLibrary.SetDllImportResolver(
            typeof(Library).Assembly, (name, _, _) => name == Name ? library : IntPtr.Zero);
#else
        private const int Now = 2;

        private static string AssemblyFolder() =>
            Path.GetDirectoryName(typeof(Library).GetTypeInfo().Assembly.Location);

        [DllImport("libdl.so.2")]
        private static extern IntPtr dlopen([MarshalAs(UnmanagedType.LPArray)] byte[] path, int flags);

        private static IntPtr Open(string place) => dlopen(Utf8.Encode(place + "\0"), Now);

        // A library that is loaded is found by its soname.
        private static void UseFor(IntPtr library)
        {
        }
#endif
    }
}
