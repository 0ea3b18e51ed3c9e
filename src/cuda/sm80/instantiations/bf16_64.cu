#include "cuda/sm80/instantiate.cuh"

namespace bsfa::cuda::sm80 {

template cudaError_t launch_form<__nv_bfloat16, 64>(Form, bool, const Arguments&, int, cudaStream_t);

}  // namespace bsfa::cuda::sm80
