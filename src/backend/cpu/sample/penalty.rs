//! What changes single logits: bias, suppression, and penalties on tokens seen before.

use std::collections::HashMap;

use crate::backend::SlotState;

/// Outputs of one token that the frequency penalty counts at the most, on every device: more than this a mark on a CUDA
/// device does not hold.
const MAX_PENALIZED_OUTPUTS: u32 = 0x3fff;

/// The tokens that penalties apply to. Its memory is bounded by the sequence's length; a sequence without
/// penalties keeps none.
#[derive(Debug, Default)]
pub(super) struct History {
    /// For each token of prompt or output, how often it stands in the output.
    num_outputs: HashMap<u32, u32>,
}

impl History {
    /// The history of a sequence that takes over a slot: its prompt and its output so far.
    pub(super) fn new(state: &SlotState) -> Self {
        let mut history = Self::default();
        if state.repetition_penalty != 1.0 {
            history.num_outputs.extend(state.prompt.iter().map(|&token| (token, 0)));
        }
        for &token in &state.output {
            history.push(state, token);
        }
        history
    }

    /// Takes in one output token.
    pub(super) fn push(&mut self, settings: &SlotState, token: u32) {
        if has_penalties(settings) {
            *self.num_outputs.entry(token).or_default() += 1;
        }
    }
}

fn has_penalties(settings: &SlotState) -> bool {
    settings.repetition_penalty != 1.0
        || settings.presence_penalty != 0.0
        || settings.frequency_penalty != 0.0
}

/// Whether [`adjust`] leaves every logit as it is.
pub(super) fn is_neutral(settings: &SlotState, num_outputs: u32) -> bool {
    settings.logit_bias.is_empty() && !suppresses(settings, num_outputs) && !has_penalties(settings)
}

fn suppresses(settings: &SlotState, num_outputs: u32) -> bool {
    num_outputs < settings.min_tokens && !settings.suppressed_tokens.is_empty()
}

/// Adds the bias, masks what `min_tokens` suppresses, and applies the penalties, in this order.
///
/// Masked logits stay minus infinity and finite ones stay finite. Ids outside the vocabulary, such as an
/// end-of-sequence token that the embedding table lacks, are passed over.
pub(super) fn adjust(logits: &mut [f32], settings: &SlotState, history: &History, num_outputs: u32) {
    for &(token, bias) in &settings.logit_bias {
        change(logits, token, |logit| logit + bias);
    }
    if suppresses(settings, num_outputs) {
        for &token in &settings.suppressed_tokens {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
    // The order of the map's entries does not matter: each changes another logit.
    let repetition = settings.repetition_penalty;
    for (&token, &count) in &history.num_outputs {
        change(logits, token, |logit| if logit > 0.0 { logit / repetition } else { logit * repetition });
        if count > 0 {
            let count = count.min(MAX_PENALIZED_OUTPUTS);
            change(logits, token, |logit| logit - settings.frequency_penalty * count as f32);
            change(logits, token, |logit| logit - settings.presence_penalty);
        }
    }
}

fn change(logits: &mut [f32], token: u32, new_value: impl FnOnce(f32) -> f32) {
    if let Some(logit) = logits.get_mut(token as usize)
        && *logit > f32::NEG_INFINITY
    {
        *logit = new_value(*logit).clamp(f32::MIN, f32::MAX);
    }
}
