//! What a tag table says about the selected tags: frequencies, groups, co-occurrence, sharpness, lengths, thresholds.

mod model;

pub use model::{
    Analysis, CoOccurrence, GroupShare, HISTOGRAM_BUCKETS, LabelledThreshold, LengthEffect,
    SharpnessAgreement, SharpnessBucket, Suggestion, TagAnalysis,
};
