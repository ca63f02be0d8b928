//! Diffusion mathematics in f64: schedules, spacings, solver coefficients, and the random numbers of torch
//! and Python.
//!
//! Everything here is a pure function of its arguments. Networks and tensors are elsewhere: a [`Solver`] drives whatever
//! is a [`Host`], over whatever is a [`Latent`].

mod brownian;
mod error;
mod latent;
mod names;
mod philox;
mod picture;
mod random;
mod schedule;
mod solver;
mod spacing;

pub use brownian::BrownianTree;
pub use error::{Error, Result};
pub use latent::Latent;
pub use names::{SamplerName, ScheduleName};
pub use philox::PhiloxRng;
pub use picture::{PictureNoise, PictureSeed, RandomSource};
pub use random::{PythonRng, TorchRng};
pub use schedule::{Coefficients, Schedule};
pub use solver::{Denoising, Host, Output, Parameterization, Solver, SolverOptions};
