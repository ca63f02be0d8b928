// Loops of ours on libtorch's threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <dlfcn.h>

#include <ATen/Parallel.h>

// Does `act(i)` for 0 to `count` on libtorch's threads: those of the OpenMP that it brings, which nothing of ours links.
template <typename Act> inline void each(int64_t count, const Act &act) {
    struct Work {
        const Act &act;
        const int64_t count;
        std::atomic<int64_t> next{0};
    } work{act, count};
    auto some = [](void *data) {
        auto &work = *static_cast<Work *>(data);
        for (int64_t i; (i = work.next++) < work.count;)
            work.act(i);
    };
    using Parallel = void (*)(void (*)(void *), void *, unsigned, unsigned);
    static const auto parallel = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    const auto threads = std::min<int64_t>(at::get_num_threads(), count);
    if (parallel && threads > 1 && !at::in_parallel_region())
        parallel(some, &work, threads, 0);
    else
        some(&work);
}
