//! What the networks have in common: a tree of named parameters, where their values come from and go to.

use std::{collections::HashMap, fmt, ops::Div};

use tch::{
    Device, Kind, Tensor,
    nn::{Path, VarStore},
    no_grad,
};
use vodka_checkpoint::{Dtype, TensorView, Weights, keys::Key};

use crate::{Error, Result};

/// Gives the value of the parameter with a diffusers name and a shape, on the device and in the kind of the network.
pub type Source<'a> = dyn Fn(&str, &[i64]) -> Result<Tensor> + 'a;

/// A place in a network's tree of parameters; `params / "conv_in"` is the place below.
#[derive(Clone)]
pub struct Params<'a> {
    path: Path<'a>,
    source: &'a Source<'a>,
}

impl<'a> Params<'a> {
    /// The root of `vars`, filled from `source`.
    pub fn new(vars: &'a VarStore, source: &'a Source<'a>) -> Self {
        Self { path: vars.root(), source }
    }

    /// The parameter `name` at this place, entered in the `VarStore`.
    ///
    /// # Errors
    /// Those of the source, and a value of another shape.
    pub fn tensor(&self, name: &str, shape: &[i64]) -> Result<Tensor> {
        let full = self.path.path(name);
        let value = (self.source)(&full, shape)?;
        if value.size() != shape {
            return Err(Error::Shape { name: full, expected: shape.to_vec(), found: value.size() });
        }
        Ok(self.path.add(name, value, true))
    }
}

impl<'a, T: ToString> Div<T> for &Params<'a> {
    type Output = Params<'a>;

    fn div(self, name: T) -> Params<'a> {
        Params { path: self.path.sub(name), source: self.source }
    }
}

impl<'a, T: ToString> Div<T> for Params<'a> {
    type Output = Params<'a>;

    fn div(self, name: T) -> Params<'a> {
        &self / name
    }
}

impl fmt::Debug for Params<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Params").field("path", &self.path).finish_non_exhaustive()
    }
}

/// A network with parameters that can be trained, counted and saved.
pub trait Network {
    /// The parameters under their diffusers names.
    fn vars(&self) -> &VarStore;

    /// The parameters, to freeze them, move them or change their kind.
    fn vars_mut(&mut self) -> &mut VarStore;

    /// The names and shapes of all parameters, in the order of a checkpoint.
    fn keys(&self) -> Vec<Key>;

    /// Stops the tracking of gradients; a network is frozen when it comes from a checkpoint.
    fn freeze(&mut self) {
        self.vars_mut().freeze();
    }

    /// Starts the tracking of gradients.
    fn unfreeze(&mut self) {
        self.vars_mut().unfreeze();
    }

    /// Lays the weights of convolutions out with the channels last, which libtorch's fastest convolutions want; so are
    /// then the feature maps that come out of them. Names, shapes and values stay.
    fn channels_last(&mut self) {
        for variable in self.vars().variables().into_values().filter(|variable| variable.dim() == 4) {
            no_grad(|| {
                let moved = variable.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]);
                variable.shallow_clone().set_data(&moved);
            });
        }
    }

    /// Puts these weights in the place of those that are there: nothing is built anew, and memory and layout stay, so that the
    /// network is to the bit the one that would be loaded. Files are read once, straight out of the mapped memory.
    ///
    /// # Errors
    /// A weight that cannot be had, or is of another shape; the network then has some of either and is good for nothing.
    fn fill(&self, weights: &dyn Weights) -> Result<()> {
        let mut variables = self.vars().variables();
        for key in self.keys() {
            let variable = variables.remove(&key.diffusers);
            let mut variable = variable.unwrap_or_else(|| panic!("{} is not in the network", key.diffusers));
            let view = weights.tensor(&key.ldm).map_err(Error::of_weights)?;
            let shape = variable.size();
            check_shape(&key.ldm, &view, &shape)?;
            let kind = tch_kind(&key.ldm, view.dtype)?;
            let device = variable.device();
            let upload =
                |source| Error::Upload { name: key.ldm.clone(), device: format!("{device:?}"), source };
            let strides: Vec<i64> = (1..=shape.len()).map(|axis| shape[axis..].iter().product()).collect();
            let is_aligned = view.data.as_ptr().addr().is_multiple_of(view.dtype.size());
            let stored = if is_aligned {
                // SAFETY: so many bytes are there, as was checked, and they stay until the copy is made.
                unsafe { Tensor::f_from_blob(view.data.as_ptr(), &shape, &strides, kind, Device::Cpu) }
            } else {
                Tensor::f_from_data_size(&view.data, &shape, kind)
            };
            let copied = stored.and_then(|stored| no_grad(|| variable.f_copy_(&stored)));
            copied.map(drop).map_err(upload)?;
        }
        Ok(())
    }

    /// All parameters under their LDM names and in their LDM shapes, in the order of a checkpoint.
    ///
    /// They share the network's memory: what is written to them is written to the network.
    fn state(&self) -> Vec<(String, Tensor)> {
        let mut variables = self.vars().variables();
        let mut entry = |key: Key| {
            let tensor = variables.remove(&key.diffusers);
            let tensor = tensor.unwrap_or_else(|| panic!("{} is not in the network", key.diffusers)).detach();
            (key.ldm, tensor.view(&dims(&key.shape)[..]))
        };
        self.keys().into_iter().map(&mut entry).collect()
    }
}

