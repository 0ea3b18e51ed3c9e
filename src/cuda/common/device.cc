#include "cuda/common/device.hpp"

#include "core/status.hpp"

namespace bsfa::cuda {

Status check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return {};
  cudaGetLastError();  // so that the caller's own next check does not find it again
  return {ErrorCode::kRuntime, text(what, ": ", cudaGetErrorString(error))};
}

Status device_facts(int index, DeviceFacts* facts) {
  int count = 0;
  BSFA_RETURN_IF_ERROR(check(cudaGetDeviceCount(&count), "cudaGetDeviceCount"));
  if (index < 0 || index >= count) {
    return invalid_argument("device.index is ", index, "; this machine has ", count,
                            " CUDA devices");
  }
  const struct {
    cudaDeviceAttr attribute;
    int* value;
  } wanted[] = {
      {cudaDevAttrComputeCapabilityMajor, &facts->major},
      {cudaDevAttrComputeCapabilityMinor, &facts->minor},
      {cudaDevAttrMultiProcessorCount, &facts->multiprocessors},
      {cudaDevAttrMaxSharedMemoryPerBlockOptin, &facts->shared_bytes},
      {cudaDevAttrMaxSharedMemoryPerMultiprocessor, &facts->shared_bytes_per_multiprocessor},
      {cudaDevAttrL2CacheSize, &facts->l2_bytes},
  };
  for (const auto& item : wanted) {
    BSFA_RETURN_IF_ERROR(
        check(cudaDeviceGetAttribute(item.value, item.attribute, index), "cudaDeviceGetAttribute"));
  }
  return {};
}

std::string list_devices(std::string* reason) {
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess) {
    cudaGetLastError();
    *reason = cudaGetErrorString(error);
    return "";
  }
  if (count == 0) *reason = "the driver reports no device";
  std::string result;
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties;
    if (cudaGetDeviceProperties(&properties, i) != cudaSuccess) continue;
    result += text(i > 0 ? ", " : "", properties.name, " (", properties.major, ".",
                   properties.minor, ")");
  }
  return result;
}

namespace {

template <typename Predicate>
bool any_device_that(const Predicate& fits) {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();
    return false;
  }
  for (int i = 0; i < count; ++i) {
    DeviceFacts facts;
    if (device_facts(i, &facts).ok() && fits(facts)) return true;
  }
  return false;
}

}  // namespace

bool any_device(int major, int minor) {
  return any_device_that(
      [&](const DeviceFacts& facts) { return facts.major == major && facts.minor == minor; });
}

bool any_device_from(int major, int minor) {
  return any_device_that([&](const DeviceFacts& facts) {
    return facts.major > major || (facts.major == major && facts.minor >= minor);
  });
}

Status check_pointer(const char* name, const void* pointer, Device device) {
  if (pointer == nullptr) return {};
  cudaPointerAttributes attributes{};
  BSFA_RETURN_IF_ERROR(check(cudaPointerGetAttributes(&attributes, pointer), name));
  if (attributes.type == cudaMemoryTypeManaged) return {};
  if (attributes.type != cudaMemoryTypeDevice) {
    return invalid_argument(name, " points to host memory; expected memory of cuda device ",
                            device.index);
  }
  if (attributes.device != device.index) {
    return invalid_argument(name, " lies on cuda device ", attributes.device, "; device.index is ",
                            device.index);
  }
  return {};
}

CurrentDevice::CurrentDevice(int index) {
  int current = -1;
  status_ = check(cudaGetDevice(&current), "cudaGetDevice");
  if (!status_.ok() || current == index) return;
  status_ = check(cudaSetDevice(index), "cudaSetDevice");
  if (status_.ok()) previous_ = current;
}

CurrentDevice::~CurrentDevice() {
  if (previous_ >= 0) cudaSetDevice(previous_);
}

}  // namespace bsfa::cuda
