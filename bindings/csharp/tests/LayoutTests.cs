using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;
using System.Reflection;
using System.Runtime.InteropServices;

namespace Inflight.Tests
{
    /// <summary>Compares version, structs, enums and functions with what a C program says about the header, line by
    /// line: "version NUMBER", "struct NAME SIZE", "field STRUCT NAME OFFSET SIZE", "value ENUM NAME NUMBER",
    /// "function NAME".</summary>
    public static class LayoutTests
    {
        private static readonly Assembly Binding = typeof(Engine).GetTypeInfo().Assembly;

        /// <summary>The enum here for one of the header, and what its values' names begin with there.</summary>
        private static readonly Dictionary<string, KeyValuePair<Type, string>> Enums =
            new Dictionary<string, KeyValuePair<Type, string>>
            {
                { "ifl_status_value", Named(typeof(Status), "IFL_") },
                { "ifl_category_value", Named(typeof(Category), "IFL_CATEGORY_") },
                { "ifl_dtype_value", Named(typeof(DType), "IFL_DTYPE_") },
                { "ifl_prompt_kind_value", Named(typeof(PromptKind), "IFL_PROMPT_") },
                { "ifl_event_kind_value", Named(typeof(EventKind), "IFL_EVENT_") },
                { "ifl_finish_reason_value", Named(typeof(FinishReason), "IFL_FINISH_") },
                { "ifl_text_flags_value", Named(typeof(TextFlags), "IFL_TEXT_") }
            };

        /// <summary>What the binding has no need of: log lines would be calls from threads of the library, which it
        /// does without; the engine's own queue is enough, and batches are read to their end.</summary>
        private static readonly string[] Unbound =
        {
            "ifl_log_level_value", "ifl_queue_create", "ifl_queue_poll", "ifl_queue_fd", "ifl_queue_destroy",
            "ifl_events_count", "ifl_error_code"
        };

        private static string[][] Facts(string kind)
        {
            string[][] facts = File.ReadAllLines(Program.FactsFile).Select(line => line.Split(' '))
                .Where(words => words[0] == kind && !Unbound.Contains(words[1])).ToArray();
            Expect.That(facts.Length > 4, kind);
            return facts;
        }

        public static void TheVersionIsTheHeaders() =>
            Expect.That(File.ReadAllLines(Program.FactsFile).Contains("version " + Library.HeaderVersion));

        public static void StructsAreTheHeaders()
        {
            foreach (string[] fact in Facts("struct"))
                Expect.Equal(fact[1] + " " + fact[2], fact[1] + " " + Marshal.SizeOf(StructOf(fact[1])));
            foreach (string[] fact in Facts("field"))
            {
                Type type = StructOf(fact[1]);
                FieldInfo field = type.GetField(fact[2]);
                Expect.That(field != null, fact[1] + " has no " + fact[2]);
                int size = field.FieldType.IsPointer ? IntPtr.Size : Marshal.SizeOf(field.FieldType);
                string name = fact[1] + "." + fact[2];
                string got = name + " at " + Marshal.OffsetOf(type, fact[2]) + ", " + size + " bytes";
                Expect.Equal(name + " at " + fact[3] + ", " + fact[4] + " bytes", got);
            }
            foreach (string[] group in Facts("struct"))
            {
                int numFields = Facts("field").Count(fact => fact[1] == group[1]);
                Expect.Equal(numFields, StructOf(group[1]).GetFields().Length);
            }
        }

        public static void EnumsAreTheHeaders()
        {
            var seen = new Dictionary<Type, int>();
            foreach (string[] fact in Facts("value"))
            {
                Expect.That(Enums.TryGetValue(fact[1], out KeyValuePair<Type, string> known), fact[1]);
                string name = Pascal(fact[2].Substring(known.Value.Length));
                Expect.That(Enum.IsDefined(known.Key, name), known.Key + " has no " + name);
                Expect.Equal(fact[2] + " " + fact[3], fact[2] + " " + Convert.ToInt64(Enum.Parse(known.Key, name)));
                seen[known.Key] = (seen.TryGetValue(known.Key, out int count) ? count : 0) + 1;
            }
            foreach (KeyValuePair<Type, string> known in Enums.Values)
                Expect.Equal(seen[known.Key], Enum.GetNames(known.Key).Length);
        }

        public static void FunctionsAreTheHeaders()
        {
            string[] bound = typeof(Native).GetMethods(BindingFlags.Static | BindingFlags.NonPublic)
                .Select(method => method.Name).Where(name => name.StartsWith("ifl_")).OrderBy(name => name).ToArray();
            string[] there = Facts("function").Select(fact => fact[1]).OrderBy(name => name).ToArray();
            Expect.Equal(string.Join(" ", there), string.Join(" ", bound));
        }

        private static KeyValuePair<Type, string> Named(Type type, string prefix) =>
            new KeyValuePair<Type, string>(type, prefix);

        private static Type StructOf(string name)
        {
            Type type = Binding.GetType("Inflight." + name);
            Expect.That(type != null, "there is no " + name);
            return type;
        }

        private static string Pascal(string name) => string.Concat(
            name.Split('_').Select(word => word.Substring(0, 1) + word.Substring(1).ToLowerInvariant()));
    }
}
