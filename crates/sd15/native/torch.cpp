// What libtorch can do and tch has no call for. The safe side is src/native.rs.
//
// Every function gives null, or what went wrong as a text to be freed. Tensors come as pointers to at::Tensor, which is
// what tch has; nothing here keeps one.
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/_foreach_zero.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include "each.h"

using at::Tensor;

namespace {

template <typename Act> char *tell(Act act) {
    try {
        act();
        return nullptr;
    } catch (const c10::Error &error) {
        return strdup(error.what_without_backtrace());
    } catch (const std::exception &error) {
        return strdup(error.what());
    } catch (...) {
        return strdup("unknown error");
    }
}

std::vector<Tensor> list(Tensor **tensors, int64_t n) {
    std::vector<Tensor> result;
    result.reserve(n);
    for (int64_t i = 0; i < n; i++)
        result.push_back(*tensors[i]);
    return result;
}

std::optional<Tensor> option(Tensor *tensor) {
    return tensor ? std::optional<Tensor>(*tensor) : std::nullopt;
}

bool same_layout(const Tensor &a, const Tensor &b) {
    if (a.sizes() != b.sizes())
        return false;
    for (int64_t axis = 0; axis < a.dim(); axis++)
        if (a.size(axis) > 1 && a.stride(axis) != b.stride(axis))
            return false;
    return true;
}

c10::DeviceType device_type(int cuda) { return cuda ? at::kCUDA : at::kCPU; }

// How this thread computes, to be taken up by another or later.
struct Autocast {
    c10::DeviceType device;
    bool enabled;
    at::ScalarType kind;

    static Autocast of(c10::DeviceType device) {
        return {device, at::autocast::is_autocast_enabled(device), at::autocast::get_autocast_dtype(device)};
    }
    void set() const {
        at::autocast::set_autocast_enabled(device, enabled);
        at::autocast::set_autocast_dtype(device, kind);
    }
};

struct WithAutocast {
    Autocast before;
    explicit WithAutocast(const Autocast &wanted) : before(Autocast::of(wanted.device)) {
        wanted.set();
        at::autocast::increment_nesting();
    }
    ~WithAutocast() {
        if (at::autocast::decrement_nesting() == 0)
            at::autocast::clear_cache();
        before.set();
    }
};

} // namespace

extern "C" {

// A part of a network as Rust has it: `call` computes one tensor from n, gives null or an error, and `drop` frees it.
struct vodka_block {
    void *data;
    char *(*call)(void *data, Tensor **inputs, int64_t n, Tensor *output);
    void (*drop)(void *data);
};

} // extern "C"

namespace {

struct Block : torch::CustomClassHolder {
    vodka_block block;
    explicit Block(const vodka_block &block) : block(block) {}
    ~Block() override { block.drop(block.data); }

    Tensor operator()(std::vector<Tensor> &inputs) const {
        std::vector<Tensor *> pointers;
        for (auto &input : inputs)
            pointers.push_back(&input);
        Tensor output;
        if (char *text = block.call(block.data, pointers.data(), pointers.size(), &output)) {
            std::string error(text);
            free(text);
            throw std::runtime_error(error);
        }
        return output;
    }
};

// Computes a block without remembering what is in it, and once more, remembering, when gradients go back through it.
struct Recompute : torch::autograd::Function<Recompute> {
    static Tensor forward(torch::autograd::AutogradContext *context, const c10::intrusive_ptr<Block> &block,
                          at::TensorList inputs) {
        auto device = inputs[0].device().type();
        auto autocast = Autocast::of(device);
        context->saved_data["block"] = c10::IValue::make_capsule(block);
        context->saved_data["device"] = static_cast<int64_t>(device);
        context->saved_data["autocast"] = autocast.enabled;
        context->saved_data["kind"] = static_cast<int64_t>(autocast.kind);
        context->save_for_backward(inputs.vec());
        std::vector<Tensor> all = inputs.vec();
        return (*block)(all);
    }

    static torch::autograd::tensor_list backward(torch::autograd::AutogradContext *context,
                                                 torch::autograd::tensor_list gradients) {
        auto capsule = context->saved_data["block"].toCapsule();
        auto block = static_cast<Block *>(capsule.get());
        Autocast autocast{static_cast<c10::DeviceType>(context->saved_data["device"].toInt()),
                          context->saved_data["autocast"].toBool(),
                          static_cast<at::ScalarType>(context->saved_data["kind"].toInt())};
        std::vector<Tensor> inputs;
        for (auto &saved : context->get_saved_variables()) {
            auto input = saved.detach();
            inputs.push_back(input.set_requires_grad(saved.requires_grad()));
        }
        Tensor output;
        {
            at::AutoGradMode remember(true);
            WithAutocast as_before(autocast);
            output = (*block)(inputs);
        }
        // The parameters' gradients are added to where they are kept, those of the inputs go on.
        torch::autograd::backward({output}, {gradients[0]});
        torch::autograd::tensor_list result{Tensor()};
        for (auto &input : inputs)
            result.push_back(input.grad());
        return result;
    }
};

} // namespace

