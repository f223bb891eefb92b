//! `ifl_buffer` and the text functions: the model's own tokenizer and chat template.

use std::ffi::c_char;

use super::engine::{engine_of, ifl_engine};
use super::error::ifl_error;
use super::ffi::{guard, guard_value, terminated};
use super::status::ifl_status;
use crate::error::{Error, Result};

/// A text or a list of token ids that a call returns. An object and not memory of the caller's, because how
/// long it is shows only when the work is done: so the work is done once, and nothing is ever cut short.
/// Owned by the caller, who frees it with ifl_buffer_free; it is independent of the engine and never changes.
///
/// Functions: ifl_buffer_text, ifl_buffer_tokens, ifl_buffer_free. Since 0.1.0.
pub struct ifl_buffer {
    content: Content,
}

enum Content {
    Text(Box<[u8]>),
    Tokens(Vec<u32>),
}

impl ifl_buffer {
    pub(super) fn of_text(text: &str) -> Self {
        Self { content: Content::Text(terminated(text)) }
    }

    pub(super) fn of_tokens(tokens: Vec<u32>) -> Self {
        Self { content: Content::Tokens(tokens) }
    }
}

/// What ifl_tokenize, ifl_detokenize and ifl_apply_chat_template do besides their work: ifl_text_flags_value
/// combined with |, or 0.
///
/// Since 0.1.0.
pub type ifl_text_flags = u32;

/// Bits of an ifl_text_flags.
///
/// Since 0.1.0.
#[derive(Clone, Copy)]
#[repr(C)]
pub enum ifl_text_flags_value {
    /// ifl_tokenize: add what the model expects around a text, such as a first token.
    IFL_TEXT_ADD_SPECIAL = 1,
    /// ifl_tokenize: the text may spell special tokens. Not for untrusted text.
    IFL_TEXT_PARSE_SPECIAL = 2,
    /// ifl_detokenize: leave special tokens out.
    IFL_TEXT_SKIP_SPECIAL = 4,
    /// ifl_apply_chat_template: end with the start of the assistant's answer.
    IFL_TEXT_GENERATION_PROMPT = 8,
}

use ifl_text_flags_value::{
    IFL_TEXT_ADD_SPECIAL, IFL_TEXT_GENERATION_PROMPT, IFL_TEXT_PARSE_SPECIAL, IFL_TEXT_SKIP_SPECIAL,
};

/// Whether each of `known` is set in `flags`; no other bit may be.
fn read_flags<const N: usize>(flags: ifl_text_flags, known: [ifl_text_flags_value; N]) -> Result<[bool; N]> {
    let bits = known.map(|flag| flag as ifl_text_flags);
    if flags & !bits.iter().fold(0, |all, bit| all | bit) != 0 {
        let message = format!("flags is {flags:#x}; only the bits of {bits:?} are allowed here");
        return Err(Error::invalid_argument(message));
    }
    Ok(bits.map(|bit| flags & bit != 0))
}

/// Token ids of a text.
///
/// - engine: the engine whose model's tokenizer to use.
/// - text: UTF-8, at most 16 MiB. May be NULL where text_len is 0.
/// - text_len: its length in bytes, or IFL_NUL_TERMINATED.
/// - flags: IFL_TEXT_ADD_SPECIAL, IFL_TEXT_PARSE_SPECIAL, both or 0.
/// - tokens: receives a buffer to read with ifl_buffer_tokens; free it with ifl_buffer_free. Not NULL.
/// - error: receives the error where the call fails; may be NULL.
///
/// Threads: any, at any time; the work is done on the calling thread.
/// Errors: IFL_INVALID_ARGUMENT, IFL_INVALID_UTF8, IFL_INVALID_HANDLE, IFL_FORKED. Since 0.1.0.
#[unsafe(no_mangle)]
pub extern "C" fn ifl_tokenize(
    engine: *mut ifl_engine,
    text: *const c_char,
    text_len: u64,
    flags: ifl_text_flags,
    tokens: *mut *mut ifl_buffer,
    error: *mut *mut ifl_error,
) -> ifl_status {
    guard(error, |caller| {
        let out = caller.out(tokens, "tokens")?;
        let [add_special, parse_special] = read_flags(flags, [IFL_TEXT_ADD_SPECIAL, IFL_TEXT_PARSE_SPECIAL])?;
        let text = caller.text(text, text_len, "text")?;
        out.set_box(ifl_buffer::of_tokens(engine_of(engine)?.tokenize(text, add_special, parse_special)?));
        Ok(())
    })
}

