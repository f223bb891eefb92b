//! Text to tokens and back: the model's own tokenizer and chat template, incremental detokenising, stop strings.
