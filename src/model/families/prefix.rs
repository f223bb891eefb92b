//! What stands before the names of a checkpoint's tensors: models are published with and without the prefix of a
//! wrapper, whatever their family.

use crate::model::families::config::Config;
use crate::model::spec::WeightNames;

/// The part of a model that sees images too which takes the text.
const TEXT_PART: &str = "language_model.";

impl Config<'_> {
    /// Fits `names` to the checkpoint. Families name tensors as a model with a head has them, all but the head's
    /// under one prefix (`model.`). A bare model lacks it; in a model that sees images too the text's part stands
    /// before all names, or behind the prefix. Names that are in the checkpoint, or in none of these forms, stay.
    pub(super) fn fit_names(&self, names: &mut WeightNames) {
        let Some(end) = names.embedding.find('.') else { return };
        let prefix = names.embedding[..=end].to_owned();
        let behind = format!("{prefix}{TEXT_PART}");
        let forms: [(&str, &str); 4] =
            [(&prefix, &prefix), (&prefix, ""), ("", TEXT_PART), (&prefix, &behind)];
        let rename = |name: &str, (from, to): (&str, &str)| match name.strip_prefix(from) {
            Some(rest) => format!("{to}{rest}"),
            None => name.to_owned(),
        };
        let is_there = |form: &(&str, &str)| self.has_tensor(&rename(&names.embedding, *form));
        if let Some(form) = forms.into_iter().find(is_there) {
            names.rename(&|name| *name = rename(name, form));
        }
    }
}
