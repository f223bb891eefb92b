using System;
using System.Collections.Generic;

namespace Inflight
{
    /// <summary>The requests of an engine that somebody still reads, by number: the user_data of their
    /// events.</summary>
    internal sealed unsafe class Streams
    {
        private const uint NoToken = uint.MaxValue;

        /// <summary>Mono cannot end a process while a thread is in native code, so none stays there.</summary>
        private const int PollMilliseconds = 200;

        private readonly Dictionary<ulong, Generation> active = new Dictionary<ulong, Generation>();
        private ulong last;
        private Exception ended; // Why no events come any more.

        public ulong Add(Generation generation)
        {
            lock (active)
            {
                if (ended != null)
                    throw ended;
                active.Add(++last, generation);
                return last;
            }
        }

        /// <summary>Whether the request was still active.</summary>
        public bool Remove(ulong number)
        {
            lock (active)
                return active.Remove(number);
        }

        /// <summary>Hands out events until the engine has ended and no event is left. Runs on a thread of its own,
        /// which must not keep the engine alive: it knows only the key.</summary>
        public void Poll(IntPtr engine)
        {
            for (;;)
            {
                IntPtr batch = IntPtr.Zero, error = IntPtr.Zero;
                int status = Native.ifl_engine_poll(engine, PollMilliseconds, ref batch, ref error);
                if (status != 0)
                {
                    EndAll(InflightException.Take(status, error));
                    return;
                }
                try
                {
                    ifl_event* next;
                    for (ulong i = 0; (next = Native.ifl_events_get(batch, i)) != null; i++)
                        Deliver(next);
                }
                finally
                {
                    Native.ifl_events_free(batch);
                }
            }
        }

        private void Deliver(ifl_event* from)
        {
            bool isLast = from->kind == (int)EventKind.Finished;
            Generation to;
            lock (active)
            {
                if (!active.TryGetValue(from->user_data, out to))
                    return;
                if (isLast)
                    active.Remove(from->user_data);
            }
            var chunk = new Chunk(Utf8.Decode(from->text, from->text_len), Tokens(from->token_ids, from->num_tokens),
                Logprobs(from), isLast ? new GenerationResult(from) : null);
            to.Put(chunk, isLast ? Failure(from) : null, isLast);
        }

        private void EndAll(Exception failure)
        {
            Generation[] left;
            lock (active)
            {
                ended = failure;
                left = new Generation[active.Count];
                active.Values.CopyTo(left, 0);
                active.Clear();
            }
            foreach (Generation generation in left)
                generation.Put(null, failure, true);
        }

        internal static uint[] Tokens(uint* from, ulong count)
        {
            var tokens = new uint[count];
            for (int i = 0; i < tokens.Length; i++)
                tokens[i] = from[i];
            return tokens;
        }

        private static TokenLogprob[][] Logprobs(ifl_event* from)
        {
            if (from->num_logprobs == 0)
                return new TokenLogprob[0][];
            var rows = new TokenLogprob[from->num_tokens][];
            for (int i = 0; i < rows.Length; i++)
            {
                var row = new List<TokenLogprob>((int)from->num_logprobs);
                for (ulong j = (ulong)i * from->num_logprobs; j < (ulong)(i + 1) * from->num_logprobs; j++)
                {
                    if (from->logprob_tokens[j] != NoToken)
                        row.Add(new TokenLogprob(from->logprob_tokens[j], from->logprobs[j]));
                }
                rows[i] = row.ToArray();
            }
            return rows;
        }

        private static Exception Failure(ifl_event* from)
        {
            switch ((FinishReason)from->finish_reason)
            {
                case FinishReason.Error:
                    return InflightException.Make(from->status, Utf8.Decode(from->message, from->message_len));
                case FinishReason.Deadline:
                    return new TimeoutException("the request's Timeout passed");
                default:
                    return null;
            }
        }
    }
}