extern "C" {

// AdamW of all parameters in a few passes, which a step of a network of 700 tensors needs on a GPU; on a processor it
// reads and writes everything once. `step` counts this step already.
char *vodka_fused_adamw(Tensor **values, Tensor **gradients, Tensor **means, Tensor **squares, int64_t n, Tensor *step,
                        const double *numbers, Tensor *gradient_scale, Tensor *found_inf) {
    return tell([&] {
        at::NoGradGuard no_grad;
        auto all = list(values, n), grads = list(gradients, n), first = list(means, n), second = list(squares, n);
        // The kernels go through memory, whatever the axes; autograd lays gradients out as their parameters.
        for (int64_t i = 0; i < n; i++)
            for (auto &other : {grads[i], first[i], second[i]})
                TORCH_CHECK(same_layout(other, all[i]), "parameter ", i, " has another layout than its gradient or state");
        std::vector<Tensor> steps(n, *step);
        at::_fused_adamw_(all, grads, first, second, {}, steps, numbers[0], numbers[1], numbers[2], numbers[3],
                          numbers[4], false, false, option(gradient_scale), option(found_inf));
    });
}

// The norm of each tensor, in a few kernels.
char *vodka_norms(Tensor **tensors, int64_t n, Tensor **norms) {
    return tell([&] {
        at::NoGradGuard no_grad;
        auto found = at::_foreach_norm(list(tensors, n), 2);
        for (int64_t i = 0; i < n; i++)
            norms[i] = new Tensor(found[i]);
    });
}

// All tensors times one number that is on the device, in a few kernels.
char *vodka_scale(Tensor **tensors, int64_t n, Tensor *factor) {
    return tell([&] {
        at::NoGradGuard no_grad;
        at::_foreach_mul_(list(tensors, n), *factor);
    });
}

// Forgets the gradients of parameters: their memory is free for the next step, and no pass sets them to 0. Or sets them
// to 0, where they must stay in their place.
char *vodka_clear(Tensor **parameters, int64_t n, int keep) {
    return tell([&] {
        at::NoGradGuard no_grad;
        std::vector<Tensor> kept;
        for (auto &parameter : list(parameters, n)) {
            auto &gradient = parameter.mutable_grad();
            if (!gradient.defined())
                continue;
            if (keep)
                kept.push_back(gradient.detach());
            else
                gradient.reset();
        }
        if (!kept.empty())
            at::_foreach_zero_(kept);
    });
}

// For each value how many of the bounds are less than it: `bucketize(values, bounds)` on a processor. `firsts` says it for
// the least value of those that have the upper 17 bits in common, of which one bound at most is between two.
char *vodka_codes(Tensor *values, Tensor *firsts, Tensor *bounds, Tensor **codes) {
    return tell([&] {
        TORCH_CHECK(values->is_cpu(), "values on a processor");
        const auto all = values->contiguous();
        auto found = at::empty(all.sizes(), all.options().dtype(at::kByte));
        const float *from = all.data_ptr<float>(), *bound = bounds->data_ptr<float>();
        const uint8_t *first = firsts->data_ptr<uint8_t>();
        uint8_t *to = found.data_ptr<uint8_t>();
        const int64_t n = all.numel(), at_once = 1 << 15;
        each((n + at_once - 1) / at_once, [&](int64_t part) {
            for (int64_t i = part * at_once, end = std::min(n, i + at_once); i < end; i++) {
                uint32_t bits;
                memcpy(&bits, from + i, sizeof bits);
                const uint8_t code = first[bits >> 15];
                to[i] = code + !(bound[code] >= from[i]);
            }
        });
        *codes = new Tensor(found);
    });
}

// Which kind matrix products and convolutions are computed in, on one kind of device and in this thread. tch knows
// autocast only as on or off.
char *vodka_autocast_get(int cuda, int *enabled, int *kind) {
    return tell([&] {
        auto now = Autocast::of(device_type(cuda));
        *enabled = now.enabled;
        *kind = static_cast<int>(now.kind);
    });
}

char *vodka_autocast_set(int cuda, int enabled, int kind) {
    return tell([&] { Autocast{device_type(cuda), enabled != 0, static_cast<at::ScalarType>(kind)}.set(); });
}

// Between these the 16-bit copies of weights are kept, and made once.
void vodka_autocast_enter() { at::autocast::increment_nesting(); }

void vodka_autocast_leave() {
    if (at::autocast::decrement_nesting() == 0)
        at::autocast::clear_cache();
}

// How a GPU computes in 32 bits, whether it looks for the fastest convolutions, and whether it may differ from run to
// run.
char *vodka_set_arithmetic(int tf32, int benchmark, int deterministic) {
    return tell([&] {
        auto &context = at::globalContext();
        context.setAllowTF32CuBLAS(tf32 != 0);
        context.setAllowTF32CuDNN(tf32 != 0);
        context.setBenchmarkCuDNN(benchmark != 0 && deterministic == 0);
        context.setDeterministicCuDNN(deterministic != 0);
        context.setDeterministicAlgorithms(deterministic != 0, false);
        // Filling what is going to be overwritten costs time and changes nothing that is read.
        context.setDeterministicFillUninitializedMemory(false);
    });
}

// The block's output, remembered without what is in between. `block` is dropped when it is not needed any more, also
// after an error.
char *vodka_recompute(const vodka_block *block, Tensor **inputs, int64_t n, Tensor **output) {
    auto shared = c10::make_intrusive<Block>(*block);
    return tell([&] { *output = new Tensor(Recompute::apply(shared, at::TensorList(list(inputs, n)))); });
}

// Puts a tensor where the caller of a block expects it.
void vodka_put(Tensor *place, Tensor *value) { *place = *value; }

char *vodka_text(const char *text) { return strdup(text); }

void vodka_free(char *text) { free(text); }

} // extern "C"
