// Attention with narrow heads on a processor, forth and back, in 32 bits. libtorch's own multiplies matrices that are as
// narrow as a head; with 8 channels it spends half of a training step of a small UNet there. Here the keys lie along the
// vectors, whatever the width of a head.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/custom_function.h>

#include "each.h"

using at::Tensor;

namespace {

constexpr int64_t WIDTH = 16, ROWS = 4;
typedef float Vector __attribute__((vector_size(WIDTH * 4), aligned(4)));
typedef int Integers __attribute__((vector_size(WIDTH * 4), aligned(4)));

#if defined(__x86_64__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif
#define INLINE inline __attribute__((always_inline))

INLINE Vector at_place(const float *from) { return *reinterpret_cast<const Vector *>(from); }
INLINE void put(float *to, const Vector &value) { *reinterpret_cast<Vector *>(to) = value; }

INLINE float sum(const Vector &value) {
    float total = 0;
    for (int i = 0; i < WIDTH; i++)
        total += value[i];
    return total;
}

// e^x to the last two bits, for x up to 0; below -87 it is 1e-38 (Moshier, Cephes, expf).
INLINE Vector exponential(Vector x) {
    const Vector least = Vector{} - 87.3f;
    x = x > least ? x : least;
    const Vector shifted = x * 1.44269504088896341f + 12582912.0f;
    const Vector n = shifted - 12582912.0f;
    const Vector r = x - n * 0.693359375f + n * 2.12194440e-4f;
    Vector y = Vector{} + 1.9875691500e-4f;
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    Integers bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits - 0x4B400000 + 127) << 23;
    Vector power;
    memcpy(&power, &bits, sizeof power);
    return y * power;
}

// One head of one example: where its numbers are.
struct Head {
    int64_t queries, keys, padded, channels, width; // width: channels of all heads
    float scale;
};

// `rows` of `from`, `width` apart, as columns of `padded` numbers, the last of them 0.
INLINE void turn(const Head &head, const float *from, float *to) {
    for (int64_t c = 0; c < head.channels; c++) {
        for (int64_t j = 0; j < head.keys; j++)
            to[c * head.padded + j] = from[j * head.width + c];
        for (int64_t j = head.keys; j < head.padded; j++)
            to[c * head.padded + j] = 0;
    }
}

// The products of some rows of `left` with all columns: `ROWS` rows of `padded` numbers.
INLINE void products(const Head &head, const float *const *left, const float *columns, float *to) {
    for (int64_t j = 0; j < head.padded; j += WIDTH) {
        Vector found[ROWS] = {};
        for (int64_t c = 0; c < head.channels; c++) {
            const Vector column = at_place(columns + c * head.padded + j);
            for (int64_t row = 0; row < ROWS; row++)
                found[row] += left[row][c] * column;
        }
        for (int64_t row = 0; row < ROWS; row++)
            put(to + row * head.padded + j, found[row]);
    }
}

// What some rows weigh of all columns, added up: `channels` numbers a row, times `factor`.
INLINE void gather(const Head &head, const float *rows, const float *columns, int64_t count, const float *factors,
                   float *const *to) {
    for (int64_t c = 0; c < head.channels; c++) {
        Vector found[ROWS] = {};
        for (int64_t j = 0; j < head.padded; j += WIDTH) {
            const Vector column = at_place(columns + c * head.padded + j);
            for (int64_t row = 0; row < ROWS; row++)
                found[row] += at_place(rows + row * head.padded + j) * column;
        }
        for (int64_t row = 0; row < count; row++)
            to[row][c] = sum(found[row]) * factors[row];
    }
}

// `ROWS` rows from `from`; those behind the last one are the last one again.
template <typename Number> INLINE void pick(const Head &head, Number *from, int64_t first, Number **rows) {
    for (int64_t row = 0; row < ROWS; row++)
        rows[row] = from + std::min(first + row, head.queries - 1) * head.width;
}

