//! Whether a backend can do what a model needs.

use crate::backend::{Backend, Feature};
use crate::model::error::{ModelError, ModelResult};
use crate::model::spec::{ModelSpec, Positions};

impl ModelSpec {
    /// Refuses a validated spec that needs more of `backend` than it can do; the error names the field.
    pub fn check_support<B: Backend>(&self, backend: &B) -> ModelResult<()> {
        let is_alibi = matches!(self.positions, Positions::Alibi { .. });
        let attention = &self.attention;
        let features = [
            ("positions.kind", "alibi", is_alibi, Feature::Alibi),
            ("attention.qk_norm", "a norm", attention.qk_norm.is_some(), Feature::QkNorm),
            ("attention.score_soft_cap", "a cap", attention.score_soft_cap.is_some(), Feature::ScoreSoftCap),
            ("attention.sliding_window", "a window", attention.sliding_window.is_some(), Feature::Window),
        ];
        for (field, what, is_used, feature) in features {
            if is_used && !backend.supports(feature) {
                let message = format!("{what} is not supported on this device; use device cpu");
                return Err(ModelError::unsupported(field, message));
            }
        }
        if let Some(experts) = &self.experts {
            let (num_experts, num_chosen) = (experts.num_experts, experts.num_chosen);
            if !backend.supports(Feature::Experts { num_experts, num_chosen }) {
                let message = format!(
                    "{num_chosen} of {num_experts} experts are not supported on this device; use device cpu"
                );
                return Err(ModelError::unsupported("experts", message));
            }
        }
        let head_dim = backend.stored_head_dim(self.heads.head_dim);
        let sizes = [
            ("heads.head_dim", self.heads.head_dim, Feature::HeadDim(head_dim)),
            ("hidden_size", self.hidden_size, Feature::Width(self.hidden_size)),
        ];
        for (field, size, feature) in sizes {
            if !backend.supports(feature) {
                let message = format!("{size} is not supported on this device; use device cpu");
                return Err(ModelError::unsupported(field, message));
            }
        }
        Ok(())
    }

    /// The spec with heads and MLPs of the sizes that `backend` stores; what is more than the checkpoint's is
    /// zeros (see [`crate::model::padding`]).
    pub fn stored_by<B: Backend>(&self, backend: &B) -> Self {
        let mut stored = self.clone();
        // The scores' factor stays that of the true size.
        stored.heads.scale = Some(self.heads.score_scale());
        stored.heads.head_dim = backend.stored_head_dim(self.heads.head_dim);
        let pad = |width: &mut usize| *width = backend.stored_width(*width);
        pad(&mut stored.intermediate_size);
        if let Some(experts) = &mut stored.experts {
            pad(&mut experts.intermediate_size);
            experts.shared.iter_mut().for_each(|shared| pad(&mut shared.intermediate_size));
        }
        stored
    }
}
