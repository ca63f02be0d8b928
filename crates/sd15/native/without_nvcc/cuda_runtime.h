// Stands in for NVIDIA's header, which wants those of the compiler nvcc: only the functions for the host are used here.
#pragma once
#include <cuda_runtime_api.h>