FOR_EACH_PROCESSOR
void forth(const Head &head, const float *q, const float *k, const float *v, float *out, float *logs, float *buffer) {
    float *keys = buffer, *values = keys + head.channels * head.padded, *scores = values + head.channels * head.padded;
    turn(head, k, keys);
    turn(head, v, values);
    for (int64_t i = 0; i < head.queries; i += ROWS) {
        const float *queries[ROWS];
        float *outputs[ROWS], shares[ROWS];
        pick(head, q, i, queries);
        pick(head, out, i, outputs);
        products(head, queries, keys, scores);
        const int64_t count = std::min(ROWS, head.queries - i);
        for (int64_t row = 0; row < count; row++) {
            float *line = scores + row * head.padded;
            // 0, or not a number where something is not finite: that must stay so.
            Vector wrong = {};
            for (int64_t j = 0; j < head.padded; j += WIDTH)
                wrong += at_place(line + j) - at_place(line + j);
            const float spoiled = sum(wrong);
            for (int64_t j = head.keys; j < head.padded; j++)
                line[j] = -std::numeric_limits<float>::infinity();
            Vector most = at_place(line);
            for (int64_t j = WIDTH; j < head.padded; j += WIDTH) {
                const Vector other = at_place(line + j);
                most = most > other ? most : other;
            }
            float largest = most[0];
            for (int j = 1; j < WIDTH; j++)
                largest = std::max(largest, most[j]);
            Vector total = {};
            for (int64_t j = 0; j < head.padded; j += WIDTH) {
                const Vector weight = exponential((at_place(line + j) - largest) * head.scale);
                put(line + j, weight);
                total += weight;
            }
            const float all = sum(total);
            shares[row] = 1 / all + spoiled;
            logs[i + row] = largest * head.scale + std::log(all) + spoiled;
        }
        gather(head, scores, values, count, shares, outputs);
    }
}

FOR_EACH_PROCESSOR
void back(const Head &head, const float *q, const float *k, const float *v, const float *out, const float *logs,
          const float *gradient, float *dq, float *dk, float *dv, float *buffer) {
    const int64_t size = head.channels * head.padded;
    float *keys = buffer, *values = keys + size, *of_keys = values + size, *of_values = of_keys + size;
    float *weights = of_values + size, *changes = weights + ROWS * head.padded;
    turn(head, k, keys);
    turn(head, v, values);
    std::fill(of_keys, of_keys + 2 * size, 0.0f);
    for (int64_t i = 0; i < head.queries; i += ROWS) {
        const float *queries[ROWS], *gradients[ROWS], *outputs[ROWS];
        float *of_queries[ROWS], ones[ROWS];
        pick(head, q, i, queries);
        pick(head, gradient, i, gradients);
        pick(head, out, i, outputs);
        pick(head, dq, i, of_queries);
        products(head, queries, keys, weights);
        products(head, gradients, values, changes);
        const int64_t count = std::min(ROWS, head.queries - i);
        for (int64_t row = 0; row < ROWS; row++) {
            float *weight = weights + row * head.padded, *change = changes + row * head.padded;
            ones[row] = 1;
            if (row >= count) {
                std::fill(weight, weight + head.padded, 0.0f);
                std::fill(change, change + head.padded, 0.0f);
                continue;
            }
            float delta = 0;
            for (int64_t c = 0; c < head.channels; c++)
                delta += gradients[row][c] * outputs[row][c];
            const float log = logs[i + row];
            for (int64_t j = 0; j < head.padded; j += WIDTH) {
                const Vector share = exponential(at_place(weight + j) * head.scale - log) + (log - log);
                put(weight + j, share);
                put(change + j, share * (at_place(change + j) - delta) * head.scale);
            }
            for (int64_t j = head.keys; j < head.padded; j++)
                weight[j] = change[j] = 0;
        }
        gather(head, changes, keys, count, ones, of_queries);
        for (int64_t c = 0; c < head.channels; c++) {
            for (int64_t j = 0; j < head.padded; j += WIDTH) {
                Vector key = at_place(of_keys + c * head.padded + j), value = at_place(of_values + c * head.padded + j);
                for (int64_t row = 0; row < ROWS; row++) {
                    key += queries[row][c] * at_place(changes + row * head.padded + j);
                    value += gradients[row][c] * at_place(weights + row * head.padded + j);
                }
                put(of_keys + c * head.padded + j, key);
                put(of_values + c * head.padded + j, value);
            }
        }
    }
    for (int64_t j = 0; j < head.keys; j++) {
        for (int64_t c = 0; c < head.channels; c++) {
            dk[j * head.width + c] = of_keys[c * head.padded + j];
            dv[j * head.width + c] = of_values[c * head.padded + j];
        }
    }
}

