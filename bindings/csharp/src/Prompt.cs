using System;
using System.Collections.Generic;
using System.Text;

namespace Inflight
{
    /// <summary>What a request starts from.</summary>
    public sealed class Prompt
    {
        private readonly PromptKind kind;
        private readonly string text;
        private readonly uint[] tokens;

        private Prompt(PromptKind kind, string text, uint[] tokens)
        {
            this.kind = kind;
            this.text = text;
            this.tokens = tokens;
        }

        /// <summary>Text to continue as it stands.</summary>
        public static Prompt Text(string text) => OfText(PromptKind.Text, text, nameof(text));

        /// <summary>What a user says to a chat model; the model's chat template is put around it.</summary>
        public static Prompt User(string text) => OfText(PromptKind.User, text, nameof(text));

        /// <summary>A conversation, which the model's chat template renders. Content cannot spell special
        /// tokens.</summary>
        public static Prompt Chat(params ChatMessage[] messages) => ChatJson(ToJson(messages));

        /// <summary>A conversation as a JSON array, for messages with more than role and content.</summary>
        public static Prompt ChatJson(string json) => OfText(PromptKind.Chat, json, nameof(json));

        /// <summary>Token ids.</summary>
        public static Prompt Tokens(params uint[] tokens)
        {
            if (tokens == null)
                throw new ArgumentNullException(nameof(tokens));
            return new Prompt(PromptKind.Tokens, null, (uint[])tokens.Clone());
        }

        /// <summary>A text is what a user says.</summary>
        public static implicit operator Prompt(string text) => User(text);

        internal unsafe void Fill(ifl_request* to, Arena memory)
        {
            to->prompt_kind = (int)kind;
            if (tokens == null)
                to->prompt = memory.Add(text, out to->prompt_len);
            else
                to->prompt_tokens = memory.Add(tokens, out to->num_prompt_tokens);
        }

        internal static string ToJson(IReadOnlyList<ChatMessage> messages)
        {
            if (messages == null)
                throw new ArgumentNullException(nameof(messages));
            var json = new StringBuilder("[");
            foreach (ChatMessage message in messages)
            {
                json.Append(json.Length > 1 ? ",{\"role\":" : "{\"role\":");
                AppendString(json, message.Role);
                json.Append(",\"content\":");
                AppendString(json, message.Content);
                json.Append('}');
            }
            return json.Append(']').ToString();
        }

        private static Prompt OfText(PromptKind kind, string text, string name)
        {
            if (text == null)
                throw new ArgumentNullException(name);
            return new Prompt(kind, text, null);
        }

        private static void AppendString(StringBuilder json, string text)
        {
            json.Append('"');
            foreach (char c in text)
            {
                if (c == '"' || c == '\\')
                    json.Append('\\').Append(c);
                else if (c < ' ')
                    json.Append("\\u").Append(((int)c).ToString("x4"));
                else
                    json.Append(c);
            }
            json.Append('"');
        }
    }

    /// <summary>One message of a conversation.</summary>
    public struct ChatMessage
    {
        /// <summary>A message; neither part may be null.</summary>
        public ChatMessage(string role, string content)
        {
            Role = role ?? throw new ArgumentNullException(nameof(role));
            Content = content ?? throw new ArgumentNullException(nameof(content));
        }

        /// <summary>"system", "user", "assistant", or another that the model's template knows.</summary>
        public string Role { get; }

        /// <summary>The text.</summary>
        public string Content { get; }
    }
}
