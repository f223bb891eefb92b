using System;
using System.Collections.Generic;
using System.Runtime.ExceptionServices;
using System.Runtime.InteropServices;
using System.Threading;

namespace Inflight
{
    /// <summary>How far loading has come.</summary>
    public struct LoadingProgress
    {
        internal LoadingProgress(ulong bytesDone, ulong bytesTotal)
        {
            BytesDone = bytesDone;
            BytesTotal = bytesTotal;
        }

        /// <summary>Bytes of weights in place.</summary>
        public ulong BytesDone { get; }

        /// <summary>Bytes of weights in all.</summary>
        public ulong BytesTotal { get; }
    }

    /// <summary>What the library calls back to while it loads, on the thread that is in ifl_engine_create. The library
    /// knows it by a number, and calls a static method, for the sake of runtimes that compile ahead of time.</summary>
    internal sealed class Loading : IDisposable
    {
        [UnmanagedFunctionPointer(CallingConvention.Cdecl)]
        private delegate int ProgressCallback(IntPtr id, ulong bytesDone, ulong bytesTotal);

        // Never collected: the library has the address.
        private static readonly ProgressCallback Callback = OnProgress;
        private static readonly IntPtr CallbackAddress = Marshal.GetFunctionPointerForDelegate(Callback);
        private static readonly Dictionary<long, Loading> Active = new Dictionary<long, Loading>();
        private static long lastId;

        private readonly long id;
        private readonly IProgress<LoadingProgress> progress;
        private readonly CancellationToken token;
        private ExceptionDispatchInfo failure;

        public Loading(IProgress<LoadingProgress> progress, CancellationToken token)
        {
            this.progress = progress;
            this.token = token;
            lock (Active)
            {
                id = ++lastId;
                Active.Add(id, this);
            }
        }

        /// <summary>Makes the library call back where somebody listens.</summary>
        public void Fill(ref ifl_engine_options to)
        {
            if (progress == null && !token.CanBeCanceled)
                return;
            to.progress = CallbackAddress;
            to.progress_user_data = new IntPtr(id);
        }

        /// <summary>Whether the host has ended the loading that gave this status.</summary>
        public bool IsEnded(int status) =>
            failure != null || (status == (int)Status.Aborted && token.IsCancellationRequested);

        /// <summary>Throws why the host has ended the loading.</summary>
        public void Throw()
        {
            failure?.Throw();
            token.ThrowIfCancellationRequested();
        }

        public void Dispose()
        {
            lock (Active)
                Active.Remove(id);
        }

        /// <summary>Gives 0 to go on. No exception may leave it, since it would unwind the library.</summary>
        [MonoPInvokeCallback(typeof(ProgressCallback))]
        private static int OnProgress(IntPtr id, ulong bytesDone, ulong bytesTotal)
        {
            Loading loading;
            lock (Active)
            {
                if (!Active.TryGetValue(id.ToInt64(), out loading))
                    return 1;
            }
            try
            {
                if (loading.failure == null && !loading.token.IsCancellationRequested)
                    loading.progress?.Report(new LoadingProgress(bytesDone, bytesTotal));
            }
            catch (Exception thrown)
            {
                loading.failure = ExceptionDispatchInfo.Capture(thrown);
            }
            return loading.failure != null || loading.token.IsCancellationRequested ? 1 : 0;
        }

        /// <summary>Tells Unity's IL2CPP, which looks for it by its name, that native code calls a method.</summary>
        [AttributeUsage(AttributeTargets.Method)]
        private sealed class MonoPInvokeCallbackAttribute : Attribute
        {
            public MonoPInvokeCallbackAttribute(Type type)
            {
                Type = type;
            }

            public Type Type { get; }
        }
    }
}
