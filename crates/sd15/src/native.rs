//! What libtorch can do and tch has no call for, through one C++ file of ours (`native/torch.cpp`).

use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    ops::Deref,
    panic::{AssertUnwindSafe, catch_unwind},
    ptr,
    sync::Arc,
};

use tch::{Device, Kind, TchError, Tensor};
use torch_sys::C_tensor;

pub use crate::cuda::{Graph, peak_bytes};

/// A text of C++ that says what went wrong; null where nothing did.
pub(crate) type Text = *mut c_char;

#[repr(C)]
struct RawBlock {
    data: *mut c_void,
    call: unsafe extern "C" fn(*mut c_void, *mut *mut C_tensor, i64, *mut C_tensor) -> Text,
    drop: unsafe extern "C" fn(*mut c_void),
}

unsafe extern "C" {
    fn vodka_fused_adamw(
        values: *const *mut C_tensor,
        gradients: *const *mut C_tensor,
        means: *const *mut C_tensor,
        squares: *const *mut C_tensor,
        n: i64,
        step: *mut C_tensor,
        numbers: *const f64,
        gradient_scale: *mut C_tensor,
        found_inf: *mut C_tensor,
    ) -> Text;
    fn vodka_norms(tensors: *const *mut C_tensor, n: i64, norms: *mut *mut C_tensor) -> Text;
    fn vodka_scale(tensors: *const *mut C_tensor, n: i64, factor: *mut C_tensor) -> Text;
    fn vodka_clear(tensors: *const *mut C_tensor, n: i64, keep: c_int) -> Text;
    fn vodka_codes(
        values: *mut C_tensor,
        firsts: *mut C_tensor,
        bounds: *mut C_tensor,
        codes: *mut *mut C_tensor,
    ) -> Text;
    fn vodka_autocast_get(cuda: c_int, enabled: *mut c_int, kind: *mut c_int) -> Text;
    fn vodka_autocast_set(cuda: c_int, enabled: c_int, kind: c_int) -> Text;
    fn vodka_autocast_enter();
    fn vodka_autocast_leave();
    fn vodka_set_arithmetic(tf32: c_int, benchmark: c_int, deterministic: c_int) -> Text;
    fn vodka_recompute(
        block: *const RawBlock,
        inputs: *const *mut C_tensor,
        n: i64,
        output: *mut *mut C_tensor,
    ) -> Text;
    fn vodka_attention(
        q: *mut C_tensor,
        k: *mut C_tensor,
        v: *mut C_tensor,
        heads: i64,
        output: *mut *mut C_tensor,
    ) -> Text;
    fn vodka_put(place: *mut C_tensor, value: *mut C_tensor);
    fn vodka_text(text: *const c_char) -> Text;
    fn vodka_free(text: Text);
}

fn checked(text: Text) -> Result<(), TchError> {
    // SAFETY: a text of the functions above, which that one frees.
    unsafe { said(text, vodka_free) }.map_or(Ok(()), |said| Err(TchError::Torch(said)))
}

/// What a text says, if anything.
///
/// # Safety
/// It is null, or ends with 0 and is to be freed by `free`, which is done.
pub(crate) unsafe fn said(text: Text, free: unsafe extern "C" fn(Text)) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: as for the caller.
    let said = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
    // SAFETY: as for the caller; `said` is a copy.
    unsafe { free(text) };
    Some(said)
}

fn pointer(tensor: &Tensor) -> *mut C_tensor {
    tensor.as_ptr().cast_mut()
}

fn pointers(tensors: &[Tensor]) -> Vec<*mut C_tensor> {
    tensors.iter().map(pointer).collect()
}

