#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <exception>
#include <new>
#include <optional>
#include <string>

#include "bsfa/attention.hpp"
#include "bsfa/bsfa_c.h"
#include "bsfa/calibration.hpp"
#include "bsfa/executor.hpp"
#include "bsfa/thresholds.hpp"
#include "core/status.hpp"

// What the files of the C ABI share: exceptions to codes, versioned structs, views.

struct bsfa_thread_pool {
  explicit bsfa_thread_pool(int num_threads) : pool(num_threads) {}
  bsfa::ThreadPool pool;
};

struct bsfa_thresholds {
  bsfa::ThresholdTable table;
};

struct bsfa_calibration {
  bsfa::Calibration calibration;
};

namespace bsfa::c_abi {

// Keeps the message for bsfa_last_error; never throws.
bsfa_status set_last_error(ErrorCode code, const char* message) noexcept;
void clear_last_error() noexcept;

// Runs the body of an entry point.
template <typename Body>
bsfa_status guarded(Body&& body) noexcept {
  try {
    body();
    clear_last_error();
    return BSFA_OK;
  } catch (const Error& error) {
    return set_last_error(error.code(), error.what());
  } catch (const std::bad_alloc&) {
    return set_last_error(ErrorCode::kRuntime, "out of memory");
  } catch (const std::exception& error) {
    return set_last_error(ErrorCode::kRuntime, error.what());
  } catch (...) {
    return set_last_error(ErrorCode::kRuntime, "an exception of unknown type");
  }
}

template <typename T>
T* required(const char* name, T* pointer) {
  if (pointer == nullptr) throw Error(invalid_argument(name, " is null"));
  return pointer;
}

// The size of a struct up to and including `last`, the last field of its first version.
#define BSFA_FIRST_VERSION(type, last) (offsetof(type, last) + sizeof(type::last))

// No version of a struct will be larger. What claims to be is not initialised, and is not read.
constexpr std::size_t kLargestStruct = 4096;

template <typename T>
void check_struct_size(const char* name, std::size_t size, std::size_t first_version) {
  static_assert(sizeof(T) <= kLargestStruct);
  if (size < first_version || size > kLargestStruct) {
    throw Error(invalid_argument(name, "->struct_size is ", size,
                                 "; expected sizeof of the struct, ", sizeof(T),
                                 " in this version"));
  }
}

// A struct of the caller's as this library knows it: what an older one lacks is zero, and what a
// newer one has beyond must be zero.
template <typename T>
T read_struct(const char* name, const T* given, std::size_t first_version) {
  const std::size_t size = required(name, given)->struct_size;
  check_struct_size<T>(name, size, first_version);
  const auto* bytes = reinterpret_cast<const unsigned char*>(given);
  for (std::size_t n = sizeof(T); n < size; ++n) {
    if (bytes[n] != 0) {
      throw Error(unsupported(name, " has a field at byte ", n,
                              " that this version of the library ", "does not know (it knows ",
                              sizeof(T), " bytes)"));
    }
  }
  T result{};
  std::memcpy(&result, given, std::min(size, sizeof(T)));
  return result;
}

// Fills a struct of the caller's as far as it reaches; struct_size stays.
template <typename T>
void write_struct(const char* name, T result, T* to, std::size_t first_version) {
  const std::size_t size = required(name, to)->struct_size;
  check_struct_size<T>(name, size, first_version);
  result.struct_size = size;
  std::memcpy(to, &result, std::min(size, sizeof(T)));
}

template <std::size_t kSize>
void copy_text(const std::string& from, char (&to)[kSize]) {
  const std::size_t length = std::min(from.size(), kSize - 1);
  std::memcpy(to, from.data(), length);
  to[length] = '\0';
}

inline std::string text_of(const char* text) { return text != nullptr ? text : ""; }

template <typename T, int kRank, typename View>
StridedView<T, kRank> strided_view(const View& from) {
  StridedView<T, kRank> view;
  view.data = from.data;
  std::copy_n(from.shape, kRank, view.shape);
  std::copy_n(from.stride, kRank, view.stride);
  return view;
}

inline BlockShape block_shape(std::int64_t q, std::int64_t kv) {
  const BlockShape standard;
  return {q != 0 ? q : standard.q, kv != 0 ? kv : standard.kv};
}

// The caller's threads as an Executor, or none.
class CallerThreads {
 public:
  CallerThreads(bsfa_thread_pool* pool, const bsfa_executor* callbacks);
  Executor* get() const { return executor_; }

 private:
  class Callbacks final : public Executor {
   public:
    explicit Callbacks(const bsfa_executor& callbacks) : callbacks_(callbacks) {}
    int max_workers() const override { return callbacks_.max_workers; }
    void parallel_for(std::int64_t num_tasks, Body body, void* context) override {
      callbacks_.parallel_for(callbacks_.user, num_tasks, body, context);
    }

   private:
    bsfa_executor callbacks_;
  };

  std::optional<Callbacks> callbacks_;
  Executor* executor_ = nullptr;
};

}  // namespace bsfa::c_abi
