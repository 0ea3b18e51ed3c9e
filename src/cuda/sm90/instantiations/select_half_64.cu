#include "cuda/sm90/selector.cuh"

namespace bsfa::cuda::sm90 {
template Status launch_selector<__half, 64>(const SelectorArguments&, int, cudaStream_t);
}  // namespace bsfa::cuda::sm90