/// One step of AdamW over many parameters at once: `torch._fused_adamw_`, as `torch.optim.AdamW(fused=True)` calls it.
///
/// All lists are of the same length and order, all tensors 32-bit and of the same layout as their parameter.
#[derive(Debug)]
pub struct FusedAdamW<'t> {
    /// The parameters, which are changed.
    pub values: &'t [Tensor],
    /// Their gradients; divided by `gradient_scale` where there is one.
    pub gradients: &'t [Tensor],
    /// Running means of the gradients, which are changed.
    pub means: &'t [Tensor],
    /// Running means of their squares, which are changed.
    pub squares: &'t [Tensor],
    /// The number of the step, from 1; 32-bit.
    pub step: &'t Tensor,
    /// The learning rate.
    pub lr: f64,
    /// The decay rates of the means.
    pub betas: [f64; 2],
    /// The share, times the learning rate, by which weights shrink.
    pub weight_decay: f64,
    /// Added to the denominator.
    pub epsilon: f64,
    /// What the gradients are too large by. `(1)` or no axes, 32-bit
    pub gradient_scale: Option<&'t Tensor>,
    /// Where it is 1, nothing is changed. `(1)` or no axes, 32-bit
    pub found_inf: Option<&'t Tensor>,
}

impl FusedAdamW<'_> {
    /// Takes the step.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn step(&self) -> Result<(), TchError> {
        let n = self.values.len();
        let [values, gradients, means, squares] = [self.values, self.gradients, self.means, self.squares]
            .map(|tensors| {
                assert_eq!(tensors.len(), n, "lists of the same length");
                pointers(tensors)
            });
        let [beta1, beta2] = self.betas;
        let numbers = [self.lr, beta1, beta2, self.weight_decay, self.epsilon];
        let option = |tensor: Option<&Tensor>| tensor.map_or(ptr::null_mut(), pointer);
        // SAFETY: the lists live until the call is over and have the length that is said.
        checked(unsafe {
            vodka_fused_adamw(
                values.as_ptr(),
                gradients.as_ptr(),
                means.as_ptr(),
                squares.as_ptr(),
                n as i64,
                pointer(self.step),
                numbers.as_ptr(),
                option(self.gradient_scale),
                option(self.found_inf),
            )
        })
    }
}

/// The Euclidean norm of each tensor.
///
/// # Errors
/// What libtorch says.
pub fn norms(tensors: &[Tensor]) -> Result<Vec<Tensor>, TchError> {
    let mut norms = vec![ptr::null_mut(); tensors.len()];
    let list = pointers(tensors);
    // SAFETY: both lists live until the call is over and have the length that is said.
    checked(unsafe { vodka_norms(list.as_ptr(), list.len() as i64, norms.as_mut_ptr()) })?;
    // SAFETY: each is a tensor that is ours.
    Ok(norms.into_iter().map(|norm| unsafe { Tensor::from_ptr(norm) }).collect())
}

/// Multiplies all tensors by one number that is on their device.
///
/// # Errors
/// What libtorch says.
pub fn scale(tensors: &[Tensor], factor: &Tensor) -> Result<(), TchError> {
    let list = pointers(tensors);
    // SAFETY: the list lives until the call is over and has the length that is said.
    checked(unsafe { vodka_scale(list.as_ptr(), list.len() as i64, pointer(factor)) })
}

/// softmax(q kᵀ / √d) v for each head, for narrow heads on a processor: `native/attention.cpp`.
///
/// `q (B, L, C)`, `k (B, M, C)`, `v (B, M, C)` to `(B, L, C)`; all 32-bit on the processor.
///
/// # Errors
/// What libtorch says.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: i64) -> Result<Tensor, TchError> {
    let mut output = ptr::null_mut();
    // SAFETY: three tensors, and a place for one that is ours afterwards.
    checked(unsafe { vodka_attention(pointer(q), pointer(k), pointer(v), heads, &raw mut output) })?;
    // SAFETY: as above.
    Ok(unsafe { Tensor::from_ptr(output) })
}

/// Up to 255 increasing bounds, made ready for [`Bounds::codes`], which is `bucketize` on a processor and many times as
/// fast.
#[derive(Debug)]
pub struct Bounds {
    /// 32-bit.
    bounds: Tensor,
    /// How many bounds are less than the least of the values that begin with these 17 bits: sign, exponent and 8 of the
    /// fraction. `(1 << 17)`, `Uint8`
    firsts: Tensor,
}