/// Text of token ids. Bytes that are not UTF-8 become U+FFFD.
///
/// - engine: the engine whose model's tokenizer to use.
/// - tokens: token ids. May be NULL where num_tokens is 0.
/// - num_tokens: number of tokens.
/// - flags: IFL_TEXT_SKIP_SPECIAL or 0.
/// - text: receives a buffer to read with ifl_buffer_text; free it with ifl_buffer_free. Not NULL.
/// - error: receives the error where the call fails; may be NULL.
///
/// Threads: any, at any time; the work is done on the calling thread.
/// Errors: IFL_INVALID_ARGUMENT (an id beyond the vocabulary), IFL_INVALID_HANDLE, IFL_FORKED. Since 0.1.0.
#[unsafe(no_mangle)]
pub extern "C" fn ifl_detokenize(
    engine: *mut ifl_engine,
    tokens: *const u32,
    num_tokens: u64,
    flags: ifl_text_flags,
    text: *mut *mut ifl_buffer,
    error: *mut *mut ifl_error,
) -> ifl_status {
    guard(error, |caller| {
        let out = caller.out(text, "text")?;
        let [skip_special] = read_flags(flags, [IFL_TEXT_SKIP_SPECIAL])?;
        let tokens = caller.slice(tokens, num_tokens, "tokens")?;
        out.set_box(ifl_buffer::of_text(&engine_of(engine)?.detokenize(tokens, skip_special)?));
        Ok(())
    })
}

/// The text that the model's chat template makes of chat messages. Requests need no such call: they may carry
/// the messages themselves (IFL_PROMPT_CHAT), and then content cannot spell special tokens.
///
/// - engine: the engine whose model's template to use.
/// - messages: JSON array of messages, such as [{"role": "user", "content": "Hello"}], UTF-8, at most 16 MiB.
/// - messages_len: its length in bytes, or IFL_NUL_TERMINATED.
/// - flags: IFL_TEXT_GENERATION_PROMPT or 0.
/// - text: receives a buffer to read with ifl_buffer_text; free it with ifl_buffer_free. Not NULL.
/// - error: receives the error where the call fails; may be NULL.
///
/// Threads: any, at any time; the call waits for a short-lived thread that does the work, which takes at most 50 ms
/// of processor time and makes at most 16 MiB of text.
/// Errors: IFL_INVALID_ARGUMENT, IFL_INVALID_UTF8, IFL_INVALID_HANDLE, IFL_FORKED; IFL_UNSUPPORTED where the
/// model has no template, IFL_MODEL_INVALID or IFL_MODEL_UNSUPPORTED where its template cannot be used, and
/// IFL_TEMPLATE_FAILED; IFL_OUT_OF_MEMORY. Since 0.1.0.
#[unsafe(no_mangle)]
pub extern "C" fn ifl_apply_chat_template(
    engine: *mut ifl_engine,
    messages: *const c_char,
    messages_len: u64,
    flags: ifl_text_flags,
    text: *mut *mut ifl_buffer,
    error: *mut *mut ifl_error,
) -> ifl_status {
    guard(error, |caller| {
        let out = caller.out(text, "text")?;
        let [add_generation_prompt] = read_flags(flags, [IFL_TEXT_GENERATION_PROMPT])?;
        let messages = caller.text(messages, messages_len, "messages")?;
        let rendered = engine_of(engine)?.apply_chat_template(messages, add_generation_prompt)?;
        out.set_box(ifl_buffer::of_text(&rendered));
        Ok(())
    })
}

/// The text in a buffer.
///
/// - buffer: a buffer, or NULL.
/// - len: receives the length in bytes without the NUL; may be NULL.
///
/// Returns UTF-8, NUL-terminated, which belongs to the buffer and lives until ifl_buffer_free; NULL, and a
/// length of 0, where the buffer is NULL or holds tokens.
/// Threads: any, at any time. Errors: none. Since 0.1.0.
#[unsafe(no_mangle)]
pub extern "C" fn ifl_buffer_text(buffer: *const ifl_buffer, len: *mut u64) -> *const c_char {
    guard_value(std::ptr::null(), |caller| {
        let (text, text_len) = match caller.object(buffer).map(|buffer| &buffer.content) {
            Some(Content::Text(text)) => (text.as_ptr().cast(), text.len() - 1),
            _ => (std::ptr::null(), 0),
        };
        if let Ok(Some(out)) = caller.out_optional(len, "len") {
            out.set(text_len as u64);
        }
        text
    })
}

/// The token ids in a buffer.
///
/// - buffer: a buffer, or NULL.
/// - num_tokens: receives the number of tokens; may be NULL.
///
/// Returns the ids, which belong to the buffer and live until ifl_buffer_free; NULL, and 0 tokens, where the
/// buffer is NULL or holds text. Not to be read from where there are 0 tokens.
/// Threads: any, at any time. Errors: none. Since 0.1.0.
#[unsafe(no_mangle)]
pub extern "C" fn ifl_buffer_tokens(buffer: *const ifl_buffer, num_tokens: *mut u64) -> *const u32 {
    guard_value(std::ptr::null(), |caller| {
        let (tokens, num) = match caller.object(buffer).map(|buffer| &buffer.content) {
            Some(Content::Tokens(tokens)) => (tokens.as_ptr(), tokens.len()),
            _ => (std::ptr::null(), 0),
        };
        if let Ok(Some(out)) = caller.out_optional(num_tokens, "num_tokens") {
            out.set(num as u64);
        }
        tokens
    })
}

/// Frees a buffer and what is in it.
///
/// - buffer: a buffer that has not been freed, or NULL, which does nothing.
///
/// Threads: any; no other thread may use the buffer any more. Errors: none. Since 0.1.0.
#[unsafe(no_mangle)]
pub extern "C" fn ifl_buffer_free(buffer: *mut ifl_buffer) {
    guard_value((), |caller| caller.free(buffer));
}
