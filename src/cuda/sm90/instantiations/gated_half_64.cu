#include "cuda/sm90/launch.cuh"

namespace bsfa::cuda::sm90 {
template Status launch_attention<__half, Form::kGated, 64, false>(const Arguments&, int,
                                                                  cudaStream_t);
template Status launch_attention<__half, Form::kGated, 64, true>(const Arguments&, int,
                                                                 cudaStream_t);
}  // namespace bsfa::cuda::sm90