impl Bounds {
    /// `None` where two bounds have their first 17 bits in common.
    ///
    /// # Panics
    /// When there are none, or more than 255.
    pub fn new(bounds: &[f32]) -> Option<Self> {
        assert!((1..=255).contains(&bounds.len()), "{} bounds", bounds.len());
        let cells: Vec<_> = bounds.iter().map(|bound| bound.to_bits() >> 15).collect();
        if cells.windows(2).any(|pair| pair[0] == pair[1]) {
            return None;
        }
        // As `bucketize` has it, NaN is above all bounds. The last bound is compared with in any case.
        let below = |value: f32| {
            let less = bounds.partition_point(|bound| *bound < value || value.is_nan());
            less.min(bounds.len() - 1) as u8
        };
        let least =
            |cell: u32| f32::from_bits(if cell >> 16 == 0 { cell << 15 } else { (cell << 15) | 0x7fff });
        let is_infinite = |cell: u32| cell & 0xffff == 0xff00;
        let firsts = (0..1 << 17).map(|cell: u32| match is_infinite(cell) {
            true => below(f32::from_bits(cell << 15)),
            false => below(least(cell)),
        });
        let firsts = Tensor::from_slice(&firsts.collect::<Vec<_>>());
        Some(Self { bounds: Tensor::from_slice(bounds), firsts })
    }

    /// For each value how many of the bounds are less than it; all of them for a quiet NaN. 32-bit on a processor to `Uint8`, in
    /// the same shape.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn codes(&self, values: &Tensor) -> Result<Tensor, TchError> {
        let mut codes = ptr::null_mut();
        let [values, firsts, bounds] = [values, &self.firsts, &self.bounds].map(pointer);
        // SAFETY: three tensors, and a place for one that is ours afterwards; each of the firsts is less than the number
        // of bounds.
        checked(unsafe { vodka_codes(values, firsts, bounds, &raw mut codes) })?;
        // SAFETY: as above.
        Ok(unsafe { Tensor::from_ptr(codes) })
    }
}

/// Forgets the gradients of parameters; with `keep` their memory stays, and they are 0.
///
/// # Errors
/// What libtorch says.
pub fn clear_gradients(parameters: &[Tensor], keep: bool) -> Result<(), TchError> {
    let list = pointers(parameters);
    // SAFETY: the list lives until the call is over and has the length that is said.
    checked(unsafe { vodka_clear(list.as_ptr(), list.len() as i64, keep.into()) })
}

/// Sets how GPUs compute, for the whole program: with TF32 in place of 32 bits, with the fastest convolutions that are
/// found by trying, and always the same.
///
/// `deterministic` goes before `benchmark`. cuBLAS wants `CUBLAS_WORKSPACE_CONFIG=:4096:8` in the environment for it.
///
/// # Errors
/// What libtorch says.
pub fn set_arithmetic(tf32: bool, benchmark: bool, deterministic: bool) -> Result<(), TchError> {
    // SAFETY: plain numbers.
    checked(unsafe { vodka_set_arithmetic(tf32.into(), benchmark.into(), deterministic.into()) })
}

/// While it lives, matrix products and convolutions of this thread are computed in 16 bits, as `torch.autocast` does.
#[derive(Debug)]
pub struct Autocast {
    cuda: c_int,
    before: [c_int; 2],
}

impl Autocast {
    /// In `kind` on the kind of device that `device` is; `None`: as the tensors are.
    ///
    /// # Panics
    /// When `kind` is neither `Half` nor `BFloat16`.
    pub fn enter(device: Device, kind: Option<Kind>) -> Self {
        let cuda = c_int::from(device.is_cuda());
        let [mut enabled, mut before] = [0; 2];
        // SAFETY: both numbers live until the call is over.
        let got = checked(unsafe { vodka_autocast_get(cuda, &raw mut enabled, &raw mut before) });
        got.expect("processors and CUDA have autocast");
        let number = kind.map_or(before, |kind| match kind {
            Kind::Half => 5,
            Kind::BFloat16 => 15,
            other => panic!("autocast to {other:?}"),
        });
        // SAFETY: plain numbers.
        let set = checked(unsafe { vodka_autocast_set(cuda, kind.is_some().into(), number) });
        set.expect("processors and CUDA have autocast");
        // SAFETY: counts.
        unsafe { vodka_autocast_enter() };
        Self { cuda, before: [enabled, before] }
    }
}

