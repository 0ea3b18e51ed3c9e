// The ggml backend contract: one device of type ACCEL that works in host memory, claims
// FLASH_ATTN_EXT and nothing else, and leaves everything else to llama.cpp.

#include <ggml-backend-impl.h>
#include <ggml-backend.h>

#include <algorithm>
#include <bsfa/backends.hpp>
#include <bsfa/error.hpp>
#include <bsfa/text.hpp>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <string>

#include "attention.hpp"
#include "bsfa_ggml.h"
#include "settings.hpp"
#include "stats.hpp"

static_assert(GGML_BACKEND_API_VERSION == 2,
              "this backend is written for version 2 of ggml's backend contract");

namespace bsfa::ggml {
namespace {

// ---- The C interface
// -----------------------------------------------------------------------------

int api_configure(const bsfa_ggml_config* config, char* error, size_t error_size) {
  if (error == nullptr) error_size = 0;
  try {
    if (config == nullptr) throw Error(ErrorCode::kInvalidArgument, "config is null");
    publish_settings(settings_from_config(*config, *current_settings()));
    if (error_size > 0) error[0] = '\0';
    return 0;
  } catch (const std::exception& failure) {
    if (error_size > 0) {  // cut between characters, if at all
      std::snprintf(error, error_size, "%s", printable(failure.what(), error_size - 1).c_str());
    }
    return -1;
  }
}

void api_reset_stats() { Stats::instance().reset(); }

size_t api_layer_stats(bsfa_ggml_layer_stats* entries, size_t capacity) {
  const auto layers = Stats::instance().layers();
  if (entries != nullptr) {
    std::copy_n(layers.begin(), std::min(capacity, layers.size()), entries);
  }
  return layers.size();
}

size_t api_declined(bsfa_ggml_decline* entries, size_t capacity) {
  const auto declined = Stats::instance().declined();
  if (entries != nullptr) {
    std::copy_n(declined.begin(), std::min(capacity, declined.size()), entries);
  }
  return declined.size();
}

double api_attention_seconds() { return Stats::instance().seconds(); }
const char* api_last_error() { return Stats::instance().last_error(); }

const bsfa_ggml_api* get_api() {
  static constexpr bsfa_ggml_api kApi = {
      BSFA_GGML_API_VERSION, api_configure,         api_reset_stats, api_layer_stats,
      api_declined,          api_attention_seconds, api_last_error,
  };
  return &kApi;
}

// ---- Backend: one a llama.cpp context
// --------------------------------------------------------------

constexpr const char* kName = "BSFA";

Attention& attention_of(ggml_backend_t backend) {
  return *static_cast<Attention*>(backend->context);
}

const char* backend_get_name(ggml_backend_t) { return kName; }

void backend_free(ggml_backend_t backend) {
  if (current_settings()->print_stats) {
    std::fputs(Stats::instance().text().c_str(), stderr);
  }
  delete static_cast<Attention*>(backend->context);
  delete backend;
}

ggml_status backend_graph_compute(ggml_backend_t backend, ggml_cgraph* graph) {
  try {
    for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
      ggml_tensor* node = ggml_graph_node(graph, i);
      // Views and the like may come along; they compute nothing.
      if (node->op != GGML_OP_FLASH_ATTN_EXT) continue;
      if ((node->flags & GGML_TENSOR_FLAG_COMPUTE) == 0) continue;
      attention_of(backend).compute(node);
    }
    return GGML_STATUS_SUCCESS;
  } catch (const std::exception& failure) {
    const std::string message = printable(failure.what());
    Stats::instance().set_error(message);
    std::fprintf(stderr, "bsfa: error: %s\n", message.c_str());
    return GGML_STATUS_FAILED;
  }
}

void backend_set_n_threads(ggml_backend_t backend, int num_threads) {
  attention_of(backend).set_num_threads(std::max(1, num_threads));
}

ggml_guid_t backend_guid() {
  static ggml_guid guid = {0x9b, 0x1c, 0x5e, 0x42, 0x0d, 0x77, 0x4a, 0xf1,
                           0x8e, 0x33, 0xb5, 0xfa, 0x12, 0x64, 0xc8, 0x20};
  return &guid;
}

// ---- Device
// ----------------------------------------------------------------------------------------

const char* device_get_name(ggml_backend_dev_t) { return kName; }
const char* device_get_description(ggml_backend_dev_t) {
  return "Block Sparse Flash Attention on the CPU";
}

void device_get_memory(ggml_backend_dev_t, size_t* free, size_t* total) { *free = *total = 0; }

enum ggml_backend_dev_type device_get_type(ggml_backend_dev_t) {
  return GGML_BACKEND_DEVICE_TYPE_ACCEL;
}

void device_get_props(ggml_backend_dev_t device, ggml_backend_dev_props* props) {
  props->name = device_get_name(device);
  props->description = device_get_description(device);
  props->type = device_get_type(device);
  device_get_memory(device, &props->memory_free, &props->memory_total);
  props->caps = {};
}

ggml_backend_t device_init_backend(ggml_backend_dev_t device, const char*) {
  ggml_backend_i interface = {};
  interface.get_name = backend_get_name;
  interface.free = backend_free;
  interface.graph_compute = backend_graph_compute;
  auto attention = std::make_unique<Attention>();
  auto* backend = new ggml_backend{backend_guid(), interface, device, attention.get()};
  attention.release();
  return backend;
}

ggml_backend_buffer_type_t device_get_buffer_type(ggml_backend_dev_t) {
  return ggml_backend_cpu_buffer_type();
}

bool device_supports_op(ggml_backend_dev_t, const ggml_tensor* node) {
  if (node->op != GGML_OP_FLASH_ATTN_EXT) return false;
  try {
    const Decline reason = decline(node, *current_settings());
    if (reason != Decline::kNone) Stats::instance().add_decline(reason);
    return reason == Decline::kNone;
  } catch (const std::exception& failure) {  // out of memory: leave it to llama.cpp, and say so
    Stats::instance().set_error(printable(failure.what()));
    return false;
  }
}

bool device_supports_buft(ggml_backend_dev_t, ggml_backend_buffer_type_t type) {
  return ggml_backend_buft_is_host(type);
}

// ---- Registry
// --------------------------------------------------------------------------------------

const char* reg_get_name(ggml_backend_reg_t) { return kName; }
size_t reg_get_device_count(ggml_backend_reg_t) { return 1; }

ggml_backend_dev_t reg_get_device(ggml_backend_reg_t reg, size_t) {
  static ggml_backend_device device = [reg] {
    ggml_backend_device_i interface = {};
    interface.get_name = device_get_name;
    interface.get_description = device_get_description;
    interface.get_memory = device_get_memory;
    interface.get_type = device_get_type;
    interface.get_props = device_get_props;
    interface.init_backend = device_init_backend;
    interface.get_buffer_type = device_get_buffer_type;
    interface.supports_op = device_supports_op;
    interface.supports_buft = device_supports_buft;
    return ggml_backend_device{interface, reg, nullptr};
  }();
  return &device;
}

void* reg_get_proc_address(ggml_backend_reg_t, const char* name) {
  if (std::strcmp(name, "ggml_backend_set_n_threads") == 0) {
    return reinterpret_cast<void*>(&backend_set_n_threads);
  }
  if (std::strcmp(name, BSFA_GGML_API_NAME) == 0) return reinterpret_cast<void*>(&get_api);
  return nullptr;
}

}  // namespace
}  // namespace bsfa::ggml

// Called by ggml_backend_load, which refuses the registry if it was written for another version of
// the contract than ggml's own.
extern "C" __attribute__((visibility("default"))) ggml_backend_reg_t ggml_backend_init() {
  using namespace bsfa::ggml;
  try {
    publish_settings(settings_from_environment());
  } catch (const std::exception& failure) {
    std::fprintf(stderr, "bsfa: not loaded: %s\n", bsfa::printable(failure.what()).c_str());
    return nullptr;
  }
  static ggml_backend_reg registry = [] {
    ggml_backend_reg_i interface = {};
    interface.get_name = reg_get_name;
    interface.get_device_count = reg_get_device_count;
    interface.get_device = reg_get_device;
    interface.get_proc_address = reg_get_proc_address;
    return ggml_backend_reg{GGML_BACKEND_API_VERSION, interface, nullptr};
  }();
  return &registry;
}
