#pragma once

// Functions that the CUDA kernels share with the host.
#if defined(__CUDACC__)
#define BSFA_HOST_DEVICE __host__ __device__
#else
#define BSFA_HOST_DEVICE
#endif
