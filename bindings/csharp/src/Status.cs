namespace Inflight
{
    /// <summary>How a call or a request has failed. A newer library may give values that are not listed; treat those
    /// by their category.</summary>
    public enum Status
    {
        /// <summary>Success.</summary>
        Ok = 0,
        /// <summary>An argument has a value that is not allowed; the message names it.</summary>
        InvalidArgument = 1,
        /// <summary>The library does not know the engine.</summary>
        InvalidHandle = 2,
        /// <summary>The library is too old for this package.</summary>
        InvalidStructSize = 3,
        /// <summary>Text that must be UTF-8 is not.</summary>
        InvalidUtf8 = 4,
        /// <summary>This version of the library, or the model, cannot do it.</summary>
        Unsupported = 5,
        /// <summary>The prompt, or the prompt and the tokens asked for, can never fit.</summary>
        PromptTooLong = 6,
        /// <summary>The chat template refused the messages or went over its limits.</summary>
        TemplateFailed = 7,
        /// <summary>No request of this id is in flight.</summary>
        UnknownRequest = 8,
        /// <summary>A file of the model is missing.</summary>
        ModelNotFound = 100,
        /// <summary>A file of the model could not be read.</summary>
        ModelIo = 101,
        /// <summary>A file of the model is malformed; the message names file and field.</summary>
        ModelInvalid = 102,
        /// <summary>The model uses something that the library does not implement.</summary>
        ModelUnsupported = 103,
        /// <summary>The queue of requests is full. Try again when some have ended.</summary>
        Busy = 200,
        /// <summary>Host memory is short.</summary>
        OutOfMemory = 201,
        /// <summary>Device memory is short.</summary>
        DeviceOutOfMemory = 202,
        /// <summary>What the options ask for does not fit their MemoryLimitBytes.</summary>
        MemoryLimit = 203,
        /// <summary>There is no such device, or its driver, cuBLASLt or the library's backend for it is
        /// missing.</summary>
        DeviceUnavailable = 300,
        /// <summary>The device failed fatally, and the engine with it.</summary>
        DeviceLost = 301,
        /// <summary>The engine was closed while the request was in flight.</summary>
        Closed = 400,
        /// <summary>The engine belongs to the parent of this process.</summary>
        Forked = 401,
        /// <summary>Loading was aborted.</summary>
        Aborted = 402,
        /// <summary>The model gave NaN or infinite logits for this request.</summary>
        NumericError = 403,
        /// <summary>A defect in the library, contained. The message says where; please report it.</summary>
        Internal = 900
    }

    /// <summary>Who can do something about a status.</summary>
    public enum Category
    {
        /// <summary>Not an error.</summary>
        None = 0,
        /// <summary>The call's arguments are wrong.</summary>
        Argument = 1,
        /// <summary>The model's files are missing or wrong.</summary>
        Model = 2,
        /// <summary>Memory or places in a queue are short.</summary>
        Resource = 3,
        /// <summary>The device or its driver.</summary>
        Device = 4,
        /// <summary>The state of the engine or the request.</summary>
        Lifecycle = 5,
        /// <summary>A defect in the library.</summary>
        Internal = 6
    }
}
