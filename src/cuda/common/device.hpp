#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <mutex>
#include <string>

#include "bsfa/error.hpp"
#include "bsfa/tensor.hpp"

// What the host part needs to know of the CUDA runtime.

namespace bsfa::cuda {

// kRuntime with the runtime's own words, or ok.
Status check(cudaError_t error, const char* what);

struct DeviceFacts {
  int major = 0;
  int minor = 0;
  int multiprocessors = 0;
  int shared_bytes = 0;                     // most that one block may have
  int shared_bytes_per_multiprocessor = 0;  //
  int l2_bytes = 0;
};

// Of CUDA device `index`, asked once a process; refuses an index that is not there.
Status device_facts(int index, DeviceFacts* facts);

// "NVIDIA H200 (9.0)", ... of every card; empty, with the reason, if there is none.
std::string list_devices(std::string* reason);

// Whether there is a card of this compute capability, or of this one or above.
bool any_device(int major, int minor);
bool any_device_from(int major, int minor);

// Refuses a pointer that the kernels of `device` cannot follow.
Status check_pointer(const char* name, const void* pointer, Device device);

// Lets a kernel have more dynamic shared memory than is the default, asked once a process for each
// device and size. One object for each kernel.
class SharedMemoryGrant {
 public:
  // On the current device.
  cudaError_t ask(const void* kernel, int bytes);

 private:
  static constexpr int kDevices = 64;  // beyond these it is asked every time
  std::mutex mutex_;
  std::atomic<int> granted_[kDevices] = {};
};

// Makes a device current for a scope.
class CurrentDevice {
 public:
  explicit CurrentDevice(int index);
  ~CurrentDevice();
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;
  const Status& status() const { return status_; }

 private:
  int previous_ = -1;
  Status status_;
};

}  // namespace bsfa::cuda
