#if !NET8_0_OR_GREATER
using System;
using System.Runtime.InteropServices;

namespace Inflight
{
    // For .NET Framework, Mono and Unity. LibraryImports.cs has the same for .NET.
    // A test compares both with the header.
    internal static unsafe class Native
    {
        [DllImport(Library.Name)]
        internal static extern byte* ifl_status_name(int status);

        [DllImport(Library.Name)]
        internal static extern int ifl_status_category(int status);

        [DllImport(Library.Name)]
        internal static extern uint ifl_status_is_retryable(int status);

        [DllImport(Library.Name)]
        internal static extern byte* ifl_error_message(IntPtr error, ref ulong len);

        [DllImport(Library.Name)]
        internal static extern void ifl_error_free(IntPtr error);

        [DllImport(Library.Name)]
        internal static extern int ifl_engine_options_init(ifl_engine_options* options, uint struct_size, IntPtr error);

        [DllImport(Library.Name)]
        internal static extern int ifl_request_init(ifl_request* request, uint struct_size, IntPtr error);

        [DllImport(Library.Name)]
        internal static extern ifl_event* ifl_events_get(IntPtr events, ulong index);

        [DllImport(Library.Name)]
        internal static extern void ifl_events_free(IntPtr events);

        [DllImport(Library.Name)]
        internal static extern int ifl_engine_create(ifl_engine_options* options, ref IntPtr engine, ref IntPtr error);

        [DllImport(Library.Name)]
        internal static extern int ifl_engine_plan(ifl_engine_options* options, ifl_memory_plan* plan,
            ref IntPtr error);

        [DllImport(Library.Name)]
        internal static extern int ifl_engine_enqueue(EngineHandle engine, ifl_request* request,
            ref ulong request_id, ref IntPtr error);

        [DllImport(Library.Name)]
        internal static extern int ifl_engine_poll(IntPtr engine, int timeout_ms, ref IntPtr events, ref IntPtr error);

        [DllImport(Library.Name)]
        internal static extern int ifl_engine_cancel(IntPtr engine, ulong request_id, IntPtr error);

        [DllImport(Library.Name)]
        internal static extern int ifl_engine_stats(EngineHandle engine, ifl_stats* stats, ref IntPtr error);

        [DllImport(Library.Name)]
        internal static extern int ifl_engine_model_info(EngineHandle engine, ifl_model_info* info, ref IntPtr error);

        [DllImport(Library.Name)]
        internal static extern int ifl_engine_eos_tokens(EngineHandle engine, ref IntPtr tokens, ref IntPtr error);

        [DllImport(Library.Name)]
        internal static extern int ifl_engine_device(EngineHandle engine, ref IntPtr device, ref IntPtr error);

        [DllImport(Library.Name)]
        internal static extern int ifl_engine_close(EngineHandle engine, ref IntPtr error);

        [DllImport(Library.Name)]
        internal static extern void ifl_engine_destroy(IntPtr engine);

        [DllImport(Library.Name)]
        internal static extern int ifl_tokenize(EngineHandle engine, byte* text, ulong text_len, uint flags,
            ref IntPtr tokens, ref IntPtr error);

        [DllImport(Library.Name)]
        internal static extern int ifl_detokenize(EngineHandle engine, uint* tokens, ulong num_tokens, uint flags,
            ref IntPtr text, ref IntPtr error);

        [DllImport(Library.Name)]
        internal static extern int ifl_apply_chat_template(EngineHandle engine, byte* messages, ulong messages_len,
            uint flags, ref IntPtr text, ref IntPtr error);

        [DllImport(Library.Name)]
        internal static extern byte* ifl_buffer_text(IntPtr buffer, ref ulong len);

        [DllImport(Library.Name)]
        internal static extern uint* ifl_buffer_tokens(IntPtr buffer, ref ulong num_tokens);

        [DllImport(Library.Name)]
        internal static extern void ifl_buffer_free(IntPtr buffer);

        [DllImport(Library.Name)]
        internal static extern uint ifl_version();

        [DllImport(Library.Name)]
        internal static extern uint ifl_has_feature(byte* name, ulong name_len);
    }
}
#endif
