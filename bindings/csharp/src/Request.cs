using System;
using System.Collections.Generic;
using System.Linq;

namespace Inflight
{
    /// <summary>What to generate. Only Prompt is required; null stands for what the model's files recommend, or for
    /// none.</summary>
    public sealed class Request
    {
        /// <summary>What to start from.</summary>
        public Prompt Prompt { get; set; }

        /// <summary>Adds what the model expects around a Prompt.Text, such as a first token.</summary>
        public bool AddSpecialTokens { get; set; } = true;

        /// <summary>Lets a Prompt.Text spell special tokens. Not for untrusted text.</summary>
        public bool ParseSpecialTokens { get; set; }

        /// <summary>Most tokens to produce; 0: until the context is full.</summary>
        public uint MaxTokens { get; set; }

        /// <summary>Tokens before which only MaxTokens, cancellation and errors end the output.</summary>
        public uint MinTokens { get; set; }

        /// <summary>Goes on after the model's end-of-sequence tokens.</summary>
        public bool IgnoreEos { get; set; }

        /// <summary>Higher runs first; equal ones run in order of arrival.</summary>
        public int Priority { get; set; }

        /// <summary>Time after which the request ends with a TimeoutException; zero, or
        /// System.Threading.Timeout.InfiniteTimeSpan: never.</summary>
        public TimeSpan Timeout { get; set; }

        /// <summary>Tokens that end the output, besides the model's own. They give no text.</summary>
        public IReadOnlyCollection<uint> StopTokens { get; set; }

        /// <summary>Strings that end the output. The text ends before the match.</summary>
        public IReadOnlyCollection<string> Stop { get; set; }

        /// <summary>In [0, 100]; 0 always takes the likeliest token. Null: what generation_config.json recommends where
        /// it says do_sample, else 0; 0 for every GGUF file.</summary>
        public float? Temperature { get; set; }

        /// <summary>Samples among so many likeliest tokens only; 0: off.</summary>
        public uint? TopK { get; set; }

        /// <summary>Samples among the likeliest tokens that together reach this probability; 1: off.</summary>
        public float? TopP { get; set; }

        /// <summary>Drops tokens less likely than this times the likeliest, in [0, 1]; 0: off.</summary>
        public float MinP { get; set; }

        /// <summary>Divides positive and multiplies negative logits of tokens that have occurred, in (0, 100]; 1:
        /// off.</summary>
        public float? RepetitionPenalty { get; set; }

        /// <summary>Subtracted from the logits of tokens in the output so far, in [-100, 100].</summary>
        public float PresencePenalty { get; set; }

        /// <summary>The same, once for each time that a token is in the output.</summary>
        public float FrequencyPenalty { get; set; }

        /// <summary>Alternatives, 0 to 20, to report with the log-probability of each token.</summary>
        public uint? Logprobs { get; set; }

        /// <summary>The same seed, model and device give the same tokens, on a CUDA device where the same requests run
        /// beside it; null: a fresh one.</summary>
        public ulong? Seed { get; set; }

        /// <summary>Added to the logits of these tokens.</summary>
        public IReadOnlyDictionary<uint, float> LogitBias { get; set; }

        /// <summary>Fills the library's request; what it points to lives as long as memory.</summary>
        internal unsafe void Fill(ifl_request* to, Arena memory)
        {
            InflightException.ThrowIf(
                Native.ifl_request_init(to, (uint)sizeof(ifl_request), IntPtr.Zero), IntPtr.Zero);
            if (Prompt == null)
                throw new ArgumentException("Prompt is null; set it to a Prompt.User, Text, Chat or Tokens");
            bool isEndless = Timeout == System.Threading.Timeout.InfiniteTimeSpan;
            if (Timeout < TimeSpan.Zero && !isEndless)
                throw new ArgumentOutOfRangeException(nameof(Timeout), Timeout, "it must not be below zero");
            Prompt.Fill(to, memory);
            to->add_special_tokens = AddSpecialTokens ? 1u : 0;
            to->parse_special_tokens = ParseSpecialTokens ? 1u : 0;
            to->max_tokens = MaxTokens;
            to->min_tokens = MinTokens;
            to->ignore_eos = IgnoreEos ? 1u : 0;
            to->priority = Priority;
            // Rounded up: 0 would be no deadline at all.
            to->timeout_ms = isEndless ? 0 : (ulong)Math.Ceiling(Timeout.TotalMilliseconds);
            to->min_p = MinP;
            to->presence_penalty = PresencePenalty;
            to->frequency_penalty = FrequencyPenalty;
            to->temperature = Explicit(nameof(Temperature), Temperature, to->temperature);
            to->top_p = Explicit(nameof(TopP), TopP, to->top_p);
            to->repetition_penalty = Explicit(nameof(RepetitionPenalty), RepetitionPenalty, to->repetition_penalty);
            to->top_k = ToInt32(nameof(TopK), TopK, to->top_k);
            to->num_logprobs = ToInt32(nameof(Logprobs), Logprobs, to->num_logprobs);
            to->seed = Seed ?? to->seed;
            FillLists(to, memory);
        }

        private unsafe void FillLists(ifl_request* to, Arena memory)
        {
            if (StopTokens != null)
                to->stop_tokens = memory.Add(StopTokens.ToArray(), out to->num_stop_tokens);
            if (Stop != null)
            {
                to->stop_strings = memory.Add(Stop.ToArray(), out to->stop_string_lens);
                to->num_stop_strings = (ulong)Stop.Count;
            }
            if (LogitBias != null)
            {
                // Both in the same order.
                KeyValuePair<uint, float>[] biases = LogitBias.ToArray();
                to->logit_bias_tokens = memory.Add(biases.Select(b => b.Key).ToArray(), out to->num_logit_biases);
                to->logit_bias_values = memory.Add(biases.Select(b => b.Value).ToArray());
            }
        }

        /// <summary>Refuses the number that stands for the model's own recommendation, which is null here.</summary>
        private static float Explicit(string field, float? value, float otherwise)
        {
            if (value == -1)
                throw new ArgumentOutOfRangeException(field, value, "leave it null for the model's own");
            return value ?? otherwise;
        }

        private static int ToInt32(string field, uint? value, int otherwise)
        {
            if (value > int.MaxValue)
                throw new ArgumentOutOfRangeException(field, value, "it is too large");
            return (int?)value ?? otherwise;
        }
    }
}
