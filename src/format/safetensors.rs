//! Safetensors files and directories.
