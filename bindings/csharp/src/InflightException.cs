using System;

namespace Inflight
{
    /// <summary>A failed call or request. The message says what is wrong and what to do.</summary>
    public sealed class InflightException : Exception
    {
        internal InflightException(Status status, string message) : base(message)
        {
            Status = status;
        }

        /// <summary>What kind of failure it is.</summary>
        public Status Status { get; }

        /// <summary>Who can do something about it.</summary>
        public Category Category => (Category)Native.ifl_status_category((int)Status);

        /// <summary>Whether the same call can succeed later without any change by the caller.</summary>
        public bool IsRetryable => Native.ifl_status_is_retryable((int)Status) != 0;

        /// <summary>Throws where a call of the library has failed; frees its error.</summary>
        internal static void ThrowIf(int status, IntPtr error)
        {
            if (status != 0)
                throw Take(status, error);
        }

        /// <summary>The exception for a failed call; frees its error.</summary>
        internal static unsafe InflightException Take(int status, IntPtr error)
        {
            try
            {
                ulong length = 0;
                byte* message = Native.ifl_error_message(error, ref length);
                return Make(status, Utf8.Decode(message, length));
            }
            finally
            {
                Native.ifl_error_free(error);
            }
        }

        internal static unsafe InflightException Make(int status, string message)
        {
            string name = Utf8.Decode(Native.ifl_status_name(status));
            return new InflightException((Status)status, message.Length == 0 ? name : name + ": " + message);
        }
    }
}
