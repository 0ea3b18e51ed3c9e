#include "cuda/sm90/selector.cuh"

namespace bsfa::cuda::sm90 {
template Status launch_selector<__nv_bfloat16, 128>(const SelectorArguments&, int, cudaStream_t);
}  // namespace bsfa::cuda::sm90
