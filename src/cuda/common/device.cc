#include "cuda/common/device.hpp"

#include <optional>
#include <vector>

#include "core/status.hpp"

namespace bsfa::cuda {

Status check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return {};
  cudaGetLastError();  // so that the caller's own next check does not find it again
  return {ErrorCode::kRuntime, text(what, ": ", cudaGetErrorString(error))};
}

namespace {

// What stays true of the devices of a process. Failures are not kept: the next call asks again.
struct KnownDevices {
  std::mutex mutex;
  int count = -1;  // not asked yet
  std::vector<std::optional<DeviceFacts>> facts;

  static KnownDevices& instance() {
    static auto* const known = new KnownDevices;  // outlives whatever runs while a process ends
    return *known;
  }

  cudaError_t ask_count() {
    if (count >= 0) return cudaSuccess;
    int found = 0;
    const cudaError_t error = cudaGetDeviceCount(&found);
    if (error != cudaSuccess) return error;
    count = found;
    facts.resize(static_cast<std::size_t>(found));
    return cudaSuccess;
  }
};

Status ask_device(int index, DeviceFacts* facts) {
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

// 0 where there is no driver.
int device_count() {
  KnownDevices& known = KnownDevices::instance();
  const std::lock_guard<std::mutex> lock(known.mutex);
  if (known.ask_count() == cudaSuccess) return known.count;
  cudaGetLastError();
  return 0;
}

}  // namespace

Status device_facts(int index, DeviceFacts* facts) {
  KnownDevices& known = KnownDevices::instance();
  const std::lock_guard<std::mutex> lock(known.mutex);
  BSFA_RETURN_IF_ERROR(check(known.ask_count(), "cudaGetDeviceCount"));
  if (index < 0 || index >= known.count) {
    return invalid_argument("device.index is ", index, "; this machine has ", known.count,
                            " CUDA devices");
  }
  std::optional<DeviceFacts>& stored = known.facts[static_cast<std::size_t>(index)];
  if (!stored) {
    DeviceFacts found;
    BSFA_RETURN_IF_ERROR(ask_device(index, &found));
    stored = found;
  }
  *facts = *stored;
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
  const int count = device_count();
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

cudaError_t SharedMemoryGrant::ask(const void* kernel, int bytes) {
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  std::atomic<int>* const granted = device < kDevices ? &granted_[device] : nullptr;
  const auto have = [&] {
    return granted != nullptr && granted->load(std::memory_order_acquire) >= bytes;
  };
  if (have()) return cudaSuccess;
  const std::lock_guard<std::mutex> lock(mutex_);
  if (have()) return cudaSuccess;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error == cudaSuccess && granted != nullptr) {
    granted->store(bytes, std::memory_order_release);
  }
  return error;
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
