//! Diffusion mathematics in f64: schedules, spacings, solver coefficients, and the random numbers of torch
//! and Python.
//!
//! Everything here is a pure function of its arguments. Networks and tensors are elsewhere: a solver is a list of
//! [`Step`]s, each of which says what the network is to be asked and how its answer moves the latents.

mod error;
mod random;
mod schedule;
mod solver;

pub use error::{Error, Result};
pub use random::{PythonRng, TorchRng};
pub use schedule::{Coefficients, Schedule};
pub use solver::{SamplerName, ScheduleName, Solver, Step};
