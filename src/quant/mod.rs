//! Block-quantised number formats and their conversion to plain ones.
