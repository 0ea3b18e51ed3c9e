#include "cuda/sm80/instantiate.cuh"

namespace bsfa::cuda::sm80 {

template cudaError_t launch_form<__half, 96>(Form, bool, const Arguments&, int, cudaStream_t);

}  // namespace bsfa::cuda::sm80