impl Drop for Autocast {
    fn drop(&mut self) {
        let [enabled, kind] = self.before;
        // SAFETY: counts, and forgets the copies of weights at the outermost; then plain numbers that were there before.
        unsafe { vodka_autocast_leave() };
        let set = checked(unsafe { vodka_autocast_set(self.cuda, enabled, kind) });
        set.expect("they were there before");
    }
}

/// A part of a network that can be computed again when gradients go back through it.
#[derive(Debug)]
pub struct Block<B>(Arc<B>);

// SAFETY: as tch's tensors, which may go to another thread while others share what is in them.
unsafe impl<B: Send> Send for Block<B> {}

impl<B> Deref for Block<B> {
    type Target = B;

    fn deref(&self) -> &B {
        &self.0
    }
}

impl<B: 'static> Block<B> {
    /// Wraps a part.
    pub fn new(part: B) -> Self {
        Self(Arc::new(part))
    }

    /// `forward(part, inputs)`, of which only inputs and output are remembered; when gradients go back through it, it is
    /// computed once more. Gradient checkpointing, as `torch.utils.checkpoint` with `use_reentrant=True`.
    ///
    /// Where no input asks for gradients, everything is remembered: libtorch would not come back for the parameters.
    ///
    /// # Panics
    /// When libtorch refuses, as tch's own calls do.
    pub fn recompute(&self, inputs: &[&Tensor], forward: fn(&B, &[Tensor]) -> Tensor) -> Tensor {
        if !inputs.iter().any(|input| input.requires_grad()) {
            return forward(&self.0, &inputs.iter().map(|input| input.shallow_clone()).collect::<Vec<_>>());
        }
        let kept = Box::new(Kept { part: Arc::clone(&self.0), forward });
        let block = RawBlock { data: Box::into_raw(kept).cast(), call: call::<B>, drop: free::<B> };
        let list: Vec<_> = inputs.iter().map(|input| pointer(input)).collect();
        let mut output = ptr::null_mut();
        // SAFETY: the list lives until the call is over; the block is given away, and freed by `drop`. Whoever computes
        // it again, a thread of libtorch's engine maybe, does so while the caller of `backward` waits, and only reads.
        let done = checked(unsafe {
            vodka_recompute(&raw const block, list.as_ptr(), list.len() as i64, &raw mut output)
        });
        done.expect("a part of a network");
        // SAFETY: a tensor that is ours.
        unsafe { Tensor::from_ptr(output) }
    }
}

/// What is kept of a block until gradients have gone through it.
struct Kept<B> {
    part: Arc<B>,
    forward: fn(&B, &[Tensor]) -> Tensor,
}

unsafe extern "C" fn call<B>(
    data: *mut c_void,
    inputs: *mut *mut C_tensor,
    n: i64,
    output: *mut C_tensor,
) -> Text {
    // SAFETY: `data` is what `recompute` gave away, not freed yet.
    let kept = unsafe { &*data.cast::<Kept<B>>() };
    let compute = || {
        // SAFETY: a list of `n` tensors.
        let list = unsafe { std::slice::from_raw_parts(inputs, n as usize) };
        // SAFETY: each is a tensor; the copies share what is in it.
        let inputs: Vec<_> = list.iter().map(|input| unsafe { Tensor::clone_from_ptr(*input) }).collect();
        (kept.forward)(&kept.part, &inputs)
    };
    match catch_unwind(AssertUnwindSafe(compute)) {
        Ok(value) => {
            // SAFETY: two tensors.
            unsafe { vodka_put(output, pointer(&value)) };
            ptr::null_mut()
        }
        Err(panic) => {
            let text = CString::new(crate::failure::said(&*panic).replace('\0', " ")).unwrap_or_default();
            // SAFETY: a text that ends with 0; the copy is the caller's to free.
            unsafe { vodka_text(text.as_ptr()) }
        }
    }
}