Head head_of(const Tensor &q, const Tensor &k, int64_t heads) {
    const int64_t width = q.size(2), channels = width / heads, keys = k.size(1);
    return {q.size(1), keys, (keys + WIDTH - 1) / WIDTH * WIDTH, channels, width,
            static_cast<float>(1 / std::sqrt(static_cast<double>(channels)))};
}

struct Attention : torch::autograd::Function<Attention> {
    static Tensor forward(torch::autograd::AutogradContext *context, const Tensor &q_, const Tensor &k_,
                          const Tensor &v_, int64_t heads) {
        const auto q = q_.contiguous(), k = k_.contiguous(), v = v_.contiguous();
        const auto head = head_of(q, k, heads);
        auto out = at::empty_like(q), logs = at::empty({q.size(0), heads, head.queries}, q.options());
        const float *qs = q.data_ptr<float>(), *ks = k.data_ptr<float>(), *vs = v.data_ptr<float>();
        float *outs = out.data_ptr<float>(), *all_logs = logs.data_ptr<float>();
        each(q.size(0) * heads, [&](int64_t i) {
            const int64_t from = i / heads * head.queries * head.width + i % heads * head.channels;
            const int64_t of_keys = i / heads * head.keys * head.width + i % heads * head.channels;
            std::vector<float> buffer((2 * head.channels + ROWS) * head.padded);
            forth(head, qs + from, ks + of_keys, vs + of_keys, outs + from, all_logs + i * head.queries, buffer.data());
        });
        context->save_for_backward({q, k, v, out, logs});
        context->saved_data["heads"] = heads;
        return out;
    }

    static torch::autograd::tensor_list backward(torch::autograd::AutogradContext *context,
                                                 torch::autograd::tensor_list gradients) {
        const auto saved = context->get_saved_variables();
        const auto &q = saved[0], &k = saved[1], &v = saved[2], &out = saved[3], &logs = saved[4];
        const int64_t heads = context->saved_data["heads"].toInt();
        const auto head = head_of(q, k, heads);
        const auto gradient = gradients[0].contiguous();
        auto dq = at::empty_like(q), dk = at::empty_like(k), dv = at::empty_like(v);
        const float *qs = q.data_ptr<float>(), *ks = k.data_ptr<float>(), *vs = v.data_ptr<float>();
        const float *outs = out.data_ptr<float>(), *all_logs = logs.data_ptr<float>();
        const float *grads = gradient.data_ptr<float>();
        float *dqs = dq.data_ptr<float>(), *dks = dk.data_ptr<float>(), *dvs = dv.data_ptr<float>();
        each(q.size(0) * heads, [&](int64_t i) {
            const int64_t from = i / heads * head.queries * head.width + i % heads * head.channels;
            const int64_t of_keys = i / heads * head.keys * head.width + i % heads * head.channels;
            std::vector<float> buffer((4 * head.channels + 2 * ROWS) * head.padded);
            back(head, qs + from, ks + of_keys, vs + of_keys, outs + from, all_logs + i * head.queries, grads + from,
                 dqs + from, dks + of_keys, dvs + of_keys, buffer.data());
        });
        return {dq, dk, dv, Tensor()};
    }
};

} // namespace

// softmax(q k^T / sqrt(d)) v for each of some heads: 32-bit tensors of a processor, (B, L, C), (B, M, C), (B, M, C).
extern "C" char *vodka_attention(Tensor *q, Tensor *k, Tensor *v, int64_t heads, Tensor **out) {
    try {
        *out = new Tensor(Attention::apply(*q, *k, *v, heads));
        return nullptr;
    } catch (const c10::Error &error) {
        return strdup(error.what_without_backtrace());
    } catch (const std::exception &error) {
        return strdup(error.what());
    }
}