/// A `VarStore` for new parameters of this kind.
pub(crate) fn var_store(device: Device, kind: Kind) -> VarStore {
    let mut vars = VarStore::new(device);
    vars.set_kind(kind);
    vars
}

/// A shape in libtorch's integers.
pub(crate) fn dims(shape: &[usize]) -> Vec<i64> {
    shape.iter().map(|n| *n as i64).collect()
}

/// The parameters listed in `keys`, from `weights`: of a file straight out of the mapped memory, and converted on the
/// device.
pub(crate) fn read<'a>(
    weights: &'a dyn Weights,
    keys: Vec<Key>,
    device: Device,
    kind: Kind,
) -> impl Fn(&str, &[i64]) -> Result<Tensor> + 'a {
    let ldm: HashMap<String, String> = keys.into_iter().map(|key| (key.diffusers, key.ldm)).collect();
    move |name, shape| {
        let name = ldm.get(name).unwrap_or_else(|| panic!("{name} is not in the key list"));
        let view = weights.tensor(name).map_err(Error::of_weights)?;
        bring(name, &view, shape, device, kind)
    }
}

/// A tensor of a file in that shape, converted on the device.
pub(crate) fn bring(
    name: &str,
    view: &TensorView<'_>,
    shape: &[i64],
    device: Device,
    kind: Kind,
) -> Result<Tensor> {
    check_shape(name, view, shape)?;
    let upload = |source| Error::Upload { name: name.to_owned(), device: format!("{device:?}"), source };
    let tensor = Tensor::f_from_data_size(&view.data, shape, tch_kind(name, view.dtype)?).map_err(upload)?;
    tensor.f_to_device(device).and_then(|tensor| tensor.f_to_kind(kind)).map_err(upload)
}

/// Whether a tensor has as many elements as that shape.
fn check_shape(name: &str, view: &TensorView<'_>, shape: &[i64]) -> Result<()> {
    let stored = dims(&view.shape);
    if stored.iter().product::<i64>() != shape.iter().product::<i64>() {
        return Err(Error::Shape { name: name.to_owned(), expected: shape.to_vec(), found: stored });
    }
    Ok(())
}

fn tch_kind(name: &str, dtype: Dtype) -> Result<Kind> {
    match dtype {
        Dtype::F16 => Ok(Kind::Half),
        Dtype::BF16 => Ok(Kind::BFloat16),
        Dtype::F32 => Ok(Kind::Float),
        Dtype::F64 => Ok(Kind::Double),
        other => Err(Error::Dtype { name: name.to_owned(), found: format!("{other:?}") }),
    }
}

#[cfg(test)]
mod tests {
    use std::error;

    use vodka_checkpoint::ModelConfig;

    use super::*;

    /// A tensor of this type under every name.
    struct One(ModelConfig, Dtype);

    impl Weights for One {
        fn config(&self) -> &ModelConfig {
            &self.0
        }

        fn tensor(&self, _: &str) -> Result<TensorView<'_>, Box<dyn error::Error + Send + Sync>> {
            let data = vec![0; self.1.size()].into();
            Ok(TensorView { dtype: self.1, shape: vec![1], data })
        }
    }

    #[test]
    fn what_cannot_be_brought_to_a_device_is_told() {
        let key = Key {
            ldm: "a.weight".into(),
            diffusers: "b.weight".into(),
            shape: vec![1],
            diffusers_shape: vec![1],
        };
        let said = |dtype, device, shape: &[i64]| {
            let weights = One(ModelConfig::sd15(), dtype);
            let result = read(&weights, vec![key.clone()], device, Kind::Float)("b.weight", shape);
            result.map_err(|error| error.to_string())
        };
        assert!(said(Dtype::BF16, Device::Cpu, &[1]).is_ok());
        assert_eq!(
            said(Dtype::I64, Device::Cpu, &[1]).unwrap_err(),
            "`a.weight` is stored as I64, expected F16, BF16, F32 or F64"
        );
        assert_eq!(
            said(Dtype::F32, Device::Cpu, &[2]).unwrap_err(),
            "`a.weight` has the shape [1], expected [2]"
        );
        // Without its other half libtorch knows no such device.
        let said = said(Dtype::F32, Device::Cuda(99), &[1]).unwrap_err();
        assert_eq!(said, "cannot bring `a.weight` to the device Cuda(99)");
    }
}
