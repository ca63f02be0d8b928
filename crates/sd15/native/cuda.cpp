// What is in libtorch's half for CUDA and tch has no call for: CUDA graphs, and how much memory was used. A library of its
// own, whose open symbols are those of libtorch_cuda: it is opened behind that one, and nowhere else. The safe side is
// src/cuda.rs. Not run yet: no machine with a GPU was there when it was written.
#include <cstring>
#include <optional>

#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

namespace {

template <typename Act> char *tell(Act act) {
    try {
        act();
        return nullptr;
    } catch (const c10::Error &error) {
        return strdup(error.what_without_backtrace());
    } catch (const std::exception &error) {
        return strdup(error.what());
    }
}

void synchronise() { C10_CUDA_CHECK(cudaDeviceSynchronize()); }

// All graphs take their memory from one pool: they run one after the other, and nothing of one is wanted after another.
c10::cuda::MempoolId_t pool() {
    static const c10::cuda::MempoolId_t id = at::cuda::graph_pool_handle();
    return id;
}

struct Recording {
    at::cuda::CUDAGraph graph;
    c10::cuda::CUDAStream side;
    std::optional<c10::cuda::CUDAStreamGuard> guard;

    explicit Recording(int device) : side(c10::cuda::getStreamFromPool(false, device)) {}
};

} // namespace

extern "C" {

char *vodka_graph_new(int device, void **recording) {
    return tell([&] { *recording = new Recording(device); });
}

// From here on what this thread asks for goes to a stream of its own, as in the steps before a recording.
char *vodka_graph_aside(void *recording) {
    return tell([&] {
        synchronise();
        auto &self = *static_cast<Recording *>(recording);
        self.guard.emplace(self.side);
    });
}

// Back to the stream from before.
char *vodka_graph_back(void *recording) {
    return tell([&] {
        static_cast<Recording *>(recording)->guard.reset();
        synchronise();
    });
}

// From here on it is written down and not done; on the stream of its own.
char *vodka_graph_begin(void *recording) {
    return tell([&] {
        static_cast<Recording *>(recording)->graph.capture_begin(pool(), cudaStreamCaptureModeThreadLocal);
    });
}

char *vodka_graph_end(void *recording) {
    return tell([&] { static_cast<Recording *>(recording)->graph.capture_end(); });
}

char *vodka_graph_replay(void *recording) {
    return tell([&] { static_cast<Recording *>(recording)->graph.replay(); });
}

void vodka_graph_free(void *recording) { delete static_cast<Recording *>(recording); }

// The most memory that tensors had at a time, in bytes.
char *vodka_cuda_peak(int device, unsigned long long *bytes) {
    return tell([&] {
        auto stats = c10::cuda::CUDACachingAllocator::getDeviceStats(device);
        *bytes = stats.allocated_bytes[0].peak;
    });
}

// What the driver has left on a device, and what the allocator holds without using it, in bytes.
char *vodka_cuda_available(int device, unsigned long long *bytes) {
    return tell([&] {
        c10::cuda::CUDAGuard guard(device);
        size_t left = 0;
        size_t all = 0;
        C10_CUDA_CHECK(cudaMemGetInfo(&left, &all));
        auto stats = c10::cuda::CUDACachingAllocator::getDeviceStats(device);
        *bytes = left + (stats.reserved_bytes[0].current - stats.allocated_bytes[0].current);
    });
}

void vodka_cuda_free(char *text) { free(text); }

} // extern "C"
