//! The features of shared dependencies, so that they compile once, whichever packages are built.
