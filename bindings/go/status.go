package inflight

// #include "inflight.h"
import "C"

import "fmt"

// Status says how a call or a request failed. It is an error itself, so that errors.Is finds it in an [*Error].
// A newer library may give statuses that are not listed here; treat those by their category.
type Status int32

// The statuses of the library. Their numbers never change.
const (
	// ErrInvalidArgument: a field has a value that is not allowed; the message names it.
	ErrInvalidArgument = Status(C.IFL_INVALID_ARGUMENT)
	// ErrInvalidHandle: the library does not know the engine.
	ErrInvalidHandle = Status(C.IFL_INVALID_HANDLE)
	// ErrInvalidStructSize: the library is too old for this package.
	ErrInvalidStructSize = Status(C.IFL_INVALID_STRUCT_SIZE)
	// ErrInvalidUTF8: text that must be UTF-8 is not.
	ErrInvalidUTF8 = Status(C.IFL_INVALID_UTF8)
	// ErrUnsupported: this version of the library, or the model, cannot do it.
	ErrUnsupported = Status(C.IFL_UNSUPPORTED)
	// ErrPromptTooLong: the prompt, or the prompt and the tokens asked for, can never fit.
	ErrPromptTooLong = Status(C.IFL_PROMPT_TOO_LONG)
	// ErrTemplateFailed: the chat template refused the messages or went over its limits.
	ErrTemplateFailed = Status(C.IFL_TEMPLATE_FAILED)
	// ErrUnknownRequest: no request of this id is in flight.
	ErrUnknownRequest = Status(C.IFL_UNKNOWN_REQUEST)
	// ErrModelNotFound: a file of the model is missing.
	ErrModelNotFound = Status(C.IFL_MODEL_NOT_FOUND)
	// ErrModelIO: a file of the model could not be read.
	ErrModelIO = Status(C.IFL_MODEL_IO)
	// ErrModelInvalid: a file of the model is malformed; the message names file and field.
	ErrModelInvalid = Status(C.IFL_MODEL_INVALID)
	// ErrModelUnsupported: the model uses something that the library does not implement.
	ErrModelUnsupported = Status(C.IFL_MODEL_UNSUPPORTED)
	// ErrBusy: the queue of requests is full. Try again when some have ended.
	ErrBusy = Status(C.IFL_BUSY)
	// ErrOutOfMemory: host memory is short.
	ErrOutOfMemory = Status(C.IFL_OUT_OF_MEMORY)
	// ErrDeviceOutOfMemory: device memory is short.
	ErrDeviceOutOfMemory = Status(C.IFL_DEVICE_OUT_OF_MEMORY)
	// ErrMemoryLimit: what the options ask for does not fit their MemoryLimitBytes.
	ErrMemoryLimit = Status(C.IFL_MEMORY_LIMIT)
	// ErrDeviceUnavailable: there is no such device, or its driver, cuBLASLt or the library's backend for it is
	// missing; see HasFeature.
	ErrDeviceUnavailable = Status(C.IFL_DEVICE_UNAVAILABLE)
	// ErrDeviceLost: the device failed fatally, and the engine with it.
	ErrDeviceLost = Status(C.IFL_DEVICE_LOST)
	// ErrClosed: the engine is closed, or was closed while the request was in flight.
	ErrClosed = Status(C.IFL_CLOSED)
	// ErrForked: the engine belongs to the parent of this process.
	ErrForked = Status(C.IFL_FORKED)
	// ErrAborted: the progress function or the context ended the loading.
	ErrAborted = Status(C.IFL_ABORTED)
	// ErrNumeric: the model gave NaN or infinite logits for this request.
	ErrNumeric = Status(C.IFL_NUMERIC_ERROR)
	// ErrInternal: a defect in the library, contained. The message says where; please report it.
	ErrInternal = Status(C.IFL_INTERNAL)
)

// Error is the library's name of the status, such as "busy".
func (s Status) Error() string { return C.GoString(C.ifl_status_name(C.ifl_status(s))) }

// Category says who can do something about the status.
func (s Status) Category() Category { return Category(C.ifl_status_category(C.ifl_status(s))) }

// Retryable says whether the same call can succeed later without any change by the caller.
func (s Status) Retryable() bool { return C.ifl_status_is_retryable(C.ifl_status(s)) != 0 }

// Category says who can do something about a [Status].
type Category int32

// The categories.
const (
	// CategoryNone: not an error.
	CategoryNone = Category(C.IFL_CATEGORY_NONE)
	// CategoryArgument: the call's arguments are wrong.
	CategoryArgument = Category(C.IFL_CATEGORY_ARGUMENT)
	// CategoryModel: the model's files are missing or wrong.
	CategoryModel = Category(C.IFL_CATEGORY_MODEL)
	// CategoryResource: memory or places in a queue are short.
	CategoryResource = Category(C.IFL_CATEGORY_RESOURCE)
	// CategoryDevice: the device or its driver.
	CategoryDevice = Category(C.IFL_CATEGORY_DEVICE)
	// CategoryLifecycle: the state of the engine or the request.
	CategoryLifecycle = Category(C.IFL_CATEGORY_LIFECYCLE)
	// CategoryInternal: a defect in the library.
	CategoryInternal = Category(C.IFL_CATEGORY_INTERNAL)
)

// Error is a failed call or request.
type Error struct {
	// Status says what kind of failure it is.
	Status Status
	// Message says for a person what is wrong, with names and values, and what to do.
	Message string
}

func (e *Error) Error() string {
	if e.Message == "" {
		return "inflight: " + e.Status.Error()
	}
	return fmt.Sprintf("inflight: %s: %s", e.Status.Error(), e.Message)
}

// Unwrap gives the status, for errors.Is and errors.As.
func (e *Error) Unwrap() error { return e.Status }

// toError takes what a call of the library gave; it frees detail.
func toError(status C.ifl_status, detail *C.ifl_error) error {
	if status == C.IFL_OK {
		return nil
	}
	defer C.ifl_error_free(detail)
	var length C.uint64_t
	message := C.ifl_error_message(detail, &length)
	return &Error{Status: Status(status), Message: C.GoStringN(message, C.int(length))}
}