unsafe extern "C" fn free<B>(data: *mut c_void) {
    // SAFETY: `data` is what `recompute` gave away; this is called once.
    drop(unsafe { Box::from_raw(data.cast::<Kept<B>>()) });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floats(values: &[f32]) -> Tensor {
        Tensor::from_slice(values)
    }

    #[test]
    fn norms_and_scaling_are_of_each_tensor() {
        let tensors = [floats(&[3.0, 4.0]), floats(&[5.0])];
        let found: Vec<_> = norms(&tensors).unwrap().iter().map(|norm| norm.double_value(&[])).collect();
        assert_eq!(found, [5.0, 5.0]);
        scale(&tensors, &Tensor::from(0.5_f32)).unwrap();
        assert_eq!(tensors, [floats(&[1.5, 2.0]), floats(&[2.5])]);
    }

    #[test]
    fn adamw_takes_no_step_where_something_is_infinite() {
        let one = || vec![floats(&[1.0, -1.0])];
        let (values, means, squares) = (one(), vec![floats(&[0.0; 2])], vec![floats(&[0.0; 2])]);
        let gradients = vec![floats(&[f32::NAN, 1.0])];
        let found = Tensor::from(1.0_f32);
        let step = Tensor::from(1.0_f32);
        let mut adamw = FusedAdamW {
            values: &values,
            gradients: &gradients,
            means: &means,
            squares: &squares,
            step: &step,
            lr: 0.1,
            betas: [0.9, 0.99],
            weight_decay: 0.0,
            epsilon: 1e-8,
            gradient_scale: None,
            found_inf: Some(&found),
        };
        adamw.step().unwrap();
        assert_eq!(values, one());
        assert_eq!(means[0], floats(&[0.0; 2]));
        let gradients = one();
        (adamw.gradients, adamw.found_inf) = (&gradients, None);
        adamw.step().unwrap();
        // The first step of Adam is as long as the rate.
        let difference = (&values[0] - floats(&[0.9, -0.9])).abs().max().double_value(&[]);
        assert!(difference < 1e-6, "{difference}");
    }

    #[test]
    fn codes_are_those_of_bucketize() {
        let bounds: Vec<_> = (-127_i32..128)
            .map(|i| i.signum() as f32 * (10.0_f32).powf((i.abs() - 127) as f32 / 18.0))
            .collect();
        let ready = Bounds::new(&bounds).unwrap();
        let around = |value: f32| [value.next_down(), value, value.next_up()];
        let ends = (0..1_u32 << 17).flat_map(|cell| [cell << 15, (cell << 15) | 0x7fff]).map(f32::from_bits);
        let quiet = |value: &f32| !value.is_nan() || value.to_bits() & 0x40_0000 != 0;
        let values: Vec<_> = ends.filter(quiet).chain(bounds.iter().copied().flat_map(around)).collect();
        let values = Tensor::from_slice(&values);
        let expected = values.bucketize(&Tensor::from_slice(&bounds), true, false).to_kind(Kind::Uint8);
        assert_eq!(ready.codes(&values).unwrap(), expected);
        let transposed = values.slice(0, None, 1 << 10, 1).view([32, 32]).transpose(0, 1);
        let expected = transposed.contiguous().bucketize(&Tensor::from_slice(&bounds), true, false);
        assert_eq!(ready.codes(&transposed).unwrap(), expected.to_kind(Kind::Uint8));
        assert!(Bounds::new(&[1.0, 1.001]).is_none());
        assert!(ready.codes(&values.to_kind(Kind::Double)).is_err());
    }

    #[test]
    fn attention_of_narrow_heads_is_that_of_libtorch() {
        tch::manual_seed(3);
        for (queries, keys, channels, heads) in
            [(5, 77, 24, 3), (64, 64, 64, 2), (1, 1, 8, 8), (33, 16, 36, 4)]
        {
            let random = |n: i64| Tensor::randn([2, n, channels], (Kind::Float, Device::Cpu)) * 3.0;
            let inputs = [random(queries), random(keys), random(keys)];
            let upstream = random(queries);
            let run = |ours: bool| {
                let [q, k, v] = inputs.each_ref().map(|input| input.copy().set_requires_grad(true));
                let split = |x: &Tensor| x.unflatten(-1, [heads, -1]).transpose(1, 2);
                let out = match ours {
                    true => attention(&q, &k, &v, heads).unwrap(),
                    false => {
                        let (q, k, v) = (split(&q), split(&k), split(&v));
                        let none = None::<&Tensor>;
                        let y =
                            Tensor::scaled_dot_product_attention(&q, &k, &v, none, 0.0, false, None, false);
                        y.transpose(1, 2).flatten(2, 3)
                    }
                };
                (&out * &upstream).sum(Kind::Float).backward();
                [out.detach(), q.grad(), k.grad(), v.grad()]
            };
            for (a, b) in run(true).iter().zip(&run(false)) {
                let error = ((a - b).norm() / (b.norm() + 1e-6)).double_value(&[]);
                assert!(error < 5e-6, "{queries} {keys} {channels} {heads}: {error:e}");
            }
        }
    }

    #[test]
    fn attention_hides_no_number_that_is_none() {
        let ones = |n: i64| Tensor::ones([1, n, 8], (Kind::Float, Device::Cpu));
        for place in 0..3 {
            for bad in [f64::NAN, f64::INFINITY] {
                let inputs = [ones(2), ones(20), ones(20)];
                let _ = inputs[place].get(0).get(1).get(3).fill_(bad);
                let out = attention(&inputs[0], &inputs[1], &inputs[2], 1).unwrap();
                assert!(!out.sum(Kind::Double).double_value(&[]).is_finite(), "{place} {bad}");
            }
        }
    }

    #[test]
    fn autocast_is_as_before_when_it_is_left() {
        let kind = || {
            let matrix = Tensor::ones([2, 2], (Kind::Float, Device::Cpu));
            matrix.matmul(&matrix).kind()
        };
        {
            let _outer = Autocast::enter(Device::Cpu, Some(Kind::BFloat16));
            assert_eq!(kind(), Kind::BFloat16);
            {
                let _inner = Autocast::enter(Device::Cpu, None);
                assert_eq!(kind(), Kind::Float);
            }
            assert_eq!(kind(), Kind::BFloat16);
        }
        assert_eq!(kind(), Kind::Float);
    }

    #[test]
    fn a_recomputed_block_has_the_same_gradients() {
        let weight = Block::new(floats(&[2.0, 3.0]).set_requires_grad(true));
        let input = floats(&[0.5, -0.5]).set_requires_grad(true);
        let forward = |weight: &Tensor, inputs: &[Tensor]| (weight * &inputs[0]).sin();
        let gradients = |output: Tensor| {
            (output.square()).sum(Kind::Float).backward();
            let found = [input.grad().copy(), weight.grad().copy()];
            let _ = (input.grad().zero_(), weight.grad().zero_());
            found
        };
        let plain = gradients(forward(&weight, &[input.shallow_clone()]));
        assert_eq!(gradients(weight.recompute(&[&input], forward)), plain);
        // What the block does is freed with the graph.
        assert_eq!(Arc::strong_count(&weight.0), 1);
    }

    #[test]
    fn a_block_that_fails_is_an_error_and_not_the_end() {
        let weight = Block::new(floats(&[2.0, 3.0]).set_requires_grad(true));
        let wrong = |weight: &Tensor, inputs: &[Tensor]| weight * inputs[0].view([3]);
        let result = crate::catch(|| weight.recompute(&[&*weight], wrong));
        assert!(result.unwrap_err().to_string().contains("shape '[3]' is invalid"));
    }
}
