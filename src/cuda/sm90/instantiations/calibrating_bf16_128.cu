#include "cuda/sm90/launch.cuh"

namespace bsfa::cuda::sm90 {
template Status launch_attention<__nv_bfloat16, Form::kCalibrating, 128, false>(const Arguments&,
                                                                                int, cudaStream_t);
}  // namespace bsfa::cuda::sm90
