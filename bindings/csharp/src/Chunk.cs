using System;
using System.Collections.Generic;

namespace Inflight
{
    /// <summary>A piece of a request's output.</summary>
    public sealed class Chunk
    {
        internal Chunk(string text, uint[] tokens, TokenLogprob[][] logprobs, GenerationResult result)
        {
            Text = text;
            Tokens = tokens;
            Logprobs = logprobs;
            Result = result;
        }

        /// <summary>What these tokens and earlier ones complete, always whole code points. The texts of a request in
        /// a row are its whole text.</summary>
        public string Text { get; }

        /// <summary>Ids of this piece of output; there may be none where text was held back and comes now.</summary>
        public IReadOnlyList<uint> Tokens { get; }

        /// <summary>Where they were asked for, one row for each of Tokens: first the token itself, then the likeliest
        /// tokens in falling order. Otherwise empty.</summary>
        public IReadOnlyList<IReadOnlyList<TokenLogprob>> Logprobs { get; }

        /// <summary>How the request has ended, in its last chunk; null in all others.</summary>
        public GenerationResult Result { get; }
    }

    /// <summary>The natural logarithm of a token's probability under the model, before penalties, bias and
    /// temperature.</summary>
    public struct TokenLogprob
    {
        internal TokenLogprob(uint token, float logprob)
        {
            Token = token;
            Logprob = logprob;
        }

        /// <summary>The token's id.</summary>
        public uint Token { get; }

        /// <summary>The logarithm; at most 0.</summary>
        public float Logprob { get; }
    }

    /// <summary>Why a request has ended.</summary>
    public enum FinishReason
    {
        /// <summary>It has not ended.</summary>
        None = 0,
        /// <summary>An end-of-sequence token, a stop token or a stop string.</summary>
        Stop = 1,
        /// <summary>MaxTokens or the context is used up.</summary>
        Length = 2,
        /// <summary>The host cancelled it.</summary>
        Cancelled = 3,
        /// <summary>Its Timeout passed.</summary>
        Deadline = 4,
        /// <summary>It failed.</summary>
        Error = 5
    }

    /// <summary>How a request has ended.</summary>
    public sealed class GenerationResult
    {
        internal unsafe GenerationResult(ifl_event* from)
        {
            Reason = (FinishReason)from->finish_reason;
            NumPromptTokens = from->num_prompt_tokens;
            NumOutputTokens = from->num_output_tokens;
            Queued = FromMicroseconds(from->queued_us);
            FirstToken = FromMicroseconds(from->first_token_us);
            Total = FromMicroseconds(from->total_us);
        }

        /// <summary>Why.</summary>
        public FinishReason Reason { get; }

        /// <summary>Tokens of the prompt.</summary>
        public uint NumPromptTokens { get; }

        /// <summary>Tokens of the whole output.</summary>
        public uint NumOutputTokens { get; }

        /// <summary>Time to the first step that ran the request; zero where none did.</summary>
        public TimeSpan Queued { get; }

        /// <summary>Time to the first token; zero where there was none.</summary>
        public TimeSpan FirstToken { get; }

        /// <summary>Time to the end.</summary>
        public TimeSpan Total { get; }

        private static TimeSpan FromMicroseconds(ulong microseconds) =>
            TimeSpan.FromTicks((long)microseconds * (TimeSpan.TicksPerMillisecond / 1000));
    }
}
