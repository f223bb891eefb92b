//! Bad models and bad requests, at the level of the built tool and of the public engine: each is refused with an
//! error that names the file and the field, in little time and little memory, and without a panic.

#[path = "hostile/gguf.rs"]
mod gguf;
#[path = "hostile/requests.rs"]
mod requests;
#[path = "hostile/safetensors.rs"]
mod safetensors;
#[path = "hostile/text.rs"]
mod text;
#[path = "hostile/tool.rs"]
mod tool;
