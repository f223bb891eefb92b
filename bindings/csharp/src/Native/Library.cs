using System;
using System.Collections.Generic;
using System.IO;
using System.Reflection;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace Inflight
{
    /// <summary>Finds the native library: the file that the variable INFLIGHT_LIBRARY names and no other, or without it
    /// beside the program or this assembly, there in runtimes/linux-x64/native, and then where the system
    /// looks.</summary>
    internal static class Library
    {
        /// <summary>The library's soname, by which the system knows it wherever it was loaded from.</summary>
        public const string Name = "libinflight.so.0";

        /// <summary>IFL_VERSION of the header that this package is written for.</summary>
        public const uint HeaderVersion = 100;

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
                string named = Environment.GetEnvironmentVariable(PathVariable);
                List<string> places =
                    string.IsNullOrEmpty(named) ? Places() : new List<string> { FileOrName(named) };
                IntPtr library = IntPtr.Zero;
                foreach (string place in places)
                {
                    library = Open(place);
                    if (library != IntPtr.Zero)
                        break;
                }
                if (library == IntPtr.Zero && !string.IsNullOrEmpty(named))
                    throw new DllNotFoundException(
                        "The native library of Inflight cannot be loaded from " + places[0] + ", which the " +
                        "variable " + PathVariable + " names. Correct it, or unset it to have other places looked at");
                if (library == IntPtr.Zero)
                    throw new DllNotFoundException(
                        "The native library of Inflight was not found. Put " + FileName + " into one of these " +
                        "places, or its path into the variable " + PathVariable + ": " + string.Join(", ", places) +
                        " (the last is where the system looks: LD_LIBRARY_PATH and the system's folders)");
                UseFor(library);
                isLoaded = true;
            }
        }

        /// <summary>Load that refuses a library without what this package was written for.</summary>
        public static void LoadCompatible()
        {
            Load();
            CheckVersion();
        }

        // Mono looks for the library when it compiles this, which is to be when it is loaded.
        [MethodImpl(MethodImplOptions.NoInlining)]
        private static void CheckVersion()
        {
            uint version = Native.ifl_version();
            if (!IsCompatible(version, HeaderVersion))
                throw new InflightException(Status.Unsupported,
                    "the native library is of version " + ToVersion(version) + " and this package needs " +
                    ToVersion(HeaderVersion) + "; install that one");
        }

        /// <summary>Whether what was written for a header runs with a library. Before 1.0 a minor version may change
        /// what the one before had.</summary>
        internal static bool IsCompatible(uint library, uint header)
        {
            if (library / 10000 == 0 && library / 100 != header / 100)
                return false;
            return library >= header && library / 10000 == header / 10000;
        }

        internal static Version ToVersion(uint number) =>
            new Version((int)(number / 10000), (int)(number / 100 % 100), (int)(number % 100));

        /// <summary>The path of a file, or a name alone, which the system is asked for.</summary>
        private static string FileOrName(string named) =>
            named.IndexOf('/') < 0 ? named : Path.GetFullPath(named);

        /// <summary>Paths of files, in order, and last the name that the system is asked for.</summary>
        private static List<string> Places()
        {
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
