using System;
using System.Collections.Generic;
using System.Runtime.InteropServices;
using System.Text;

namespace Inflight
{
    /// <summary>Ends an engine when nobody holds it any more.</summary>
    internal sealed class EngineHandle : SafeHandle
    {
        public EngineHandle(IntPtr engine) : base(IntPtr.Zero, true)
        {
            SetHandle(engine);
        }

        public override bool IsInvalid => handle == IntPtr.Zero;

        /// <summary>The engine's key, for calls that must not keep the engine alive. The library never uses a key
        /// again, so that a stale one is harmless.</summary>
        public IntPtr Key => handle;

        protected override bool ReleaseHandle()
        {
            Native.ifl_engine_destroy(handle);
            return true;
        }
    }

    internal static unsafe class Utf8
    {
        private static readonly UTF8Encoding Encoding = new UTF8Encoding(false);

        public static byte[] Encode(string text) => Encoding.GetBytes(text);

        public static string Decode(byte* text, ulong length) =>
            length == 0 ? "" : Encoding.GetString(text, checked((int)length));

        public static string Decode(byte* text)
        {
            ulong length = 0;
            while (text[length] != 0)
                length++;
            return Decode(text, length);
        }
    }

    /// <summary>Memory for the library to read during one call.</summary>
    internal sealed unsafe class Arena : IDisposable
    {
        private readonly List<IntPtr> blocks = new List<IntPtr>();

        public byte* Add(string text, out ulong length)
        {
            byte[] bytes = Utf8.Encode(text);
            length = (ulong)bytes.Length;
            // Not null, which would be no text at all.
            byte* start = (byte*)Allocate(Math.Max(1, bytes.Length));
            Marshal.Copy(bytes, 0, (IntPtr)start, bytes.Length);
            return start;
        }

        public byte** Add(string[] texts, out ulong* lengths)
        {
            byte** starts = (byte**)Allocate(texts.Length * sizeof(byte*));
            lengths = (ulong*)Allocate(texts.Length * sizeof(ulong));
            for (int i = 0; i < texts.Length; i++)
                starts[i] = Add(texts[i], out lengths[i]);
            return starts;
        }

        public uint* Add(uint[] tokens, out ulong length)
        {
            length = (ulong)tokens.Length;
            uint* start = (uint*)Allocate(tokens.Length * sizeof(uint));
            for (int i = 0; i < tokens.Length; i++)
                start[i] = tokens[i];
            return start;
        }

        public float* Add(float[] values)
        {
            float* start = (float*)Allocate(values.Length * sizeof(float));
            Marshal.Copy(values, 0, (IntPtr)start, values.Length);
            return start;
        }

        public void Dispose()
        {
            foreach (IntPtr block in blocks)
                Marshal.FreeHGlobal(block);
            blocks.Clear();
        }

        private IntPtr Allocate(int size)
        {
            if (size == 0)
                return IntPtr.Zero;
            IntPtr block = Marshal.AllocHGlobal(size);
            blocks.Add(block);
            return block;
        }
    }
}
